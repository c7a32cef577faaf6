// Convolution and its input gradient, by vigie_correlate.
#include "correlate.h"

#ifdef VIGIE_KERNELS

// Below this many channels a step of 32 along the inner dimension of a tile is
// mostly empty, so taps become channels.
enum { fold_below = 24 };

// The planes and taps of a convolution's input, of group 0. planes needs one
// place for each stride phase, or for each tap when folding.
int vigie_planes(const conv *g, plane *planes, tap *taps, int *share_rows) {
	int channels = g->c / g->groups, n = g->r * g->s;
	int fold = g->terms > 1 && n > 1 && channels < fold_below;
	*share_rows = 0;
	if (fold) {
		for (int i = 0; i < g->r; i++)
			for (int k = 0; k < g->s; k++)
				planes[i * g->s + k] = (plane){g->out_h, g->out_w, g->h, g->w, g->stride_h, g->stride_w, i * g->dilation_h - g->top, k * g->dilation_w - g->left};
		taps[0] = (tap){0};
		return 1;
	}
	int down = (g->r - 1) * g->dilation_h / g->stride_h, right = (g->s - 1) * g->dilation_w / g->stride_w;
	plane p = {g->out_h + down, g->out_w + right, g->h, g->w, g->stride_h, g->stride_w, -g->top, -g->left};
	if (g->stride_h == 1 && g->stride_w == 1) {
		// Where both margins are zeros, the next row's left margin serves as
		// the right one.
		int behind_h = p.rows - g->h - g->top, behind_w = p.columns - g->w - g->left;
		int share_h = behind_h < g->top ? behind_h : g->top, share_w = behind_w < g->left ? behind_w : g->left;
		if (share_h > down) share_h = down; // beyond it lie outputs, not margin
		if (share_w > right) share_w = right;
		if (share_h > 0) *share_rows = share_h;
		if (share_w > 0) p.columns -= share_w;
		p.rows -= *share_rows;
	}
	for (int i = 0; i < g->stride_h; i++)
		for (int k = 0; k < g->stride_w; k++) {
			planes[i * g->stride_w + k] = p;
			planes[i * g->stride_w + k].off_h += i;
			planes[i * g->stride_w + k].off_w += k;
		}
	for (int i = 0; i < g->r; i++)
		for (int k = 0; k < g->s; k++) {
			int y = i * g->dilation_h, x = k * g->dilation_w;
			taps[i * g->s + k] = (tap){y % g->stride_h * g->stride_w + x % g->stride_w, y / g->stride_h, x / g->stride_w, i * g->s + k};
		}
	return 0;
}

void vigie_conv(const crew *crew, const conv *g, const float *x, const float *w, const float *bias, int relu, float *y, packed *keep) {
	plane planes[most_taps];
	tap taps[most_taps];
	int share, fold = vigie_planes(g, planes, taps, &share);
	int channels = g->c / g->groups, filters = g->k / g->groups, n = g->r * g->s;
	for (int i = 0; i < g->groups; i++) {
		correlation j = {
			.terms = g->terms, .n = g->n, .c = channels,
			.src = x + (long)i * channels * g->h * g->w, .src_image = (long)g->c * g->h * g->w, .src_channel = (long)g->h * g->w,
			.phases = fold ? n : g->stride_h * g->stride_w, .planes = planes, .share_rows = share, .fold = fold,
			.w = w + (long)i * filters * channels * n, .w_filter = (long)channels * n, .w_channel = fold ? 1 : n,
			.taps = fold ? 1 : n, .tap = taps,
			.k = filters, .dst = y + (long)i * filters * g->out_h * g->out_w,
			.dst_image = (long)g->k * g->out_h * g->out_w, .dst_channel = (long)g->out_h * g->out_w, .dst_w = g->out_w,
			.out_rows = g->out_h, .out_columns = g->out_w, .step_h = 1, .step_w = 1,
			.bias = bias ? bias + i * filters : 0, .relu = relu, .keep = keep ? keep + i : 0,
		};
		vigie_correlate(crew, &j);
	}
}

// The input gradient: element u of the padded input collects dy[r - a]·w[i] over
// the taps i with i·dilation = a·stride + u mod stride, r = u / stride. So each
// phase of u is a convolution of dy, of stride 1, with the taps of that phase.
void vigie_conv_input_gradient(const crew *crew, const conv *g, const float *w, const float *dy, const float *y, float *dx, packed *keep) {
	int channels = g->c / g->groups, filters = g->k / g->groups, n = g->r * g->s;
	int reach_h = (g->r - 1) * g->dilation_h / g->stride_h, reach_w = (g->s - 1) * g->dilation_w / g->stride_w;
	// A phase that no tap falls on, or a position that no window covers, gets 0.
	int covered = g->stride_h <= g->r && g->stride_w <= g->s && g->dilation_h == 1 && g->dilation_w == 1;
	if (!covered) memset(dx, 0, (long)g->n * g->c * g->h * g->w * sizeof(float));
	for (int ph = 0; ph < g->stride_h; ph++)
		for (int pw = 0; pw < g->stride_w; pw++) {
			// The rows u = r·stride + ph of the padded input that are rows of dx.
			int r0 = g->top <= ph ? 0 : ceil_div(g->top - ph, g->stride_h), r1 = ceil_div(g->top + g->h - ph, g->stride_h);
			int c0 = g->left <= pw ? 0 : ceil_div(g->left - pw, g->stride_w), c1 = ceil_div(g->left + g->w - pw, g->stride_w);
			if (r1 <= r0 || c1 <= c0) continue;
			tap taps[most_taps];
			int count = 0, most_down = 0, most_right = 0;
			for (int i = 0; i < g->r; i++)
				for (int k = 0; k < g->s; k++) {
					int u = i * g->dilation_h, v = k * g->dilation_w;
					if (u % g->stride_h != ph || v % g->stride_w != pw) continue;
					tap t = {0, reach_h - u / g->stride_h, reach_w - v / g->stride_w, i * g->s + k};
					if (t.down > most_down) most_down = t.down;
					if (t.right > most_right) most_right = t.right;
					taps[count++] = t;
				}
			if (count == 0) continue;
			// Row r of the plane is row r + r0 - reach of dy.
			plane p = {r1 - r0 + most_down, c1 - c0 + most_right, g->out_h, g->out_w, 1, 1, r0 - reach_h, c0 - reach_w};
			int share = 0;
			int before_h = -p.off_h, before_w = -p.off_w;
			int behind_h = p.rows - before_h - g->out_h, behind_w = p.columns - before_w - g->out_w;
			int share_h = behind_h < before_h ? behind_h : before_h, share_w = behind_w < before_w ? behind_w : before_w;
			if (share_h > 0) share = share_h;
			if (share > most_down) share = most_down;
			if (share_w > most_right) share_w = most_right;
			p.rows -= share;
			if (share_w > 0) p.columns -= share_w;
			for (int i = 0; i < g->groups; i++) {
				long from = (long)i * filters * g->out_h * g->out_w;
				correlation j = {
					.terms = g->terms, .n = g->n, .c = filters,
					.src = dy + from, .gate = y ? y + from : 0,
					.src_image = (long)g->k * g->out_h * g->out_w, .src_channel = (long)g->out_h * g->out_w,
					.phases = 1, .planes = &p, .share_rows = share,
					.w = w + (long)i * filters * channels * n, .w_filter = n, .w_channel = (long)channels * n,
					.taps = count, .tap = taps,
					.k = channels, .dst = dx + (long)i * channels * g->h * g->w,
					.dst_image = (long)g->c * g->h * g->w, .dst_channel = (long)g->h * g->w, .dst_w = g->w,
					.out_rows = r1 - r0, .out_columns = c1 - c0, .step_h = g->stride_h, .step_w = g->stride_w,
					.first_h = r0 * g->stride_h + ph - g->top, .first_w = c0 * g->stride_w + pw - g->left,
					.keep = keep ? keep + (i * g->stride_h + ph) * g->stride_w + pw : 0,
				};
				vigie_correlate(crew, &j);
			}
		}
}

#endif
