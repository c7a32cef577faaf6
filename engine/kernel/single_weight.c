// The weight gradient of a convolution in float32.
#include "single.h"

#ifdef VIGIE_KERNELS

// The weight gradient: for every tap, the product of the input's shifted planes
// with the output gradient's, over all positions of all images.
enum {
	most_parts = 8,            // that images are divided into, each with sums of its own
	streamed_bytes = 1 << 20,  // of sums, up to which a part keeps them
	wide = 2 * lanes,          // filters in a block of sums
	worth_a_run = 64,          // positions of an image that are summed by themselves
};

typedef struct {
	const conv *g;
	const float *x, *dy, *y, *scale;
	plane margins[most_taps], exact[most_taps];
	tap taps[most_taps], own[most_taps];
	const plane *planes;
	const tap *tap;
	int phases, group, count;      // count of taps
	int channels, filters;         // of the group
	int channel_blocks, blocks;    // of 8 channels and of 32 filters
	int direct;                    // the planes are what is there
	long plane_size, reach;        // positions of a plane of x, and what taps look beyond
	int width, lines;              // of an image's output positions: a run of positions of x, and how many
	int together, segments;        // images that lie side by side, and how many such
	long segment, step;            // their positions in x; between channels of a panel
	long outputs;                  // their positions in dy
	origin origin;                 // of a segment; with places 0: lay planes out
	// A block's sums are [channels of the block][tap][32 filters].
	long pair;                     // numbers of a block's sums
} weighing;

static void measure(weighing *c) {
	const conv *g = c->g;
	int share;
	vigie_planes(g, c->margins, c->taps, &share);
	c->count = g->r * g->s;
	c->phases = g->stride_h * g->stride_w;
	c->planes = c->margins;
	c->tap = c->taps;
	if (without_margins(&c->phases, c->count, g->out_h, g->out_w, c->margins[0].rows, c->margins[0].columns, c->margins, c->taps, c->exact, c->own)) {
		c->planes = c->exact;
		c->tap = c->own;
	}
	c->channels = g->c / g->groups;
	c->filters = g->k / g->groups;
	c->channel_blocks = ceil_div(c->channels, block);
	c->blocks = ceil_div(c->filters, wide);
	c->plane_size = (long)c->planes[0].rows * c->planes[0].columns;
	for (int t = 0; t < c->count; t++) {
		long offset = (long)c->tap[t].down * c->planes[0].columns + c->tap[t].right;
		if (offset > c->reach) c->reach = offset;
	}
	c->pair = (long)block * c->count * wide;
	const plane *p = &c->planes[0];
	c->direct = c->count == 1 && c->phases == 1 && p->off_h == 0 && p->off_w == 0 && g->out_h == g->h && g->out_w == g->w && c->plane_size >= worth_a_run;
	c->width = g->out_w;
	c->lines = g->out_h;
	if (c->planes[0].columns == g->out_w) { // no margin beside: one run
		c->width *= c->lines;
		c->lines = 1;
	}
}

static void divide(weighing *c, int together) {
	c->together = together < 1 ? 1 : lesser(together, c->g->n);
	c->segments = ceil_div(c->g->n, c->together);
	c->segment = c->together * c->plane_size;
	c->step = apart(c->segment + c->reach);
	c->outputs = (long)c->together * c->width * c->lines;
	long image = (long)c->g->c * c->g->h * c->g->w;
	if (c->planes == c->exact && collected(c->g->out_w, c->together, image)) c->origin = origin_of(c->planes, c->phases, c->together, image);
}

// Lays out the planes of a channel, [phase][step], for segment s. A channel that
// does not exist, to fill a block, is 0. What taps look at beyond a segment is 0:
// a margin, or it meets a margin of dy.
static void lay_x(const weighing *c, float *to, int channel, int s, long step) {
	const conv *g = c->g;
	int first = s * c->together, images = lesser(c->together, g->n - first);
	for (int f = 0; f < c->phases; f++, to += step) {
		long end = 0;
		if (c->origin.places && channel < c->channels) {
			end = images * c->plane_size;
			collect(&c->origin, f, to, end, c->x + ((long)first * g->c + c->group * c->channels + channel) * g->h * g->w, 0);
			memset(to + end, 0, (c->segment + c->reach - end) * sizeof(float));
			continue;
		}
		for (int i = s * c->together; channel < c->channels && i < (s + 1) * c->together && i < g->n; i++, end += c->plane_size)
			lay(to + end, c->x + ((long)i * g->c + c->group * c->channels + channel) * g->h * g->w, 0, 1, &c->planes[f]);
		memset(to + end, 0, (c->segment + c->reach - end) * sizeof(float));
	}
}

// Lays out 32 filters' output gradient of segment s, [position][32], without
// margins.
static void lay_dy(const weighing *c, float *to, int b, int s) {
	const conv *g = c->g;
	long size = (long)g->out_h * g->out_w;
	int first = s * c->together, images = lesser(c->together, g->n - first), rows = lesser(wide, c->filters - b * wide);
	long from = ((long)first * g->k + c->group * c->filters + b * wide) * size;
	if (!c->y && !c->scale) {
		for (int i = 0; i < images; i++) across(c->dy + from + i * g->k * size, rows, size, size, to + i * size * wide, wide);
		memset(to + images * size * wide, 0, (c->outputs - images * size) * wide * sizeof(float));
		return;
	}
	float *staged = vigie_take(wide * apart(size) * sizeof(float));
	plane l = {1, (int)size, 1, (int)size, 1, 1, 0, 0};
	for (int i = 0; i < images; i++) {
		for (int k = 0; k < rows; k++) {
			long at = from + ((long)i * g->k + k) * size;
			lay(staged + k * apart(size), c->dy + at, c->y ? c->y + at : 0, c->scale ? c->scale[first + i] : 1, &l);
		}
		across(staged, rows, apart(size), size, to + i * size * wide, wide);
	}
	memset(to + images * size * wide, 0, (c->outputs - images * size) * wide * sizeof(float));
	vigie_give(staged);
}

// Adds to sum[8][32] the products of 8 rows, n runs of width positions that begin
// jump apart, with the filters of dy, [position][32], of which vectors of 16 exist.
// They are summed by themselves first: that rounds less.
inlined void weigh_rows(const int vectors, const float *const x[block], long n, long width, long jump, const float *dy, float *sum) {
	__m512 s[block][2];
#pragma GCC unroll 8
	for (int i = 0; i < block; i++)
#pragma GCC unroll 2
		for (int k = 0; k < vectors; k++) s[i][k] = _mm512_setzero_ps();
	const float *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3], *x4 = x[4], *x5 = x[5], *x6 = x[6], *x7 = x[7];
	for (long from = 0; n > 0; n--, from += jump)
		for (long q = from; q < from + width; q++, dy += wide) {
			__m512 d[2];
#pragma GCC unroll 2
			for (int k = 0; k < vectors; k++) d[k] = _mm512_loadu_ps(dy + k * lanes);
			const float by[block] = {x0[q], x1[q], x2[q], x3[q], x4[q], x5[q], x6[q], x7[q]};
#pragma GCC unroll 8
			for (int i = 0; i < block; i++)
#pragma GCC unroll 2
				for (int k = 0; k < vectors; k++) s[i][k] = _mm512_fmadd_ps(_mm512_set1_ps(by[i]), d[k], s[i][k]);
		}
#pragma GCC unroll 8
	for (int i = 0; i < block; i++)
#pragma GCC unroll 2
		for (int k = 0; k < vectors; k++) {
			float *to = sum + i * wide + k * lanes;
			_mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), s[i][k]));
		}
}

// Positions that are summed by themselves, about; their panels stay in a level-1
// cache.
enum { run_positions = 256 };

// The same for all taps of a block of channels and the positions of images, which
// begin image apart; x is [channel][phase][step].
static void weigh(const weighing *c, const float *x, long step, long image, const float *dy, int images, int b, int channel_block, float *sum) {
	const int one = c->filters - b * wide <= lanes, rows = lesser(block, c->channels - channel_block * block) * c->count;
	const long columns = c->planes[0].columns, lines = c->lines;
	long width = c->width;
	if (lines == 1 && width == image) { // images too are one run
		width *= images;
		images = 1;
	}
	long place[block * most_taps]; // of rows that do not exist: copies of one that does
	int count = 0;
	for (int channel = 0; count < rows; channel++)
		for (int t = 0; t < c->count; t++) place[count++] = (channel * c->phases + c->tap[t].phase) * step + c->tap[t].down * columns + c->tap[t].right;
	for (; count % block; count++) place[count] = place[0];
	// A run goes over whole lines, or part of one if there is but one.
	for (int i = 0; i < images; i++)
		for (long line = 0, column = 0; line < lines;) {
			long some = 1, across = width;
			if (lines > 1) {
				some = run_positions / width;
				if (some < 1) some = 1;
				if (some > lines - line) some = lines - line;
			} else if (across - column > run_positions) {
				across = run_positions;
			} else {
				across -= column;
			}
			const float *from = x + i * image + line * columns + column;
			for (int row = 0; row < rows; row += block) {
				const float *at[block];
				for (int k = 0; k < block; k++) at[k] = from + place[row + k];
				if (one)
					weigh_rows(1, at, some, across, columns, dy, sum + row * wide);
				else
					weigh_rows(2, at, some, across, columns, dy, sum + row * wide);
			}
			dy += some * across * wide;
			column += across;
			if (column == width) {
				column = 0;
				line += some;
			}
		}
}

// The same for images from segment s on, with x in panels or, where the planes are
// what is there, as it is.
static void weigh_segment(const weighing *c, const float *x, long step, const float *dy, int s, int images, int b, int channel_block, float *sum) {
	if (!c->direct) {
		weigh(c, x, step, c->plane_size, dy, images, b, channel_block, sum);
		return;
	}
	const conv *g = c->g;
	long size = (long)g->h * g->w;
	int first = s * c->together;
	weigh(c, c->x + ((long)first * g->c + c->group * c->channels + channel_block * block) * size, size, g->c * size, dy, lesser(images, g->n - first), b, channel_block, sum);
}

// Adds the sums over n positions of 32 filters' gradients to to.
static void add_bias(const float *dy, long n, float *to) {
	for (long q = 0; q < n;) {
		__m512 a = _mm512_setzero_ps(), b = a;
		for (long end = n - q < run_positions ? n : q + run_positions; q < end; q++, dy += wide) {
			a = _mm512_add_ps(a, _mm512_loadu_ps(dy));
			b = _mm512_add_ps(b, _mm512_loadu_ps(dy + lanes));
		}
		_mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), a));
		_mm512_storeu_ps(to + lanes, _mm512_add_ps(_mm512_loadu_ps(to + lanes), b));
	}
}

// Writes a block's sums into a gradient, [filters][channels][taps].
static void store_block(const weighing *c, float *dw, int b, int channel_block, const float *sum) {
	long depth = (long)lesser(block, c->channels - channel_block * block) * c->count, row = (long)c->channels * c->count;
	int rows = lesser(wide, c->filters - b * wide);
	float *to = dw + (long)b * wide * row + (long)channel_block * block * c->count;
	for (long k = 0; k < depth; k += lanes) {
		long left = depth - k < lanes ? depth - k : lanes;
		__mmask16 m = (__mmask16)((1u << left) - 1);
		for (int h = 0; h < rows; h += lanes) {
			__m512i v[lanes];
			for (int i = 0; i < lanes; i++) v[i] = i < left ? _mm512_loadu_si512(sum + (k + i) * wide + h) : _mm512_setzero_si512();
			transpose16(v);
			for (int i = 0; i < lanes && h + i < rows; i++) _mm512_mask_storeu_epi32(to + (h + i) * row + k, m, v[i]);
		}
	}
}

// The sum of squares of a block's sums; those that do not exist are 0.
static float squares_of(const weighing *c, int channel_block, const float *sum) {
	__m512 a = _mm512_setzero_ps(), b = a;
	for (long i = 0; i < (long)lesser(block, c->channels - channel_block * block) * c->count; i++, sum += wide) {
		__m512 u = _mm512_loadu_ps(sum), v = _mm512_loadu_ps(sum + lanes);
		a = _mm512_fmadd_ps(u, u, a);
		b = _mm512_fmadd_ps(v, v, b);
	}
	return _mm512_reduce_add_ps(_mm512_add_ps(a, b));
}

// Few weights: each part of the images has sums of its own and goes through its
// segments one at a time. The number of parts depends on shapes alone, so that
// the order of the sum does not depend on the machine.
typedef struct {
	const weighing *c;
	int parts;
	float *sums; // [part][block][channel block]
	float *bias; // [part][block][32]
	float *dw;
} streaming;

static void stream_part(void *data, size_t part) {
	const streaming *s = data;
	const weighing *c = s->c;
	long size = c->pair * c->blocks * c->channel_blocks;
	float *sum = s->sums + part * size, *bias = s->bias + part * c->blocks * wide;
	memset(sum, 0, size * sizeof(float));
	memset(bias, 0, (long)c->blocks * wide * sizeof(float));
	long row = c->phases * c->step;
	float *x = c->direct ? 0 : vigie_take((long)c->channel_blocks * block * row * sizeof(float)), *dy = vigie_take(c->outputs * wide * sizeof(float));
	for (int i = c->segments * (int)part / s->parts; i < c->segments * ((int)part + 1) / s->parts; i++) {
		for (int ch = 0; ch < c->channel_blocks * block && !c->direct; ch++) lay_x(c, x + ch * row, ch, i, c->step);
		for (int b = 0; b < c->blocks; b++) {
			lay_dy(c, dy, b, i);
			add_bias(dy, c->outputs, bias + b * wide);
			for (int cb = 0; cb < c->channel_blocks; cb++) weigh_segment(c, x + cb * block * row, c->step, dy, i, c->together, b, cb, sum + ((long)b * c->channel_blocks + cb) * c->pair);
		}
	}
	vigie_give(dy);
	vigie_give(x);
}

static void sum_parts(void *data, size_t pair) {
	const streaming *s = data;
	const weighing *c = s->c;
	long all = c->pair * c->blocks * c->channel_blocks;
	float *sum = s->sums + pair * c->pair;
	for (int p = 1; p < s->parts; p++)
		for (long i = 0; i < c->pair; i += lanes) _mm512_storeu_ps(sum + i, _mm512_add_ps(_mm512_loadu_ps(sum + i), _mm512_loadu_ps(sum + p * all + i)));
	store_block(c, s->dw, (int)pair / c->channel_blocks, (int)pair % c->channel_blocks, sum);
}

static void stream(const crew *crew, weighing *c, float *dw, float *db) {
	long bytes = (long)c->channels * c->phases * c->plane_size * sizeof(float), together = panel_limit / 2 / bytes;
	divide(c, ceil_div(c->g->n, ceil_div(ceil_div(c->g->n, together < 1 ? 1 : (int)together), most_parts) * most_parts));
	streaming s = {.c = c, .parts = lesser(c->segments, most_parts), .dw = dw};
	s.sums = vigie_take(s.parts * c->pair * c->blocks * c->channel_blocks * sizeof(float));
	s.bias = vigie_take((long)s.parts * c->blocks * wide * sizeof(float));
	crew->run(crew, stream_part, s.parts, &s);
	if (dw) crew->run(crew, sum_parts, (size_t)c->blocks * c->channel_blocks, &s);
	for (int k = 0; k < c->filters && db; k++) {
		double sum = 0;
		for (int p = 0; p < s.parts; p++) sum += s.bias[p * c->blocks * wide + k];
		db[k] = (float)sum;
	}
	vigie_give(s.bias);
	vigie_give(s.sums);
}

// Many weights: everything is laid out first, then each block of sums goes
// through all positions.
typedef struct {
	const weighing *c;
	long step;  // between the rows of x
	float *x;   // [channel][phase] rows
	float *dy;  // [block][position][32]
	float *bias; // [block][32]
	float *dw;
} spreading;

static void spread_x(void *data, size_t channel) {
	const spreading *s = data;
	const weighing *c = s->c;
	for (int i = 0; i < c->segments; i++) lay_x(c, s->x + channel * c->phases * s->step + i * c->segment, (int)channel, i, s->step);
}

static void spread_dy(void *data, size_t unit) {
	const spreading *s = data;
	const weighing *c = s->c;
	int i = unit % c->segments, b = (int)(unit / c->segments);
	lay_dy(c, s->dy + ((long)b * c->segments + i) * c->outputs * wide, b, i);
}

static void weigh_block(void *data, size_t pair) {
	const spreading *s = data;
	const weighing *c = s->c;
	int b = pair / c->channel_blocks, cb = pair % c->channel_blocks;
	long all = c->segments * c->outputs;
	const float *x = s->x + (long)cb * block * c->phases * s->step, *dy = s->dy + b * all * wide;
	float *sum = vigie_take(c->pair * sizeof(float));
	memset(sum, 0, c->pair * sizeof(float));
	weigh_segment(c, x, s->step, dy, 0, c->segments * c->together, b, cb, sum);
	if (cb == 0) add_bias(dy, all, s->bias + b * wide);
	if (s->dw) store_block(c, s->dw, b, cb, sum);
	vigie_give(sum);
}

static void spread(const crew *crew, weighing *c, float *dw, float *db) {
	divide(c, (int)(1024 / c->plane_size));
	long all = c->segments * c->outputs;
	spreading s = {.c = c, .dw = dw, .step = apart(c->segments * c->segment + c->reach)};
	if (!c->direct) s.x = vigie_take((long)c->channel_blocks * block * c->phases * s.step * sizeof(float));
	s.dy = vigie_take((long)c->blocks * all * wide * sizeof(float));
	s.bias = vigie_take((long)c->blocks * wide * sizeof(float));
	memset(s.bias, 0, (long)c->blocks * wide * sizeof(float));
	if (!c->direct) crew->run(crew, spread_x, (size_t)c->channel_blocks * block, &s);
	crew->run(crew, spread_dy, (size_t)c->blocks * c->segments, &s);
	crew->run(crew, weigh_block, (size_t)c->blocks * c->channel_blocks, &s);
	if (db) memcpy(db, s.bias, c->filters * sizeof(float));
	vigie_give(s.bias);
	vigie_give(s.dy);
	vigie_give(s.x);
}

void vigie_weight_gradient_single(const crew *crew, const conv *g, const float *x, const float *dy, const float *y, const float *scale, float *dw, float *db) {
	for (int i = 0; i < g->groups; i++) {
		weighing c = {.g = g, .x = x, .dy = dy, .y = y, .scale = scale, .group = i};
		measure(&c);
		float *w = dw ? dw + (long)i * c.filters * c.channels * c.count : 0, *b = db ? db + i * c.filters : 0;
		long sums = c.pair * c.blocks * c.channel_blocks * (long)sizeof(float), all = g->n * c.plane_size;
		if (sums <= streamed_bytes && all >= most_parts * 128)
			stream(crew, &c, w, b);
		else
			spread(crew, &c, w, b);
		vigie_give(c.origin.from);
	}
}

// One record at a time.
typedef struct {
	const weighing *c;
	float *rows, *bias_rows, *norms, *bias_norms;
} recording;

static void record(void *data, size_t i) {
	const recording *s = data;
	const weighing *c = s->c;
	long row = c->phases * c->step, size = (long)c->filters * c->channels * c->count;
	float *x = c->direct ? 0 : vigie_take((long)c->channel_blocks * block * row * sizeof(float)), *dy = vigie_take(c->outputs * wide * sizeof(float));
	float *sum = vigie_take(c->pair * sizeof(float));
	for (int ch = 0; ch < c->channel_blocks * block && !c->direct; ch++) lay_x(c, x + ch * row, ch, (int)i, c->step);
	double norm = 0, bias_norm = 0;
	for (int b = 0; b < c->blocks; b++) {
		lay_dy(c, dy, b, (int)i);
		float bias[wide] = {0};
		add_bias(dy, c->outputs, bias);
		for (int k = 0; k < wide; k++) bias_norm += (double)bias[k] * bias[k];
		if (s->rows) memcpy(s->bias_rows + (long)i * c->g->k + c->group * c->filters + b * wide, bias, lesser(wide, c->filters - b * wide) * sizeof(float));
		for (int cb = 0; cb < c->channel_blocks; cb++) {
			memset(sum, 0, c->pair * sizeof(float));
			weigh_segment(c, x + cb * block * row, c->step, dy, (int)i, c->together, b, cb, sum);
			norm += squares_of(c, cb, sum);
			if (s->rows) store_block(c, s->rows + ((long)i * c->g->groups + c->group) * size, b, cb, sum);
		}
	}
	s->norms[i] += (float)norm;
	s->bias_norms[i] += (float)bias_norm;
	vigie_give(sum);
	vigie_give(dy);
	vigie_give(x);
}

void vigie_record_gradients_single(const crew *crew, const conv *g, int views, const float *x, const float *dy, const float *y, float *rows, float *bias_rows,
                                   float *norms, float *bias_norms) {
	for (int i = 0; i < g->groups; i++) {
		weighing c = {.g = g, .x = x, .dy = dy, .y = y, .group = i};
		measure(&c);
		divide(&c, views);
		recording s = {&c, rows, bias_rows, norms, bias_norms};
		crew->run(crew, record, c.segments, &s);
		vigie_give(c.origin.from);
	}
}

#endif
