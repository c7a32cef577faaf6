package guard

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/engine/safetensors"
)

// Schema is the version of the statistics file that this package reads.
const Schema = 2

// The limits of a statistics file.
const (
	MaxFile   = 16 << 20  // bytes
	maxHeader = 256 << 10 // bytes, of the settings and the names of the arrays
)

// ErrStatistics is returned for bytes that are not a statistics file, or that
// contradict themselves; the message says what is wrong.
var ErrStatistics = errors.New("not a valid file of guard statistics")

// Statistics is what was fitted to one model. It does not change.
type Statistics struct {
	settings
	models models
	clean  []calibration // by guard, in the order of the table
	total  calibration   // of the combination
}

// settings is the part of the file that is JSON.
type settings struct {
	Schema  int               `json:"schema"`
	Subject vigie.ModelDigest `json:"subject"` // the package's digest without this file
	// FalseAlarms is the promised share of clean images with an alarm.
	FalseAlarms float64 `json:"false_alarms"`
	// SecondLook is the share of clean images that get a second look, about;
	// Escalate is the surprise from which on.
	SecondLook float64 `json:"second_look"`
	Escalate   float64 `json:"escalate"`
	Seed       uint64  `json:"seed"`
	Data       string  `json:"data"` // what it was fitted on, for people
	Fitted     int     `json:"fitted"`
	Calibrated int     `json:"calibrated"`

	Input          string    `json:"input"`
	Output         string    `json:"output"`
	Activation     string    `json:"activation"`
	Shape          []int64   `json:"shape"`
	ChannelsLast   bool      `json:"channels_last"`
	Black          []float64 `json:"black"`
	White          []float64 `json:"white"`
	Labels         int       `json:"labels"`
	Differentiable bool      `json:"differentiable"`
	Taps           []tap     `json:"layers"`
	LayerTails     []tail    `json:"layer_tails"`
	Tails          []named   `json:"guards"` // in the order of the table
	Width          float64   `json:"kernel_width"`
	Bias           []float64 `json:"bias"` // of Perturbation and Patch
}

// named is a guard's tail.
type named struct {
	Name Name `json:"name"`
	tail
}

func (s *Statistics) network() Network {
	return Network{Input: s.Input, Output: s.Output, Activation: s.Activation, Shape: s.Shape,
		ChannelsLast: s.ChannelsLast, Black: s.Black, White: s.White}
}

// surprise is the largest surprise of the guards asked, and which guard it is.
func (s *Statistics) surprise(of scores, second bool) (most float64, leader int) {
	most, leader = math.Inf(-1), -1
	for i, k := range kinds {
		if k.Second && !second || math.IsInf(of[i], -1) {
			continue
		}
		if v := s.Tails[i].surprise(of[i]); leader < 0 || v > most {
			most, leader = v, i
		}
	}
	return most, leader
}

// fewest is how many calibration images make an alarm possible: the smallest
// p-value is 1/(n+1).
func fewest(falseAlarms float64) int { return int(math.Ceil(1/falseAlarms-1e-9)) - 1 }

// results turns scores into p-values and the alarm.
func (s *Statistics) results(of scores, class int, second bool) []vigie.GuardResult {
	var out []vigie.GuardResult
	for i, k := range kinds {
		if k.Second && !second || math.IsInf(of[i], -1) {
			continue
		}
		out = append(out, vigie.GuardResult{Guard: string(k.Name), PValue: s.clean[i].pvalue(of[i], class)})
	}
	total, leader := s.surprise(of, second)
	last := vigie.GuardResult{Guard: string(Combined), PValue: s.total.pvalue(total, class)}
	if last.PValue <= s.FalseAlarms {
		last.Alarm = true
		last.Reason = &vigie.Reason{Code: vigie.ReasonGuard, Text: kinds[leader].Text, Detail: string(kinds[leader].Name)}
	}
	return append(out, last)
}

// tensors lists the arrays of the file by name. It is the one place that knows
// them; reading checks what is there against the same list.
func (s *Statistics) tensors() map[string]engine.Tensor {
	t := map[string]engine.Tensor{}
	vector := func(name string, v []float64) { t[name] = engine.Float64([]int64{int64(len(v))}, v) }
	matrix := func(name string, rows [][]float64) {
		t[name] = engine.Float64([]int64{int64(len(rows)), int64(len(rows[0]))}, slices.Concat(rows...))
	}
	factor := func(name string, f []float64, p int) { t[name] = engine.Float64([]int64{int64(p), int64(p)}, f) }
	for i, g := range s.models.Layers {
		matrix(fmt.Sprintf("layer%d.means", i), g.Means)
		factor(fmt.Sprintf("layer%d.factor", i), g.Factor, len(g.Means[0]))
	}
	matrix("texture.means", s.models.Texture.Means)
	factor("texture.factor", s.models.Texture.Factor, len(s.models.Texture.Means[0]))
	for name, l := range map[string]*logistic{"perturbation": s.models.Perturbation, "patch": s.models.Patch} {
		vector(name+".mean", l.Mean)
		vector(name+".scale", l.Scale)
		vector(name+".weights", l.Weights)
	}
	vector("references.mean", s.models.References.Mean)
	factor("references.factor", s.models.References.Factor, len(s.models.References.Mean))
	matrix("references.points", s.models.References.Points)
	keep := func(name string, c calibration) {
		vector("clean."+name, c.Scores)
		class := make([]int32, len(c.Class))
		for i, v := range c.Class {
			class[i] = int32(v)
		}
		t["clean."+name+".class"] = engine.Int32([]int64{int64(len(class))}, class)
	}
	for i, k := range kinds {
		if len(s.clean[i].Scores) > 0 {
			keep(string(k.Name), s.clean[i])
		}
	}
	keep(string(Combined), s.total)
	return t
}

const settingsKey = "guard"

// Marshal writes the file: safetensors, whose metadata hold the settings as JSON
// under "guard". Equal statistics give equal bytes.
func (s *Statistics) Marshal() ([]byte, error) {
	text, err := json.Marshal(s.settings)
	if err != nil {
		return nil, fmt.Errorf("guard: writing statistics: %w", err)
	}
	var out bytes.Buffer
	if err := safetensors.Write(&out, s.tensors(), map[string]string{settingsKey: string(text)}); err != nil {
		return nil, fmt.Errorf("guard: writing statistics: %w", err)
	}
	if out.Len() > MaxFile {
		return nil, fmt.Errorf("guard: writing statistics: %d bytes, the limit is %d: fit on fewer images", out.Len(), MaxFile)
	}
	if _, err := Parse(out.Bytes()); err != nil { // what cannot be read again is not written
		return nil, fmt.Errorf("guard: writing statistics: %w", err)
	}
	return out.Bytes(), nil
}

// Parse reads a statistics file strictly: an unknown setting or array, a missing
// one, one of another size, and any number that is not finite are errors, as is
// more than one way to write the same.
func Parse(data []byte) (*Statistics, error) {
	s, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("guard: reading statistics: %w: %w", ErrStatistics, err)
	}
	return s, nil
}

func parse(data []byte) (*Statistics, error) {
	if len(data) > MaxFile {
		return nil, fmt.Errorf("%d bytes, the limit is %d", len(data), MaxFile)
	}
	file, err := safetensors.Read(bytes.NewReader(data), int64(len(data)), safetensors.Limits{Header: maxHeader, Data: MaxFile})
	if err != nil {
		return nil, err
	}
	text, ok := file.Metadata[settingsKey]
	if !ok || len(file.Metadata) != 1 {
		return nil, fmt.Errorf("its metadata hold %d entries, want one, %q", len(file.Metadata), settingsKey)
	}
	s := &Statistics{}
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(&s.settings); err != nil {
		return nil, fmt.Errorf("its settings: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("its settings are followed by something else")
	}
	if err := s.checkSettings(); err != nil {
		return nil, err
	}
	r := reader{tensors: file.Tensors, used: map[string]bool{}}
	s.take(&r)
	if r.err != nil {
		return nil, r.err
	}
	for _, name := range slices.Sorted(maps.Keys(file.Tensors)) {
		if !r.used[name] {
			return nil, fmt.Errorf("an array %q that nothing asks for", name)
		}
	}
	again, err := json.Marshal(s.settings)
	if err != nil || string(again) != text {
		return nil, errors.New("its settings are not written the one way they are written")
	}
	return s, nil
}

func finite(values ...float64) bool {
	return !slices.ContainsFunc(values, func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) })
}

// checkSettings refuses settings that contradict themselves.
func (s *Statistics) checkSettings() error {
	if s.Schema != Schema {
		return fmt.Errorf("schema %d, this version reads %d", s.Schema, Schema)
	}
	if _, err := vigie.Digest(s.Subject).Sum(); err != nil {
		return fmt.Errorf("its subject: %w", err)
	}
	if !(s.FalseAlarms > 0 && s.FalseAlarms < 0.5) || !(s.SecondLook >= 0 && s.SecondLook <= 1) || !finite(s.Escalate) {
		return fmt.Errorf("%v false alarms, second look %v from %v on", s.FalseAlarms, s.SecondLook, s.Escalate)
	}
	if s.Fitted < 1 || s.Calibrated < fewest(s.FalseAlarms) || s.Calibrated > 1<<20 || s.Fitted > 1<<24 {
		return fmt.Errorf("fitted on %d images, calibrated on %d", s.Fitted, s.Calibrated)
	}
	if s.Labels < 1 || s.Labels > 4096 || len(s.Data) > 1024 || len(s.Input) > 1024 || len(s.Output) > 1024 {
		return fmt.Errorf("%d labels", s.Labels)
	}
	n := s.network()
	if _, err := n.geometry(); err != nil {
		return err
	}
	if len(s.Taps) < 1 || len(s.Taps) > maxTaps || len(s.LayerTails) != len(s.Taps) {
		return fmt.Errorf("%d layers with %d scales", len(s.Taps), len(s.LayerTails))
	}
	for i, t := range s.Taps {
		if t.Channels < 1 || t.Channels > 1<<16 || len(t.Axes) > 3 || t.Tensor == "" || len(t.Tensor) > 1024 {
			return fmt.Errorf("layer %d has %d channels", i, t.Channels)
		}
		for k, a := range t.Axes {
			if a < 1 || a > 4 || k > 0 && a <= t.Axes[k-1] {
				return fmt.Errorf("layer %d is averaged over the axes %v", i, t.Axes)
			}
		}
	}
	if len(s.Tails) != len(kinds) {
		return fmt.Errorf("%d guards, this version has %d: fit again", len(s.Tails), len(kinds))
	}
	tails := slices.Clone(s.LayerTails)
	for i, t := range s.Tails {
		if t.Name != kinds[i].Name {
			return fmt.Errorf("guard %q where this version has %q: fit again", t.Name, kinds[i].Name)
		}
		tails = append(tails, t.tail)
	}
	for _, t := range tails {
		if !finite(t.Threshold, t.Scale) || t.Scale <= 0 {
			return fmt.Errorf("a scale of %v above %v", t.Scale, t.Threshold)
		}
	}
	if !finite(s.Width) || s.Width <= 0 || len(s.Bias) != 2 || !finite(s.Bias...) {
		return fmt.Errorf("a kernel of width %v and %d biases", s.Width, len(s.Bias))
	}
	return nil
}

// reader takes arrays of the sizes that they must have, and remembers the first
// that has another.
type reader struct {
	tensors map[string]engine.Tensor
	used    map[string]bool
	err     error
}

// array returns a float64 array of a shape, of which -1 is any size of at least
// one and at most a million.
func (r *reader) array(name string, shape ...int64) ([]float64, []int64) {
	t, ok := r.tensors[name]
	if r.err != nil {
		return nil, nil
	}
	r.used[name] = true
	values, floats := t.Data.([]float64)
	fits := ok && floats && len(t.Shape) == len(shape)
	for i := range shape {
		fits = fits && (t.Shape[i] == shape[i] || shape[i] < 0 && t.Shape[i] >= 1 && t.Shape[i] <= 1<<20)
	}
	switch {
	case !ok:
		r.err = fmt.Errorf("no array %q", name)
	case !fits:
		r.err = fmt.Errorf("array %q is %v, want float64 %v", name, t, shape)
	case !finite(values...):
		r.err = fmt.Errorf("array %q holds a number that is not finite", name)
	}
	return values, t.Shape
}

func (r *reader) matrix(name string, rows, columns int64) [][]float64 {
	values, shape := r.array(name, rows, columns)
	if r.err != nil {
		return nil
	}
	out := make([][]float64, shape[0])
	for i := range out {
		out[i] = values[i*int(columns) : (i+1)*int(columns)]
	}
	return out
}

// factor is a lower triangle with a positive diagonal.
func (r *reader) factor(name string, p int64) []float64 {
	values, _ := r.array(name, p, p)
	for i := range values {
		row, column := int64(i)/p, int64(i)%p
		if column > row && values[i] != 0 || column == row && !(values[i] > 0) {
			r.err = fmt.Errorf("array %q is not a lower triangle with a positive diagonal", name)
			break
		}
	}
	return values
}

func (r *reader) logistic(name string, p int64, bias float64) *logistic {
	l := &logistic{Bias: bias}
	l.Mean, _ = r.array(name+".mean", p)
	l.Scale, _ = r.array(name+".scale", p)
	l.Weights, _ = r.array(name+".weights", p)
	if slices.ContainsFunc(l.Scale, func(v float64) bool { return v <= 0 }) && r.err == nil {
		r.err = fmt.Errorf("array %q holds a scale that is not positive", name+".scale")
	}
	return l
}

func (r *reader) calibration(name string, n, classes int) calibration {
	c := calibration{}
	c.Scores, _ = r.array("clean."+name, int64(n))
	if r.err != nil {
		return c
	}
	at := "clean." + name + ".class"
	r.used[at] = true
	class, ok := r.tensors[at].Data.([]int32)
	if !ok || len(class) != n || len(r.tensors[at].Shape) != 1 {
		r.err = fmt.Errorf("array %q is %v, want int32 [%d]", at, r.tensors[at], n)
		return c
	}
	for i, v := range class {
		sorted := i == 0 || class[i-1] < v || class[i-1] == v && c.Scores[i-1] <= c.Scores[i]
		if v < 0 || int(v) >= classes || !sorted {
			r.err = fmt.Errorf("array %q is not sorted, or has a class outside 0 to %d", at, classes-1)
			return c
		}
		c.Class = append(c.Class, int(v))
	}
	return c
}

// take reads every array.
func (s *Statistics) take(r *reader) {
	classes := int64(classes(s.Labels))
	embedding := int64(0)
	for i, t := range s.Taps {
		p := int64(min(t.Channels, maxChannels))
		g := &gaussian{Means: r.matrix(fmt.Sprintf("layer%d.means", i), classes, p)}
		g.Factor = r.factor(fmt.Sprintf("layer%d.factor", i), p)
		s.models.Layers = append(s.models.Layers, g)
		embedding = p
	}
	s.models.LayerTails = s.LayerTails
	s.models.Texture = &gaussian{Means: r.matrix("texture.means", 1, textureNumbers)}
	s.models.Texture.Factor = r.factor("texture.factor", textureNumbers)
	s.models.Perturbation = r.logistic("perturbation", textureNumbers, s.Bias[0])
	s.models.Patch = r.logistic("patch", peakNumbers, s.Bias[1])
	s.models.References = &references{Width: s.Width}
	s.models.References.Mean, _ = r.array("references.mean", embedding)
	s.models.References.Factor = r.factor("references.factor", embedding)
	s.models.References.Points = r.matrix("references.points", -1, embedding)
	if len(s.models.References.Points) > maxReferences && r.err == nil {
		r.err = fmt.Errorf("%d references, at most %d are kept", len(s.models.References.Points), maxReferences)
	}
	for i, k := range kinds {
		c := calibration{}
		if _, there := r.tensors["clean."+string(k.Name)]; there || !needsGradient(i) || s.Differentiable {
			c = r.calibration(string(k.Name), s.Calibrated, int(classes))
		}
		s.clean = append(s.clean, c)
	}
	s.total = r.calibration(string(Combined), s.Calibrated, int(classes))
}

// needsGradient says which guards are not asked of a model without gradients.
func needsGradient(i int) bool {
	return kinds[i].Name == Gradient || kinds[i].Name == Focus || kinds[i].Name == Occlusion
}
