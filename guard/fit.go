package guard

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie"
)

// Examples are the images to fit on: prepared as the model takes them, and not
// among those it was trained on.
type Examples struct {
	Images   [][]float32 // each of Network.Shape
	Patients []string    // of each image, "" where unknown; nil where none is known
	Names    []string    // of each image, for messages; may be nil
}

// FitOptions says how to fit.
type FitOptions struct {
	Subject     vigie.ModelDigest // the package without its statistics
	Data        string            // what the examples are, for people
	FalseAlarms float64           // the promised share of clean images with an alarm; 0 is 0.01
	SecondLook  float64           // share of clean images that get a second look; 0 is 0.02, negative is none
	Seed        uint64            // of the split and of the attacks made while fitting
	Threads     int
	Progress    func(done, total int) // nil: none
}

// The defaults of FitOptions.
const (
	DefaultFalseAlarms = 0.01
	DefaultSecondLook  = 0.02
)

// Report says what was fitted.
type Report struct {
	Subject       vigie.ModelDigest `json:"subject"`
	Images        int               `json:"images"`
	Fitted        int               `json:"fitted"`
	Calibrated    int               `json:"calibrated"`
	Seed          uint64            `json:"seed"`
	FalseAlarms   float64           `json:"false_alarms"` // promised
	Expected      float64           `json:"expected"`     // what the promise comes to with so many images
	SecondLook    float64           `json:"second_look"`
	ByClass       bool              `json:"by_class"` // the promise holds for each leading answer by itself
	Layers        []string          `json:"layers"`
	Gradient      bool              `json:"gradient"` // the model has one; without, attacks are only noise
	WithoutReason string            `json:"without_gradient,omitempty"`
}

// ErrTooFew says that there are not enough examples for the promise.
var ErrTooFew = errors.New("too few images")

// folds is in how many parts the fitted images are scored by what the others
// gave.
const folds = 4

// Fit fits every guard to a model. The images are divided by patient: one part
// to fit on, the other to calibrate on, which nothing else looks at. The same
// images, options and processor give the same bytes.
func Fit(ctx context.Context, n Network, e Examples, o FitOptions) (*Statistics, *Report, error) {
	s, report, err := fit(ctx, n, e, o)
	if err != nil {
		return nil, nil, fmt.Errorf("guard: fitting: %w", err)
	}
	return s, report, nil
}

func fit(ctx context.Context, n Network, e Examples, o FitOptions) (*Statistics, *Report, error) {
	o.FalseAlarms = cmp.Or(o.FalseAlarms, DefaultFalseAlarms)
	o.SecondLook = max(0, cmp.Or(o.SecondLook, DefaultSecondLook))
	if !(o.FalseAlarms > 0 && o.FalseAlarms <= 0.2) || o.SecondLook > 1 {
		return nil, nil, fmt.Errorf("%v false alarms and a second look at %v: want more than 0 and at most 0.2, and at most 1", o.FalseAlarms, o.SecondLook)
	}
	if e.Patients != nil && len(e.Patients) != len(e.Images) || e.Names != nil && len(e.Names) != len(e.Images) {
		return nil, nil, fmt.Errorf("%d patients and %d names for %d images", len(e.Patients), len(e.Names), len(e.Images))
	}
	geometry, err := n.geometry()
	if err != nil {
		return nil, nil, err
	}
	for i, values := range e.Images {
		if err := geometry.check(values); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", e.name(i), err)
		}
	}
	fitted, calibrated, err := divide(e, o)
	if err != nil {
		return nil, nil, err
	}
	taps, err := chooseTaps(n.Model, n.Output, 1)
	if err != nil {
		return nil, nil, err
	}
	g, err := open(n, taps, o.Threads)
	if err != nil {
		return nil, nil, err
	}
	defer func() { g.Close() }()

	report := &Report{Subject: o.Subject, Images: len(e.Images), Fitted: len(fitted), Calibrated: len(calibrated), Seed: o.Seed,
		FalseAlarms: o.FalseAlarms, SecondLook: o.SecondLook}
	for _, t := range taps {
		report.Layers = append(report.Layers, t.Tensor)
	}
	done, total := 0, 2*len(fitted)+len(calibrated)
	tick := func(k int) {
		done += k
		if o.Progress != nil {
			o.Progress(min(done, total), total)
		}
	}

	// The fitted part, each image with attacks on it.
	pick := func(at []int) [][]float32 {
		out := make([][]float32, len(at))
		for k, i := range at {
			out[k] = e.Images[i]
		}
		return out
	}
	looks, err := g.looks(ctx, pick(fitted))
	if err != nil {
		return nil, nil, err
	}
	examples := make([]example, len(looks))
	for i, l := range looks {
		if err := l.finite(); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", e.name(fitted[i]), err)
		}
		l.plane = geometry.plane(l.values)
		l.pixels = l.plane.measure()
		examples[i] = example{Look: l}
	}
	tick(len(fitted))
	attacked := &forger{network: &g.network, geometry: geometry, seed: o.Seed}
	const attackBatch = 16
	size := attackBatch
	if g.fixed > 0 {
		size = int(g.fixed)
	}
	if attacked.slope, err = openSlope(&g.network, g.labels, size, o.Threads); err != nil {
		report.WithoutReason = err.Error() // noise stands in for attacks
	}
	defer attacked.slope.close()
	report.Gradient = attacked.slope != nil && attacked.slope.session != nil && g.fixed <= 1
	if attacked.slope != nil && attacked.slope.session == nil {
		attacked.slope = nil
	}
	if err := attacked.forge(ctx, examples, tick); err != nil {
		return nil, nil, err
	}

	s := &Statistics{settings: settings{
		Schema: Schema, Subject: o.Subject, FalseAlarms: o.FalseAlarms, SecondLook: o.SecondLook, Seed: o.Seed, Data: o.Data,
		Fitted: len(fitted), Calibrated: len(calibrated), Input: n.Input, Output: n.Output, Activation: n.Activation,
		Shape: n.Shape, ChannelsLast: n.ChannelsLast, Black: n.Black, White: n.White, Labels: g.labels,
		Differentiable: report.Gradient, Taps: taps,
	}}
	if report.Gradient {
		if g.slope, err = openSlope(&g.network, g.labels, 1, o.Threads); err != nil {
			return nil, nil, err
		}
	}
	g.statistics = s
	if err := s.fitTails(ctx, g, examples); err != nil {
		return nil, nil, err
	}
	final, err := fitModels(examples, classes(g.labels))
	if err != nil {
		return nil, nil, err
	}
	s.models = *final
	s.LayerTails, s.Width = final.LayerTails, final.References.Width
	s.Bias = []float64{final.Perturbation.Bias, final.Patch.Bias}

	if err := s.calibrate(ctx, g, pick(calibrated), func(i int) string { return e.name(calibrated[i]) }, tick); err != nil {
		return nil, nil, err
	}
	report.ByClass = s.total.Class[len(s.total.Class)-1] > 0
	report.Expected = s.expected()
	return s, report, nil
}

func (e Examples) name(i int) string {
	if e.Names != nil {
		return e.Names[i]
	}
	return fmt.Sprintf("image %d", i)
}

// expected is the mean share of false alarms over calibrations of this size:
// floor(α·(n+1))/(n+1), the largest over the classes where they are told apart.
func (s *Statistics) expected() float64 {
	count := map[int]int{}
	for _, c := range s.total.Class {
		count[c]++
	}
	most := 0.0
	for _, n := range count {
		most = max(most, math.Floor(s.FalseAlarms*float64(n+1)+1e-9)/float64(n+1))
	}
	return most
}

// groups gathers the images of each patient, and copies of an image: the keys, in
// the order of their first images, and the images of each.
func (e Examples) groups() (order []int, members map[int][]int) {
	group := map[string]int{}
	parent := make([]int, len(e.Images))
	root := func(i int) int {
		for parent[i] != i {
			parent[i] = parent[parent[i]]
			i = parent[i]
		}
		return i
	}
	join := func(key string, i int) {
		if j, ok := group[key]; ok {
			parent[root(i)] = root(j)
		} else {
			group[key] = i
		}
	}
	buffer := make([]byte, 0, 4096)
	for i, values := range e.Images {
		parent[i] = i
		buffer = buffer[:0]
		for _, v := range values {
			bits := math.Float32bits(v)
			buffer = append(buffer, byte(bits), byte(bits>>8), byte(bits>>16), byte(bits>>24))
		}
		sum := sha256.Sum256(buffer)
		join("image "+string(sum[:]), i)
		if e.Patients != nil && e.Patients[i] != "" {
			join("patient "+e.Patients[i], i)
		}
	}
	members = map[int][]int{}
	for i := range e.Images {
		r := root(i)
		if members[r] == nil {
			order = append(order, r)
		}
		members[r] = append(members[r], i)
	}
	return order, members
}

// divide splits the images by patient, seeded: equal images count as one
// patient's. The calibration gets about six tenths, but of a size for which the
// promise comes out exactly where that is possible: n+1 a multiple of 1/α.
func divide(e Examples, o FitOptions) (fitted, calibrated []int, err error) {
	order, members := e.groups()
	unit := fewest(o.FalseAlarms) + 1
	const fewestFitted = 60
	want := min(max(len(e.Images)*6/10, unit-1), len(e.Images)-fewestFitted)
	if exact := (want+1)/unit*unit - 1; exact >= unit-1 {
		want = exact
	}
	if want < unit-1 || len(e.Images)-want < fewestFitted {
		return nil, nil, fmt.Errorf("%d: %w: a promise of %v false alarms takes %d, or allow more false alarms", len(e.Images), ErrTooFew,
			o.FalseAlarms, unit-1+fewestFitted)
	}
	rng := rand.New(rand.NewPCG(o.Seed, 0x9a4d))
	rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	for _, r := range order {
		if len(calibrated)+len(members[r]) <= want {
			calibrated = append(calibrated, members[r]...)
		} else {
			fitted = append(fitted, members[r]...)
		}
	}
	if len(calibrated) < unit-1 || len(fitted) < fewestFitted {
		return nil, nil, fmt.Errorf("%d images of %d patients: %w: they cannot be divided by patient for a promise of %v false alarms", len(e.Images), len(order), ErrTooFew, o.FalseAlarms)
	}
	slices.Sort(fitted)
	slices.Sort(calibrated)
	return fitted, calibrated, nil
}

// fitTails scores the fitted images out of fold, and from these scores sets the
// scales of the guards and the surprise from which on there is a second look.
func (s *Statistics) fitTails(ctx context.Context, g *Guard, examples []example) error {
	all := make([]scores, len(examples))
	for f := range folds {
		var rest []example
		for i, x := range examples {
			if i%folds != f {
				rest = append(rest, x)
			}
		}
		m, err := fitModels(rest, classes(g.labels))
		if err != nil {
			return err
		}
		for i, x := range examples {
			if i%folds == f {
				all[i] = unasked()
				m.first(x.Look, all[i])
			}
		}
	}
	for i, x := range examples {
		if err := g.secondLook(ctx, x.Look, all[i]); err != nil {
			return err
		}
	}
	s.Tails = make([]named, len(kinds))
	for k := range kinds {
		var column []float64
		for _, row := range all {
			if !math.IsInf(row[k], 0) {
				column = append(column, row[k])
			}
		}
		s.Tails[k] = named{kinds[k].Name, tail{0, 1}}
		if len(column) > 0 {
			s.Tails[k].tail = fitTail(column)
		}
	}
	first := make([]float64, len(all))
	for i, row := range all {
		first[i], _ = s.surprise(row, false)
	}
	slices.Sort(first)
	s.Escalate = first[min(len(first)-1, int(float64(len(first))*(1-s.SecondLook)))]
	if s.SecondLook >= 1 {
		s.Escalate = -1e9
	} else if s.SecondLook == 0 {
		s.Escalate = 1e9
	}
	return nil
}

// calibrate scores images that nothing was fitted on.
func (s *Statistics) calibrate(ctx context.Context, g *Guard, images [][]float32, name func(int) string, tick func(int)) error {
	class := make([]int, len(images))
	total := make([]float64, len(images))
	columns := make([][]float64, len(kinds))
	for i := range images {
		looks, err := g.looks(ctx, images[i:i+1])
		if err != nil {
			return fmt.Errorf("%s: %w", name(i), err)
		}
		of, second, err := g.measure(ctx, looks[0], true)
		if err != nil {
			return fmt.Errorf("%s: %w", name(i), err)
		}
		class[i] = looks[0].class
		total[i], _ = s.surprise(of, second)
		for k, v := range of {
			if !math.IsInf(v, 0) {
				columns[k] = append(columns[k], v)
			}
		}
		tick(1)
	}
	s.clean = make([]calibration, len(kinds))
	for k, column := range columns {
		if len(column) > 0 {
			s.clean[k] = calibrate(column, class, kinds[k].ByClass, fewest(s.FalseAlarms))
		}
	}
	s.total = calibrate(total, class, true, 2*fewest(s.FalseAlarms))
	return nil
}
