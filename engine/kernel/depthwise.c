// Depthwise convolution: one filter for each channel. A plane and its shifted
// copies are runs of consecutive numbers here too (see plane.h), multiplied in
// float32.
#include "correlate.h"

#ifdef VIGIE_KERNELS

int vigie_planes(const conv *g, plane *planes, tap *taps, int *share_rows);

typedef struct {
	const conv *g;
	const float *x, *w, *bias, *dy, *y, *scale;
	float *to, *dw, *db, *norms, *bias_norms;
	int relu;
} depthwise;

enum { most_depthwise_taps = 64 };

int vigie_is_depthwise(const conv *g) { return g->groups == g->c && g->c == g->k && g->groups > 1 && g->r * g->s <= most_depthwise_taps; }

// sum[q] = Σ w[t]·from[q + offset[t]] for q in [0, n), n rounded up to 16.
inlined void weigh(float *sum, const float *from, long n, int taps, const float *w, const long *offset) {
	for (long q = 0; q < n; q += 32) {
		__m512 a = _mm512_setzero_ps(), b = a;
		for (int t = 0; t < taps; t++) {
			const __m512 by = _mm512_set1_ps(w[t]);
			a = _mm512_fmadd_ps(by, _mm512_loadu_ps(from + q + offset[t]), a);
			b = _mm512_fmadd_ps(by, _mm512_loadu_ps(from + q + offset[t] + 16), b);
		}
		_mm512_storeu_ps(sum + q, a);
		_mm512_storeu_ps(sum + q + 16, b);
	}
}

// The planes of one image's channel, all phases, with zeros behind.
static long lay_phases(float *to, const float *x, const conv *g, const plane *planes, int phases) {
	long size = (long)planes[0].rows * planes[0].columns, pitch = size + (long)(g->r + 1) * planes[0].columns + 64;
	for (int f = 0; f < phases; f++) {
		lay(to + f * pitch, x, 0, 1, &planes[f]);
		memset(to + f * pitch + size, 0, (pitch - size) * sizeof(float));
	}
	return pitch;
}

static int whole_planes(const conv *g, plane *planes, tap *taps) {
	int down = (g->r - 1) * g->dilation_h / g->stride_h, right = (g->s - 1) * g->dilation_w / g->stride_w;
	for (int i = 0; i < g->stride_h; i++)
		for (int k = 0; k < g->stride_w; k++)
			planes[i * g->stride_w + k] = (plane){g->out_h + down, g->out_w + right, g->h, g->w, g->stride_h, g->stride_w, i - g->top, k - g->left};
	for (int i = 0; i < g->r; i++)
		for (int k = 0; k < g->s; k++) {
			int y = i * g->dilation_h, x = k * g->dilation_w;
			taps[i * g->s + k] = (tap){y % g->stride_h * g->stride_w + x % g->stride_w, y / g->stride_h, x / g->stride_w, i * g->s + k};
		}
	return g->stride_h * g->stride_w;
}

static long room_of(const conv *g, const plane *p, int phases) {
	return phases * ((long)p->rows * p->columns + (long)(g->r + 1) * p->columns + 64) + 64;
}

static void forward(void *data, size_t unit) {
	const depthwise *s = data;
	const conv *g = s->g;
	int c = unit % g->c;
	plane planes[64];
	tap taps[most_depthwise_taps];
	int phases = whole_planes(g, planes, taps);
	float *staged = vigie_take(room_of(g, planes, phases) * sizeof(float));
	float *sum = vigie_take(((long)planes[0].rows * planes[0].columns + 64) * sizeof(float));
	long pitch = lay_phases(staged, s->x + unit * (long)g->h * g->w, g, planes, phases), offset[most_depthwise_taps];
	int columns = planes[0].columns, n = g->r * g->s;
	for (int t = 0; t < n; t++) offset[t] = taps[t].phase * pitch + (long)taps[t].down * columns + taps[t].right;
	weigh(sum, staged, (long)g->out_h * columns, n, s->w + (long)c * n, offset);
	float b = s->bias ? s->bias[c] : 0;
	float *to = s->to + unit * (long)g->out_h * g->out_w;
	for (int r = 0; r < g->out_h; r++)
		for (int x = 0; x < g->out_w; x++) {
			float v = sum[(long)r * columns + x] + b;
			*to++ = s->relu && v < 0 ? 0 : v;
		}
	vigie_give(sum);
	vigie_give(staged);
}

void vigie_depthwise(const crew *crew, const conv *g, const float *x, const float *w, const float *bias, int relu, float *y) {
	depthwise s = {.g = g, .x = x, .w = w, .bias = bias, .relu = relu, .to = y};
	crew->run(crew, forward, (size_t)g->n * g->c, &s);
}

// As input_gradient in conv.c: one phase of dx at a time.
static void backward(void *data, size_t unit) {
	const depthwise *s = data;
	const conv *g = s->g;
	int c = unit % g->c;
	long out = (long)g->out_h * g->out_w;
	int down = (g->r - 1) * g->dilation_h / g->stride_h, right = (g->s - 1) * g->dilation_w / g->stride_w;
	float *to = s->to + unit * (long)g->h * g->w;
	memset(to, 0, (long)g->h * g->w * sizeof(float));
	for (int ph = 0; ph < g->stride_h; ph++)
		for (int pw = 0; pw < g->stride_w; pw++) {
			int r0 = g->top <= ph ? 0 : ceil_div(g->top - ph, g->stride_h), r1 = ceil_div(g->top + g->h - ph, g->stride_h);
			int c0 = g->left <= pw ? 0 : ceil_div(g->left - pw, g->stride_w), c1 = ceil_div(g->left + g->w - pw, g->stride_w);
			if (r1 <= r0 || c1 <= c0) continue;
			plane p = {r1 - r0 + down, c1 - c0 + right, g->out_h, g->out_w, 1, 1, r0 - down, c0 - right};
			float w[most_depthwise_taps];
			long offset[most_depthwise_taps];
			int n = 0;
			for (int i = 0; i < g->r; i++)
				for (int k = 0; k < g->s; k++) {
					int u = i * g->dilation_h, v = k * g->dilation_w;
					if (u % g->stride_h != ph || v % g->stride_w != pw) continue;
					w[n] = s->w[((long)c * g->r + i) * g->s + k];
					offset[n++] = (long)(down - u / g->stride_h) * p.columns + right - v / g->stride_w;
				}
			long size = (long)p.rows * p.columns, behind = (long)(down + 1) * p.columns + 64;
			float *staged = vigie_take((size + behind) * sizeof(float)), *sum = vigie_take((size + 64) * sizeof(float));
			lay(staged, s->dy + unit * out, s->y ? s->y + unit * out : 0, 1, &p);
			memset(staged + size, 0, behind * sizeof(float));
			weigh(sum, staged, (long)(r1 - r0) * p.columns, n, w, offset);
			for (int r = r0; r < r1; r++) {
				float *row = to + (long)(r * g->stride_h + ph - g->top) * g->w + pw - g->left;
				const float *from = sum + (long)(r - r0) * p.columns - c0;
				for (int x = c0; x < c1; x++) row[(long)x * g->stride_w] = from[x];
			}
			vigie_give(sum);
			vigie_give(staged);
		}
}

// A unit is a channel of all images.
static void weights(void *data, size_t c) {
	const depthwise *s = data;
	const conv *g = s->g;
	plane planes[64];
	tap taps[most_depthwise_taps];
	int phases = whole_planes(g, planes, taps), n = g->r * g->s, columns = planes[0].columns;
	float *staged = vigie_take(room_of(g, planes, phases) * sizeof(float));
	float *d = vigie_take(((long)planes[0].rows * columns + 64) * sizeof(float));
	double total[most_depthwise_taps] = {0}, bias = 0;
	plane out = {g->out_h, columns, g->out_h, g->out_w, 1, 1, 0, 0};
	long positions = ((long)g->out_h * columns + 15) / 16 * 16;
	for (int i = 0; i < g->n; i++) {
		long plane_at = (long)i * g->c + c, at = plane_at * g->out_h * g->out_w;
		long pitch = lay_phases(staged, s->x + plane_at * g->h * g->w, g, planes, phases);
		lay(d, s->dy + at, s->y ? s->y + at : 0, s->scale ? s->scale[i] : 1, &out);
		memset(d + (long)g->out_h * columns, 0, 64);
		double norm = 0;
		for (int t = 0; t < n; t++) {
			const float *from = staged + taps[t].phase * pitch + (long)taps[t].down * columns + taps[t].right;
			__m512 a = _mm512_setzero_ps();
			for (long q = 0; q < positions; q += 16) a = _mm512_fmadd_ps(_mm512_loadu_ps(d + q), _mm512_loadu_ps(from + q), a);
			double v = _mm512_reduce_add_ps(a);
			total[t] += v;
			norm += v * v;
		}
		__m512 a = _mm512_setzero_ps();
		for (long q = 0; q < positions; q += 16) a = _mm512_add_ps(a, _mm512_loadu_ps(d + q));
		double v = _mm512_reduce_add_ps(a);
		bias += v;
		if (s->norms) {
			s->norms[c * g->n + i] = (float)norm;
			s->bias_norms[c * g->n + i] = (float)(v * v);
		}
	}
	if (s->dw)
		for (int t = 0; t < n; t++) s->dw[c * n + t] = (float)total[t];
	if (s->db) s->db[c] = (float)bias;
	vigie_give(d);
	vigie_give(staged);
}

void vigie_depthwise_gradient(const crew *crew, const conv *g, const float *x, const float *w, const float *dy, const float *y, const float *scale,
                              float *dx, float *dw, float *db) {
	depthwise s = {.g = g, .x = x, .w = w, .dy = dy, .y = y, .scale = scale, .to = dx, .dw = dw, .db = db};
	if (dx) crew->run(crew, backward, (size_t)g->n * g->c, &s);
	if (dw || db) crew->run(crew, weights, (size_t)g->c, &s);
}

void vigie_depthwise_norms(const crew *crew, const conv *g, const float *x, const float *dy, const float *y, float *norms, float *bias_norms) {
	long parts = (long)g->c * g->n;
	float *part = vigie_take(2 * parts * sizeof(float));
	depthwise s = {.g = g, .x = x, .dy = dy, .y = y, .norms = part, .bias_norms = part + parts};
	crew->run(crew, weights, (size_t)g->c, &s);
	for (int i = 0; i < g->n; i++)
		for (int c = 0; c < g->c; c++) {
			norms[i] += part[(long)c * g->n + i];
			bias_norms[i] += part[parts + (long)c * g->n + i];
		}
	vigie_give(part);
}

#endif
