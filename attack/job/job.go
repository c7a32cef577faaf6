package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
)

// ErrAsk says that the options contradict each other, the model or the data; the
// message says what to change.
var ErrAsk = errors.New("cannot be attacked like this")

// Options are an attack on a model. Zero values are defaults.
type Options struct {
	Model  string // ONNX file or package
	Data   probe.Test
	Limit  int // images, a seeded draw that keeps the classes' shares; 0: all
	Attack attack.Name
	Eps    []Eps  // one report line each, ascending; none: for attacks that look for the nearest example
	Class  string // name or number of the class that every image is to be taken for
	Label  string // of labels that do not exclude each other, the one asked about; empty: a package's target
	// OperatingPoint asks about the package's decision at its operating point
	// instead of the more probable class, and Threshold, if not 0, about another
	// calibrated probability in its place: an attacker who wants to stay clear of
	// borderline cases aims beyond the operating point.
	OperatingPoint bool
	Threshold      float64
	Mean, Std      []float64 // of a bare graph that wants normalised input
	Low, High      float64   // range of a pixel; both 0: 0 to 1
	Output         string    // of a bare graph with several
	Attacking      attack.Options
	// JPEG, of DICOM files of 8 bits, is the quality, 1 to 100, at which they are
	// compressed after the attack and within it; 0: they are not.
	JPEG int
	// Guards lets the package's guards, or those of GuardsFile, meet an attacker:
	// Oblivious, Knowing or Both; empty: there are none.
	Guards      string
	GuardsFile  string
	GuardsAlone bool   // the package's own review does not count
	Save        string // .npz file, or folder
	Report      string // .html file
	Command     string // as a person would type it again; part of the report
	Progress    func(stage string, done float64)
}

// Eps is a bound as it was written and as a number.
type Eps struct {
	Text  string  `json:"text"`
	Value float64 `json:"value"`
}

// ParseEps reads bounds such as "8/255", "0.03" or "2/255,4/255", ascending.
func ParseEps(text string) ([]Eps, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var all []Eps
	for _, part := range strings.Split(text, ",") {
		part = strings.TrimSpace(part)
		above, below, fraction := strings.Cut(part, "/")
		v, err := strconv.ParseFloat(strings.TrimSpace(above), 64)
		if fraction && err == nil {
			var d float64
			d, err = strconv.ParseFloat(strings.TrimSpace(below), 64)
			v /= d
		}
		if err != nil || !(v > 0) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("job: eps %q: %w: want a number above 0 such as 8/255 or 0.03, or several with commas", part, ErrAsk)
		}
		all = append(all, Eps{part, v})
	}
	if !slices.IsSortedFunc(all, func(a, b Eps) int { return compare(a.Value, b.Value) }) {
		return nil, fmt.Errorf("job: eps %q: %w: want rising bounds", text, ErrAsk)
	}
	return all, nil
}

func compare(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// subject is a model with its data, ready to be attacked.
type subject struct {
	model   *probe.Model
	set     *train.Set
	target  *attack.Network
	replay  *replay
	pixels  []float32
	labels  []int
	index   []int // position of each image in the split
	classes []string
	digest  string
	data    string // digest

	guards  *guards // nil: none are asked
	network attack.NetworkOptions
	dicom   bool       // files of a folder, attacked one by one
	files   []*studied // of the last bound
}

// Run attacks the model at each bound.
func (o Options) Run(ctx context.Context) (*Report, error) {
	if o.Progress == nil {
		o.Progress = func(string, float64) {}
	}
	row, err := attack.Find(o.Attack)
	if err != nil {
		return nil, err
	}
	if len(o.Eps) > 0 && row.Sized {
		return nil, fmt.Errorf("job: %s: %w: it is bounded by its size in pixels; leave eps out", row.Name, ErrAsk)
	}
	if len(o.Eps) == 0 && row.Bounded {
		return nil, fmt.Errorf("job: %s: %w: it needs a bound: --eps 8/255", row.Name, ErrAsk)
	}
	if o.Attacking.Printable != nil && !row.Sized {
		return nil, fmt.Errorf("job: %s: a printable range: %w: it is for patches", row.Name, ErrAsk)
	}
	if o.JPEG < 0 || o.JPEG > 100 {
		return nil, fmt.Errorf("job: JPEG of quality %d: %w: want 1 to 100", o.JPEG, ErrAsk)
	}
	if err := errors.Join(o.checkSave(), o.checkReport(), o.checkGuards(row)); err != nil {
		return nil, err
	}
	start := time.Now()
	s, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	defer s.close()
	r := s.report(o, row)
	if o.Attacking.Class, err = s.class(o.Class); err != nil {
		return nil, err
	}
	if s.guards != nil {
		if err := s.lookAtClean(ctx); err != nil {
			return nil, err
		}
		r.Guarding = &s.guards.about
	}
	bounds := o.Eps
	if !row.Bounded { // one search serves every bound
		bounds = bounds[max(0, len(bounds)-1):]
		if len(bounds) == 0 {
			bounds = []Eps{{}}
		}
	}
	var last *attack.Result
	for i, eps := range bounds {
		options := o.Attacking
		if options.Eps = eps.Value; !row.Bounded { // the whole way, for the distances
			options.Eps = 0
		}
		stage := string(row.Name)
		if eps.Text != "" {
			stage += " at " + eps.Text
		}
		options.Progress = func(done float64) { o.Progress(stage, done) }
		if s.dicom {
			last, err = s.attackFiles(ctx, o, row, options, r, options.Progress)
		} else if last, err = attack.Run(ctx, s.target, row.Name, s.pixels, s.labels, options); err == nil {
			err = s.recount(ctx, last, r)
		}
		if err != nil {
			return nil, err
		}
		var columns *Guarded
		if s.guards != nil {
			progress := func(stage string, done float64) {
				if eps.Text != "" {
					stage += " at " + eps.Text
				}
				o.Progress(stage+", knowing the guards", done)
			}
			if columns, err = s.meet(ctx, o, row, options, last, r, progress); err != nil {
				return nil, err
			}
		}
		if row.Bounded {
			r.add(last, eps)
			r.Curve[len(r.Curve)-1].Guarded = columns
			continue
		}
		for _, e := range o.Eps {
			r.add(within(last, e.Value), e)
		}
		if len(o.Eps) == 0 {
			r.add(last, bounds[i])
			r.Curve[len(r.Curve)-1].Guarded = columns
		}
	}
	if s.guards != nil {
		last = s.guards.merged(last, s.target.Describe().Size())
	}
	r.finish(last, s)
	r.Seconds = time.Since(start).Seconds()
	if err := s.save(o, r, last); err != nil {
		return nil, err
	}
	if o.Report != "" {
		if err := r.SaveHTML(o.Report); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// within is a result of an attack without a bound, judged by one.
func within(r *attack.Result, eps float64) *attack.Result {
	w := *r
	w.Cases = slices.Clone(r.Cases)
	for i, c := range w.Cases {
		if c.Fooled && c.Distance[r.Options.Norm] > eps {
			w.Cases[i].Fooled = false
		}
	}
	return &w
}

func (o Options) open(ctx context.Context) (*subject, error) {
	m, err := probe.Open(o.Model)
	if err != nil {
		return nil, err
	}
	if len(m.Warnings) > 0 {
		return nil, fmt.Errorf("job: %s: %w: %s", o.Model, ErrAsk, strings.Join(m.Warnings, "; "))
	}
	s := &subject{model: m}
	if s.digest, err = m.Digest(); err != nil {
		return nil, err
	}
	if s.set, s.data, s.classes, err = m.Set(ctx, o.Data); err != nil {
		return nil, err
	}
	n, err := o.network(s)
	if err != nil {
		return nil, err
	}
	if s.target, err = attack.Open(m.Graph, n); err != nil {
		return nil, err
	}
	if s.replay, err = openReplay(m, n, s.set); err != nil {
		return nil, errors.Join(err, s.target.Close())
	}
	if s.dicom = asDICOM(o.Data.Data, s.set); s.dicom {
		if row, err := attack.Find(o.Attack); err == nil && row.Shared || strings.EqualFold(filepath.Ext(o.Save), ".npz") {
			return nil, errors.Join(fmt.Errorf("job: DICOM files: %w: they differ in size, so that there is no change for all and no .npz of them; choose another attack, or a folder", ErrAsk), s.close())
		}
		if n.Manifest == nil {
			if n.Manifest, err = o.bareManifest(s.replay); err != nil {
				return nil, errors.Join(err, s.close())
			}
			n.Mean, n.Std = nil, nil
		}
		s.replay.options, s.network = n, n
	} else if o.JPEG != 0 {
		return nil, errors.Join(fmt.Errorf("job: JPEG: %w: it is for a folder of DICOM files", ErrAsk), s.close())
	}
	if err := s.examples(o, n.Label); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if o.Guards != "" {
		if err := s.openGuards(o, n); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

func (s *subject) close() error {
	return errors.Join(s.target.Close(), s.replay.close(), s.guards.close())
}

// network says how the data's pixels become the model's input.
func (o Options) network(s *subject) (attack.NetworkOptions, error) {
	n := attack.NetworkOptions{Shape: s.set.Example(), Mean: o.Mean, Std: o.Std, Low: o.Low, High: o.High, Output: o.Output}
	if n.Low == 0 && n.High == 0 {
		n.High = 1
	}
	if row, err := attack.Find(o.Attack); err == nil {
		n.AnswersOnly = row.Blind()
	}
	p := s.model.Package
	if o.Threshold != 0 && !(o.OperatingPoint && o.Threshold > 0 && o.Threshold < 1) {
		return n, fmt.Errorf("job: a threshold of %g: %w: want a probability between 0 and 1, and to ask about the operating point", o.Threshold, ErrAsk)
	}
	if p == nil && o.OperatingPoint {
		return n, fmt.Errorf("job: an operating point: %w: a bare ONNX file has none", ErrAsk)
	}
	if p != nil {
		n.Manifest = p.Manifest
		if len(o.Mean) > 0 || len(o.Std) > 0 || o.Output != "" || n.Low != 0 || n.High != 1 {
			return n, fmt.Errorf("job: %s: %w: a package's manifest says how its input is prepared; leave mean, std, range and output out", o.Model, ErrAsk)
		}
		if s.set.Shape != nil || s.set.Channels != 1 {
			return n, fmt.Errorf("job: %s: %w: a package reads luminance, the data have %d channels", o.Model, ErrAsk, s.set.Channels)
		}
		n.Probabilities = p.Manifest.Output.Activation == model.None
	}
	label := o.Label
	if label == "" && s.set.Multi() && p != nil {
		label = p.Manifest.Output.Target
	}
	if label == "" && s.set.Multi() {
		return n, fmt.Errorf("job: %s: %w: its labels do not exclude each other; say which one is asked about", o.Data.Data, ErrAsk)
	}
	if label != "" {
		at, err := find(label, s.classes, s.set.Classes)
		if err != nil {
			return n, fmt.Errorf("job: label %q: %w", label, err)
		}
		n.Label = &at
	}
	if o.OperatingPoint {
		bias, err := operatingPoint(p, o.Threshold)
		if err != nil {
			return n, err
		}
		n.Bias = bias
	}
	return n, nil
}

// operatingPoint moves the decision between two classes from one half to the
// target's threshold on the calibrated probability, or to another one that is
// not 0.
func operatingPoint(p *model.Package, threshold float64) ([]float64, error) {
	out := p.Manifest.Output
	target := slices.IndexFunc(out.Labels, func(l model.Label) bool { return l.Name == out.Target })
	temperature := 1.0
	if p.Calibration.Method == model.Temperature {
		temperature = p.Calibration.Temperature
	}
	if threshold == 0 {
		threshold = out.Labels[target].Threshold
	}
	shift := -temperature * math.Log(threshold/(1-threshold))
	switch {
	case len(out.Labels) == 1:
		return []float64{0, shift}, nil
	case len(out.Labels) == 2 && out.Activation != model.Sigmoid:
		bias := make([]float64, 2)
		bias[target] = shift
		return bias, nil
	}
	return nil, fmt.Errorf("job: an operating point: %w: that of %d labels (%s) is no threshold between two classes", ErrAsk, len(out.Labels), out.Activation)
}

// find returns the position of a class by name or number.
func find(name string, names []string, classes int) (int, error) {
	if at := slices.Index(names, name); at >= 0 {
		return at, nil
	}
	at, err := strconv.Atoi(name)
	if most := max(classes, len(names)); err != nil || at < 0 || at >= most {
		known := "its names are not known"
		if len(names) > 0 {
			known = "they are " + strings.Join(names, ", ")
		}
		return 0, fmt.Errorf("%w: want a number from 0 to %d or a name; %s", ErrAsk, most-1, known)
	}
	return at, nil
}

func (s *subject) class(name string) (*int, error) {
	if name == "" {
		return nil, nil
	}
	at, err := find(name, s.names(), s.target.Describe().Classes)
	if err != nil {
		return nil, fmt.Errorf("job: class %q: %w", name, err)
	}
	return &at, nil
}

// names are the names of the classes that the target tells apart.
func (s *subject) names() []string {
	classes := s.target.Describe().Classes
	if len(s.classes) == classes && s.replay.label == nil {
		return s.classes
	}
	return nil
}

// examples takes the images, as the target wants them.
func (s *subject) examples(o Options, label *int) error {
	n := s.set.Len()
	if o.Limit < 0 {
		return fmt.Errorf("job: a limit of %d: %w: want 0 for all, or more", o.Limit, ErrAsk)
	}
	d := s.target.Describe()
	classes := make([]int, n)
	for i := range n {
		switch {
		case label == nil:
			classes[i] = s.set.Labels[i]
		case s.set.Has(i, *label):
			classes[i] = 1
		}
	}
	drawn := draw(classes, o.Limit, o.Attacking.Seed)
	s.pixels = make([]float32, len(drawn)*d.Size())
	for k, i := range drawn {
		s.set.Fill(s.pixels[k*d.Size():(k+1)*d.Size()], i)
		class := classes[i]
		if class >= d.Classes {
			return fmt.Errorf("job: %s: %w: its image %d is of class %d, the model tells %d apart", o.Data.Data, ErrAsk, i, class, d.Classes)
		}
		s.labels, s.index = append(s.labels, class), append(s.index, i)
	}
	return nil
}

// draw picks limit of the images at random, of each class its share of all
// (largest remainders), in their order; all if limit is 0 or no less.
func draw(classes []int, limit int, seed uint64) []int {
	by := map[int][]int{}
	for i, c := range classes {
		by[c] = append(by[c], i)
	}
	order := slices.Sorted(maps.Keys(by))
	var drawn []int
	if limit <= 0 || limit >= len(classes) {
		limit = len(classes)
	}
	take, left := map[int]int{}, limit
	for _, c := range order {
		take[c] = limit * len(by[c]) / len(classes)
		left -= take[c]
	}
	rest := slices.Clone(order) // by what is cut off, the largest first
	slices.SortStableFunc(rest, func(a, b int) int {
		return cmp.Compare(limit*len(by[b])%len(classes), limit*len(by[a])%len(classes))
	})
	for _, c := range rest[:left] {
		take[c]++
	}
	rng := rand.New(rand.NewPCG(seed, 0x117))
	for _, c := range order {
		of := by[c]
		rng.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
		drawn = append(drawn, of[:take[c]]...)
	}
	slices.Sort(drawn)
	return drawn
}

func (s *subject) report(o Options, row attack.Row) *Report {
	notes := s.target.Notes()
	if s.dicom {
		notes = append(notes, "stored values of the DICOM files were perturbed at their own resolution, in units of the window; each file was written, read back and judged as the gateway reads it")
		if o.JPEG > 0 {
			notes = append(notes, fmt.Sprintf("compressed as baseline JPEG of quality %d", o.JPEG))
		}
	}
	return &Report{
		Model: o.Model, Digest: s.digest, Data: filepath.Base(o.Data.Data), DataDigest: s.data, Split: o.Data.Split,
		Classes: s.names(), Attack: row.Name, About: row.About, ATLAS: row.ATLAS, Bounded: row.Bounded,
		Seed: o.Attacking.Seed, Command: o.Command, Notes: notes, Indices: s.index,
	}
}
