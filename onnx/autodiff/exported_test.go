package autodiff_test

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

// packed is base64 of little-endian float32, as testdata/exported.py writes it.
type packed []float64

func (p *packed) UnmarshalJSON(text []byte) error {
	var encoded *string
	if err := json.Unmarshal(text, &encoded); err != nil || encoded == nil {
		return err
	}
	raw, err := base64.StdEncoding.DecodeString(*encoded)
	for at := 0; at+4 <= len(raw); at += 4 {
		*p = append(*p, float64(math.Float32frombits(binary.LittleEndian.Uint32(raw[at:]))))
	}
	return err
}

// exported is an architecture as PyTorch exported it, and what PyTorch says of
// its gradients in double precision.
type exported struct {
	name   string
	model  *onnx.Model
	Loss   float64 `json:"loss"`
	Inputs []struct {
		Name     string  `json:"name"`
		Shape    []int64 `json:"shape"`
		Floats   packed  `json:"floats"`
		Ints     []int64 `json:"ints"`
		Gradient packed  `json:"gradient"`
	} `json:"inputs"`
	Classes    int64             `json:"classes"`
	Target     packed            `json:"target"`
	PerExample bool              `json:"per_example"`
	Gradients  map[string]packed `json:"gradients"`
}

func loadExported(t testing.TB) []exported {
	t.Helper()
	paths, err := filepath.Glob("testdata/exported/*.onnx")
	if err != nil || len(paths) < 20 {
		t.Fatalf("%d exported networks, %v", len(paths), err)
	}
	var all []exported
	for _, path := range paths {
		e := exported{name: strings.TrimSuffix(filepath.Base(path), ".onnx")}
		if e.model, err = onnx.Load(path); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(strings.TrimSuffix(path, ".onnx") + ".json")
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &e); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all = append(all, e)
	}
	return all
}

func (e exported) batch() int64 { return e.Inputs[0].Shape[0] }

// asked are every weight, and every input of floats.
func (e exported) asked() (weights, inputs []string) {
	for name := range e.Gradients {
		weights = append(weights, name)
	}
	slices.Sort(weights)
	for _, in := range e.Inputs {
		if in.Gradient != nil {
			inputs = append(inputs, in.Name)
		}
	}
	return weights, inputs
}

// feed gives the examples from … to, each weighted 1/N of all.
func (e exported) feed(l *autodiff.Loss, from, to int64) map[string]engine.Tensor {
	n, count := e.batch(), to-from
	feed := map[string]engine.Tensor{l.Target: numbers(onnx.Float, []int64{count, e.Classes}, e.Target[from*e.Classes:to*e.Classes])}
	share := make([]float64, count)
	for i := range share {
		share[i] = 1 / float64(n)
	}
	feed[l.Weight] = numbers(onnx.Float, []int64{count}, share)
	for _, in := range e.Inputs {
		shape := append([]int64{count}, in.Shape[1:]...)
		if in.Ints != nil {
			each := int64(len(in.Ints)) / n
			feed[in.Name] = engine.Int64(shape, in.Ints[from*each:to*each])
			continue
		}
		each := int64(len(in.Floats)) / n
		feed[in.Name] = numbers(onnx.Float, shape, in.Floats[from*each:to*each])
	}
	return feed
}

// against compares with PyTorch relative to the largest element, or to the
// largest of the whole network's gradients where a gradient is nothing but
// rounding: a bias in front of a batch normalisation, a key's bias in front of
// a softmax.
func against(t *testing.T, what string, got, want, all []float64) {
	t.Helper()
	floor := 0.0
	for _, v := range all {
		floor = max(floor, 1e-3*math.Abs(v))
	}
	if len(got) != len(want) {
		t.Errorf("%s has %d elements, want %d", what, len(got), len(want))
		return
	}
	top, difference := floor, 0.0
	for i := range want {
		top = max(top, math.Abs(want[i]))
		difference = max(difference, math.Abs(got[i]-want[i]))
	}
	if !(difference <= 1e-4*top) {
		t.Errorf("%s differs by %.2g of its largest element, %.2g", what, difference/top, top)
	}
}

func (e exported) gradients() []float64 {
	var all []float64
	for _, g := range e.Gradients {
		all = append(all, g...)
	}
	return all
}

func TestExportedArchitecturesAgreeWithPyTorch(t *testing.T) {
	for _, e := range loadExported(t) {
		t.Run(e.name, func(t *testing.T) {
			l, err := autodiff.SoftmaxCrossEntropy(e.model, "logits")
			if err != nil {
				t.Fatal(err)
			}
			weights, inputs := e.asked()
			g, err := autodiff.Gradient(l.Model, autodiff.Request{
				Loss: l.Total, WithRespectTo: append(slices.Clone(weights), inputs...), Batch: e.batch(), Keep: []string{l.Total},
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := g.Model.Check(); err != nil {
				t.Fatal(err)
			}
			s := open(t, g.Model)
			out := run(t, s, only(e.feed(l, 0, e.batch()), s))
			if got := elements(out[l.Total])[0]; !(math.Abs(got-e.Loss) <= 1e-4*math.Abs(e.Loss)) {
				t.Errorf("loss is %g, PyTorch says %g", got, e.Loss)
			}
			all := e.gradients()
			for _, name := range weights {
				against(t, "gradient of "+name, elements(out[g.Of[name]]), e.Gradients[name], all)
			}
			for _, in := range e.Inputs {
				if in.Gradient != nil {
					against(t, "gradient of "+in.Name, elements(out[g.Of[in.Name]]), in.Gradient, nil)
				}
			}
		})
	}
}

// Every example's gradient, of an exported graph that moves the batch about, is
// that of a batch of one, and their mean is PyTorch's.
func TestExportedArchitecturesHaveGradientsPerExample(t *testing.T) {
	for _, e := range loadExported(t) {
		if !e.PerExample {
			continue // batch statistics: TestPerExampleGradientsAreRefusedWhereExamplesMix
		}
		t.Run(e.name, func(t *testing.T) {
			l, err := autodiff.SoftmaxCrossEntropy(e.model, "logits")
			if err != nil {
				t.Fatal(err)
			}
			weights, _ := e.asked()
			n := e.batch()
			g, err := autodiff.Gradient(l.Model, autodiff.Request{Loss: l.Each, WithRespectTo: weights, Batch: n, PerExample: true})
			if err != nil {
				t.Fatal(err)
			}
			s := open(t, g.Model)
			out := run(t, s, only(e.feed(l, 0, n), s))
			alone, err := autodiff.Gradient(l.Model, autodiff.Request{Loss: l.Each, WithRespectTo: weights, Batch: 1, PerExample: true})
			if err != nil {
				t.Fatal(err)
			}
			single := open(t, alone.Model)
			all := e.gradients()
			means := map[string][]float64{}
			for k := range n {
				lone := run(t, single, only(e.feed(l, k, k+1), single))
				for _, name := range weights {
					size := int64(len(e.Gradients[name]))
					batch := elements(out[g.Of[name]])
					if int64(len(batch)) != n*size {
						t.Fatalf("gradients of %s have shape %v", name, out[g.Of[name]].Shape)
					}
					against(t, "gradient of "+name, batch[k*size:(k+1)*size], elements(lone[alone.Of[name]]), all)
					if means[name] == nil {
						means[name] = make([]float64, size)
					}
					for i := range size {
						means[name][i] += batch[k*size+i] / float64(n)
					}
				}
			}
			for _, name := range weights {
				against(t, "mean gradient of "+name, means[name], e.Gradients[name], all)
			}
		})
	}
}

// Clip and PerExample are two ways to the same gradients, also where a graph
// moves the batch about.
func TestClippedNormsAreThoseOfTheGradientsPerExample(t *testing.T) {
	for _, e := range loadExported(t) {
		if !e.PerExample {
			continue
		}
		t.Run(e.name, func(t *testing.T) {
			l, err := autodiff.SoftmaxCrossEntropy(e.model, "logits")
			if err != nil {
				t.Fatal(err)
			}
			weights, _ := e.asked()
			n := e.batch()
			each, err := autodiff.Gradient(l.Model, autodiff.Request{Loss: l.Each, WithRespectTo: weights, Batch: n, PerExample: true})
			if err != nil {
				t.Fatal(err)
			}
			clip, err := autodiff.Clip(l.Model, autodiff.ClipRequest{Loss: l.Each, Weights: weights, Batch: n})
			if err != nil {
				t.Fatal(err)
			}
			feed := e.feed(l, 0, n)
			feed[clip.Bound] = numbers(onnx.Float, []int64{1}, []float64{1e9})
			feed[clip.Mask] = numbers(onnx.Float, []int64{n}, ones(int(n)))
			s, clipped := open(t, each.Model), open(t, clip.Model)
			gradients, out := run(t, s, only(feed, s)), run(t, clipped, only(feed, clipped))
			squares := make([]float64, n)
			for _, name := range weights {
				g := elements(gradients[each.Of[name]])
				size := len(g) / int(n)
				sum := make([]float64, size)
				for k, v := range g {
					squares[k/size] += v * v
					sum[k%size] += v
				}
				against(t, "sum of "+name, elements(out[clip.Of[name]]), sum, e.gradients())
			}
			for k, norm := range elements(out[clip.Norms]) {
				if want := math.Sqrt(squares[k]); math.Abs(norm-want) > 1e-4*want {
					t.Errorf("norm of example %d is %g, want %g", k, norm, want)
				}
			}
		})
	}
}
