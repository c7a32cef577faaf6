package probe

import (
	"bytes"
	"errors"
	"fmt"
	"image"
	"image/color"
	_ "image/jpeg" // registers the decoder
	"image/png"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// Example names one input, either a file or a place in a data set.
type Example struct {
	// Input is a file. Numbers (.npy; .csv with a header, of which each row is
	// an input) are taken as they are. Images (PNG, JPEG, DICOM) are prepared by
	// a package as a radiograph is; a bare graph gets 0..1 and they must be of
	// its size.
	Input string
	Data  string // or an .npz in MedMNIST's layout, with Split
	Split string
	Index int      // example of Data, row of Input
	Names []string // of the features of a table; those of a .csv are its header
}

// Limits of what is read.
const (
	maxImageFile = 1 << 30
	maxPixels    = 1 << 27
	maxTableFile = 1 << 28
	fromData     = 100 // examples of a data set as background
)

// example reads the input and says where it came from.
func (m *Model) example(x Example) (engine.Tensor, string, error) {
	declared := m.inputs()
	if len(declared) != 1 || declared[0].Type != onnx.Float || len(declared[0].Shape) < 2 {
		return engine.Tensor{}, "", fmt.Errorf("probe: explaining %s: %w: want one input float[N, …], it has %s", m.Path, ErrAsk, list(declared))
	}
	if (x.Input == "") == (x.Data == "") {
		return engine.Tensor{}, "", errors.New("probe: give an input, or a data set with an index")
	}
	if x.Data != "" {
		set, err := train.LoadMedMNIST(x.Data, x.Split, train.Limits{})
		if err != nil {
			return engine.Tensor{}, "", err
		}
		t, err := m.fromSet(set, x.Index)
		return t, fmt.Sprintf("%s %s %d", filepath.Base(x.Data), x.Split, x.Index), err
	}
	switch strings.ToLower(filepath.Ext(x.Input)) {
	case ".npy", ".csv":
		rows, _, err := m.rows(x)
		if err != nil {
			return engine.Tensor{}, "", err
		}
		if x.Index < 0 || x.Index >= len(rows) {
			return engine.Tensor{}, "", fmt.Errorf("probe: example %d of %s: it has %d, counted from 0", x.Index, x.Input, len(rows))
		}
		return rows[x.Index], fmt.Sprintf("%s %d", filepath.Base(x.Input), x.Index), nil
	case ".npz":
		return engine.Tensor{}, "", fmt.Errorf("probe: %s: an .npz is a data set: name it as the data, with a split and an index", x.Input)
	}
	t, err := m.fromImageFile(x.Input)
	return t, filepath.Base(x.Input), err
}

// FeatureNames are the names of a table's columns: given, or a .csv's header.
func (m *Model) FeatureNames(x Example) ([]string, error) {
	if x.Names != nil || !strings.EqualFold(filepath.Ext(x.Input), ".csv") {
		return x.Names, nil
	}
	_, names, err := m.rows(x)
	return names, err
}

// rows reads every example of an array or a table, each with a batch of 1.
func (m *Model) rows(x Example) ([]engine.Tensor, []string, error) {
	in := m.inputs()[0]
	var t engine.Tensor
	var names []string
	if strings.EqualFold(filepath.Ext(x.Input), ".csv") {
		values, header, err := readTable(x.Input)
		if err != nil {
			return nil, nil, err
		}
		t, names = values, header
	} else {
		var err error
		if t, err = ReadArray(x.Input); err != nil {
			return nil, nil, err
		}
		if len(t.Shape) == len(in.Shape)-1 { // one example
			t.Shape = append([]int64{1}, t.Shape...)
		}
	}
	open := in
	open.Shape = append([]onnx.Dim{{Value: -1}}, in.Shape[1:]...)
	t, err := fit(t, open)
	if err != nil {
		return nil, nil, fmt.Errorf("probe: input from %s: %w", x.Input, err)
	}
	values, err := engine.Values[float32](t)
	if err != nil {
		return nil, nil, err
	}
	n := int(t.Shape[0])
	shape := append([]int64{1}, t.Shape[1:]...)
	rows := make([]engine.Tensor, n)
	for i := range rows {
		per := len(values) / n
		rows[i] = engine.Float32(shape, values[i*per:(i+1)*per])
	}
	return rows, names, nil
}

// readTable reads numbers under a header.
func readTable(path string) (engine.Tensor, []string, error) {
	f, err := os.Open(path)
	if err != nil {
		return engine.Tensor{}, nil, fmt.Errorf("probe: reading a table: %w", err)
	}
	defer f.Close()
	table, err := train.ReadTable(io.LimitReader(f, maxTableFile), train.TableLimits{})
	if err != nil {
		return engine.Tensor{}, nil, fmt.Errorf("probe: reading %s: %w", path, err)
	}
	values := make([]float64, 0, len(table.Rows)*len(table.Header))
	for r, row := range table.Rows {
		for c, cell := range row {
			v, err := strconv.ParseFloat(cell, 64)
			if err != nil {
				return engine.Tensor{}, nil, fmt.Errorf("probe: reading %s: row %d, column %q is %q: want a number", path, r, table.Header[c], cell)
			}
			values = append(values, v)
		}
	}
	return engine.Float64([]int64{int64(len(table.Rows)), int64(len(table.Header))}, values), table.Header, nil
}

// fromSet is one example of a data set as Evaluate would run it.
func (m *Model) fromSet(set *train.Set, index int) (engine.Tensor, error) {
	if index < 0 || index >= set.Len() {
		return engine.Tensor{}, fmt.Errorf("probe: example %d of split %q: it has %d, counted from 0", index, set.Name, set.Len())
	}
	values := make([]float32, set.Channels*set.Rows*set.Columns)
	set.Fill(values, index)
	planes := make([][]float32, set.Channels)
	for c := range planes {
		planes[c] = values[c*set.Rows*set.Columns : (c+1)*set.Rows*set.Columns]
	}
	return m.fromPlanes(planes, set.Rows, set.Columns)
}

// fromPlanes makes an input of an image's planes, 0..1.
func (m *Model) fromPlanes(planes [][]float32, rows, columns int) (engine.Tensor, error) {
	if m.Package != nil {
		grey := planes[0]
		if len(planes) == 3 {
			grey = make([]float32, len(planes[0])) // luma, ITU-R BT.601
			for i := range grey {
				grey[i] = 0.299*planes[0][i] + 0.587*planes[1][i] + 0.114*planes[2][i]
			}
		}
		return m.Package.Manifest.Prepare(&dicom.Luminance{Rows: rows, Columns: columns, Values: grey})
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

// fromImageFile reads a PNG, JPEG or DICOM file by its content.
func (m *Model) fromImageFile(path string) (engine.Tensor, error) {
	f, err := os.Open(path)
	if err != nil {
		return engine.Tensor{}, fmt.Errorf("probe: reading an image: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxImageFile+1))
	if err == nil && len(data) > maxImageFile {
		err = fmt.Errorf("it has more than %d bytes", maxImageFile)
	}
	if err != nil {
		return engine.Tensor{}, fmt.Errorf("probe: reading %s: %w", path, err)
	}
	if bytes.HasPrefix(data, []byte("\x89PNG\r\n\x1a\n")) || bytes.HasPrefix(data, []byte("\xff\xd8\xff")) {
		planes, rows, columns, err := decodeImage(data)
		if err != nil {
			return engine.Tensor{}, fmt.Errorf("probe: reading %s: %w", path, err)
		}
		return m.fromPlanes(planes, rows, columns)
	}
	file, err := dicom.Parse(bytes.NewReader(data), dicom.Limits{})
	if err != nil {
		return engine.Tensor{}, fmt.Errorf("probe: reading %s, neither PNG nor JPEG, as DICOM: %w", path, err)
	}
	l, err := file.Luminance(0)
	if err != nil {
		return engine.Tensor{}, fmt.Errorf("probe: reading %s: %w", path, err)
	}
	return m.fromPlanes([][]float32{l.Values}, l.Rows, l.Columns)
}

// decodeImage returns one plane of a grey image, three of a colour one.
func decodeImage(data []byte) ([][]float32, int, int, error) {
	size, _, err := image.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return nil, 0, 0, err
	}
	if size.Width < 1 || size.Height < 1 || size.Width > maxPixels/size.Height {
		return nil, 0, 0, fmt.Errorf("an image of %d×%d pixels: want at most %d", size.Width, size.Height, maxPixels)
	}
	decoded, _, err := image.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, 0, 0, err
	}
	b := decoded.Bounds()
	grey := false
	switch decoded.ColorModel() {
	case color.GrayModel, color.Gray16Model:
		grey = true
	}
	planes := make([][]float32, 3)
	for c := range planes {
		planes[c] = make([]float32, 0, b.Dx()*b.Dy())
	}
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			red, green, blue, _ := decoded.At(x, y).RGBA()
			for c, v := range [3]uint32{red, green, blue} {
				planes[c] = append(planes[c], float32(v)/0xffff)
			}
		}
	}
	if grey {
		planes = planes[:1]
	}
	return planes, b.Dy(), b.Dx(), nil
}

// background turns a name into a background, and says what it is.
func (m *Model) background(q Question, input engine.Tensor) (explain.Background, string, error) {
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
		return m.references(q)
	}
	t, err := ReadArray(name)
	if err != nil {
		return nil, "", fmt.Errorf("probe: background %q: want black, mean, blur, data or an .npy file: %w", name, err)
	}
	t, err = convert(t, onnx.Float)
	if err != nil {
		return nil, "", fmt.Errorf("probe: background from %s: %w", name, err)
	}
	b, err := explain.Rows(t)
	return b, fmt.Sprintf("%d rows of %s", t.Shape[0], filepath.Base(name)), err
}

// references draws examples of the data set, or of the input's other rows.
func (m *Model) references(q Question) (explain.Background, string, error) {
	var all []engine.Tensor
	n, what := 0, ""
	var at func(i int) (engine.Tensor, error)
	switch extension := strings.ToLower(filepath.Ext(q.Input)); {
	case q.Data != "":
		set, err := train.LoadMedMNIST(q.Data, q.Split, train.Limits{})
		if err != nil {
			return nil, "", err
		}
		n, what = set.Len(), fmt.Sprintf("split %s of %s", q.Split, filepath.Base(q.Data))
		at = func(i int) (engine.Tensor, error) { return m.fromSet(set, i) }
	case extension == ".npy" || extension == ".csv":
		rows, _, err := m.rows(q.Example)
		if err != nil {
			return nil, "", err
		}
		n, what = len(rows), filepath.Base(q.Input)
		at = func(i int) (engine.Tensor, error) { return rows[i], nil }
	}
	rng := rand.New(rand.NewPCG(q.Options.Seed, 0xBAC6))
	for _, i := range rng.Perm(n) {
		if i == q.Index || len(all) == fromData {
			continue
		}
		t, err := at(i)
		if err != nil {
			return nil, "", err
		}
		all = append(all, t)
	}
	if len(all) == 0 {
		return nil, "", fmt.Errorf("probe: a background from data: %w: there is no other example; name a file of them, or black", ErrAsk)
	}
	return explain.References(all...), fmt.Sprintf("%d examples of %s", len(all), what), nil
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
	temporary := path + ".part"
	if err := os.WriteFile(temporary, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("probe: writing a file: %w", err)
	}
	return os.Rename(temporary, path)
}
