package model

import (
	"fmt"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard/certificate"
	"github.com/vigie/vigie/medical/dicom"
)

// Certificate says what is to be proven of an answer, and of which.
type Certificate struct {
	When       string      `yaml:"when"`       // CertifyOff, CertifyOn or CertifyBorderline; empty: off
	Borderline *Borderline `yaml:"borderline"` // of CertifyBorderline: the band of the target's calibrated probability, ends included
	Patch      *Patch      `yaml:"patch"`
	Smoothing  *Smoothing  `yaml:"smoothing"`
}

// When answers are certified.
const (
	CertifyOff        = "off"
	CertifyOn         = "on"
	CertifyBorderline = "borderline" // whoever may change the image may also move it out of the band
)

// Patch asks that no square decide an answer.
type Patch struct {
	Size        int    `yaml:"size"`        // side of the squares, pixels
	Of          string `yaml:"of"`          // whose pixels: OfInput (the default) or OfImage
	Masks       int    `yaml:"masks"`       // along each axis: more hide less of the image, and take longer
	Fill        string `yaml:"fill"`        // what a mask shows: "mean" (the default), "grey", "black" or a brightness from 0 to 1
	Rounds      int    `yaml:"rounds"`      // 1: each mask; 2 (the default): also every two
	Uncertified Policy `yaml:"uncertified"` // where the masks agree and the pairs do not: Accept (the default) or Review
}

// Whose pixels a patch is measured in.
const (
	OfInput = "input" // the model's input
	OfImage = "image" // the image as it was decoded
)

// Smoothing asks that no change of a bounded Euclidean length turn an answer. It
// is for models that were trained with noise of this deviation: of others it
// proves little, and most of their cases go to a person.
type Smoothing struct {
	Sigma   float64 `yaml:"sigma"` // deviation of the noise, pixels of brightness 0 to 1 of the model's input
	Samples int     `yaml:"samples"`
	Alpha   float64 `yaml:"alpha"` // chance that the certificate of a case is wrong
}

// Wanted reports whether answers are certified at all.
func (c Certificate) Wanted() bool { return c.When == CertifyOn || c.When == CertifyBorderline }

// Asks reports whether an answer with these predictions is to be certified.
func (c Certificate) Asks(target string, predictions []vigie.Prediction) bool {
	if c.When != CertifyBorderline {
		return c.Wanted()
	}
	for _, p := range predictions {
		if p.Label == target {
			return p.Probability >= c.Borderline.From && p.Probability <= c.Borderline.To
		}
	}
	return true
}

func (p Patch) of() string {
	if p.Of == "" {
		return OfInput
	}
	return p.Of
}

func (p Patch) rounds() int {
	if p.Rounds == 0 {
		return 2
	}
	return p.Rounds
}

func (p Patch) fill() string {
	if p.Fill == "" {
		return certificate.Mean
	}
	return p.Fill
}

// String says in one line what is proven of each answer.
func (c Certificate) String() string {
	if !c.Wanted() {
		return CertifyOff
	}
	var parts []string
	if p := c.Patch; p != nil {
		parts = append(parts, fmt.Sprintf("squares of %d pixels of the %s, %d masks along an axis (%s), %d rounds", p.Size, p.of(), p.Masks, p.fill(), p.rounds()))
	}
	if s := c.Smoothing; s != nil {
		parts = append(parts, fmt.Sprintf("noise of %v, %d samples, alpha %v", s.Sigma, s.Samples, s.Alpha))
	}
	text := strings.Join(parts, "; ")
	if c.When == CertifyBorderline {
		text += fmt.Sprintf("; from %v to %v only", c.Borderline.From, c.Borderline.To)
	}
	return text
}

func (p *problemList) certificate(c *Certificate) {
	if c.When == "" && c.Borderline == nil && c.Patch == nil && c.Smoothing == nil {
		return
	}
	p.oneOf("$.certificate.when", c.When, CertifyOff, CertifyOn, CertifyBorderline)
	if c.Wanted() && c.Patch == nil && c.Smoothing == nil {
		p.at("$.certificate", "asks for neither patch nor smoothing")
	}
	switch b := c.Borderline; {
	case c.When == CertifyBorderline && b == nil:
		p.at("$.certificate.borderline", "is missing: say from and to")
	case c.When != CertifyBorderline && b != nil:
		p.at("$.certificate.borderline", "is for when: borderline")
	case b != nil && !(b.From >= 0 && b.From < b.To && b.To <= 1):
		p.at("$.certificate.borderline", "goes from %v to %v, want 0 <= from < to <= 1", b.From, b.To)
	}
	if patch := c.Patch; patch != nil {
		p.oneOf("$.certificate.patch.of", patch.of(), OfInput, OfImage)
		most := maxSide * 8
		if patch.of() == OfInput {
			most = max(1, min(p.m.Input.Rows, p.m.Input.Columns)-1)
		}
		p.number("$.certificate.patch.size", float64(patch.Size), 1, float64(most))
		p.number("$.certificate.patch.masks", float64(patch.Masks), 2, certificate.MaxMasks)
		if _, _, err := certificate.Brightness(patch.fill()); err != nil {
			p.at("$.certificate.patch.fill", "%v", err)
		}
		p.number("$.certificate.patch.rounds", float64(patch.rounds()), 1, 2)
		if patch.Uncertified != "" {
			p.oneOf("$.certificate.patch.uncertified", string(patch.Uncertified), string(Accept), string(Review))
		}
		if patch.Uncertified == Review && patch.rounds() == 1 {
			p.at("$.certificate.patch.uncertified", "is review, but one round certifies nothing: want rounds: 2")
		}
		if patch.of() == OfInput && patch.Size >= 1 && patch.Size <= most && patch.Masks >= 2 && patch.Masks <= certificate.MaxMasks {
			if _, err := certificate.Covering(certificate.Whole(p.m.Input.Rows, p.m.Input.Columns), certificate.Size{Rows: patch.Size, Columns: patch.Size}, patch.Masks); err != nil {
				p.at("$.certificate.patch", "%v", err)
			}
		}
	}
	if s := c.Smoothing; s != nil {
		p.number("$.certificate.smoothing.sigma", s.Sigma, 1e-3, certificate.MaxSigma)
		p.number("$.certificate.smoothing.samples", float64(s.Samples), certificate.MinSamples, certificate.MaxSamples)
		p.number("$.certificate.smoothing.alpha", s.Alpha, 1e-9, certificate.MaxAlpha)
	}
}

// Certified is a package as package certificate takes it: its answer is which
// labels are positive at their operating points.
func (p *Package) Certified() (certificate.Model, error) {
	in := p.Manifest.Input
	m := certificate.Model{
		Graph: p.Graph, Input: in.Name, Output: p.Manifest.Output.Name, Shape: in.Shape(1)[1:], ChannelsLast: in.Layout == "NHWC", Grey: true,
		Decide: func(output []float32) (certificate.Answer, error) {
			predictions, err := p.Predictions(output)
			return AnswerOf(predictions), err
		},
	}
	for _, end := range []struct {
		brightness float32
		to         *[]float64
	}{{0, &m.Black}, {1, &m.White}} {
		flat := &dicom.Luminance{Rows: in.Rows, Columns: in.Columns, Values: make([]float32, in.Rows*in.Columns)}
		for i := range flat.Values {
			flat.Values[i] = end.brightness
		}
		prepared, err := p.Manifest.Prepare(flat)
		if err != nil {
			return m, err
		}
		values, err := engine.Values[float32](prepared)
		if err != nil {
			return m, err
		}
		for c := range in.Channels {
			at := c
			if in.Layout != "NHWC" {
				at = c * in.Rows * in.Columns
			}
			*end.to = append(*end.to, float64(values[at]))
		}
	}
	return m, nil
}

// AnswerOf is the answer that predictions are: "1" for each positive label and
// "0" for each other, in their order.
func AnswerOf(predictions []vigie.Prediction) certificate.Answer {
	flags := make([]byte, len(predictions))
	for i, p := range predictions {
		if flags[i] = '0'; p.Positive {
			flags[i] = '1'
		}
	}
	return certificate.Answer(flags)
}

// CertificateOptions are what the manifest asks for. threads are the engine's.
func (c Certificate) CertificateOptions(threads int) certificate.Options {
	o := certificate.Options{Threads: threads}
	if p := c.Patch; p != nil {
		o.Patch = &certificate.Patch{Masks: p.Masks, Fill: p.fill(), Rounds: p.rounds()}
	}
	if s := c.Smoothing; s != nil {
		o.Smoothing = &certificate.Smoothing{Sigma: s.Sigma, Samples: s.Samples, Alpha: s.Alpha}
	}
	return o
}

// Squares says what of a model's input the manifest's patches touch, in an image
// of the given size: where the image lies, how much a square reaches at most,
// and the side of the largest square of the image that reaches no more.
func (m *Manifest) Squares(p Patch, rows, columns int) (region certificate.Region, touched certificate.Size, largest int, err error) {
	w := m.Input.Window(rows, columns)
	region = certificate.Region{Top: w.InputTop, Left: w.InputLeft, Rows: w.InputRows, Columns: w.InputColumns}
	touched = certificate.Size{Rows: p.Size, Columns: p.Size}
	if p.of() == OfImage {
		if p.Size > w.Rows || p.Size > w.Columns {
			return region, touched, 0, fmt.Errorf("model: squares of %d pixels in an image of which the model sees %d by %d: %w", p.Size, w.Rows, w.Columns, certificate.ErrAsk)
		}
		touched = certificate.Size{Rows: certificate.Touched(w.Rows, w.InputRows, p.Size), Columns: certificate.Touched(w.Columns, w.InputColumns, p.Size)}
	}
	return region, touched, min(certificate.Longest(w.Rows, w.InputRows, touched.Rows), certificate.Longest(w.Columns, w.InputColumns, touched.Columns)), nil
}
