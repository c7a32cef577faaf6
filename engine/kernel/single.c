// Convolution and its input gradient in float32.
#include "single.h"

#ifdef VIGIE_KERNELS

typedef struct {
	const correlation *j;
	const plane *planes; // one for each phase
	const tap *tap;
	int phases, share_rows;
	int direct;                // the source is the plane already
	int aligned;               // vectors are runs of rows of the output, without margins
	int in_order;              // taps are in the weights' order, without gaps
	int filters;               // blocks of 8
	int reach_rows, columns;   // largest shift down; columns of a plane
	long reach;                // largest shift in positions
	int as_they_are;           // weights lie as they are read, but for a last block that is not full
	float *weights;            // [filter block][channel][tap] of 8; or that last block
	int together, band;        // images and output rows in a unit
	int bands, groups, parts;  // units: image groups × bands × parts of the filters
	int part;                  // filter blocks in a part
	long step;                 // between the rows of a panel, [channel][phase]
} correlating;

// Packs two blocks of filters.
static void pack_weights(void *data, size_t pair) {
	const correlating *c = data;
	const correlation *j = c->j;
	long depth = (long)j->c * j->taps;
	float *to = c->weights + (long)pair * 2 * depth * block, *second = to + depth * block;
	const float *from = j->w + (long)pair * 2 * block * j->w_filter;
	int rows = lesser(2 * block, j->k - (int)pair * 2 * block);
	if (c->in_order && j->taps <= lanes && j->taps > 2) {
		for (int ch = 0; ch < j->c; ch++) across8(from + ch * j->w_channel, rows, j->w_filter, j->taps, to + (long)ch * j->taps * block, second + (long)ch * j->taps * block);
		return;
	}
	const __m512i index = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32((int)j->w_filter));
	const __mmask16 m = lanes_between(0, rows);
	for (int ch = 0; ch < j->c; ch++)
		for (int t = 0; t < j->taps; t++, to += block, second += block) {
			const float *at = from + ch * j->w_channel + c->tap[t].weight;
			__m512 v = j->w_filter == 1 ? _mm512_maskz_loadu_ps(m, at) : _mm512_mask_i32gather_ps(_mm512_setzero_ps(), m, index, at, 4);
			_mm256_storeu_ps(to, _mm512_castps512_ps256(v));
			if (rows > block) _mm256_storeu_ps(second, _mm512_extractf32x8_ps(v, 1));
		}
}

// What a unit covers.
typedef struct {
	int image, images, row, rows, plane_rows;
	long plane_size;
} extent;

// Writes a filter's positions where they belong. In from rows are line apart, and
// images image.
static void put(const correlating *c, const extent *e, int filter, const float *from, long line, long image) {
	const correlation *j = c->j;
	const __m512 floor = _mm512_set1_ps(j->relu ? 0 : -__builtin_inff()), bias = _mm512_set1_ps(j->bias ? j->bias[filter] : 0);
	int rows = e->rows, columns = j->out_columns;
	if (line == columns && j->step_h == 1 && j->step_w == 1 && j->dst_w == columns) { // no margin: one run
		columns *= rows;
		rows = 1;
	}
	const __m512i index = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm512_set1_epi32(j->step_w));
	for (int i = 0; i < e->images; i++)
		for (int r = 0; r < rows; r++) {
			const float *row = from + i * image + r * line;
			int y = (e->row + r) * j->step_h + j->first_h;
			float *to = j->dst + (e->image + i) * j->dst_image + filter * j->dst_channel + (long)y * j->dst_w + j->first_w;
			for (int x = 0; x < columns; x += lanes) {
				__mmask16 m = lanes_between(0, columns - x);
				// max's operands in this order let NaN through
				__m512 v = _mm512_max_ps(floor, _mm512_add_ps(_mm512_maskz_loadu_ps(m, row + x), bias));
				if (j->step_w == 1)
					_mm512_mask_storeu_ps(to + x, m, v);
				else
					_mm512_mask_i32scatter_ps(to + (long)x * j->step_w, m, index, v, 4);
			}
		}
}

static void correlate_unit(void *data, size_t unit) {
	const correlating *c = data;
	const correlation *j = c->j;
	int part = unit % c->parts, band = unit / c->parts % c->bands, group = unit / c->parts / c->bands;
	extent e = {.image = group * c->together, .row = band * c->band};
	e.images = lesser(c->together, j->n - e.image);
	e.rows = lesser(c->band, j->out_rows - e.row);
	e.plane_rows = e.rows + c->reach_rows - (c->bands == 1 ? c->share_rows : 0);
	e.plane_size = (long)e.plane_rows * c->columns;
	long used = (e.images - 1) * e.plane_size + (long)(e.rows - 1) * c->columns + j->out_columns;

	float *panel = 0, *row;
	if (!c->direct) {
		row = panel = vigie_take((long)j->c * c->phases * c->step * sizeof(float));
		for (int ch = 0; ch < j->c; ch++)
			for (int f = 0; f < c->phases; f++, row += c->step) {
				long at = lay_part(j, &c->planes[f], row, ch, e.image, e.images, e.row, e.plane_rows);
				memset(row + at, 0, (c->step - at) * sizeof(float));
			}
	}
	long offset[most_taps];
	for (int t = 0; t < j->taps; t++) offset[t] = c->tap[t].phase * c->step + c->tap[t].down * (long)c->columns + c->tap[t].right;
	const float *from = j->taps == 1 ? panel + offset[0] : panel;
	if (c->direct) { // an image's positions are side by side, whole vectors of them
		from = j->src + e.image * j->src_image + (long)e.row * j->out_columns;
		e.plane_size = j->src_image;
	}
	long line = c->aligned ? j->out_columns : c->columns, image = c->aligned ? (long)e.rows * line : e.plane_size;
	long all = c->aligned ? e.images * image / lanes : (used + lanes - 1) / lanes, stride = apart(all * lanes);
	// Whole vectors of an image's positions go where they belong.
	const int straight = c->aligned && j->step_h == 1 && j->step_w == 1 && j->dst_w == j->out_columns;
	float *scratch = vigie_take(block * stride * sizeof(float));
	long depth = (long)j->c * j->taps;
	for (int f = part * c->part; f < c->filters && f < (part + 1) * c->part; f++) {
		int rows = lesser(block, j->k - f * block), high = high_of(rows);
		weights w = {c->weights + (c->as_they_are ? 0 : f * depth * block), 1, block};
		if (c->as_they_are && rows == block) w = (weights){j->w + f * block * j->w_filter, j->w_filter, 1};
		for (long done = 0; done < all;) {
			int vectors = vectors_of(high, all - done);
			long place[2 * most_vectors], out[2 * most_vectors];
			for (int i = 0; i < vectors; i++) {
				long to = (done + i) * lanes, row = to / line;
				place[i] = to;
				if (c->direct)
					place[i] = to / image * e.plane_size + to % image;
				else if (c->aligned)
					place[i] = row / e.rows * e.plane_size + row % e.rows * c->columns + to % line;
			}
			if (straight && rows == high) {
				for (int i = 0; i < vectors; i++) {
					long to = (done + i) * lanes;
					out[i] = (e.image + to / image) * j->dst_image + (long)e.row * j->dst_w + to % image;
				}
				target to = {j->dst + f * block * j->dst_channel, j->dst_channel, out, j->bias ? j->bias + f * block : 0, j->relu ? 0 : -__builtin_inff()};
				sums(high, vectors, w, from, place, c->direct ? j->src_channel : c->phases * c->step, j->c, offset, j->taps, &to);
			} else {
				target to = {scratch + done * lanes, stride, beside, 0, -__builtin_inff()};
				sums(high, vectors, w, from, place, c->direct ? j->src_channel : c->phases * c->step, j->c, offset, j->taps, &to);
			}
			done += vectors;
		}
		for (int i = 0; i < rows && !(straight && rows == high); i++) put(c, &e, f * block + i, scratch + i * stride, line, image);
	}
	vigie_give(scratch);
	vigie_give(panel);
}

// Output positions up to which packing weights costs more than it saves.
enum { seldom = 2048 };

// Small images: the taps' planes of many of them, without margins, are the rows of
// one matrix, which the weights are multiplied by. The inner dimension goes in
// steps whose part of the matrix stays in a level-2 cache for all the filters of a
// unit, so that the weights are read once.
typedef struct {
	const correlating *c;
	extent e;
	float *rows, *out; // [channel][tap] and [filter] of step
	long step;
	int deep, units;
	origin origin; // with places 0: lay planes out
} gathering;

enum { gathered_positions = 1024, gathered_bytes = 256 << 10 };

static void gather(void *data, size_t channel) {
	const gathering *s = data;
	const correlating *c = s->c;
	float *row = s->rows + channel * c->phases * s->step;
	for (int f = 0; f < c->phases; f++, row += s->step) {
		long at = s->e.images * s->e.plane_size;
		if (s->origin.places) {
			const correlation *j = c->j;
			long from = s->e.image * j->src_image + (long)channel * j->src_channel;
			collect(&s->origin, f, row, at, j->src + from, j->gate ? j->gate + from : 0);
		} else {
			lay_part(c->j, &c->planes[f], row, (int)channel, s->e.image, s->e.images, 0, c->j->out_rows);
		}
		memset(row + at, 0, (s->step - at) * sizeof(float));
	}
}

static void multiply_gathered(void *data, size_t unit) {
	const gathering *s = data;
	const correlating *c = s->c;
	const correlation *j = c->j;
	const long depth = (long)j->c * j->taps, zero = 0, all = (s->e.images * s->e.plane_size + lanes - 1) / lanes;
	const int first = c->filters * (int)unit / s->units, last = c->filters * ((int)unit + 1) / s->units;
	for (long k = 0; k < depth; k += s->deep) {
		long some = depth - k < s->deep ? depth - k : s->deep;
		for (int f = first; f < last; f++) {
			int rows = lesser(block, j->k - f * block), high = high_of(rows);
			weights w = {c->weights + ((c->as_they_are ? 0 : f * depth) + k) * block, 1, block};
			if (c->as_they_are && rows == block) w = (weights){j->w + f * block * j->w_filter + k, j->w_filter, 1};
			for (long done = 0; done < all;) {
				int vectors = vectors_of(high, all - done);
				target to = {s->out + f * block * s->step + done * lanes, s->step, beside, 0, -__builtin_inff(), k > 0};
				sums(high, vectors, w, s->rows + k * s->step + done * lanes, beside, s->step, some, &zero, 1, &to);
				done += vectors;
			}
		}
	}
	for (int f = first * block; f < last * block && f < j->k; f++) put(c, &s->e, f, s->out + f * s->step, j->out_columns, s->e.plane_size);
}

static void correlate_gathered(const crew *crew, const correlating *c) {
	const correlation *j = c->j;
	gathering s = {.c = c, .units = lesser(processors(), c->filters)};
	s.e.plane_size = (long)j->out_rows * j->out_columns;
	s.e.rows = j->out_rows;
	int together = (int)(gathered_positions / s.e.plane_size);
	if (together < 1) together = 1;
	if (together > j->n) together = j->n;
	if (collected(j->out_columns, together, j->src_image)) s.origin = origin_of(c->planes, c->phases, together, j->src_image);
	s.step = apart(together * s.e.plane_size);
	s.deep = (int)(gathered_bytes / sizeof(float) / s.step);
	s.rows = vigie_take((long)j->c * j->taps * s.step * sizeof(float));
	s.out = vigie_take((long)c->filters * block * s.step * sizeof(float));
	for (; s.e.image < j->n; s.e.image += together) {
		s.e.images = lesser(together, j->n - s.e.image);
		crew->run(crew, gather, j->c, &s);
		crew->run(crew, multiply_gathered, s.units, &s);
	}
	vigie_give(s.origin.from);
	vigie_give(s.out);
	vigie_give(s.rows);
}

void vigie_correlate_single(const crew *crew, const correlation *j) {
	plane planes[most_taps];
	tap taps[most_taps];
	correlating c = {.j = j, .planes = j->planes, .tap = j->tap, .phases = j->phases, .share_rows = j->share_rows};
	int gathered = 0;
	if (j->k >= 2 * block && without_margins(&c.phases, j->taps, j->out_rows, j->out_columns, j->planes[0].rows, j->planes[0].columns, j->planes, j->tap, planes, taps)) {
		c.planes = planes;
		c.tap = taps;
		c.share_rows = 0;
		gathered = 1;
	}
	c.filters = ceil_div(j->k, block);
	c.columns = c.planes[0].columns;
	int reach_columns = 0;
	for (int t = 0; t < j->taps; t++) {
		if (c.tap[t].down > c.reach_rows) c.reach_rows = c.tap[t].down;
		if (c.tap[t].right > reach_columns) reach_columns = c.tap[t].right;
	}
	c.reach = (long)c.reach_rows * c.columns + reach_columns;
	c.aligned = j->out_columns % lanes == 0;
	const plane *p = &c.planes[0];
	if (j->taps == 1 && !j->gate && p->stride_h == 1 && p->stride_w == 1 && p->off_h == 0 && p->off_w == 0 && c.reach == 0 && j->out_rows == p->src_h &&
	    j->out_columns == p->src_w && (c.aligned || (long)j->out_rows * j->out_columns % lanes == 0))
		c.direct = c.aligned = 1;

	int threads = processors();
	long whole = (long)(j->out_rows + c.reach_rows - c.share_rows) * c.columns;
	long best = panel_limit / ((long)c.phases * j->c * (long)sizeof(float));
	if (best < strip) best = strip;
	if (best > 4096) best = 4096;
	c.bands = 1;
	c.band = j->out_rows;
	c.together = 1;
	if (whole <= best) { // as many units for each thread
		int groups = ceil_div(ceil_div(j->n, (int)(best / whole)), threads) * threads;
		c.together = ceil_div(j->n, groups);
	} else {
		int rows = (int)(best / c.columns) - c.reach_rows;
		if (rows < 1) rows = 1;
		if (rows < j->out_rows && (!c.direct || j->out_columns % lanes == 0)) {
			c.bands = ceil_div(j->out_rows, rows);
			c.band = ceil_div(j->out_rows, c.bands);
			c.bands = ceil_div(j->out_rows, c.band);
		}
	}
	c.groups = ceil_div(j->n, c.together);
	c.parts = 1;
	if (c.groups * c.bands < threads) c.parts = lesser(ceil_div(threads, c.groups * c.bands), c.filters);
	c.part = ceil_div(c.filters, c.parts);
	c.parts = ceil_div(c.filters, c.part);
	c.step = apart((long)c.together * (c.band + c.reach_rows) * c.columns + c.reach + lanes);

	long depth = (long)j->c * j->taps, bytes = c.filters * block * depth * sizeof(float);
	c.in_order = 1;
	for (int t = 0; t < j->taps && c.in_order; t++) c.in_order = c.tap[t].weight == t;
	// Packed weights are read a little faster, which pays if it is often.
	c.as_they_are = c.in_order && j->w_channel == j->taps && (long)j->n * j->out_rows * j->out_columns < seldom;
	if (c.as_they_are) {
		int rows = j->k % block;
		if (rows) {
			c.weights = vigie_take(depth * block * sizeof(float));
			across8(j->w + (long)(j->k - rows) * j->w_filter, rows, j->w_filter, depth, c.weights, 0);
		}
	} else if (j->keep) {
		pthread_mutex_lock(&j->keep->guard);
		c.weights = (float *)j->keep->tiles;
		if (!c.weights) {
			c.weights = vigie_take(bytes);
			for (int f = 0; f < ceil_div(c.filters, 2); f++) pack_weights(&c, f);
			j->keep->tiles = (char *)c.weights;
		}
		pthread_mutex_unlock(&j->keep->guard);
	} else {
		c.weights = vigie_take(bytes);
		crew->run(crew, pack_weights, ceil_div(c.filters, 2), &c);
	}
	if (gathered)
		correlate_gathered(crew, &c);
	else
		crew->run(crew, correlate_unit, (size_t)c.groups * c.bands * c.parts, &c);
	if (c.as_they_are || !j->keep) vigie_give(c.weights);
}

#endif
