package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train/studies"
)

// brightModel answers 1 where the middle of an 8×8 image is brighter than a level.
func brightModel(t *testing.T, dir string, level float32) string {
	t.Helper()
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "n"}
	x := b.Input("x", onnx.Float, batch, onnx.Dim{Value: 1}, onnx.Dim{Value: 8}, onnx.Dim{Value: 8})
	w := make([]float32, 64)
	for r := 2; r < 6; r++ {
		for c := 2; c < 6; c++ {
			w[r*8+c] = 20.0 / 16
		}
	}
	z := b.Op("MatMul", []string{b.Op("Flatten", []string{x}, onnx.IntAttribute("axis", 1)), b.Weight("w", []int64{64, 1}, w)})
	z = b.Op("Sub", []string{z, b.Weight("level", []int64{1}, []float32{20 * level})})
	b.Output(z, onnx.Float, batch, onnx.Dim{Value: 1})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "bright.onnx")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// middle is the mean of what the model looks at.
func middle(l *dicom.Luminance) float64 {
	sum, n := 0.0, 0
	for r := l.Rows / 4; r < l.Rows*3/4; r++ {
		for c := l.Columns / 4; c < l.Columns*3/4; c++ {
			sum += float64(l.At(r, c))
			n++
		}
	}
	return sum / float64(n)
}

// What is found is a file: whole stored values within the bound, read back by the
// same parser, and turned for the model that reads it. Windows, inversion and
// compression are in the way.
func TestFoundFilesSurviveThePACS(t *testing.T) {
	for _, c := range []struct {
		name   string
		o      phantom.Options
		jpeg   int
		attack attack.Name
	}{
		{"twelve bits", phantom.Options{}, 0, attack.PGD},
		{"inverted and run-length coded", phantom.Options{Photometric: "MONOCHROME1", TransferSyntax: dicom.RLELossless}, 0, attack.APGDCE},
		{"eight bits as JPEG", phantom.Options{TransferSyntax: dicom.JPEGBaseline}, 90, attack.PGD},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			data := filepath.Join(dir, "files")
			if err := os.Mkdir(data, 0o755); err != nil {
				t.Fatal(err)
			}
			c.o.Rows, c.o.Columns = 64, 64
			var files []*dicom.File
			mean := 0.0
			const count = 8
			for i := range count {
				f, err := phantom.Chest(uint64(i+1), c.o)
				if err != nil {
					t.Fatal(err)
				}
				l, err := f.Luminance(0)
				if err != nil {
					t.Fatal(err)
				}
				files, mean = append(files, f), mean+middle(l)/count
			}
			labels := "file,label\n"
			for i, f := range files {
				l, err := f.Luminance(0)
				if err != nil {
					t.Fatal(err)
				}
				label := 0
				if middle(l) > mean {
					label = 1
				}
				var b bytes.Buffer
				if err := f.Write(&b); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(data, fmt.Sprintf("%d.dcm", i)), b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				labels += fmt.Sprintf("%d.dcm,%d\n", i, label)
			}
			table := filepath.Join(dir, "labels.csv")
			if err := os.WriteFile(table, []byte(labels), 0o644); err != nil {
				t.Fatal(err)
			}
			eps, err := ParseEps("0.04")
			if err != nil {
				t.Fatal(err)
			}
			o := Options{Model: brightModel(t, dir, float32(mean)), Attack: c.attack, Eps: eps, JPEG: c.jpeg, Save: filepath.Join(dir, "after"), Report: filepath.Join(dir, "report.html"),
				Data:      probe.Test{Options: studies.Options{Data: data, Labels: table, Seed: 1, Shares: []float64{0.5, 0.5}, Classes: []string{"0", "1"}}, Split: "all"},
				Attacking: attack.Options{Seed: 1, Steps: 15}}
			r, err := o.Run(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			if r.Attacked < 6 || r.Fooled < 2 {
				t.Fatalf("%d attacked, %d fooled: the test says nothing", r.Attacked, r.Fooled)
			}
			fooled := 0
			for i, f := range files {
				raw, err := os.ReadFile(filepath.Join(o.Save, fmt.Sprintf("%d.dcm", i)))
				if err != nil {
					t.Fatal(err)
				}
				back, err := dicom.Parse(bytes.NewReader(raw), dicom.Limits{})
				if err != nil {
					t.Fatal(err)
				}
				before, err := f.Luminance(0)
				if err != nil {
					t.Fatal(err)
				}
				after, err := back.Luminance(0)
				if err != nil {
					t.Fatal(err)
				}
				if (middle(before) > mean) != (middle(after) > mean) {
					fooled++
				}
				if c.jpeg > 0 {
					if bytes.Equal(raw, nil) || back.TransferSyntax != dicom.JPEGBaseline {
						t.Errorf("file %d is in %s", i, back.TransferSyntax)
					}
					continue // compression adds to what was bounded
				}
				image, _, err := openStored(filepath.Join(data, fmt.Sprintf("%d.dcm", i)), 0)
				if err != nil {
					t.Fatal(err)
				}
				frame, err := back.Frame(0, dicom.Limits{})
				if err != nil {
					t.Fatal(err)
				}
				for p, v := range frame.Values() {
					if math.Abs(float64(v-image.values[p])) > eps[0].Value*image.span {
						t.Fatalf("file %d, pixel %d: stored %d, was %d, of a window of %v", i, p, v, image.values[p], image.span)
					}
				}
			}
			if fooled != r.Fooled {
				t.Errorf("%d of the files written are turned, the report says %d", fooled, r.Fooled)
			}
			if r.Unconfirmed != 0 {
				t.Errorf("%d files fooled the target and not the path", r.Unconfirmed)
			}
		})
	}
}

// The slope that stands for the grayscale pipeline must be that of differences.
func TestTheSlopeGoesThroughTheWindow(t *testing.T) {
	dir := t.TempDir()
	f, err := phantom.Chest(3, phantom.Options{Rows: 64, Columns: 64, Photometric: "MONOCHROME1"})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := f.Write(&b); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "x.dcm")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	s, l, err := openStored(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for i, v := range s.values {
		if l.Values[i] < 0.1 || l.Values[i] > 0.9 || i%37 != 0 {
			continue
		}
		moved := append([]int32{}, s.values...)
		h := int32(s.span / 50)
		moved[i] += h
		frame, _, err := s.render(moved)
		if err != nil {
			t.Fatal(err)
		}
		after, err := s.file.LuminanceOf(frame)
		if err != nil {
			t.Fatal(err)
		}
		want, got := float64(after.Values[i]-l.Values[i])/float64(h), s.slope[v-s.low]
		if math.Abs(got*s.span-want*s.span) > 0.05 || want >= 0 {
			t.Errorf("pixel %d: slope %v, differences say %v in units of the window", i, got*s.span, want*s.span)
		}
		checked++
	}
	if checked < 10 {
		t.Errorf("%d pixels were checked", checked)
	}
	if _, _, err := openStored(path, 90); !errors.Is(err, ErrAsk) || !strings.Contains(err.Error(), "JPEG") {
		t.Errorf("twelve bits as JPEG: got error %v", err)
	}
}
