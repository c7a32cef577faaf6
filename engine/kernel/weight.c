// The weight gradient of a convolution: for every tap, the product of the
// input's shifted planes with the output gradient's, over all positions of all
// images.
#include "correlate.h"

#ifdef VIGIE_KERNELS

int vigie_planes(const conv *g, plane *planes, tap *taps, int *share_rows);

enum {
	segment_positions = 1024, // of images laid out together
	chunk_positions = 512,    // between two tap loops
	most_partials = 16,
};

typedef struct {
	const conv *g;
	const float *x, *dy, *y, *scale;
	float *dw, *db, *norms;
	plane planes[most_taps];
	tap taps[most_taps];
	int fold, share, phases;
	int tap_count;
	int group;
	int channels, filters;    // of the group; channels after folding
	int blocks, filter_blocks; // of 16 channels and of 16 filters
	long plane_size;
	int together, segments;
	long segment;    // positions, a multiple of 32
	long half;       // bytes of one term of a block of x: 64 for two positions
	long reach;      // positions that taps look beyond
	int parities;    // 2 if some tap's shift is odd
	char *xs;        // [phase][parity][channel block][term][position pair] of 16 pairs
	char *dys;       // [filter block][term][position block of 32] tiles
	float *db_parts; // [segment][filter]
	int parts;       // of the segments, summed afterwards
	float *partial;  // [part][filters][channels][taps]
	float *norm_parts; // [block of channels and filters][image]
	int per_example; // each record's gradient is wanted, or its norm, not the sum
	float *rows;     // [record][filter of all groups][channels][taps], or NULL for norms
	int views;       // images of a record
} gradient;

// The first number of an image's plane.
static float first_of(const gradient *c, const plane *p, int source, int image) {
	const conv *g = c->g;
	if (p->off_h < 0 || p->off_w < 0 || p->off_h >= p->src_h || p->off_w >= p->src_w) return 0;
	return c->x[(((long)image * g->c + source) * g->h + p->off_h) * g->w + p->off_w];
}

// A unit is a phase, a block of 16 channels and a segment.
inlined void split_x(const int terms, const gradient *c, size_t unit) {
	const conv *g = c->g;
	int s = unit % c->segments, block = unit / c->segments % c->blocks, phase = unit / c->segments / c->blocks;
	// The last segment also fills what taps look at beyond it, with zeros.
	long length = s == c->segments - 1 ? c->segment + (c->reach + 63) / 32 * 32 : c->segment;
	float *staged = vigie_take((length + 64) * sizeof(float));
	char *rows = vigie_take(16 * c->parities * terms * length * 2);
	for (int k = 0; k < 16; k++) {
		int channel = block * 16 + k;
		long at = 0;
		if (channel < c->channels) {
			const plane *p = &c->planes[c->fold ? channel % c->phases : phase];
			int source = c->group * (g->c / g->groups) + (c->fold ? channel / c->phases : channel);
			int last = (s + 1) * c->together;
			for (int i = s * c->together; i < last && i < g->n; i++, at += c->plane_size)
				lay(staged + at, c->x + ((long)i * g->c + source) * g->h * g->w, 0, 1, p);
			// A pair that begins at an odd position ends in the next segment.
			if (c->parities == 2 && s < c->segments - 1) {
				memset(staged + at, 0, (length - at) * sizeof(float));
				at = length + 1;
				staged[length] = first_of(c, p, source, last);
			}
		}
		if (at < length + 1) memset(staged + at, 0, (length + 1 - at) * sizeof(float));
		for (int parity = 0; parity < c->parities; parity++)
			split_row(terms, staged + parity, length, rows + (long)(parity * 16 + k) * terms * length * 2, length * 2);
	}
	for (int parity = 0; parity < c->parities; parity++)
		for (int t = 0; t < terms; t++) {
			char *to = c->xs + (((long)(phase * c->parities + parity) * c->blocks + block) * terms + t) * c->half + s * c->segment / 2 * 64;
			for (long q = 0; q < length / 32; q++, to += tile_bytes) {
				__m512i r[16];
				for (int k = 0; k < 16; k++) r[k] = _mm512_loadu_si512(rows + ((long)(parity * 16 + k) * terms + t) * length * 2 + q * 64);
				transpose16(r);
				for (int k = 0; k < 16; k++) _mm512_store_si512(to + k * 64, r[k]);
			}
		}
	vigie_give(rows);
	vigie_give(staged);
}

static void split_x_of(void *data, size_t i) {
	const gradient *c = data;
	if (c->g->terms == 2)
		split_x(2, c, i);
	else
		split_x(3, c, i);
}

inlined void split_dy(const int terms, const gradient *c, size_t unit) {
	int block = unit / c->segments, s = unit % c->segments;
	const conv *g = c->g;
	long term = c->segments * c->segment / 32 * tile_bytes;
	char *to = c->dys + block * terms * term + s * c->segment / 32 * tile_bytes;
	float *staged = vigie_take(c->segment * sizeof(float) + 64);
	plane p = {(int)(c->plane_size / c->planes[0].columns), c->planes[0].columns, g->out_h, g->out_w, 1, 1, 0, 0};
	for (int k = 0; k < 16; k++) {
		int filter = block * 16 + k;
		if (filter >= c->filters) {
			for (int t = 0; t < terms; t++)
				for (long q = 0; q < c->segment / 32; q++) memset(to + t * term + q * tile_bytes + k * 64, 0, 64);
			continue;
		}
		long at = 0;
		for (int i = s * c->together; i < (s + 1) * c->together && i < g->n; i++, at += c->plane_size) {
			long from = ((long)i * g->k + c->group * c->filters + filter) * g->out_h * g->out_w;
			lay(staged + at, c->dy + from, c->y ? c->y + from : 0, c->scale ? c->scale[i] : 1, &p);
		}
		memset(staged + at, 0, (c->segment - at) * sizeof(float));
		for (long q = 0; q < c->segment / 32; q++) split_row(terms, staged + q * 32, 32, to + q * tile_bytes + k * 64, term);
		if (c->db_parts) {
			__m512 sum = _mm512_setzero_ps();
			for (long q = 0; q < c->segment; q += 16) sum = _mm512_add_ps(sum, _mm512_loadu_ps(staged + q));
			c->db_parts[(long)s * c->filters + filter] = _mm512_reduce_add_ps(sum);
		}
	}
	vigie_give(staged);
}

static void split_dy_of(void *data, size_t unit) {
	const gradient *c = data;
	if (c->g->terms == 2)
		split_dy(2, c, unit);
	else
		split_dy(3, c, unit);
}

// Adds to sums[tap][32 filters][32 channels] the products over positions [from, to).
inlined void accumulate_taps(const int terms, const gradient *c, int channel_block, int filter_block, long from, long to, float *sums) {
	const long at = c->segments * c->segment / 32 * tile_bytes, ab = filter_block + 1 < c->filter_blocks ? terms * at : 0;
	const long bt = c->half, bb = channel_block + 1 < c->blocks ? terms * bt : 0;
	const char *a = c->dys + filter_block * terms * at;
	for (long q0 = from; q0 < to; q0 += chunk_positions) {
		long q1 = q0 + chunk_positions < to ? q0 + chunk_positions : to;
		for (int t = 0; t < c->tap_count; t++) {
			float *sum = sums + t * 1024;
			_tile_loadd(0, sum, 128);
			_tile_loadd(1, sum + 16, 128);
			_tile_loadd(2, sum + 512, 128);
			_tile_loadd(3, sum + 528, 128);
			long offset = c->fold ? 0 : (long)c->taps[t].down * c->planes[0].columns + c->taps[t].right;
			int phase = c->fold ? 0 : c->taps[t].phase;
			const char *b = c->xs + ((phase * c->parities + offset % 2) * (long)c->blocks + channel_block) * terms * bt + offset / 2 * 64;
			for (long q = q0; q < q1; q += 32) step(terms, a + q / 32 * tile_bytes, at, ab, b + q / 2 * 64, bt, bb);
			_tile_stored(0, sum, 128);
			_tile_stored(1, sum + 16, 128);
			_tile_stored(2, sum + 512, 128);
			_tile_stored(3, sum + 528, 128);
		}
	}
}

// Writes a block of sums into a gradient, [filters][channels][taps].
static void store_block(const gradient *c, float *out, int filter_block, int channel_block, const float *sums) {
	int filter = filter_block * 16, channel = channel_block * 16;
	int rows = c->filters - filter < 32 ? c->filters - filter : 32, columns = c->channels - channel < 32 ? c->channels - channel : 32;
	for (int k = 0; k < rows; k++) {
		float *to = out + ((long)(filter + k) * c->channels + channel) * c->tap_count;
		const float *row = sums + k * 32;
		for (int i = 0; i < columns; i++)
			for (int t = 0; t < c->tap_count; t++) *to++ = row[t * 1024 + i];
	}
}

// Unit: a block of 32 channels and 32 filters, and a part of the segments.
inlined void multiply(const int terms, const gradient *c, size_t unit) {
	int part = unit % c->parts;
	int filter_pairs = ceil_div(c->filter_blocks, 2);
	int block = unit / c->parts, filter_block = block % filter_pairs * 2, channel_block = block / filter_pairs * 2;
	// A block without a neighbour is multiplied twice; the copy is not used.
	int rows = filter_block + 1 < c->filter_blocks ? 32 : 16;
	int columns = channel_block + 1 < c->blocks ? 32 : 16;
	long size = (long)c->tap_count * 1024;
	float *sums = vigie_take(size * sizeof(float));
	tiles_begin();
	if (c->per_example) {
		for (int n = 0; n < c->segments; n++) {
			memset(sums, 0, size * sizeof(float));
			accumulate_taps(terms, c, channel_block, filter_block, n * c->segment, (n + 1) * c->segment, sums);
			if (c->rows) {
				long size = (long)c->filters * c->channels * c->tap_count;
				store_block(c, c->rows + ((long)n * c->g->groups + c->group) * size, filter_block, channel_block, sums);
				continue;
			}
			__m512 norm = _mm512_setzero_ps();
			const __mmask16 right = columns == 32 ? 0xffff : 0;
			for (int t = 0; t < c->tap_count; t++)
				for (int i = 0; i < rows; i++) {
					const float *row = sums + t * 1024 + i * 32;
					__m512 a = _mm512_load_ps(row), b = _mm512_maskz_load_ps(right, row + 16);
					norm = _mm512_fmadd_ps(a, a, _mm512_fmadd_ps(b, b, norm));
				}
			c->norm_parts[(long)block * c->segments + n] = _mm512_reduce_add_ps(norm);
		}
		tiles_end();
		vigie_give(sums);
		return;
	}
	memset(sums, 0, size * sizeof(float));
	long from = (long)c->segments * part / c->parts * c->segment, to = (long)c->segments * (part + 1) / c->parts * c->segment;
	accumulate_taps(terms, c, channel_block, filter_block, from, to, sums);
	tiles_end();
	store_block(c, c->partial + (long)part * c->filters * c->channels * c->tap_count, filter_block, channel_block, sums);
	vigie_give(sums);
}

static void multiply_of(void *data, size_t unit) {
	const gradient *c = data;
	if (c->g->terms == 2)
		multiply(2, c, unit);
	else
		multiply(3, c, unit);
}

// Lays out and splits x and dy.
static void prepare(const crew *crew, gradient *c) {
	const conv *g = c->g;
	c->fold = vigie_planes(g, c->planes, c->taps, &c->share);
	int taps = g->r * g->s;
	c->phases = c->fold ? taps : g->stride_h * g->stride_w;
	c->tap_count = c->fold ? 1 : taps;
	c->channels = g->c / g->groups * (c->fold ? taps : 1);
	c->filters = g->k / g->groups;
	c->blocks = ceil_div(c->channels, 16);
	c->filter_blocks = ceil_div(c->filters, 16);
	c->plane_size = (long)c->planes[0].rows * c->planes[0].columns;
	c->together = c->per_example ? c->views : (int)(segment_positions / c->plane_size);
	if (c->together < 1) c->together = 1;
	if (c->together > g->n) c->together = g->n;
	c->segments = ceil_div(g->n, c->together);
	c->segment = (c->together * c->plane_size + 31) / 32 * 32;
	c->reach = 0;
	for (int t = 0; t < c->tap_count && !c->fold; t++) {
		long offset = (long)c->taps[t].down * c->planes[0].columns + c->taps[t].right;
		if (offset > c->reach) c->reach = offset;
	}
	c->parities = 1;
	for (int t = 0; t < c->tap_count && !c->fold; t++)
		if ((c->taps[t].down * c->planes[0].columns + c->taps[t].right) % 2) c->parities = 2;
	c->half = ((c->segments * c->segment + c->reach + 64) / 2 | 1) * 64;
	int phases = c->fold ? 1 : c->phases;
	c->xs = vigie_take((long)phases * c->parities * c->blocks * g->terms * c->half);
	c->dys = vigie_take((long)c->filter_blocks * c->segments * c->segment / 32 * g->terms * tile_bytes);
	crew->run(crew, split_x_of, (size_t)phases * c->blocks * c->segments, c);
	crew->run(crew, split_dy_of, (size_t)c->filter_blocks * c->segments, c);
}

void vigie_weight_gradient(const crew *crew, const conv *g, const float *x, const float *dy, const float *y, const float *scale, float *dw, float *db) {
	for (int i = 0; i < g->groups; i++) {
		gradient c = {.g = g, .x = x, .dy = dy, .y = y, .scale = scale, .group = i};
		if (db) c.db_parts = vigie_take((long)g->n * (g->k / g->groups) * sizeof(float));
		prepare(crew, &c);
		if (db) {
			for (int k = 0; k < c.filters; k++) {
				double sum = 0;
				for (int s = 0; s < c.segments; s++) sum += c.db_parts[(long)s * c.filters + k];
				db[i * c.filters + k] = (float)sum;
			}
			vigie_give(c.db_parts);
		}
		if (dw) {
			int blocks = ceil_div(c.blocks, 2) * ceil_div(c.filter_blocks, 2);
			long size = (long)c.filters * c.channels * c.tap_count;
			dw += i * size;
			// The number of parts depends on shapes alone, so that the order
			// of the sum does not depend on the machine.
			c.parts = ceil_div(most_partials, blocks);
			if (c.parts > c.segments) c.parts = c.segments;
			c.partial = c.parts > 1 ? vigie_take(c.parts * size * sizeof(float)) : dw;
			crew->run(crew, multiply_of, (size_t)blocks * c.parts, &c);
			if (c.parts > 1) {
				for (long e = 0; e < size; e++) {
					float sum = 0;
					for (int p = 0; p < c.parts; p++) sum += c.partial[p * size + e];
					dw[e] = sum;
				}
				vigie_give(c.partial);
			}
			dw -= i * size;
		}
		vigie_give(c.dys);
		vigie_give(c.xs);
	}
}

// The gradients of each record, a run of views images, of all groups: either
// themselves into rows and bias_rows, or their squared norms added to norms and
// bias_norms, and then they are never stored.
void vigie_record_gradients(const crew *crew, const conv *g, int views, const float *x, const float *dy, const float *y, float *rows, float *bias_rows,
                            float *norms, float *bias_norms) {
	for (int i = 0; i < g->groups; i++) {
		gradient c = {.g = g, .x = x, .dy = dy, .y = y, .group = i, .per_example = 1, .views = views, .parts = 1, .rows = rows};
		c.db_parts = vigie_take((long)g->n * (g->k / g->groups) * sizeof(float));
		prepare(crew, &c);
		int blocks = ceil_div(c.blocks, 2) * ceil_div(c.filter_blocks, 2);
		c.norm_parts = vigie_take((long)blocks * c.segments * sizeof(float));
		crew->run(crew, multiply_of, blocks, &c);
		for (int n = 0; n < c.segments; n++) {
			const float *db = c.db_parts + (long)n * c.filters;
			if (rows) {
				memcpy(bias_rows + (long)n * g->k + i * c.filters, db, c.filters * sizeof(float));
				continue;
			}
			for (int b = 0; b < blocks; b++) norms[n] += c.norm_parts[(long)b * c.segments + n];
			for (int k = 0; k < c.filters; k++) bias_norms[n] += db[k] * db[k];
		}
		vigie_give(c.norm_parts);
		vigie_give(c.dys);
		vigie_give(c.xs);
		vigie_give(c.db_parts);
	}
}

#endif
