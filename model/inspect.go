package model

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/onnx"
)

// Summary is what there is to say of a package, for people and programs.
type Summary struct {
	Name        string            `json:"name"`
	Version     string            `json:"version"`
	Digest      vigie.ModelDigest `json:"digest"`
	IntendedUse vigie.Text        `json:"intended_use"`
	Modalities  []string          `json:"modalities"`
	BodyParts   []string          `json:"body_parts"`
	Views       []string          `json:"views,omitempty"`
	Ages        string            `json:"ages,omitempty"`
	Input       string            `json:"input"`
	Output      string            `json:"output"`
	Labels      []SummaryLabel    `json:"labels"`
	Borderline  string            `json:"borderline,omitempty"`
	Calibration Calibration       `json:"calibration"`
	Explanation string            `json:"explanation"`
	Survey      *Survey           `json:"survey,omitempty"` // what its methods are worth on this model
	Certificate string            `json:"certificate"`      // what is proven of each answer
	Operators   map[string]int    `json:"operators"`
	Opsets      map[string]int64  `json:"opsets"`
	Parameters  int64             `json:"parameters"`
	GraphBytes  int               `json:"graph_bytes"`
	Files       []string          `json:"files"`
	Licence     string            `json:"licence"`
	Data        []string          `json:"training_data"`
	Verifiers   any               `json:"verifiers,omitempty"` // what was fitted to look at its answers, for whoever can read it
}

// SummaryLabel is a label in a Summary.
type SummaryLabel struct {
	Name      string     `json:"name"`
	Code      vigie.Code `json:"code"`
	Threshold float64    `json:"threshold"`
	Target    bool       `json:"target,omitempty"`
}

// Summary describes the package.
func (p *Package) Summary() Summary {
	m := p.Manifest
	s := Summary{
		Name: m.Name, Version: m.Version, Digest: p.Digest, IntendedUse: m.IntendedUse.Vigie(),
		Modalities: m.Accepts.Modalities, Calibration: p.Calibration, Files: p.Files, Licence: m.Training.Licence,
		Input:       fmt.Sprintf("%s float32 %v %s, %s, %s", m.Input.Name, m.Input.Shape(1), m.Input.Layout, m.Input.Aspect, m.Input.Photometric),
		Output:      fmt.Sprintf("%s, %s", m.Output.Name, m.Output.Activation),
		Explanation: p.explanationText(), Survey: p.Explained, Certificate: m.Certificate.String(), Opsets: p.Graph.Opsets, GraphBytes: len(p.ONNX),
	}
	for _, place := range m.Accepts.BodyParts {
		s.BodyParts = append(s.BodyParts, place.Term)
	}
	for _, place := range m.Accepts.Views {
		s.Views = append(s.Views, place.Term)
	}
	if a := m.Accepts.Age; a != nil {
		s.Ages = fmt.Sprintf("%d to %d years", a.From, a.To)
	}
	for _, l := range m.Output.Labels {
		s.Labels = append(s.Labels, SummaryLabel{l.Name, l.Code, l.Threshold, l.Name == m.Output.Target})
	}
	if b := m.Output.Borderline; b != nil {
		s.Borderline = fmt.Sprintf("%v to %v", b.From, b.To)
	}
	// Open has checked the graph, so looking into it again cannot fail.
	if graph, err := onnx.Inspect(p.Graph); err == nil {
		s.Operators, s.Parameters = graph.Operators, graph.Parameters
	}
	for _, d := range m.Training.Data {
		s.Data = append(s.Data, d.Name+" ("+d.Licence+")")
	}
	return s
}

// Write writes the summary for people.
func (s Summary) Write(w io.Writer) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-13s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("package", "%s %s", s.Name, s.Version)
	line("digest", "%s", s.Digest)
	line("intended use", "%s", s.IntendedUse.English)
	line("", "%s", s.IntendedUse.French)
	line("accepts", "%s of %s%s%s", strings.Join(s.Modalities, ", "), strings.Join(s.BodyParts, ", "),
		prefixed(", views ", strings.Join(s.Views, ", ")), prefixed(", ages ", s.Ages))
	line("input", "%s", s.Input)
	line("output", "%s", s.Output)
	for _, l := range s.Labels {
		mark := ""
		if l.Target {
			mark = ", target"
		}
		line("label", "%s (%s %s, %s / %s), positive from %v%s", l.Name, l.Code.Scheme, l.Code.Value, l.Code.Meaning, l.Code.French, l.Threshold, mark)
	}
	if s.Borderline != "" {
		line("borderline", "%s", s.Borderline)
	}
	if s.Calibration.Method == Temperature {
		line("calibration", "temperature %v%s", s.Calibration.Temperature, prefixed(", fitted on ", s.Calibration.FittedOn))
	} else {
		line("calibration", "none")
	}
	line("explanation", "%s", s.Explanation)
	if s.Survey != nil {
		for _, m := range s.Survey.Methods {
			line("", "%s", m.Line())
		}
	}
	line("certificate", "%s", s.Certificate)
	var operators []string
	for _, name := range slices.Sorted(maps.Keys(s.Operators)) {
		operators = append(operators, fmt.Sprintf("%s×%d", name, s.Operators[name]))
	}
	line("graph", "%d bytes, %d parameters: %s", s.GraphBytes, s.Parameters, strings.Join(operators, " "))
	line("licence", "%s; trained on %s", s.Licence, strings.Join(s.Data, "; "))
	line("files", "%s", strings.Join(s.Files, ", "))
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteJSON writes the summary for programs.
func (s Summary) WriteJSON(w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(s)
}

func prefixed(prefix, text string) string {
	if text == "" {
		return ""
	}
	return prefix + text
}
