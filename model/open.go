package model

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/onnx"
)

// ErrMismatch is returned for a manifest that does not describe the graph
// beside it; the message lists every difference.
var ErrMismatch = errors.New("the manifest does not match the ONNX graph")

// Package is an opened, verified model package. It does not change.
type Package struct {
	Dir         string
	Manifest    *Manifest
	Graph       *onnx.Model
	ONNX        []byte // model.onnx as it was verified
	Calibration Calibration
	Card        string  // card.md
	Training    []byte  // training.json, nil where there is none
	Explained   *Survey // explanation.json, nil where there is none
	Digest      vigie.ModelDigest
	Files       []string // names, sorted, without the digest file
	layer       string   // the tensor that grad-cam is drawn from
}

// Open reads the package in dir, verifies its digest and checks that manifest,
// calibration and graph fit together. ErrDigest, ErrFile, ErrManifest,
// ErrCalibration, ErrSurvey and ErrMismatch tell what is wrong with it.
func Open(dir string) (*Package, error) {
	files, err := contents(dir)
	if err != nil {
		return nil, err
	}
	return assemble(dir, files)
}

// assemble makes a package of its files.
func assemble(dir string, files map[string][]byte) (*Package, error) {
	for _, name := range required {
		if _, ok := files[name]; !ok {
			return nil, fmt.Errorf("model: opening package %s: %w: %s is missing", dir, ErrFile, name)
		}
	}
	digest, err := verify(files)
	if err != nil {
		return nil, fmt.Errorf("model: opening package %s: %w", dir, err)
	}
	p := &Package{Dir: dir, ONNX: files[GraphFile], Card: string(files[CardFile]), Training: files[TrainingFile], Digest: digest}
	for name := range files {
		if name != DigestFile {
			p.Files = append(p.Files, name)
		}
	}
	slices.Sort(p.Files)
	if p.Manifest, err = ParseManifest(files[ManifestFile]); err != nil {
		return nil, fmt.Errorf("model: opening package %s: %w", dir, err)
	}
	if p.Calibration, err = ParseCalibration(files[CalibrationFile]); err != nil {
		return nil, fmt.Errorf("model: opening package %s: %w", dir, err)
	}
	if p.Graph, err = onnx.Parse(p.ONNX); err != nil {
		return nil, fmt.Errorf("model: opening package %s: reading %s: %w", dir, GraphFile, err)
	}
	if err := p.Graph.Check(); err != nil {
		return nil, fmt.Errorf("model: opening package %s: checking %s: %w", dir, GraphFile, err)
	}
	if p.layer, err = p.Manifest.fits(p.Graph, p.Calibration); err != nil {
		return nil, fmt.Errorf("model: opening package %s: %w", dir, err)
	}
	if data, ok := files[ExplanationFile]; ok {
		if p.Explained, err = ParseSurvey(data); err == nil {
			err = p.Explained.holds(p)
		}
		if err != nil {
			return nil, fmt.Errorf("model: opening package %s: %w", dir, err)
		}
	}
	return p, nil
}

// Layer returns the tensor of the graph that grad-cam is drawn from: the
// manifest's, or the output of the last convolution. Empty when the manifest
// asks for no such method.
func (p *Package) Layer() string { return p.layer }

// fits compares the manifest with the graph and returns the explanation layer.
func (m *Manifest) fits(model *onnx.Model, calibration Calibration) (string, error) {
	var differences []string
	differ := func(format string, args ...any) { differences = append(differences, fmt.Sprintf(format, args...)) }
	constants := make(map[string]bool)
	for _, t := range model.Graph.Initializers {
		constants[t.Name] = true
	}
	bind := map[string]int64{}
	found := false
	for _, in := range model.Graph.Inputs {
		switch {
		case constants[in.Name]:
		case in.Name == m.Input.Name:
			found = true
			m.Input.fits(in, bind, differ)
		default:
			differ("the graph also needs an input %q, which the manifest does not fill", in.Name)
		}
	}
	if !found {
		differ("the manifest fills the input %q, the graph has %s", m.Input.Name, namesOf(model.Graph.Inputs, constants))
	}
	shapes, err := onnx.InferShapes(model, bind)
	if err != nil && !errors.Is(err, onnx.ErrUnknownOperator) {
		differ("the shapes inside the graph do not fit: %v", err)
	}
	m.fitsOutput(model.Graph.Outputs, shapes, differ)
	layer := m.fitsExplanation(model.Graph, shapes, differ)
	if calibration.Method == Temperature && m.Output.Activation == None {
		differ("the calibration is a temperature on logits, but the manifest says that the output already is probabilities")
	}
	if len(differences) > 0 {
		return "", fmt.Errorf("%w:\n  %s", ErrMismatch, strings.Join(differences, "\n  "))
	}
	return layer, nil
}

// Shape returns the shape of the input tensor for a batch.
func (in Input) Shape(batch int64) []int64 {
	if in.Layout == "NHWC" {
		return []int64{batch, int64(in.Rows), int64(in.Columns), int64(in.Channels)}
	}
	return []int64{batch, int64(in.Channels), int64(in.Rows), int64(in.Columns)}
}

func (in Input) fits(declared onnx.Value, bind map[string]int64, differ func(string, ...any)) {
	if declared.Type != onnx.Float {
		differ("input %q: the manifest fills float32, the graph wants %v", in.Name, declared.Type)
	}
	want := in.Shape(1)
	if len(declared.Shape) != len(want) {
		differ("input %q: the manifest fills %d dimensions (%s), the graph has %d", in.Name, len(want), in.Layout, len(declared.Shape))
		return
	}
	for i, dim := range declared.Shape {
		switch {
		case dim.Param != "":
			if other, bound := bind[dim.Param]; bound && other != want[i] {
				differ("input %q: dimension %q stands for both %d and %d", in.Name, dim.Param, other, want[i])
			}
			bind[dim.Param] = want[i]
		case dim.Known() && dim.Value != want[i]:
			differ("input %q, dimension %d of %s: the manifest says %d, the graph %d", in.Name, i+1, in.Layout, want[i], dim.Value)
		}
	}
}

func (m *Manifest) fitsOutput(outputs []onnx.Value, shapes map[string]onnx.Value, differ func(string, ...any)) {
	i := slices.IndexFunc(outputs, func(v onnx.Value) bool { return v.Name == m.Output.Name })
	if i < 0 {
		differ("the manifest reads the output %q, the graph has %s", m.Output.Name, namesOf(outputs, nil))
		return
	}
	out := outputs[i]
	if inferred, ok := shapes[out.Name]; ok && inferred.Shape != nil {
		out = inferred
	}
	if out.Type != onnx.Float {
		differ("output %q: the manifest reads float32, the graph gives %v", out.Name, out.Type)
	}
	if len(out.Shape) != 2 {
		differ("output %q: the manifest reads 2 dimensions (batch, label), the graph gives %d", out.Name, len(out.Shape))
		return
	}
	switch labels := out.Shape[1]; {
	case !labels.Known():
		differ("output %q: the graph does not say how many labels it gives", out.Name)
	case labels.Value != int64(len(m.Output.Labels)):
		differ("output %q: the manifest has %d labels, the graph gives %d", out.Name, len(m.Output.Labels), labels.Value)
	}
}

func namesOf(values []onnx.Value, without map[string]bool) string {
	var names []string
	for _, v := range values {
		if !without[v.Name] {
			names = append(names, fmt.Sprintf("%q", v.Name))
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
