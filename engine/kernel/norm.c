// Normalisation over the batch or over groups of channels, with the activation
// that follows it.
#include "norm.h"

#include "split.h"

#ifdef VIGIE_KERNELS

#include <math.h>

// exp(x) to 2 units in the last place, after Cephes' expf.
inlined __m512 exponential(__m512 x) {
	x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.3f)), _mm512_set1_ps(88.3f));
	__m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
	__m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
	r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
	__m512 p = _mm512_set1_ps(1.9875691500e-4f);
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
	p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
	p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1)));
	return _mm512_scalef_ps(p, n);
}

// 1/(1 + exp(-x)). The reciprocal of 14 bits gains as many by a step of Newton's.
inlined __m512 logistic(__m512 x) {
	__m512 a = _mm512_add_ps(_mm512_set1_ps(1), exponential(_mm512_sub_ps(_mm512_setzero_ps(), x)));
	__m512 r = _mm512_rcp14_ps(a);
	return _mm512_mul_ps(r, _mm512_fnmadd_ps(a, r, _mm512_set1_ps(2)));
}

inlined __mmask16 lanes(long left) { return left >= 16 ? 0xffff : (1 << left) - 1; }

inlined __m512 activate(int activation, __m512 z) {
	if (activation == activation_relu) return _mm512_max_ps(_mm512_setzero_ps(), z);
	if (activation == activation_silu) return _mm512_mul_ps(z, logistic(z));
	return z;
}

// dy times the activation's derivative at z.
inlined __m512 through(int activation, __m512 dy, __m512 z) {
	if (activation == activation_relu) return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(z, _mm512_setzero_ps(), _CMP_GT_OQ), dy);
	if (activation == activation_silu) {
		__m512 s = logistic(z), one = _mm512_set1_ps(1);
		return _mm512_mul_ps(dy, _mm512_mul_ps(s, _mm512_fmadd_ps(z, _mm512_sub_ps(one, s), one)));
	}
	return dy;
}

// The elements that share statistics: runs of consecutive numbers.
//
// Batch: channel c of every image; count runs of hw numbers. Group: the channels
// of one group of one image; one run for each channel.
typedef struct {
	const norm *g;
	const float *x, *scale, *bias, *skip, *y, *dy;
	float *out, *mean, *variance, *dx, *dskip, *dscale, *dbias;
	float *part_scale, *part_bias; // group: [image][channel]
} normalising;

inlined long run_at(const norm *g, size_t unit, int run) {
	if (g->groups == 0) return ((long)run * g->c + unit) * g->hw;
	return ((long)unit * (g->c / g->groups) + run) * g->hw;
}

inlined int channel_at(const norm *g, size_t unit, int run) {
	return g->groups == 0 ? (int)unit : (int)(unit % g->groups) * (g->c / g->groups) + run;
}

inlined int runs_of(const norm *g) { return g->groups == 0 ? g->n : g->c / g->groups; }

// Sums of short runs go on in float32 over so many numbers before they are added
// up in float64.
enum { held_numbers = 1024 };

static void forward(void *data, size_t unit) {
	const normalising *s = data;
	const norm *g = s->g;
	int runs = runs_of(g);
	double sum = 0;
	long held = 0;
	__m512 a = _mm512_setzero_ps(), b = a;
	for (int i = 0; i < runs; i++) {
		const float *x = s->x + run_at(g, unit, i);
		long k = 0;
		for (; k + 32 <= g->hw; k += 32) {
			a = _mm512_add_ps(a, _mm512_loadu_ps(x + k));
			b = _mm512_add_ps(b, _mm512_loadu_ps(x + k + 16));
		}
		for (; k < g->hw; k += 16) a = _mm512_add_ps(a, _mm512_maskz_loadu_ps(lanes(g->hw - k), x + k));
		if ((held += g->hw) < held_numbers && i + 1 < runs) continue;
		sum += _mm512_reduce_add_ps(_mm512_add_ps(a, b));
		a = b = _mm512_setzero_ps();
		held = 0;
	}
	double count = (double)runs * g->hw;
	float mean = (float)(sum / count);
	const __m512 m = _mm512_set1_ps(mean);
	sum = 0;
	for (int i = 0; i < runs; i++) {
		const float *x = s->x + run_at(g, unit, i);
		long k = 0;
		for (; k + 32 <= g->hw; k += 32) {
			__m512 u = _mm512_sub_ps(_mm512_loadu_ps(x + k), m), v = _mm512_sub_ps(_mm512_loadu_ps(x + k + 16), m);
			a = _mm512_fmadd_ps(u, u, a);
			b = _mm512_fmadd_ps(v, v, b);
		}
		for (; k < g->hw; k += 16) {
			__mmask16 l = lanes(g->hw - k);
			__m512 u = _mm512_maskz_sub_ps(l, _mm512_maskz_loadu_ps(l, x + k), m);
			a = _mm512_fmadd_ps(u, u, a);
		}
		if ((held += g->hw) < held_numbers && i + 1 < runs) continue;
		sum += _mm512_reduce_add_ps(_mm512_add_ps(a, b));
		a = b = _mm512_setzero_ps();
		held = 0;
	}
	float variance = (float)(sum / count);
	s->mean[unit] = mean;
	s->variance[unit] = variance;
	float inverse = 1 / sqrtf(variance + g->epsilon);
	for (int i = 0; i < runs; i++) {
		int c = channel_at(g, unit, i);
		float by = inverse * s->scale[c];
		const __m512 f = _mm512_set1_ps(by), t = _mm512_set1_ps(s->bias[c] - mean * by);
		long at = run_at(g, unit, i);
		for (long k = 0; k < g->hw; k += 16) {
			__mmask16 l = lanes(g->hw - k);
			__m512 z = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(l, s->x + at + k), f, t);
			if (s->skip) z = _mm512_add_ps(z, _mm512_maskz_loadu_ps(l, s->skip + at + k));
			_mm512_mask_storeu_ps(s->out + at + k, l, activate(g->activation, z));
		}
	}
}

void vigie_norm(const crew *crew, const norm *g, const float *x, const float *scale, const float *bias, const float *skip, float *y, float *mean, float *variance) {
	normalising s = {.g = g, .x = x, .scale = scale, .bias = bias, .skip = skip, .out = y, .mean = mean, .variance = variance};
	crew->run(crew, forward, g->groups == 0 ? (size_t)g->c : (size_t)g->n * g->groups, &s);
}

// With d the gradient at z = x̂·scale + bias, x̂ = (x - mean)/√(variance + ε):
// dscale = Σ d·x̂, dbias = Σ d, and over the elements that share statistics
// dx = (d·scale - mean(d·scale) - x̂·mean(d·scale·x̂))/√(variance + ε).
static void backward(void *data, size_t unit) {
	const normalising *s = data;
	const norm *g = s->g;
	int runs = runs_of(g);
	float mean = s->mean[unit], inverse = 1 / sqrtf(s->variance[unit] + g->epsilon);
	const __m512 f = _mm512_set1_ps(inverse), t = _mm512_set1_ps(-mean * inverse);
	double sum = 0, product = 0, channel_sum = 0, channel_product = 0;
	long held = 0;
	__m512 a = _mm512_setzero_ps(), b = a;
	for (int i = 0; i < runs; i++) {
		int c = channel_at(g, unit, i);
		const float by = inverse * s->scale[c];
		const __m512 zf = _mm512_set1_ps(by), zt = _mm512_set1_ps(s->bias[c] - mean * by); // z exactly as in forward
		long at = run_at(g, unit, i);
		for (long k = 0; k < g->hw; k += 16) {
			__mmask16 l = lanes(g->hw - k);
			__m512 x = _mm512_maskz_loadu_ps(l, s->x + at + k), h = _mm512_maskz_fmadd_ps(l, x, f, t), d = _mm512_maskz_loadu_ps(l, s->dy + at + k);
			// After a skip connection, only y says where the activation was open.
			__m512 z = s->y ? _mm512_maskz_loadu_ps(l, s->y + at + k) : _mm512_fmadd_ps(x, zf, zt);
			d = through(g->activation, d, z);
			a = _mm512_add_ps(a, d);
			b = _mm512_fmadd_ps(d, h, b);
			_mm512_mask_storeu_ps(s->dx + at + k, l, d); // kept for the second pass
			if (s->dskip) _mm512_mask_storeu_ps(s->dskip + at + k, l, d);
		}
		// A group's runs are of different channels.
		if (g->groups == 0 && (held += g->hw) < held_numbers && i + 1 < runs) continue;
		double da = _mm512_reduce_add_ps(a), db = _mm512_reduce_add_ps(b);
		a = b = _mm512_setzero_ps();
		held = 0;
		sum += da * s->scale[c];
		product += db * s->scale[c];
		if (g->groups == 0) {
			channel_sum += da;
			channel_product += db;
		} else {
			long image = unit / g->groups;
			s->part_bias[image * g->c + c] = (float)da;
			s->part_scale[image * g->c + c] = (float)db;
		}
	}
	if (g->groups == 0) {
		s->dbias[unit] = (float)channel_sum;
		s->dscale[unit] = (float)channel_product;
	}
	double count = (double)runs * g->hw;
	const __m512 m0 = _mm512_set1_ps((float)(sum / count)), m1 = _mm512_set1_ps((float)(product / count));
	for (int i = 0; i < runs; i++) {
		const __m512 scale = _mm512_set1_ps(s->scale[channel_at(g, unit, i)]);
		long at = run_at(g, unit, i);
		for (long k = 0; k < g->hw; k += 16) {
			__mmask16 l = lanes(g->hw - k);
			__m512 h = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(l, s->x + at + k), f, t);
			__m512 d = _mm512_fmsub_ps(_mm512_maskz_loadu_ps(l, s->dx + at + k), scale, m0);
			_mm512_mask_storeu_ps(s->dx + at + k, l, _mm512_mul_ps(_mm512_fnmadd_ps(h, m1, d), f));
		}
	}
}

void vigie_norm_gradient(const crew *crew, const norm *g, const float *x, const float *dy, const float *scale, const float *bias, const float *mean, const float *variance,
                         const float *y, float *dx, float *dscale, float *dbias, float *dskip) {
	normalising s = {.g = g, .x = x, .dy = dy, .scale = scale, .bias = bias, .mean = (float *)mean, .variance = (float *)variance,
	                 .y = y, .dx = dx, .dscale = dscale, .dbias = dbias, .dskip = dskip};
	if (g->groups == 0) {
		crew->run(crew, backward, (size_t)g->c, &s);
		return;
	}
	size_t parts = (size_t)g->n * g->c;
	s.part_scale = g->per_example ? dscale : vigie_take(2 * parts * sizeof(float));
	s.part_bias = g->per_example ? dbias : s.part_scale + parts;
	crew->run(crew, backward, (size_t)g->n * g->groups, &s);
	if (g->per_example) return;
	for (int c = 0; c < g->c; c++) {
		double a = 0, b = 0;
		for (int i = 0; i < g->n; i++) {
			a += s.part_scale[(long)i * g->c + c];
			b += s.part_bias[(long)i * g->c + c];
		}
		dscale[c] = (float)a;
		dbias[c] = (float)b;
	}
	vigie_give(s.part_scale);
}

static void affine(void *data, size_t unit) {
	const normalising *s = data;
	const norm *g = s->g;
	int c = (int)(unit % g->c);
	const __m512 f = _mm512_set1_ps(s->scale[c]), t = _mm512_set1_ps(s->bias[c]);
	long at = (long)unit * g->hw;
	for (long k = 0; k < g->hw; k += 16) {
		__mmask16 l = lanes(g->hw - k);
		__m512 z = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(l, s->x + at + k), f, t);
		if (!s->dy) {
			_mm512_mask_storeu_ps(s->out + at + k, l, activate(g->activation, z));
			continue;
		}
		__m512 d = through(g->activation, _mm512_maskz_loadu_ps(l, s->dy + at + k), z);
		_mm512_mask_storeu_ps(s->dx + at + k, l, _mm512_mul_ps(d, f));
	}
}

void vigie_affine(const crew *crew, const norm *g, const float *x, const float *factor, const float *shift, float *y) {
	normalising s = {.g = g, .x = x, .scale = factor, .bias = shift, .out = y};
	crew->run(crew, affine, (size_t)g->n * g->c, &s);
}

void vigie_affine_gradient(const crew *crew, const norm *g, const float *x, const float *dy, const float *factor, const float *shift, float *dx) {
	normalising s = {.g = g, .x = x, .dy = dy, .scale = factor, .bias = shift, .dx = dx};
	crew->run(crew, affine, (size_t)g->n * g->c, &s);
}

typedef struct {
	long hw;
	const float *x, *s, *dy;
	float *y, *ds;
} weighing;

static void weigh(void *data, size_t i) {
	const weighing *w = data;
	const __m512 by = _mm512_set1_ps(w->s[i]);
	const float *x = w->x + i * w->hw;
	float *y = w->y + i * w->hw;
	for (long k = 0; k < w->hw; k += 16) {
		__mmask16 l = lanes(w->hw - k);
		_mm512_mask_storeu_ps(y + k, l, _mm512_mul_ps(by, _mm512_maskz_loadu_ps(l, x + k)));
	}
}

static void weigh_gradient(void *data, size_t i) {
	const weighing *w = data;
	const __m512 by = _mm512_set1_ps(w->s[i]);
	const float *x = w->x + i * w->hw, *dy = w->dy + i * w->hw;
	float *dx = w->y + i * w->hw;
	__m512 sum = _mm512_setzero_ps();
	for (long k = 0; k < w->hw; k += 16) {
		__mmask16 l = lanes(w->hw - k);
		__m512 d = _mm512_maskz_loadu_ps(l, dy + k);
		_mm512_mask_storeu_ps(dx + k, l, _mm512_mul_ps(by, d));
		sum = _mm512_fmadd_ps(d, _mm512_maskz_loadu_ps(l, x + k), sum);
	}
	w->ds[i] = _mm512_reduce_add_ps(sum);
}

void vigie_weigh_channels(const crew *crew, size_t planes, long hw, const float *x, const float *s, float *y) {
	weighing w = {.hw = hw, .x = x, .s = s, .y = y};
	crew->run(crew, weigh, planes, &w);
}

void vigie_weigh_channels_gradient(const crew *crew, size_t planes, long hw, const float *x, const float *s, const float *dy, float *dx, float *ds) {
	weighing w = {.hw = hw, .x = x, .s = s, .dy = dy, .y = dx, .ds = ds};
	crew->run(crew, weigh_gradient, planes, &w);
}

#endif
