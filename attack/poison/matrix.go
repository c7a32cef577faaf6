package poison

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// errSingular says that a matrix has no inverse: examples without variation.
var errSingular = errors.New("the examples do not vary")

// multiplier computes a·bᵀ on the engine, which is many times faster than a loop.
type multiplier struct{ session engine.Session }

func newMultiplier() (*multiplier, error) {
	b := onnx.NewBuilder(17)
	b.Name("product")
	open := func(name string) onnx.Dim { return onnx.Dim{Value: -1, Param: name} }
	x := b.Input("a", onnx.Float, open("n"), open("k"))
	y := b.Input("b", onnx.Float, open("m"), open("k"))
	b.Node(&onnx.Node{OpType: "Gemm", Attributes: []onnx.Attribute{onnx.IntAttribute("transB", 1)}, Inputs: []string{x, y}, Outputs: []string{"product"}}, 1)
	b.Output("product", onnx.Float, open("n"), open("m"))
	m, err := b.Build()
	if err != nil {
		return nil, fmt.Errorf("poison: building a product: %w", err)
	}
	s, err := engine.Open(m, engine.Options{Threads: 1})
	if err != nil {
		return nil, fmt.Errorf("poison: %w", err)
	}
	return &multiplier{s}, nil
}

// transposed returns a [n,k] times the transpose of b [m,k], as [n,m].
func (m *multiplier) transposed(ctx context.Context, a, b []float32, k int) ([]float32, error) {
	out, err := m.session.Run(ctx, map[string]engine.Tensor{
		"a": engine.Float32([]int64{int64(len(a) / k), int64(k)}, a),
		"b": engine.Float32([]int64{int64(len(b) / k), int64(k)}, b),
	})
	if err != nil {
		return nil, fmt.Errorf("poison: multiplying: %w", err)
	}
	return engine.Values[float32](out["product"])
}

func (m *multiplier) close() error { return m.session.Close() }

func square(n int) [][]float64 {
	flat := make([]float64, n*n)
	rows := make([][]float64, n)
	for i := range rows {
		rows[i] = flat[i*n : (i+1)*n]
	}
	return rows
}

// cholesky replaces the lower triangle of a positive definite matrix by its
// factor L, A = L·Lᵀ.
func cholesky(a [][]float64) error {
	for i := range a {
		for j := 0; j <= i; j++ {
			sum := a[i][j]
			x, y := a[i][:j], a[j][:j]
			for k, v := range x {
				sum -= v * y[k]
			}
			if i != j {
				a[i][j] = sum / a[j][j]
				continue
			}
			if !(sum > 1e-300) {
				return errSingular
			}
			a[i][i] = math.Sqrt(sum)
		}
	}
	return nil
}

// inverted returns the inverse of a lower triangle.
func inverted(l [][]float64) [][]float64 {
	n := len(l)
	out := square(n)
	for i := range n {
		out[i][i] = 1 / l[i][i]
		for k := range i {
			if w := l[i][k]; w != 0 {
				for j, v := range out[k][:k+1] {
					out[i][j] -= w * v * out[i][i]
				}
			}
		}
	}
	return out
}

// solve returns x of A·x = b, given A's factor L.
func solve(l [][]float64, b []float64) []float64 {
	n := len(b)
	x := make([]float64, n)
	for i := range n {
		sum := b[i]
		for k := range i {
			sum -= l[i][k] * x[k]
		}
		x[i] = sum / l[i][i]
	}
	for i := n - 1; i >= 0; i-- {
		sum := x[i]
		for k := i + 1; k < n; k++ {
			sum -= l[k][i] * x[k]
		}
		x[i] = sum / l[i][i]
	}
	return x
}
