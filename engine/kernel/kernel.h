// Kernels for training on x86-64 processors with AVX-512, and better AMX: declarations shared by the
// C files of this package. Nothing here is public; see kernel.go.
#ifndef VIGIE_KERNEL_H
#define VIGIE_KERNEL_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#define VIGIE_KERNELS 1
#endif

// A crew runs f(data, i) for i in [0, n), perhaps at once on several threads.
typedef struct crew {
	void (*run)(const struct crew *, void (*f)(void *, size_t), size_t n, void *data);
	const void *context;
} crew;

void vigie_alone(const crew *, void (*f)(void *, size_t), size_t n, void *data);

// Buffers that are kept for the next call: aligned to 2 MiB beyond that size.
void *vigie_take(size_t bytes);
void vigie_give(void *);

// What this processor and operating system let us use: 0 nothing, 1 AVX-512, 2 AMX too.
int vigie_available(void);

// A 2-D convolution: N images of C channels of H×W, K filters of C/groups×R×S.
typedef struct {
	int n, c, h, w;
	int k, r, s;
	int stride_h, stride_w, dilation_h, dilation_w;
	int top, left;
	int out_h, out_w;
	int groups;
	int terms; // bfloat16 terms a float32 is split into: 2 or 3; 1: float32 as it is, by AVX-512
} conv;

// Packed weights that are kept because they never change.
typedef struct {
	pthread_mutex_t guard;
	char *tiles; // NULL until the first call
} packed;

// Convolution, then a Relu if asked for. keep has a place for each group, or is
// NULL: weights that never change are packed once.
void vigie_conv(const crew *, const conv *, const float *x, const float *w, const float *bias, int relu, float *y, packed *keep);

// Where y is given and not above 0, dy counts as 0. keep has a place for each
// group and phase of the stride.
void vigie_conv_input_gradient(const crew *, const conv *, const float *w, const float *dy, const float *y, float *dx, packed *keep);

// scale, if not NULL, multiplies dy of each image. dw and db may be NULL.
void vigie_weight_gradient(const crew *, const conv *, const float *x, const float *dy, const float *y, const float *scale, float *dw, float *db);

// The same for terms = 1.
void vigie_weight_gradient_single(const crew *, const conv *, const float *x, const float *dy, const float *y, const float *scale, float *dw, float *db);
void vigie_record_gradients_single(const crew *, const conv *, int views, const float *x, const float *dy, const float *y, float *rows, float *bias_rows,
                                   float *norms, float *bias_norms);

// c[m][n] = a[m][k] · b[k][n] (+ bias[n]); a and b as stored may be transposed. batch products in a row,
// strides between them in elements (0: the same matrix for all).
typedef struct {
	int m, n, k;
	int transpose_a, transpose_b;
	int batch;
	long stride_a, stride_b;
	int terms;
} product;

void vigie_matmul(const crew *, const product *, const float *a, const float *b, float *c);
void vigie_matmul_single(const crew *, const product *, const float *a, const float *b, float *c);

#endif
