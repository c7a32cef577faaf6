// Splitting float32 into bfloat16 terms, and products of such terms in AMX tiles.
//
// A float32 has 24 significant bits, a bfloat16 has 8. x = x₁ + x₂ + x₃ with
// three terms is exact; with two, |x - x₁ - x₂| ≤ 2⁻¹⁶|x|. A product of two
// numbers is then the sum of the products of their terms, accumulated in
// float32, of which those below the precision wanted are left out:
//
//	2 terms: x₁y₁ + x₁y₂ + x₂y₁                          (relative error of a product at most 3·2⁻¹⁶)
//	3 terms: x₁y₁ + x₁y₂ + x₂y₁ + x₁y₃ + x₃y₁ + x₂y₂     (at most 3·2⁻²⁴, half a place of float32)
//
// Henry, Tang and Heinecke, "Leveraging the bfloat16 artificial intelligence
// datatype for higher-precision computations", ARITH 2019.
#ifndef VIGIE_SPLIT_H
#define VIGIE_SPLIT_H

#include "kernel.h"

#ifdef VIGIE_KERNELS
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,amx-tile,amx-bf16")
#include <immintrin.h>
#include <string.h>

#define inlined static inline __attribute__((always_inline))

typedef uint16_t bf16;

enum { tile_bytes = 1024 }; // 16 rows of 64 bytes

// The head of x as a float32 whose low 16 bits are 0: the bfloat16 nearest to x.
inlined __m512i head(__m512 x) {
	__m512i v = _mm512_castps_si512(x);
	return _mm512_and_si512(_mm512_add_epi32(v, _mm512_set1_epi32(0x8000)), _mm512_set1_epi32((int)0xffff0000));
}

inlined __m512 rest(__m512 x, __m512i head) { return _mm512_sub_ps(x, _mm512_castsi512_ps(head)); }

// All eight tiles are 16 rows of 64 bytes: 16×16 float32 or 16×32 bfloat16.
inlined void tiles_begin(void) {
	struct {
		uint8_t palette, start, reserved[14];
		uint16_t columns[16];
		uint8_t rows[16];
	} __attribute__((packed)) c;
	memset(&c, 0, sizeof c);
	c.palette = 1;
	for (int i = 0; i < 8; i++) {
		c.columns[i] = 64;
		c.rows[i] = 16;
	}
	_tile_loadconfig(&c);
}

inlined void tiles_end(void) { _tile_release(); }

inlined void accumulate(void) {
	_tile_dpbf16ps(0, 4, 6);
	_tile_dpbf16ps(1, 4, 7);
	_tile_dpbf16ps(2, 5, 6);
	_tile_dpbf16ps(3, 5, 7);
}

// One step of 32 along the inner dimension for a block of 32 rows and 32
// columns, into tiles 0 to 3. a points at 16 rows of 64 bytes, its next term at bytes and
// its second 16 rows ab bytes behind; b at 16 rows of 16 pairs, its next term bt bytes and its second
// 16 columns bb bytes behind. Every row must be 64-byte aligned: one that
// crosses a cache line halves the speed. Small products come first.
#define LOAD_A(i)                                  \
	do {                                             \
		_tile_loadd(4, a + (i) * at, 64);              \
		_tile_loadd(5, a + (i) * at + ab, 64);         \
	} while (0)
#define LOAD_B(i)                          \
	do {                                     \
		_tile_loadd(6, b + (i) * bt, 64);      \
		_tile_loadd(7, b + (i) * bt + bb, 64); \
	} while (0)

inlined void step(const int terms, const char *a, long at, long ab, const char *b, long bt, long bb) {
	if (terms == 2) {
		LOAD_A(0);
		LOAD_B(1);
		accumulate();
		LOAD_B(0);
		accumulate();
		LOAD_A(1);
		accumulate();
	} else {
		LOAD_A(0);
		LOAD_B(2);
		accumulate();
		LOAD_B(1);
		accumulate();
		LOAD_A(1);
		accumulate();
		LOAD_B(0);
		accumulate();
		LOAD_A(2);
		accumulate();
		LOAD_A(0);
		accumulate();
	}
}

inlined void tiles_zero(void) {
	_tile_zero(0);
	_tile_zero(1);
	_tile_zero(2);
	_tile_zero(3);
}

// 16×16 transpose of 32-bit lanes.
inlined void transpose16(__m512i r[16]) {
	__m512i t[16];
	for (int i = 0; i < 8; i++) {
		t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
		t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
	}
	for (int i = 0; i < 4; i++) {
		r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
		r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
		r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
		r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
	}
	for (int i = 0; i < 4; i++) {
		t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
		t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
		t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
		t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
	}
	for (int i = 0; i < 4; i++) {
		r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
		r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
		r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
		r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
	}
}

// Turns a tile of 16 rows of 32 numbers into 16 rows of 16 pairs, as the second
// operand of a product wants them.
inlined void transpose_tile(char *tile) {
	__m512i r[16];
	for (int i = 0; i < 16; i++) r[i] = _mm512_load_si512(tile + i * 64);
	transpose16(r);
	for (int i = 0; i < 16; i++) _mm512_store_si512(tile + i * 64, r[i]);
}

// Interleaves two rows of n numbers (a multiple of 16) into pairs of bfloat16,
// one array of n pairs per term, step bytes apart.
inlined void split_pairs(const int terms, const float *x0, const float *x1, long n, char *to, long step) {
	for (long i = 0; i < n; i += 16) {
		__m512 a = _mm512_loadu_ps(x0 + i), b = _mm512_loadu_ps(x1 + i);
		for (int t = 0; t < terms; t++) {
			__m512i ha = head(a), hb = head(b);
			_mm512_storeu_si512(to + t * step + i * 4, _mm512_or_si512(hb, _mm512_srli_epi32(ha, 16)));
			a = rest(a, ha);
			b = rest(b, hb);
		}
	}
}

// Splits a row of n numbers (a multiple of 32) into rows of bfloat16, step bytes
// apart.
inlined void split_row(const int terms, const float *x, long n, char *to, long step) {
	const __m512i odd = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13,
	                                     11, 9, 7, 5, 3, 1);
	for (long i = 0; i < n; i += 32) {
		__m512 a = _mm512_loadu_ps(x + i), b = _mm512_loadu_ps(x + i + 16);
		for (int t = 0; t < terms; t++) {
			__m512i ha = head(a), hb = head(b);
			_mm512_storeu_si512(to + t * step + i * 2, _mm512_permutex2var_epi16(ha, odd, hb));
			a = rest(a, ha);
			b = rest(b, hb);
		}
	}
}

#endif
#endif
