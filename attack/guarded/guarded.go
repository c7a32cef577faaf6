// Package guarded is a model with its guards as an attacker sees them who knows
// everything: the weights, the statistics that the guards were fitted to, and the
// thresholds.
//
//	g, err := guard.Open(graph, statistics, guard.Options{Subject: digest, Threads: 1})
//	target, err := guarded.Open(g, guarded.Options{Network: attack.NetworkOptions{Manifest: manifest}})
//	result, err := attack.Run(ctx, target, attack.Adaptive, pixels, labels, attack.Options{Eps: 8.0 / 255})
//
// The guards of the first look are part of the gradient, term by term
// ([guard.Strain]): those of inner layers through the network itself. The aim is
// to stay below where a second look begins, since an image that passes the first
// one unnoticed never meets it; where every image gets a second look, its guards
// are part of the gradient too. What holds an image is not that estimate but the
// guards' own verdict, run as the enclave runs them.
//
// An image that this package calls released was really released. That it finds
// none proves nothing.
package guarded

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
)

// Options say what stands around the guards.
type Options struct {
	// Network says how pixels become the model's input. Output, where empty, and
	// Watch are set from the guards.
	Network attack.NetworkOptions
	// Prepare is the model's own path from the pixels of one example to its input,
	// by which the verdict is given; nil: the differentiated graph's.
	Prepare func(pixels []float32) (engine.Tensor, error)
	// Review says of an input and the model's output that a person looks at it
	// whatever the guards say, such as for a borderline probability; nil: never.
	Review Review
}

// Review decides whether a person looks at an answer that no guard holds. It must
// be safe for concurrent use.
type Review func(ctx context.Context, input engine.Tensor, output []float32) bool

// Target is a guarded model. It is safe for concurrent use.
type Target struct {
	*attack.Network
	guard   *guard.Guard
	options Options
	same    bool // the guards tell the same answers apart as the target's classes
	workers int

	mu   sync.Mutex
	last *asked // an attack asks about the same images for one slope and then another
}

// asked is what is known of the images asked about last.
type asked struct {
	pixels, logits []float32
	inside         [][]float32
	verdict        []byte // unknown, passes or held
}

const (
	unknown = iota
	passes
	held
)

var _ attack.Insider = (*Target)(nil)

// slack is how far below the limit, in nats of surprise, a term must be to weigh
// nothing: the estimate and the verdict differ by rounding.
const slack = 0.05

// Open makes a target of guards that are open already and stay so. Errors: those
// of attack.Open.
func Open(g *guard.Guard, o Options) (*Target, error) {
	m, taps, err := g.Tapped()
	if err != nil {
		return nil, fmt.Errorf("guarded: preparing a target: %w", err)
	}
	n := o.Network
	input, output := g.Names()
	if n.Output == "" {
		n.Output = output
	}
	n.Watch = append([]string{input, output}, taps...)
	t := &Target{guard: g, options: o, workers: n.Workers}
	if t.workers == 0 {
		t.workers = runtime.GOMAXPROCS(0)
	}
	if t.Network, err = attack.Open(m, n); err != nil {
		return nil, fmt.Errorf("guarded: preparing a target: %w", err)
	}
	t.same = n.Label == nil && n.Bias == nil
	return t, nil
}

// Ask implements attack.Target.
func (t *Target) Ask(ctx context.Context, pixels []float32, o *attack.Objective) (attack.Answer, error) {
	a, err := t.ask(ctx, pixels, o)
	if err != nil {
		return attack.Answer{}, fmt.Errorf("guarded: %w", err)
	}
	return a, nil
}

func (t *Target) ask(ctx context.Context, pixels []float32, o *attack.Objective) (attack.Answer, error) {
	blind := o != nil && o.Like == nil && o.Guards != nil // the guards have no part in the gradient
	if blind {
		for _, w := range o.Guards {
			blind = blind && w == 0
		}
	}
	known := t.recall(pixels)
	var a attack.Answer
	var err error
	if blind || known == nil {
		var first *attack.Objective
		if blind {
			first = o
		}
		var inside [][]float32
		if a, inside, err = t.Network.AskInside(ctx, pixels, first, nil); err != nil {
			return a, err
		}
		if known == nil {
			known = &asked{slices.Clone(pixels), a.Logits, inside, make([]byte, len(pixels)/t.Describe().Size())}
		}
	}
	looks, err := t.look(ctx, known, o)
	if err != nil {
		return a, err
	}
	if o != nil && !blind {
		slopes := make([][]float32, len(known.inside))
		for k, v := range known.inside {
			slopes[k] = make([]float32, len(v))
		}
		if err := t.each(len(looks), func(i int) error { return looks[i].slopes(ctx, t.guard, slopes, i) }); err != nil {
			return a, err
		}
		if a, _, err = t.Network.AskInside(ctx, pixels, o, slopes); err != nil {
			return a, err
		}
	}
	a.Logits = slices.Clone(known.logits)
	a.Penalty, a.Held = make([]float32, len(looks)), make([]bool, len(looks))
	verdicts := slices.Clone(known.verdict)
	err = t.each(len(looks), func(i int) error {
		l := looks[i]
		a.Penalty[i] = float32(l.penalty)
		if a.Held[i] = l.surely; !l.asked {
			return nil
		}
		if verdicts[i] == unknown {
			holds, err := t.verdict(ctx, known, i)
			if err != nil {
				return err
			}
			if verdicts[i] = passes; holds {
				verdicts[i] = held
			}
		}
		a.Held[i] = verdicts[i] == held
		return nil
	})
	if err == nil {
		t.mu.Lock()
		t.last = &asked{known.pixels, known.logits, known.inside, verdicts}
		t.mu.Unlock()
	}
	return a, err
}

// recall returns what is known of these very images.
func (t *Target) recall(pixels []float32) *asked {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last == nil || !slices.Equal(t.last.pixels, pixels) {
		return nil
	}
	return t.last
}

// row is what inner tensor k is for image i.
func (k *asked) row(tensor, i int) []float32 {
	size := len(k.inside[tensor]) / len(k.verdict)
	return k.inside[tensor][i*size : (i+1)*size]
}

// look is one image under way.
type look struct {
	strain  *guard.Strain // as an image of the class that is wanted
	weight  float64       // of the guards
	away    []float32     // from what is imitated; nil: nothing
	taps    [][]float32
	penalty float64
	surely  bool // held, as the first look alone tells
	asked   bool // the verdict is wanted
}

// look measures every image.
func (t *Target) look(ctx context.Context, known *asked, o *attack.Objective) ([]*look, error) {
	classes := t.Describe().Classes
	n := len(known.verdict)
	looks := make([]*look, n)
	return looks, t.each(n, func(i int) error {
		l := &look{weight: 1}
		for k := 2; k < len(known.inside); k++ {
			l.taps = append(l.taps, known.row(k, i))
		}
		now := t.guard.Leading(known.row(1, i))
		strain, err := t.guard.Strain(known.row(0, i), l.taps, now)
		if err != nil {
			return err
		}
		limit := t.guard.Statistics().Limit(now)
		l.surely = strain.Surprise() > limit+1e-3*(1+math.Abs(limit))
		l.asked = !l.surely
		l.strain = strain
		if o != nil {
			answer := top(known.logits[i*classes:(i+1)*classes], -1)
			wanted := raised(o, i, known.logits[i*classes:(i+1)*classes])
			if t.same {
				l.strain = strain.As(wanted)
			}
			// What has not turned yet cannot be fooled: its verdict is not asked for.
			l.asked = l.asked && answer == wanted
			if o.Guards != nil {
				l.weight = float64(o.Guards[i])
			}
			if o.Like != nil && o.Like[i] != nil {
				l.away = t.guard.Represent(l.taps)
				if len(l.away) != len(o.Like[i]) {
					return fmt.Errorf("a likeness of %d numbers: %w: want %d", len(o.Like[i]), attack.ErrAsk, len(l.away))
				}
				for j, v := range o.Like[i] {
					l.away[j] -= v
					l.penalty += float64(l.away[j]) * float64(l.away[j])
				}
			}
		}
		if o != nil && l.weight != 0 && t.guard.Statistics().Always() {
			if err := l.strain.Second(ctx, known.row(0, i), known.row(1, i)); err != nil {
				return err
			}
		}
		for _, term := range l.strain.Terms {
			l.penalty += l.weight * math.Max(0, term.Above+slack)
		}
		looks[i] = l
		return nil
	})
}

// slopes writes the slopes of minus the penalty by the inner tensors of image i.
func (l *look) slopes(ctx context.Context, g *guard.Guard, to [][]float32, i int) error {
	weights := make([]float64, len(l.strain.Terms))
	for k, term := range l.strain.Terms {
		if term.Above+slack > 0 {
			weights[k] = -l.weight
		}
	}
	add := func(k int, v []float32) {
		row := to[k][i*len(v) : (i+1)*len(v)]
		for j := range v {
			row[j] += v[j]
		}
	}
	input, taps := l.strain.Slopes(weights)
	add(0, input)
	more, err := l.strain.SecondSlopes(ctx, weights)
	if err != nil {
		return err
	}
	add(0, more)
	for k, v := range taps {
		add(k+2, v)
	}
	if l.away != nil {
		slope := make([]float32, len(l.away))
		for j, v := range l.away {
			slope[j] = -2 * v
		}
		for k, v := range g.RepresentSlopes(slope) {
			add(k+2, v)
		}
	}
	return nil
}

// verdict is what the gateway would do: true if a person looks at the image. A
// guard that fails holds it.
func (t *Target) verdict(ctx context.Context, known *asked, i int) (bool, error) {
	input := engine.Float32(t.guard.Shape(), known.row(0, i))
	if t.options.Prepare != nil {
		size := len(known.pixels) / len(known.verdict)
		var err error
		if input, err = t.options.Prepare(known.pixels[i*size : (i+1)*size]); err != nil {
			return true, err
		}
	}
	alarm, review, err := Judge(ctx, t.guard, t.options.Review, input)
	return alarm || review, err
}

// Judge says of one input whether the guards raise an alarm, and otherwise
// whether a person looks at the answer anyway. A guard that fails on an input
// raises one; only the end of ctx is an error.
func Judge(ctx context.Context, g *guard.Guard, review Review, input engine.Tensor) (alarm, reviewed bool, err error) {
	seen, err := g.Run(ctx, input)
	if err == nil {
		results, judged := g.Judge(ctx, seen)
		if err = judged; err == nil {
			alarm = results[len(results)-1].Alarm
		}
	}
	if ctx.Err() != nil {
		return true, false, context.Cause(ctx)
	}
	if err != nil || alarm {
		return true, false, nil
	}
	if review == nil {
		return false, false, nil
	}
	reviewed = review(ctx, input, seen.Output)
	if ctx.Err() != nil {
		return true, false, context.Cause(ctx)
	}
	return false, reviewed, nil
}

// Inside implements attack.Insider.
func (t *Target) Inside(ctx context.Context, pixels []float32) ([][]float32, error) {
	_, inside, err := t.Network.AskInside(ctx, pixels, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("guarded: %w", err)
	}
	n := len(pixels) / t.Describe().Size()
	out := make([][]float32, n)
	for i := range out {
		var taps [][]float32
		for _, v := range inside[2:] {
			size := len(v) / n
			taps = append(taps, v[i*size:(i+1)*size])
		}
		out[i] = t.guard.Represent(taps)
	}
	return out, nil
}

// each visits 0 to n-1, some at a time, and returns the first error by number.
func (t *Target) each(n int, visit func(i int) error) error {
	errs := make([]error, n)
	work := make(chan int, n)
	for i := range n {
		work <- i
	}
	close(work)
	var running sync.WaitGroup
	for range min(t.workers, n) {
		running.Go(func() {
			for i := range work {
				errs[i] = visit(i)
			}
		})
	}
	running.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// raised is the class that an objective raises for an example of logits z; the
// answer as it is where it raises none.
func raised(o *attack.Objective, i int, z []float32) int {
	best, most := -1, float32(0)
	for c, w := range o.Weights[i*len(z) : (i+1)*len(z)] {
		if w > most {
			best, most = c, w
		}
	}
	if best >= 0 {
		return best
	}
	if o.LogSumExp != nil && o.LogSumExp[i] > 0 && o.Without != nil && o.Without[i] >= 0 {
		return top(z, o.Without[i])
	}
	return top(z, -1)
}

// top is the class of the largest logit but one class's.
func top(z []float32, but int) int {
	best := -1
	for c, v := range z {
		if c != but && (best < 0 || v > z[best]) {
			best = c
		}
	}
	return best
}
