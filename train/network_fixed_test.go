package train

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
)

// histogram is what orientations should give for one channel, computed pixel by
// pixel.
func histogram(image []float32, rows, columns, directions, cell int) []float64 {
	down, across := rows/cell, columns/cell
	out := make([]float64, directions*down*across)
	for d := range directions {
		sin, cos := math.Sincos(2 * math.Pi * float64(d) / float64(directions))
		for y := 1; y < rows-1; y++ {
			for x := 1; x < columns-1; x++ {
				at := func(y, x int) float64 { return float64(image[y*columns+x]) }
				slope := sin*(at(y+1, x)-at(y-1, x))/2 + cos*(at(y, x+1)-at(y, x-1))/2
				if slope > 0 && y/cell < down && x/cell < across {
					out[(d*down+y/cell)*across+x/cell] += slope / float64(cell*cell)
				}
			}
		}
	}
	square := 0.0
	for _, v := range out {
		square += v * v / float64(len(out))
	}
	for i := range out {
		out[i] /= math.Sqrt(square + 1e-6)
	}
	return out
}

func TestOrientationsAreTheHistogramOfSlopesByDirectionAndCell(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 8))
	const directions = 6
	for _, c := range []struct{ rows, columns, cell int }{{12, 12, 2}, {13, 11, 2}, {12, 15, 3}, {14, 12, 4}} {
		n := &builder{Builder: onnx.NewBuilder(networkOpset), rng: rng}
		x := n.Input("image", onnx.Float, onnx.Fixed(1, 2, int64(c.rows), int64(c.columns))...)
		y := n.orientations(x, 2, directions, c.cell)
		down, across := c.rows/c.cell, c.columns/c.cell
		n.Output(y, onnx.Float, onnx.Fixed(1, 2*directions, int64(down), int64(across))...)
		m, err := n.Build()
		if err != nil {
			t.Fatal(err)
		}
		session, err := engine.Open(m, engine.Options{})
		skipWithoutRuntime(t, err)
		defer session.Close()
		plane := make([]float32, c.rows*c.columns)
		for i := range plane {
			plane[i] = rng.Float32()
		}
		want := histogram(plane, c.rows, c.columns, directions, c.cell)
		// The second channel is the first, so that the root mean square is its, too;
		// another gain and offset change nothing.
		for _, lit := range []struct{ gain, offset float32 }{{1, 0}, {3, -2}} {
			image := make([]float32, 0, 2*len(plane))
			for range 2 {
				for _, v := range plane {
					image = append(image, v*lit.gain+lit.offset)
				}
			}
			out, err := session.Run(context.Background(), map[string]engine.Tensor{x: engine.Float32([]int64{1, 2, int64(c.rows), int64(c.columns)}, image)}, y)
			if err != nil {
				t.Fatal(err)
			}
			got, err := engine.Values[float32](out[y])
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range got {
				near(t, "element", float64(v), want[i%len(want)], 2e-3)
			}
		}
	}
}

func TestFixedLayersAreNotTrainedAndSizesThatDoNotFitAreRefused(t *testing.T) {
	c := CNN{Channels: 3, Rows: 16, Columns: 12, Classes: 2, Stages: [][]int{{4}, {8}}, GroupSize: 4, Orientations: 8, Mean: 0.5, Deviation: 0.25}
	n, err := c.Build(rand.New(rand.NewPCG(1, 1)))
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(n.Weights, func(name string) bool { return strings.HasPrefix(name, "orientations") }) {
		t.Errorf("trained: %v", n.Weights)
	}
	if w := n.Model.Graph.Initializer("conv1.weight"); !slices.Equal(w.Dims, []int64{4, 24, 3, 3}) {
		t.Errorf("the first convolution reads %v", w.Dims)
	}
	for _, wrong := range []CNN{{Orientations: 65}, {Orientations: 8, Cell: 1}, {Orientations: 8, Cell: 13}, {Orientations: 8, Cell: -2}} {
		bad := c
		bad.Orientations, bad.Cell = wrong.Orientations, wrong.Cell
		if _, err := bad.Build(rand.New(rand.NewPCG(1, 1))); err == nil || !strings.Contains(err.Error(), "orientations over cells") {
			t.Errorf("%d orientations, cells of %d: %v", wrong.Orientations, wrong.Cell, err)
		}
	}
}
