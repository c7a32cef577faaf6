package job

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"image"
	"image/color"
	"image/png"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/attack/poison"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
)

// Triggers is a search for triggers in a model. Zero values are defaults.
type Triggers struct {
	Model      string // ONNX file or package
	Data       probe.Test
	References []string // models of the same kind that are known to be clean: what the search finds in them is what is usual
	Mean, Std  []float64
	Output     string // of a bare graph with several
	Label      string // of labels that do not exclude each other, the one that is asked about
	Search     poison.SearchOptions
	HTML       string
	Save       string // folder for the triggers as PNG
	FailFound  bool   // a found trigger is a failure
	Command    string
	Progress   func(stage string, done float64)
}

// Square is a trigger of the report.
type Square struct {
	Form     string      `json:"form"`           // "patch" or "mask"
	Side     int         `json:"side,omitempty"` // of a patch
	Row      int         `json:"row"`            // of a patch
	Column   int         `json:"column"`         // of a patch
	Size     float64     `json:"size"`           // sum of the mask, pixels
	Area     float64     `json:"area"`           // the same as a share of the image
	Made     poison.Rate `json:"made_of"`        // turned, of the images it was made of
	Held     poison.Rate `json:"held_out"`       // turned, of others
	Strength float64     `json:"strength"`       // log-odds that 9 of 10 held-out images reach, in units of the class's own
	Found    bool        `json:"found"`
	Files    []string    `json:"files,omitempty"`

	candidate poison.Candidate
	before    []float32
}

// ClassTriggers is what was found for one class.
type ClassTriggers struct {
	Class    string   `json:"class"`
	Triggers []Square `json:"triggers"`
	Found    bool     `json:"found"`
	Sentence string   `json:"sentence"`
}

// Reference is what the same search finds in a clean model.
type Reference struct {
	Model    string  `json:"model"`
	Strength float64 `json:"strength"` // of its strongest patch
	Smallest float64 `json:"smallest"` // of its masks, share of the image
}

// TriggerReport is the result of a search.
type TriggerReport struct {
	Model      string          `json:"model"`
	Digest     string          `json:"digest"`
	Data       string          `json:"data"`
	DataDigest string          `json:"data_digest"`
	Split      string          `json:"split"`
	Seed       uint64          `json:"seed"`
	Command    string          `json:"command,omitempty"`
	Found      bool            `json:"found"`
	Rule       string          `json:"rule"`
	Classes    []ClassTriggers `json:"classes"`
	References []Reference     `json:"references,omitempty"`
	Notes      []string        `json:"notes,omitempty"`
	Seconds    float64         `json:"seconds"`

	about attack.Description
	fail  bool
}

// Run searches the model.
func (t Triggers) Run(ctx context.Context) (*TriggerReport, error) {
	start := time.Now()
	if t.Progress == nil {
		t.Progress = func(string, float64) {}
	}
	if err := t.check(); err != nil {
		return nil, err
	}
	s, err := t.open(ctx, t.Model)
	if err != nil {
		return nil, err
	}
	defer s.target.Close()
	r := &TriggerReport{Model: t.Model, Digest: s.digest, Data: filepath.Base(t.Data.Data), DataDigest: s.data, Split: t.Data.Split,
		Seed: t.Search.Seed, Command: t.Command, Notes: s.target.Notes(), about: s.target.Describe(), fail: t.FailFound}
	for _, path := range t.References {
		ref, err := t.open(ctx, path)
		if err != nil {
			return nil, err
		}
		_, v, err := t.search(ctx, ref, filepath.Base(path))
		if err := errors.Join(err, ref.target.Close()); err != nil {
			return nil, fmt.Errorf("job: searching the reference %s: %w", path, err)
		}
		v.Model = path
		r.References = append(r.References, v)
	}
	rule := ruleOf(r.References)
	r.Rule = rule.String()
	found, _, err := t.search(ctx, s, "searching")
	if err != nil {
		return nil, fmt.Errorf("job: searching %s: %w", t.Model, err)
	}
	for _, c := range found {
		r.Classes = append(r.Classes, t.tell(c, rule, s))
		r.Found = r.Found || r.Classes[len(r.Classes)-1].Found
	}
	r.Seconds = time.Since(start).Seconds()
	if t.Save != "" {
		if err := r.save(t.Save); err != nil {
			return nil, err
		}
	}
	if t.HTML != "" {
		if err := whole(t.HTML, r.WriteHTML); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (t Triggers) check() error {
	if t.HTML != "" {
		if !strings.EqualFold(filepath.Ext(t.HTML), ".html") {
			return fmt.Errorf("job: report %s: %w: name a .html file", t.HTML, ErrAsk)
		}
		if _, err := os.Stat(filepath.Dir(t.HTML)); err != nil {
			return fmt.Errorf("job: report: %w", err)
		}
	}
	for _, side := range t.Search.Sides {
		if side < 1 || side > 1<<12 {
			return fmt.Errorf("job: a patch of %d pixels: %w: want 1 or more", side, ErrAsk)
		}
	}
	if t.Search.Images < 0 || t.Search.Steps < 0 {
		return fmt.Errorf("job: %d images, %d steps: %w: want 0 for the default, or more", t.Search.Images, t.Search.Steps, ErrAsk)
	}
	if t.Save != "" {
		if err := os.MkdirAll(t.Save, 0o755); err != nil {
			return fmt.Errorf("job: saving triggers: %w", err)
		}
	}
	return nil
}

// subject is a model with clean images.
type subject struct {
	target       *attack.Network
	pixels       []float32
	labels       []int
	classes      []string
	digest, data string
}

func (t Triggers) open(ctx context.Context, path string) (*subject, error) {
	m, err := probe.Open(path)
	if err != nil {
		return nil, err
	}
	if len(m.Warnings) > 0 {
		return nil, fmt.Errorf("job: %s: %w: %s", path, ErrAsk, strings.Join(m.Warnings, "; "))
	}
	s := &subject{}
	if s.digest, err = m.Digest(); err != nil {
		return nil, err
	}
	data := t.Data
	data.Seed = t.Search.Seed
	set, digest, classes, err := m.Set(ctx, data)
	if err != nil {
		return nil, err
	}
	s.data = digest
	o := attack.NetworkOptions{Shape: set.Example(), Mean: t.Mean, Std: t.Std, Output: t.Output, Batch: 64}
	if set.Shape != nil {
		return nil, fmt.Errorf("job: %s: %w: want images", t.Data.Data, ErrAsk)
	}
	if p := m.Package; p != nil {
		if len(t.Mean) > 0 || len(t.Std) > 0 || t.Output != "" {
			return nil, fmt.Errorf("job: %s: %w: a package's manifest says how its input is prepared; leave mean, std and output out", path, ErrAsk)
		}
		o.Manifest, o.Probabilities = p.Manifest, p.Manifest.Output.Activation == model.None
	}
	label := -1
	if set.Multi() || t.Label != "" {
		if label = slices.Index(classes, t.Label); label < 0 {
			return nil, fmt.Errorf("job: %s: %w: say with --label which of %s is asked about", t.Data.Data, ErrAsk, strings.Join(classes, ", "))
		}
		o.Label = &label
	}
	if s.target, err = attack.Open(m.Graph, o); err != nil {
		return nil, err
	}
	size := s.target.Describe().Size()
	s.pixels = make([]float32, set.Len()*size)
	for i := range set.Len() {
		set.Fill(s.pixels[i*size:(i+1)*size], i)
		class := 0
		if label < 0 {
			class = set.Labels[i]
		} else if set.Has(i, label) {
			class = 1
		}
		if class >= s.target.Describe().Classes {
			return nil, errors.Join(fmt.Errorf("job: %s: %w: its image %d is of class %d, the model tells %d apart", t.Data.Data, ErrAsk, i, class, s.target.Describe().Classes), s.target.Close())
		}
		s.labels = append(s.labels, class)
	}
	for c := range s.target.Describe().Classes {
		name := fmt.Sprint(c)
		if label < 0 && c < len(classes) {
			name = classes[c]
		}
		s.classes = append(s.classes, name)
	}
	return s, nil
}

// searched is what the search found for one class.
type searched struct {
	class      int
	candidates []poison.Candidate
	err        error // too few images
}

// search runs the search for every class. A class for which there are too few
// images is left out and told of.
func (t Triggers) search(ctx context.Context, s *subject, stage string) ([]searched, Reference, error) {
	var all []searched
	ref := Reference{Strength: math.Inf(-1), Smallest: 1}
	d := s.target.Describe()
	done := 0
	for class := range d.Classes {
		o := t.Search
		o.Progress = func(share float64) { t.Progress(stage, (float64(class)+share)/float64(d.Classes)) }
		found, err := poison.Search(ctx, s.target, s.pixels, s.labels, class, o)
		if err != nil && !errors.Is(err, attack.ErrAsk) {
			return nil, ref, err
		}
		all = append(all, searched{class, found, err})
		if err == nil {
			done++
		}
		for _, c := range found {
			if c.Side > 0 {
				ref.Strength = max(ref.Strength, c.Strength)
			} else if c.Held.Share >= ruleHeld {
				ref.Smallest = min(ref.Smallest, c.Size/float64(d.Size()/int(d.Shape[0])))
			}
		}
	}
	if done == 0 {
		return nil, ref, all[0].err
	}
	t.Progress(stage, 1)
	return all, ref, nil
}

// How a trigger is told from what turns any model. The numbers were set on clean
// and poisoned small networks and then measured on others: docs/data-audit.md.
const (
	ruleStrength = 0.35 // of a patch
	ruleTurned   = 0.95 // of the held-out images, by a patch
	ruleLow      = 0.80 // least that this must be, by its 95 % interval: 16 images of 16
	ruleArea     = 0.0  // of a mask, share of the image; 0: only against references
	ruleHeld     = 0.7  // of the held-out images, by a mask
	ruleMargin   = 1.25 // by which references are to be exceeded
)

type rule struct {
	strength, area float64
	references     int
}

func ruleOf(references []Reference) rule {
	v := rule{ruleStrength, ruleArea, len(references)}
	if len(references) == 0 {
		return v
	}
	v.area = 1
	for _, r := range references {
		v.strength = max(v.strength, ruleMargin*r.Strength)
		v.area = min(v.area, r.Smallest/ruleMargin)
	}
	return v
}

func (v rule) String() string {
	text := fmt.Sprintf("a patch turns at least %.0f %% of images that it was not made of (at least %.0f %% by the 95 %% interval), and nine tenths of them to log-odds of at least %.2f times the median of the class's own images", 100*ruleTurned, 100*ruleLow, v.strength)
	if v.references > 0 {
		text += fmt.Sprintf("; or a mask of at most %.2f %% of the image turns at least %.0f %% of them (both %.2f times beyond %d reference models)", 100*v.area, 100*ruleHeld, ruleMargin, v.references)
	}
	return text
}

func (v rule) found(q Square) bool {
	if q.Side > 0 {
		return q.Held.Share >= ruleTurned && q.Held.Low >= ruleLow && q.Strength >= v.strength
	}
	return q.Area <= v.area && q.Held.Share >= ruleHeld
}

// tell judges what was found for a class.
func (t Triggers) tell(c searched, v rule, s *subject) ClassTriggers {
	name := train.Spoken(s.classes[c.class])
	out := ClassTriggers{Class: s.classes[c.class], Triggers: []Square{}}
	if c.err != nil {
		out.Sentence = fmt.Sprintf("%s was not searched: %v", name, c.err)
		return out
	}
	d := s.target.Describe()
	var strongest *Square
	for _, p := range c.candidates {
		q := Square{Form: "mask", Side: p.Side, Row: p.Row, Column: p.Column, Size: p.Size, Area: p.Size / float64(d.Size()/int(d.Shape[0])),
			Made: p.Made, Held: p.Held, Strength: p.Strength, candidate: p}
		if p.Side > 0 {
			q.Form = "patch"
		}
		q.Found = v.found(q)
		out.Found = out.Found || q.Found
		for i, l := range s.labels {
			if l != c.class && q.before == nil {
				q.before = s.pixels[i*d.Size() : (i+1)*d.Size()]
			}
		}
		out.Triggers = append(out.Triggers, q)
	}
	for k := range out.Triggers {
		q := &out.Triggers[k]
		if strongest == nil || q.Found && !strongest.Found || q.Found == strongest.Found && q.Side > 0 && q.Strength > strongest.Strength {
			strongest = q
		}
	}
	what := fmt.Sprintf("a patch of %d×%d pixels at row %d, column %d", strongest.Side, strongest.Side, strongest.Row, strongest.Column)
	if strongest.Side == 0 {
		what = fmt.Sprintf("a mask of %.1f pixels", strongest.Size)
	}
	out.Sentence = fmt.Sprintf("%s turns %d of %d held-out images (%.0f %%, 95 %% %.0f to %.0f) to %s, with strength %.2f", what, strongest.Held.Count, strongest.Held.Of, 100*strongest.Held.Share, 100*strongest.Held.Low, 100*strongest.Held.High, name, strongest.Strength)
	if out.Found {
		out.Sentence += ": as a trigger that was trained in does"
	} else if strongest.Side > 0 && strongest.Held.Share >= ruleTurned && strongest.Strength >= v.strength {
		out.Sentence += ": too few images to tell a trigger from chance; want 16 or more held out"
	} else {
		out.Sentence += ": as in a clean model"
	}
	return out
}

// Err is a *Failure if a trigger was found and that was to be one.
func (r *TriggerReport) Err() error {
	if !r.fail || !r.Found {
		return nil
	}
	return &Failure{[]string{string(poison.Trigger)}}
}

// Write writes the report for people.
func (r *TriggerReport) Write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "triggers in %s, tried on split %s of %s, seed %d\n", r.Model, r.Split, r.Data, r.Seed)
	for _, c := range r.Classes {
		mark := " "
		if c.Found {
			mark = "!"
		}
		fmt.Fprintf(&b, "%s %s: %s\n", mark, train.Spoken(c.Class), c.Sentence)
		for _, q := range c.Triggers {
			what := fmt.Sprintf("patch %d×%d at %d,%d", q.Side, q.Side, q.Row, q.Column)
			if q.Side == 0 {
				what = fmt.Sprintf("mask of %.1f pixels", q.Size)
			}
			fmt.Fprintf(&b, "    %-22s made of %3.0f %%, held out %3.0f %% of %d, strength %5.2f\n", what, 100*q.Made.Share, 100*q.Held.Share, q.Held.Of, q.Strength)
		}
	}
	for _, v := range r.References {
		fmt.Fprintf(&b, "  reference %s: strongest patch %.2f, smallest mask %.2f %% of the image\n", v.Model, v.Strength, 100*v.Smallest)
	}
	if r.Found {
		fmt.Fprintf(&b, "a trigger was found: %s\n", r.Rule)
	} else {
		fmt.Fprintf(&b, "no trigger was found, which is no proof that there is none; one would be found if %s\n", r.Rule)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// drawn are a trigger's pictures: where it is, what it is, and an image before and
// after.
func (r *TriggerReport) drawn(q Square) (mask, pattern, before, after image.Image) {
	rows, columns := int(r.about.Shape[1]), int(r.about.Shape[2])
	area := rows * columns
	planes := int(r.about.Shape[0])
	grey := func(at func(i int) float64) image.Image {
		times := max(1, pictureSide/max(rows, columns))
		out := image.NewGray(image.Rect(0, 0, columns*times, rows*times))
		for y := range rows * times {
			for x := range columns * times {
				out.SetGray(x, y, color.Gray{Y: uint8(min(max(at(y/times*columns+x/times), 0), 1)*255 + 0.5)})
			}
		}
		return out
	}
	mean := func(values []float32, i int) float64 {
		sum := 0.0
		for c := range planes {
			sum += float64(values[c*area+i])
		}
		return (sum/float64(planes) - r.about.Low) / (r.about.High - r.about.Low)
	}
	m, p := q.candidate.Mask, q.candidate.Pattern
	return grey(func(i int) float64 { return float64(m[i]) }),
		grey(func(i int) float64 { return float64(m[i]) * mean(p, i) }),
		grey(func(i int) float64 { return mean(q.before, i) }),
		grey(func(i int) float64 { return (1-float64(m[i]))*mean(q.before, i) + float64(m[i])*mean(p, i) })
}

// save writes the triggers as PNG.
func (r *TriggerReport) save(dir string) error {
	for c := range r.Classes {
		for k := range r.Classes[c].Triggers {
			q := &r.Classes[c].Triggers[k]
			name := fmt.Sprintf("class-%d-%s", c, q.Form)
			if q.Side > 0 {
				name += fmt.Sprintf("-%d", q.Side)
			}
			mask, pattern, _, after := r.drawn(*q)
			for _, part := range []struct {
				of string
				m  image.Image
			}{{"where", mask}, {"trigger", pattern}, {"example", after}} {
				var b bytes.Buffer
				if err := png.Encode(&b, part.m); err != nil {
					return fmt.Errorf("job: drawing a trigger: %w", err)
				}
				file := filepath.Join(dir, name+"-"+part.of+".png")
				if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
					return fmt.Errorf("job: saving triggers: %w", err)
				}
				q.Files = append(q.Files, file)
			}
		}
	}
	return nil
}

//go:embed triggers.html
var triggersPage string

// WriteHTML writes the report as one page that needs nothing else.
func (r *TriggerReport) WriteHTML(w io.Writer) error {
	type row struct {
		Square
		Pictures []pictured
	}
	type class struct {
		ClassTriggers
		Rows []row
	}
	data := struct {
		R       *TriggerReport
		Name    string
		Classes []class
	}{R: r, Name: filepath.Base(r.Model)}
	for _, c := range r.Classes {
		of := class{ClassTriggers: c}
		for _, q := range c.Triggers {
			v := row{Square: q}
			mask, pattern, before, after := r.drawn(q)
			for _, part := range []struct {
				caption string
				m       image.Image
			}{{"where", mask}, {"trigger", pattern}, {"an image before", before}, {"and after", after}} {
				url, err := inline(part.m)
				if err != nil {
					return err
				}
				v.Pictures = append(v.Pictures, pictured{url, part.caption})
			}
			of.Rows = append(of.Rows, v)
		}
		data.Classes = append(data.Classes, of)
	}
	page, err := template.New("triggers").Funcs(template.FuncMap{
		"percent": func(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) },
		"number":  func(v float64) string { return fmt.Sprintf("%.3g", v) },
		"spoken":  train.Spoken,
	}).Parse(triggersPage)
	if err != nil {
		return fmt.Errorf("job: the page of triggers: %w", err)
	}
	return page.Execute(w, data)
}
