// The one loop nest behind convolution and its input gradient: every output
// plane is a sum of shifted input planes times weights.
#ifndef VIGIE_CORRELATE_H
#define VIGIE_CORRELATE_H

#include "plane.h"

#ifdef VIGIE_KERNELS

enum { most_taps = 1024 };

typedef struct {
	int phase;     // which plane of each channel
	int down, right; // shift in that plane
	long weight;   // where the tap's weights begin, in elements
} tap;

typedef struct {
	int terms;
	// Source: n images of c channels.
	int n, c;
	const float *src, *gate;
	long src_image, src_channel;
	int phases;
	const plane *planes; // of whole images, one for each phase
	int share_rows;      // rows at the end of a plane that the next one's margin serves for
	int fold;            // every (channel, phase) is a channel of its own, and there is one tap
	// Weights: element (k, channel, tap) at k·w_filter + channel·w_channel + tap.weight.
	const float *w;
	long w_filter, w_channel;
	int taps;
	const tap *tap;
	packed *keep; // or NULL
	// Destination: k planes of out_rows×out_columns, row r at r·step_h + first_h.
	int k;
	float *dst;
	long dst_image, dst_channel;
	int dst_w, out_rows, out_columns, step_h, step_w, first_h, first_w;
	const float *bias;
	int relu;
} correlation;

void vigie_correlate(const crew *, const correlation *);
void vigie_correlate_single(const crew *, const correlation *); // without splitting, for processors without AMX

// Lays out part of a channel's planes of shape: whole images [image, image +
// images), or rows of one. Says how many positions that makes.
static inline long lay_part(const correlation *j, const plane *shape, float *to, int channel, int image, int images, int row, int rows) {
	plane p = *shape;
	p.off_h += row * p.stride_h;
	p.rows = rows;
	long at = 0;
	for (int i = 0; i < images; i++, at += (long)rows * p.columns) {
		long from = (image + i) * j->src_image + channel * j->src_channel;
		lay(to + at, j->src + from, j->gate ? j->gate + from : 0, 1, &p);
	}
	return at;
}

#endif
#endif
