package model

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	"github.com/vigie/vigie/onnx"
)

// draft is what a graph tells about its manifest. What only people know is
// left empty, so that Seal refuses the package and names each such line.
var draft = template.Must(template.New(ManifestFile).Parse(`# Fill in every empty value; vigie model check names the lines that are left.
schema: 1
name: {{.Name}}
version: 0.1.0

intended_use:
  en: ""   # who uses it, on which patients and images, for what
  fr: ""

accepts:
  modalities: []            # such as [CR, DX]
  sop_classes: []           # such as 1.2.840.10008.5.1.4.1.1.1
  body_parts: []            # such as - {term: CHEST, synonyms: [THORAX], codes: [{value: "51185008", scheme: SCT, meaning: Chest}]}
  unknown_body_part: review # block, review or accept
  views: []                 # such as - {term: PA}; none: any
  unknown_view: review
  other_view: review
  # age: {from: 18, to: 90, outside: review, unknown: review}
  frames: 1

input:
  name: {{.Input}}
  layout: {{.Layout}}
  rows: {{.Rows}}
  columns: {{.Columns}}
  channels: {{.Channels}}
  aspect: stretch           # stretch, pad or centre-crop: as the training images were made
  interpolation: area
  photometric: bright-is-high
  range: {low: 0, high: 1}
  mean: []
  std: []

output:
  name: {{.Output}}
  activation: ""            # softmax, sigmoid or none
  labels:
{{- range .Labels}}
    - name: {{.}}
      code: {value: "", scheme: SCT, meaning: "", meaning_fr: ""}
      threshold: 0.5
{{- end}}
  target: ""                # the label that triage is about
  # borderline: {from: 0.4, to: 0.6}

# The first of these that explains this model makes the maps: measure it, once the
# package is sealed, with vigie model survey DIR --data … --write.
explanation:
  method: kernelshap
  otherwise: [{{.Explanation}}]
  background: mean          # what is not there looks like: mean, blur or black
  samples: 512              # for kernelshap: how often the model is asked for one map

# What is proven of each answer, whatever an attacker knows (docs/certificates.md): measure it
# with vigie certify DIR --data … before it is asked for.
certificate:
  when: off                 # on, or borderline: only where the target's probability is from … to …
  # borderline: {from: 0.2, to: 0.8}
  # patch: {size: 3, of: input, masks: 3, fill: mean, rounds: 2, uncertified: accept}
  # smoothing: {sigma: 0.25, samples: 1000, alpha: 0.001}   # of a model that was trained with such noise

plausibility: []            # such as - {rule: needs-sex, label: …, values: [F]}, - {rule: agrees-with-prior, label: …, days: 365, flips: gone}
# disagreement: {mode: on}  # ask about slightly altered copies as well; vigie model fit says how far apart is usual

training:
  licence: ""
  data:
    - name: ""
      licence: ""
      attribution: ""
`))

const draftCard = `# %s

## What it is for

## What it is not for

## Training data and licence

## Results

## Known limits
`

// Init makes an unsealed package in dir, a new or empty folder, from a graph:
// the manifest says what the graph tells and leaves empty what only people
// know. ErrMismatch: the graph is not one that a manifest can describe (one
// float32 image input of four dimensions, one float32 output of two).
func Init(dir, name string, graph []byte) error {
	if !packageName.MatchString(name) {
		return fmt.Errorf("model: making package %s: name %q: use lower-case letters, digits and hyphens", dir, name)
	}
	m, err := onnx.Parse(graph)
	if err == nil {
		err = m.Check()
	}
	if err != nil {
		return fmt.Errorf("model: making package %s: %w", dir, err)
	}
	facts, err := describe(m)
	if err != nil {
		return fmt.Errorf("model: making package %s: %w", dir, err)
	}
	facts["Name"] = name
	var manifest bytes.Buffer
	if err := draft.Execute(&manifest, facts); err != nil {
		return fmt.Errorf("model: making package %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("model: making package %s: %w", dir, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		return fmt.Errorf("model: making package %s: %w", dir, errors.Join(err, fmt.Errorf("want an empty folder, it has %d entries", len(entries))))
	}
	for _, file := range []struct {
		name string
		data []byte
	}{
		{ManifestFile, manifest.Bytes()}, {GraphFile, graph}, {CardFile, fmt.Appendf(nil, draftCard, name)},
		{CalibrationFile, []byte("{\"method\": \"none\"}\n")},
	} {
		if err := os.WriteFile(filepath.Join(dir, file.name), file.data, fs.FileMode(0o644)); err != nil {
			return fmt.Errorf("model: making package %s: %w", dir, err)
		}
	}
	return nil
}

// describe reads the input and output of a graph.
func describe(m *onnx.Model) (map[string]any, error) {
	constants := make(map[string]bool)
	for _, t := range m.Graph.Initializers {
		constants[t.Name] = true
	}
	var inputs []onnx.Value
	for _, v := range m.Graph.Inputs {
		if !constants[v.Name] {
			inputs = append(inputs, v)
		}
	}
	if len(inputs) != 1 || len(inputs[0].Shape) != 4 || inputs[0].Type != onnx.Float {
		return nil, fmt.Errorf("%w: want one float32 input of four dimensions, the graph has %s", ErrMismatch, namesOf(inputs, nil))
	}
	shape := inputs[0].Shape
	facts := map[string]any{"Input": inputs[0].Name, "Layout": "NCHW", "Explanation": "occlusion"}
	channels, rows, columns := shape[1], shape[2], shape[3]
	if c := shape[3]; c.Known() && (c.Value == 1 || c.Value == 3) && !(channels.Known() && (channels.Value == 1 || channels.Value == 3)) {
		facts["Layout"], channels, rows, columns = "NHWC", shape[3], shape[1], shape[2]
	}
	for key, dim := range map[string]onnx.Dim{"Channels": channels, "Rows": rows, "Columns": columns} {
		facts[key] = max(dim.Value, 0) // a size that the graph leaves open is for people to choose
	}
	if len(m.Graph.Outputs) == 0 {
		return nil, fmt.Errorf("%w: the graph has no output", ErrMismatch)
	}
	out := m.Graph.Outputs[0]
	if shapes, err := onnx.InferShapes(m, nil); err == nil || errors.Is(err, onnx.ErrUnknownOperator) {
		if inferred, ok := shapes[out.Name]; ok && inferred.Shape != nil {
			out = inferred
		}
	}
	if len(out.Shape) != 2 || out.Type != onnx.Float || out.Shape[1].Value > maxLabels {
		return nil, fmt.Errorf("%w: want a float32 output of two dimensions (batch, label), %q has %d", ErrMismatch, out.Name, len(out.Shape))
	}
	facts["Output"] = out.Name
	var labels []string
	for i := range max(out.Shape[1].Value, 1) {
		labels = append(labels, fmt.Sprintf("label-%d", i+1))
	}
	// Graphs built or trained here name their classes.
	if named := strings.Split(m.Metadata["labels"], ","); len(named) == len(labels) && !slices.ContainsFunc(named, func(l string) bool { return !plainName.MatchString(l) }) {
		labels = named
	}
	facts["Labels"] = labels
	for _, node := range m.Graph.Nodes {
		if node.OpType == "Conv" && node.Domain == "" {
			facts["Explanation"] = "occlusion, grad-cam"
		}
	}
	return facts, nil
}
