package attack

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Name names an attack.
type Name string

// ATLAS is a technique of MITRE ATLAS (https://atlas.mitre.org).
type ATLAS struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// The techniques that attacks here are an instance of.
var (
	blackBox = ATLAS{"AML.T0043.001", "Craft Adversarial Data: Black-Box Optimization"}
	whiteBox = ATLAS{"AML.T0043.000", "Craft Adversarial Data: White-Box Optimization"}
)

// Row is a row of the table of attacks.
type Row struct {
	Name    Name
	About   string // what it does, with its source
	Norms   []Norm // the first is the default
	ATLAS   ATLAS
	Steps   int  // default
	Bounded bool // looks within a bound; otherwise for the nearest example, and the bound only judges it
	Sized   bool // bounded by a size in pixels instead
	Shared  bool // one change for all images: made of half of them, judged on the others
	run     func(context.Context, *task) error
}

// attacks is the whole table.
var attacks = []Row{
	{Auto, "the ensemble: apgd-ce, apgd-dlr, of more than two classes apgd-t, fab and square, each on what is left (AutoAttack, Croce and Hein 2020)", []Norm{Linf, L2}, whiteBox, 100, true, false, false, runAuto},
	{FGSM, "one step to where the linearised loss is highest in the ball and the pixel range (Goodfellow et al. 2015)", []Norm{Linf, L2, L1}, whiteBox, 1, true, false, false, runFGSM},
	{PGD, "steps along the gradient, each projected back exactly, from random starts (Madry et al. 2018; in L1 sparse steps, Tramèr and Boneh 2019)", []Norm{Linf, L2, L1}, whiteBox, 50, true, false, false, runPGD},
	{APGDCE, "gradient steps whose length adapts, on cross-entropy (Croce and Hein 2020)", []Norm{Linf, L2}, whiteBox, 100, true, false, false, runAPGD(CrossEntropy)},
	{APGDDLR, "the same on the difference of logits ratio, of two classes on the margin (Croce and Hein 2020)", []Norm{Linf, L2}, whiteBox, 100, true, false, false, runAPGD(DLR)},
	{APGDT, "the same towards each of the nine likeliest other classes in turn (Croce and Hein 2020); of two classes as apgd-dlr", []Norm{Linf, L2}, whiteBox, 100, true, false, false, runAPGDTargeted},
	{FAB, "the nearest adversarial example, by steps onto the linearised boundary with a pull towards the original (Croce and Hein 2020, Fast Adaptive Boundary)", []Norm{Linf, L2, L1}, whiteBox, 100, false, false, false, runFAB},
	{DeepFool, "onto the nearest linearised boundary until the answer changes (Moosavi-Dezfooli et al. 2016)", []Norm{L2, Linf}, whiteBox, 50, false, false, false, runDeepFool},
	{CW, "least squared distance and margin, weighed by search (Carlini and Wagner 2017)", []Norm{L2}, whiteBox, 100, false, false, false, runCW},
	{Adaptive, "the attacker who knows the guards: confidence, one slope after the other, orthogonal slopes (Bryniarski et al. 2021), a weight for the guards, imitation (Yao et al. 2021), each on what is left", []Norm{Linf, L2}, whiteBox, 100, true, false, false, runAdaptive},
	{Universal, "one perturbation for all images (Moosavi-Dezfooli et al. 2017, by gradient as Shafahi et al. 2020): made of half of them, judged on the others", []Norm{Linf, L2}, whiteBox, 100, true, false, true, runUniversal},
	{Sparse, "few places, each as dark or bright as it takes: eps is their number", []Norm{L0}, whiteBox, 1, true, false, false, runSparse},
	{Patch, "a square of any content at the worst place of each image: every place screened, then climbed and searched from the best", []Norm{L0}, whiteBox, 25, false, true, false, runPatch},
	{UniversalPatch, "one square of any content at one place for all images (after Brown et al. 2017): made of half of them, judged on the others", []Norm{L0}, whiteBox, 60, false, true, true, runUniversalPatch},
	{Square, "random squares, by scores alone (Andriushchenko et al. 2020)", []Norm{Linf, L2}, blackBox, 5000, true, false, false, runSquare},
	{NES, "steps along slopes estimated from scores alone (Ilyas et al. 2018)", []Norm{Linf, L2}, blackBox, 50, true, false, false, runNES},
	{HopSkipJump, "from a random image along the boundary, by answers alone (Chen et al. 2020)", []Norm{L2, Linf}, blackBox, 20, false, false, false, runHopSkipJump},
}

// Blind says that the attack needs no gradients.
func (r Row) Blind() bool { return r.ATLAS == blackBox }

// Attacks lists the attacks.
func Attacks() []Row { return slices.Clone(attacks) }

// Find returns an attack's row.
func Find(name Name) (Row, error) {
	var known []string
	for _, r := range attacks {
		if r.Name == name {
			return r, nil
		}
		known = append(known, string(r.Name))
	}
	return Row{}, fmt.Errorf("attack: attack %q is not known: choose one of %s", name, strings.Join(known, ", "))
}

// Options say how to attack. Zero values are the attack's defaults.
type Options struct {
	Norm Norm
	// Eps bounds the perturbation, in units of the pixel range as it is: 8.0/255
	// of pixels 0..1 is eight grey levels of 8 bits. Attacks that look for the
	// nearest example take 0 for no bound.
	Eps      float64
	Steps    int
	Restarts int     // 0: 1
	StepSize float64 // of PGD, share of Eps; 0: 2.5/Steps, and in L1 at least what moves a pixel (see pgd.go)
	Momentum float64 // of PGD (Dong et al. 2018): share of the former direction that is kept
	Loss     Loss    // of PGD and FGSM; empty: cross-entropy
	FromHere bool    // PGD's first start is the image itself and not a random point
	Side     int     // of a patch, pixels; 0: 3
	// Printable, of patches, is the darkest and the brightest that a patch's pixel
	// may be, such as what a printer or a marker gives; nil: the range of a pixel.
	Printable *[2]float64
	// AlsoHeld attacks images, too, that a guard holds as they are: they might pass
	// after a change.
	AlsoHeld bool
	// Class, if not nil, is what every image is to be taken for. Images of that
	// class are not attacked.
	Class *int
	Seed  uint64
	// Progress, if not nil, is told how much of an attack is done, 0 to 1.
	Progress func(done float64)
}

func (o Options) check(r Row, d Description) (Options, error) {
	if o.Norm == "" {
		o.Norm = r.Norms[0]
	}
	if !slices.Contains(r.Norms, o.Norm) {
		return o, fmt.Errorf("norm %s: %w: %s has %v", o.Norm, ErrAsk, r.Name, r.Norms)
	}
	if math.IsNaN(o.Eps) || o.Eps < 0 || math.IsInf(o.Eps, 0) || r.Bounded && o.Eps == 0 {
		return o, fmt.Errorf("eps %v: %w: want more than 0", o.Eps, ErrAsk)
	}
	if r.Sized && o.Eps != 0 {
		return o, fmt.Errorf("eps %v: %w: %s is bounded by its size in pixels; leave eps out", o.Eps, ErrAsk, r.Name)
	}
	if o.Side < 0 {
		return o, fmt.Errorf("a patch of %d pixels: %w: want 1 or more", o.Side, ErrAsk)
	}
	if o.Side == 0 {
		o.Side = 3
	}
	if p := o.Printable; p != nil {
		if !r.Sized {
			return o, fmt.Errorf("a printable range: %w: it is for patches", ErrAsk)
		}
		if !(p[0] < p[1] && p[0] >= d.Low && p[1] <= d.High) {
			return o, fmt.Errorf("printable from %v to %v: %w: want a range within %v to %v", p[0], p[1], ErrAsk, d.Low, d.High)
		}
	}
	if o.Eps == 0 {
		o.Eps = math.Inf(1)
	}
	if o.Steps < 0 || o.Steps > 1<<20 || o.Restarts < 0 || o.Restarts > 1<<16 {
		return o, fmt.Errorf("%d steps, %d restarts: %w: want 0 for the default, or more", o.Steps, o.Restarts, ErrAsk)
	}
	if !(o.StepSize >= 0 && o.StepSize <= 1e6) || !(o.Momentum >= 0 && o.Momentum <= 1) {
		return o, fmt.Errorf("step size %v, momentum %v: %w: want 0 or more, and a share", o.StepSize, o.Momentum, ErrAsk)
	}
	switch o.Loss {
	case "":
		o.Loss = CrossEntropy
	case CrossEntropy, Margin, DLR:
	default:
		return o, fmt.Errorf("loss %q: %w: want %s, %s or %s", o.Loss, ErrAsk, CrossEntropy, Margin, DLR)
	}
	if o.Class != nil && (*o.Class < 0 || *o.Class >= d.Classes) {
		return o, fmt.Errorf("class %d: %w: it has classes 0 to %d", *o.Class, ErrAsk, d.Classes-1)
	}
	if o.Steps == 0 {
		o.Steps = r.Steps
	}
	o.Restarts = max(1, o.Restarts)
	return o, nil
}

// ErrNothing says that there is nothing to attack: no image is answered rightly.
var ErrNothing = errors.New("nothing to attack")

// Result is what an attack has found.
type Result struct {
	Attack  Name
	Options Options
	Cases   []Case
	// Pixels are the images after the attack, [N, Shape…]: the adversarial ones
	// where they are fooled, the clean ones elsewhere.
	Pixels []float32
	// Queries and Gradients count the examples that the target was asked about,
	// and those with a gradient among them.
	Queries, Gradients int
	// Made is the number of images that a shared change was made of, and MadeFooled
	// how many of these it fools; they count nowhere else.
	Made, MadeFooled int
}

// Case is what became of one image.
type Case struct {
	Label    int
	Answer   int  // class of the clean image
	Correct  bool // answered rightly
	Held     bool // a guard holds the clean image
	Attacked bool // correct, not held and not of the class that is aimed at
	Fooled   bool
	Made     bool             // a shared change was made of it
	After    int              // class of the image after the attack
	Margin   float64          // clean: its own logit less the largest other
	Distance map[Norm]float64 // of a fooled image from the clean one
	Place    *Place           // where a patch lies
}

// Place is a patch's place, in pixels.
type Place struct {
	Row, Column, Size int
}

// count of cases that hold.
func (r *Result) count(ok func(Case) bool) int {
	n := 0
	for _, c := range r.Cases {
		if ok(c) {
			n++
		}
	}
	return n
}

func (r *Result) counts(c Case) bool {
	return !c.Made && (r.Options.Class == nil || c.Label != *r.Options.Class)
}

// Considered is the number of images that count: all, but those of the class
// that is aimed at and those that a shared change was made of.
func (r *Result) Considered() int {
	return r.count(r.counts)
}

// Correct is how many of them are answered rightly without an attack.
func (r *Result) Correct() int {
	return r.count(func(c Case) bool { return c.Correct && r.counts(c) })
}

// Attacked is how many were attacked, Fooled how many of these were fooled.
func (r *Result) Attacked() int { return r.count(func(c Case) bool { return c.Attacked }) }

// Fooled is how many of the attacked images were fooled.
func (r *Result) Fooled() int { return r.count(func(c Case) bool { return c.Fooled }) }

// Accuracy is the share of images answered rightly, RobustAccuracy the share
// that still is under attack.
func (r *Result) Accuracy() float64 { return float64(r.Correct()) / float64(r.Considered()) }

// RobustAccuracy is the share of images answered rightly also under attack.
func (r *Result) RobustAccuracy() float64 {
	return float64(r.Correct()-r.Fooled()) / float64(r.Considered())
}

// Run attacks every image that the target answers rightly: pixels[N, Shape…] of
// classes labels[N]. It does not change pixels. Errors: ErrAsk, ErrNothing, the
// target's; ctx ends it between two runs of the target and within one.
func Run(ctx context.Context, t Target, name Name, pixels []float32, labels []int, o Options) (*Result, error) {
	row, err := Find(name)
	if err != nil {
		return nil, err
	}
	r, err := run(ctx, t, row, pixels, labels, o)
	if err != nil {
		return nil, fmt.Errorf("attack: %s: %w", name, err)
	}
	return r, nil
}

func run(ctx context.Context, t Target, row Row, pixels []float32, labels []int, o Options) (*Result, error) {
	d := t.Describe()
	o, err := o.check(row, d)
	if err != nil {
		return nil, err
	}
	n, err := checkExamples(d, pixels, labels)
	if err != nil {
		return nil, err
	}
	r := &Result{Attack: row.Name, Options: o, Cases: make([]Case, n), Pixels: slices.Clone(pixels)}
	a, err := t.Ask(ctx, pixels, nil)
	if err != nil {
		return nil, err
	}
	r.Queries = n
	k := &task{target: t, about: d, options: o, size: d.Size()}
	k.ball = ball{o.Norm, o.Eps, d.Low, d.High}
	for i, label := range labels {
		z := a.Logits[i*d.Classes : (i+1)*d.Classes]
		c := &r.Cases[i]
		c.Label, c.Answer = label, argmax(z)
		c.After = c.Answer
		c.Correct = c.Answer == label
		c.Margin = float64(z[label]) - float64(z[other(z, label)])
		c.Held = a.Held != nil && a.Held[i]
		c.Attacked = c.Correct && (!c.Held || o.AlsoHeld) && (o.Class == nil || *o.Class != label)
		if c.Attacked {
			k.add(i, pixels[i*k.size:(i+1)*k.size], z, label)
		}
	}
	if len(k.goals) == 0 {
		return nil, fmt.Errorf("%d images: %w: none is answered rightly and of another class than the one aimed at", n, ErrNothing)
	}
	if row.Shared {
		if len(k.goals) < 2 {
			return nil, fmt.Errorf("%d images: %w: one is answered rightly; a shared change is made of some and judged on others", n, ErrNothing)
		}
		k.divide()
		for j, made := range k.made {
			if made {
				r.Cases[k.at[j]].Made, r.Cases[k.at[j]].Attacked = true, false
			}
		}
	}
	if err := row.run(ctx, k); err != nil {
		return nil, err
	}
	if err := k.judge(ctx, r); err != nil {
		return nil, err
	}
	for _, made := range k.made {
		if made {
			r.Made++
		}
	}
	r.Queries, r.Gradients = r.Queries+k.queries, k.gradients
	return r, nil
}

func checkExamples(d Description, pixels []float32, labels []int) (int, error) {
	n, err := checkAsk(d, pixels, nil)
	if err != nil {
		return 0, err
	}
	if n != len(labels) {
		return 0, fmt.Errorf("%d labels for %d examples: %w", len(labels), n, ErrAsk)
	}
	for i, v := range pixels {
		if !(float64(v) >= d.Low && float64(v) <= d.High) {
			return 0, fmt.Errorf("pixel %d of example %d is %v: %w: want %v to %v", i%d.Size(), i/d.Size(), v, ErrAsk, d.Low, d.High)
		}
	}
	for i, l := range labels {
		if l < 0 || l >= d.Classes {
			return 0, fmt.Errorf("label %d of example %d: %w: it has classes 0 to %d", l, i, ErrAsk, d.Classes-1)
		}
	}
	return n, nil
}

// judge asks the target once more about each adversarial image as it leaves, and
// takes none that is not within the bound or does not fool.
func (k *task) judge(ctx context.Context, r *Result) error {
	var fooled []int
	for j, ok := range k.fooled {
		if ok && k.ball.holds(k.clean(j), k.found(j)) {
			fooled = append(fooled, j)
		}
	}
	if len(fooled) == 0 {
		return nil
	}
	a, err := k.ask(ctx, k.rows(fooled, k.found), nil)
	if err != nil {
		return err
	}
	for i, j := range fooled {
		z := k.logits(a, i)
		if !k.goals[j].reached(z) || a.held(i) {
			continue
		}
		c := &r.Cases[k.at[j]]
		if c.Made {
			r.MadeFooled++
			continue
		}
		c.Fooled, c.After, c.Place = true, argmax(z), k.places[j]
		c.Distance = map[Norm]float64{}
		for _, norm := range []Norm{Linf, L2, L1} {
			c.Distance[norm] = norm.Distance(k.clean(j), k.found(j))
		}
		c.Distance[L0] = float64(changed(k.about, k.clean(j), k.found(j)))
		copy(r.Pixels[k.at[j]*k.size:], k.found(j))
	}
	return nil
}

// changed counts the places at which two examples differ: of images pixels, in
// whichever channel.
func changed(d Description, a, b []float32) int {
	planes, places := 1, len(a)
	if len(d.Shape) == 3 {
		planes, places = int(d.Shape[0]), len(a)/int(d.Shape[0])
	}
	n := 0
	for p := range places {
		for c := range planes {
			if a[c*places+p] != b[c*places+p] {
				n++
				break
			}
		}
	}
	return n
}

func (a Answer) held(i int) bool { return a.Held != nil && a.Held[i] }
func (a Answer) penalty(i int) float64 {
	if a.Penalty == nil {
		return 0
	}
	return float64(a.Penalty[i])
}
