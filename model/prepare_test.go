package model

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os/exec"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/medical/dicom"
)

func noise(seed uint64, rows, columns int) *dicom.Luminance {
	rng := rand.New(rand.NewPCG(seed, 1))
	l := &dicom.Luminance{Rows: rows, Columns: columns, Values: make([]float32, rows*columns)}
	for i := range l.Values {
		l.Values[i] = rng.Float32()
	}
	return l
}

var shapes = []struct{ rows, columns, toRows, toColumns int }{
	{28, 28, 28, 28}, {56, 56, 28, 28}, {57, 91, 28, 28}, {214, 176, 28, 28}, {100, 100, 33, 7}, {29, 28, 28, 28},
	{1, 1, 5, 5}, {3, 5, 7, 11}, {1000, 3, 28, 2}, {64, 64, 224, 224},
}

// oracle computes the same averages from the definition, as a product of
// matrices of coverage, in numpy.
const oracle = `
import json, sys, numpy
case = json.load(sys.stdin)
def cover(n, m):
    w = numpy.zeros((m, n))
    for t in range(m):
        for s in range(n):
            w[t, s] = max(0.0, min((s + 1) / n, (t + 1) / m) - max(s / n, t / m)) * m
    return w
x = numpy.array(case["values"], dtype=numpy.float32).astype(numpy.float64).reshape(case["rows"], case["columns"])
y = cover(case["rows"], case["to_rows"]) @ x @ cover(case["columns"], case["to_columns"]).T
json.dump(y.ravel().tolist(), sys.stdout)
`

func TestAreaAveragingAgreesWithNumpy(t *testing.T) {
	if err := exec.Command("/usr/bin/python3", "-c", "import numpy").Run(); err != nil {
		t.Skip("numpy of /usr/bin/python3 is not installed: make setup-peers")
	}
	for _, s := range shapes {
		l := noise(7, s.rows, s.columns)
		input, err := json.Marshal(map[string]any{"rows": s.rows, "columns": s.columns, "to_rows": s.toRows, "to_columns": s.toColumns, "values": l.Values})
		if err != nil {
			t.Fatal(err)
		}
		command := exec.Command("/usr/bin/python3", "-c", oracle)
		command.Stdin = bytes.NewReader(input)
		output, err := command.Output()
		if err != nil {
			t.Fatal(err)
		}
		var want []float64
		if err := json.Unmarshal(output, &want); err != nil {
			t.Fatal(err)
		}
		got := average(l, 0, 0, s.rows, s.columns, s.toRows, s.toColumns)
		for i := range want {
			if math.Abs(got[i]-want[i]) > 1e-9 {
				t.Errorf("%v: pixel %d is %v, numpy says %v", s, i, got[i], want[i])
				break
			}
		}
	}
}

func TestAreaAveragingKeepsTheMeanAndAConstant(t *testing.T) {
	for _, s := range shapes {
		l := noise(3, s.rows, s.columns)
		mean := func(n int, at func(int) float64) float64 {
			sum := 0.0
			for i := range n {
				sum += at(i)
			}
			return sum / float64(n)
		}
		got := average(l, 0, 0, s.rows, s.columns, s.toRows, s.toColumns)
		before := mean(len(l.Values), func(i int) float64 { return float64(l.Values[i]) })
		after := mean(len(got), func(i int) float64 { return got[i] })
		if math.Abs(before-after) > 1e-9 {
			t.Errorf("%v: the mean goes from %v to %v", s, before, after)
		}
		for i := range l.Values {
			l.Values[i] = 0.375
		}
		for _, v := range average(l, 0, 0, s.rows, s.columns, s.toRows, s.toColumns) {
			if math.Abs(v-0.375) > 1e-12 {
				t.Errorf("%v: a constant of 0.375 becomes %v", s, v)
				break
			}
		}
	}
}

func TestTheWindowFollowsTheAspectPolicy(t *testing.T) {
	for _, c := range []struct {
		aspect                  string
		rows, columns           int
		inputRows, inputColumns int
		want                    Window
	}{
		{CentreCrop, 2140, 1760, 28, 28, Window{190, 0, 1760, 1760, 0, 0, 28, 28}},
		{CentreCrop, 1760, 2140, 28, 28, Window{0, 190, 1760, 1760, 0, 0, 28, 28}},
		{CentreCrop, 100, 100, 20, 40, Window{25, 0, 50, 100, 0, 0, 20, 40}},
		{Stretch, 2140, 1760, 28, 28, Window{0, 0, 2140, 1760, 0, 0, 28, 28}},
		{Pad, 200, 100, 28, 28, Window{0, 0, 200, 100, 0, 7, 28, 14}},
		{Pad, 100, 200, 28, 28, Window{0, 0, 100, 200, 7, 0, 14, 28}},
		{Pad, 100, 100, 28, 28, Window{0, 0, 100, 100, 0, 0, 28, 28}},
		{CentreCrop, 1, 5000, 28, 28, Window{0, 2499, 1, 1, 0, 0, 28, 28}},
		{Pad, 1, 5000, 28, 28, Window{0, 0, 1, 5000, 13, 0, 1, 28}},
	} {
		in := &Input{Rows: c.inputRows, Columns: c.inputColumns, Aspect: c.aspect}
		if got := in.Window(c.rows, c.columns); got != c.want {
			t.Errorf("%s of %d×%d to %d×%d: %+v, want %+v", c.aspect, c.rows, c.columns, c.inputRows, c.inputColumns, got, c.want)
		}
	}
}

func TestPrepareLaysOutChannelsRangeAndNormalisation(t *testing.T) {
	m := demo(t)
	l := &dicom.Luminance{Rows: 2, Columns: 2, Values: []float32{0, 1, 0.5, 0.25}}
	m.Input.Rows, m.Input.Columns = 2, 2
	check := func(shape []int64, want ...float32) {
		t.Helper()
		got, err := m.Prepare(l)
		if err != nil {
			t.Fatal(err)
		}
		values, err := engine.Values[float32](got)
		if err != nil || got.Check() != nil || fmt.Sprint(got.Shape) != fmt.Sprint(shape) || fmt.Sprint(values) != fmt.Sprint(want) {
			t.Errorf("shape %v values %v, want %v %v", got.Shape, values, shape, want)
		}
	}
	check([]int64{1, 1, 2, 2}, 0, 1, 0.5, 0.25)
	m.Input.Photometric = Inverted
	check([]int64{1, 1, 2, 2}, 1, 0, 0.5, 0.75)
	m.Input.Photometric = Bright
	m.Input.Range = Range{0, 256}
	check([]int64{1, 1, 2, 2}, 0, 256, 128, 64)
	m.Input.Mean, m.Input.Std = []float64{128}, []float64{64}
	check([]int64{1, 1, 2, 2}, -2, 2, 0, -1)
	m.Input.Channels, m.Input.Mean, m.Input.Std = 3, []float64{0, 128, 256}, nil
	check([]int64{1, 3, 2, 2}, 0, 256, 128, 64, -128, 128, 0, -64, -256, 0, -128, -192)
	m.Input.Layout = "NHWC"
	check([]int64{1, 2, 2, 3}, 0, -128, -256, 256, 128, 0, 128, 0, -128, 64, -64, -192)
}

func TestPaddingIsBlackWhateverTheOrientation(t *testing.T) {
	m := demo(t)
	m.Input.Aspect, m.Input.Rows, m.Input.Columns = Pad, 4, 4
	l := &dicom.Luminance{Rows: 4, Columns: 2, Values: []float32{1, 1, 1, 1, 1, 1, 1, 1}}
	for photometric, want := range map[string]float32{Bright: 0, Inverted: 1} {
		m.Input.Photometric = photometric
		got, err := m.Prepare(l)
		if err != nil {
			t.Fatal(err)
		}
		if v := got.Data.([]float32); v[0] != want || v[3] != want || v[1] != 1-want {
			t.Errorf("%s: %v", photometric, v)
		}
	}
}

func TestAnImageThatIsNoneIsAnError(t *testing.T) {
	for _, l := range []*dicom.Luminance{nil, {}, {Rows: 2, Columns: 2, Values: make([]float32, 3)}, {Rows: -1, Columns: -1, Values: make([]float32, 1)}} {
		if _, err := demo(t).Prepare(l); !errors.Is(err, ErrImage) {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

func BenchmarkPrepare2140x1760(b *testing.B) {
	m, l := demo(b), noise(1, 2140, 1760)
	b.SetBytes(2140 * 1760 * 2)
	for b.Loop() {
		if _, err := m.Prepare(l); err != nil {
			b.Fatal(err)
		}
	}
}
