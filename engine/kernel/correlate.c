#include "correlate.h"

#ifdef VIGIE_KERNELS

#include <unistd.h>

typedef struct {
	const correlation *j;
	int channels, blocks, filters; // channels after folding, in blocks of 32; filters in blocks of 16
	int reach_rows;                // largest shift down
	int reach;                     // largest shift in positions
	int columns;                   // of a plane
	char *weights;                 // tiles [filter block][channel block][tap][term]
	int together;                  // images in a unit
	int band;                      // output rows in a unit
	int bands, groups, parts;      // units: image groups × bands × parts of the filters
	int part;                      // filter blocks of 16 in a part, even
	long positions;                // room of a panel
} correlating;

inlined void pack_filters(const int terms, const correlating *c, int f) {
	const correlation *j = c->j;
	int rows = j->k - f * 16 < 16 ? j->k - f * 16 : 16;
	char *to = c->weights + (long)f * c->blocks * j->taps * terms * tile_bytes;
	for (int b = 0; b < c->blocks; b++) {
		int columns = c->channels - b * 32 < 32 ? c->channels - b * 32 : 32;
		for (int t = 0; t < j->taps; t++, to += terms * tile_bytes) {
			const float *from = j->w + (long)f * 16 * j->w_filter + (long)b * 32 * j->w_channel + j->tap[t].weight;
			pack_tile(terms, from, rows, j->w_filter, columns, j->w_channel, to);
			for (int i = 0; i < terms; i++) transpose_tile(to + i * tile_bytes);
		}
	}
}

static void pack_filters_of(void *data, size_t f) {
	const correlating *c = data;
	if (c->j->terms == 2)
		pack_filters(2, c, (int)f);
	else
		pack_filters(3, c, (int)f);
}

// What a unit covers.
typedef struct {
	int image, images, row, rows, plane_rows;
	long plane_size, room;
} extent;

// Positions that are laid out and transposed at a time.
enum { stretch = 512 };

// Fills the panel of a block of 32 channels: for each term and position, 64
// bytes with the bfloat16 of the 32 channels.
inlined void fill_block(const int terms, const correlating *c, const extent *e, int block, int phase, char *to, long term, float *staged) {
	const correlation *j = c->j;
	int images = 1, rows = e->plane_rows;
	if (e->plane_size <= stretch)
		images = (int)(stretch / e->plane_size);
	else
		rows = stretch / c->columns > 0 ? stretch / c->columns : 1;
	long length = ((long)images * rows * c->columns + 31) / 16 * 16;
	float *other = staged + length;
	char *pairs = (char *)(other + length); // [term][16 pairs][length] of 4 bytes
	const plane *p = &j->planes[phase];
	const int direct = !j->fold && !j->gate && p->stride_h == 1 && p->stride_w == 1 && p->off_h == 0 && p->off_w == 0 && p->columns == p->src_w &&
	                   e->row + e->plane_rows <= p->src_h;
	long at = 0;
	for (int i = 0; i < e->images; i += images)
		for (int r = 0; r < e->plane_rows; r += rows) {
			int some = e->images - i < images ? e->images - i : images, lines = e->plane_rows - r < rows ? e->plane_rows - r : rows;
			long n = (long)some * lines * c->columns, whole = (n + 15) / 16 * 16;
			for (int pair = 0; pair < 16; pair++) {
				int first = block * 32 + 2 * pair;
				if (direct && some == 1 && first + 1 < c->channels) {
					// The source is the plane already, but for a tail.
					const float *a = j->src + (e->image + i) * j->src_image + first * j->src_channel + (long)(e->row + r) * c->columns, *b = a + j->src_channel;
					char *row = pairs + pair * length * 4;
					long even = n & ~15L;
					split_pairs(terms, a, b, even, row, 16 * length * 4);
					if (even < n) {
						memcpy(staged, a + even, (n - even) * sizeof(float));
						memcpy(other, b + even, (n - even) * sizeof(float));
						split_pairs(terms, staged, other, 16, row + even * 4, 16 * length * 4);
					}
					continue;
				}
				for (int k = 0; k < 2; k++) {
					float *row = k ? other : staged;
					if (first + k >= c->channels)
						memset(row, 0, whole * sizeof(float));
					else if (j->fold)
						lay_part(j, &j->planes[(first + k) % j->phases], row, (first + k) / j->phases, e->image + i, some, e->row + r, lines);
					else
						lay_part(j, p, row, first + k, e->image + i, some, e->row + r, lines);
				}
				split_pairs(terms, staged, other, whole, pairs + pair * length * 4, 16 * length * 4);
			}
			for (int t = 0; t < terms; t++)
				for (long q = 0; q < whole; q += 16) {
					__m512i v[16];
					for (int pair = 0; pair < 16; pair++) v[pair] = _mm512_loadu_si512(pairs + ((t * 16 + pair) * length + q) * 4);
					transpose16(v);
					char *p = to + t * term + (at + q) * 64;
					for (int k = 0; k < 16; k++) _mm512_store_si512(p + k * 64, v[k]);
				}
			at += n;
		}
	// What lies behind is margin.
	for (int t = 0; t < terms; t++) memset(to + t * term + at * 64, 0, (e->room - at) * 64);
}

// Takes 16 filters' planes out of scratch, [position][32 filters], of which
// these begin at column.
inlined void take_out(const correlating *c, const float *scratch, int column, int filter, const extent *e) {
	const correlation *j = c->j;
	const __m512 floor = _mm512_set1_ps(j->relu ? 0 : -__builtin_inff());
	int filters = j->k - filter < 16 ? j->k - filter : 16;
	__m512 bias = _mm512_setzero_ps();
	if (j->bias) bias = _mm512_maskz_loadu_ps(filters == 16 ? 0xffff : (1 << filters) - 1, j->bias + filter);
	for (int i = 0; i < e->images; i++)
		for (int r = 0; r < e->rows; r++) {
			const float *from = scratch + (i * e->plane_size + (long)r * c->columns) * 32 + column;
			int y = (e->row + r) * j->step_h + j->first_h;
			float *to = j->dst + (e->image + i) * j->dst_image + filter * j->dst_channel + (long)y * j->dst_w + j->first_w;
			for (int x = 0; x < j->out_columns; x += 16) {
				int n = j->out_columns - x < 16 ? j->out_columns - x : 16;
				__m512i v[16];
				for (int k = 0; k < 16; k++) // max's operands in this order let NaN through
					v[k] = _mm512_castps_si512(_mm512_max_ps(floor, _mm512_add_ps(_mm512_loadu_ps(from + (long)(x + k) * 32), bias)));
				transpose16(v);
				__mmask16 m = n == 16 ? 0xffff : (1 << n) - 1;
				if (j->step_w == 1) {
					for (int k = 0; k < filters; k++) _mm512_mask_storeu_epi32(to + k * j->dst_channel + x, m, v[k]);
					continue;
				}
				const __m512i index = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(j->step_w));
				for (int k = 0; k < filters; k++) _mm512_mask_i32scatter_epi32(to + k * j->dst_channel + (long)x * j->step_w, m, index, v[k], 4);
			}
		}
}

inlined void correlate_unit(const int terms, const correlating *c, size_t unit) {
	const correlation *j = c->j;
	int part = unit % c->parts, band = unit / c->parts % c->bands, group = unit / c->parts / c->bands;
	extent e = {.image = group * c->together, .row = band * c->band};
	e.images = j->n - e.image < c->together ? j->n - e.image : c->together;
	e.rows = j->out_rows - e.row < c->band ? j->out_rows - e.row : c->band;
	e.plane_rows = e.rows + c->reach_rows - (c->bands == 1 ? j->share_rows : 0);
	e.plane_size = (long)e.plane_rows * c->columns;
	long used = (e.images - 1) * e.plane_size + (long)(e.rows - 1) * c->columns + j->out_columns;
	e.room = (used + 31) / 32 * 32 + c->reach + 16;

	// Panel: [phase][channel block][term][position] of 64 bytes.
	long term = c->positions * 64, block = terms * term;
	int phases = j->fold ? 1 : j->phases;
	char *panel = vigie_take(phases * c->blocks * block);
	float *staged = vigie_take((2 + 16 * terms) * (stretch + (long)c->columns + 64) * sizeof(float));
	for (int f = 0; f < phases; f++)
		for (int b = 0; b < c->blocks; b++) fill_block(terms, c, &e, b, f, panel + (f * c->blocks + b) * block, term, staged);
	vigie_give(staged);

	long offset[most_taps];
	for (int t = 0; t < j->taps; t++)
		offset[t] = j->fold ? 0 : j->tap[t].phase * c->blocks * block + (j->tap[t].down * (long)c->columns + j->tap[t].right) * 64;
	float *scratch = vigie_take(32 * c->positions * sizeof(float));
	long filter_tiles = (long)c->blocks * j->taps * terms * tile_bytes;
	int from = part * c->part, to = from + c->part < c->filters ? from + c->part : c->filters;
	for (int f = from; f < to; f += 2) {
		long second = f + 1 < to ? filter_tiles : 0; // a lone block is computed twice
		tiles_begin();
		for (long q = 0; q < used; q += 32) {
			const char *w = c->weights + f * filter_tiles;
			tiles_zero();
			for (int b = 0; b < c->blocks; b++) {
				const char *base = panel + b * block + q * 64;
				for (int t = 0; t < j->taps; t++, w += terms * tile_bytes) step(terms, base + offset[t], term, tile_bytes, w, tile_bytes, second);
			}
			float *to = scratch + q * 32;
			_tile_stored(0, to, 128);
			_tile_stored(1, to + 16, 128);
			_tile_stored(2, to + 512, 128);
			_tile_stored(3, to + 528, 128);
		}
		tiles_end();
		take_out(c, scratch, 0, f * 16, &e);
		if (second) take_out(c, scratch, 16, f * 16 + 16, &e);
	}
	vigie_give(scratch);
	vigie_give(panel);
}

static void correlate_unit_of(void *data, size_t unit) {
	const correlating *c = data;
	if (c->j->terms == 2)
		correlate_unit(2, c, unit);
	else
		correlate_unit(3, c, unit);
}

// A unit's panel should leave room in a level-2 cache of 2 MiB for what else it
// needs.
enum { panel_bytes = 768 << 10 };

void vigie_correlate(const crew *crew, const correlation *j) {
	if (j->terms == 1) {
		vigie_correlate_single(crew, j);
		return;
	}
	correlating c = {.j = j};
	c.channels = j->fold ? j->c * j->phases : j->c;
	c.blocks = ceil_div(c.channels, 32);
	c.filters = ceil_div(j->k, 16);
	c.columns = j->planes[0].columns;
	int reach_columns = 0;
	for (int t = 0; t < j->taps && !j->fold; t++) {
		if (j->tap[t].down > c.reach_rows) c.reach_rows = j->tap[t].down;
		if (j->tap[t].right > reach_columns) reach_columns = j->tap[t].right;
	}
	c.reach = c.reach_rows * c.columns + reach_columns;

	int threads = (int)sysconf(_SC_NPROCESSORS_ONLN);
	if (threads < 1) threads = 1;
	if (threads > 16) threads = 16;
	int phases = j->fold ? 1 : j->phases;
	long per_position = (long)phases * c.blocks * 32 * 2 * j->terms;
	long whole = (long)(j->out_rows + c.reach_rows - j->share_rows) * c.columns;
	long best = panel_bytes / per_position;
	if (best < 256) best = 256;
	if (best > 4096) best = 4096;
	c.bands = 1;
	c.band = j->out_rows;
	c.together = 1;
	if (whole <= best) {
		c.together = (int)(best / whole);
		if (c.together > ceil_div(j->n, threads)) c.together = ceil_div(j->n, threads);
	} else {
		int rows = (int)(best / c.columns) - c.reach_rows;
		if (rows < 1) rows = 1;
		if (rows < j->out_rows) {
			c.bands = ceil_div(j->out_rows, rows);
			c.band = ceil_div(j->out_rows, c.bands);
			c.bands = ceil_div(j->out_rows, c.band);
		}
	}
	c.groups = ceil_div(j->n, c.together);
	c.parts = 1;
	if (c.groups * c.bands < threads) {
		c.parts = ceil_div(threads, c.groups * c.bands);
		if (c.parts > ceil_div(c.filters, 2)) c.parts = ceil_div(c.filters, 2);
	}
	c.part = ceil_div(ceil_div(c.filters, c.parts), 2) * 2;
	c.parts = ceil_div(c.filters, c.part);

	c.positions = ((long)c.together * (c.band + c.reach_rows) * c.columns + 32 + c.reach + 32) | 1;
	long bytes = (long)(c.filters + 1) * c.blocks * j->taps * j->terms * tile_bytes;
	if (j->keep) {
		pthread_mutex_lock(&j->keep->guard);
		c.weights = j->keep->tiles;
		if (!c.weights) {
			c.weights = vigie_take(bytes);
			for (int f = 0; f < c.filters; f++) pack_filters_of(&c, f);
			j->keep->tiles = c.weights;
		}
		pthread_mutex_unlock(&j->keep->guard);
	} else {
		c.weights = vigie_take(bytes);
		crew->run(crew, pack_filters_of, c.filters, &c);
	}
	crew->run(crew, correlate_unit_of, (size_t)c.groups * c.bands * c.parts, &c);
	if (!j->keep) vigie_give(c.weights);
}

#endif
