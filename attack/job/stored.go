package job

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/jpeg"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/train"
)

// Attacks on DICOM files. What is perturbed are the stored values, whole numbers
// of BitsStored bits at the resolution of the file, so that what is found is a
// file that could be in a PACS: it is written, read back as the gateway reads it,
// and judged by what the model's own path says of it.
//
// A pixel is in units of the window: 1 is the number of stored values between
// black and white on the display. A bound of 8/255 therefore means about what it
// means for an image of 8 bits, whatever the modality stores.

const maxStoredFile = 1 << 30 // bytes

// storedImage is one DICOM file as a target. The rounding to stored values, the
// grayscale pipeline (PS3.4 N.2) and, if asked for, JPEG are in the answer as they
// are; the slope goes straight through rounding and JPEG, and through the pipeline
// by its differences.
type storedImage struct {
	inner  attack.Target // of luminance at the file's resolution
	file   *dicom.File
	frame  *dicom.Frame
	values []int32 // stored
	low    int32   // least stored value
	levels int     // stored values that there are
	span   float64 // stored values that make 1
	most   float64 // change that is allowed, stored values; infinite without a bound
	slope  []float64
	jpeg   int // quality; 0: none
}

// openStored reads a file and finds how its stored values become luminance.
func openStored(path string, jpegQuality int) (*storedImage, *dicom.Luminance, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	file, err := dicom.Parse(io.LimitReader(f, maxStoredFile), dicom.Limits{})
	if err != nil {
		return nil, nil, err
	}
	if n := file.DataSet.Frames(); n > 1 {
		return nil, nil, fmt.Errorf("%d frames: %w: want one", n, ErrAsk)
	}
	frame, err := file.Frame(0, dicom.Limits{})
	if err != nil {
		return nil, nil, err
	}
	if frame.Samples != 1 || frame.Photometric == "PALETTE COLOR" || frame.Allocated > 16 {
		return nil, nil, fmt.Errorf("%s with %d samples of %d bits: %w: want grey values of at most 16 bits", frame.Photometric, frame.Samples, frame.Allocated, ErrAsk)
	}
	if jpegQuality > 0 && (frame.Allocated != 8 || frame.Stored != 8 || frame.Signed) {
		return nil, nil, fmt.Errorf("%d bits stored as baseline JPEG: %w: it has 8 without sign; leave --jpeg out", frame.Stored, ErrAsk)
	}
	luminance, err := file.LuminanceOf(frame)
	if err != nil {
		return nil, nil, err
	}
	s := &storedImage{file: file, frame: frame, values: frame.Values(), levels: 1 << frame.Stored, jpeg: jpegQuality, most: math.Inf(1)}
	if frame.Signed {
		s.low = -1 << (frame.Stored - 1)
	}
	return s, luminance, s.learn(luminance)
}

// learn finds the slope of luminance by stored value and the span of the window.
func (s *storedImage) learn(luminance *dicom.Luminance) error {
	every := make([]int32, s.levels)
	for i := range every {
		every[i] = s.low + int32(i)
	}
	ramp := *s.frame
	ramp.Rows, ramp.Columns = 1, s.levels
	ramp.Data = make([]byte, s.levels*s.frame.Allocated/8)
	put(&ramp, every)
	table, err := s.file.LuminanceOf(&ramp)
	if err != nil {
		return err
	}
	// Without a window the pipeline spreads the values of the frame: what it does
	// to all values is then not what it does to this frame.
	for i, v := range s.values {
		if math.Abs(float64(table.Values[v-s.low]-luminance.Values[i])) > 1e-5 {
			s.spread(luminance)
			return nil
		}
	}
	between, first, last := 0, math.Inf(1), math.Inf(-1)
	for _, v := range table.Values {
		if v > 0 && v < 1 {
			between++
		}
		first, last = min(first, float64(v)), max(last, float64(v))
	}
	s.span = float64(s.levels)
	if between > 0 && last > first {
		s.span = float64(between+1) / (last - first)
	}
	// Differences over a hundredth of the window smooth the steps of a table.
	h := max(1, int(s.span/200))
	s.slope = make([]float64, s.levels)
	for i := range s.slope {
		from, to := max(0, i-h), min(s.levels-1, i+h)
		s.slope[i] = float64(table.Values[to]-table.Values[from]) / float64(to-from)
	}
	return nil
}

// spread is learn for a file without a window: least and largest value are black
// and white.
func (s *storedImage) spread(luminance *dicom.Luminance) {
	low, high := slices.Min(s.values), slices.Max(s.values)
	sense := 1.0
	for i, v := range s.values {
		if v == high && luminance.Values[i] < 0.5 {
			sense = -1
		}
	}
	s.span = max(1, float64(high)-float64(low))
	s.slope = slices.Repeat([]float64{sense / s.span}, s.levels)
}

// put writes stored values into a frame's cells; what else is in them stays.
func put(f *dicom.Frame, values []int32) {
	shift := uint(f.High + 1 - f.Stored)
	mask := uint32(1)<<f.Stored - 1
	for i, v := range values {
		cell := uint32(v) & mask << shift
		if f.Allocated == 8 {
			f.Data[i] = byte(uint32(f.Data[i])&^(mask<<shift) | cell)
			continue
		}
		old := uint32(binary.LittleEndian.Uint16(f.Data[2*i:]))
		binary.LittleEndian.PutUint16(f.Data[2*i:], uint16(old&^(mask<<shift)|cell))
	}
}

func (s *storedImage) Describe() attack.Description {
	return attack.Description{Shape: []int64{1, int64(s.frame.Rows), int64(s.frame.Columns)}, Classes: s.inner.Describe().Classes,
		Low: 0, High: float64(s.levels-1) / s.span}
}

// pixels are the stored values in units of the window.
func (s *storedImage) pixels() []float32 {
	out := make([]float32, len(s.values))
	for i, v := range s.values {
		out[i] = float32(min((float64(v)-float64(s.low))/s.span, float64(s.levels-1)/s.span))
	}
	return out
}

// quantise returns the stored values that pixels stand for: the nearest ones that
// are within the bound as whole numbers.
func (s *storedImage) quantise(pixels []float32) []int32 {
	out := make([]int32, len(pixels))
	least, most := float64(s.low), float64(s.low)+float64(s.levels-1)
	for i, p := range pixels {
		from := float64(s.values[i])
		v := math.Round(float64(p)*s.span + float64(s.low))
		out[i] = int32(min(max(v, from-s.most, least), from+s.most, most))
	}
	return out
}

// render is the frame with other stored values, as it comes out of the file.
func (s *storedImage) render(values []int32) (*dicom.Frame, []byte, error) {
	f := *s.frame
	f.Data = slices.Clone(s.frame.Data)
	put(&f, values)
	if s.jpeg == 0 {
		return &f, nil, nil
	}
	var b bytes.Buffer
	grey := &image.Gray{Pix: f.Data, Stride: f.Columns, Rect: image.Rect(0, 0, f.Columns, f.Rows)}
	if err := jpeg.Encode(&b, grey, &jpeg.Options{Quality: s.jpeg}); err != nil {
		return nil, nil, fmt.Errorf("encoding as baseline JPEG: %w", err)
	}
	decoded, err := jpeg.Decode(bytes.NewReader(b.Bytes()))
	if err != nil {
		return nil, nil, err
	}
	back, ok := decoded.(*image.Gray)
	if !ok {
		return nil, nil, errors.New("a grey JPEG came back in colour")
	}
	for r := range f.Rows {
		copy(f.Data[r*f.Columns:(r+1)*f.Columns], back.Pix[r*back.Stride:])
	}
	return &f, b.Bytes(), nil
}

func (s *storedImage) Ask(ctx context.Context, pixels []float32, o *attack.Objective) (attack.Answer, error) {
	size := len(s.values)
	if len(pixels) == 0 || len(pixels)%size != 0 {
		return attack.Answer{}, fmt.Errorf("%d pixels: %w: want a multiple of %d", len(pixels), attack.ErrAsk, size)
	}
	luminance := make([]float32, 0, len(pixels))
	stored := make([]int32, 0, len(pixels))
	for row := range slices.Chunk(pixels, size) {
		values := s.quantise(row)
		frame, _, err := s.render(values)
		if err != nil {
			return attack.Answer{}, err
		}
		l, err := s.file.LuminanceOf(frame)
		if err != nil {
			return attack.Answer{}, err
		}
		luminance, stored = append(luminance, l.Values...), append(stored, values...)
	}
	a, err := s.inner.Ask(ctx, luminance, o)
	for i := range a.Gradient {
		a.Gradient[i] *= float32(s.slope[stored[i]-s.low] * s.span)
	}
	return a, err
}

// written is the file with the stored values that pixels stand for: native, or
// baseline JPEG.
func (s *storedImage) written(pixels []float32) ([]byte, error) {
	frame, coded, err := s.render(s.quantise(pixels))
	if err != nil {
		return nil, err
	}
	out := s.file.Clone()
	d := out.DataSet
	if coded != nil {
		out.TransferSyntax = dicom.JPEGBaseline
		d.PutString(dicom.LossyImageCompression, "01")
		d.PutFloat(dicom.LossyImageCompressionRatio, math.Round(10*float64(len(frame.Data))/float64(len(coded)))/10)
		d.PutString(dicom.LossyImageCompressionMethod, "ISO_10918_1")
		d.Put(dicom.Encapsulate([][]byte{coded}))
	} else {
		out.TransferSyntax = dicom.ExplicitLittleEndian
		d.PutBytes(dicom.PixelData, dicom.OW, frame.Data)
	}
	var b bytes.Buffer
	if err := out.Write(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// asDICOM says whether every example of a set is a DICOM file of a folder.
func asDICOM(folder string, set *train.Set) bool {
	info, err := os.Stat(folder)
	if err != nil || !info.IsDir() || len(set.Names) == 0 {
		return false
	}
	for _, name := range set.Names {
		f, err := os.Open(filepath.Join(folder, name))
		if err != nil {
			return false
		}
		head := make([]byte, 132)
		_, err = io.ReadFull(f, head)
		f.Close()
		if err != nil || string(head[128:]) != "DICM" {
			return false
		}
	}
	return true
}

// bareManifest is the preparation of a bare graph, as vigie train and vigie eval
// have it.
func (o Options) bareManifest(r *replay) (*model.Manifest, error) {
	if len(r.input.Shape) != 4 || !r.input.Shape[1].Known() || !r.input.Shape[2].Known() || !r.input.Shape[3].Known() {
		return nil, fmt.Errorf("job: DICOM files for input %v: %w: want [N, channels, rows, columns] of fixed size", r.input, ErrAsk)
	}
	in := model.Input{Name: r.input.Name, Layout: "NCHW", Rows: int(r.input.Shape[2].Value), Columns: int(r.input.Shape[3].Value), Channels: int(r.input.Shape[1].Value),
		Aspect: o.Data.Aspect, Interpolation: model.Area, Photometric: model.Bright, Range: model.Range{High: 1}}
	if in.Aspect == "" {
		in.Aspect = model.Stretch
	}
	if in.Channels != 1 && in.Channels != 3 {
		return nil, fmt.Errorf("job: DICOM files for input %v: %w: want 1 or 3 channels", r.input, ErrAsk)
	}
	for c := range in.Channels {
		if len(o.Mean) > 0 {
			in.Mean = append(in.Mean, float64(number(o.Mean, c, 0)))
		}
		if len(o.Std) > 0 {
			in.Std = append(in.Std, float64(number(o.Std, c, 1)))
		}
	}
	return &model.Manifest{Input: in, Output: model.Output{Name: r.output}}, nil
}

// studied is a DICOM file after an attack.
type studied struct {
	image         *storedImage
	before, after *dicom.Luminance
	pixels        []float32
	data          []byte // the file, where it is fooled
}

// attackFiles attacks each file by itself at one bound.
func (s *subject) attackFiles(ctx context.Context, o Options, row attack.Row, options attack.Options, report *Report, progress func(float64)) (*attack.Result, error) {
	merged := &attack.Result{Attack: row.Name}
	s.files = nil
	networks := map[[2]int]*attack.Network{}
	defer func() {
		for _, n := range networks {
			n.Close()
		}
	}()
	for i, at := range s.index {
		name := s.set.Names[at]
		image, before, err := openStored(filepath.Join(o.Data.Data, name), o.JPEG)
		if err != nil {
			return nil, fmt.Errorf("job: reading %s: %w", name, err)
		}
		size := [2]int{before.Rows, before.Columns}
		if networks[size] == nil {
			n := s.network
			n.Shape = []int64{1, int64(size[0]), int64(size[1])}
			if networks[size], err = attack.Open(s.model.Graph, n); err != nil {
				return nil, err
			}
		}
		image.inner = networks[size]
		if options.Eps > 0 {
			if image.most = math.Floor(options.Eps*image.span + 1e-6); image.most < 1 {
				return nil, fmt.Errorf("job: %s: eps %v is less than one of its stored values, of which %.0f make the window: %w", name, options.Eps, image.span, ErrAsk)
			}
		}
		file := &studied{image: image, before: before, pixels: image.pixels()}
		c, one, err := s.attackFile(ctx, file, row, options, s.labels[i], func(done float64) { progress((float64(i) + done) / float64(len(s.index))) })
		if err != nil {
			return nil, fmt.Errorf("job: %s: %w", name, err)
		}
		if one != nil {
			merged.Options = one.Options
			merged.Queries, merged.Gradients = merged.Queries+one.Queries, merged.Gradients+one.Gradients
			if one.Cases[0].Fooled && !c.Fooled {
				report.Unconfirmed++
			}
		}
		merged.Cases = append(merged.Cases, c)
		s.files = append(s.files, file)
	}
	if merged.Attacked() == 0 {
		return nil, fmt.Errorf("job: %d files: %w: none is answered rightly and of another class than the one aimed at", len(merged.Cases), attack.ErrNothing)
	}
	return merged, nil
}

// attackFile attacks one file; what is found is written, read back and asked
// about once more.
func (s *subject) attackFile(ctx context.Context, file *studied, row attack.Row, options attack.Options, label int, progress func(float64)) (attack.Case, *attack.Result, error) {
	clean, err := s.replay.luminance(ctx, file.before)
	if err != nil {
		return attack.Case{}, nil, err
	}
	c := attack.Case{Label: label, Answer: clean, After: clean, Correct: clean == label}
	file.after = file.before
	if !c.Correct || options.Class != nil && *options.Class == label {
		return c, nil, nil
	}
	options.Progress = progress
	r, err := attack.Run(ctx, file.image, row.Name, file.pixels, []int{label}, options)
	if errors.Is(err, attack.ErrNothing) { // the file as it would be written is answered wrongly as it is
		return c, nil, nil
	}
	if err != nil {
		return c, nil, err
	}
	c.Attacked, c.Margin = true, r.Cases[0].Margin
	if !r.Cases[0].Fooled {
		return c, r, nil
	}
	data, err := file.image.written(r.Pixels)
	if err != nil {
		return c, nil, err
	}
	back, err := dicom.Parse(bytes.NewReader(data), dicom.Limits{})
	if err != nil {
		return c, nil, fmt.Errorf("reading back: %w", err)
	}
	seen, err := back.Luminance(0)
	if err != nil {
		return c, nil, fmt.Errorf("reading back: %w", err)
	}
	answer, err := s.replay.luminance(ctx, seen)
	if err != nil {
		return c, nil, err
	}
	fooled := answer != label
	if options.Class != nil {
		fooled = answer == *options.Class
	}
	if !fooled {
		return c, r, nil
	}
	c.Fooled, c.After, c.Place, c.Distance = true, answer, r.Cases[0].Place, file.image.distance(r.Pixels)
	file.after, file.data = seen, data
	return c, r, nil
}

// distance measures what was written, whole stored values, in units of the window.
func (s *storedImage) distance(pixels []float32) map[attack.Norm]float64 {
	d := map[attack.Norm]float64{}
	for i, v := range s.quantise(pixels) {
		by := math.Abs(float64(v)-float64(s.values[i])) / s.span
		d[attack.Linf] = max(d[attack.Linf], by)
		d[attack.L1] += by
		d[attack.L2] += by * by
		if by > 0 {
			d[attack.L0]++
		}
	}
	d[attack.L2] = math.Sqrt(d[attack.L2])
	return d
}

// saveFiles writes the files after the attack, under their names, those that are
// not fooled as they were, and labels.csv.
func (s *subject) saveFiles(dir string, o Options, r *attack.Result) error {
	table := []string{"file,label,fooled,answer_before,answer_after"}
	for i, c := range r.Cases {
		name := s.set.Names[s.index[i]]
		data := s.files[i].data
		if data == nil {
			var err error
			if data, err = os.ReadFile(filepath.Join(o.Data.Data, name)); err != nil {
				return fmt.Errorf("job: saving files: %w", err)
			}
		}
		out := filepath.ToSlash(name)
		if !strings.EqualFold(filepath.Ext(out), ".dcm") {
			out += ".dcm"
		}
		path := filepath.Join(dir, filepath.FromSlash(out))
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			return fmt.Errorf("job: saving files: %w", err)
		}
		label := fmt.Sprint(c.Label)
		if names := s.names(); names != nil {
			label = names[c.Label]
		}
		table = append(table, fmt.Sprintf("%q,%q,%t,%d,%d", out, label, c.Fooled, c.Answer, c.After))
	}
	if err := os.WriteFile(filepath.Join(dir, "labels.csv"), []byte(strings.Join(table, "\n")+"\n"), 0o644); err != nil {
		return fmt.Errorf("job: saving labels: %w", err)
	}
	return nil
}
