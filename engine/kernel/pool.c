// Max pooling with the winner of each window kept for the gradient.
#include "pool.h"

#ifdef VIGIE_KERNELS

#include <math.h>
#include <string.h>
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#include <immintrin.h>

typedef struct {
	const pool *g;
	const float *x, *dy;
	const uint8_t *winner;
	float *y, *dx;
	uint8_t *index;
} pooling;

// 2×2 windows side by side, the commonest.
static void forward_2x2(const pool *g, const float *x, float *y, uint8_t *index) {
	const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
	const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
	for (int r = 0; r < g->out_h; r++)
		for (int c = 0; c < g->out_w; c += 16) {
			int n = g->out_w - c < 16 ? g->out_w - c : 16;
			__mmask16 m = n == 16 ? 0xffff : (1 << n) - 1;
			__mmask16 m0 = 2 * n >= 16 ? 0xffff : (1 << 2 * n) - 1, m1 = 2 * n <= 16 ? 0 : 2 * n == 32 ? 0xffff : (1 << (2 * n - 16)) - 1;
			const float *top = x + (long)2 * r * g->w + 2 * c, *low = top + g->w;
			__m512 t0 = _mm512_maskz_loadu_ps(m0, top), t1 = _mm512_maskz_loadu_ps(m1, top + 16);
			__m512 l0 = _mm512_maskz_loadu_ps(m0, low), l1 = _mm512_maskz_loadu_ps(m1, low + 16);
			__m512 best = _mm512_permutex2var_ps(t0, even, t1);
			__m512i at = _mm512_setzero_si512();
			__m512 v[3] = {_mm512_permutex2var_ps(t0, odd, t1), _mm512_permutex2var_ps(l0, even, l1), _mm512_permutex2var_ps(l0, odd, l1)};
			for (int i = 0; i < 3; i++) { // greater, or not a number
				__mmask16 up = _mm512_cmp_ps_mask(v[i], best, _CMP_NLE_UQ) & _mm512_cmp_ps_mask(best, best, _CMP_ORD_Q);
				best = _mm512_mask_mov_ps(best, up, v[i]);
				at = _mm512_mask_mov_epi32(at, up, _mm512_set1_epi32(i + 1));
			}
			_mm512_mask_storeu_ps(y + (long)r * g->out_w + c, m, best);
			_mm_mask_storeu_epi8(index + (long)r * g->out_w + c, m, _mm512_cvtepi32_epi8(at));
		}
}

static void forward(void *data, size_t i) {
	const pooling *s = data;
	const pool *g = s->g;
	const float *x = s->x + i * (long)g->h * g->w;
	float *y = s->y + i * (long)g->out_h * g->out_w;
	uint8_t *index = s->index + i * (long)g->out_h * g->out_w;
	if (g->r == 2 && g->s == 2 && g->stride_h == 2 && g->stride_w == 2 && g->top == 0 && g->left == 0 && g->out_h * 2 <= g->h && g->out_w * 2 <= g->w) {
		forward_2x2(g, x, y, index);
		return;
	}
	for (int r = 0; r < g->out_h; r++)
		for (int c = 0; c < g->out_w; c++) {
			float best = -INFINITY;
			int at = -1;
			for (int a = 0; a < g->r; a++) {
				int yy = r * g->stride_h + a - g->top;
				if (yy < 0 || yy >= g->h) continue;
				for (int b = 0; b < g->s; b++) {
					int xx = c * g->stride_w + b - g->left;
					if (xx < 0 || xx >= g->w) continue;
					float v = x[(long)yy * g->w + xx];
					if (at < 0 || v > best || v != v) {
						best = v;
						at = a * g->s + b;
						if (v != v) goto found; // not a number wins
					}
				}
			}
		found:
			*y++ = best;
			*index++ = (uint8_t)at;
		}
}

void vigie_max_pool(const crew *crew, const pool *g, const float *x, float *y, uint8_t *index) {
	pooling s = {.g = g, .x = x, .y = y, .index = index};
	crew->run(crew, forward, g->planes, &s);
}

static void backward(void *data, size_t i) {
	const pooling *s = data;
	const pool *g = s->g;
	const float *dy = s->dy + i * (long)g->out_h * g->out_w;
	const uint8_t *winner = s->winner + i * (long)g->out_h * g->out_w;
	float *dx = s->dx + i * (long)g->h * g->w;
	if (g->r == 2 && g->s == 2 && g->stride_h == 2 && g->stride_w == 2 && g->top == 0 && g->left == 0 && g->out_h * 2 == g->h && g->out_w * 2 == g->w) {
		const __m512i lo = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), hi = _mm512_add_epi32(lo, _mm512_set1_epi32(8));
		for (int r = 0; r < g->out_h; r++)
			for (int c = 0; c < g->out_w; c += 16) {
				int n = g->out_w - c < 16 ? g->out_w - c : 16;
				__mmask16 m = n == 16 ? 0xffff : (1 << n) - 1;
				__mmask16 m0 = 2 * n >= 16 ? 0xffff : (1 << 2 * n) - 1, m1 = 2 * n <= 16 ? 0 : 2 * n == 32 ? 0xffff : (1 << (2 * n - 16)) - 1;
				__m512 d = _mm512_maskz_loadu_ps(m, dy + (long)r * g->out_w + c), v[4];
				__m512i at = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(m, winner + (long)r * g->out_w + c));
				for (int k = 0; k < 4; k++) v[k] = _mm512_maskz_mov_ps(_mm512_cmpeq_epi32_mask(at, _mm512_set1_epi32(k)), d);
				float *top = dx + (long)2 * r * g->w + 2 * c, *low = top + g->w;
				_mm512_mask_storeu_ps(top, m0, _mm512_permutex2var_ps(v[0], lo, v[1]));
				_mm512_mask_storeu_ps(top + 16, m1, _mm512_permutex2var_ps(v[0], hi, v[1]));
				_mm512_mask_storeu_ps(low, m0, _mm512_permutex2var_ps(v[2], lo, v[3]));
				_mm512_mask_storeu_ps(low + 16, m1, _mm512_permutex2var_ps(v[2], hi, v[3]));
			}
		return;
	}
	memset(dx, 0, (long)g->h * g->w * sizeof(float));
	for (int r = 0; r < g->out_h; r++)
		for (int c = 0; c < g->out_w; c++) {
			int at = *winner++;
			dx[(long)(r * g->stride_h + at / g->s - g->top) * g->w + c * g->stride_w + at % g->s - g->left] += *dy++;
		}
}

void vigie_max_pool_gradient(const crew *crew, const pool *g, const float *dy, const uint8_t *winner, float *dx) {
	pooling s = {.g = g, .dy = dy, .winner = winner, .dx = dx};
	crew->run(crew, backward, g->planes, &s);
}

#endif
