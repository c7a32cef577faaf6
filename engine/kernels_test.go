package engine

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	ort "github.com/yalue/onnxruntime_go"
	"pgregory.net/rapid"

	"github.com/vigie/vigie/engine/kernel"
	"github.com/vigie/vigie/onnx"
)

func needKernels(t testing.TB) {
	t.Helper()
	if err := Kernels(); err != nil {
		t.Skip("skipped: ", err)
	}
}

// ONNX Runtime's functions are called by their place in a table, which only the
// header tells.
func TestTheRuntimesFunctionsAreWhereItsHeaderPutsThem(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/yalue/onnxruntime_go").Output()
	if err != nil {
		t.Fatal(err)
	}
	header, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "onnxruntime_c_api.h"))
	if err != nil {
		t.Fatal(err)
	}
	_, body, ok := strings.Cut(string(header), "\nstruct OrtApi {")
	if !ok {
		t.Fatal("the header has no OrtApi")
	}
	body = regexp.MustCompile(`(?s)/\*.*?\*/|//[^\n]*`).ReplaceAllString(body, "")
	place, i := map[string]int{}, 0
	for _, m := range regexp.MustCompile(`ORT_API2_STATUS\((\w+),|ORT_CLASS_RELEASE\((\w+)\)|ORT_API_CALL\*\s*(\w+)\)|\bORT_API_T\(\w+, (\w+)`).FindAllStringSubmatch(body, -1) {
		name := m[1] + m[3] + m[4]
		if m[2] != "" {
			name = "Release" + m[2]
		}
		if _, twice := place[name]; !twice {
			place[name] = i
		}
		i++
	}
	source, err := os.ReadFile("kernel/runtime.h")
	if err != nil {
		t.Fatal(err)
	}
	slots := regexp.MustCompile(`slot_(\w+) = (\d+)`).FindAllStringSubmatch(string(source), -1)
	if len(slots) < 10 {
		t.Fatalf("runtime.h names %d places", len(slots))
	}
	for _, s := range slots {
		want, ok := place[s[1]]
		if got, _ := strconv.Atoi(s[2]); !ok || got != want {
			t.Errorf("%s is called at place %d, the header has it at %d (found: %v)", s[1], got, want, ok)
		}
	}
}

func TestTheKernelsAreReachedThroughTheBinding(t *testing.T) {
	options := reflect.TypeFor[ort.SessionOptions]()
	if options.NumField() != 1 || options.Field(0).Type.Kind() != reflect.Pointer || options.Field(0).Offset != 0 {
		t.Fatalf("the binding's session options are %v, no longer one pointer: change addKernels", options)
	}
}

// kernelRun runs one operator of the kernels on float32 inputs; nil is one that
// is left out.
func kernelRun(t testing.TB, threads int, op string, inputs []*Tensor, outputs int, attrs ...onnx.Attribute) []Tensor {
	t.Helper()
	graph := &onnx.Graph{Name: op}
	given, node := map[string]Tensor{}, &onnx.Node{Name: op, OpType: op, Domain: kernel.Domain, Attributes: attrs}
	for i, in := range inputs {
		if in == nil {
			node.Inputs = append(node.Inputs, "")
			continue
		}
		name := fmt.Sprint("in", i)
		node.Inputs = append(node.Inputs, name)
		typ := onnx.Float
		if _, ok := in.Data.([]uint8); ok {
			typ = onnx.Uint8
		}
		graph.Inputs = append(graph.Inputs, onnx.Value{Name: name, Type: typ, Shape: onnx.Fixed(in.Shape...)})
		given[name] = *in
	}
	for i := range outputs {
		name := fmt.Sprint("out", i)
		node.Outputs = append(node.Outputs, name)
		typ := onnx.Float
		if op == "MaxPool" && i == 1 {
			typ = onnx.Uint8
		}
		graph.Outputs = append(graph.Outputs, onnx.Value{Name: name, Type: typ})
	}
	graph.Nodes = []*onnx.Node{node}
	session, err := Open(&onnx.Model{IRVersion: 8, Opsets: map[string]int64{"": 17, kernel.Domain: 1}, Graph: graph}, Options{Threads: threads})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	out, err := session.Run(context.Background(), given)
	if err != nil {
		t.Fatal(err)
	}
	var all []Tensor
	for i := range outputs {
		all = append(all, out[fmt.Sprint("out", i)])
	}
	return all
}

func noise(rng *rand.Rand, shape ...int64) *Tensor {
	size := int64(1)
	for _, d := range shape {
		size *= d
	}
	values := make([]float32, size)
	for i := range values {
		values[i] = float32(rng.NormFloat64())
	}
	v := Float32(shape, values)
	return &v
}

// sums are results in float64 arithmetic, with the sum of the squares of all that
// was added up: errors are measured by it, for what a sum loses by cancellation
// is not the kernel's doing.
type sums struct {
	values  []float64
	squares float64
}

func sumsOf(n int64) *sums { return &sums{values: make([]float64, n)} }

func (s *sums) add(at int64, v float64) {
	s.values[at] += v
	s.squares += v * v
}

func (s *sums) check(t testing.TB, what string, got Tensor, most float64) {
	t.Helper()
	values := got.Data.([]float32)
	if len(values) != len(s.values) {
		t.Fatalf("%s has %d values, want %d", what, len(values), len(s.values))
	}
	var e float64
	for i, w := range s.values {
		e += (float64(values[i]) - w) * (float64(values[i]) - w)
	}
	if !(math.Sqrt(e) <= most*math.Sqrt(s.squares)+1e-12) {
		t.Fatalf("%s differs by %.3g of the norm of its terms, more than %g", what, math.Sqrt(e/s.squares), most)
	}
}

// geometryOf is a convolution for the reference below.
type geometryOf struct {
	n, c, h, w, k, r, s, strideH, strideW, dilationH, dilationW, top, left, bottom, right, groups int64
}

func (g geometryOf) out() (h, w int64) {
	return (g.h+g.top+g.bottom-g.dilationH*(g.r-1)-1)/g.strideH + 1, (g.w+g.left+g.right-g.dilationW*(g.s-1)-1)/g.strideW + 1
}

func (g geometryOf) attribute(terms, relu, h, w int64) onnx.Attribute {
	return onnx.IntsAttribute("geometry", g.strideH, g.strideW, g.dilationH, g.dilationW, g.top, g.left, g.bottom, g.right, g.groups, terms, relu, h, w)
}

// each calls f for every product that the convolution sums: output, weight and
// input positions.
func (g geometryOf) each(f func(image, y, w, x int64)) {
	oh, ow := g.out()
	cg, kg := g.c/g.groups, g.k/g.groups
	for n := range g.n {
		for k := range g.k {
			for a := range oh {
				for b := range ow {
					y := ((n*g.k+k)*oh+a)*ow + b
					for c := range cg {
						for i := range g.r {
							for j := range g.s {
								u, v := a*g.strideH+i*g.dilationH-g.top, b*g.strideW+j*g.dilationW-g.left
								if u < 0 || v < 0 || u >= g.h || v >= g.w {
									continue
								}
								f(n, y, ((k*cg+c)*g.r+i)*g.s+j, ((n*g.c+k/kg*cg+c)*g.h+u)*g.w+v)
							}
						}
					}
				}
			}
		}
	}
}

// precision is what a product of so many terms must reach: for two the bound of
// kernel/split.h, which a lone product can meet; for one and three that of
// float32 sums.
var precision = map[int64]float64{1: 1e-6, 2: 3.0 / (1 << 16), 3: 1e-6}

// anyTerms is one of the numbers of terms that this processor can compute in.
func anyTerms(t *rapid.T) int64 { return rapid.Int64Range(1, int64(KernelTerms())).Draw(t, "terms") }

func TestConvolutionAndItsGradientsMatchFloat64(t *testing.T) {
	needKernels(t)
	rapid.Check(t, func(rt *rapid.T) {
		small := func(name string, from, to int) int64 { return int64(rapid.IntRange(from, to).Draw(rt, name)) }
		g := geometryOf{
			n: small("n", 1, 5), c: small("c", 1, 70), h: small("h", 1, 19), w: small("w", 1, 40), k: small("k", 1, 70),
			r: small("r", 1, 4), s: small("s", 1, 4), strideH: small("strideH", 1, 3), strideW: small("strideW", 1, 3),
			dilationH: small("dilationH", 1, 2), dilationW: small("dilationW", 1, 2), groups: 1,
			top: small("top", 0, 2), left: small("left", 0, 2), bottom: small("bottom", 0, 2), right: small("right", 0, 2),
		}
		switch rapid.SampledFrom([]string{"dense", "grouped", "depthwise"}).Draw(rt, "kind") {
		case "grouped":
			g.groups = 2
			g.c, g.k = (g.c+1)/2*2, (g.k+1)/2*2
		case "depthwise":
			g.c = max(2, g.c)
			g.groups, g.k = g.c, g.c
		}
		oh, ow := g.out()
		if g.h+g.top+g.bottom < g.dilationH*(g.r-1)+1 || g.w+g.left+g.right < g.dilationW*(g.s-1)+1 || oh < 1 || ow < 1 {
			rt.Skip("the kernel does not fit")
		}
		terms := anyTerms(rt)
		relu := small("relu", 0, 1)
		checkConvolution(t, g, terms, relu, rand.New(rand.NewPCG(uint64(small("seed", 0, 1000)), 0)))
	})
}

func checkConvolution(t testing.TB, g geometryOf, terms, relu int64, rng *rand.Rand) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Logf("%+v, %d terms, relu %d", g, terms, relu)
		}
	}()
	oh, ow := g.out()
	x, w, b := noise(rng, g.n, g.c, g.h, g.w), noise(rng, g.k, g.c/g.groups, g.r, g.s), noise(rng, g.k)
	dy, scale := noise(rng, g.n, g.k, oh, ow), noise(rng, g.n)
	xs, ws, dys, scales := x.Data.([]float32), w.Data.([]float32), dy.Data.([]float32), scale.Data.([]float32)

	want := sumsOf(int64(len(dys)))
	for i := range dys {
		want.add(int64(i), float64(b.Data.([]float32)[int64(i)/(oh*ow)%g.k]))
	}
	g.each(func(_, y, w, x int64) { want.add(y, float64(ws[w])*float64(xs[x])) })
	if relu == 1 {
		for i, v := range want.values {
			want.values[i] = max(0, v)
		}
	}
	y := kernelRun(t, 2, "Conv", []*Tensor{x, w, b}, 1, g.attribute(terms, relu, 0, 0))[0]
	want.check(t, "the convolution", y, precision[terms])

	// The gate is what the kernel computed, so that rounding moves none.
	gate := (*Tensor)(nil)
	d := make([]float64, len(dys))
	for i, v := range dys {
		if relu == 0 || y.Data.([]float32)[i] > 0 {
			d[i] = float64(v)
		}
	}
	if relu == 1 {
		gate = &y
	}
	dx, dw, db := sumsOf(int64(len(xs))), sumsOf(int64(len(ws))), sumsOf(g.k)
	scaledW, scaledB := sumsOf(int64(len(ws))), sumsOf(g.k)
	rows, biasRows := make([]*sums, g.n), make([]*sums, g.n)
	for i := range rows {
		rows[i], biasRows[i] = sumsOf(int64(len(ws))), sumsOf(g.k)
	}
	g.each(func(n, y, w, x int64) {
		dx.add(x, d[y]*float64(ws[w]))
		dw.add(w, d[y]*float64(xs[x]))
		scaledW.add(w, d[y]*float64(xs[x])*float64(scales[n]))
		rows[n].add(w, d[y]*float64(xs[x]))
	})
	for i, v := range d {
		n, k := int64(i)/(oh*ow)/g.k, int64(i)/(oh*ow)%g.k
		db.add(k, v)
		scaledB.add(k, v*float64(scales[n]))
		biasRows[n].add(k, v)
	}
	out := kernelRun(t, 2, "ConvInputGradient", []*Tensor{w, dy, gate}, 1, g.attribute(terms, 0, g.h, g.w))
	dx.check(t, "the input gradient", out[0], precision[terms])
	out = kernelRun(t, 2, "ConvWeightGradient", []*Tensor{x, dy, gate}, 2, g.attribute(terms, 0, g.r, g.s))
	dw.check(t, "the weight gradient", out[0], precision[terms])
	db.check(t, "the bias gradient", out[1], 1e-6)
	out = kernelRun(t, 2, "ConvWeightGradient", []*Tensor{x, dy, gate, scale}, 2, g.attribute(terms, 0, g.r, g.s))
	scaledW.check(t, "the scaled weight gradient", out[0], precision[terms])
	scaledB.check(t, "the scaled bias gradient", out[1], 1e-6)
	if g.groups == 1 || g.groups < g.c {
		out = kernelRun(t, 2, "ConvWeightRows", []*Tensor{x, dy, gate}, 4, g.attribute(terms, 1, g.r, g.s))
		for n := range rows {
			part := func(of Tensor) Tensor {
				values, size := of.Data.([]float32), int64(len(of.Data.([]float32)))/g.n
				return Float32([]int64{size}, values[int64(n)*size:int64(n+1)*size])
			}
			rows[n].check(t, "an image's weight gradient", part(out[0]), precision[terms])
			biasRows[n].check(t, "an image's bias gradient", part(out[1]), 1e-6)
		}
	}
	norms, biases := sumsOf(g.n), sumsOf(g.n)
	for n := range rows {
		for _, v := range rows[n].values {
			norms.values[n] += v * v
		}
		for _, v := range biasRows[n].values {
			biases.values[n] += v * v
		}
		// Of a squared norm, what the gradient's own terms could lose.
		norms.squares += rows[n].squares * rows[n].squares
		biases.squares += biasRows[n].squares * biasRows[n].squares
	}
	if len(out) == 4 {
		norms.check(t, "the squared norms beside the images' weight gradients", out[2], 4*precision[terms])
		biases.check(t, "the squared norms beside the images' bias gradients", out[3], 1e-5)
	}
	out = kernelRun(t, 2, "ConvWeightNorms", []*Tensor{x, dy, gate}, 2, g.attribute(terms, 1, g.r, g.s))
	norms.check(t, "the squared norms of the images' weight gradients", out[0], 4*precision[terms])
	biases.check(t, "the squared norms of the images' bias gradients", out[1], 1e-5)
}

// Sizes at which the kernels change their ways: planes in bands, images
// together, taps as channels, filters in parts.
func TestConvolutionMatchesFloat64AtTheSizesOfRealNetworks(t *testing.T) {
	needKernels(t)
	for _, g := range []geometryOf{
		{n: 1, c: 3, h: 97, w: 130, k: 20, r: 7, s: 7, strideH: 2, strideW: 2, dilationH: 1, dilationW: 1, top: 3, left: 3, bottom: 3, right: 3, groups: 1},
		{n: 1, c: 64, h: 90, w: 91, k: 33, r: 3, s: 3, strideH: 1, strideW: 1, dilationH: 1, dilationW: 1, top: 1, left: 1, bottom: 1, right: 1, groups: 1},
		{n: 40, c: 200, h: 2, w: 2, k: 100, r: 3, s: 3, strideH: 1, strideW: 1, dilationH: 1, dilationW: 1, top: 1, left: 1, bottom: 1, right: 1, groups: 1},
		{n: 8, c: 130, h: 14, w: 14, k: 64, r: 1, s: 1, strideH: 2, strideW: 2, dilationH: 1, dilationW: 1, groups: 1},
		{n: 3, c: 40, h: 33, w: 29, k: 40, r: 5, s: 5, strideH: 2, strideW: 2, dilationH: 1, dilationW: 1, top: 2, left: 2, bottom: 2, right: 2, groups: 40},
	} {
		checkConvolution(t, g, int64(KernelTerms()), 1, rand.New(rand.NewPCG(1, 0)))
	}
}

// A record of several views has the norm of the sum of their gradients.
func TestNormsOfRecordsWithSeveralViews(t *testing.T) {
	needKernels(t)
	rng := rand.New(rand.NewPCG(3, 0))
	g := geometryOf{n: 6, c: 5, h: 9, w: 8, k: 7, r: 3, s: 3, strideH: 1, strideW: 1, dilationH: 1, dilationW: 1, top: 1, left: 1, bottom: 1, right: 1, groups: 1}
	x, dy := noise(rng, g.n, g.c, g.h, g.w), noise(rng, g.n, g.k, g.h, g.w)
	rows := []*sums{sumsOf(g.k * g.c * 9), sumsOf(g.k * g.c * 9)}
	g.each(func(n, y, w, at int64) {
		rows[n/3].add(w, float64(dy.Data.([]float32)[y])*float64(x.Data.([]float32)[at]))
	})
	want := sumsOf(2)
	for i, row := range rows {
		for _, v := range row.values {
			want.add(int64(i), v*v)
		}
	}
	got := kernelRun(t, 1, "ConvWeightNorms", []*Tensor{x, dy}, 2, g.attribute(int64(KernelTerms()), 3, 3, 3))
	want.check(t, "the squared norms", got[0], 1e-6)
}

func TestMatrixProductsMatchFloat64(t *testing.T) {
	needKernels(t)
	rapid.Check(t, func(rt *rapid.T) {
		size := func(name string, to int) int64 { return int64(rapid.IntRange(1, to).Draw(rt, name)) }
		m, n, k, batch, terms := size("m", 90), size("n", 90), size("k", 140), size("batch", 3), anyTerms(rt)
		transA, transB := size("transA", 2)-1, size("transB", 2)-1
		shared := transA == 0 && rapid.Bool().Draw(rt, "shared")
		rng := rand.New(rand.NewPCG(uint64(size("seed", 1000)), 0))
		shape := func(rows, columns, transposed int64) []int64 {
			if transposed == 1 {
				return []int64{batch, columns, rows}
			}
			return []int64{batch, rows, columns}
		}
		sb := shape(k, n, transB)
		if shared {
			sb = sb[1:]
		}
		a, b := noise(rng, shape(m, k, transA)...), noise(rng, sb...)
		want := sumsOf(batch * m * n)
		for z := range batch {
			for i := range m {
				for j := range n {
					for p := range k {
						ia, ib := (z*m+i)*k+p, (z*k+p)*n+j
						if transA == 1 {
							ia = (z*k+p)*m + i
						}
						if transB == 1 {
							ib = (z*n+j)*k + p
						}
						if shared {
							ib -= z * k * n
						}
						want.add((z*m+i)*n+j, float64(a.Data.([]float32)[ia])*float64(b.Data.([]float32)[ib]))
					}
				}
			}
		}
		got := kernelRun(t, 2, "MatMul", []*Tensor{a, b}, 1, onnx.IntsAttribute("geometry", transA, transB, terms))
		want.check(t, "the product", got[0], precision[terms])
	})
}

func TestTheNumberOfThreadsDoesNotChangeABit(t *testing.T) {
	needKernels(t)
	rng := rand.New(rand.NewPCG(5, 0))
	g := geometryOf{n: 7, c: 33, h: 20, w: 21, k: 50, r: 3, s: 3, strideH: 1, strideW: 1, dilationH: 1, dilationW: 1, top: 1, left: 1, bottom: 1, right: 1, groups: 1}
	x, w, dy := noise(rng, g.n, g.c, g.h, g.w), noise(rng, g.k, g.c, g.r, g.s), noise(rng, g.n, g.k, g.h, g.w)
	for op, inputs := range map[string][]*Tensor{"Conv": {x, w}, "ConvInputGradient": {w, dy}, "ConvWeightGradient": {x, dy}} {
		h, width, outputs := g.h, g.w, 1
		if op == "ConvWeightGradient" {
			h, width, outputs = g.r, g.s, 2
		}
		one := kernelRun(t, 1, op, inputs, outputs, g.attribute(int64(KernelTerms()), 0, h, width))[0].Data.([]float32)
		for range 3 {
			four := kernelRun(t, 4, op, inputs, outputs, g.attribute(int64(KernelTerms()), 0, h, width))[0].Data.([]float32)
			if !slices.Equal(one, four) {
				t.Fatalf("%s: one thread and four give different numbers", op)
			}
		}
	}
}

func TestNotANumberIsNotLost(t *testing.T) {
	needKernels(t)
	rng := rand.New(rand.NewPCG(6, 0))
	g := geometryOf{n: 1, c: 33, h: 6, w: 6, k: 5, r: 3, s: 3, strideH: 1, strideW: 1, dilationH: 1, dilationW: 1, top: 1, left: 1, bottom: 1, right: 1, groups: 1}
	x, w := noise(rng, g.n, g.c, g.h, g.w), noise(rng, g.k, g.c, g.r, g.s)
	for _, bad := range []float64{math.NaN(), math.Inf(1)} {
		x.Data.([]float32)[8] = float32(bad)
		y := kernelRun(t, 1, "Conv", []*Tensor{x, w}, 1, g.attribute(int64(KernelTerms()), 0, 0, 0))[0].Data.([]float32)
		if !math.IsNaN(float64(y[8])) && !math.IsInf(float64(y[8]), 0) {
			t.Errorf("%v at an input became %v at the output", bad, y[8])
		}
		p := kernelRun(t, 1, "MaxPool", []*Tensor{x}, 2, onnx.IntsAttribute("geometry", 2, 2, 2, 2, 0, 0, 6, 6, 3, 3))[0].Data.([]float32)
		if got := float64(p[1]); got == got && !math.IsInf(got, 1) { // place 8 is row 1, column 2
			t.Errorf("%v at an input became %v at the pool's output", bad, got)
		}
	}
}

func TestBadShapesAreErrors(t *testing.T) {
	needKernels(t)
	rng := rand.New(rand.NewPCG(6, 0))
	g := geometryOf{n: 1, c: 4, h: 6, w: 6, k: 5, r: 3, s: 3, strideH: 1, strideW: 1, dilationH: 1, dilationW: 1, groups: 1}
	graph := &onnx.Graph{Name: "bad", Inputs: []onnx.Value{
		{Name: "x", Type: onnx.Float, Shape: onnx.Fixed(1, 3, 6, 6)}, {Name: "w", Type: onnx.Float, Shape: onnx.Fixed(5, 4, 3, 3)}},
		Outputs: []onnx.Value{{Name: "y", Type: onnx.Float}},
		Nodes:   []*onnx.Node{{Name: "c", OpType: "Conv", Domain: kernel.Domain, Inputs: []string{"x", "w"}, Outputs: []string{"y"}, Attributes: []onnx.Attribute{g.attribute(int64(KernelTerms()), 0, 0, 0)}}},
	}
	session, err := Open(&onnx.Model{IRVersion: 8, Opsets: map[string]int64{"": 17, kernel.Domain: 1}, Graph: graph}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	_, err = session.Run(context.Background(), map[string]Tensor{"x": *noise(rng, 1, 3, 6, 6), "w": *noise(rng, 5, 4, 3, 3)})
	if err == nil || !strings.Contains(err.Error(), "do not make a convolution") {
		t.Errorf("three channels met filters of four: %v", err)
	}
}
