// Package kernel has the few operators that training needs faster than ONNX
// Runtime computes them: convolution with its gradients, matrix products,
// normalisation and max pooling with their gradients, and the AdamW update.
//
// They are written in C for x86-64 processors that have AVX-512, and are given to
// ONNX Runtime as custom operators in the domain "vigie". Elsewhere they are not
// there, [Prepare] says why, and the same graphs run on standard operators.
//
// A graph says in how many terms they shall compute (autodiff.Request.Kernels).
// One term is float32 as it is (single.h). Two and three need AMX besides (Intel
// from the fourth generation of Xeon, 2023), which multiplies bfloat16 numbers
// sixteen times as fast as AVX-512 multiplies float32: each number is split into
// bfloat16 terms, and the products of the terms are added up (split.h). With three
// terms the result is as near as float32 arithmetic gets, with two a product may
// err by 3·2⁻¹⁶ of itself, which averages to 4·10⁻⁶ of a sum's norm. There
// infinities turn into NaN when they are split, and numbers below 2⁻¹²⁶ count as
// 0.
//
// The package is part of package engine, through which everybody else uses it.
package kernel

/*
#cgo CFLAGS: -O3 -Wall
#cgo LDFLAGS: -lm
#cgo linux LDFLAGS: -ldl -lpthread
#include <stdlib.h>

int vigie_terms(void);
const char *vigie_prepare(const char *path);
int vigie_register(void *options);
void vigie_adamw(long n, float *w, const float *g, float *m, float *v, float b1, float n1, float b2, float n2, float keep, float size, float correct, float epsilon);
*/
import "C"

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"
)

// Domain is the operators' domain.
const Domain = "vigie"

// Variable names the environment variable that turns the kernels off when it is
// "off", to compare or to run as on a machine without them.
const Variable = "VIGIE_KERNELS"

// ErrAbsent says that the kernels cannot be used here. The message says why.
var ErrAbsent = errors.New("the training kernels are not available")

var prepared struct {
	once sync.Once
	err  error
}

// Prepare readies the operators for the ONNX Runtime whose shared library was
// loaded from path. Only the first call does anything; all return its result:
// nil or ErrAbsent with the reason.
func Prepare(path string) error {
	prepared.once.Do(func() {
		if os.Getenv(Variable) == "off" {
			prepared.err = fmt.Errorf("kernel: %w: %s is off", ErrAbsent, Variable)
			return
		}
		name := C.CString(path)
		defer C.free(unsafe.Pointer(name))
		if reason := C.vigie_prepare(name); reason != nil {
			prepared.err = fmt.Errorf("kernel: %w: %s", ErrAbsent, C.GoString(reason))
		}
	})
	return prepared.err
}

// Terms is the most terms that graphs can ask for here: 3 with AMX, 1 without, 0
// before Prepare has succeeded.
func Terms() int { return int(C.vigie_terms()) }

// Register makes the operators known to a session that is about to be opened.
// options is the C pointer to its OrtSessionOptions. Prepare must have succeeded.
func Register(options unsafe.Pointer) error {
	if C.vigie_register(options) != 0 {
		return errors.New("kernel: registering operators: the runtime refused")
	}
	return nil
}

// Moments are the numbers of one AdamW step: m ← Beta1·m + Rest1·g,
// v ← Beta2·v + Rest2·g², w ← Keep·w - Size·m/(√(Correct·v) + Epsilon).
type Moments struct {
	Beta1, Rest1, Beta2, Rest2 float32
	Keep                       float32 // 1 - learning rate · weight decay
	Size, Correct, Epsilon     float32
}

// AdamW takes one step. The slices have the same length. Prepare must have
// succeeded.
func AdamW(s Moments, w, g, m, v []float32) {
	if len(g) != len(w) || len(m) != len(w) || len(v) != len(w) {
		panic(fmt.Sprintf("kernel: AdamW of %d weights with %d gradients and %d, %d moments", len(w), len(g), len(m), len(v)))
	}
	if len(w) == 0 {
		return
	}
	at := func(s []float32) *C.float { return (*C.float)(unsafe.Pointer(unsafe.SliceData(s))) }
	C.vigie_adamw(C.long(len(w)), at(w), at(g), at(m), at(v), C.float(s.Beta1), C.float(s.Rest1), C.float(s.Beta2), C.float(s.Rest2),
		C.float(s.Keep), C.float(s.Size), C.float(s.Correct), C.float(s.Epsilon))
}
