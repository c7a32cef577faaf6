#include "kernel.h"

#include <stdlib.h>

void vigie_alone(const crew *c, void (*f)(void *, size_t), size_t n, void *data) {
	(void)c;
	for (size_t i = 0; i < n; i++) f(data, i);
}

#ifdef VIGIE_KERNELS

#include <pthread.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

// Buffers come in sizes of powers of two and quarter steps between, are kept
// when given back, and are handed out again. A size class keeps what was in use
// at once, so the memory held is bounded by the most that calls have needed.
enum { classes = 4 * 48, header = 64 };

typedef struct buffer {
	struct buffer *next;
	int class;
	size_t bytes;
} buffer;

static buffer *kept[classes];
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;

// A thread keeps one buffer of each size to itself, until it ends.
static __thread buffer *own[classes];
static __thread int announced;
static pthread_key_t ending;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void keep(buffer *b) {
	pthread_mutex_lock(&guard);
	b->next = kept[b->class];
	kept[b->class] = b;
	pthread_mutex_unlock(&guard);
}

static void hand_over(void *mine) {
	buffer **list = mine;
	for (int c = 0; c < classes; c++) {
		if (list[c]) keep(list[c]);
		list[c] = 0;
	}
}

static void prepare(void) { pthread_key_create(&ending, hand_over); }

static int class_of(size_t bytes, size_t *rounded) {
	size_t size = 4096;
	int c = 0;
	while (size < bytes) {
		size_t quarter = size / 4;
		for (int i = 1; i <= 4; i++) {
			c++;
			if (size + i * quarter >= bytes) {
				*rounded = size + i * quarter;
				return c;
			}
		}
		size *= 2;
	}
	*rounded = size;
	return c;
}

void *vigie_take(size_t bytes) {
	size_t size;
	int c = class_of(bytes + header, &size);
	if (c >= classes) abort();
	if (own[c]) {
		buffer *b = own[c];
		own[c] = 0;
		return (char *)b + header;
	}
	pthread_mutex_lock(&guard);
	buffer *b = kept[c];
	if (b) kept[c] = b->next;
	pthread_mutex_unlock(&guard);
	if (!b) {
		size_t align = size >= (2 << 20) ? 2 << 20 : 4096;
		size = (size + align - 1) / align * align;
		b = aligned_alloc(align, size);
		if (!b) abort(); // as Go does when memory ends
		if (align > 4096) madvise(b, size, MADV_HUGEPAGE);
		b->class = c;
		b->bytes = size;
	}
	return (char *)b + header;
}

void vigie_give(void *p) {
	if (!p) return;
	buffer *b = (buffer *)((char *)p - header);
	if (own[b->class]) {
		keep(b);
		return;
	}
	own[b->class] = b;
	if (!announced) {
		announced = 1;
		pthread_once(&once, prepare);
		pthread_setspecific(ending, own);
	}
}

// The kernel must be asked for the tile registers' state, once for the process
// (Documentation/arch/x86/xstate.rst).
enum { request_component = 0x1023, tile_data = 18 };

int vigie_available(void) {
	__builtin_cpu_init();
	if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
	    !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("fma"))
		return 0;
	unsigned a, b, c, d;
	__asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
	if (!(d >> 22 & 1) || !(d >> 24 & 1)) return 1; // AMX-BF16, AMX-TILE
	return syscall(SYS_arch_prctl, request_component, tile_data) == 0 ? 2 : 1;
}

#else

int vigie_available(void) { return 0; }

#endif
