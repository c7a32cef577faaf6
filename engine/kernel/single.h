// Convolution, its gradients and matrix products in float32 as it is, by
// AVX-512: what processors without AMX run, in the planes of plane.h.
//
// All of them come down to one of two blocks of sums that stay in registers.
// Along positions, which lie side by side: 8 filters by up to 48 positions, one
// weight at a time times a run of one channel's positions. Along filters, for the
// weight gradient: 8 channels by 32 filters, one position at a time.
#ifndef VIGIE_SINGLE_H
#define VIGIE_SINGLE_H

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

// Long functions, of which each file has the ones that it calls.
#define apart_from_callers static __attribute__((noinline, unused))

// An odd number of cache lines, at least n numbers long: rows that far apart do
// not all fall into one set of a cache.
static inline long apart(long n) { return ((n + lanes - 1) / lanes | 1) * lanes; }

static inline int lesser(int a, int b) { return a < b ? a : b; }

static inline int processors(void) {
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
apart_from_callers void sums(int high, int vectors, weights w, const float *v, const long *place, long step, long depth, const long *offset, int taps, const target *to) {
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
apart_from_callers void across(const float *from, int rows, long step, long depth, float *to, int width) {
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
apart_from_callers void across8(const float *from, int rows, long step, long depth, float *to, float *second) {
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

// What margins may cost before each tap gets planes of its own, without any, in
// percent of the positions that count.
enum { most_waste = 40 };

// Gives every tap planes without margins, if that saves more than it costs.
static inline int without_margins(int *phases, int n, int rows, int columns, int plane_rows, int plane_columns, const plane *planes, const tap *from, plane *to, tap *taps) {
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
static inline origin origin_of(const plane *planes, int count, int images, long image) {
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
static inline void collect(const origin *o, int k, float *to, long n, const float *from, const float *gate) {
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
static inline int collected(int columns, int images, long image) { return columns < lanes && images * image < 1L << 31; }

#endif
#endif
