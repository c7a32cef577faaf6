package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/attack/privacy"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/zoo"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// Extraction asks how many queries buy a copy of a model.
type Extraction struct {
	Common
	Pool          string // split of the attacker's own examples [train]
	HeldOut       string // split on which copies are judged [val]
	Budgets       []int  // queries, rising
	Steps         int    // of fitting a copy [300]
	Eps           float64
	TransferSteps int // of the transferred attack [20]
	Transfer      bool
	Save          string // .onnx file for the last copy
}

// ExtractionReport is what it found.
type ExtractionReport struct {
	Head
	Pool    string `json:"pool"`
	HeldOut int    `json:"held_out"` // examples
	// Majority is how often the target gives the answer that it gives most often.
	Majority train.Interval    `json:"majority_class"`
	Accuracy train.Interval    `json:"target_accuracy"`
	Curves   []ExtractionCurve `json:"curves"`
	// Bought is by how much oftener the copy of the largest budget (natural,
	// probabilities) agrees with the target than the model that never saw it, on the
	// same examples, with Student's interval.
	Bought   train.Interval `json:"bought"`
	Transfer *Transfer      `json:"transfer,omitempty"`
	Saved    string         `json:"saved,omitempty"`
}

// ExtractionCurve is one way of asking.
type ExtractionCurve struct {
	Queries string            `json:"queries"` // "random", "natural", "active", or "none": labels of people
	Answers string            `json:"answers"` // "labels" or "probabilities"
	Points  []ExtractionPoint `json:"points"`
}

// ExtractionPoint is a copy.
type ExtractionPoint struct {
	Budget   int            `json:"budget"`
	Fidelity train.Interval `json:"fidelity"` // agreement with the target on held-out examples
	Accuracy train.Interval `json:"accuracy"`
}

// Transfer says whether adversarial examples made on a copy fool the target.
// Rates are of the held-out examples that the target answers rightly.
type Transfer struct {
	Eps       float64        `json:"eps"`
	Steps     int            `json:"steps"`
	Examples  int            `json:"examples"`
	Copy      train.Interval `json:"copy"`                // made on the copy of the largest budget
	Without   train.Interval `json:"without_target"`      // on a model trained on labels of people
	Noise     train.Interval `json:"random_noise"`        // signs at random, of the same size
	WhiteBox  train.Interval `json:"white_box,omitempty"` // on the target itself
	NoTargets string         `json:"white_box_missing,omitempty"`
}

// Run asks.
func (o Extraction) Run(ctx context.Context) (*ExtractionReport, error) {
	start := time.Now()
	if err := o.check(); err != nil {
		return nil, err
	}
	s, sets, err := o.open(ctx, false, o.Pool, o.HeldOut)
	if err != nil {
		return nil, err
	}
	defer s.close()
	t := &theft{Extraction: o, subject: s, pool: sets[0], held: sets[1]}
	if last := o.Budgets[len(o.Budgets)-1]; last > t.pool.Len() {
		return nil, fmt.Errorf("job: %d queries of %d examples of split %s: %w: ask for fewer, or name a larger split", last, t.pool.Len(), o.Pool, ErrAsk)
	}
	if o.Transfer && t.held.Shape != nil {
		return nil, fmt.Errorf("job: transfer: %w: it is for images", ErrAsk)
	}
	r := &ExtractionReport{Head: o.head("extraction", s, extractionTechnique, proxyTechnique), Pool: o.Pool, HeldOut: t.held.Len()}
	if o.Transfer {
		r.ATLAS = append(r.ATLAS, transferTechnique)
	}
	if err := t.prepare(ctx); err != nil {
		return nil, err
	}
	answers := privacy.Answers(t.heldAnswers)
	counts := make([]int, t.classes)
	for _, c := range answers {
		counts[c]++
	}
	r.Majority = privacy.ClopperPearson(slices.Max(counts), len(answers))
	r.Accuracy = privacy.Agreement(answers, t.held.Labels)
	ways := []ExtractionCurve{{Queries: "random", Answers: "labels"}, {Queries: "random", Answers: "probabilities"}, {Queries: "natural", Answers: "labels"}, {Queries: "natural", Answers: "probabilities"},
		{Queries: "active", Answers: "labels"}, {Queries: "active", Answers: "probabilities"}, {Queries: "none", Answers: "labels"}}
	for k, way := range ways {
		curve, last, err := t.curve(ctx, way, func(done float64) {
			o.Progress("copying", (float64(k)+done)/float64(len(ways)))
		})
		if err != nil {
			return nil, err
		}
		r.Curves = append(r.Curves, curve)
		switch {
		case way.Queries == "natural" && way.Answers == "probabilities":
			t.stolen = last
		case way.Queries == "none":
			t.without = last
		}
	}
	if r.Bought, err = t.bought(ctx, answers); err != nil {
		return nil, err
	}
	if o.Transfer {
		if r.Transfer, err = t.transfer(ctx); err != nil {
			return nil, err
		}
	}
	if o.Save != "" {
		if err := t.stolen.Save(o.Save); err != nil {
			return nil, fmt.Errorf("job: saving the copy: %w", err)
		}
		r.Saved = o.Save
	}
	r.verdict()
	return r, o.finish(&r.Head, r, start)
}

func (o *Extraction) check() error {
	if err := o.begin(); err != nil {
		return err
	}
	if o.Pool == "" {
		o.Pool = studies.Train
	}
	if o.HeldOut == "" {
		o.HeldOut = studies.Validation
	}
	if len(o.Budgets) == 0 {
		o.Budgets = []int{10, 30, 100, 300}
	}
	if o.Steps == 0 {
		o.Steps = 300
	}
	if o.TransferSteps == 0 {
		o.TransferSteps = 20
	}
	if o.Eps == 0 {
		o.Eps = 8. / 255
	}
	switch {
	case o.Model == "":
		return fmt.Errorf("job: %w: name a model", ErrAsk)
	case o.Pool == o.HeldOut:
		return fmt.Errorf("job: %w: queries and held-out examples are both of split %s", ErrAsk, o.Pool)
	case o.Budgets[0] < 2 || !slices.IsSorted(o.Budgets) || len(slices.Compact(slices.Clone(o.Budgets))) != len(o.Budgets):
		return fmt.Errorf("job: budgets %v: %w: want rising numbers from 2", o.Budgets, ErrAsk)
	case o.Steps < 1 || o.Steps > 1<<20 || o.TransferSteps < 1 || o.TransferSteps > 1<<16 || !(o.Eps > 0 && o.Eps <= 1):
		return fmt.Errorf("job: %d steps, %d of the attack within %v: %w: want 1 or more, and a bound of at most 1", o.Steps, o.TransferSteps, o.Eps, ErrAsk)
	}
	return nil
}

// theft is an extraction under way.
type theft struct {
	Extraction
	subject     *subject
	pool, held  *train.Set
	classes     int
	own, noise  []float32 // queries: the attacker's own examples, and random ones
	order       []int     // of the pool, shuffled
	ownAnswers  [][]float64
	heldPixels  []float32
	heldAnswers [][]float64
	size        int

	stolen, without *onnx.Model
}

// prepare asks the target all that can be asked, once; budgets are counted of it.
func (t *theft) prepare(ctx context.Context) error {
	t.classes = t.subject.target.Describe().Classes
	t.own, t.heldPixels = pixels(t.pool), pixels(t.held)
	t.size = len(t.own) / t.pool.Len()
	rng := rand.New(rand.NewPCG(t.Seed, 0xe7))
	t.order = rng.Perm(t.pool.Len())
	t.noise = make([]float32, t.Budgets[len(t.Budgets)-1]*t.size)
	if t.pool.Shape != nil { // standardised columns
		for i := range t.noise {
			t.noise[i] = float32(rng.NormFloat64())
		}
	} else {
		for plane := 0; plane < len(t.noise); plane += t.pool.Rows * t.pool.Columns {
			texture(t.noise[plane:plane+t.pool.Rows*t.pool.Columns], t.pool.Rows, t.pool.Columns, rng)
		}
	}
	var err error
	if t.ownAnswers, err = logits(ctx, t.subject.target, t.own); err != nil {
		return err
	}
	t.heldAnswers, err = logits(ctx, t.subject.target, t.heldPixels)
	return err
}

// texture draws an image that nobody took: random values on a coarse grid, of a
// grain, brightness and contrast that are drawn too, with straight lines between
// them. White noise would be the same to most models.
func texture(to []float32, rows, columns int, rng *rand.Rand) {
	cells := 1 + rng.IntN(max(2, min(rows, columns)/2))
	grid := make([]float64, (cells+1)*(cells+1))
	for i := range grid {
		grid[i] = rng.Float64() - 0.5
	}
	level, contrast := rng.Float64(), 2*rng.Float64()
	for y := range rows {
		for x := range columns {
			gy, gx := float64(y*cells)/float64(rows), float64(x*cells)/float64(columns)
			i, j := int(gy), int(gx)
			v, u := gy-float64(i), gx-float64(j)
			at := i*(cells+1) + j
			value := (1-v)*((1-u)*grid[at]+u*grid[at+1]) + v*((1-u)*grid[at+cells+1]+u*grid[at+cells+2])
			to[y*columns+x] = float32(max(0, min(1, level+contrast*value)))
		}
	}
}

// network is what a copy is: the attacker does not know the target's.
func (t *theft) network(seed uint64) (*train.Network, error) {
	if t.pool.Shape != nil {
		n, err := zoo.Build("tabular-mlp", zoo.Options{Input: t.pool.Example(), Classes: t.classes, Norm: zoo.GroupNorm}, rand.New(rand.NewPCG(seed, 0)))
		if err != nil {
			return nil, err
		}
		return &train.Network{Model: n.Model, Input: n.Input, Logits: n.Logits, Weights: n.Weights}, nil
	}
	c := train.CNN{Channels: t.pool.Channels, Rows: t.pool.Rows, Columns: t.pool.Columns, Classes: t.classes,
		Stages: [][]int{{16}, {32}}, GroupSize: 4, Hidden: 32}
	c.Mean, c.Deviation = t.pool.Moments()
	return c.Build(rand.New(rand.NewPCG(seed, 0x11)))
}

// curve copies the target at each budget; the last copy is returned.
func (t *theft) curve(ctx context.Context, way ExtractionCurve, progress func(float64)) (ExtractionCurve, *onnx.Model, error) {
	var last *onnx.Model
	var chosen []int
	taken := map[int]bool{}
	for k, budget := range t.Budgets {
		if way.Queries == "active" && last != nil {
			z, err := t.answers(ctx, last, t.own)
			if err != nil {
				return way, nil, err
			}
			for _, i := range privacy.MostUncertain(privacy.Softmax(z), taken, budget-len(chosen)) {
				chosen, taken[i] = append(chosen, i), true
			}
		} else {
			for _, i := range t.order {
				if len(chosen) < budget && !taken[i] {
					chosen, taken[i] = append(chosen, i), true
				}
			}
		}
		x, soft, err := t.asked(ctx, way, chosen, budget)
		if err != nil {
			return way, nil, err
		}
		n, err := t.network(t.Seed + uint64(k))
		if err != nil {
			return way, nil, err
		}
		surrogate, err := privacy.NewSurrogate(n, min(32, budget))
		if err != nil {
			return way, nil, err
		}
		err = surrogate.Fit(ctx, x, soft, privacy.FitOptions{Steps: t.Steps, Seed: t.Seed + uint64(k)})
		if err == nil {
			last, err = surrogate.Model()
		}
		if err = errors.Join(err, surrogate.Close()); err != nil {
			return way, nil, err
		}
		z, err := t.answers(ctx, last, t.heldPixels)
		if err != nil {
			return way, nil, err
		}
		answers := privacy.Answers(z)
		way.Points = append(way.Points, ExtractionPoint{budget, privacy.Agreement(answers, privacy.Answers(t.heldAnswers)), privacy.Agreement(answers, t.held.Labels)})
		progress(float64(k+1) / float64(len(t.Budgets)))
	}
	return way, last, nil
}

// bought compares the copy with the model that never saw the target, in pairs.
func (t *theft) bought(ctx context.Context, target []int) (train.Interval, error) {
	difference := make([]float64, len(target))
	for _, part := range []struct {
		model *onnx.Model
		sign  float64
	}{{t.stolen, 1}, {t.without, -1}} {
		z, err := t.answers(ctx, part.model, t.heldPixels)
		if err != nil {
			return train.Interval{}, err
		}
		for i, c := range privacy.Answers(z) {
			if c == target[i] {
				difference[i] += part.sign
			}
		}
	}
	return student(difference), nil
}

// answers are a copy's.
func (t *theft) answers(ctx context.Context, m *onnx.Model, x []float32) ([][]float64, error) {
	target, err := attack.Open(m, attack.NetworkOptions{Shape: t.pool.Example(), AnswersOnly: true})
	if err != nil {
		return nil, err
	}
	z, err := logits(ctx, target, x)
	return z, errors.Join(err, target.Close())
}

// asked are the queries of a budget, with what is known of them.
func (t *theft) asked(ctx context.Context, way ExtractionCurve, chosen []int, budget int) (x, soft []float32, err error) {
	var z [][]float64
	if way.Queries == "random" {
		x = t.noise[:budget*t.size]
		if z, err = logits(ctx, t.subject.target, x); err != nil {
			return nil, nil, err
		}
	} else {
		for _, i := range chosen {
			x = append(x, t.own[i*t.size:(i+1)*t.size]...)
			z = append(z, t.ownAnswers[i])
		}
	}
	hard := privacy.Answers(z)
	if way.Queries == "none" {
		hard = pick(t.pool.Labels, chosen)
	}
	soft = make([]float32, budget*t.classes)
	for i, p := range privacy.Softmax(z) {
		if way.Answers == "labels" {
			soft[i*t.classes+hard[i]] = 1
			continue
		}
		for c, v := range p {
			soft[i*t.classes+c] = float32(v)
		}
	}
	return x, soft, nil
}

// transfer makes adversarial images on models and shows them to the target.
func (t *theft) transfer(ctx context.Context) (*Transfer, error) {
	target := privacy.Answers(t.heldAnswers)
	var right []int
	for i, c := range target {
		if c == t.held.Labels[i] {
			right = append(right, i)
		}
	}
	r := &Transfer{Eps: t.Eps, Steps: t.TransferSteps, Examples: len(right)}
	if len(right) == 0 {
		return r, nil
	}
	var clean []float32
	for _, i := range right {
		clean = append(clean, t.heldPixels[i*t.size:(i+1)*t.size]...)
	}
	labels := pick(t.held.Labels, right)
	fooled := func(x []float32) (train.Interval, error) {
		z, err := logits(ctx, t.subject.target, x)
		if err != nil {
			return train.Interval{}, err
		}
		n := 0
		for i, c := range privacy.Answers(z) {
			if c != labels[i] {
				n++
			}
		}
		return privacy.ClopperPearson(n, len(labels)), nil
	}
	from := func(source attack.Target) (train.Interval, error) {
		x, err := privacy.Transferable(ctx, source, clean, labels, t.Eps, t.TransferSteps)
		if err != nil {
			return train.Interval{}, err
		}
		return fooled(x)
	}
	for _, source := range []struct {
		model *onnx.Model
		to    *train.Interval
	}{{t.stolen, &r.Copy}, {t.without, &r.Without}} {
		network, err := attack.Open(source.model, attack.NetworkOptions{Shape: t.held.Example()})
		if err != nil {
			return nil, err
		}
		*source.to, err = from(network)
		if err = errors.Join(err, network.Close()); err != nil {
			return nil, err
		}
	}
	rng := rand.New(rand.NewPCG(t.Seed, 0x7a))
	noisy := slices.Clone(clean)
	for i, v := range noisy {
		step := t.Eps
		if rng.IntN(2) == 0 {
			step = -step
		}
		noisy[i] = float32(max(0, min(1, float64(v)+step)))
	}
	var err error
	if r.Noise, err = fooled(noisy); err != nil {
		return nil, err
	}
	options, err := t.Common.network(t.subject, t.held, true)
	if err != nil {
		return nil, err
	}
	own, err := attack.Open(t.subject.model.Graph, options)
	if err != nil { // a model without gradients has no white box
		r.NoTargets = err.Error()
		return r, nil
	}
	r.WhiteBox, err = from(own)
	return r, errors.Join(err, own.Close())
}

func (r *ExtractionReport) verdict() {
	best := func(queries, answers string) ExtractionPoint {
		for _, c := range r.Curves {
			if c.Queries == queries && c.Answers == answers {
				return c.Points[len(c.Points)-1]
			}
		}
		return ExtractionPoint{}
	}
	copied, without := best("natural", "probabilities"), best("none", "labels")
	r.Verdict = fmt.Sprintf("%d queries of natural examples, answered by probabilities, buy a copy that agrees with the model on %s of held-out examples; always its most frequent answer agrees on %.1f %%, and a model trained on the same examples with labels of people, without the model, on %.1f %%.",
		copied.Budget, percent(copied.Fidelity), 100*r.Majority.Value, 100*without.Fidelity.Value)
	if r.Bought.Low > 0 {
		r.Verdict += fmt.Sprintf(" The queries bought %.1f points (%.1f to %.1f) more than the examples alone.", 100*r.Bought.Value, 100*r.Bought.Low, 100*r.Bought.High)
	} else {
		r.Verdict += fmt.Sprintf(" That the queries bought more than the examples alone is not shown: %+.1f points (%+.1f to %+.1f).", 100*r.Bought.Value, 100*r.Bought.Low, 100*r.Bought.High)
	}
}

func (r *ExtractionReport) page() page {
	p := page{Title: "How many queries buy a copy of the model?", Lead: fmt.Sprintf("Queries of split %s of %s, or random; copies are judged on %d held-out examples. The target answers %s of them rightly.", r.Pool, r.Data, r.HeldOut, percent(r.Accuracy)),
		Fine: "Fidelity is how often copy and target give the same class on held-out examples; intervals are Clopper-Pearson's over these examples and know nothing of how a copy would vary with its seed."}
	head := []string{"queries, answers"}
	for _, point := range r.Curves[0].Points {
		head = append(head, fmt.Sprintf("%d", point.Budget))
	}
	for _, what := range []struct {
		title string
		of    func(ExtractionPoint) train.Interval
		text  string
	}{
		{"Agreement with the target, %, by number of queries", func(e ExtractionPoint) train.Interval { return e.Fidelity }, fmt.Sprintf("Always the target's most frequent answer: %s.", percent(r.Majority))},
		{"Answered rightly, %, by number of queries", func(e ExtractionPoint) train.Interval { return e.Accuracy }, fmt.Sprintf("The target: %s.", percent(r.Accuracy))},
	} {
		s := section{Title: what.title, Head: head, Text: []string{what.text}}
		var lines []line
		for _, c := range r.Curves {
			name := c.Queries + ", " + c.Answers
			if c.Queries == "none" {
				name = "no target: labels of people"
			}
			row, l := []string{name}, line{Name: name, Dashed: c.Queries == "none"}
			for _, point := range c.Points {
				v := what.of(point)
				row = append(row, fmt.Sprintf("%.1f (%.1f to %.1f)", 100*v.Value, 100*v.Low, 100*v.High))
				l.X, l.Y = append(l.X, float64(point.Budget)), append(l.Y, v.Value)
			}
			s.Rows, lines = append(s.Rows, row), append(lines, l)
		}
		if points := r.Curves[0].Points; len(points) > 1 {
			majority := line{Name: "most frequent answer", X: []float64{float64(points[0].Budget), float64(points[len(points)-1].Budget)}, Y: []float64{r.Majority.Value, r.Majority.Value}, Dashed: true}
			if len(p.Sections) == 0 {
				lines = append(lines, majority)
			}
			low := 1.0
			for _, l := range lines {
				low = min(low, slices.Min(l.Y))
			}
			s.Chart = chart(axes{X: "queries", Y: "share of held-out examples", Logarithmic: [2]bool{true, false}, LowX: float64(points[0].Budget), HighX: float64(points[len(points)-1].Budget),
				LowY: max(0, math.Floor(10*low-1)/10), Top: 1}, lines)
		}
		p.Sections = append(p.Sections, s)
	}
	if t := r.Transfer; t != nil {
		s := section{Title: fmt.Sprintf("Do adversarial images made elsewhere fool the target? L∞ %.4g, %d steps with momentum", t.Eps, t.Steps), Head: []string{"made on", "target fooled, of those it answers rightly"},
			Rows: [][]string{{"the copy (natural, probabilities)", percent(t.Copy)}, {"a model that never saw the target", percent(t.Without)}, {"nothing: signs at random", percent(t.Noise)}}}
		if t.NoTargets == "" {
			s.Rows = append(s.Rows, []string{"the target itself", percent(t.WhiteBox)})
		} else {
			s.Text = append(s.Text, "The target cannot be differentiated: "+t.NoTargets)
		}
		s.Text = append(s.Text, fmt.Sprintf("%d images, each taken as far as the bound allows against its label (Dong et al. 2018, MI-FGSM), whatever the source answers.", t.Examples))
		p.Sections = append(p.Sections, s)
	}
	return p
}

// Write writes the report for people.
func (r *ExtractionReport) Write(w io.Writer) error { return r.write(w, r.page()) }

// SaveHTML writes it as one page that needs nothing else.
func (r *ExtractionReport) SaveHTML(path string) error { return r.save(path, r.page()) }
