// The weight gradient of a convolution: for every tap, the product of the
// input's shifted planes with the output gradient's, over all positions of all
// images.
#include "correlate.h"

#ifdef VIGIE_KERNELS

int vigie_planes(const conv *g, plane *planes, tap *taps, int *share_rows);

enum {
	chunk_positions = 512,     // between two tap loops
	segment_positions = 1024,  // of images laid out together
	segment_bytes = 768 << 10, // that a segment's panels should not exceed, to stay in a level-2 cache
	streamed_bytes = 1 << 20,  // of sums, up to which they stay there beside the panels
	spread_bytes = 4 << 20,    // of all panels, up to which they may as well be made at once
	most_parts = 8,            // that images are divided into, each with sums of its own
};

typedef struct {
	const conv *g;
	const float *x, *dy, *y, *scale;
	plane planes[most_taps];
	tap taps[most_taps];
	int fold, phases, tap_count, group;
	int parities;              // 2 if some tap's shift is odd
	int channels, filters;     // of the group; channels after folding
	int blocks, filter_blocks; // of 16 channels and of 16 filters
	int pairs;                 // blocks of 32 channels and 32 filters
	long plane_size;
	long reach;                // positions that taps look beyond
	int together, segments;    // images that lie side by side, and how many such
	long segment;              // their positions, a multiple of 32
} gradient;

// Panels hold x and dy of some segments, split and arranged for products.
typedef struct {
	char *xs;  // [phase][parity][channel block][term][position pair] of 16 pairs
	char *dys; // [filter block][term][position block of 32] tiles
	float *db; // [segment][filter], or NULL
	long half; // bytes of one term of a block of x: 64 for two positions
	long term; // bytes of one term of a block of dy
	long positions;
} panels;

static panels take_panels(const gradient *c, int segments, int bias) {
	panels p = {.positions = segments * c->segment};
	p.half = ((p.positions + c->reach + 64) / 2 | 1) * 64;
	p.term = p.positions / 32 * tile_bytes;
	p.xs = vigie_take((long)(c->fold ? 1 : c->phases) * c->parities * c->blocks * c->g->terms * p.half);
	p.dys = vigie_take((long)c->filter_blocks * c->g->terms * p.term);
	if (bias) p.db = vigie_take((long)segments * c->filters * sizeof(float));
	return p;
}

static void give_panels(const panels *p) {
	vigie_give(p->db);
	vigie_give(p->dys);
	vigie_give(p->xs);
}

// Fills block block of phase phase of x with segment s, at place at of the
// panel. What taps look at beyond a segment is 0: either a margin, or it meets a
// margin of dy.
inlined void split_x(const int terms, const gradient *c, const panels *p, int phase, int block, int s, int at, int last) {
	const conv *g = c->g;
	long length = last ? c->segment + (c->reach + 63) / 32 * 32 : c->segment;
	float *staged = vigie_take((length + 64) * sizeof(float) + 16 * c->parities * terms * length * 2);
	char *rows = (char *)(staged + length + 64);
	for (int k = 0; k < 16; k++) {
		int channel = block * 16 + k;
		long end = 0;
		if (channel < c->channels) {
			const plane *l = &c->planes[c->fold ? channel % c->phases : phase];
			int source = c->group * (g->c / g->groups) + (c->fold ? channel / c->phases : channel);
			for (int i = s * c->together; i < (s + 1) * c->together && i < g->n; i++, end += c->plane_size)
				lay(staged + end, c->x + ((long)i * g->c + source) * g->h * g->w, 0, 1, l);
		}
		memset(staged + end, 0, (length + 1 - end) * sizeof(float));
		for (int parity = 0; parity < c->parities; parity++)
			split_row(terms, staged + parity, length, rows + (long)(parity * 16 + k) * terms * length * 2, length * 2);
	}
	for (int parity = 0; parity < c->parities; parity++)
		for (int t = 0; t < terms; t++) {
			char *to = p->xs + (((long)(phase * c->parities + parity) * c->blocks + block) * terms + t) * p->half + at * c->segment / 2 * 64;
			for (long q = 0; q < length / 32; q++, to += tile_bytes) {
				__m512i r[16];
				for (int k = 0; k < 16; k++) r[k] = _mm512_loadu_si512(rows + ((long)(parity * 16 + k) * terms + t) * length * 2 + q * 64);
				transpose16(r);
				for (int k = 0; k < 16; k++) _mm512_storeu_si512(to + k * 64, r[k]);
			}
		}
	vigie_give(staged);
}

inlined void split_dy(const int terms, const gradient *c, const panels *p, int block, int s, int at) {
	const conv *g = c->g;
	char *to = p->dys + (long)block * terms * p->term + at * c->segment / 32 * tile_bytes;
	float *staged = vigie_take(c->segment * sizeof(float) + 64);
	plane l = {(int)(c->plane_size / c->planes[0].columns), c->planes[0].columns, g->out_h, g->out_w, 1, 1, 0, 0};
	for (int k = 0; k < 16; k++) {
		int filter = block * 16 + k;
		if (filter >= c->filters) {
			for (int t = 0; t < terms; t++)
				for (long q = 0; q < c->segment / 32; q++) memset(to + t * p->term + q * tile_bytes + k * 64, 0, 64);
			continue;
		}
		long end = 0;
		for (int i = s * c->together; i < (s + 1) * c->together && i < g->n; i++, end += c->plane_size) {
			long from = ((long)i * g->k + c->group * c->filters + filter) * g->out_h * g->out_w;
			lay(staged + end, c->dy + from, c->y ? c->y + from : 0, c->scale ? c->scale[i] : 1, &l);
		}
		memset(staged + end, 0, (c->segment - end) * sizeof(float));
		__m512 sum = _mm512_setzero_ps();
		for (long q = 0; q < c->segment / 32; q++) {
			const float *from = staged + q * 32;
			sum = _mm512_add_ps(sum, _mm512_add_ps(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)));
			split_row(terms, from, 32, to + q * tile_bytes + k * 64, p->term);
		}
		if (p->db) p->db[(long)at * c->filters + filter] = _mm512_reduce_add_ps(sum);
	}
	vigie_give(staged);
}

// Both, for segments that are in the panels alone.
inlined void split_segment(const int terms, const gradient *c, const panels *p, int s) {
	for (int f = 0; f < (c->fold ? 1 : c->phases); f++)
		for (int b = 0; b < c->blocks; b++) split_x(terms, c, p, f, b, s, 0, 1);
	for (int b = 0; b < c->filter_blocks; b++) split_dy(terms, c, p, b, s, 0);
}

// Adds to sums[tap][32 filters][32 channels] of a pair of blocks the products
// over all positions of the panels. A block without a neighbour is multiplied
// twice; the copy is not used.
inlined void accumulate_taps(const int terms, const gradient *c, const panels *p, int pair, float *sums) {
	int filter_block = pair % ceil_div(c->filter_blocks, 2) * 2, channel_block = pair / ceil_div(c->filter_blocks, 2) * 2;
	const long at = p->term, ab = filter_block + 1 < c->filter_blocks ? terms * at : 0;
	const long bt = p->half, bb = channel_block + 1 < c->blocks ? terms * bt : 0;
	const char *a = p->dys + filter_block * terms * at;
	for (long q0 = 0; q0 < p->positions; q0 += chunk_positions) {
		long q1 = q0 + chunk_positions < p->positions ? q0 + chunk_positions : p->positions;
		for (int t = 0; t < c->tap_count; t++) {
			float *sum = sums + t * 1024;
			_tile_loadd(0, sum, 128);
			_tile_loadd(1, sum + 16, 128);
			_tile_loadd(2, sum + 512, 128);
			_tile_loadd(3, sum + 528, 128);
			long offset = c->fold ? 0 : (long)c->taps[t].down * c->planes[0].columns + c->taps[t].right;
			int phase = c->fold ? 0 : c->taps[t].phase;
			const char *b = p->xs + ((phase * c->parities + offset % 2) * (long)c->blocks + channel_block) * terms * bt + offset / 2 * 64;
			for (long q = q0; q < q1; q += 32) step(terms, a + q / 32 * tile_bytes, at, ab, b + q / 2 * 64, bt, bb);
			_tile_stored(0, sum, 128);
			_tile_stored(1, sum + 16, 128);
			_tile_stored(2, sum + 512, 128);
			_tile_stored(3, sum + 528, 128);
		}
	}
}

// Writes the sums of a pair of blocks into a gradient, [filters][channels][taps].
static void store_pair(const gradient *c, float *out, int pair, const float *sums) {
	int filter = pair % ceil_div(c->filter_blocks, 2) * 32, channel = pair / ceil_div(c->filter_blocks, 2) * 32;
	int rows = c->filters - filter < 32 ? c->filters - filter : 32, columns = c->channels - channel < 32 ? c->channels - channel : 32;
	for (int k = 0; k < rows; k++) {
		float *to = out + ((long)(filter + k) * c->channels + channel) * c->tap_count;
		const float *row = sums + k * 32;
		if (c->tap_count == 1) {
			memcpy(to, row, columns * sizeof(float));
			continue;
		}
		for (int i = 0; i < columns; i++)
			for (int t = 0; t < c->tap_count; t++) *to++ = row[t * 1024 + i];
	}
}

// The sum of squares of a pair's sums. Rows and columns that do not exist are 0,
// but for the copy of a lone block.
static float squares_of(const gradient *c, int pair, const float *sums) {
	int filter_block = pair % ceil_div(c->filter_blocks, 2) * 2, channel_block = pair / ceil_div(c->filter_blocks, 2) * 2;
	int rows = filter_block + 1 < c->filter_blocks ? 32 : 16;
	const __mmask16 right = channel_block + 1 < c->blocks ? 0xffff : 0;
	__m512 norm = _mm512_setzero_ps();
	for (int t = 0; t < c->tap_count; t++)
		for (int i = 0; i < rows; i++) {
			const float *row = sums + t * 1024 + i * 32;
			__m512 a = _mm512_load_ps(row), b = _mm512_maskz_load_ps(right, row + 16);
			norm = _mm512_fmadd_ps(a, a, _mm512_fmadd_ps(b, b, norm));
		}
	return _mm512_reduce_add_ps(norm);
}

static void measure(gradient *c) {
	const conv *g = c->g;
	int share;
	c->fold = vigie_planes(g, c->planes, c->taps, &share);
	int taps = g->r * g->s;
	c->phases = c->fold ? taps : g->stride_h * g->stride_w;
	c->tap_count = c->fold ? 1 : taps;
	c->channels = g->c / g->groups * (c->fold ? taps : 1);
	c->filters = g->k / g->groups;
	c->blocks = ceil_div(c->channels, 16);
	c->filter_blocks = ceil_div(c->filters, 16);
	c->pairs = ceil_div(c->blocks, 2) * ceil_div(c->filter_blocks, 2);
	c->plane_size = (long)c->planes[0].rows * c->planes[0].columns;
	c->parities = 1;
	for (int t = 0; t < c->tap_count && !c->fold; t++) {
		long offset = (long)c->taps[t].down * c->planes[0].columns + c->taps[t].right;
		if (offset > c->reach) c->reach = offset;
		if (offset % 2) c->parities = 2;
	}
}

static void divide(gradient *c, int together) {
	const conv *g = c->g;
	c->together = together < 1 ? 1 : together > g->n ? g->n : together;
	c->segments = ceil_div(g->n, c->together);
	c->segment = (c->together * c->plane_size + 31) / 32 * 32;
}

// Few weights: each part of the images has sums of its own, in its cache, and
// goes through its segments one at a time.
typedef struct {
	gradient *c;
	int parts, bias;
	float *sums; // [part][pair][tap][1024]
	float *db;   // [part][filter]
	float *dw;
} streaming;

inlined void stream_part(const int terms, const streaming *s, int part) {
	const gradient *c = s->c;
	long size = (long)c->pairs * c->tap_count * 1024;
	float *sums = s->sums + part * size, *db = s->db + (long)part * c->filters;
	memset(sums, 0, size * sizeof(float));
	memset(db, 0, c->filters * sizeof(float));
	panels p = take_panels(c, 1, 1);
	for (int i = c->segments * part / s->parts; i < c->segments * (part + 1) / s->parts; i++) {
		split_segment(terms, c, &p, i);
		for (int k = 0; k < c->filters; k++) db[k] += p.db[k];
		tiles_begin();
		for (int pair = 0; pair < c->pairs; pair++) accumulate_taps(terms, c, &p, pair, sums + (long)pair * c->tap_count * 1024);
		tiles_end();
	}
	give_panels(&p);
}

static void stream_part_of(void *data, size_t part) {
	const streaming *s = data;
	if (s->c->g->terms == 2)
		stream_part(2, s, (int)part);
	else
		stream_part(3, s, (int)part);
}

static void sum_parts(void *data, size_t pair) {
	const streaming *s = data;
	long size = s->c->tap_count * 1024L, all = s->c->pairs * size;
	float *sums = s->sums + pair * size;
	for (int p = 1; p < s->parts; p++)
		for (long i = 0; i < size; i += 16) _mm512_store_ps(sums + i, _mm512_add_ps(_mm512_load_ps(sums + i), _mm512_load_ps(sums + p * all + i)));
	store_pair(s->c, s->dw, (int)pair, sums);
}

// Bytes of the panels of an image.
static long image_bytes(const gradient *c) {
	return (long)((c->fold ? 1 : c->phases) * c->parities * c->blocks + c->filter_blocks) * 16 * 2 * c->g->terms * c->plane_size;
}

static void stream(const crew *crew, gradient *c, float *dw, float *db) {
	divide(c, (int)(segment_bytes / image_bytes(c)));
	// The number of parts depends on shapes alone, so that the order of the
	// sum does not depend on the machine.
	streaming s = {.c = c, .parts = c->segments < most_parts ? c->segments : most_parts, .dw = dw};
	s.sums = vigie_take((long)s.parts * c->pairs * c->tap_count * 1024 * sizeof(float));
	s.db = vigie_take((long)s.parts * c->filters * sizeof(float));
	crew->run(crew, stream_part_of, s.parts, &s);
	if (dw) crew->run(crew, sum_parts, c->pairs, &s);
	for (int k = 0; k < c->filters && db; k++) {
		double sum = 0;
		for (int p = 0; p < s.parts; p++) sum += s.db[(long)p * c->filters + k];
		db[k] = (float)sum;
	}
	vigie_give(s.db);
	vigie_give(s.sums);
}

// Many weights: everything is split first, then each pair of blocks goes through
// all positions.
typedef struct {
	gradient *c;
	panels p;
	float *dw;
} spreading;

static void spread_x(void *data, size_t unit) {
	const spreading *s = data;
	const gradient *c = s->c;
	int i = unit % c->segments, block = unit / c->segments % c->blocks, phase = (int)(unit / c->segments / c->blocks);
	if (c->g->terms == 2)
		split_x(2, c, &s->p, phase, block, i, i, i == c->segments - 1);
	else
		split_x(3, c, &s->p, phase, block, i, i, i == c->segments - 1);
}

static void spread_dy(void *data, size_t unit) {
	const spreading *s = data;
	const gradient *c = s->c;
	int i = unit % c->segments, block = (int)(unit / c->segments);
	if (c->g->terms == 2)
		split_dy(2, c, &s->p, block, i, i);
	else
		split_dy(3, c, &s->p, block, i, i);
}

static void multiply_pair(void *data, size_t pair) {
	const spreading *s = data;
	const gradient *c = s->c;
	float *sums = vigie_take((long)c->tap_count * 1024 * sizeof(float));
	memset(sums, 0, (long)c->tap_count * 1024 * sizeof(float));
	tiles_begin();
	if (c->g->terms == 2)
		accumulate_taps(2, c, &s->p, (int)pair, sums);
	else
		accumulate_taps(3, c, &s->p, (int)pair, sums);
	tiles_end();
	store_pair(c, s->dw, (int)pair, sums);
	vigie_give(sums);
}

static void spread(const crew *crew, gradient *c, float *dw, float *db) {
	divide(c, (int)(segment_positions / c->plane_size));
	spreading s = {.c = c, .dw = dw, .p = take_panels(c, c->segments, 1)};
	crew->run(crew, spread_x, (size_t)(c->fold ? 1 : c->phases) * c->blocks * c->segments, &s);
	crew->run(crew, spread_dy, (size_t)c->filter_blocks * c->segments, &s);
	if (dw) crew->run(crew, multiply_pair, c->pairs, &s);
	for (int k = 0; k < c->filters && db; k++) {
		double sum = 0;
		for (int i = 0; i < c->segments; i++) sum += s.p.db[(long)i * c->filters + k];
		db[k] = (float)sum;
	}
	give_panels(&s.p);
}

void vigie_weight_gradient(const crew *crew, const conv *g, const float *x, const float *dy, const float *y, const float *scale, float *dw, float *db) {
	if (g->terms == 1) {
		vigie_weight_gradient_single(crew, g, x, dy, y, scale, dw, db);
		return;
	}
	for (int i = 0; i < g->groups; i++) {
		gradient c = {.g = g, .x = x, .dy = dy, .y = y, .scale = scale, .group = i};
		measure(&c);
		float *w = dw ? dw + (long)i * c.filters * c.channels * c.tap_count : 0, *b = db ? db + i * c.filters : 0;
		long sums = (long)c.pairs * c.tap_count * 4096, all = image_bytes(&c) * g->n;
		if (sums <= streamed_bytes && all > spread_bytes && all > 4 * most_parts * sums)
			stream(crew, &c, w, b);
		else
			spread(crew, &c, w, b);
	}
}

// One record at a time.
typedef struct {
	gradient *c;
	float *rows, *bias_rows, *norms, *bias_norms;
} recording;

inlined void record(const int terms, const recording *s, int i) {
	const gradient *c = s->c;
	long size = (long)c->filters * c->channels * c->tap_count, sums_bytes = (long)c->tap_count * 1024 * sizeof(float);
	panels p = take_panels(c, 1, 1);
	float *sums = vigie_take(sums_bytes);
	split_segment(terms, c, &p, i);
	double norm = 0, bias = 0;
	for (int pair = 0; pair < c->pairs; pair++) {
		memset(sums, 0, sums_bytes);
		tiles_begin();
		accumulate_taps(terms, c, &p, pair, sums);
		tiles_end();
		if (s->rows) store_pair(c, s->rows + ((long)i * c->g->groups + c->group) * size, pair, sums);
		norm += squares_of(c, pair, sums);
	}
	for (int k = 0; k < c->filters; k++) bias += (double)p.db[k] * p.db[k];
	if (s->rows) memcpy(s->bias_rows + (long)i * c->g->k + c->group * c->filters, p.db, c->filters * sizeof(float));
	s->norms[i] += (float)norm;
	s->bias_norms[i] += (float)bias;
	vigie_give(sums);
	give_panels(&p);
}

static void record_of(void *data, size_t i) {
	const recording *s = data;
	if (s->c->g->terms == 2)
		record(2, s, (int)i);
	else
		record(3, s, (int)i);
}

// The squared norms of the gradients of each record, a run of views images, of all
// groups, added to norms and bias_norms; the gradients themselves into rows and
// bias_rows, unless these are NULL.
void vigie_record_gradients(const crew *crew, const conv *g, int views, const float *x, const float *dy, const float *y, float *rows, float *bias_rows,
                            float *norms, float *bias_norms) {
	if (g->terms == 1) {
		vigie_record_gradients_single(crew, g, views, x, dy, y, rows, bias_rows, norms, bias_norms);
		return;
	}
	for (int i = 0; i < g->groups; i++) {
		gradient c = {.g = g, .x = x, .dy = dy, .y = y, .group = i};
		measure(&c);
		divide(&c, views);
		recording s = {&c, rows, bias_rows, norms, bias_norms};
		crew->run(crew, record_of, c.segments, &s);
	}
}

#endif
