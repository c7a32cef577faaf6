// Matrix products.
#include "plane.h"

#ifdef VIGIE_KERNELS

typedef struct {
	const product *p;
	const float *a, *b;
	float *c;
	int rows, columns, depth; // blocks of 16, 16 and 32
	char *as, *bs;            // tiles [block][depth][term]
	int wide;                 // pairs of column blocks in a unit
} multiplication;

// Packs a 16×32 block whose long side is contiguous (rows of 32), or whose
// short side is (32 rows of 16, seen as 16 pairs of rows). pairs says which form
// the tile shall have.
inlined void pack_block(const int terms, const float *from, long step, int contiguous, int across, int along, int pairs, char *to) {
	if (contiguous) {
		pack_tile(terms, from, across, step, along, 1, to);
	} else {
		const __mmask16 m = across >= 16 ? 0xffff : (1 << across) - 1;
		float row[32] __attribute__((aligned(64)));
		for (int i = 0; i < 16; i++) {
			_mm512_store_ps(row, 2 * i < along ? _mm512_maskz_loadu_ps(m, from + 2 * i * step) : _mm512_setzero_ps());
			_mm512_store_ps(row + 16, 2 * i + 1 < along ? _mm512_maskz_loadu_ps(m, from + (2 * i + 1) * step) : _mm512_setzero_ps());
			split_pairs(terms, row, row + 16, 16, to + i * 64, tile_bytes);
		}
	}
	if (contiguous == pairs)
		for (int t = 0; t < terms; t++) transpose_tile(to + t * tile_bytes);
}

inlined int least(int a, int b) { return a < b ? a : b; }

inlined void pack_a(const int terms, const multiplication *x, int block) {
	const product *p = x->p;
	char *to = x->as + (long)block * x->depth * terms * tile_bytes;
	for (int d = 0; d < x->depth; d++, to += terms * tile_bytes) {
		const float *from = p->transpose_a ? x->a + (long)d * 32 * p->m + block * 16 : x->a + (long)block * 16 * p->k + d * 32;
		pack_block(terms, from, p->transpose_a ? p->m : p->k, !p->transpose_a, least(16, p->m - block * 16), least(32, p->k - d * 32), 0, to);
	}
}

inlined void pack_b(const int terms, const multiplication *x, int block) {
	const product *p = x->p;
	char *to = x->bs + (long)block * x->depth * terms * tile_bytes;
	for (int d = 0; d < x->depth; d++, to += terms * tile_bytes) {
		const float *from = p->transpose_b ? x->b + (long)block * 16 * p->k + d * 32 : x->b + (long)d * 32 * p->n + block * 16;
		pack_block(terms, from, p->transpose_b ? p->k : p->n, p->transpose_b, least(16, p->n - block * 16), least(32, p->k - d * 32), 1, to);
	}
}

static void pack_of(void *data, size_t i) {
	const multiplication *x = data;
	if (x->p->terms == 2) {
		if ((int)i < x->rows)
			pack_a(2, x, (int)i);
		else
			pack_b(2, x, (int)i - x->rows);
	} else {
		if ((int)i < x->rows)
			pack_a(3, x, (int)i);
		else
			pack_b(3, x, (int)i - x->rows);
	}
}

// A unit is 32 rows and wide times 32 columns.
inlined void multiply_unit(const int terms, const multiplication *x, size_t unit) {
	const product *p = x->p;
	int bands = ceil_div(ceil_div(x->columns, 2), x->wide);
	int r = unit / bands * 2, first = unit % bands * x->wide * 2;
	long tiles = (long)x->depth * terms * tile_bytes;
	long ab = r + 1 < x->rows ? tiles : 0;
	float block[32 * 32] __attribute__((aligned(64)));
	tiles_begin();
	for (int c = first; c < x->columns && c < first + 2 * x->wide; c += 2) {
		long bb = c + 1 < x->columns ? tiles : 0;
		const char *a = x->as + r * tiles, *b = x->bs + c * tiles;
		tiles_zero();
		for (int d = 0; d < x->depth; d++, a += terms * tile_bytes, b += terms * tile_bytes) step(terms, a, tile_bytes, ab, b, tile_bytes, bb);
		int rows = least(32, p->m - r * 16), columns = least(32, p->n - c * 16);
		float *to = x->c + (long)r * 16 * p->n + c * 16;
		if (rows == 32 && columns == 32) {
			_tile_stored(0, to, (long)p->n * 4);
			_tile_stored(1, to + 16, (long)p->n * 4);
			_tile_stored(2, to + 16 * (long)p->n, (long)p->n * 4);
			_tile_stored(3, to + 16 * (long)p->n + 16, (long)p->n * 4);
			continue;
		}
		_tile_stored(0, block, 128);
		_tile_stored(1, block + 16, 128);
		_tile_stored(2, block + 512, 128);
		_tile_stored(3, block + 528, 128);
		for (int i = 0; i < rows; i++) memcpy(to + (long)i * p->n, block + i * 32, columns * sizeof(float));
	}
	tiles_end();
}

static void multiply_unit_of(void *data, size_t unit) {
	const multiplication *x = data;
	if (x->p->terms == 2)
		multiply_unit(2, x, unit);
	else
		multiply_unit(3, x, unit);
}

static void measure(multiplication *x, const product *p) {
	x->p = p;
	x->rows = ceil_div(p->m, 16);
	x->columns = ceil_div(p->n, 16);
	x->depth = ceil_div(p->k, 32);
	// Enough units for the threads, but not so many that a unit is nothing.
	int pairs = ceil_div(x->columns, 2);
	x->wide = ceil_div(x->rows, 2) >= 16 ? pairs : pairs > 16 ? 8 : 1;
	x->as = vigie_take((long)x->rows * x->depth * p->terms * tile_bytes);
	x->bs = vigie_take((long)x->columns * x->depth * p->terms * tile_bytes);
}

typedef struct {
	const product *p;
	const float *a, *b;
	float *c;
} batch;

static void multiply_one(void *data, size_t i) {
	const batch *s = data;
	multiplication x = {.a = s->a + i * s->p->stride_a, .b = s->b + i * s->p->stride_b, .c = s->c + i * (long)s->p->m * s->p->n};
	measure(&x, s->p);
	for (int k = 0; k < x.rows + x.columns; k++) pack_of(&x, k);
	int units = ceil_div(x.rows, 2) * ceil_div(ceil_div(x.columns, 2), x.wide);
	for (int k = 0; k < units; k++) multiply_unit_of(&x, k);
	vigie_give(x.bs);
	vigie_give(x.as);
}

void vigie_matmul(const crew *crew, const product *p, const float *a, const float *b, float *c) {
	if (p->terms == 1) {
		vigie_matmul_single(crew, p, a, b, c);
		return;
	}
	if (p->batch > 1) {
		batch s = {p, a, b, c};
		crew->run(crew, multiply_one, p->batch, &s);
		return;
	}
	multiplication x = {.a = a, .b = b, .c = c};
	measure(&x, p);
	crew->run(crew, pack_of, x.rows + x.columns, &x);
	crew->run(crew, multiply_unit_of, (size_t)ceil_div(x.rows, 2) * ceil_div(ceil_div(x.columns, 2), x.wide), &x);
	vigie_give(x.bs);
	vigie_give(x.as);
}

#endif
