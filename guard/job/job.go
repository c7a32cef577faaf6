// Package job fits and tries guards as the command line asks for it: it opens a
// model package, reads labelled images the way that every other command does,
// prepares them as a case's are, and hands them to package guard.
//
//	r, err := job.Fit{Package: "models/chest", Data: probe.Test{…}}.Run(ctx)
package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// ErrAsk says that what is asked does not fit the package or the data.
var ErrAsk = errors.New("cannot be guarded like this")

// Network is a package's graph as package guard takes it. Black and white are
// what the manifest's preparation makes of them.
func Network(p *model.Package) (guard.Network, error) {
	in := p.Manifest.Input
	n := guard.Network{
		Model: p.Graph, Input: in.Name, Output: p.Manifest.Output.Name, Activation: p.Manifest.Output.Activation,
		Shape: in.Shape(1)[1:], ChannelsLast: in.Layout == "NHWC",
	}
	for _, end := range []struct {
		brightness float32
		to         *[]float64
	}{{0, &n.Black}, {1, &n.White}} {
		flat := &dicom.Luminance{Rows: in.Rows, Columns: in.Columns, Values: make([]float32, in.Rows*in.Columns)}
		for i := range flat.Values {
			flat.Values[i] = end.brightness
			if in.Photometric == model.Inverted {
				flat.Values[i] = 1 - end.brightness
			}
		}
		prepared, err := p.Manifest.Prepare(flat)
		if err != nil {
			return n, err
		}
		values, err := engine.Values[float32](prepared)
		if err != nil {
			return n, err
		}
		for c := range in.Channels {
			at := c
			if in.Layout != "NHWC" {
				at = c * in.Rows * in.Columns
			}
			*end.to = append(*end.to, float64(values[at]))
		}
	}
	return n, nil
}

// Fit asks for guards of a package.
type Fit struct {
	Package string
	Data    probe.Test // images that the model was not trained on
	Options guard.FitOptions
}

// Fitted is what was fitted and where it went.
type Fitted struct {
	guard.Report
	Package  string            `json:"package"`
	Data     string            `json:"data"`
	Digest   vigie.ModelDigest `json:"digest"` // of the package with its guards
	Replaced vigie.ModelDigest `json:"replaced"`
	Bytes    int               `json:"bytes"` // of the statistics
	Patients bool              `json:"patients_known"`
}

// Run fits the guards, writes them into the package and seals it.
func (f Fit) Run(ctx context.Context) (*Fitted, error) {
	p, err := model.Open(f.Package)
	if err != nil {
		return nil, err
	}
	n, err := Network(p)
	if err != nil {
		return nil, err
	}
	set, digest, err := read(ctx, p, f.Data)
	if err != nil {
		return nil, err
	}
	images, err := prepare(p, set)
	if err != nil {
		return nil, err
	}
	_, subject, err := p.Guards()
	if err != nil && !errors.Is(err, model.ErrNoGuards) {
		return nil, err
	}
	f.Options.Subject = subject
	f.Options.Data = fmt.Sprintf("%s %s %s", filepath.Base(f.Data.Data), f.Data.Split, digest)
	statistics, report, err := guard.Fit(ctx, n, guard.Examples{Images: images, Patients: set.Patients, Names: set.Names}, f.Options)
	if err != nil {
		return nil, err
	}
	data, err := statistics.Marshal()
	if err != nil {
		return nil, err
	}
	out := &Fitted{Report: *report, Package: f.Package, Data: f.Options.Data, Replaced: p.Digest, Bytes: len(data), Patients: set.Patients != nil}
	out.Digest, err = p.WriteGuards(data)
	return out, err
}

// read opens the images that a test names, in the size that the package wants.
func read(ctx context.Context, p *model.Package, t probe.Test) (*train.Set, string, error) {
	o := t.Options
	o.Only, o.Aspect = t.Split, p.Manifest.Input.Aspect
	if !strings.EqualFold(filepath.Ext(o.Data), ".npz") { // it holds images of one size
		o.Rows, o.Columns, o.Channels = p.Manifest.Input.Rows, p.Manifest.Input.Columns, 1
		if o.Classes == nil && len(o.LabelColumns) < 2 {
			for _, l := range p.Manifest.Output.Labels {
				o.Classes = append(o.Classes, l.Name)
			}
		}
	}
	data, err := studies.Open(ctx, o)
	if err != nil {
		return nil, "", err
	}
	set, err := data.Set(t.Split)
	if err != nil {
		return nil, "", fmt.Errorf("job: reading %s: %w", t.Data, err)
	}
	return set, data.Digest, nil
}

// prepare brings images to the model's input as a case's are.
func prepare(p *model.Package, set *train.Set) ([][]float32, error) {
	if set.Channels != 1 || set.Shape != nil {
		return nil, fmt.Errorf("job: images of %d channels: %w: a package reads luminance", set.Channels, ErrAsk)
	}
	out := make([][]float32, set.Len())
	for i := range out {
		l := &dicom.Luminance{Rows: set.Rows, Columns: set.Columns, Values: make([]float32, set.Rows*set.Columns)}
		set.Fill(l.Values, i)
		prepared, err := p.Manifest.Prepare(l)
		if err != nil {
			return nil, fmt.Errorf("job: preparing image %d: %w", i, err)
		}
		if out[i], err = engine.Values[float32](prepared); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Write writes what was fitted for people.
func (f *Fitted) Write(w io.Writer) error {
	var s strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&s, format+"\n", args...) }
	line("guards of %s, fitted on %d images and calibrated on %d others (%s, seed %d)", f.Package, f.Fitted, f.Calibrated, f.Data, f.Seed)
	promise := "over all answers together"
	if f.ByClass {
		promise = "for each leading answer by itself"
	}
	line("false alarms       at most %.2g %% promised, %.2g %% expected, %s", 100*f.FalseAlarms, 100*f.Expected, promise)
	line("second look        at about %.2g %% of clean images", 100*f.SecondLook)
	line("layers             %s", strings.Join(f.Layers, ", "))
	if !f.Gradient {
		line("gradient           none: %s", f.WithoutReason)
	}
	if !f.Patients {
		line("patients           not known: images were divided as if each were a patient of its own")
	}
	line("statistics         %s, %d bytes", model.GuardsFile, f.Bytes)
	line("package            %s\n                   was %s: pin the new one where the model is used", f.Digest, f.Replaced)
	_, err := io.WriteString(w, s.String())
	return err
}
