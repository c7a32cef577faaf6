package job

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/attack/guarded"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/guard/certificate"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/train"
)

// Which attacker meets the guards.
const (
	Oblivious = "oblivious" // knows the model and nothing of the guards
	Knowing   = "adaptive"  // knows both, and the thresholds
	Both      = "both"
)

// Guarantee is what a report says beside its columns.
const Guarantee = "Only what an attacker who knows the guards does not get through is a guarantee, and it holds for this attack: a stronger one may get more through. Detection of an attacker who knows nothing of them is none."

// Guarding says what stood between the attack and the answer.
type Guarding struct {
	Attacker    string  `json:"attacker"`
	File        string  `json:"file,omitempty"` // of the statistics, if not the package's
	Subject     string  `json:"subject"`
	Data        string  `json:"data"` // that the guards were fitted on
	FalseAlarms float64 `json:"false_alarms_promised"`
	SecondLook  float64 `json:"second_look"`
	Review      bool    `json:"review"` // the package's own review (borderline, plausibility, prediction sets, disagreement, masks of a certificate) holds, too
	// Clean says what happens to the same images without an attack.
	Clean struct {
		Images         int       `json:"images"`
		Alarms         int       `json:"alarms"`
		Reviewed       int       `json:"reviewed"` // without an alarm
		FalseAlarmRate float64   `json:"false_alarm_rate"`
		ReviewRate     float64   `json:"review_rate"`
		Intervals      cleanRate `json:"intervals"`
	} `json:"clean"`
	Guarantee string `json:"guarantee"`
}

type cleanRate struct {
	FalseAlarmRate train.Interval `json:"false_alarm_rate"`
	ReviewRate     train.Interval `json:"review_rate"`
}

// Passing is what became of the images answered rightly, at one bound, against
// one attacker. Of the fooled, each is noticed by a guard, or else looked at for
// the package's own reasons, or released.
type Passing struct {
	Attacked int `json:"attacked"`
	Fooled   int `json:"fooled"`
	Noticed  int `json:"noticed"`
	Reviewed int `json:"reviewed"`
	Released int `json:"released"`

	NoticedRate  float64          `json:"noticed_rate"`  // of the fooled
	AvoidedRate  float64          `json:"avoided_rate"`  // of the fooled: noticed or reviewed
	ReleasedRate float64          `json:"released_rate"` // of the attacked
	Intervals    passingIntervals `json:"intervals"`
}

type passingIntervals struct {
	NoticedRate  train.Interval `json:"noticed_rate"`
	AvoidedRate  train.Interval `json:"avoided_rate"`
	ReleasedRate train.Interval `json:"released_rate"`
}

// Guarded holds the columns of one bound.
type Guarded struct {
	Oblivious *Passing `json:"oblivious,omitempty"`
	Adaptive  *Passing `json:"adaptive,omitempty"`
}

func passing(attacked int, fates []fate) *Passing {
	p := &Passing{Attacked: attacked}
	for _, f := range fates {
		if f != safe {
			p.Fooled++
		}
		switch f {
		case noticed:
			p.Noticed++
		case reviewed:
			p.Reviewed++
		case released:
			p.Released++
		}
	}
	p.Intervals.NoticedRate = train.Wilson(p.Noticed, p.Fooled)
	p.Intervals.AvoidedRate = train.Wilson(p.Noticed+p.Reviewed, p.Fooled)
	p.Intervals.ReleasedRate = train.Wilson(p.Released, p.Attacked)
	p.NoticedRate, p.AvoidedRate, p.ReleasedRate = p.Intervals.NoticedRate.Value, p.Intervals.AvoidedRate.Value, p.Intervals.ReleasedRate.Value
	return p
}

// fate is what became of an image.
type fate byte

const (
	safe fate = iota // not fooled
	noticed
	reviewed
	released
)

// guards is a subject's guards, and what they let pass so far.
type guards struct {
	guard    *guard.Guard
	target   *guarded.Target
	review   guarded.Review
	second   *guard.Second          // views of an image, where the package compares them
	proofs   *certificate.Certifier // nil: the package certifies nothing against patches
	about    Guarding
	passed   []bool    // by image: released at this or a smaller bound
	pixels   []float32 // the images that passed
	after    []int     // their answers
	distance []map[attack.Norm]float64
	places   []*attack.Place
}

// partner is the attack that knows the guards, beside one that does not.
func partner(row attack.Row, norm attack.Norm) (attack.Name, error) {
	switch {
	case row.Name == attack.Patch:
		return attack.Patch, nil
	case row.Bounded && norm != attack.L1 && norm != attack.L0 && row.Name != attack.Universal:
		return attack.Adaptive, nil
	}
	return "", fmt.Errorf("job: guards against %s in %s: %w: attacks within a bound in linf or l2, and patches, have a form that knows the guards; choose one of them", row.Name, norm, ErrAsk)
}

func (o Options) checkGuards(row attack.Row) error {
	switch o.Guards {
	case "":
		if o.GuardsFile != "" || o.GuardsAlone {
			return fmt.Errorf("job: guards: %w: say which attacker they meet: --guards %s, %s or %s", ErrAsk, Oblivious, Knowing, Both)
		}
		return nil
	case Oblivious:
		if !row.Bounded && !row.Sized {
			return fmt.Errorf("job: guards against %s: %w: what it finds depends on no bound; choose an attack within one", row.Name, ErrAsk)
		}
		return nil
	case Knowing, Both:
		norm := o.Attacking.Norm
		if norm == "" {
			norm = row.Norms[0]
		}
		_, err := partner(row, norm)
		return err
	}
	return fmt.Errorf("job: guards %q: %w: want %s, %s or %s", o.Guards, ErrAsk, Oblivious, Knowing, Both)
}

// openGuards makes the package's guards ready.
func (s *subject) openGuards(o Options, n attack.NetworkOptions) error {
	p := s.model.Package
	if p == nil {
		return fmt.Errorf("job: guards of %s: %w: a bare ONNX file has none; put it into a package and fit them", o.Model, ErrAsk)
	}
	if s.dicom {
		return fmt.Errorf("job: guards of %s: %w: a folder of DICOM files is attacked without guards only; save its images as .npz", o.Model, ErrAsk)
	}
	data, subject, err := p.Guards()
	if o.GuardsFile != "" {
		if data, err = readGuards(o.GuardsFile); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	statistics, err := guard.Parse(data)
	if err != nil {
		return err
	}
	g := &guards{about: Guarding{Attacker: o.Guards, File: o.GuardsFile, Subject: string(subject), Data: statistics.Data,
		FalseAlarms: statistics.FalseAlarms, SecondLook: statistics.SecondLook, Review: !o.GuardsAlone, Guarantee: Guarantee}}
	if g.guard, err = guard.Open(p.Graph, statistics, guard.Options{Subject: subject, Threads: 1}); err != nil {
		return err
	}
	if !o.GuardsAlone {
		if err := g.openReview(p, s.set.Rows, s.set.Columns); err != nil {
			return errors.Join(err, g.closeReview(), g.guard.Close())
		}
	}
	n.AnswersOnly = o.Guards == Oblivious
	if g.target, err = guarded.Open(g.guard, guarded.Options{Network: n, Prepare: s.replay.prepare, Review: g.review}); err != nil {
		return errors.Join(err, g.closeReview(), g.guard.Close())
	}
	s.guards = g
	return nil
}

// openReview makes ready what else sends an answer of the package to a person: the
// manifest's borderline band and plausibility rules, its fitted verifiers, and
// masks that disagree where it certifies answers against patches. rows and columns
// are those of an image.
func (g *guards) openReview(p *model.Package, rows, columns int) error {
	var verifiers *guard.Verifiers
	data, subject, err := p.Verifiers()
	switch {
	case errors.Is(err, model.ErrNoVerifiers):
	case err != nil:
		return err
	default:
		if verifiers, err = guard.ParseVerifiers(data); err != nil {
			return err
		}
		var labels []string
		for _, l := range p.Manifest.Output.Labels {
			labels = append(labels, l.Name)
		}
		if err := verifiers.Fits(subject, labels); err != nil {
			return err
		}
		if a := verifiers.Apart; a != nil && a.By != guard.Views {
			return fmt.Errorf("job: guards of %s: %w: its review compares the members of an ensemble, which is not attacked; ask for --guards-alone", p.Manifest.Name, ErrAsk)
		} else if a != nil {
			if g.second, err = guard.OpenSecond(p.Graph, a, 1); err != nil {
				return err
			}
		}
	}
	proven := func(context.Context, engine.Tensor, []vigie.Prediction) bool { return true }
	if wanted := p.Manifest.Certificate; wanted.Wanted() && wanted.Patch != nil {
		about, err := p.Certified()
		if err != nil {
			return err
		}
		region, touched, _, err := p.Manifest.Squares(*wanted.Patch, rows, columns)
		if err != nil {
			return err
		}
		wanted.Smoothing = nil // draws by chance, and is asked about by vigie certify
		if g.proofs, err = certificate.Open(about, wanted.CertificateOptions(1)); err != nil {
			return err
		}
		proven = func(ctx context.Context, input engine.Tensor, predictions []vigie.Prediction) bool {
			if !wanted.Asks(p.Manifest.Output.Target, predictions) {
				return true
			}
			squares, err := g.proofs.Squares(ctx, input, model.AnswerOf(predictions), touched, region)
			return err == nil && squares.Agreed() && (squares.Certified || wanted.Patch.Uncertified != model.Review)
		}
	}
	g.review = func(ctx context.Context, input engine.Tensor, output []float32) bool {
		predictions, err := p.Predictions(output)
		if err != nil || len(p.Manifest.Review(predictions, nil)) > 0 {
			return true
		}
		if verifiers == nil {
			return !proven(ctx, input, predictions)
		}
		apart := math.NaN()
		if verifiers.Asks(predictions) {
			if apart, err = g.second.Ask(ctx, input, output); err != nil {
				return true
			}
		}
		judged, err := verifiers.Judge(predictions, apart)
		return err != nil || len(judged.Reasons) > 0 || !proven(ctx, input, predictions)
	}
	return nil
}

// maxGuards bounds a file of statistics.
const maxGuards = guard.MaxFile

func readGuards(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("job: reading guards: %w", err)
	}
	if info.Size() > maxGuards || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("job: reading guards from %s: %w: want a file of at most %d bytes", path, ErrAsk, maxGuards)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("job: reading guards: %w", err)
	}
	return data, nil
}

func (g *guards) close() error {
	if g == nil {
		return nil
	}
	return errors.Join(g.target.Close(), g.closeReview(), g.guard.Close())
}

func (g *guards) closeReview() error {
	err := g.second.Close()
	if g.proofs != nil {
		err = errors.Join(err, g.proofs.Close())
	}
	return err
}

// fateOf is what the package would do with an image that fools.
func (s *subject) fateOf(ctx context.Context, pixels []float32) (fate, error) {
	input, err := s.replay.prepare(pixels)
	if err != nil {
		return safe, err
	}
	alarm, review, err := guarded.Judge(ctx, s.guards.guard, s.guards.review, input)
	switch {
	case err != nil:
		return safe, err
	case alarm:
		return noticed, nil
	case review:
		return reviewed, nil
	}
	return released, nil
}

// lookAtClean says what happens to the images as they are.
func (s *subject) lookAtClean(ctx context.Context) error {
	g, size := s.guards, s.target.Describe().Size()
	c := &g.about.Clean
	c.Images = len(s.labels)
	for i := range s.labels {
		f, err := s.fateOf(ctx, s.pixels[i*size:(i+1)*size])
		if err != nil {
			return fmt.Errorf("job: guards on image %d: %w", s.index[i], err)
		}
		switch f {
		case noticed:
			c.Alarms++
		case reviewed:
			c.Reviewed++
		}
	}
	c.Intervals.FalseAlarmRate, c.Intervals.ReviewRate = train.Wilson(c.Alarms, c.Images), train.Wilson(c.Reviewed, c.Images)
	c.FalseAlarmRate, c.ReviewRate = c.Intervals.FalseAlarmRate.Value, c.Intervals.ReviewRate.Value
	n := len(s.labels)
	g.passed, g.after, g.pixels = make([]bool, n), make([]int, n), slices.Clone(s.pixels)
	g.distance, g.places = make([]map[attack.Norm]float64, n), make([]*attack.Place, n)
	return nil
}

// meet lets both attackers meet the guards at one bound, after the attack that
// knows nothing of them gave r. What passed at a smaller bound passes at a larger
// one.
func (s *subject) meet(ctx context.Context, o Options, row attack.Row, options attack.Options, r *attack.Result, report *Report, progress func(string, float64)) (*Guarded, error) {
	g, size := s.guards, s.target.Describe().Size()
	out := &Guarded{}
	fates := make([]fate, len(r.Cases))
	attacked := 0
	for i, c := range r.Cases {
		if c.Attacked {
			attacked++
		}
		if !c.Fooled {
			continue
		}
		var err error
		if fates[i], err = s.fateOf(ctx, r.Pixels[i*size:(i+1)*size]); err != nil {
			return nil, fmt.Errorf("job: guards on image %d: %w", s.index[i], err)
		}
		if fates[i] == released {
			g.keep(i, r, size)
		}
	}
	if o.Guards != Knowing {
		out.Oblivious = passing(attacked, fates)
	}
	if o.Guards == Oblivious {
		return out, nil
	}
	name, err := partner(row, r.Options.Norm)
	if err != nil {
		return nil, err
	}
	adaptive, err := attack.Find(attack.Adaptive)
	if err != nil {
		return nil, err
	}
	var open []int
	var pixels []float32
	var labels []int
	for i, c := range r.Cases {
		if c.Attacked && !g.passed[i] {
			open, labels = append(open, i), append(labels, c.Label)
			pixels = append(pixels, s.pixels[i*size:(i+1)*size]...)
		}
	}
	if len(open) > 0 {
		knowing := options
		knowing.AlsoHeld = true
		if name != row.Name {
			// The bound, the aim and the seed are the same; how to climb is its own, and
			// never shorter than its default.
			knowing = attack.Options{Steps: max(r.Options.Steps, adaptive.Steps), Norm: r.Options.Norm, Eps: options.Eps, Class: options.Class, Seed: options.Seed, Restarts: options.Restarts, AlsoHeld: true}
		}
		knowing.Progress = func(done float64) { progress(string(name), done) }
		k, err := attack.Run(ctx, g.target, name, pixels, labels, knowing)
		if err != nil {
			return nil, err
		}
		report.Queries += k.Queries
		report.Gradients += k.Gradients
		for at, i := range open {
			c := k.Cases[at]
			if !c.Fooled {
				continue
			}
			image := k.Pixels[at*size : (at+1)*size]
			answer, err := s.replay.answer(ctx, image)
			if err != nil {
				return nil, fmt.Errorf("job: replaying image %d: %w", s.index[i], err)
			}
			f, err := s.fateOf(ctx, image)
			if err != nil {
				return nil, fmt.Errorf("job: guards on image %d: %w", s.index[i], err)
			}
			if answer != c.After || f != released {
				report.Unconfirmed++
				continue
			}
			g.passed[i], g.after[i], g.distance[i], g.places[i] = true, c.After, c.Distance, c.Place
			copy(g.pixels[i*size:(i+1)*size], image)
		}
	}
	for i := range fates {
		if g.passed[i] {
			fates[i] = released
		}
	}
	out.Adaptive = passing(attacked, fates)
	return out, nil
}

func (g *guards) keep(i int, r *attack.Result, size int) {
	if g.passed[i] {
		return
	}
	c := r.Cases[i]
	g.passed[i], g.after[i], g.distance[i], g.places[i] = true, c.After, c.Distance, c.Place
	copy(g.pixels[i*size:(i+1)*size], r.Pixels[i*size:(i+1)*size])
}

// merged is a result in which what passed the guards stands before what only
// fooled: those are the images that are saved and shown.
func (g *guards) merged(r *attack.Result, size int) *attack.Result {
	m := *r
	m.Cases, m.Pixels = slices.Clone(r.Cases), slices.Clone(r.Pixels)
	for i, passed := range g.passed {
		if !passed {
			continue
		}
		c := &m.Cases[i]
		c.Fooled, c.After, c.Distance, c.Place = true, g.after[i], g.distance[i], g.places[i]
		copy(m.Pixels[i*size:(i+1)*size], g.pixels[i*size:(i+1)*size])
	}
	return &m
}
