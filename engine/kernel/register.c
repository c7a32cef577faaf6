// The kernels as custom operators of ONNX Runtime, in the domain "vigie".
//
// A graph with these operators is made by onnx/autodiff for a session of this
// process; it is never written to a file. Each operator has the attribute
// "geometry", a list of integers, in the order of the enumerations below.
#include "runtime.h"

#include "kernel.h"

#ifdef VIGIE_KERNELS

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "norm.h"
#include "pool.h"

int vigie_is_depthwise(const conv *);
void vigie_depthwise(const crew *, const conv *, const float *x, const float *w, const float *bias, int relu, float *y);
void vigie_depthwise_gradient(const crew *, const conv *, const float *x, const float *w, const float *dy, const float *y, const float *scale, float *dx, float *dw, float *db);
void vigie_depthwise_norms(const crew *, const conv *, const float *x, const float *dy, const float *y, float *norms, float *bias_norms);
void vigie_record_gradients(const crew *, const conv *, int views, const float *x, const float *dy, const float *y, float *rows, float *bias_rows, float *norms,
                            float *bias_norms);

static const void *const *api;

#define CALL(slot, ...) ((OrtStatus * (*)(__VA_ARGS__)) api[slot_##slot])

enum { most_geometry = 16, most_inputs = 8, most_rank = 8, most_packed = 16 };

typedef struct kernel {
	const struct operator* op;
	int64_t geometry[most_geometry];
	float epsilon;
	packed *keep; // of a convolution by constant weights, most_packed places; or NULL
} kernel;

typedef struct {
	const float *data; // NULL: not given
	int64_t dims[most_rank];
	size_t rank;
	long size;
} tensor;

typedef struct {
	const kernel *k;
	OrtKernelContext *context;
	crew crew;
	tensor in[most_inputs];
	OrtStatus *status;
} call;

typedef struct operator {
	custom_op base; // first: ONNX Runtime gives back a pointer to it
	const char *name;
	int inputs, needed; // needed of inputs must be given
	int outputs;
	int geometry;  // length of the attribute
	int byte_input, byte_output; // places of uint8 tensors, or -1
	int weights; // 1 + the input that is packed if it is constant; 0: none
	void (*run)(call *);
} operator;

static OrtStatus *fail(const char *message) {
	return ((OrtStatus * (*)(int, const char *)) api[slot_CreateStatus])(code_fail, message);
}

static void run_crew(const crew *c, void (*f)(void *, size_t), size_t n, void *data) {
	if (n == 0) return;
	if (n == 1) {
		f(data, 0);
		return;
	}
	// Units differ, so each is handed out by itself.
	// The call fails only for arguments that are not ours to get wrong.
	if (CALL(KernelContext_ParallelFor, const OrtKernelContext *, void (*)(void *, size_t), size_t, size_t, void *)(c->context, f, n, n < 32 ? n : 32, data)) abort();
}

// What is done sooner than a second thread is woken.
enum { small_products = 512 << 10, small_tile_products = 2 << 20, small_elements = 16 << 10 };

static int small_for(int terms) { return terms == 1 ? small_products : small_tile_products; }

static void alone_if(call *c, int small) {
	if (small) c->crew.run = vigie_alone;
}

static void *output(call *c, size_t i, const int64_t *dims, size_t rank) {
	OrtValue *value = 0;
	void *data = 0;
	if (c->status) return 0;
	c->status = CALL(KernelContext_GetOutput, OrtKernelContext *, size_t, const int64_t *, size_t, OrtValue **)(c->context, i, dims, rank, &value);
	if (!c->status && value) c->status = CALL(GetTensorMutableData, OrtValue *, void **)(value, &data);
	return data;
}

static void *like(call *c, size_t i, const tensor *t) { return output(c, i, t->dims, t->rank); }

static OrtStatus *read_input(OrtKernelContext *context, size_t i, tensor *t) {
	const OrtValue *value = 0;
	OrtTensorTypeAndShapeInfo *info = 0;
	OrtStatus *s = CALL(KernelContext_GetInput, const OrtKernelContext *, size_t, const OrtValue **)(context, i, &value);
	if (s || !value) return s;
	if ((s = CALL(GetTensorTypeAndShape, const OrtValue *, OrtTensorTypeAndShapeInfo **)(value, &info))) return s;
	s = CALL(GetDimensionsCount, const OrtTensorTypeAndShapeInfo *, size_t *)(info, &t->rank);
	if (!s && t->rank > most_rank) s = fail("vigie: too many dimensions");
	if (!s) s = CALL(GetDimensions, const OrtTensorTypeAndShapeInfo *, int64_t *, size_t)(info, t->dims, t->rank);
	((void (*)(OrtTensorTypeAndShapeInfo *))api[slot_ReleaseTensorTypeAndShapeInfo])(info);
	if (s) return s;
	t->size = 1;
	for (size_t k = 0; k < t->rank; k++) t->size *= t->dims[k];
	return CALL(GetTensorMutableData, const OrtValue *, void **)(value, (void **)&t->data);
}

static OrtStatus *compute(void *state, OrtKernelContext *context) {
	const kernel *k = state;
	call c = {.k = k, .context = context, .crew = {run_crew, context}};
	size_t count = 0;
	OrtStatus *s = CALL(KernelContext_GetInputCount, const OrtKernelContext *, size_t *)(context, &count);
	for (size_t i = 0; i < count && i < (size_t)k->op->inputs && !s; i++) s = read_input(context, i, &c.in[i]);
	if (s) return s;
	k->op->run(&c);
	return c.status;
}

static int able; // vigie_available

// The terms a graph asks for. An instruction that the processor does not have
// would end the process.
static int terms_of(call *c, int place) {
	int terms = (int)c->k->geometry[place];
	if (terms < 1 || terms > 3 || (terms > 1 && able < 2)) {
		c->status = fail("vigie: this processor has no AMX, which kernels of 2 or 3 terms need");
		return 0;
	}
	return terms;
}

// Conv and its relatives.
enum { g_stride_h, g_stride_w, g_dilation_h, g_dilation_w, g_top, g_left, g_bottom, g_right, g_groups, g_terms, g_relu, g_h, g_w, g_conv };

// The convolution of x [n, c, h, w] with filters [k, c/groups, r, s].
static int geometry(call *c, conv *g, int64_t n, int64_t channels, int64_t h, int64_t w, const int64_t *filters) {
	const int64_t *a = c->k->geometry;
	*g = (conv){
		.n = (int)n, .c = (int)channels, .h = (int)h, .w = (int)w,
		.k = (int)filters[0], .r = (int)filters[2], .s = (int)filters[3],
		.stride_h = (int)a[g_stride_h], .stride_w = (int)a[g_stride_w], .dilation_h = (int)a[g_dilation_h], .dilation_w = (int)a[g_dilation_w],
		.top = (int)a[g_top], .left = (int)a[g_left], .groups = (int)a[g_groups], .terms = terms_of(c, g_terms),
	};
	if (!g->terms) return 0;
	g->out_h = (g->h + g->top + (int)a[g_bottom] - g->dilation_h * (g->r - 1) - 1) / g->stride_h + 1;
	g->out_w = (g->w + g->left + (int)a[g_right] - g->dilation_w * (g->s - 1) - 1) / g->stride_w + 1;
	if (filters[1] * g->groups != channels || g->r * g->s > 1024 || g->stride_h * g->stride_w > 64 || g->out_h < 1 || g->out_w < 1) {
		c->status = fail("vigie: the shapes do not make a convolution");
		return 0;
	}
	alone_if(c, (double)g->n * g->k * g->out_h * g->out_w * filters[1] * g->r * g->s < small_for(g->terms));
	return 1;
}

static void run_conv(call *c) {
	const tensor *x = &c->in[0], *w = &c->in[1];
	conv g;
	if (!geometry(c, &g, x->dims[0], x->dims[1], x->dims[2], x->dims[3], w->dims)) return;
	float *y = output(c, 0, (int64_t[]){g.n, g.k, g.out_h, g.out_w}, 4);
	if (!y) return;
	if (vigie_is_depthwise(&g))
		vigie_depthwise(&c->crew, &g, x->data, w->data, c->in[2].data, (int)c->k->geometry[g_relu], y);
	else
		vigie_conv(&c->crew, &g, x->data, w->data, c->in[2].data, (int)c->k->geometry[g_relu], y, c->k->keep);
}

// Inputs w, dy and, if there was a Relu, y; g_h and g_w are the size of dx.
static void run_conv_input_gradient(call *c) {
	const tensor *w = &c->in[0], *dy = &c->in[1];
	conv g;
	int64_t h = c->k->geometry[g_h], width = c->k->geometry[g_w], channels = w->dims[1] * c->k->geometry[g_groups];
	if (!geometry(c, &g, dy->dims[0], channels, h, width, w->dims)) return;
	if (g.out_h != dy->dims[2] || g.out_w != dy->dims[3] || g.k != dy->dims[1]) {
		c->status = fail("vigie: the output gradient does not fit the convolution");
		return;
	}
	float *dx = output(c, 0, (int64_t[]){g.n, channels, h, width}, 4);
	if (!dx) return;
	if (vigie_is_depthwise(&g))
		vigie_depthwise_gradient(&c->crew, &g, 0, w->data, dy->data, c->in[2].data, 0, dx, 0, 0);
	else
		vigie_conv_input_gradient(&c->crew, &g, w->data, dy->data, c->in[2].data, dx, c->k->keep);
}

// Inputs x, dy, y or none, scale of each image or none; g_h and g_w are the
// kernel's size.
static int weight_geometry(call *c, conv *g) {
	const tensor *x = &c->in[0], *dy = &c->in[1];
	int64_t filters[4] = {dy->dims[1], x->dims[1] / c->k->geometry[g_groups], c->k->geometry[g_h], c->k->geometry[g_w]};
	if (!geometry(c, g, x->dims[0], x->dims[1], x->dims[2], x->dims[3], filters)) return 0;
	if (g->out_h != dy->dims[2] || g->out_w != dy->dims[3]) {
		c->status = fail("vigie: the output gradient does not fit the convolution");
		return 0;
	}
	return 1;
}

static void run_conv_weight_gradient(call *c) {
	conv g;
	if (!weight_geometry(c, &g)) return;
	float *dw = output(c, 0, (int64_t[]){g.k, g.c / g.groups, g.r, g.s}, 4), *db = output(c, 1, (int64_t[]){g.k}, 1);
	if (!dw || !db) return;
	const float *x = c->in[0].data, *dy = c->in[1].data, *y = c->in[2].data, *scale = c->in[3].data;
	if (vigie_is_depthwise(&g))
		vigie_depthwise_gradient(&c->crew, &g, x, 0, dy, y, scale, 0, dw, db);
	else
		vigie_weight_gradient(&c->crew, &g, x, dy, y, scale, dw, db);
}

// Squared norms of each record's weight and bias gradients; a record is a run
// of g_relu (here: views) images.
static void run_conv_weight_norms(call *c) {
	conv g;
	if (!weight_geometry(c, &g)) return;
	int views = (int)c->k->geometry[g_relu];
	if (views < 1 || g.n % views || (views > 1 && vigie_is_depthwise(&g))) {
		c->status = fail("vigie: the images do not make whole records");
		return;
	}
	float *norms = output(c, 0, (int64_t[]){g.n / views}, 1), *bias = output(c, 1, (int64_t[]){g.n / views}, 1);
	if (!norms || !bias) return;
	memset(norms, 0, g.n / views * sizeof(float));
	memset(bias, 0, g.n / views * sizeof(float));
	if (vigie_is_depthwise(&g))
		vigie_depthwise_norms(&c->crew, &g, c->in[0].data, c->in[1].data, c->in[2].data, norms, bias);
	else
		vigie_record_gradients(&c->crew, &g, views, c->in[0].data, c->in[1].data, c->in[2].data, 0, 0, norms, bias);
}

// Each record's gradients themselves, and their squared norms.
static void run_conv_weight_rows(call *c) {
	conv g;
	if (!weight_geometry(c, &g)) return;
	int views = (int)c->k->geometry[g_relu];
	if (views < 1 || g.n % views || vigie_is_depthwise(&g)) {
		c->status = fail("vigie: the images do not make whole records");
		return;
	}
	float *rows = output(c, 0, (int64_t[]){g.n / views, g.k, g.c / g.groups, g.r, g.s}, 5), *bias = output(c, 1, (int64_t[]){g.n / views, g.k}, 2);
	float *norms = output(c, 2, (int64_t[]){g.n / views}, 1), *bias_norms = output(c, 3, (int64_t[]){g.n / views}, 1);
	if (!rows || !bias || !norms || !bias_norms) return;
	memset(norms, 0, g.n / views * sizeof(float));
	memset(bias_norms, 0, g.n / views * sizeof(float));
	vigie_record_gradients(&c->crew, &g, views, c->in[0].data, c->in[1].data, c->in[2].data, rows, bias, norms, bias_norms);
}

enum { m_transpose_a, m_transpose_b, m_terms, m_matmul };

// a and b have the same rank and leading dimensions, or b has rank 2 and a,
// not transposed, any rank.
static void run_matmul(call *c) {
	const tensor *a = &c->in[0], *b = &c->in[1];
	product p = {.transpose_a = (int)c->k->geometry[m_transpose_a], .transpose_b = (int)c->k->geometry[m_transpose_b], .terms = terms_of(c, m_terms), .batch = 1};
	if (!p.terms) return;
	size_t ra = a->rank, rb = b->rank;
	if (ra < 2 || rb < 2 || (ra != rb && (rb != 2 || p.transpose_a))) {
		c->status = fail("vigie: the shapes do not make a matrix product");
		return;
	}
	int64_t dims[most_rank];
	memcpy(dims, a->dims, sizeof dims);
	p.m = (int)a->dims[ra - 1 - !p.transpose_a];
	p.k = (int)a->dims[ra - 1 - !!p.transpose_a];
	p.n = (int)b->dims[rb - 1 - !!p.transpose_b];
	if (b->dims[rb - 1 - !p.transpose_b] != p.k) {
		c->status = fail("vigie: the inner dimensions of a matrix product differ");
		return;
	}
	dims[ra - 2] = p.m;
	dims[ra - 1] = p.n;
	for (size_t i = 0; i + 2 < ra; i++) {
		if (rb != 2 && a->dims[i] != b->dims[i]) {
			c->status = fail("vigie: the batches of a matrix product differ");
			return;
		}
		if (rb == 2)
			p.m *= (int)a->dims[i];
		else
			p.batch *= (int)a->dims[i];
	}
	alone_if(c, (double)p.m * p.n * p.k * p.batch < small_for(p.terms));
	p.stride_a = (long)p.m * p.k;
	p.stride_b = (long)p.k * p.n;
	float *y = output(c, 0, dims, ra);
	if (y) vigie_matmul(&c->crew, &p, a->data, b->data, y);
}

enum { n_groups, n_activation, n_per_example, n_norm };

// x is [n, c, …].
static norm norm_of(call *c, const tensor *x) {
	norm g = {.n = (int)x->dims[0], .c = (int)x->dims[1], .hw = 1, .groups = (int)c->k->geometry[n_groups], .activation = (int)c->k->geometry[n_activation],
	          .per_example = (int)c->k->geometry[n_per_example], .epsilon = c->k->epsilon};
	for (size_t i = 2; i < x->rank; i++) g.hw *= x->dims[i];
	alone_if(c, x->size < small_elements);
	return g;
}

static void *statistics(call *c, size_t i, const norm *g) {
	if (g->groups == 0) return output(c, i, (int64_t[]){g->c}, 1);
	return output(c, i, (int64_t[]){g->n, g->groups}, 2);
}

// Inputs x, scale, bias, skip or none.
static void run_norm(call *c) {
	norm g = norm_of(c, &c->in[0]);
	float *y = like(c, 0, &c->in[0]), *mean = statistics(c, 1, &g), *variance = statistics(c, 2, &g);
	if (y && mean && variance) vigie_norm(&c->crew, &g, c->in[0].data, c->in[1].data, c->in[2].data, c->in[3].data, y, mean, variance);
}

// Inputs x, dy, scale, bias, mean, variance, y where there was a skip.
static void run_norm_gradient(call *c) {
	norm g = norm_of(c, &c->in[0]);
	float *dx = like(c, 0, &c->in[0]), *dscale, *dbias, *dskip = 0;
	if (g.per_example) {
		dscale = output(c, 1, (int64_t[]){g.n, g.c}, 2);
		dbias = output(c, 2, (int64_t[]){g.n, g.c}, 2);
	} else {
		dscale = output(c, 1, (int64_t[]){g.c}, 1);
		dbias = output(c, 2, (int64_t[]){g.c}, 1);
	}
	if (c->in[6].data) {
		dskip = like(c, 3, &c->in[0]);
		if (!dskip) return;
	}
	if (dx && dscale && dbias)
		vigie_norm_gradient(&c->crew, &g, c->in[0].data, c->in[1].data, c->in[2].data, c->in[3].data, c->in[4].data, c->in[5].data, c->in[6].data, dx, dscale, dbias, dskip);
}

// Inputs x, factor, shift.
static void run_affine(call *c) {
	norm g = norm_of(c, &c->in[0]);
	float *y = like(c, 0, &c->in[0]);
	if (y) vigie_affine(&c->crew, &g, c->in[0].data, c->in[1].data, c->in[2].data, y);
}

// Inputs x, dy, factor, shift.
static void run_affine_gradient(call *c) {
	norm g = norm_of(c, &c->in[0]);
	float *dx = like(c, 0, &c->in[0]);
	if (dx) vigie_affine_gradient(&c->crew, &g, c->in[0].data, c->in[1].data, c->in[2].data, c->in[3].data, dx);
}

// Inputs x, s.
static void run_weigh(call *c) {
	norm g = norm_of(c, &c->in[0]);
	float *y = like(c, 0, &c->in[0]);
	if (y) vigie_weigh_channels(&c->crew, (size_t)g.n * g.c, g.hw, c->in[0].data, c->in[1].data, y);
}

// Inputs x, s, dy.
static void run_weigh_gradient(call *c) {
	norm g = norm_of(c, &c->in[0]);
	float *dx = like(c, 0, &c->in[0]), *ds = like(c, 1, &c->in[1]);
	if (dx && ds) vigie_weigh_channels_gradient(&c->crew, (size_t)g.n * g.c, g.hw, c->in[0].data, c->in[1].data, c->in[2].data, dx, ds);
}

enum { p_r, p_s, p_stride_h, p_stride_w, p_top, p_left, p_h, p_w, p_out_h, p_out_w, p_pool };

static pool pool_of(call *c, const tensor *x) {
	const int64_t *a = c->k->geometry;
	alone_if(c, x->dims[0] * x->dims[1] * a[p_h] * a[p_w] < small_elements);
	return (pool){(size_t)(x->dims[0] * x->dims[1]), (int)a[p_h], (int)a[p_w], (int)a[p_r], (int)a[p_s], (int)a[p_stride_h], (int)a[p_stride_w],
	              (int)a[p_top], (int)a[p_left], (int)a[p_out_h], (int)a[p_out_w]};
}

static void run_max_pool(call *c) {
	const tensor *x = &c->in[0];
	pool g = pool_of(c, x);
	int64_t dims[4] = {x->dims[0], x->dims[1], g.out_h, g.out_w};
	float *y = output(c, 0, dims, 4);
	uint8_t *index = output(c, 1, dims, 4);
	if (y && index) vigie_max_pool(&c->crew, &g, x->data, y, index);
}

static void run_max_pool_gradient(call *c) {
	const tensor *dy = &c->in[0];
	pool g = pool_of(c, dy);
	float *dx = output(c, 0, (int64_t[]){dy->dims[0], dy->dims[1], g.h, g.w}, 4);
	if (dx) vigie_max_pool_gradient(&c->crew, &g, dy->data, (const uint8_t *)c->in[1].data, dx);
}

static operator operators[] = {
	{.name = "Conv", .weights = 2, .inputs = 3, .needed = 2, .outputs = 1, .geometry = g_conv, .byte_input = -1, .byte_output = -1, .run = run_conv},
	{.name = "ConvInputGradient", .weights = 1, .inputs = 3, .needed = 2, .outputs = 1, .geometry = g_conv, .byte_input = -1, .byte_output = -1, .run = run_conv_input_gradient},
	{.name = "ConvWeightGradient", .inputs = 4, .needed = 2, .outputs = 2, .geometry = g_conv, .byte_input = -1, .byte_output = -1, .run = run_conv_weight_gradient},
	{.name = "ConvWeightNorms", .inputs = 3, .needed = 2, .outputs = 2, .geometry = g_conv, .byte_input = -1, .byte_output = -1, .run = run_conv_weight_norms},
	{.name = "ConvWeightRows", .inputs = 3, .needed = 2, .outputs = 4, .geometry = g_conv, .byte_input = -1, .byte_output = -1, .run = run_conv_weight_rows},
	{.name = "MatMul", .inputs = 2, .needed = 2, .outputs = 1, .geometry = m_matmul, .byte_input = -1, .byte_output = -1, .run = run_matmul},
	{.name = "Normalization", .inputs = 4, .needed = 3, .outputs = 3, .geometry = n_norm, .byte_input = -1, .byte_output = -1, .run = run_norm},
	{.name = "NormalizationGradient", .inputs = 7, .needed = 6, .outputs = 4, .geometry = n_norm, .byte_input = -1, .byte_output = -1, .run = run_norm_gradient},
	{.name = "Affine", .inputs = 3, .needed = 3, .outputs = 1, .geometry = n_norm, .byte_input = -1, .byte_output = -1, .run = run_affine},
	{.name = "AffineGradient", .inputs = 4, .needed = 4, .outputs = 1, .geometry = n_norm, .byte_input = -1, .byte_output = -1, .run = run_affine_gradient},
	{.name = "WeighChannels", .inputs = 2, .needed = 2, .outputs = 1, .geometry = n_norm, .byte_input = -1, .byte_output = -1, .run = run_weigh},
	{.name = "WeighChannelsGradient", .inputs = 3, .needed = 3, .outputs = 2, .geometry = n_norm, .byte_input = -1, .byte_output = -1, .run = run_weigh_gradient},
	{.name = "MaxPool", .inputs = 1, .needed = 1, .outputs = 2, .geometry = p_pool, .byte_input = -1, .byte_output = 1, .run = run_max_pool},
	{.name = "MaxPoolGradient", .inputs = 2, .needed = 2, .outputs = 1, .geometry = p_pool, .byte_input = 1, .byte_output = -1, .run = run_max_pool_gradient},
};

enum { operator_count = sizeof operators / sizeof operators[0] };

static const operator*of(const custom_op *op) { return (const operator*) op; }
static const char *op_name(const custom_op *op) { return of(op)->name; }
static const char *op_provider(const custom_op *op) { return (void)op, NULL; }
static int op_input_type(const custom_op *op, size_t i) { return (int)i == of(op)->byte_input ? type_uint8 : type_float; }
static size_t op_inputs(const custom_op *op) { return of(op)->inputs; }
static int op_output_type(const custom_op *op, size_t i) { return (int)i == of(op)->byte_output ? type_uint8 : type_float; }
static size_t op_outputs(const custom_op *op) { return of(op)->outputs; }
static int op_input_characteristic(const custom_op *op, size_t i) { return (int)i < of(op)->needed ? required : optional; }
static int op_output_characteristic(const custom_op *op, size_t i) { return (void)op, i == 3 ? optional : required; }
static int op_zero(const custom_op *op, size_t i) { return (void)op, (void)i, 0; }
static int op_one(const custom_op *op) { return (void)op, 1; }
static int op_last(const custom_op *op) { return (void)op, 2147483647; }

static void op_destroy(void *state) {
	kernel *k = state;
	for (int i = 0; i < most_packed && k->keep; i++) {
		vigie_give(k->keep[i].tiles);
		pthread_mutex_destroy(&k->keep[i].guard);
	}
	free(k->keep);
	free(k);
}

static OrtStatus *op_create(const custom_op *op, const void *unused, const OrtKernelInfo *info, void **made) {
	(void)unused;
	kernel *k = calloc(1, sizeof *k);
	if (!k) return fail("vigie: out of memory");
	k->op = of(op);
	size_t n = k->op->geometry;
	OrtStatus *s = CALL(KernelInfoGetAttributeArray_int64, const OrtKernelInfo *, const char *, int64_t *, size_t *)(info, "geometry", k->geometry, &n);
	if (!s && n != (size_t)k->op->geometry) s = fail("vigie: the attribute geometry is too short");
	if (!s && k->op->geometry == n_norm && strncmp(k->op->name, "Norm", 4) == 0)
		s = CALL(KernelInfoGetAttribute_float, const OrtKernelInfo *, const char *, float *)(info, "epsilon", &k->epsilon);
	if (!s && k->op->weights && k->geometry[g_groups] * k->geometry[g_stride_h] * k->geometry[g_stride_w] <= most_packed) {
		int constant = 0;
		const OrtValue *value = 0;
		s = CALL(KernelInfoGetConstantInput_tensor, const OrtKernelInfo *, size_t, int *, const OrtValue **)(info, k->op->weights - 1, &constant, &value);
		if (!s && constant && (k->keep = calloc(most_packed, sizeof *k->keep)))
			for (int i = 0; i < most_packed; i++) pthread_mutex_init(&k->keep[i].guard, 0);
	}
	if (s) {
		op_destroy(k);
		return s;
	}
	*made = k;
	return 0;
}

// Prepares the domain from the ONNX Runtime that is loaded from path. Returns
// NULL or what went wrong.
static OrtCustomOpDomain *domain;

const char *vigie_prepare(const char *path) {
	able = vigie_available();
	if (!able) return "this processor has no AVX-512";
	void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!library) return "the runtime's library does not open twice";
	const OrtApiBase *(*base)(void) = (const OrtApiBase *(*)(void))dlsym(library, "OrtGetApiBase");
	if (!base) return "the runtime's library has no OrtGetApiBase";
	if (!(api = base()->api(17))) return "the runtime is older than its interface 17";
	if (CALL(CreateCustomOpDomain, const char *, OrtCustomOpDomain **)("vigie", &domain)) return "the runtime makes no domain of operators";
	for (int i = 0; i < operator_count; i++) {
		custom_op *b = &operators[i].base;
		*b = (custom_op){
			.version = 17, .name = op_name, .provider = op_provider, .input_type = op_input_type, .input_count = op_inputs,
			.output_type = op_output_type, .output_count = op_outputs, .destroy = op_destroy,
			.input_characteristic = op_input_characteristic, .output_characteristic = op_output_characteristic, .input_memory = op_zero,
			.variadic_input_least = op_one, .variadic_input_homogeneous = op_one, .variadic_output_least = op_one, .variadic_output_homogeneous = op_one,
			.create = op_create, .compute = compute, .since = op_one, .until = op_last,
		};
		if (CALL(CustomOpDomain_Add, OrtCustomOpDomain *, const custom_op *)(domain, b)) return "the runtime refuses an operator";
	}
	return 0;
}

int vigie_terms(void) { return able == 2 ? 3 : able; }

int vigie_register(void *options) { return CALL(AddCustomOpDomain, OrtSessionOptions *, OrtCustomOpDomain *)(options, domain) ? 1 : 0; }

#else

const char *vigie_prepare(const char *path) { return (void)path, "this build has no kernels: they need Linux on x86-64 and GCC 11 or newer"; }
int vigie_register(void *options) { return (void)options, 1; }
int vigie_terms(void) { return 0; }
void vigie_adamw(long n, float *w, const float *g, float *m, float *v, float b1, float n1, float b2, float n2, float keep, float size, float correct, float epsilon) {
	(void)n, (void)w, (void)g, (void)m, (void)v, (void)b1, (void)n1, (void)b2, (void)n2, (void)keep, (void)size, (void)correct, (void)epsilon;
}

#endif
