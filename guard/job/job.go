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
	Verify  Verifying
	// WithoutGuards fits the verifiers of the answer only: the package has no input
	// guards, because there are too few images for them.
	WithoutGuards bool
}

// Fitted is what was fitted and where it went.
type Fitted struct {
	*guard.Report                   // nil without guards
	Package       string            `json:"package"`
	Data          string            `json:"data"`
	Digest        vigie.ModelDigest `json:"digest"` // of the package with its guards
	Replaced      vigie.ModelDigest `json:"replaced"`
	Bytes         int               `json:"bytes"` // of the statistics
	Patients      bool              `json:"patients_known"`
	Labelled      bool              `json:"labelled"`
	Verifiers     *guard.Verifiers  `json:"verifiers"`
	Promises      []guard.Promise   `json:"promises,omitempty"` // of the sets, label by label
}

// Run fits guards and verifiers, writes them into the package and seals it.
func (f Fit) Run(ctx context.Context) (*Fitted, error) {
	p, err := model.Open(f.Package)
	if err != nil {
		return nil, err
	}
	n, err := Network(p)
	if err != nil {
		return nil, err
	}
	_, subject, err := p.Guards()
	if err == nil && f.WithoutGuards {
		return nil, fmt.Errorf("job: %w: the package has guards, which a budget must count: fit them again too", ErrAsk)
	}
	if err != nil && !errors.Is(err, model.ErrNoGuards) {
		return nil, err
	}
	options, err := f.options(p, subject)
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
	f.Options.Subject = subject
	f.Options.Data = fmt.Sprintf("%s %s %s", filepath.Base(f.Data.Data), f.Data.Split, digest)
	options.Data = f.Options.Data
	truth := truths(p, set)
	examples := guard.Examples{Images: images, Patients: set.Patients, Names: set.Names}
	held, _, err := answered(ctx, p, options.Apart, images, truth, f.Verify.Margin, f.Options.Threads)
	if err == nil {
		err = certify(ctx, p, images, set.Rows, set.Columns, held, f.Options.Seed, f.Options.Threads)
	}
	if err != nil {
		return nil, err
	}
	first, second := guard.Halves(examples, f.Options.Seed)
	if !f.WithoutGuards {
		if first, second, err = guard.Divide(examples, f.Options); err != nil {
			return nil, err
		}
	}
	pick := func(at []int) (out []guard.Held) {
		for _, i := range at {
			out = append(out, held[i])
		}
		return out
	}
	// A budget that does not suffice is said before the guards take their time.
	verifiers, err := guard.FitVerifiers(pick(first), pick(second), options)
	if err != nil {
		return nil, err
	}
	out := &Fitted{Package: f.Package, Data: f.Options.Data, Replaced: p.Digest, Patients: set.Patients != nil, Labelled: truth != nil}
	var data []byte
	if !f.WithoutGuards {
		statistics, report, err := guard.Fit(ctx, n, examples, f.Options)
		if err != nil {
			return nil, err
		}
		if data, err = statistics.Marshal(); err != nil {
			return nil, err
		}
		out.Report, out.Bytes = report, len(data)
		if err := alarms(ctx, p, statistics, subject, images, held, f.Options.Threads); err != nil {
			return nil, err
		}
		options.InputsExpected = report.Expected
		if verifiers, err = guard.FitVerifiers(pick(first), pick(second), options); err != nil {
			return nil, err
		}
	}
	written, err := verifiers.Marshal()
	if err != nil {
		return nil, err
	}
	if out.Verifiers = verifiers.Summary(); verifiers.Sets != nil {
		out.Promises = verifiers.Sets.Promises()
	}
	out.Digest, err = p.WriteFitted(data, written)
	return out, err
}

// alarms says of each image whether the guards raise one.
func alarms(ctx context.Context, p *model.Package, s *guard.Statistics, subject vigie.ModelDigest, images [][]float32, held []guard.Held, threads int) error {
	g, err := guard.Open(p.Graph, s, guard.Options{Subject: subject, Threads: threads})
	if err != nil {
		return err
	}
	for i, values := range images {
		look, err := g.Run(ctx, engine.Float32(p.Manifest.Input.Shape(1), values))
		if err != nil {
			return errors.Join(fmt.Errorf("job: image %d: %w", i, err), g.Close())
		}
		results, err := g.Judge(ctx, look)
		if err != nil {
			return errors.Join(fmt.Errorf("job: image %d: %w", i, err), g.Close())
		}
		held[i].Alarm = results[len(results)-1].Alarm
	}
	return g.Close()
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
	if r := f.Report; r != nil {
		line("guards of %s, fitted on %d images and calibrated on %d others (%s, seed %d)", f.Package, r.Fitted, r.Calibrated, f.Data, r.Seed)
		promise := "over all answers together"
		if r.ByClass {
			promise = "for each leading answer by itself"
		}
		line("false alarms       at most %.2g %% promised, %.2g %% expected, %s", 100*r.FalseAlarms, 100*r.Expected, promise)
		line("second look        at about %.2g %% of clean images", 100*r.SecondLook)
		line("layers             %s", strings.Join(r.Layers, ", "))
		if !r.Gradient {
			line("gradient           none: %s", r.WithoutReason)
		}
	} else {
		line("verifiers of %s, without input guards (%s, seed %d)", f.Package, f.Data, f.Verifiers.Seed)
	}
	writeVerifiers(&s, f.Verifiers, f.Promises)
	if !f.Patients {
		line("patients           not known: images were divided as if each were a patient of its own")
	}
	if f.Report != nil {
		line("statistics         %s, %d bytes", model.GuardsFile, f.Bytes)
	}
	line("package            %s\n                   was %s: pin the new one where the model is used", f.Digest, f.Replaced)
	_, err := io.WriteString(w, s.String())
	return err
}
