package model

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/vigie/vigie"
)

// Bounds of what a manifest may ask for.
const (
	maxSide   = 8192 // rows and columns of the input
	maxLabels = 4096
	maxText   = 4096 // bytes of a sentence
	maxName   = 128  // bytes of a name or term
)

var (
	packageName  = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$`)
	versionForm  = regexp.MustCompile(`^[0-9]{1,6}\.[0-9]{1,6}\.[0-9]{1,6}(-[0-9A-Za-z.-]{1,32})?$`)
	uidForm      = regexp.MustCompile(`^(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+$`)
	codeStrings  = regexp.MustCompile(`^[A-Z0-9_ ]{1,16}$`)
	codeValue    = regexp.MustCompile(`^[A-Za-z0-9.-]{1,64}$`)
	schemeForm   = regexp.MustCompile(`^[A-Z0-9]{2,16}$`)
	policyValues = []Policy{Block, Review, Accept}
)

// review collects what is wrong with a manifest, each with its line.
type problemList struct {
	m    *Manifest
	list []string
}

// at notes a problem of the field at a path such as "$.input.rows".
func (p *problemList) at(path, format string, args ...any) {
	where := path
	for line := 0; where != ""; {
		if line = p.m.lines[where]; line > 0 {
			p.list = append(p.list, fmt.Sprintf("line %d: %s: %s", line, strings.TrimPrefix(path, "$."), fmt.Sprintf(format, args...)))
			return
		}
		cut := strings.LastIndexAny(where, ".[") // the field is missing: name the line of what should hold it
		if cut < 0 {
			break
		}
		where = where[:cut]
	}
	p.list = append(p.list, fmt.Sprintf("%s: %s", strings.TrimPrefix(path, "$."), fmt.Sprintf(format, args...)))
}

func (p *problemList) oneOf(path, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		p.at(path, "is %q, want one of %s", value, strings.Join(allowed, ", "))
	}
}

func (p *problemList) policy(path string, value Policy) {
	if !slices.Contains(policyValues, value) {
		p.at(path, "is %q, want block, review or accept", string(value))
	}
}

func (p *problemList) text(path string, t Text) {
	p.sentence(path+".en", t.English)
	p.sentence(path+".fr", t.French)
}

func (p *problemList) sentence(path, text string) {
	switch {
	case strings.TrimSpace(text) == "":
		p.at(path, "is empty")
	case len(text) > maxText:
		p.at(path, "has %d bytes, the limit is %d", len(text), maxText)
	case strings.ContainsFunc(text, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }):
		p.at(path, "has control characters")
	}
}

func (p *problemList) name(path, name string) {
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, unicode.IsControl) || name != strings.TrimSpace(name) {
		p.at(path, "is %q, want 1 to %d characters without blanks at the ends", name, maxName)
	}
}

func (p *problemList) code(path string, c vigie.Code) {
	if !codeValue.MatchString(c.Value) {
		p.at(path+".value", "is %q, want a code of letters, digits, dots and hyphens", c.Value)
	}
	if !schemeForm.MatchString(c.Scheme) {
		p.at(path+".scheme", "is %q, want a coding scheme designator such as SCT, RADLEX or DCM", c.Scheme)
	}
	if c.Meaning == "" || len(c.Meaning) > 64 {
		p.at(path+".meaning", "is %q, want 1 to 64 bytes (it becomes a DICOM LO)", c.Meaning)
	}
	if len(c.French) > maxName {
		p.at(path+".meaning_fr", "is longer than %d bytes", maxName)
	}
}

func (p *problemList) number(path string, v, least, most float64) {
	if !(v >= least && v <= most) { // not a number fails too
		p.at(path, "is %v, want %v to %v", v, least, most)
	}
}

func (m *Manifest) problems() []string {
	p := &problemList{m: m}
	if m.SchemaVersion != Schema {
		p.at("$.schema", "is %d, this version reads %d", m.SchemaVersion, Schema)
	}
	if !packageName.MatchString(m.Name) {
		p.at("$.name", "is %q, want lower-case letters, digits and hyphens", m.Name)
	}
	if !versionForm.MatchString(m.Version) {
		p.at("$.version", "is %q, want three numbers such as 1.0.0", m.Version)
	}
	p.text("$.intended_use", m.IntendedUse)
	p.accepts(&m.Accepts)
	p.input(&m.Input)
	p.output(&m.Output)
	p.explanation(&m.Explanation)
	p.rules("$.plausibility", m.Plausibility)
	p.disagreement("$.disagreement", m.Disagreement)
	p.certificate(&m.Certificate)
	if len(m.Training.Data) == 0 {
		p.at("$.training.data", "is empty: say what the model was trained on")
	}
	for i, source := range m.Training.Data {
		path := fmt.Sprintf("$.training.data[%d]", i)
		p.name(path+".name", source.Name)
		p.name(path+".licence", source.Licence)
		p.sentence(path+".attribution", source.Attribution)
	}
	p.name("$.training.licence", m.Training.Licence)
	return p.list
}

func (p *problemList) accepts(a *Accepts) {
	if len(a.Modalities) == 0 {
		p.at("$.accepts.modalities", "is empty: the model would read nothing")
	}
	for i, modality := range a.Modalities {
		if !codeStrings.MatchString(modality) {
			p.at(fmt.Sprintf("$.accepts.modalities[%d]", i), "is %q, want a DICOM code string", modality)
		}
	}
	if len(a.SOPClasses) == 0 {
		p.at("$.accepts.sop_classes", "is empty: the model would read nothing")
	}
	for i, uid := range a.SOPClasses {
		if !uidForm.MatchString(uid) || len(uid) > 64 {
			p.at(fmt.Sprintf("$.accepts.sop_classes[%d]", i), "is %q, want a UID", uid)
		}
	}
	if len(a.BodyParts) == 0 {
		p.at("$.accepts.body_parts", "is empty: name what the model reads")
	}
	p.places("$.accepts.body_parts", a.BodyParts)
	p.policy("$.accepts.unknown_body_part", a.UnknownBodyPart)
	p.places("$.accepts.views", a.Views)
	if len(a.Views) > 0 {
		p.policy("$.accepts.unknown_view", a.UnknownView)
		p.policy("$.accepts.other_view", a.OtherView)
	}
	if a.Age != nil {
		if a.Age.From < 0 || a.Age.To < a.Age.From || a.Age.To > 150 {
			p.at("$.accepts.age", "goes from %d to %d years, want 0 to 150 in this order", a.Age.From, a.Age.To)
		}
		p.policy("$.accepts.age.outside", a.Age.Outside)
		p.policy("$.accepts.age.unknown", a.Age.Unknown)
	}
	p.technique("$.accepts.technique", a.Technique)
	p.number("$.accepts.frames", float64(a.Frames), 1, 1<<20)
}

func (p *problemList) places(path string, places []Place) {
	seen := make(map[string]bool)
	for i, place := range places {
		here := fmt.Sprintf("%s[%d]", path, i)
		for j, term := range append([]string{place.Term}, place.Synonyms...) {
			where := here + ".term"
			if j > 0 {
				where = fmt.Sprintf("%s.synonyms[%d]", here, j-1)
			}
			if !codeStrings.MatchString(term) {
				p.at(where, "is %q, want a DICOM code string (upper case, up to 16)", term)
			}
			if seen[term] {
				p.at(where, "%q is there twice", term)
			}
			seen[term] = true
		}
		for j, code := range place.Codes {
			p.code(fmt.Sprintf("%s.codes[%d]", here, j), code)
		}
	}
}

func (p *problemList) input(in *Input) {
	p.name("$.input.name", in.Name)
	p.oneOf("$.input.layout", in.Layout, "NCHW", "NHWC")
	p.number("$.input.rows", float64(in.Rows), 1, maxSide)
	p.number("$.input.columns", float64(in.Columns), 1, maxSide)
	if in.Channels != 1 && in.Channels != 3 {
		p.at("$.input.channels", "is %d, want 1 or 3", in.Channels)
	}
	p.oneOf("$.input.aspect", in.Aspect, Stretch, Pad, CentreCrop)
	p.oneOf("$.input.interpolation", in.Interpolation, Area)
	p.oneOf("$.input.photometric", in.Photometric, Bright, Inverted)
	p.number("$.input.range.low", in.Range.Low, -1e6, 1e6)
	p.number("$.input.range.high", in.Range.High, -1e6, 1e6)
	if in.Range.Low >= in.Range.High {
		p.at("$.input.range", "goes from %v to %v, want a low and a higher value", in.Range.Low, in.Range.High)
	}
	for _, list := range []struct {
		path   string
		values []float64
		least  float64
	}{{"$.input.mean", in.Mean, -1e6}, {"$.input.std", in.Std, 1e-6}} {
		if n := len(list.values); n != 0 && n != in.Channels {
			p.at(list.path, "has %d values for %d channels", n, in.Channels)
		}
		for i, v := range list.values {
			p.number(fmt.Sprintf("%s[%d]", list.path, i), v, list.least, 1e6)
		}
	}
}

func (p *problemList) output(out *Output) {
	p.name("$.output.name", out.Name)
	p.oneOf("$.output.activation", out.Activation, Softmax, Sigmoid, None)
	if n := len(out.Labels); n == 0 || n > maxLabels || n == 1 && out.Activation == Softmax {
		p.at("$.output.labels", "has %d labels, want 1 (2 with softmax) to %d", n, maxLabels)
	}
	names := make(map[string]bool)
	for i, label := range out.Labels {
		path := fmt.Sprintf("$.output.labels[%d]", i)
		p.name(path+".name", label.Name)
		if names[label.Name] {
			p.at(path+".name", "%q is there twice", label.Name)
		}
		names[label.Name] = true
		p.code(path+".code", label.Code)
		if label.Code.French == "" {
			p.at(path+".code.meaning_fr", "is empty: a French reader needs it")
		}
		for j, code := range label.Also {
			p.code(fmt.Sprintf("%s.also[%d]", path, j), code)
		}
		if !(label.Threshold > 0 && label.Threshold < 1) {
			p.at(path+".threshold", "is %v, want more than 0 and less than 1", label.Threshold)
		}
	}
	if !names[out.Target] {
		p.at("$.output.target", "is %q, which is no label", out.Target)
	}
	if b := out.Borderline; b != nil && !(b.From > 0 && b.From <= b.To && b.To < 1) {
		p.at("$.output.borderline", "goes from %v to %v, want 0 < from <= to < 1", b.From, b.To)
	}
}

// label returns the place of a label in the output, or -1.
func (m *Manifest) label(name string) int {
	return slices.IndexFunc(m.Output.Labels, func(l Label) bool { return l.Name == name })
}
