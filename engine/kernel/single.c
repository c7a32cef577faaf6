// Convolution, its gradients and matrix products in float32 as it is, by
// AVX-512: what processors without AMX run, in the planes of plane.h.
//
// All of them come down to one of two blocks of sums that stay in registers.
// Along positions, which lie side by side: 8 filters by up to 48 positions, one
// weight at a time times a run of one channel's positions. Along filters, for the
// weight gradient: 8 channels by 32 filters, one position at a time.
#include "correlate.h"

#ifdef VIGIE_KERNELS

#include <unistd.h>

int vigie_planes(const conv *g, plane *planes, tap *taps, int *share_rows);

enum {
	lanes = 16,
	block = 8,         // filters, or rows of a matrix product, in a block of sums
	most_vectors = 3,  // of 16 positions or columns in a block of sums
	strip = most_vectors * lanes,
	panel_limit = 768 << 10, // bytes of a unit's panel, in a level-2 cache of 2 MiB
};

// An odd number of cache lines, at least n numbers long: rows that far apart do
// not all fall into one set of a cache.
static inline long apart(long n) { return ((n + lanes - 1) / lanes | 1) * lanes; }

static inline int lesser(int a, int b) { return a < b ? a : b; }

static int processors(void) {
	long n = sysconf(_SC_NPROCESSORS_ONLN);
	return n < 1 ? 1 : n > 16 ? 16 : (int)n;
}

// Weights of 8 filters: of filter f at at + f·filter, and the next along the inner
// dimension along further.
typedef struct {
	const float *at;
	long filter, along;
} weights;

// sum[f][i] += w[f]·v[i], weights of rows filters by vectors of 16 positions at
// place.
inlined void multiply_add(const int rows, const int vectors, const float *w, long filter, const float *v, const long *place, __m512 *sum) {
	const float *w3 = w + 3 * filter, *w6 = w + 6 * filter;
	__m512 x[2 * most_vectors];
#pragma GCC unroll 6
	for (int i = 0; i < vectors; i++) x[i] = _mm512_loadu_ps(v + place[i]);
#pragma GCC unroll 8
	for (int f = 0; f < rows; f++) {
		__m512 by = _mm512_set1_ps(f < 3 ? w[f * filter] : f < 6 ? w3[(f - 3) * filter] : w6[(f - 6) * filter]);
#pragma GCC unroll 6
		for (int i = 0; i < vectors; i++) sum[f * vectors + i] = _mm512_fmadd_ps(by, x[i], sum[f * vectors + i]);
	}
}

// Where sums go: of filter f and vector i to at + f·stride + place[i], after bias and
// floor, the least value.
typedef struct {
	float *at;
	long stride;
	const long *place;
	const float *bias; // NULL: none
	float floor;
	int add; // to what is there
} target;

// The sums over depth rows, which lie step apart in v, at offset[t] from there for
// each of taps. A lone tap's offset is in v already.
inlined void sums_of(const int rows, const int vectors, const long filter, const long along, const float *w, const float *v, const long *place, long step, long depth, const long *offset, int taps, const target *to) {
	long at[2 * most_vectors];
#pragma GCC unroll 6
	for (int i = 0; i < vectors; i++) at[i] = place[i];
	__m512 sum[block * most_vectors];
	float *out = to->at;
	long stride = to->stride;
	if (to->add) {
#pragma GCC unroll 8
		for (int f = 0; f < rows; f++)
#pragma GCC unroll 6
			for (int i = 0; i < vectors; i++) sum[f * vectors + i] = _mm512_loadu_ps(out + f * stride + to->place[i]);
	} else {
#pragma GCC unroll 24
		for (int i = 0; i < rows * vectors; i++) sum[i] = _mm512_setzero_ps();
	}
	if (taps == 1)
		for (long k = 0; k < depth; k++, w += along, v += step) multiply_add(rows, vectors, w, filter, v, at, sum);
	else
		for (long k = 0; k < depth; k++, v += step)
			for (int t = 0; t < taps; t++, w += along) multiply_add(rows, vectors, w, filter, v + offset[t], at, sum);
	const __m512 floor = _mm512_set1_ps(to->floor);
	const float *bias = to->bias;
#pragma GCC unroll 6
	for (int i = 0; i < vectors; i++) at[i] = to->place[i];
#pragma GCC unroll 8
	for (int f = 0; f < rows; f++, out += stride) {
		__m512 b = bias ? _mm512_set1_ps(bias[f]) : _mm512_setzero_ps();
#pragma GCC unroll 6
		for (int i = 0; i < vectors; i++) // max's operands in this order let NaN through
			_mm512_storeu_ps(out + at[i], _mm512_max_ps(floor, _mm512_add_ps(sum[f * vectors + i], b)));
	}
}

// The places of vectors side by side.
static const long beside[2 * most_vectors] = {0, 16, 32, 48, 64, 80};

// Filters in a block of sums, of which rows exist, and the vectors it may have.
static inline int high_of(int rows) { return rows <= block / 2 ? block / 2 : block; }
static inline int vectors_of(int high, long left) {
	long most = high == block ? most_vectors : 2 * most_vectors;
	return (int)(left < most ? left : left == most + 1 ? most - 1 : most); // a lone vector's sums wait for each other
}

// high and vectors are as above; weights are packed (filter 1, along 8), or rows
// of a matrix (along 1).
static void sums(int high, int vectors, weights w, const float *v, const long *place, long step, long depth, const long *offset, int taps, const target *to) {
#define CASE(h, n)                                                                                  \
	case h * 8 + n:                                                                                   \
		if (w.filter == 1)                                                                              \
			sums_of(h, n, 1, block, w.at, v, place, step, depth, offset, taps, to);                      \
		else                                                                                            \
			sums_of(h, n, w.filter, 1, w.at, v, place, step, depth, offset, taps, to);                   \
		break
	switch (high * 8 + vectors) {
		CASE(8, 3);
		CASE(8, 2);
		CASE(8, 1);
		CASE(4, 6);
		CASE(4, 5);
		CASE(4, 4);
		CASE(4, 3);
		CASE(4, 2);
		CASE(4, 1);
	}
#undef CASE
}

// Turns rows of depth numbers, step apart, of which rows exist, into depth
// groups of width numbers, a multiple of 16.
static void across(const float *from, int rows, long step, long depth, float *to, int width) {
	for (long k = 0; k < depth; k += lanes) {
		long left = depth - k < lanes ? depth - k : lanes;
		__mmask16 m = (__mmask16)((1u << left) - 1);
		for (int b = 0; b < width; b += lanes) {
			__m512i v[lanes];
			for (int i = 0; i < lanes; i++)
				v[i] = b + i < rows ? _mm512_maskz_loadu_epi32(m, from + (b + i) * step + k) : _mm512_setzero_si512();
			transpose16(v);
			for (int i = 0; i < left; i++) _mm512_storeu_si512(to + (k + i) * width + b, v[i]);
		}
	}
}

// The same for two times 8 rows, each with groups of its own.
static void across8(const float *from, int rows, long step, long depth, float *to, float *second) {
	for (long k = 0; k < depth; k += lanes) {
		long left = depth - k < lanes ? depth - k : lanes;
		__mmask16 m = (__mmask16)((1u << left) - 1);
		__m512i v[lanes];
		for (int i = 0; i < lanes; i++) v[i] = i < rows ? _mm512_maskz_loadu_epi32(m, from + i * step + k) : _mm512_setzero_si512();
		transpose16(v);
		for (int i = 0; i < left; i++) {
			_mm256_storeu_si256((__m256i *)(to + (k + i) * block), _mm512_castsi512_si256(v[i]));
			if (rows > block) _mm256_storeu_si256((__m256i *)(second + (k + i) * block), _mm512_extracti64x4_epi64(v[i], 1));
		}
	}
}

typedef struct {
	const correlation *j;
	const plane *planes; // one for each phase
	const tap *tap;
	int phases, share_rows;
	int direct;                // the source is the plane already
	int aligned;               // vectors are runs of rows of the output, without margins
	int in_order;              // taps are in the weights' order, without gaps
	int filters;               // blocks of 8
	int reach_rows, columns;   // largest shift down; columns of a plane
	long reach;                // largest shift in positions
	int as_they_are;           // weights lie as they are read, but for a last block that is not full
	float *weights;            // [filter block][channel][tap] of 8; or that last block
	int together, band;        // images and output rows in a unit
	int bands, groups, parts;  // units: image groups × bands × parts of the filters
	int part;                  // filter blocks in a part
	long step;                 // between the rows of a panel, [channel][phase]
} correlating;

// Packs two blocks of filters.
static void pack_weights(void *data, size_t pair) {
	const correlating *c = data;
	const correlation *j = c->j;
	long depth = (long)j->c * j->taps;
	float *to = c->weights + (long)pair * 2 * depth * block, *second = to + depth * block;
	const float *from = j->w + (long)pair * 2 * block * j->w_filter;
	int rows = lesser(2 * block, j->k - (int)pair * 2 * block);
	if (c->in_order && j->taps <= lanes && j->taps > 2) {
		for (int ch = 0; ch < j->c; ch++) across8(from + ch * j->w_channel, rows, j->w_filter, j->taps, to + (long)ch * j->taps * block, second + (long)ch * j->taps * block);
		return;
	}
	const __m512i index = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32((int)j->w_filter));
	const __mmask16 m = lanes_between(0, rows);
	for (int ch = 0; ch < j->c; ch++)
		for (int t = 0; t < j->taps; t++, to += block, second += block) {
			const float *at = from + ch * j->w_channel + c->tap[t].weight;
			__m512 v = j->w_filter == 1 ? _mm512_maskz_loadu_ps(m, at) : _mm512_mask_i32gather_ps(_mm512_setzero_ps(), m, index, at, 4);
			_mm256_storeu_ps(to, _mm512_castps512_ps256(v));
			if (rows > block) _mm256_storeu_ps(second, _mm512_extractf32x8_ps(v, 1));
		}
}

// What a unit covers.
typedef struct {
	int image, images, row, rows, plane_rows;
	long plane_size;
} extent;

// Writes a filter's positions where they belong. In from rows are line apart, and
// images image.
static void put(const correlating *c, const extent *e, int filter, const float *from, long line, long image) {
	const correlation *j = c->j;
	const __m512 floor = _mm512_set1_ps(j->relu ? 0 : -__builtin_inff()), bias = _mm512_set1_ps(j->bias ? j->bias[filter] : 0);
	int rows = e->rows, columns = j->out_columns;
	if (line == columns && j->step_h == 1 && j->step_w == 1 && j->dst_w == columns) { // no margin: one run
		columns *= rows;
		rows = 1;
	}
	const __m512i index = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(j->step_w));
	for (int i = 0; i < e->images; i++)
		for (int r = 0; r < rows; r++) {
			const float *row = from + i * image + r * line;
			int y = (e->row + r) * j->step_h + j->first_h;
			float *to = j->dst + (e->image + i) * j->dst_image + filter * j->dst_channel + (long)y * j->dst_w + j->first_w;
			for (int x = 0; x < columns; x += lanes) {
				__mmask16 m = lanes_between(0, columns - x);
				// max's operands in this order let NaN through
				__m512 v = _mm512_max_ps(floor, _mm512_add_ps(_mm512_maskz_loadu_ps(m, row + x), bias));
				if (j->step_w == 1)
					_mm512_mask_storeu_ps(to + x, m, v);
				else
					_mm512_mask_i32scatter_ps(to + (long)x * j->step_w, m, index, v, 4);
			}
		}
}

static void correlate_unit(void *data, size_t unit) {
	const correlating *c = data;
	const correlation *j = c->j;
	int part = unit % c->parts, band = unit / c->parts % c->bands, group = unit / c->parts / c->bands;
	extent e = {.image = group * c->together, .row = band * c->band};
	e.images = lesser(c->together, j->n - e.image);
	e.rows = lesser(c->band, j->out_rows - e.row);
	e.plane_rows = e.rows + c->reach_rows - (c->bands == 1 ? c->share_rows : 0);
	e.plane_size = (long)e.plane_rows * c->columns;
	long used = (e.images - 1) * e.plane_size + (long)(e.rows - 1) * c->columns + j->out_columns;

	float *panel = 0, *row;
	if (!c->direct) {
		row = panel = vigie_take((long)j->c * c->phases * c->step * sizeof(float));
		for (int ch = 0; ch < j->c; ch++)
			for (int f = 0; f < c->phases; f++, row += c->step) {
				long at = lay_part(j, &c->planes[f], row, ch, e.image, e.images, e.row, e.plane_rows);
				memset(row + at, 0, (c->step - at) * sizeof(float));
			}
	}
	long offset[most_taps];
	for (int t = 0; t < j->taps; t++) offset[t] = c->tap[t].phase * c->step + c->tap[t].down * (long)c->columns + c->tap[t].right;
	const float *from = j->taps == 1 ? panel + offset[0] : panel;
	if (c->direct) { // an image's positions are side by side, whole vectors of them
		from = j->src + e.image * j->src_image + (long)e.row * j->out_columns;
		e.plane_size = j->src_image;
	}
	long line = c->aligned ? j->out_columns : c->columns, image = c->aligned ? (long)e.rows * line : e.plane_size;
	long all = c->aligned ? e.images * image / lanes : (used + lanes - 1) / lanes, stride = apart(all * lanes);
	// Whole vectors of an image's positions go where they belong.
	const int straight = c->aligned && j->step_h == 1 && j->step_w == 1 && j->dst_w == j->out_columns;
	float *scratch = vigie_take(block * stride * sizeof(float));
	long depth = (long)j->c * j->taps;
	for (int f = part * c->part; f < c->filters && f < (part + 1) * c->part; f++) {
		int rows = lesser(block, j->k - f * block), high = high_of(rows);
		weights w = {c->weights + (c->as_they_are ? 0 : f * depth * block), 1, block};
		if (c->as_they_are && rows == block) w = (weights){j->w + f * block * j->w_filter, j->w_filter, 1};
		for (long done = 0; done < all;) {
			int vectors = vectors_of(high, all - done);
			long place[2 * most_vectors], out[2 * most_vectors];
			for (int i = 0; i < vectors; i++) {
				long to = (done + i) * lanes, row = to / line;
				place[i] = to;
				if (c->direct)
					place[i] = to / image * e.plane_size + to % image;
				else if (c->aligned)
					place[i] = row / e.rows * e.plane_size + row % e.rows * c->columns + to % line;
			}
			if (straight && rows == high) {
				for (int i = 0; i < vectors; i++) {
					long to = (done + i) * lanes;
					out[i] = (e.image + to / image) * j->dst_image + (long)e.row * j->dst_w + to % image;
				}
				target to = {j->dst + f * block * j->dst_channel, j->dst_channel, out, j->bias ? j->bias + f * block : 0, j->relu ? 0 : -__builtin_inff()};
				sums(high, vectors, w, from, place, c->direct ? j->src_channel : c->phases * c->step, j->c, offset, j->taps, &to);
			} else {
				target to = {scratch + done * lanes, stride, beside, 0, -__builtin_inff()};
				sums(high, vectors, w, from, place, c->direct ? j->src_channel : c->phases * c->step, j->c, offset, j->taps, &to);
			}
			done += vectors;
		}
		for (int i = 0; i < rows && !(straight && rows == high); i++) put(c, &e, f * block + i, scratch + i * stride, line, image);
	}
	vigie_give(scratch);
	vigie_give(panel);
}

// Output positions up to which packing weights costs more than it saves.
enum { seldom = 2048 };

// What margins may cost before each tap gets planes of its own, without any, in
// percent of the positions that count.
enum { most_waste = 40 };

// Gives every tap planes without margins, if that saves more than it costs.
static int without_margins(int *phases, int n, int rows, int columns, int plane_rows, int plane_columns, const plane *planes, const tap *from, plane *to, tap *taps) {
	if (n == 1 || (long)plane_rows * plane_columns * 100 < (long)rows * columns * (100 + most_waste)) return 0;
	for (int t = 0; t < n; t++) {
		to[t] = planes[from[t].phase];
		to[t].rows = rows;
		to[t].columns = columns;
		to[t].off_h += from[t].down * to[t].stride_h;
		to[t].off_w += from[t].right * to[t].stride_w;
		taps[t] = (tap){t, 0, 0, from[t].weight};
	}
	*phases = n;
	return 1;
}

// Where the positions of planes without margins come from, for images of a few
// rows: numbers of the source and, in bits, which positions have one. A plane has
// a multiple of 16 places.
typedef struct {
	long places;
	int *from;
	__mmask16 *there;
} origin;

// Planes of images that lie image numbers apart.
static origin origin_of(const plane *planes, int count, int images, long image) {
	origin o = {((long)images * planes[0].rows * planes[0].columns + lanes - 1) / lanes * lanes};
	o.from = vigie_take(count * o.places * (long)sizeof(int) + count * o.places / lanes * (long)sizeof(__mmask16));
	o.there = (__mmask16 *)(o.from + count * o.places);
	memset(o.from, 0, count * o.places * sizeof(int));
	memset(o.there, 0, count * o.places / lanes * sizeof(__mmask16));
	for (int k = 0; k < count; k++) {
		const plane *p = &planes[k];
		long at = k * o.places;
		for (int i = 0; i < images; i++)
			for (int r = 0; r < p->rows; r++)
				for (int c = 0; c < p->columns; c++, at++) {
					int y = r * p->stride_h + p->off_h, x = c * p->stride_w + p->off_w;
					if (y < 0 || y >= p->src_h || x < 0 || x >= p->src_w) continue;
					o.from[at] = (int)(i * image + (long)y * p->src_w + x);
					o.there[at / lanes] |= (__mmask16)(1u << at % lanes);
				}
	}
	return o;
}

// Fills n positions of plane k. Where gate is given and not above 0, the source
// counts as 0.
static void collect(const origin *o, int k, float *to, long n, const float *from, const float *gate) {
	const int *index = o->from + k * o->places;
	const __mmask16 *there = o->there + k * o->places / lanes;
	const __m512 zero = _mm512_setzero_ps();
	for (long q = 0; q < n; q += lanes) {
		__m512i i = _mm512_loadu_si512(index + q);
		__mmask16 m = there[q / lanes];
		if (gate) m = _mm512_mask_cmp_ps_mask(m, _mm512_mask_i32gather_ps(zero, m, i, gate, 4), zero, _CMP_GT_OQ);
		_mm512_mask_storeu_ps(to + q, lanes_between(0, n - q < lanes ? (int)(n - q) : lanes), _mm512_mask_i32gather_ps(zero, m, i, from, 4));
	}
}

// Rows shorter than this are collected; an image's numbers must be countable.
static int collected(int columns, int images, long image) { return columns < lanes && images * image < 1L << 31; }

// Small images: the taps' planes of many of them, without margins, are the rows of
// one matrix, which the weights are multiplied by. The inner dimension goes in
// steps whose part of the matrix stays in a level-2 cache for all the filters of a
// unit, so that the weights are read once.
typedef struct {
	const correlating *c;
	extent e;
	float *rows, *out; // [channel][tap] and [filter] of step
	long step;
	int deep, units;
	origin origin; // with places 0: lay planes out
} gathering;

enum { gathered_positions = 1024, gathered_bytes = 256 << 10 };

static void gather(void *data, size_t channel) {
	const gathering *s = data;
	const correlating *c = s->c;
	float *row = s->rows + channel * c->phases * s->step;
	for (int f = 0; f < c->phases; f++, row += s->step) {
		long at = s->e.images * s->e.plane_size;
		if (s->origin.places) {
			const correlation *j = c->j;
			long from = s->e.image * j->src_image + (long)channel * j->src_channel;
			collect(&s->origin, f, row, at, j->src + from, j->gate ? j->gate + from : 0);
		} else {
			lay_part(c->j, &c->planes[f], row, (int)channel, s->e.image, s->e.images, 0, c->j->out_rows);
		}
		memset(row + at, 0, (s->step - at) * sizeof(float));
	}
}

static void multiply_gathered(void *data, size_t unit) {
	const gathering *s = data;
	const correlating *c = s->c;
	const correlation *j = c->j;
	const long depth = (long)j->c * j->taps, zero = 0, all = (s->e.images * s->e.plane_size + lanes - 1) / lanes;
	const int first = c->filters * (int)unit / s->units, last = c->filters * ((int)unit + 1) / s->units;
	for (long k = 0; k < depth; k += s->deep) {
		long some = depth - k < s->deep ? depth - k : s->deep;
		for (int f = first; f < last; f++) {
			int rows = lesser(block, j->k - f * block), high = high_of(rows);
			weights w = {c->weights + ((c->as_they_are ? 0 : f * depth) + k) * block, 1, block};
			if (c->as_they_are && rows == block) w = (weights){j->w + f * block * j->w_filter + k, j->w_filter, 1};
			for (long done = 0; done < all;) {
				int vectors = vectors_of(high, all - done);
				target to = {s->out + f * block * s->step + done * lanes, s->step, beside, 0, -__builtin_inff(), k > 0};
				sums(high, vectors, w, s->rows + k * s->step + done * lanes, beside, s->step, some, &zero, 1, &to);
				done += vectors;
			}
		}
	}
	for (int f = first * block; f < last * block && f < j->k; f++) put(c, &s->e, f, s->out + f * s->step, j->out_columns, s->e.plane_size);
}

static void correlate_gathered(const crew *crew, const correlating *c) {
	const correlation *j = c->j;
	gathering s = {.c = c, .units = lesser(processors(), c->filters)};
	s.e.plane_size = (long)j->out_rows * j->out_columns;
	s.e.rows = j->out_rows;
	int together = (int)(gathered_positions / s.e.plane_size);
	if (together < 1) together = 1;
	if (together > j->n) together = j->n;
	if (collected(j->out_columns, together, j->src_image)) s.origin = origin_of(c->planes, c->phases, together, j->src_image);
	s.step = apart(together * s.e.plane_size);
	s.deep = (int)(gathered_bytes / sizeof(float) / s.step);
	s.rows = vigie_take((long)j->c * j->taps * s.step * sizeof(float));
	s.out = vigie_take((long)c->filters * block * s.step * sizeof(float));
	for (; s.e.image < j->n; s.e.image += together) {
		s.e.images = lesser(together, j->n - s.e.image);
		crew->run(crew, gather, j->c, &s);
		crew->run(crew, multiply_gathered, s.units, &s);
	}
	vigie_give(s.origin.from);
	vigie_give(s.out);
	vigie_give(s.rows);
}

void vigie_correlate_single(const crew *crew, const correlation *j) {
	plane planes[most_taps];
	tap taps[most_taps];
	correlating c = {.j = j, .planes = j->planes, .tap = j->tap, .phases = j->phases, .share_rows = j->share_rows};
	int gathered = 0;
	if (j->k >= 2 * block && without_margins(&c.phases, j->taps, j->out_rows, j->out_columns, j->planes[0].rows, j->planes[0].columns, j->planes, j->tap, planes, taps)) {
		c.planes = planes;
		c.tap = taps;
		c.share_rows = 0;
		gathered = 1;
	}
	c.filters = ceil_div(j->k, block);
	c.columns = c.planes[0].columns;
	int reach_columns = 0;
	for (int t = 0; t < j->taps; t++) {
		if (c.tap[t].down > c.reach_rows) c.reach_rows = c.tap[t].down;
		if (c.tap[t].right > reach_columns) reach_columns = c.tap[t].right;
	}
	c.reach = (long)c.reach_rows * c.columns + reach_columns;
	c.aligned = j->out_columns % lanes == 0;
	const plane *p = &c.planes[0];
	if (j->taps == 1 && !j->gate && p->stride_h == 1 && p->stride_w == 1 && p->off_h == 0 && p->off_w == 0 && c.reach == 0 && j->out_rows == p->src_h &&
	    j->out_columns == p->src_w && (c.aligned || (long)j->out_rows * j->out_columns % lanes == 0))
		c.direct = c.aligned = 1;

	int threads = processors();
	long whole = (long)(j->out_rows + c.reach_rows - c.share_rows) * c.columns;
	long best = panel_limit / ((long)c.phases * j->c * (long)sizeof(float));
	if (best < strip) best = strip;
	if (best > 4096) best = 4096;
	c.bands = 1;
	c.band = j->out_rows;
	c.together = 1;
	if (whole <= best) { // as many units for each thread
		int groups = ceil_div(ceil_div(j->n, (int)(best / whole)), threads) * threads;
		c.together = ceil_div(j->n, groups);
	} else {
		int rows = (int)(best / c.columns) - c.reach_rows;
		if (rows < 1) rows = 1;
		if (rows < j->out_rows && (!c.direct || j->out_columns % lanes == 0)) {
			c.bands = ceil_div(j->out_rows, rows);
			c.band = ceil_div(j->out_rows, c.bands);
			c.bands = ceil_div(j->out_rows, c.band);
		}
	}
	c.groups = ceil_div(j->n, c.together);
	c.parts = 1;
	if (c.groups * c.bands < threads) c.parts = lesser(ceil_div(threads, c.groups * c.bands), c.filters);
	c.part = ceil_div(c.filters, c.parts);
	c.parts = ceil_div(c.filters, c.part);
	c.step = apart((long)c.together * (c.band + c.reach_rows) * c.columns + c.reach + lanes);

	long depth = (long)j->c * j->taps, bytes = c.filters * block * depth * sizeof(float);
	c.in_order = 1;
	for (int t = 0; t < j->taps && c.in_order; t++) c.in_order = c.tap[t].weight == t;
	// Packed weights are read a little faster, which pays if it is often.
	c.as_they_are = c.in_order && j->w_channel == j->taps && (long)j->n * j->out_rows * j->out_columns < seldom;
	if (c.as_they_are) {
		int rows = j->k % block;
		if (rows) {
			c.weights = vigie_take(depth * block * sizeof(float));
			across8(j->w + (long)(j->k - rows) * j->w_filter, rows, j->w_filter, depth, c.weights, 0);
		}
	} else if (j->keep) {
		pthread_mutex_lock(&j->keep->guard);
		c.weights = (float *)j->keep->tiles;
		if (!c.weights) {
			c.weights = vigie_take(bytes);
			for (int f = 0; f < ceil_div(c.filters, 2); f++) pack_weights(&c, f);
			j->keep->tiles = (char *)c.weights;
		}
		pthread_mutex_unlock(&j->keep->guard);
	} else {
		c.weights = vigie_take(bytes);
		crew->run(crew, pack_weights, ceil_div(c.filters, 2), &c);
	}
	if (gathered)
		correlate_gathered(crew, &c);
	else
		crew->run(crew, correlate_unit, (size_t)c.groups * c.bands * c.parts, &c);
	if (c.as_they_are || !j->keep) vigie_give(c.weights);
}

// The weight gradient: for every tap, the product of the input's shifted planes
// with the output gradient's, over all positions of all images.
enum {
	most_parts = 8,            // that images are divided into, each with sums of its own
	streamed_bytes = 1 << 20,  // of sums, up to which a part keeps them
	wide = 2 * lanes,          // filters in a block of sums
	worth_a_run = 64,          // positions of an image that are summed by themselves
};

typedef struct {
	const conv *g;
	const float *x, *dy, *y, *scale;
	plane margins[most_taps], exact[most_taps];
	tap taps[most_taps], own[most_taps];
	const plane *planes;
	const tap *tap;
	int phases, group, count;      // count of taps
	int channels, filters;         // of the group
	int channel_blocks, blocks;    // of 8 channels and of 32 filters
	int direct;                    // the planes are what is there
	long plane_size, reach;        // positions of a plane of x, and what taps look beyond
	int width, lines;              // of an image's output positions: a run of positions of x, and how many
	int together, segments;        // images that lie side by side, and how many such
	long segment, step;            // their positions in x; between channels of a panel
	long outputs;                  // their positions in dy
	origin origin;                 // of a segment; with places 0: lay planes out
	// A block's sums are [channels of the block][tap][32 filters].
	long pair;                     // numbers of a block's sums
} weighing;

static void measure(weighing *c) {
	const conv *g = c->g;
	int share;
	vigie_planes(g, c->margins, c->taps, &share);
	c->count = g->r * g->s;
	c->phases = g->stride_h * g->stride_w;
	c->planes = c->margins;
	c->tap = c->taps;
	if (without_margins(&c->phases, c->count, g->out_h, g->out_w, c->margins[0].rows, c->margins[0].columns, c->margins, c->taps, c->exact, c->own)) {
		c->planes = c->exact;
		c->tap = c->own;
	}
	c->channels = g->c / g->groups;
	c->filters = g->k / g->groups;
	c->channel_blocks = ceil_div(c->channels, block);
	c->blocks = ceil_div(c->filters, wide);
	c->plane_size = (long)c->planes[0].rows * c->planes[0].columns;
	for (int t = 0; t < c->count; t++) {
		long offset = (long)c->tap[t].down * c->planes[0].columns + c->tap[t].right;
		if (offset > c->reach) c->reach = offset;
	}
	c->pair = (long)block * c->count * wide;
	const plane *p = &c->planes[0];
	c->direct = c->count == 1 && c->phases == 1 && p->off_h == 0 && p->off_w == 0 && g->out_h == g->h && g->out_w == g->w && c->plane_size >= worth_a_run;
	c->width = g->out_w;
	c->lines = g->out_h;
	if (c->planes[0].columns == g->out_w) { // no margin beside: one run
		c->width *= c->lines;
		c->lines = 1;
	}
}

static void divide(weighing *c, int together) {
	c->together = together < 1 ? 1 : lesser(together, c->g->n);
	c->segments = ceil_div(c->g->n, c->together);
	c->segment = c->together * c->plane_size;
	c->step = apart(c->segment + c->reach);
	c->outputs = (long)c->together * c->width * c->lines;
	long image = (long)c->g->c * c->g->h * c->g->w;
	if (c->planes == c->exact && collected(c->g->out_w, c->together, image)) c->origin = origin_of(c->planes, c->phases, c->together, image);
}

// Lays out the planes of a channel, [phase][step], for segment s. A channel that
// does not exist, to fill a block, is 0. What taps look at beyond a segment is 0:
// a margin, or it meets a margin of dy.
static void lay_x(const weighing *c, float *to, int channel, int s, long step) {
	const conv *g = c->g;
	int first = s * c->together, images = lesser(c->together, g->n - first);
	for (int f = 0; f < c->phases; f++, to += step) {
		long end = 0;
		if (c->origin.places && channel < c->channels) {
			end = images * c->plane_size;
			collect(&c->origin, f, to, end, c->x + ((long)first * g->c + c->group * c->channels + channel) * g->h * g->w, 0);
			memset(to + end, 0, (c->segment + c->reach - end) * sizeof(float));
			continue;
		}
		for (int i = s * c->together; channel < c->channels && i < (s + 1) * c->together && i < g->n; i++, end += c->plane_size)
			lay(to + end, c->x + ((long)i * g->c + c->group * c->channels + channel) * g->h * g->w, 0, 1, &c->planes[f]);
		memset(to + end, 0, (c->segment + c->reach - end) * sizeof(float));
	}
}

// Lays out 32 filters' output gradient of segment s, [position][32], without
// margins.
static void lay_dy(const weighing *c, float *to, int b, int s) {
	const conv *g = c->g;
	long size = (long)g->out_h * g->out_w;
	int first = s * c->together, images = lesser(c->together, g->n - first), rows = lesser(wide, c->filters - b * wide);
	long from = ((long)first * g->k + c->group * c->filters + b * wide) * size;
	if (!c->y && !c->scale) {
		for (int i = 0; i < images; i++) across(c->dy + from + i * g->k * size, rows, size, size, to + i * size * wide, wide);
		memset(to + images * size * wide, 0, (c->outputs - images * size) * wide * sizeof(float));
		return;
	}
	float *staged = vigie_take(wide * apart(size) * sizeof(float));
	plane l = {1, (int)size, 1, (int)size, 1, 1, 0, 0};
	for (int i = 0; i < images; i++) {
		for (int k = 0; k < rows; k++) {
			long at = from + ((long)i * g->k + k) * size;
			lay(staged + k * apart(size), c->dy + at, c->y ? c->y + at : 0, c->scale ? c->scale[first + i] : 1, &l);
		}
		across(staged, rows, apart(size), size, to + i * size * wide, wide);
	}
	memset(to + images * size * wide, 0, (c->outputs - images * size) * wide * sizeof(float));
	vigie_give(staged);
}

// Adds to sum[8][32] the products of 8 rows, n runs of width positions that begin
// jump apart, with the filters of dy, [position][32], of which vectors of 16 exist.
// They are summed by themselves first: that rounds less.
inlined void weigh_rows(const int vectors, const float *const x[block], long n, long width, long jump, const float *dy, float *sum) {
	__m512 s[block][2];
#pragma GCC unroll 8
	for (int i = 0; i < block; i++)
#pragma GCC unroll 2
		for (int k = 0; k < vectors; k++) s[i][k] = _mm512_setzero_ps();
	const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3], *x4 = x[4], *x5 = x[5], *x6 = x[6], *x7 = x[7];
	for (long from = 0; n > 0; n--, from += jump)
		for (long q = from; q < from + width; q++, dy += wide) {
			__m512 d[2];
#pragma GCC unroll 2
			for (int k = 0; k < vectors; k++) d[k] = _mm512_loadu_ps(dy + k * lanes);
			const float by[block] = {x0[q], x1[q], x2[q], x3[q], x4[q], x5[q], x6[q], x7[q]};
#pragma GCC unroll 8
			for (int i = 0; i < block; i++)
#pragma GCC unroll 2
				for (int k = 0; k < vectors; k++) s[i][k] = _mm512_fmadd_ps(_mm512_set1_ps(by[i]), d[k], s[i][k]);
		}
#pragma GCC unroll 8
	for (int i = 0; i < block; i++)
#pragma GCC unroll 2
		for (int k = 0; k < vectors; k++) {
			float *to = sum + i * wide + k * lanes;
			_mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), s[i][k]));
		}
}

// Positions that are summed by themselves, about; their panels stay in a level-1
// cache.
enum { run_positions = 256 };

// The same for all taps of a block of channels and the positions of images, which
// begin image apart; x is [channel][phase][step].
static void weigh(const weighing *c, const float *x, long step, long image, const float *dy, int images, int b, int channel_block, float *sum) {
	const int one = c->filters - b * wide <= lanes, rows = lesser(block, c->channels - channel_block * block) * c->count;
	const long columns = c->planes[0].columns, lines = c->lines;
	long width = c->width;
	if (lines == 1 && width == image) { // images too are one run
		width *= images;
		images = 1;
	}
	long place[block * most_taps]; // of rows that do not exist: copies of one that does
	int count = 0;
	for (int channel = 0; count < rows; channel++)
		for (int t = 0; t < c->count; t++) place[count++] = (channel * c->phases + c->tap[t].phase) * step + c->tap[t].down * columns + c->tap[t].right;
	for (; count % block; count++) place[count] = place[0];
	// A run goes over whole lines, or part of one if there is but one.
	for (int i = 0; i < images; i++)
		for (long line = 0, column = 0; line < lines;) {
			long some = 1, across = width;
			if (lines > 1) {
				some = run_positions / width;
				if (some < 1) some = 1;
				if (some > lines - line) some = lines - line;
			} else if (across - column > run_positions) {
				across = run_positions;
			} else {
				across -= column;
			}
			const float *from = x + i * image + line * columns + column;
			for (int row = 0; row < rows; row += block) {
				const float *at[block];
				for (int k = 0; k < block; k++) at[k] = from + place[row + k];
				if (one)
					weigh_rows(1, at, some, across, columns, dy, sum + row * wide);
				else
					weigh_rows(2, at, some, across, columns, dy, sum + row * wide);
			}
			dy += some * across * wide;
			column += across;
			if (column == width) {
				column = 0;
				line += some;
			}
		}
}

// The same for images from segment s on, with x in panels or, where the planes are
// what is there, as it is.
static void weigh_segment(const weighing *c, const float *x, long step, const float *dy, int s, int images, int b, int channel_block, float *sum) {
	if (!c->direct) {
		weigh(c, x, step, c->plane_size, dy, images, b, channel_block, sum);
		return;
	}
	const conv *g = c->g;
	long size = (long)g->h * g->w;
	int first = s * c->together;
	weigh(c, c->x + ((long)first * g->c + c->group * c->channels + channel_block * block) * size, size, g->c * size, dy, lesser(images, g->n - first), b, channel_block, sum);
}

// Adds the sums over n positions of 32 filters' gradients to to.
static void add_bias(const float *dy, long n, float *to) {
	for (long q = 0; q < n;) {
		__m512 a = _mm512_setzero_ps(), b = a;
		for (long end = n - q < run_positions ? n : q + run_positions; q < end; q++, dy += wide) {
			a = _mm512_add_ps(a, _mm512_loadu_ps(dy));
			b = _mm512_add_ps(b, _mm512_loadu_ps(dy + lanes));
		}
		_mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), a));
		_mm512_storeu_ps(to + lanes, _mm512_add_ps(_mm512_loadu_ps(to + lanes), b));
	}
}

// Writes a block's sums into a gradient, [filters][channels][taps].
static void store_block(const weighing *c, float *dw, int b, int channel_block, const float *sum) {
	long depth = (long)lesser(block, c->channels - channel_block * block) * c->count, row = (long)c->channels * c->count;
	int rows = lesser(wide, c->filters - b * wide);
	float *to = dw + (long)b * wide * row + (long)channel_block * block * c->count;
	for (long k = 0; k < depth; k += lanes) {
		long left = depth - k < lanes ? depth - k : lanes;
		__mmask16 m = (__mmask16)((1u << left) - 1);
		for (int h = 0; h < rows; h += lanes) {
			__m512i v[lanes];
			for (int i = 0; i < lanes; i++) v[i] = i < left ? _mm512_loadu_si512(sum + (k + i) * wide + h) : _mm512_setzero_si512();
			transpose16(v);
			for (int i = 0; i < lanes && h + i < rows; i++) _mm512_mask_storeu_epi32(to + (h + i) * row + k, m, v[i]);
		}
	}
}

// The sum of squares of a block's sums; those that do not exist are 0.
static float squares_of(const weighing *c, int channel_block, const float *sum) {
	__m512 a = _mm512_setzero_ps(), b = a;
	for (long i = 0; i < (long)lesser(block, c->channels - channel_block * block) * c->count; i++, sum += wide) {
		__m512 u = _mm512_loadu_ps(sum), v = _mm512_loadu_ps(sum + lanes);
		a = _mm512_fmadd_ps(u, u, a);
		b = _mm512_fmadd_ps(v, v, b);
	}
	return _mm512_reduce_add_ps(_mm512_add_ps(a, b));
}

// Few weights: each part of the images has sums of its own and goes through its
// segments one at a time. The number of parts depends on shapes alone, so that
// the order of the sum does not depend on the machine.
typedef struct {
	const weighing *c;
	int parts;
	float *sums; // [part][block][channel block]
	float *bias; // [part][block][32]
	float *dw;
} streaming;

static void stream_part(void *data, size_t part) {
	const streaming *s = data;
	const weighing *c = s->c;
	long size = c->pair * c->blocks * c->channel_blocks;
	float *sum = s->sums + part * size, *bias = s->bias + part * c->blocks * wide;
	memset(sum, 0, size * sizeof(float));
	memset(bias, 0, (long)c->blocks * wide * sizeof(float));
	long row = c->phases * c->step;
	float *x = c->direct ? 0 : vigie_take((long)c->channel_blocks * block * row * sizeof(float)), *dy = vigie_take(c->outputs * wide * sizeof(float));
	for (int i = c->segments * (int)part / s->parts; i < c->segments * ((int)part + 1) / s->parts; i++) {
		for (int ch = 0; ch < c->channel_blocks * block && !c->direct; ch++) lay_x(c, x + ch * row, ch, i, c->step);
		for (int b = 0; b < c->blocks; b++) {
			lay_dy(c, dy, b, i);
			add_bias(dy, c->outputs, bias + b * wide);
			for (int cb = 0; cb < c->channel_blocks; cb++) weigh_segment(c, x + cb * block * row, c->step, dy, i, c->together, b, cb, sum + ((long)b * c->channel_blocks + cb) * c->pair);
		}
	}
	vigie_give(dy);
	vigie_give(x);
}

static void sum_parts(void *data, size_t pair) {
	const streaming *s = data;
	const weighing *c = s->c;
	long all = c->pair * c->blocks * c->channel_blocks;
	float *sum = s->sums + pair * c->pair;
	for (int p = 1; p < s->parts; p++)
		for (long i = 0; i < c->pair; i += lanes) _mm512_storeu_ps(sum + i, _mm512_add_ps(_mm512_loadu_ps(sum + i), _mm512_loadu_ps(sum + p * all + i)));
	store_block(c, s->dw, (int)pair / c->channel_blocks, (int)pair % c->channel_blocks, sum);
}

static void stream(const crew *crew, weighing *c, float *dw, float *db) {
	long bytes = (long)c->channels * c->phases * c->plane_size * sizeof(float), together = panel_limit / 2 / bytes;
	divide(c, ceil_div(c->g->n, ceil_div(ceil_div(c->g->n, together < 1 ? 1 : (int)together), most_parts) * most_parts));
	streaming s = {.c = c, .parts = lesser(c->segments, most_parts), .dw = dw};
	s.sums = vigie_take(s.parts * c->pair * c->blocks * c->channel_blocks * sizeof(float));
	s.bias = vigie_take((long)s.parts * c->blocks * wide * sizeof(float));
	crew->run(crew, stream_part, s.parts, &s);
	if (dw) crew->run(crew, sum_parts, (size_t)c->blocks * c->channel_blocks, &s);
	for (int k = 0; k < c->filters && db; k++) {
		double sum = 0;
		for (int p = 0; p < s.parts; p++) sum += s.bias[p * c->blocks * wide + k];
		db[k] = (float)sum;
	}
	vigie_give(s.bias);
	vigie_give(s.sums);
}

// Many weights: everything is laid out first, then each block of sums goes
// through all positions.
typedef struct {
	const weighing *c;
	long step;  // between the rows of x
	float *x;   // [channel][phase] rows
	float *dy;  // [block][position][32]
	float *bias; // [block][32]
	float *dw;
} spreading;

static void spread_x(void *data, size_t channel) {
	const spreading *s = data;
	const weighing *c = s->c;
	for (int i = 0; i < c->segments; i++) lay_x(c, s->x + channel * c->phases * s->step + i * c->segment, (int)channel, i, s->step);
}

static void spread_dy(void *data, size_t unit) {
	const spreading *s = data;
	const weighing *c = s->c;
	int i = unit % c->segments, b = (int)(unit / c->segments);
	lay_dy(c, s->dy + ((long)b * c->segments + i) * c->outputs * wide, b, i);
}

static void weigh_block(void *data, size_t pair) {
	const spreading *s = data;
	const weighing *c = s->c;
	int b = pair / c->channel_blocks, cb = pair % c->channel_blocks;
	long all = c->segments * c->outputs;
	const float *x = s->x + (long)cb * block * c->phases * s->step, *dy = s->dy + b * all * wide;
	float *sum = vigie_take(c->pair * sizeof(float));
	memset(sum, 0, c->pair * sizeof(float));
	weigh_segment(c, x, s->step, dy, 0, c->segments * c->together, b, cb, sum);
	if (cb == 0) add_bias(dy, all, s->bias + b * wide);
	if (s->dw) store_block(c, s->dw, b, cb, sum);
	vigie_give(sum);
}

static void spread(const crew *crew, weighing *c, float *dw, float *db) {
	divide(c, (int)(1024 / c->plane_size));
	long all = c->segments * c->outputs;
	spreading s = {.c = c, .dw = dw, .step = apart(c->segments * c->segment + c->reach)};
	if (!c->direct) s.x = vigie_take((long)c->channel_blocks * block * c->phases * s.step * sizeof(float));
	s.dy = vigie_take((long)c->blocks * all * wide * sizeof(float));
	s.bias = vigie_take((long)c->blocks * wide * sizeof(float));
	memset(s.bias, 0, (long)c->blocks * wide * sizeof(float));
	if (!c->direct) crew->run(crew, spread_x, (size_t)c->channel_blocks * block, &s);
	crew->run(crew, spread_dy, (size_t)c->blocks * c->segments, &s);
	crew->run(crew, weigh_block, (size_t)c->blocks * c->channel_blocks, &s);
	if (db) memcpy(db, s.bias, c->filters * sizeof(float));
	vigie_give(s.bias);
	vigie_give(s.dy);
	vigie_give(s.x);
}

void vigie_weight_gradient_single(const crew *crew, const conv *g, const float *x, const float *dy, const float *y, const float *scale, float *dw, float *db) {
	for (int i = 0; i < g->groups; i++) {
		weighing c = {.g = g, .x = x, .dy = dy, .y = y, .scale = scale, .group = i};
		measure(&c);
		float *w = dw ? dw + (long)i * c.filters * c.channels * c.count : 0, *b = db ? db + i * c.filters : 0;
		long sums = c.pair * c.blocks * c.channel_blocks * (long)sizeof(float), all = g->n * c.plane_size;
		if (sums <= streamed_bytes && all >= most_parts * 128)
			stream(crew, &c, w, b);
		else
			spread(crew, &c, w, b);
		vigie_give(c.origin.from);
	}
}

// One record at a time.
typedef struct {
	const weighing *c;
	float *rows, *bias_rows, *norms, *bias_norms;
} recording;

static void record(void *data, size_t i) {
	const recording *s = data;
	const weighing *c = s->c;
	long row = c->phases * c->step, size = (long)c->filters * c->channels * c->count;
	float *x = c->direct ? 0 : vigie_take((long)c->channel_blocks * block * row * sizeof(float)), *dy = vigie_take(c->outputs * wide * sizeof(float));
	float *sum = vigie_take(c->pair * sizeof(float));
	for (int ch = 0; ch < c->channel_blocks * block && !c->direct; ch++) lay_x(c, x + ch * row, ch, (int)i, c->step);
	double norm = 0, bias_norm = 0;
	for (int b = 0; b < c->blocks; b++) {
		lay_dy(c, dy, b, (int)i);
		float bias[wide] = {0};
		add_bias(dy, c->outputs, bias);
		for (int k = 0; k < wide; k++) bias_norm += (double)bias[k] * bias[k];
		if (s->rows) memcpy(s->bias_rows + (long)i * c->g->k + c->group * c->filters + b * wide, bias, lesser(wide, c->filters - b * wide) * sizeof(float));
		for (int cb = 0; cb < c->channel_blocks; cb++) {
			memset(sum, 0, c->pair * sizeof(float));
			weigh_segment(c, x + cb * block * row, c->step, dy, (int)i, c->together, b, cb, sum);
			norm += squares_of(c, cb, sum);
			if (s->rows) store_block(c, s->rows + ((long)i * c->g->groups + c->group) * size, b, cb, sum);
		}
	}
	s->norms[i] += (float)norm;
	s->bias_norms[i] += (float)bias_norm;
	vigie_give(sum);
	vigie_give(dy);
	vigie_give(x);
}

void vigie_record_gradients_single(const crew *crew, const conv *g, int views, const float *x, const float *dy, const float *y, float *rows, float *bias_rows,
                                   float *norms, float *bias_norms) {
	for (int i = 0; i < g->groups; i++) {
		weighing c = {.g = g, .x = x, .dy = dy, .y = y, .group = i};
		measure(&c);
		divide(&c, views);
		recording s = {&c, rows, bias_rows, norms, bias_norms};
		crew->run(crew, record, c.segments, &s);
		vigie_give(c.origin.from);
	}
}

// Matrix products: rows of a in blocks of 8, columns of b in strips of 48.
typedef struct {
	const product *p;
	const float *a, *b;
	float *c;
	int rows, strips; // blocks
	int high;         // blocks of rows in a unit
	int direct;       // whole strips of b are read where they are: packing would cost more than so few rows
	float *as, *bs;   // [block][inner][8] and [strip][inner][48]
} multiplication;

// Packs two blocks of rows of a transposed matrix; of another only a last block
// that is not full, the others are read as they are.
static void pack_a(const multiplication *x, int pair) {
	const product *p = x->p;
	float *to = x->as + (long)pair * 2 * p->k * block, *second = to + (long)p->k * block;
	int rows = lesser(2 * block, p->m - pair * 2 * block);
	if (!p->transpose_a) {
		const float *from = x->a + (long)pair * 2 * block * p->k;
		if (rows < block)
			across8(from, rows, p->k, p->k, to, 0);
		else if (rows > block && rows < 2 * block)
			across8(from + (long)block * p->k, rows - block, p->k, p->k, second, 0);
		return;
	}
	const __mmask16 m = lanes_between(0, rows);
	for (long k = 0; k < p->k; k++, to += block, second += block) {
		__m512 v = _mm512_maskz_loadu_ps(m, x->a + k * p->m + pair * 2 * block);
		_mm256_storeu_ps(to, _mm512_castps512_ps256(v));
		if (rows > block) _mm256_storeu_ps(second, _mm512_extractf32x8_ps(v, 1));
	}
}

static void pack_b(const multiplication *x, int i) {
	const product *p = x->p;
	if (x->direct && (i + 1) * strip <= p->n) return;
	float *to = x->bs + (long)i * p->k * strip;
	int columns = lesser(strip, p->n - i * strip);
	if (p->transpose_b) {
		across(x->b + (long)i * strip * p->k, columns, p->k, p->k, to, strip);
		return;
	}
	const float *from = x->b + i * strip;
	for (long k = 0; k < p->k; k++, to += strip, from += p->n)
		for (int v = 0; v < strip; v += lanes) _mm512_storeu_ps(to + v, _mm512_maskz_loadu_ps(lanes_between(0, columns - v), from + v));
}

static void pack_of(void *data, size_t i) {
	const multiplication *x = data;
	int pairs = ceil_div(x->rows, 2);
	if ((int)i < pairs)
		pack_a(x, (int)i);
	else
		pack_b(x, (int)i - pairs);
}

static void multiply_unit(void *data, size_t unit) {
	const multiplication *x = data;
	const product *p = x->p;
	int s = unit % x->strips, first = unit / x->strips * x->high, columns = lesser(strip, p->n - s * strip);
	float sum[block * strip];
	for (int r = first; r < x->rows && r < first + x->high; r++) {
		int rows = lesser(block, p->m - r * block), high = high_of(rows);
		float *to = x->c + (long)r * block * p->n + s * strip;
		weights w = {x->as + (long)r * p->k * block, 1, block};
		if (rows == block && !p->transpose_a) w = (weights){x->a + (long)r * block * p->k, p->k, 1};
		const float *b = x->bs + (long)s * p->k * strip;
		long step = strip;
		if (x->direct && columns == strip) {
			b = x->b + s * strip;
			step = p->n;
		}
		int whole = rows == high && columns % lanes == 0;
		for (int left = ceil_div(columns, lanes), q = 0; left > 0;) {
			int vectors = vectors_of(high, left);
			target at = {whole ? to + q : sum + q, whole ? p->n : strip, beside, 0, -__builtin_inff()};
			sums(high, vectors, w, b + q, beside, step, p->k, 0, 1, &at);
			left -= vectors;
			q += vectors * lanes;
		}
		for (int i = 0; i < rows && !whole; i++) memcpy(to + (long)i * p->n, sum + i * strip, columns * sizeof(float));
	}
}

static void prepare(multiplication *x, const product *p) {
	x->p = p;
	x->rows = ceil_div(p->m, block);
	x->strips = ceil_div(p->n, strip);
	x->direct = !p->transpose_b && p->m <= 2 * block;
	x->high = x->strips >= 16 ? x->rows : lesser(x->rows, 16);
	x->as = vigie_take((long)x->rows * p->k * block * sizeof(float));
	x->bs = vigie_take((long)x->strips * p->k * strip * sizeof(float));
}

typedef struct {
	const product *p;
	const float *a, *b;
	float *c;
} batch;

static void multiply_one(void *data, size_t i) {
	const batch *s = data;
	multiplication x = {.a = s->a + i * s->p->stride_a, .b = s->b + i * s->p->stride_b, .c = s->c + i * (long)s->p->m * s->p->n};
	prepare(&x, s->p);
	for (int k = 0; k < ceil_div(x.rows, 2) + x.strips; k++) pack_of(&x, k);
	for (int k = 0; k < ceil_div(x.rows, x.high) * x.strips; k++) multiply_unit(&x, k);
	vigie_give(x.bs);
	vigie_give(x.as);
}

void vigie_matmul_single(const crew *crew, const product *p, const float *a, const float *b, float *c) {
	if (p->batch > 1) {
		batch s = {p, a, b, c};
		crew->run(crew, multiply_one, p->batch, &s);
		return;
	}
	multiplication x = {.a = a, .b = b, .c = c};
	prepare(&x, p);
	crew->run(crew, pack_of, ceil_div(x.rows, 2) + x.strips, &x);
	crew->run(crew, multiply_unit, (size_t)ceil_div(x.rows, x.high) * x.strips, &x);
	vigie_give(x.bs);
	vigie_give(x.as);
}

#endif
