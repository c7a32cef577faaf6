// Planes: how an image's rows are laid out so that a convolution becomes
// products of shifted rows.
//
// All positions of a plane are numbered row by row, margins of zeros included.
// The input that kernel tap (i, j) needs for output position q then lies at
// q + offset(i, j) for every q, so that one run of consecutive positions is one
// operand of a matrix product, whatever the image's width. Positions in margins
// compute nothing useful and are dropped.
#ifndef VIGIE_PLANE_H
#define VIGIE_PLANE_H

#include "split.h"

#ifdef VIGIE_KERNELS

// Row r, column c of a plane is row r·stride_h + off_h, column c·stride_w +
// off_w of the source, or 0 outside it.
typedef struct {
	int rows, columns;
	int src_h, src_w, stride_h, stride_w, off_h, off_w;
} plane;

static inline int ceil_div(int a, int b) { return (a + b - 1) / b; }

inlined __mmask16 lanes_between(int from, int to) {
	if (from < 0) from = 0;
	if (to > 16) to = 16;
	return to <= from ? 0 : (__mmask16)(((1u << (to - from)) - 1) << from);
}

// Fills one plane from a source image. Where gate is given and not above 0, the
// source counts as 0; all of it is multiplied by scale.
static inline void lay(float *to, const float *from, const float *gate, float scale, const plane *p) {
	// Columns [first, last) come from the source.
	int first = p->off_w >= 0 ? 0 : ceil_div(-p->off_w, p->stride_w);
	int last = p->src_w - p->off_w <= 0 ? 0 : ceil_div(p->src_w - p->off_w, p->stride_w);
	if (last > p->columns) last = p->columns;
	const __m512 zero = _mm512_setzero_ps(), by = _mm512_set1_ps(scale);
	const __m512i index = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(p->stride_w));
	const __m512i even = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
	const int plain = !gate && scale == 1 && p->stride_w == 1, second = !gate && scale == 1 && p->stride_w == 2;
	if (plain && first < 16 && last - first == p->src_w && p->columns - last < 16) { // whole rows between margins
		const __mmask16 before = lanes_between(0, first), behind = lanes_between(0, p->columns - last), tail = lanes_between(0, p->src_w & 15);
		float *t = to;
		for (int r = 0; r < p->rows; r++, t += p->columns) {
			int y = r * p->stride_h + p->off_h;
			if (y < 0 || y >= p->src_h) {
				memset(t, 0, p->columns * sizeof(float));
				continue;
			}
			const float *row = from + (long)y * p->src_w;
			float *data = t + first;
			if (before) _mm512_mask_storeu_ps(t, before, zero);
			int c = 0;
			for (; c + 16 <= p->src_w; c += 16) _mm512_storeu_ps(data + c, _mm512_loadu_ps(row + c));
			if (tail) _mm512_mask_storeu_ps(data + c, tail, _mm512_maskz_loadu_ps(tail, row + c));
			if (behind) _mm512_mask_storeu_ps(t + last, behind, zero);
		}
		return;
	}
	for (int c = 0; c < p->columns; c += 16) {
		const __mmask16 all = lanes_between(0, p->columns - c), m = lanes_between(first - c, last - c);
		float *t = to + c;
		__mmask16 low = 0, high = 0; // which of 32 numbers every second of is wanted
		for (int i = 0; i < 8; i++) {
			low |= (m >> i & 1) << 2 * i;
			high |= (m >> (8 + i) & 1) << 2 * i;
		}
		for (int r = 0; r < p->rows; r++, t += p->columns) {
			int y = r * p->stride_h + p->off_h;
			if (y < 0 || y >= p->src_h) {
				_mm512_mask_storeu_ps(t, all, zero);
				continue;
			}
			// Masked lanes are not read, wherever they would be.
			long at = (long)y * p->src_w + p->off_w + (long)c * p->stride_w;
			if (plain) {
				_mm512_mask_storeu_ps(t, all, _mm512_maskz_loadu_ps(m, from + at));
				continue;
			}
			if (second) {
				_mm512_mask_storeu_ps(t, all, _mm512_permutex2var_ps(_mm512_maskz_loadu_ps(low, from + at), even, _mm512_maskz_loadu_ps(high, from + at + 16)));
				continue;
			}
			__mmask16 open = m;
			if (p->stride_w == 1) {
				if (gate) open = _mm512_mask_cmp_ps_mask(m, _mm512_maskz_loadu_ps(m, gate + at), zero, _CMP_GT_OQ);
				_mm512_mask_storeu_ps(t, all, _mm512_mul_ps(by, _mm512_maskz_loadu_ps(open, from + at)));
				continue;
			}
			if (gate) open = _mm512_mask_cmp_ps_mask(m, _mm512_mask_i32gather_ps(zero, m, index, gate + at, 4), zero, _CMP_GT_OQ);
			_mm512_mask_storeu_ps(t, all, _mm512_mul_ps(by, _mm512_mask_i32gather_ps(zero, open, index, from + at, 4)));
		}
	}
}

// Packs a 16×32 block of a matrix into tiles, one for each term: rows×columns of
// it exist, the rest is 0. Elements are row_step and column_step apart.
inlined void pack_tile(const int terms, const float *from, int rows, long row_step, int columns, long column_step, char *to) {
	const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
	const __m512i index = _mm512_mullo_epi32(lanes, _mm512_set1_epi32((int)column_step));
	const __mmask16 m0 = columns >= 16 ? 0xffff : (1 << columns) - 1;
	const __mmask16 m1 = columns >= 32 ? 0xffff : columns <= 16 ? 0 : (1 << (columns - 16)) - 1;
	float row[32] __attribute__((aligned(64)));
	for (int i = 0; i < 16; i++, from += row_step) {
		__m512 a = _mm512_setzero_ps(), b = a;
		if (i < rows) {
			if (column_step == 1) {
				a = _mm512_maskz_loadu_ps(m0, from);
				b = _mm512_maskz_loadu_ps(m1, from + 16);
			} else {
				a = _mm512_mask_i32gather_ps(a, m0, index, from, 4);
				if (m1) b = _mm512_mask_i32gather_ps(b, m1, index, from + 16 * column_step, 4);
			}
		}
		_mm512_store_ps(row, a);
		_mm512_store_ps(row + 16, b);
		split_row(terms, row, 32, to + i * 64, tile_bytes);
	}
}

#endif
#endif
