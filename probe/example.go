package probe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/png"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// Example names one input, either a file or a place in a data set.
type Example struct {
	// Input is a file. Numbers (.npy) are taken as they are. Of a table (.csv with
	// a header) each row is an input: read by the encoding that the model keeps,
	// or as numbers if it keeps none. Images (PNG, JPEG, DICOM) are prepared by a
	// package as a radiograph is; a bare graph gets them as Evaluate gives them to
	// it: 0..1, brought to its size.
	Input string
	// Data is a data set with Split, read as Evaluate reads it: .npz, folder or
	// table.
	Data    string
	Split   string
	Reading studies.Options // how to read Data or an image; need not name them
	Index   int             // example of the split, row of Input; from 0
	Names   []string        // of the features of a table; those of a .csv are its header
}

// fromData is how many examples of a data set serve as background.
const fromData = 100

// given is the input of a question, with what is known of it.
type given struct {
	input  engine.Tensor // a batch of 1
	source string
	names  []string // of a table's columns, nil if they have none
	of     []int    // the column of each number; nil: each number is a column
	cells  []string // what the columns say, where they became numbers by an encoding

	// The examples beside which it stands: at(Index) is this one.
	others int
	from   string
	at     func(i int) (engine.Tensor, error)
}

// example reads the input and says where it came from.
func (m *Model) example(ctx context.Context, x Example) (*given, error) {
	declared := m.inputs()
	if len(declared) != 1 || declared[0].Type != onnx.Float || len(declared[0].Shape) < 2 {
		return nil, fmt.Errorf("probe: explaining %s: %w: want one input float[N, …], it has %s", m.Path, ErrAsk, list(declared))
	}
	if (x.Input == "") == (x.Data == "") {
		return nil, errors.New("probe: give an input, or a data set with an index")
	}
	var g *given
	var err error
	extension := strings.ToLower(filepath.Ext(x.Input))
	switch {
	case x.Data != "":
		g, err = m.fromData(ctx, x)
	case extension == ".npy" || extension == ".csv":
		g, err = m.fromRows(x)
	case extension == ".npz":
		return nil, fmt.Errorf("probe: %s: an .npz is a data set: name it as the data, with a split and an index", x.Input)
	default:
		g = &given{source: filepath.Base(x.Input)}
		g.input, err = m.fromImageFile(x)
	}
	if err != nil {
		return nil, err
	}
	if x.Names != nil {
		g.names = x.Names
	}
	if g.of != nil && len(g.names) != len(g.cells) {
		return nil, fmt.Errorf("probe: %d names for the %d columns that %s reads: %w", len(g.names), len(g.cells), m.Path, ErrAsk)
	}
	return g, nil
}

// fromRows is a row of an array or a table.
func (m *Model) fromRows(x Example) (*given, error) {
	in := m.inputs()[0]
	g := &given{source: fmt.Sprintf("%s %d", filepath.Base(x.Input), x.Index), from: filepath.Base(x.Input)}
	var t engine.Tensor
	var err error
	var read *sheet
	if strings.EqualFold(filepath.Ext(x.Input), ".csv") {
		if read, err = m.sheet(x.Input); err != nil {
			return nil, err
		}
		t, g.names, g.of = read.numbers, read.names, read.of
	} else {
		if t, err = ReadArray(x.Input); err != nil {
			return nil, err
		}
		if len(t.Shape) == len(in.Shape)-1 { // one example
			t.Shape = append([]int64{1}, t.Shape...)
		}
	}
	open := in
	open.Shape = append([]onnx.Dim{{Value: -1}}, in.Shape[1:]...)
	if t, err = fit(t, open); err != nil {
		return nil, fmt.Errorf("probe: input from %s: %w", x.Input, err)
	}
	values, err := engine.Values[float32](t)
	if err != nil {
		return nil, err
	}
	g.others = int(t.Shape[0])
	if x.Index < 0 || x.Index >= g.others {
		return nil, fmt.Errorf("probe: example %d of %s: it has %d, counted from 0", x.Index, x.Input, g.others)
	}
	per, shape := len(values)/g.others, append([]int64{1}, t.Shape[1:]...)
	g.at = func(i int) (engine.Tensor, error) { return engine.Float32(shape, values[i*per:(i+1)*per]), nil }
	if read != nil && read.of != nil {
		g.cells = read.cells[x.Index]
	}
	g.input, err = g.at(x.Index)
	return g, err
}

// fromData is one example of a data set as Evaluate would run it.
func (m *Model) fromData(ctx context.Context, x Example) (*given, error) {
	x.Reading.Data = x.Data
	options, err := m.ask(Test{Options: x.Reading, Split: x.Split})
	if err != nil {
		return nil, err
	}
	data, err := studies.Open(ctx, options)
	if err != nil {
		return nil, err
	}
	set, err := data.Set(x.Split)
	if err != nil {
		return nil, fmt.Errorf("probe: explaining an example of %s: %w", x.Data, err)
	}
	if x.Index < 0 || x.Index >= set.Len() {
		return nil, fmt.Errorf("probe: example %d of split %q: it has %d, counted from 0", x.Index, x.Split, set.Len())
	}
	g := &given{
		source: fmt.Sprintf("%s %s %d", filepath.Base(x.Data), x.Split, x.Index),
		from:   fmt.Sprintf("split %s of %s", x.Split, filepath.Base(x.Data)),
		others: set.Len(),
		at:     func(i int) (engine.Tensor, error) { return m.fromSet(set, i) },
	}
	if data.Table != nil {
		if g.names, g.of, g.cells, err = data.Cells(set, x.Index); err != nil {
			return nil, err
		}
	}
	g.input, err = g.at(x.Index)
	return g, err
}

// fromSet is one example of a set.
func (m *Model) fromSet(set *train.Set, i int) (engine.Tensor, error) {
	size := 1
	for _, d := range set.Example() {
		size *= int(d)
	}
	values := make([]float32, size)
	set.Fill(values, i)
	if set.Shape != nil {
		t := engine.Float32(append([]int64{1}, set.Shape...), values)
		t, err := fit(t, m.inputs()[0])
		if err != nil {
			return t, fmt.Errorf("probe: example %d of split %q: %w", i, set.Name, err)
		}
		return t, nil
	}
	planes := make([][]float32, set.Channels)
	for c := range planes {
		planes[c] = values[c*set.Rows*set.Columns : (c+1)*set.Rows*set.Columns]
	}
	return m.fromPlanes(planes, set.Rows, set.Columns)
}

// fromPlanes makes an input of an image's planes, 0..1: of a package one, the
// luminance.
func (m *Model) fromPlanes(planes [][]float32, rows, columns int) (engine.Tensor, error) {
	if m.Package != nil {
		if len(planes) != 1 {
			return engine.Tensor{}, fmt.Errorf("probe: an image of %d channels: %w: a package reads luminance", len(planes), ErrAsk)
		}
		return m.Package.Manifest.Prepare(&dicom.Luminance{Rows: rows, Columns: columns, Values: planes[0]})
	}
	in := m.inputs()[0]
	if len(in.Shape) != 4 {
		return engine.Tensor{}, fmt.Errorf("probe: an image for input %v: %w: give an array", in, ErrAsk)
	}
	channels := len(planes)
	if in.Shape[1].Known() && in.Shape[1].Value == 3 && channels == 1 {
		channels = 3
	}
	values := make([]float32, 0, channels*rows*columns)
	for c := range channels {
		values = append(values, planes[min(c, len(planes)-1)]...)
	}
	t := engine.Float32([]int64{1, int64(channels), int64(rows), int64(columns)}, values)
	t, err := fit(t, in)
	if err != nil {
		return t, fmt.Errorf("probe: an image of %d×%d pixels with %d channels: %w", rows, columns, len(planes), err)
	}
	return t, nil
}

// fromImageFile reads a PNG, JPEG or DICOM file by its content, as Evaluate reads
// those of a folder.
func (m *Model) fromImageFile(x Example) (engine.Tensor, error) {
	options, err := m.ask(Test{Options: x.Reading})
	if err != nil {
		return engine.Tensor{}, err
	}
	if m.Package != nil { // which prepares the image itself
		options.Rows, options.Columns = 0, 0
	}
	read, err := studies.ReadImage(x.Input, options)
	if err != nil {
		return engine.Tensor{}, fmt.Errorf("probe: explaining an image: %w", err)
	}
	return m.fromPlanes(read.Planes, read.Rows, read.Columns)
}

// background turns a name into a background, and says what it is.
func (m *Model) background(q Question, g *given) (explain.Background, string, error) {
	input := g.input
	name := q.Background
	if name == "" {
		if name = "mean"; len(input.Shape) == 2 {
			name = "data"
		}
	}
	switch name {
	case "black":
		if m.Package == nil {
			return explain.Constant(0), "0", nil
		}
		in := m.Package.Manifest.Input
		t, err := m.Package.Manifest.Prepare(&dicom.Luminance{Rows: in.Rows, Columns: in.Columns, Values: make([]float32, in.Rows*in.Columns)})
		return explain.References(t), "black", err
	case "mean":
		return explain.Mean(), "the input's own mean", nil
	case "blur":
		deviation := float64(input.Shape[len(input.Shape)-1]) / 20
		return explain.Blur(deviation), fmt.Sprintf("the input blurred by %.3g pixels", deviation), nil
	case "data":
		return g.references(q)
	}
	var t engine.Tensor
	var err error
	if strings.EqualFold(filepath.Ext(name), ".csv") {
		var read *sheet
		if read, err = m.sheet(name); err == nil {
			t = read.numbers
		}
	} else {
		t, err = ReadArray(name)
	}
	if err != nil {
		return nil, "", fmt.Errorf("probe: background %q: want black, mean, blur, data, or a file of rows, .npy or .csv: %w", name, err)
	}
	t, err = convert(t, onnx.Float)
	if err != nil {
		return nil, "", fmt.Errorf("probe: background from %s: %w", name, err)
	}
	b, err := explain.Rows(t)
	return b, fmt.Sprintf("%d rows of %s", t.Shape[0], filepath.Base(name)), err
}

// references draws from the examples beside which the input stands.
func (g *given) references(q Question) (explain.Background, string, error) {
	var all []engine.Tensor
	rng := rand.New(rand.NewPCG(q.Options.Seed, 0xBAC6))
	for _, i := range rng.Perm(g.others) {
		if i == q.Index || len(all) == fromData {
			continue
		}
		t, err := g.at(i)
		if err != nil {
			return nil, "", err
		}
		all = append(all, t)
	}
	if len(all) == 0 {
		return nil, "", fmt.Errorf("probe: a background from data: %w: there is no other example; name a file of them, or black", ErrAsk)
	}
	return explain.References(all...), fmt.Sprintf("%d examples of %s", len(all), g.from), nil
}

// Save writes a map by the file's name: .png draws it, .npy holds its
// values, .csv the features of a table. The file appears whole or not at all.
func (e *Explanation) Save(path string) error {
	var b bytes.Buffer
	switch strings.ToLower(filepath.Ext(path)) {
	case ".npy":
		shape := []int64{int64(e.Rows), int64(e.Columns)}
		if e.Features != nil {
			shape = []int64{int64(e.Columns)}
		}
		return Save(path, map[string]engine.Tensor{"map": engine.Float32(shape, e.Map.Values)}, nil)
	case ".png":
		drawn, err := e.Draw()
		if err != nil {
			return err
		}
		if err := png.Encode(&b, drawn); err != nil {
			return fmt.Errorf("probe: writing %s: %w", path, err)
		}
	case ".csv":
		if e.Features == nil {
			return fmt.Errorf("probe: writing %s: %w: the input is no table; write .png or .npy", path, ErrAsk)
		}
		if err := explain.WriteCSV(&b, e.Features); err != nil {
			return err
		}
	default:
		return fmt.Errorf("probe: writing %s: name it .png, .npy or .csv", path)
	}
	err := train.WriteWhole(path, func(w io.Writer) error {
		_, err := b.WriteTo(w)
		return err
	})
	if err != nil {
		return fmt.Errorf("probe: writing %s: %w", path, err)
	}
	return nil
}
