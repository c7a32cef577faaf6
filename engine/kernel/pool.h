// Max pooling: see pool.c.
#ifndef VIGIE_POOL_H
#define VIGIE_POOL_H

#include "kernel.h"

typedef struct {
	size_t planes; // images times channels
	int h, w, r, s, stride_h, stride_w, top, left, out_h, out_w;
} pool;

// index gets the winner's place in its window, row by row: of several equal
// ones the first. Windows have at most 255 places.
void vigie_max_pool(const crew *, const pool *, const float *x, float *y, uint8_t *index);
void vigie_max_pool_gradient(const crew *, const pool *, const float *dy, const uint8_t *winner, float *dx);

#endif
