package model

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/vigie/vigie"
)

// Schema is the version of manifest.yaml that this package reads.
const Schema = 1

// maxManifest bounds the size of manifest.yaml in bytes, and with it how deep
// its nesting can make the parser recurse.
const maxManifest = 64 << 10

// ErrManifest is returned for a manifest that does not parse or that
// contradicts itself; the message names the line and the field.
var ErrManifest = errors.New("the manifest is not valid")

// Manifest is manifest.yaml: what the model is for, which images it accepts,
// how pixels become its input and how its output becomes predictions.
type Manifest struct {
	SchemaVersion int            `yaml:"schema"`
	Name          string         `yaml:"name"`    // lower-case letters, digits and hyphens
	Version       string         `yaml:"version"` // of the package, "1.0.0"
	IntendedUse   Text           `yaml:"intended_use"`
	Accepts       Accepts        `yaml:"accepts"`
	Input         Input          `yaml:"input"`
	Output        Output         `yaml:"output"`
	Explanation   Explanation    `yaml:"explanation"`
	Certificate   Certificate    `yaml:"certificate"`
	Plausibility  []Rule         `yaml:"plausibility"`
	Disagreement  *Disagreement  `yaml:"disagreement"` // nil: nobody asks the model twice
	Training      Training       `yaml:"training"`
	lines         map[string]int // where a field stands in the source, by path
}

// Text is a sentence in both languages.
type Text struct {
	English string `yaml:"en"`
	French  string `yaml:"fr"`
}

// Vigie returns t in the vocabulary's type.
func (t Text) Vigie() vigie.Text { return vigie.Text{English: t.English, French: t.French} }

// Policy says what happens to an image outside what the model was made for.
type Policy string

// The policies.
const (
	Block  Policy = "block"  // the model does not read the image; a person does
	Review Policy = "review" // the model reads the image, and a person too
	Accept Policy = "accept" // no objection
)

// Accepts is what kind of image the model reads.
type Accepts struct {
	Modalities      []string    `yaml:"modalities"`        // (0008,0060)
	SOPClasses      []string    `yaml:"sop_classes"`       // (0008,0016)
	BodyParts       []Place     `yaml:"body_parts"`        // (0018,0015), (0008,2218)
	UnknownBodyPart Policy      `yaml:"unknown_body_part"` // where the image does not say; another body part always blocks
	Views           []Place     `yaml:"views"`             // (0018,5101), (0054,0220); none: any
	UnknownView     Policy      `yaml:"unknown_view"`
	OtherView       Policy      `yaml:"other_view"`
	Age             *Ages       `yaml:"age"`       // nil: any age
	Technique       []Technique `yaml:"technique"` // how it must have been made; none: any way
	Frames          int         `yaml:"frames"`    // most frames an image may have; only the first is read
}

// Place is a body part or a view: its term, what else stands for it in the
// same attribute, and its codes.
type Place struct {
	Term     string       `yaml:"term"`
	Synonyms []string     `yaml:"synonyms"`
	Codes    []vigie.Code `yaml:"codes"`
}

// Ages is the range of ages the model was validated for, in years, ends
// included: from 1 to 5 means from the first birthday to the day before the
// sixth.
type Ages struct {
	From    int    `yaml:"from"`
	To      int    `yaml:"to"`
	Outside Policy `yaml:"outside"`
	Unknown Policy `yaml:"unknown"`
}

// The aspect policies: how an image of another shape meets the input.
const (
	Stretch    = "stretch"     // each axis is scaled by itself
	Pad        = "pad"         // the whole image, black beside or above and below it
	CentreCrop = "centre-crop" // the largest centred window of the input's shape
)

// The interpolations.
const Area = "area" // each input pixel is the mean of the image area it covers

// The photometric orientations that a model may expect.
const (
	Bright   = "bright-is-high" // as displayed: bone and water are high (MONOCHROME2)
	Inverted = "bright-is-low"  // bone and water are low
)

// Input is the model's input tensor and how luminance becomes it.
type Input struct {
	Name          string    `yaml:"name"`
	Layout        string    `yaml:"layout"` // "NCHW" or "NHWC"
	Rows          int       `yaml:"rows"`
	Columns       int       `yaml:"columns"`
	Channels      int       `yaml:"channels"` // 1, or 3: the luminance three times
	Aspect        string    `yaml:"aspect"`
	Interpolation string    `yaml:"interpolation"`
	Photometric   string    `yaml:"photometric"`
	Range         Range     `yaml:"range"` // what luminance 0 and 1 become, before mean and std
	Mean          []float64 `yaml:"mean"`  // a channel; empty: 0
	Std           []float64 `yaml:"std"`   // a channel; empty: 1
}

// Range is what darkest and brightest become.
type Range struct {
	Low  float64 `yaml:"low"`
	High float64 `yaml:"high"`
}

// The activations: what turns an output into probabilities.
const (
	Softmax = "softmax" // labels exclude each other
	Sigmoid = "sigmoid" // labels are independent
	None    = "none"    // the output already is probabilities
)

// Output is the model's output tensor and what it means.
type Output struct {
	Name       string      `yaml:"name"`
	Activation string      `yaml:"activation"`
	Labels     []Label     `yaml:"labels"` // in the order of the output
	Target     string      `yaml:"target"` // the label that triage and the explanation are about
	Borderline *Borderline `yaml:"borderline"`
}

// Label is one class or finding.
type Label struct {
	Name      string       `yaml:"name"`
	Code      vigie.Code   `yaml:"code"`
	Also      []vigie.Code `yaml:"also"`      // the same concept in other schemes
	Threshold float64      `yaml:"threshold"` // operating point on the calibrated probability, in (0, 1)
}

// Borderline is the band of the target's calibrated probability, ends
// included, in which a person decides.
type Borderline struct {
	From float64 `yaml:"from"`
	To   float64 `yaml:"to"`
}

// Explanation says how a map of what the target's score rests on is made. Of
// Method and Otherwise, the first that explains this model is used; where none
// does, no map is delivered and the reason is.
type Explanation struct {
	Method    string   `yaml:"method"`    // "kernelshap", "grad-cam", … (see MethodNames), or "none"
	Otherwise []string `yaml:"otherwise"` // tried in this order where Method explains nothing of this model
	Layer     string   `yaml:"layer"`     // of grad-cam and grad-cam++: tensor of the graph; empty: the last convolution

	Background string `yaml:"background"` // what "not there" looks like: "mean" (the default), "blur" or "black"
	Score      string `yaml:"score"`      // what is explained: "logit" (the default), "log-odds" or "probability"
	Samples    int    `yaml:"samples"`    // of kernelshap and lime: how often the model is asked; 0: their defaults
	Segments   int    `yaml:"segments"`   // pieces of the image for kernelshap and lime; 0: about 50
	Window     int    `yaml:"window"`     // of occlusion, pixels of the input; 0: an eighth of its side
}

// Training says what the model was made from and under which terms.
type Training struct {
	Data    []Source `yaml:"data"`
	Licence string   `yaml:"licence"` // of the weights, SPDX identifier
}

// Source is a data set and its terms.
type Source struct {
	Name        string `yaml:"name"`
	Licence     string `yaml:"licence"` // SPDX identifier
	Attribution string `yaml:"attribution"`
	URL         string `yaml:"url"`
}

// ParseManifest reads a manifest strictly: an unknown field, a repeated key, an
// alias or a second document is an error, and every error names its line.
func ParseManifest(data []byte) (*Manifest, error) {
	if len(data) > maxManifest {
		return nil, fmt.Errorf("model: reading the manifest: %w: %d bytes, the limit is %d", ErrManifest, len(data), maxManifest)
	}
	if depth := nesting(data); depth > maxNesting {
		return nil, fmt.Errorf("model: reading the manifest: %w: brackets or dashes nested more than %d deep", ErrManifest, maxNesting)
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, fmt.Errorf("model: reading the manifest: %w: %s", ErrManifest, oneLine(err))
	}
	if len(file.Docs) != 1 || file.Docs[0].Body == nil {
		return nil, fmt.Errorf("model: reading the manifest: %w: want one document, found %d", ErrManifest, len(file.Docs))
	}
	refused := &plainOnly{lines: make(map[string]int)}
	ast.Walk(refused, file.Docs[0].Body)
	if refused.err != nil {
		return nil, fmt.Errorf("model: reading the manifest: %w: %w", ErrManifest, refused.err)
	}
	m := &Manifest{}
	decoder := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict())
	if err := decoder.Decode(m); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("model: reading the manifest: %w: %s", ErrManifest, oneLine(err))
	}
	m.lines = refused.lines
	if problems := m.problems(); len(problems) > 0 {
		return nil, fmt.Errorf("model: reading the manifest: %w:\n  %s", ErrManifest, strings.Join(problems, "\n  "))
	}
	return m, nil
}

const maxNesting = 64

// nesting returns how deep brackets nest at most, and how many dashes follow
// each other at most: both make the YAML parser recurse.
func nesting(data []byte) int {
	deepest, depth, dashes := 0, 0, 0
	for _, c := range data {
		switch c {
		case '[', '{':
			depth++
		case ']', '}':
			depth = max(depth-1, 0)
		case '-', '?', ':':
			dashes++
		case ' ', '\t':
		default:
			dashes = 0
		}
		deepest = max(deepest, depth, dashes)
	}
	return deepest
}

// plainOnly refuses what a manifest has no use for (anchors, aliases, merge
// keys, tags) and notes the line of every value.
type plainOnly struct {
	lines map[string]int
	err   error
}

func (v *plainOnly) Visit(node ast.Node) ast.Visitor {
	if v.err != nil || node == nil {
		return nil
	}
	line := 0
	if t := node.GetToken(); t != nil && t.Position != nil {
		line = t.Position.Line
	}
	switch node.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode, *ast.TagNode:
		v.err = fmt.Errorf("line %d: anchors, aliases, merge keys and tags are not allowed", line)
		return nil
	}
	if path := node.GetPath(); path != "" && line > 0 {
		if _, seen := v.lines[path]; !seen {
			v.lines[path] = line
		}
	}
	return v
}

// oneLine writes a YAML error without the excerpt of the source: "[3:1] …"
// becomes "line 3: …".
func oneLine(err error) string {
	text, _, _ := strings.Cut(yaml.FormatError(err, false, false), "\n")
	if rest, ok := strings.CutPrefix(text, "["); ok {
		if place, message, ok := strings.Cut(rest, "] "); ok {
			line, _, _ := strings.Cut(place, ":")
			return "line " + line + ": " + message
		}
	}
	return text
}
