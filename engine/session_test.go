package engine_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

var batch = onnx.Dim{Value: -1, Param: "batch"}

// linear is y = relu(x·w + b) with x [batch,2], w [[1,-1,0],[2,0,-3]], b [0,0,1].
func linear(t testing.TB) *onnx.Model {
	t.Helper()
	b := onnx.NewBuilder(17)
	b.Name("linear")
	x := b.Input("x", onnx.Float, batch, onnx.Dim{Value: 2})
	w := b.Weight("w", []int64{2, 3}, []float32{1, -1, 0, 2, 0, -3})
	bias := b.Weight("b", []int64{3}, []float32{0, 0, 1})
	z := b.Op("Gemm", []string{x, w, bias})
	b.Node(&onnx.Node{OpType: "Relu", Inputs: []string{z}, Outputs: []string{"y"}}, 1)
	b.Node(&onnx.Node{OpType: "ReduceSum", Inputs: []string{"y", b.Ints("axes", 0, 1)}, Outputs: []string{"sum"}, Attributes: []onnx.Attribute{onnx.IntAttribute("keepdims", 0)}}, 1)
	b.Output("y", onnx.Float, batch, onnx.Dim{Value: 3})
	b.Output("sum", onnx.Float)
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func open(t testing.TB, m *onnx.Model, o engine.Options) engine.Session {
	t.Helper()
	if err := engine.Ready(); err != nil {
		if errors.Is(err, engine.ErrNoRuntime) {
			t.Skipf("SKIPPED, NOTHING PROVED: %v", err)
		}
		t.Fatal(err)
	}
	s, err := engine.Open(m, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestAGraphGivesTheValuesWorkedOutByHand(t *testing.T) {
	s := open(t, linear(t), engine.Options{})
	out, err := s.Run(context.Background(), map[string]engine.Tensor{"x": engine.Float32([]int64{2, 2}, []float32{1, 1, -1, 2})})
	if err != nil {
		t.Fatal(err)
	}
	y, err := engine.Values[float32](out["y"])
	if err != nil {
		t.Fatal(err)
	}
	// [1,1]·w+b = [3,-1,-2]; [-1,2]·w+b = [3,1,-5].
	if want := []float32{3, 0, 0, 3, 1, 0}; !slices.Equal(y, want) || !slices.Equal(out["y"].Shape, []int64{2, 3}) {
		t.Errorf("y = %v of shape %v, want %v", y, out["y"].Shape, want)
	}
	sum, err := engine.Values[float32](out["sum"])
	if err != nil {
		t.Fatal(err)
	}
	if len(sum) != 1 || sum[0] != 7 || len(out["sum"].Shape) != 0 {
		t.Errorf("sum = %v of shape %v, want 7, a scalar", sum, out["sum"].Shape)
	}
}

func TestOnlyTheOutputsAskedForComeBack(t *testing.T) {
	x := map[string]engine.Tensor{"x": engine.Float32([]int64{1, 2}, []float32{1, 1})}
	s := open(t, linear(t), engine.Options{})
	out, err := s.Run(context.Background(), x, "sum")
	if err != nil || len(out) != 1 || out["sum"].Data == nil {
		t.Errorf("Run asked for sum gives %v, %v", out, err)
	}
	only := open(t, linear(t), engine.Options{Outputs: []string{"y"}, Dims: map[string]int64{"batch": 1}})
	if got := fmt.Sprint(only.Outputs()); got != "[float[1,3]]" {
		t.Errorf("a session opened for y declares %s", got)
	}
	if out, err := only.Run(context.Background(), x); err != nil || len(out) != 1 {
		t.Errorf("Run of a session opened for y gives %v, %v", out, err)
	}
	if _, err := engine.Open(linear(t), engine.Options{Outputs: []string{"z"}}); !errors.Is(err, engine.ErrInput) {
		t.Errorf("opening for an unknown output gives %v", err)
	}
}

func TestABindingReusesItsBuffers(t *testing.T) {
	s := open(t, linear(t), engine.Options{Threads: 1})
	x, y, sum := make([]float32, 4), make([]float32, 6), make([]float32, 1)
	b, err := s.Bind(map[string]engine.Tensor{"x": engine.Float32([]int64{2, 2}, x)},
		map[string]engine.Tensor{"y": engine.Float32([]int64{2, 3}, y), "sum": engine.Float32(nil, sum)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		copy(x, []float32{float32(i), 0, 0, float32(i)})
		if err := b.Run(context.Background()); err != nil {
			t.Fatal(err)
		}
		v := float32(i)
		if want := []float32{v, 0, 1, 2 * v, 0, max(0, 1-3*v)}; !slices.Equal(y, want) {
			t.Errorf("run %d: y = %v, want %v", i, y, want)
		}
		if want := v + 1 + 2*v + max(0, 1-3*v); sum[0] != want {
			t.Errorf("run %d: sum = %v, want %v", i, sum[0], want)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Run(context.Background()); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("running a closed binding gives %v", err)
	}
}

func TestBindingsOfOneSessionRunAtOnce(t *testing.T) {
	s := open(t, linear(t), engine.Options{})
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() {
			x, y := make([]float32, 2), make([]float32, 3)
			b, err := s.Bind(map[string]engine.Tensor{"x": engine.Float32([]int64{1, 2}, x)},
				map[string]engine.Tensor{"y": engine.Float32([]int64{1, 3}, y), "sum": engine.Float32(nil, make([]float32, 1))})
			if err != nil {
				t.Error(err)
				return
			}
			defer b.Close()
			for n := range 500 {
				x[0] = float32(1000*i + n)
				if err := b.Run(context.Background()); err != nil {
					t.Error(err)
					return
				}
				if y[0] != x[0] {
					t.Errorf("binding %d got %v, want %v", i, y[0], x[0])
				}
			}
		})
	}
	group.Wait()
}

func TestAForgottenBindingDoesNotEndTheProcess(t *testing.T) {
	s := open(t, linear(t), engine.Options{})
	for range 10 {
		_, err := s.Bind(map[string]engine.Tensor{"x": engine.Float32([]int64{1, 2}, make([]float32, 2))},
			map[string]engine.Tensor{"y": engine.Float32([]int64{1, 3}, make([]float32, 3)), "sum": engine.Float32(nil, make([]float32, 1))})
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		runtime.GC()
		time.Sleep(10 * time.Millisecond) // finalizers run apart
	}
}

func TestAFileOpensAsItsModelDoes(t *testing.T) {
	open(t, linear(t), engine.Options{})
	data, err := linear(t).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	x := map[string]engine.Tensor{"x": engine.Float32([]int64{1, 2}, []float32{1, 1})}
	for _, options := range []engine.Options{{}, {Outputs: []string{"sum"}}} {
		s, err := engine.OpenBytes(data, options)
		if err != nil {
			t.Fatal(err)
		}
		out, err := s.Run(context.Background(), x, "sum")
		if sum, _ := engine.Values[float32](out["sum"]); err != nil || sum[0] != 3 {
			t.Errorf("%v: %v, %v", options, out, err)
		}
		s.Close()
	}
	if _, err := engine.OpenBytes(data[:20], engine.Options{}); !errors.Is(err, onnx.ErrCorrupt) {
		t.Errorf("a cut file gives %v", err)
	}
	if _, err := engine.Open(&onnx.Model{}, engine.Options{}); !errors.Is(err, onnx.ErrInvalid) {
		t.Errorf("a model without a graph gives %v", err)
	}
}

func TestAGraphThatTheRuntimeCannotRunIsAnErrorAtOpen(t *testing.T) {
	open(t, linear(t), engine.Options{})
	b := onnx.NewBuilder(17)
	b.Output(b.Op("NoSuchOperator", []string{b.Input("x", onnx.Float, batch)}), onnx.Float, batch)
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := engine.Open(m, engine.Options{}); err == nil || !strings.Contains(err.Error(), "NoSuchOperator") {
		t.Errorf("error %v", err)
	}
	if _, err := engine.Open(linear(t), engine.Options{Threads: -1}); err == nil {
		t.Error("a negative number of threads is taken")
	}
	m.Graph.Inputs[0].Type = onnx.Float16
	if _, err := engine.Open(m, engine.Options{}); err == nil || !strings.Contains(err.Error(), "float16") {
		t.Errorf("an input of half precision gives %v", err)
	}
}

func TestWrongInputsAreNamedWithWhatIsWanted(t *testing.T) {
	s := open(t, linear(t), engine.Options{})
	for name, test := range map[string]struct {
		inputs map[string]engine.Tensor
		says   string
	}{
		"missing":     {map[string]engine.Tensor{}, `input "x" is missing`},
		"unknown":     {map[string]engine.Tensor{"x": engine.Float32([]int64{1, 2}, make([]float32, 2)), "q": {}}, `input "q" is not one`},
		"wrong size":  {map[string]engine.Tensor{"x": engine.Float32([]int64{1, 3}, make([]float32, 3))}, `is float[1,3]: does not fit the graph: want float[batch,2]`},
		"wrong rank":  {map[string]engine.Tensor{"x": engine.Float32([]int64{2}, make([]float32, 2))}, `is float[2]`},
		"wrong type":  {map[string]engine.Tensor{"x": engine.Float64([]int64{1, 2}, make([]float64, 2))}, `is double[1,2]`},
		"short data":  {map[string]engine.Tensor{"x": engine.Float32([]int64{2, 2}, make([]float32, 3))}, `has 4 elements, the data 3`},
		"no data":     {map[string]engine.Tensor{"x": {Shape: []int64{1, 2}}}, `data of type <nil>`},
		"negative":    {map[string]engine.Tensor{"x": engine.Float32([]int64{-1, 2}, nil)}, `negative`},
		"overflowing": {map[string]engine.Tensor{"x": engine.Float32([]int64{math.MaxInt64, 2}, nil)}, `too many elements`},
	} {
		_, err := s.Run(context.Background(), test.inputs)
		if !errors.Is(err, engine.ErrInput) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v\nwant ErrInput and %q", name, err, test.says)
		}
		if strings.Count(fmt.Sprint(err), "linear") != 1 {
			t.Errorf("%s: %v\ndoes not name the graph once", name, err)
		}
	}
}

func TestANamedDimensionHasOneSizePerRun(t *testing.T) {
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, batch)
	y := b.Input("y", onnx.Float, batch)
	b.Output(b.Op("Add", []string{x, y}), onnx.Float, batch)
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	_, err = open(t, m, engine.Options{}).Run(context.Background(), map[string]engine.Tensor{
		"x": engine.Float32([]int64{2}, make([]float32, 2)), "y": engine.Float32([]int64{1}, make([]float32, 1))})
	if !errors.Is(err, engine.ErrInput) || !strings.Contains(err.Error(), `"batch" is already 2`) {
		t.Errorf("two sizes of one dimension give %v", err)
	}
}

func TestEveryElementTypePassesThrough(t *testing.T) {
	for _, in := range []engine.Tensor{
		engine.Float32([]int64{2}, []float32{1.5, -2}), engine.Float64([]int64{2}, []float64{1.5, -2}),
		engine.Int64([]int64{2}, []int64{1 << 40, -2}), engine.Int32([]int64{2}, []int32{1 << 20, -2}),
		engine.Uint8([]int64{2}, []uint8{1, 255}), engine.Int8([]int64{2}, []int8{1, -128}),
		engine.Bool([]int64{2}, []bool{true, false}), engine.Float32([]int64{0, 3}, nil), engine.Int64(nil, []int64{7}),
	} {
		b := onnx.NewBuilder(17)
		shape := make([]onnx.Dim, len(in.Shape))
		for i := range shape {
			shape[i] = onnx.Dim{Value: in.Shape[i]}
		}
		x := b.Input("x", in.Type(), shape...)
		b.Output(b.Op("Identity", []string{x}), in.Type(), shape...)
		m, err := b.Build()
		if err != nil {
			t.Fatal(err)
		}
		out, err := open(t, m, engine.Options{}).Run(context.Background(), map[string]engine.Tensor{"x": in})
		if err != nil {
			t.Errorf("%v: %v", in, err)
			continue
		}
		got := out["Identity"]
		if got.String() != in.String() || in.Len() > 0 && fmt.Sprint(got.Data) != fmt.Sprint(in.Data) {
			t.Errorf("%v %v comes back as %v %v", in, in.Data, got, got.Data)
		}
	}
}

// slow is a graph that takes seconds: a chain of products of large matrices.
func slow(t testing.TB) (*onnx.Model, map[string]engine.Tensor) {
	const n = 512
	b := onnx.NewBuilder(17)
	x := b.Input("x", onnx.Float, onnx.Dim{Value: n}, onnx.Dim{Value: n})
	y := x
	for range 2000 {
		y = b.Op("MatMul", []string{y, x})
	}
	b.Output(y, onnx.Float, onnx.Dim{Value: n}, onnx.Dim{Value: n})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m, map[string]engine.Tensor{"x": engine.Float32([]int64{n, n}, make([]float32, n*n))}
}

func TestAContextThatEndsStopsARun(t *testing.T) {
	m, x := slow(t)
	s := open(t, m, engine.Options{Threads: 1}) // on many processors it would not outlast anything
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Run(ended, x); !errors.Is(err, context.Canceled) {
		t.Errorf("a run with an ended context gives %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	// A run that went on to its end would give its outputs and no error.
	if _, err := s.Run(ctx, x); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a run that outlasts its context gives %v", err)
	}
}

func TestASessionServesManyGoroutinesAndCloseWaitsForThem(t *testing.T) {
	if err := engine.Ready(); err != nil {
		t.Skipf("SKIPPED, NOTHING PROVED: %v", err)
	}
	s, err := engine.Open(linear(t), engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var group sync.WaitGroup
	for i := range 8 {
		group.Go(func() {
			for n := range 200 {
				v := float32(i*1000 + n)
				out, err := s.Run(ctx, map[string]engine.Tensor{"x": engine.Float32([]int64{1, 2}, []float32{v, 0})}, "y")
				if errors.Is(err, engine.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				if y, _ := engine.Values[float32](out["y"]); y[0] != v {
					t.Errorf("goroutine %d got %v, want %v", i, y[0], v)
				}
				if i == 0 && n == 100 {
					if err := s.Close(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	group.Wait()
	if err := s.Close(); err != nil {
		t.Errorf("closing twice gives %v", err)
	}
	if _, err := s.Run(ctx, map[string]engine.Tensor{"x": engine.Float32([]int64{1, 2}, make([]float32, 2))}); !errors.Is(err, engine.ErrClosed) {
		t.Errorf("running a closed session gives %v", err)
	}
}

func BenchmarkOneCallOfASession(b *testing.B) {
	s := open(b, linear(b), engine.Options{Threads: 1})
	x := map[string]engine.Tensor{"x": engine.Float32([]int64{1, 2}, []float32{1, 1})}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for name, ctx := range map[string]context.Context{"background": context.Background(), "cancellable": ctx} {
		b.Run("run/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.Run(ctx, x); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("bound/"+name, func(b *testing.B) {
			bound, err := s.Bind(x, map[string]engine.Tensor{
				"y": engine.Float32([]int64{1, 3}, make([]float32, 3)), "sum": engine.Float32(nil, make([]float32, 1))})
			if err != nil {
				b.Fatal(err)
			}
			defer bound.Close()
			b.ReportAllocs()
			for b.Loop() {
				if err := bound.Run(ctx); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
