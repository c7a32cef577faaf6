// Depthwise convolution: one filter for each channel. A plane and its shifted
// copies are runs of consecutive numbers here too (see plane.h), multiplied in
// float32.
#include "correlate.h"

#ifdef VIGIE_KERNELS

typedef struct {
	const conv *g;
	const float *x, *w, *bias, *dy, *y, *scale;
	float *to, *dw, *db, *norms, *bias_norms;
	int relu;
	int together; // images side by side
} depthwise;

enum { most_depthwise_taps = 64, most_phases = 64, staged_positions = 4096, side_by_side = 5 };

int vigie_is_depthwise(const conv *g) { return g->groups == g->c && g->c == g->k && g->groups > 1 && g->r * g->s <= most_depthwise_taps; }

// sum[q] = Σ w[t]·from[q + offset[t]] for q in [0, n), n rounded up to 32.
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

static long size_of(const plane *p) { return (long)p->rows * p->columns; }

// Room for a phase of so many images and what taps look at behind them.
static long room_of(const plane *p, int images, int rows) { return images * size_of(p) + (long)(rows + 1) * p->columns + 64; }

// Puts the planes of some images' channel side by side, with zeros behind.
static void lay_images(float *to, const float *from, const float *gate, long step, int images, const plane *p, long room) {
	for (int i = 0; i < images; i++) lay(to + i * size_of(p), from + i * step, gate ? gate + i * step : 0, 1, p);
	memset(to + images * size_of(p), 0, (room - images * size_of(p)) * sizeof(float));
}

// A unit is a channel of some images.
inlined int range_of(const depthwise *s, size_t unit, int *channel, int *image) {
	*channel = (int)(unit % s->g->c);
	*image = (int)(unit / s->g->c) * s->together;
	return s->g->n - *image < s->together ? s->g->n - *image : s->together;
}

static size_t units_of(depthwise *s, const plane *p) {
	s->together = (int)(staged_positions / size_of(p));
	if (s->together < 1) s->together = 1;
	if (s->together > s->g->n) s->together = s->g->n;
	return (size_t)ceil_div(s->g->n, s->together) * s->g->c;
}

static void forward(void *data, size_t unit) {
	const depthwise *s = data;
	const conv *g = s->g;
	int c, image, images = range_of(s, unit, &c, &image);
	plane planes[most_phases];
	tap taps[most_depthwise_taps];
	int phases = whole_planes(g, planes, taps), columns = planes[0].columns, n = g->r * g->s;
	long room = room_of(planes, images, g->r), offset[most_depthwise_taps], in = (long)g->c * g->h * g->w, out = (long)g->c * g->out_h * g->out_w;
	float *staged = vigie_take((phases * room + images * size_of(planes) + 64) * sizeof(float)), *sum = staged + phases * room;
	for (int f = 0; f < phases; f++) lay_images(staged + f * room, s->x + image * in + (long)c * g->h * g->w, 0, in, images, &planes[f], room);
	for (int t = 0; t < n; t++) offset[t] = taps[t].phase * room + (long)taps[t].down * columns + taps[t].right;
	weigh(sum, staged, images * size_of(planes), n, s->w + (long)c * n, offset);
	const __m512 bias = _mm512_set1_ps(s->bias ? s->bias[c] : 0), floor = _mm512_set1_ps(s->relu ? 0 : -__builtin_inff());
	for (int i = 0; i < images; i++) {
		float *to = s->to + (image + i) * out + (long)c * g->out_h * g->out_w;
		for (int r = 0; r < g->out_h; r++, to += g->out_w) {
			const float *from = sum + i * size_of(planes) + (long)r * columns;
			for (int x = 0; x < g->out_w; x += 16) {
				__mmask16 m = lanes_between(0, g->out_w - x);
				_mm512_mask_storeu_ps(to + x, m, _mm512_max_ps(floor, _mm512_add_ps(_mm512_maskz_loadu_ps(m, from + x), bias)));
			}
		}
	}
	vigie_give(staged);
}

void vigie_depthwise(const crew *crew, const conv *g, const float *x, const float *w, const float *bias, int relu, float *y) {
	depthwise s = {.g = g, .x = x, .w = w, .bias = bias, .relu = relu, .to = y};
	plane planes[most_phases];
	tap taps[most_depthwise_taps];
	whole_planes(g, planes, taps);
	crew->run(crew, forward, units_of(&s, planes), &s);
}

// The planes of dy for phase (ph, pw) of dx, rows [r0, r1) and columns [c0, c1)
// of it; as input_gradient in conv.c.
static plane plane_of_phase(const conv *g, int ph, int pw, int *r0, int *r1, int *c0, int *c1) {
	int down = (g->r - 1) * g->dilation_h / g->stride_h, right = (g->s - 1) * g->dilation_w / g->stride_w;
	*r0 = g->top <= ph ? 0 : ceil_div(g->top - ph, g->stride_h);
	*r1 = ceil_div(g->top + g->h - ph, g->stride_h);
	*c0 = g->left <= pw ? 0 : ceil_div(g->left - pw, g->stride_w);
	*c1 = ceil_div(g->left + g->w - pw, g->stride_w);
	return (plane){*r1 - *r0 + down, *c1 - *c0 + right, g->out_h, g->out_w, 1, 1, *r0 - down, *c0 - right};
}

static void backward(void *data, size_t unit) {
	const depthwise *s = data;
	const conv *g = s->g;
	int c, image, images = range_of(s, unit, &c, &image);
	int down = (g->r - 1) * g->dilation_h / g->stride_h, right = (g->s - 1) * g->dilation_w / g->stride_w;
	long in = (long)g->c * g->h * g->w, out = (long)g->c * g->out_h * g->out_w, from = image * out + (long)c * g->out_h * g->out_w;
	// A phase that no tap falls on, or a position that no window covers, gets 0.
	int covered = g->stride_h <= g->r && g->stride_w <= g->s && g->dilation_h == 1 && g->dilation_w == 1;
	for (int i = 0; i < images && !covered; i++) memset(s->to + (image + i) * in + (long)c * g->h * g->w, 0, (long)g->h * g->w * sizeof(float));
	for (int ph = 0; ph < g->stride_h; ph++)
		for (int pw = 0; pw < g->stride_w; pw++) {
			int r0, r1, c0, c1, n = 0;
			plane p = plane_of_phase(g, ph, pw, &r0, &r1, &c0, &c1);
			if (r1 <= r0 || c1 <= c0) continue;
			float w[most_depthwise_taps];
			long offset[most_depthwise_taps];
			for (int i = 0; i < g->r; i++)
				for (int k = 0; k < g->s; k++) {
					int u = i * g->dilation_h, v = k * g->dilation_w;
					if (u % g->stride_h != ph || v % g->stride_w != pw) continue;
					w[n] = s->w[((long)c * g->r + i) * g->s + k];
					offset[n++] = (long)(down - u / g->stride_h) * p.columns + right - v / g->stride_w;
				}
			long room = room_of(&p, images, down);
			float *staged = vigie_take((room + images * size_of(&p) + 64) * sizeof(float)), *sum = staged + room;
			lay_images(staged, s->dy + from, s->y ? s->y + from : 0, out, images, &p, room);
			weigh(sum, staged, images * size_of(&p), n, w, offset);
			for (int i = 0; i < images; i++)
				for (int r = r0; r < r1; r++) {
					float *row = s->to + (image + i) * in + ((long)c * g->h + r * g->stride_h + ph - g->top) * g->w + c0 * g->stride_w + pw - g->left;
					const float *values = sum + i * size_of(&p) + (long)(r - r0) * p.columns;
					if (g->stride_w == 1) {
						for (int x = 0; x < c1 - c0; x += 16) {
							__mmask16 m = lanes_between(0, c1 - c0 - x);
							_mm512_mask_storeu_ps(row + x, m, _mm512_maskz_loadu_ps(m, values + x));
						}
						continue;
					}
					for (int x = 0; x < c1 - c0; x++) row[(long)x * g->stride_w] = values[x];
				}
			vigie_give(staged);
		}
}

// A unit is a channel of all images.
static void weights(void *data, size_t c) {
	const depthwise *s = data;
	const conv *g = s->g;
	plane planes[most_phases];
	tap taps[most_depthwise_taps];
	int phases = whole_planes(g, planes, taps), n = g->r * g->s, columns = planes[0].columns;
	// Norms want every image by itself.
	int together = s->norms ? 1 : s->together;
	long room = room_of(planes, together, g->r), size = size_of(planes), in = (long)g->c * g->h * g->w, out = (long)g->c * g->out_h * g->out_w;
	float *staged = vigie_take((phases * room + together * size + 64) * sizeof(float)), *d = staged + phases * room;
	double total[most_depthwise_taps] = {0}, bias = 0;
	plane l = {planes[0].rows, columns, g->out_h, g->out_w, 1, 1, 0, 0};
	for (int image = 0; image < g->n; image += together) {
		int images = g->n - image < together ? g->n - image : together;
		for (int f = 0; f < phases; f++) lay_images(staged + f * room, s->x + image * in + (long)c * g->h * g->w, 0, in, images, &planes[f], room);
		for (int i = 0; i < images; i++) {
			long at = (image + i) * out + (long)c * g->out_h * g->out_w;
			lay(d + i * size, s->dy + at, s->y ? s->y + at : 0, s->scale ? s->scale[image + i] : 1, &l);
		}
		long positions = (images * size + 15) / 16 * 16;
		memset(d + images * size, 0, (positions - images * size) * sizeof(float));
		double norm = 0;
		for (int t = 0; t < n; t += side_by_side) {
			const float *from[side_by_side];
			for (int k = 0; k < side_by_side; k++) {
				const tap *at = &taps[t + k < n ? t + k : n - 1];
				from[k] = staged + at->phase * room + (long)at->down * columns + at->right;
			}
			__m512 a[side_by_side];
			for (int k = 0; k < side_by_side; k++) a[k] = _mm512_setzero_ps();
			for (long q = 0; q < positions; q += 16) {
				const __m512 v = _mm512_loadu_ps(d + q);
				for (int k = 0; k < side_by_side; k++) a[k] = _mm512_fmadd_ps(v, _mm512_loadu_ps(from[k] + q), a[k]);
			}
			for (int k = 0; k < side_by_side && t + k < n; k++) {
				double v = _mm512_reduce_add_ps(a[k]);
				total[t + k] += v;
				norm += v * v;
			}
		}
		__m512 a = _mm512_setzero_ps();
		for (long q = 0; q < positions; q += 16) a = _mm512_add_ps(a, _mm512_loadu_ps(d + q));
		double v = _mm512_reduce_add_ps(a);
		bias += v;
		if (s->norms) {
			s->norms[c * g->n + image] = (float)norm;
			s->bias_norms[c * g->n + image] = (float)(v * v);
		}
	}
	for (int t = 0; t < n && s->dw; t++) s->dw[c * n + t] = (float)total[t];
	if (s->db) s->db[c] = (float)bias;
	vigie_give(staged);
}

void vigie_depthwise_gradient(const crew *crew, const conv *g, const float *x, const float *w, const float *dy, const float *y, const float *scale,
                              float *dx, float *dw, float *db) {
	depthwise s = {.g = g, .x = x, .w = w, .dy = dy, .y = y, .scale = scale, .to = dx, .dw = dw, .db = db};
	plane planes[most_phases];
	tap taps[most_depthwise_taps];
	whole_planes(g, planes, taps);
	size_t units = units_of(&s, planes);
	if (dx) crew->run(crew, backward, units, &s);
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
