package model

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/onnx"
)

// NoExplanation is the method of a package that wants no map.
const NoExplanation = "none"

// spelled are the methods that a manifest spells otherwise than package explain.
var spelled = map[string]explain.Method{"grad-cam": explain.GradCAM, "grad-cam++": explain.GradCAMPlusPlus}

// MethodName is how a manifest spells a method.
func MethodName(m explain.Method) string {
	for name, method := range spelled {
		if method == m {
			return name
		}
	}
	return string(m)
}

// MethodOf reads a manifest's spelling, false if it names no method.
func MethodOf(name string) (explain.Method, bool) {
	for _, d := range explain.Methods() {
		if MethodName(d.Method) == name {
			return d.Method, true
		}
	}
	return "", false
}

// MethodNames lists the methods as a manifest spells them, in the order of the
// table of package explain.
func MethodNames() []string {
	var names []string
	for _, d := range explain.Methods() {
		names = append(names, MethodName(d.Method))
	}
	return names
}

// The backgrounds that a manifest may choose.
const (
	Mean  = "mean"  // the image's own mean
	Blur  = "blur"  // the image seen through a Gaussian of a twentieth of its width
	Black = "black" // luminance 0
)

// blurShare is the deviation of Blur's Gaussian as a share of the input's width.
const blurShare = 1.0 / 20

// Methods are those that the manifest asks for, in the order in which they are
// tried; none where it wants no map.
func (e Explanation) Methods() []string {
	if e.Method == NoExplanation {
		return nil
	}
	return slices.Concat([]string{e.Method}, e.Otherwise)
}

// BackgroundName is Background, or its default.
func (e Explanation) BackgroundName() string {
	if e.Background == "" {
		return Mean
	}
	return e.Background
}

// TestBackground is what a place looks like that is taken away to test a map:
// another than the maps are made with, so that a method is not judged by its own
// idea of absence.
func (e Explanation) TestBackground() string {
	if e.BackgroundName() == Blur {
		return Mean
	}
	return Blur
}

// byLayer says whether a method explains by a feature map.
func byLayer(name string) bool {
	method, _ := MethodOf(name)
	return method == explain.GradCAM || method == explain.GradCAMPlusPlus
}

// The most that a manifest may ask of a method.
const (
	maxSamples  = 1 << 16
	maxSegments = 4096
)

func (p *problemList) explanation(e *Explanation) {
	p.oneOf("$.explanation.method", e.Method, append(MethodNames(), NoExplanation)...)
	if e.Method == NoExplanation && len(e.Otherwise) > 0 {
		p.at("$.explanation.otherwise", "names methods beside the method none")
	}
	seen := map[string]bool{e.Method: true}
	for i, name := range e.Otherwise {
		path := fmt.Sprintf("$.explanation.otherwise[%d]", i)
		p.oneOf(path, name, MethodNames()...)
		if seen[name] {
			p.at(path, "%q is there twice", name)
		}
		seen[name] = true
	}
	if len(e.Layer) > maxName*2 {
		p.at("$.explanation.layer", "is longer than %d bytes", maxName*2)
	}
	if e.Background != "" {
		p.oneOf("$.explanation.background", e.Background, Mean, Blur, Black)
	}
	if e.Score != "" {
		p.oneOf("$.explanation.score", e.Score, string(explain.Logit), string(explain.LogOdds), string(explain.Probability))
	}
	if (e.Score == string(explain.LogOdds) || e.Score == string(explain.Probability)) && p.m.Output.Activation != Softmax {
		p.at("$.explanation.score", "is %q of labels that do not exclude each other: want %q", e.Score, explain.Logit)
	}
	p.number("$.explanation.samples", float64(e.Samples), 0, maxSamples)
	p.number("$.explanation.segments", float64(e.Segments), 0, maxSegments)
	p.number("$.explanation.window", float64(e.Window), 0, maxSide)
}

// Target is the place of the target label in the output: the class explained.
func (p *Package) Target() int { return p.Manifest.label(p.Manifest.Output.Target) }

// How the maps of a package are tested, one by one.
const (
	explanationSeed = 1  // of all random choices: a map and its test can be made again
	testSteps       = 10 // points of the deletion and insertion curves
	testMaps        = 39 // random maps to compare with, as long as the time lasts
	testFewest      = 19 // fewer could not be told from chance: the smallest p is then 1/20
	testFewestSteps = 4  // where the time is short
)

// ExplainOptions are the options by which the package's answers are explained
// with a method, as manifests spell it, and its maps tested. threads are the
// engine's.
func (p *Package) ExplainOptions(name string, threads int) (explain.Options, explain.CheckOptions, error) {
	m := p.Manifest
	e := m.Explanation
	background, err := m.background(e.BackgroundName())
	if err != nil {
		return explain.Options{}, explain.CheckOptions{}, err
	}
	other, err := m.background(e.TestBackground())
	if err != nil {
		return explain.Options{}, explain.CheckOptions{}, err
	}
	o := explain.Options{
		Input: m.Input.Name, Logits: m.Output.Name, ChannelsLast: m.Input.Layout == "NHWC", Shape: m.Input.Shape(1)[1:],
		Score: explain.Score(e.Score), Background: background, Layer: p.layer,
		Segments: e.Segments, Window: e.Window, Seed: explanationSeed, Threads: threads,
	}
	if method, _ := MethodOf(name); method == explain.KernelSHAP || method == explain.LIME {
		o.Samples = e.Samples
	}
	c := explain.CheckOptions{Background: other, Score: explain.Logit, Steps: testSteps, RandomMaps: testMaps, FewestMaps: testFewest, FewestSteps: testFewestSteps, Decided: true}
	if m.Output.Activation == Softmax {
		c.Score = explain.Probability
	}
	return o, c, nil
}

// background is what stands for "not there" in an input of the package.
func (m *Manifest) background(name string) (explain.Background, error) {
	switch name {
	case Black:
		in := m.Input
		black, err := m.Prepare(&dicom.Luminance{Rows: in.Rows, Columns: in.Columns, Values: make([]float32, in.Rows*in.Columns)})
		if err != nil {
			return nil, err
		}
		return explain.References(black), nil
	case Blur:
		return m.Input.channelsFirst(explain.Blur(float64(m.Input.Columns) * blurShare)), nil
	default:
		return m.Input.channelsFirst(explain.Mean()), nil
	}
}

// channelsFirst lets a background for images with the channels first serve the
// other layout.
func (in Input) channelsFirst(b explain.Background) explain.Background {
	if in.Layout != "NHWC" {
		return b
	}
	return func(input engine.Tensor) ([]engine.Tensor, error) {
		values, err := engine.Values[float32](input)
		if err != nil {
			return nil, err
		}
		places := in.Rows * in.Columns
		swapped := make([]float32, len(values))
		for place := range places {
			for c := range in.Channels {
				swapped[c*places+place] = values[place*in.Channels+c]
			}
		}
		out, err := b(engine.Float32([]int64{1, int64(in.Channels), int64(in.Rows), int64(in.Columns)}, swapped))
		if err != nil {
			return nil, err
		}
		for i, t := range out {
			values, err := engine.Values[float32](t)
			if err != nil {
				return nil, err
			}
			back := make([]float32, len(values))
			for place := range places {
				for c := range in.Channels {
					back[place*in.Channels+c] = values[c*places+place]
				}
			}
			out[i] = engine.Float32(input.Shape, back)
		}
		return out, nil
	}
}

// Survey is explanation.json: what the explanation's methods were found to be
// worth on this model, measured once when the package was made. It is sealed
// with the package, holds for one graph and one set of options, and is refused
// beside any other.
type Survey struct {
	Graph      vigie.Digest `json:"graph"` // of model.onnx
	Target     string       `json:"target"`
	Background string       `json:"background"`      // of the methods
	Tested     string       `json:"test_background"` // of the test
	Score      string       `json:"score"`
	Layer      string       `json:"layer,omitempty"`
	Samples    int          `json:"samples,omitempty"`
	Segments   int          `json:"segments,omitempty"`
	Window     int          `json:"window,omitempty"`

	Images  string     `json:"images"` // which images, for people
	Methods []Surveyed `json:"methods"`
}

// Surveyed is one method's standing.
type Surveyed struct {
	Name string `json:"name"` // as manifests spell it
	explain.Standing
}

// Of returns the standing of a method, nil if it was not surveyed.
func (s *Survey) Of(name string) *Surveyed {
	if s == nil {
		return nil
	}
	for i := range s.Methods {
		if s.Methods[i].Name == name {
			return &s.Methods[i]
		}
	}
	return nil
}

// Line says what was found of a method in one line.
func (m Surveyed) Line() string {
	found := "explains this model"
	if failures := m.Failures(); len(failures) > 0 {
		var names []string
		for _, f := range failures {
			names = append(names, string(f))
		}
		found = "does NOT explain this model (" + strings.Join(names, ", ") + ")"
	}
	line := fmt.Sprintf("%s %s: ", m.Name, found)
	if m.Tested {
		line += fmt.Sprintf("%d of %d maps better than random ones, ", m.Explained, m.Images)
	}
	if !m.Randomised {
		return line + "no weights to randomise"
	}
	return line + fmt.Sprintf("rank correlation with randomised weights %+.2f", m.Similarity)
}

// explanationText names the methods in their order.
func (p *Package) explanationText() string {
	methods := p.Manifest.Explanation.Methods()
	if len(methods) == 0 {
		return NoExplanation
	}
	for i, name := range methods {
		if byLayer(name) {
			methods[i] += " of " + p.layer
		}
	}
	return strings.Join(methods, ", otherwise ")
}

// ErrSurvey is returned for an explanation.json that does not parse or
// contradicts itself.
var ErrSurvey = errors.New("the survey of explanations is not valid")

// ParseSurvey reads explanation.json strictly.
func ParseSurvey(data []byte) (*Survey, error) {
	s := &Survey{}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(s); err != nil {
		return nil, fmt.Errorf("model: reading %s: %w: %w", ExplanationFile, ErrSurvey, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("model: reading %s: %w: it goes on after its end", ExplanationFile, ErrSurvey)
	}
	seen := map[string]bool{}
	for _, m := range s.Methods {
		method, known := MethodOf(m.Name)
		switch {
		case !known || method != m.Method:
			return nil, fmt.Errorf("model: reading %s: %w: method %q (%q) is not known", ExplanationFile, ErrSurvey, m.Name, m.Method)
		case seen[m.Name]:
			return nil, fmt.Errorf("model: reading %s: %w: method %q is there twice", ExplanationFile, ErrSurvey, m.Name)
		case m.Images < 1 || m.Explained < 0 || m.Explained > m.Images || !m.Tested && m.Explained > 0,
			!(m.MeanP >= 0 && m.MeanP <= 1), !(m.Similarity >= -1 && m.Similarity <= 1), !(m.Error >= 0):
			return nil, fmt.Errorf("model: reading %s: %w: the figures of method %q cannot be", ExplanationFile, ErrSurvey, m.Name)
		}
		seen[m.Name] = true
	}
	return s, nil
}

// survey begins a survey of this package: what it would have to hold for.
func (p *Package) survey() Survey {
	e := p.Manifest.Explanation
	return Survey{
		Graph: vigie.DigestOf(p.ONNX), Target: p.Manifest.Output.Target, Background: e.BackgroundName(), Tested: e.TestBackground(), Score: e.score(),
		Layer: p.layer, Samples: e.Samples, Segments: e.Segments, Window: e.Window,
	}
}

// score is Score, or its default.
func (e Explanation) score() string {
	if e.Score == "" {
		return string(explain.Logit)
	}
	return e.Score
}

// holds compares a survey with the package it lies in.
func (s *Survey) holds(p *Package) error {
	want := p.survey()
	var differences []string
	for _, row := range []struct {
		what      string
		here, was any
	}{
		{"the graph", want.Graph, s.Graph}, {"the target", want.Target, s.Target}, {"the background", want.Background, s.Background},
		{"the test's background", want.Tested, s.Tested}, {"the score", want.Score, s.Score}, {"the layer", want.Layer, s.Layer}, {"samples", want.Samples, s.Samples},
		{"segments", want.Segments, s.Segments}, {"window", want.Window, s.Window},
	} {
		if row.here != row.was {
			differences = append(differences, fmt.Sprintf("%s is %v, surveyed was %v", row.what, row.here, row.was))
		}
	}
	for _, name := range p.Manifest.Explanation.Methods() {
		if s.Of(name) == nil {
			differences = append(differences, fmt.Sprintf("the manifest asks for %s, which was not surveyed", name))
		}
	}
	if len(differences) > 0 {
		return fmt.Errorf("%w: %s is of another model or manifest (vigie model survey --write measures again, or remove it):\n  %s",
			ErrMismatch, ExplanationFile, strings.Join(differences, "\n  "))
	}
	return nil
}

// SurveyMethods measures what methods, as manifests spell them, are worth on the
// package, over images prepared as inputs, which about describes. It is the same
// in every run but for the times.
func (p *Package) SurveyMethods(ctx context.Context, names []string, inputs []engine.Tensor, about string, threads int) (*Survey, error) {
	s := p.survey()
	s.Images = about
	for _, name := range names {
		method, known := MethodOf(name)
		if !known {
			return nil, fmt.Errorf("model: surveying %q: no such method: want one of %s", name, strings.Join(MethodNames(), ", "))
		}
		o, c, err := p.ExplainOptions(name, threads)
		if err != nil {
			return nil, err
		}
		c.Decided = false // the figures of all methods are to be compared
		standing, err := explain.Survey(ctx, method, p.Graph, inputs, p.Target(), (*explain.Map).Supporting, o, c)
		if err != nil {
			return nil, fmt.Errorf("model: surveying the maps of %s: %w", p.Manifest.Name, err)
		}
		s.Methods = append(s.Methods, Surveyed{name, *standing})
	}
	return &s, nil
}

// WriteSurvey puts a survey into the folder of a package, in the place of the
// one that was there, and seals the package again. Times are left out: a survey
// made again is the same, byte for byte.
func WriteSurvey(dir string, s *Survey) (vigie.ModelDigest, error) {
	kept := *s
	kept.Methods = slices.Clone(s.Methods)
	for i := range kept.Methods {
		kept.Methods[i].MapTime, kept.Methods[i].TestTime = 0, 0
	}
	data, err := json.MarshalIndent(kept, "", "  ")
	if err != nil {
		return "", fmt.Errorf("model: writing %s: %w", ExplanationFile, err)
	}
	path := filepath.Join(dir, ExplanationFile)
	before, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("model: writing %s: %w", path, err)
	}
	if err := replace(path, append(data, '\n')); err != nil {
		return "", fmt.Errorf("model: writing %s: %w", path, err)
	}
	digest, err := Seal(dir)
	if err != nil { // the folder is left as it was
		if before != nil {
			return "", errors.Join(err, replace(path, before))
		}
		return "", errors.Join(err, os.Remove(path))
	}
	return digest, nil
}

// fitsExplanation compares the explanation with the graph and returns the layer
// of the methods that explain by one, empty if there are none.
func (m *Manifest) fitsExplanation(g *onnx.Graph, shapes map[string]onnx.Value, differ func(string, ...any)) string {
	e := m.Explanation
	if !slices.ContainsFunc(e.Methods(), byLayer) {
		if e.Layer != "" && e.Method != NoExplanation {
			differ("the explanation names the layer %q, and no method that is drawn from one", e.Layer)
		}
		return ""
	}
	layer := e.Layer
	if layer == "" {
		for _, node := range g.Nodes {
			if node.OpType == "Conv" && node.Domain == "" && len(node.Outputs) > 0 {
				layer = node.Outputs[0]
			}
		}
		if layer == "" {
			differ("the explanation is drawn from the last convolution, the graph has none")
			return ""
		}
	}
	if node, _ := g.Producer(layer); node == nil {
		differ("the explanation is drawn from the tensor %q, the graph computes none of that name", layer)
		return ""
	}
	if v, ok := shapes[layer]; ok && v.Shape != nil && len(v.Shape) != 4 {
		differ("the explanation is drawn from the tensor %q, which has %d dimensions, not the 4 of a feature map", layer, len(v.Shape))
	}
	return layer
}
