// Normalisation: see norm.c.
#ifndef VIGIE_NORM_H
#define VIGIE_NORM_H

#include "kernel.h"

enum { activation_none = 0, activation_relu = 1, activation_silu = 2 };

typedef struct {
	int n, c;
	long hw;
	int groups; // of channels that share statistics in one image; 0: each channel's, of the whole batch
	int activation;
	int per_example; // group: dscale and dbias are [n][c]
	float epsilon;
} norm;

// y = activation((x - mean)/√(variance + ε)·scale + bias + skip). mean and
// variance (of the population) are results, [c] or [n][groups]. skip may be NULL.
void vigie_norm(const crew *, const norm *, const float *x, const float *scale, const float *bias, const float *skip, float *y, float *mean, float *variance);

// y is needed where there was a skip (Relu only), dskip then gets its gradient.
void vigie_norm_gradient(const crew *, const norm *, const float *x, const float *dy, const float *scale, const float *bias, const float *mean, const float *variance,
                         const float *y, float *dx, float *dscale, float *dbias, float *dskip);

// Normalisation by statistics that are given, as one factor and one shift for
// each channel: y = activation(x·factor + shift), and its gradient by x.
void vigie_affine(const crew *, const norm *, const float *x, const float *factor, const float *shift, float *y);
void vigie_affine_gradient(const crew *, const norm *, const float *x, const float *dy, const float *factor, const float *shift, float *dx);

// Channels weighed by squeeze and excitation: y[n][c] = x[n][c]·s[n][c] over
// planes of hw numbers; dx = dy·s and ds = Σ dy·x.
void vigie_weigh_channels(const crew *, size_t planes, long hw, const float *x, const float *s, float *y);
void vigie_weigh_channels_gradient(const crew *, size_t planes, long hw, const float *x, const float *s, const float *dy, float *dx, float *ds);

#endif
