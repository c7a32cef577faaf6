package job

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/probe"
)

// checkSave says before the attack what cannot be written after it.
func (o Options) checkSave() error {
	if o.Save == "" {
		return nil
	}
	switch strings.ToLower(filepath.Ext(o.Save)) {
	case ".npz":
		info, err := os.Stat(filepath.Dir(o.Save))
		if err != nil {
			return fmt.Errorf("job: saving images: %w", err)
		}
		if !info.IsDir() {
			return fmt.Errorf("job: saving images to %s: %w: %s is no folder", o.Save, ErrAsk, filepath.Dir(o.Save))
		}
		return nil
	case "":
		entries, err := os.ReadDir(o.Save)
		if err == nil && len(entries) > 0 {
			return fmt.Errorf("job: saving images to %s: %w: the folder is not empty", o.Save, ErrAsk)
		}
		if errors.Is(err, os.ErrNotExist) {
			err = os.MkdirAll(o.Save, 0o755)
		}
		if err != nil {
			return fmt.Errorf("job: saving images: %w", err)
		}
		return nil
	}
	return fmt.Errorf("job: saving images to %s: %w: name a .npz file or a folder", o.Save, ErrAsk)
}

// save keeps the images, so that anyone can replay them elsewhere. The file is
// in MedMNIST's layout: SPLIT_images are those after the attack as float32,
// SPLIT_labels their classes; beside them clean_images, fooled, answer before
// and after, and index in the split. With guards, released says which passed
// them, and the image is the one that did.
func (s *subject) save(o Options, report *Report, r *attack.Result) error {
	if o.Save == "" {
		return nil
	}
	report.Saved = o.Save
	if s.dicom {
		return s.saveFiles(o.Save, o, r)
	}
	d := s.target.Describe()
	if strings.EqualFold(filepath.Ext(o.Save), ".npz") {
		n := int64(len(r.Cases))
		shape := append([]int64{n}, d.Shape...)
		labels, before, after, index := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
		fooled, attacked := make([]uint8, n), make([]uint8, n)
		for i, c := range r.Cases {
			labels[i], before[i], after[i], index[i] = int64(c.Label), int64(c.Answer), int64(c.Answer), int64(s.index[i])
			if c.Attacked {
				attacked[i] = 1
			}
			if c.Fooled {
				fooled[i], after[i] = 1, int64(c.After)
			}
		}
		column := []int64{n}
		all := map[string]engine.Tensor{
			o.Data.Split + "_images": engine.Float32(shape, r.Pixels),
			o.Data.Split + "_labels": engine.Int64([]int64{n, 1}, labels),
			"clean_images":           engine.Float32(shape, s.pixels),
			"attacked":               engine.Uint8(column, attacked),
			"fooled":                 engine.Uint8(column, fooled),
			"answer_before":          engine.Int64(column, before),
			"answer_after":           engine.Int64(column, after),
			"index":                  engine.Int64(column, index),
		}
		if s.guards != nil {
			released := make([]uint8, n)
			for i, passed := range s.guards.passed {
				if passed {
					released[i] = 1
				}
			}
			all["released"] = engine.Uint8(column, released)
		}
		return probe.Save(o.Save, all, nil)
	}
	return s.savePictures(o.Save, r)
}

// savePictures writes a 16-bit PNG of each image after the attack and labels.csv.
func (s *subject) savePictures(dir string, r *attack.Result) error {
	d := s.target.Describe()
	if len(d.Shape) != 3 || d.Shape[0] != 1 && d.Shape[0] != 3 {
		return fmt.Errorf("job: saving examples of shape %v as pictures: %w: name a .npz file", d.Shape, ErrAsk)
	}
	var table bytes.Buffer
	w := csv.NewWriter(&table)
	w.Write([]string{"file", "label", "fooled", "answer_before", "answer_after"})
	for i, c := range r.Cases {
		file := fmt.Sprintf("%05d.png", s.index[i])
		var b bytes.Buffer
		if err := png.Encode(&b, picture16(d, r.Pixels[i*d.Size():(i+1)*d.Size()])); err != nil {
			return fmt.Errorf("job: drawing %s: %w", file, err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), b.Bytes(), 0o644); err != nil {
			return fmt.Errorf("job: saving images: %w", err)
		}
		w.Write([]string{file, strconv.Itoa(c.Label), strconv.FormatBool(c.Fooled), strconv.Itoa(c.Answer), strconv.Itoa(c.After)})
	}
	w.Flush()
	if err := errors.Join(w.Error(), os.WriteFile(filepath.Join(dir, "labels.csv"), table.Bytes(), 0o644)); err != nil {
		return fmt.Errorf("job: saving labels: %w", err)
	}
	return nil
}

func picture16(d attack.Description, pixels []float32) image.Image {
	rows, columns := int(d.Shape[1]), int(d.Shape[2])
	at := func(c, i int) uint16 {
		v := (float64(pixels[c*rows*columns+i]) - d.Low) / (d.High - d.Low)
		return uint16(math.Round(min(max(v, 0), 1) * 0xffff))
	}
	box := image.Rect(0, 0, columns, rows)
	if d.Shape[0] == 1 {
		out := image.NewGray16(box)
		for i := range rows * columns {
			out.SetGray16(i%columns, i/columns, color.Gray16{Y: at(0, i)})
		}
		return out
	}
	out := image.NewRGBA64(box)
	for i := range rows * columns {
		out.SetRGBA64(i%columns, i/columns, color.RGBA64{R: at(0, i), G: at(1, i), B: at(2, i), A: 0xffff})
	}
	return out
}
