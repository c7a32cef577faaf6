// Matrix products in float32.
#include "single.h"

#ifdef VIGIE_KERNELS

// Matrix products: rows of a in blocks of 8, columns of b in strips of 48.
typedef struct {
	const product *p;
	const float *a, *b;
	float *c;
	int rows, strips; // blocks
	int high;         // blocks of rows in a unit
	int direct;       // whole strips of b are read where they are: packing would cost more than so few rows
	float *as, *bs;   // [block][inner][8] and [strip][inner][48]
} multiplication;

// Packs two blocks of rows of a transposed matrix; of another only a last block
// that is not full, the others are read as they are.
static void pack_a(const multiplication *x, int pair) {
	const product *p = x->p;
	float *to = x->as + (long)pair * 2 * p->k * block, *second = to + (long)p->k * block;
	int rows = lesser(2 * block, p->m - pair * 2 * block);
	if (!p->transpose_a) {
		const float *from = x->a + (long)pair * 2 * block * p->k;
		if (rows < block)
			across8(from, rows, p->k, p->k, to, 0);
		else if (rows > block && rows < 2 * block)
			across8(from + (long)block * p->k, rows - block, p->k, p->k, second, 0);
		return;
	}
	const __mmask16 m = lanes_between(0, rows);
	for (long k = 0; k < p->k; k++, to += block, second += block) {
		__m512 v = _mm512_maskz_loadu_ps(m, x->a + k * p->m + pair * 2 * block);
		_mm256_storeu_ps(to, _mm512_castps512_ps256(v));
		if (rows > block) _mm256_storeu_ps(second, _mm512_extractf32x8_ps(v, 1));
	}
}

static void pack_b(const multiplication *x, int i) {
	const product *p = x->p;
	if (x->direct && (i + 1) * strip <= p->n) return;
	float *to = x->bs + (long)i * p->k * strip;
	int columns = lesser(strip, p->n - i * strip);
	if (p->transpose_b) {
		across(x->b + (long)i * strip * p->k, columns, p->k, p->k, to, strip);
		return;
	}
	const float *from = x->b + i * strip;
	for (long k = 0; k < p->k; k++, to += strip, from += p->n)
		for (int v = 0; v < strip; v += lanes) _mm512_storeu_ps(to + v, _mm512_maskz_loadu_ps(lanes_between(0, columns - v), from + v));
}

static void pack_of(void *data, size_t i) {
	const multiplication *x = data;
	int pairs = ceil_div(x->rows, 2);
	if ((int)i < pairs)
		pack_a(x, (int)i);
	else
		pack_b(x, (int)i - pairs);
}

static void multiply_unit(void *data, size_t unit) {
	const multiplication *x = data;
	const product *p = x->p;
	int s = unit % x->strips, first = unit / x->strips * x->high, columns = lesser(strip, p->n - s * strip);
	float sum[block * strip];
	for (int r = first; r < x->rows && r < first + x->high; r++) {
		int rows = lesser(block, p->m - r * block), high = high_of(rows);
		float *to = x->c + (long)r * block * p->n + s * strip;
		weights w = {x->as + (long)r * p->k * block, 1, block};
		if (rows == block && !p->transpose_a) w = (weights){x->a + (long)r * block * p->k, p->k, 1};
		const float *b = x->bs + (long)s * p->k * strip;
		long step = strip;
		if (x->direct && columns == strip) {
			b = x->b + s * strip;
			step = p->n;
		}
		int whole = rows == high && columns % lanes == 0;
		for (int left = ceil_div(columns, lanes), q = 0; left > 0;) {
			int vectors = vectors_of(high, left);
			target at = {whole ? to + q : sum + q, whole ? p->n : strip, beside, 0, -__builtin_inff()};
			sums(high, vectors, w, b + q, beside, step, p->k, 0, 1, &at);
			left -= vectors;
			q += vectors * lanes;
		}
		for (int i = 0; i < rows && !whole; i++) memcpy(to + (long)i * p->n, sum + i * strip, columns * sizeof(float));
	}
}

static void prepare(multiplication *x, const product *p) {
	x->p = p;
	x->rows = ceil_div(p->m, block);
	x->strips = ceil_div(p->n, strip);
	x->direct = !p->transpose_b && p->m <= 2 * block;
	x->high = x->strips >= 16 ? x->rows : lesser(x->rows, 16);
	x->as = vigie_take((long)x->rows * p->k * block * sizeof(float));
	x->bs = vigie_take((long)x->strips * p->k * strip * sizeof(float));
}

typedef struct {
	const product *p;
	const float *a, *b;
	float *c;
} batch;

static void multiply_one(void *data, size_t i) {
	const batch *s = data;
	multiplication x = {.a = s->a + i * s->p->stride_a, .b = s->b + i * s->p->stride_b, .c = s->c + i * (long)s->p->m * s->p->n};
	prepare(&x, s->p);
	for (int k = 0; k < ceil_div(x.rows, 2) + x.strips; k++) pack_of(&x, k);
	for (int k = 0; k < ceil_div(x.rows, x.high) * x.strips; k++) multiply_unit(&x, k);
	vigie_give(x.bs);
	vigie_give(x.as);
}

void vigie_matmul_single(const crew *crew, const product *p, const float *a, const float *b, float *c) {
	if (p->batch > 1) {
		batch s = {p, a, b, c};
		crew->run(crew, multiply_one, p->batch, &s);
		return;
	}
	multiplication x = {.a = a, .b = b, .c = c};
	prepare(&x, p);
	crew->run(crew, pack_of, ceil_div(x.rows, 2) + x.strips, &x);
	crew->run(crew, multiply_unit, (size_t)ceil_div(x.rows, x.high) * x.strips, &x);
	vigie_give(x.bs);
	vigie_give(x.as);
}

#endif
