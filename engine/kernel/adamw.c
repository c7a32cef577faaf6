// The optimisers' updates.
#include "kernel.h"

#ifdef VIGIE_KERNELS

#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma")
#include <immintrin.h>

// One AdamW step on n weights: train.AdamW says what the numbers mean.
void vigie_adamw(long n, float *w, const float *g, float *m, float *v, float b1, float n1, float b2, float n2, float keep, float size, float correct, float epsilon) {
	const __m512 f1 = _mm512_set1_ps(b1), a1 = _mm512_set1_ps(n1), f2 = _mm512_set1_ps(b2), a2 = _mm512_set1_ps(n2);
	const __m512 k = _mm512_set1_ps(keep), s = _mm512_set1_ps(size), c = _mm512_set1_ps(correct), e = _mm512_set1_ps(epsilon);
	for (long i = 0; i < n; i += 16) {
		__mmask16 l = n - i >= 16 ? 0xffff : (1 << (n - i)) - 1;
		__m512 d = _mm512_maskz_loadu_ps(l, g + i);
		__m512 first = _mm512_fmadd_ps(f1, _mm512_maskz_loadu_ps(l, m + i), _mm512_mul_ps(a1, d));
		__m512 second = _mm512_fmadd_ps(f2, _mm512_maskz_loadu_ps(l, v + i), _mm512_mul_ps(_mm512_mul_ps(a2, d), d));
		__m512 move = _mm512_div_ps(_mm512_mul_ps(s, first), _mm512_add_ps(_mm512_sqrt_ps(_mm512_mul_ps(second, c)), e));
		_mm512_mask_storeu_ps(m + i, l, first);
		_mm512_mask_storeu_ps(v + i, l, second);
		_mm512_mask_storeu_ps(w + i, l, _mm512_fmsub_ps(k, _mm512_maskz_loadu_ps(l, w + i), move));
	}
}

#endif
