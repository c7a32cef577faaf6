package federate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vigie/vigie/federate/robust"
	"github.com/vigie/vigie/federate/secagg"
)

// CoordinatorOptions says what a coordinator is.
type CoordinatorOptions struct {
	Terms   Terms
	Members []secagg.Member
	// Variables are the model's, one after the other, that the first round starts
	// from; the first Trained of them are trained, the others running statistics.
	// A coordinator without any asks questions alone.
	Variables []float32
	Trained   int
	Keeper    Keeper // keeps what must outlive the process; nil: nothing does
	// Trusted train on examples that all hospitals trust, those of one class each:
	// see Engine.References. They are heeded where the terms name sites; may be nil.
	Trusted []Trainer
	// Parallel is how many sites are asked at a time; 0 is all. It does not change
	// the result.
	Parallel int
	// Opened, if not nil, is told of every sum before a rule judges it: whose it is,
	// their mean update with SCAFFOLD's change behind it, and the sites' weights
	// together. It is all that a coordinator learns of the sites' examples, and what
	// an audit of their privacy attacks.
	Opened func(survivors []string, mean []float32, weight float64)
	// Layout says which tensors the variables are, for the transcript; it may be nil.
	Layout []Span
	// Transcript records every attempt for an auditor; nil: nothing does.
	Transcript *Transcript
}

// Coordinator leads a federation. It holds the model once, whatever the number
// of sites, and sees no update of a site.
type Coordinator struct {
	CoordinatorOptions

	state  coordinatorState
	server server
	scores *scores        // of what was observed; nil before it is asked for
	broken error          // see broke
	ending sync.WaitGroup // of orders that end a round
}

// coordinatorState is what outlives the process, besides the numbers.
type coordinatorState struct {
	Terms  []byte `json:"terms"`  // their digest
	Number uint64 `json:"number"` // of the last attempt at a round
	Index  int    `json:"index"`  // rounds that are over
	// Skipped is how many of them have no result: a sum may have been opened before
	// they failed, so that they are not tried again.
	Skipped int `json:"skipped,omitempty"`
	// Observed is what the sums of each round showed, if the terms name sites.
	Observed [][]scoreRow `json:"observed,omitempty"`
}

// NewCoordinator makes a coordinator ready, or goes on where its keeper says that
// it was.
func NewCoordinator(o CoordinatorOptions) (*Coordinator, error) {
	if err := o.Terms.Check(len(o.Members)); err != nil {
		return nil, err
	}
	if (o.Trained < 1 || o.Trained > len(o.Variables)) && (o.Trained != 0 || o.Variables != nil) {
		return nil, fmt.Errorf("federate: making a coordinator: %d variables, of which %d are trained", len(o.Variables), o.Trained)
	}
	if err := o.checkTrusted(); err != nil {
		return nil, err
	}
	c := newCoordinator(o)
	return c, c.restore()
}

// newCoordinator is a coordinator before its first round.
func newCoordinator(o CoordinatorOptions) *Coordinator {
	c := &Coordinator{CoordinatorOptions: o}
	c.Variables = slices.Clone(o.Variables)
	c.server = newServer(o.Terms.Algorithm, len(o.Variables), o.Trained)
	if o.Terms.Average > 0 {
		c.server.Average = slices.Clone(o.Variables)
	}
	return c
}

// Weights are the global weights now, in place.
func (c *Coordinator) Weights() *Weights {
	return &Weights{Variables: c.Variables, Control: c.server.Control}
}

// Published are the variables that are worth using: the moving average, where the
// terms have one, or the global ones.
func (c *Coordinator) Published() []float32 {
	if c.server.Average != nil {
		return c.server.Average
	}
	return c.Variables
}

// Rounds is how many rounds have a result.
func (c *Coordinator) Rounds() int { return c.state.Index - c.state.Skipped }

// Index is how many rounds are over, with a result or without.
func (c *Coordinator) Index() int { return c.state.Index }

// Attempts is how many attempts were begun, at rounds and questions.
func (c *Coordinator) Attempts() int { return int(c.state.Number) }

// Done says whether the terms' rounds are over.
func (c *Coordinator) Done() bool { return c.state.Index >= c.Terms.Rounds }

// Outcome is what came of a round.
type Outcome struct {
	Index  int            `json:"round"`   // from 0
	Number uint64         `json:"number"`  // of the attempt
	Groups []GroupOutcome `json:"groups"`  //
	Loss   float64        `json:"loss"`    // mean over the sites' examples, before their steps
	Length float64        `json:"length"`  // Euclidean, of the mean update
	Sites  int            `json:"sites"`   // in the sums
	Lost   []string       `json:"lost"`    // asked, but in no sum
	Bytes  Traffic        `json:"traffic"` // of the vectors, both ways
	// Scores are the evidence against each site, if the terms name sites, after this
	// round, and Named who was named by it.
	Scores []Score  `json:"scores,omitempty"`
	Named  []string `json:"named,omitempty"`
	// Skipped says that the round is over without a result.
	Skipped bool `json:"skipped,omitempty"`
}

// Traffic counts bytes.
type Traffic struct {
	Down int64 `json:"down"`
	Up   int64 `json:"up"`
}

// GroupOutcome is what came of one group.
type GroupOutcome struct {
	Members   []string            `json:"members"`
	Survivors []string            `json:"survivors,omitempty"`
	Weight    float64             `json:"weight,omitempty"` // Σ of the sites' weights
	Held      float64             `json:"held"`             // against its sum, by the rule
	Accused   []secagg.Accusation `json:"accused,omitempty"`
	Lapses    []Lapse             `json:"lapses,omitempty"`
	// Beyond are the sites of a sum that was opened and cannot be one of updates
	// within the terms' bound: one of them, at least, has not kept to it.
	Beyond  []string `json:"beyond,omitempty"`
	Failure string   `json:"failure,omitempty"`
}

// Lapse is what a site did not do as it should, as the coordinator saw it; unlike
// an accusation it proves nothing to others.
type Lapse struct {
	Site   string `json:"site"`
	Step   Step   `json:"step"`
	Late   bool   `json:"late,omitempty"` // it did not answer within the deadline
	Reason string `json:"reason"`
}

// ErrAnswer is returned for an answer that is none to what was asked.
var ErrAnswer = errors.New("not an answer to this order")

// Round runs one round with the sites that the links reach. It returns an error
// that wraps ErrRound if no group has a sum; the model is then as before, and another
// attempt may be made: at the same round, or, if sites were asked to open a sum
// already, at the next one (Outcome.Skipped). A context that ends ends the attempt.
func (c *Coordinator) Round(ctx context.Context, links []Link) (Outcome, error) {
	if c.broken != nil {
		return Outcome{}, c.broken
	}
	if c.Trained == 0 {
		return Outcome{}, fmt.Errorf("federate: starting a round: %w: there is no model to train, questions alone can be asked", ErrRound)
	}
	if c.Done() {
		return Outcome{}, fmt.Errorf("federate: starting round %d of %d: %w: all are done", c.state.Index+1, c.Terms.Rounds, ErrRound)
	}
	links = slices.Clone(links)
	slices.SortFunc(links, func(a, b Link) int { return strings.Compare(a.Name(), b.Name()) })
	links = c.admit(links)
	if least := c.Terms.Least(len(c.Members)); len(links) < least {
		return Outcome{}, fmt.Errorf("federate: starting round %d: %w: %d sites are there, and the terms want %d of %d to be asked", c.state.Index+1, ErrRound, len(links), least, len(c.Members))
	}
	c.state.Number++
	if err := c.save(); err != nil { // so that no number is used twice
		return Outcome{}, err
	}
	out := Outcome{Index: c.state.Index, Number: c.state.Number, Lost: []string{}}
	weights, err := c.offered()
	if err != nil {
		return Outcome{}, err
	}
	digest := weights.Sum()
	record := Record{Number: c.state.Number, Index: c.state.Index, Model: digest[:], Members: c.Members}
	var sums []groupSum
	opened := false // whether sites were asked to open a sum
	for i, group := range c.gather(links, nil) {
		g := &groupRound{coordinator: c, links: group, weights: weights, order: Order{Round: c.state.Number, Index: c.state.Index, Model: digest[:]}, at: i}
		sum, outcome, err := g.run(ctx)
		if c.Transcript != nil { // or it would be held for nothing
			record.Groups = append(record.Groups, g.record)
		}
		opened = opened || g.record.Sum != nil
		out.Bytes.Down += g.traffic.Down
		out.Bytes.Up += g.traffic.Up
		if ctx.Err() != nil { // what was said counts, for an auditor
			record.Failure, record.Interrupted = ctx.Err().Error(), true
			return out, errors.Join(ctx.Err(), c.Transcript.write(record))
		}
		if err == nil {
			sums = c.add(sums, sum)
		}
		out.count(outcome)
	}
	taught, err := c.teachings(ctx)
	if err != nil {
		record.Failure, record.Interrupted = err.Error(), true
		return out, errors.Join(err, c.Transcript.write(record))
	}
	if err := c.finish(&out, sums); err != nil {
		record.Failure, record.Skipped = err.Error(), opened
		out.Skipped = opened
		if writing := c.Transcript.write(record); writing != nil { // no attempt without a record is followed by another
			return out, c.broke(writing)
		}
		if opened {
			c.skip()
			if saving := c.save(); saving != nil {
				return out, c.broke(saving)
			}
		}
		return out, err
	}
	c.score(&out, taught, sums)
	result := c.Weights().Digest()
	record.Result, record.Scores, record.Named = result[:], out.Scores, out.Named
	if err := c.Transcript.write(record); err != nil { // before the state: what counted has a record
		return out, c.broke(err)
	}
	if err := c.save(); err != nil {
		return out, c.broke(err)
	}
	return out, nil
}

// broke ends a coordinator whose memory and disk may differ: another, made from what
// is on the disk, goes on.
func (c *Coordinator) broke(err error) error {
	c.broken = fmt.Errorf("federate: leading on after what could not be kept: %w", err)
	return err
}

// count adds what came of a group.
func (o *Outcome) count(g GroupOutcome) {
	o.Groups = append(o.Groups, g)
	o.Sites += len(g.Survivors)
	for _, name := range g.Members {
		if _, in := slices.BinarySearch(g.Survivors, name); !in {
			o.Lost = append(o.Lost, name)
		}
	}
}

// Settle waits until the sites that were lost in a round were told that it is over,
// or could not be reached.
func (c *Coordinator) Settle() { c.ending.Wait() }

// skip ends a round without a result. What sites have agreed to open once they do
// not open among others: see Site.pin.
func (c *Coordinator) skip() {
	c.state.Index++
	c.state.Skipped++
}

// opening says whether sites were asked to open a sum.
func (r Record) opening() bool {
	return slices.ContainsFunc(r.Groups, func(g GroupRecord) bool { return g.Sum != nil })
}

// finish moves the model by the sums.
func (c *Coordinator) finish(out *Outcome, sums []groupSum) error {
	fail := func(err error) error {
		return fmt.Errorf("federate: ending round %d, attempt %d: %w: %w", out.Index+1, out.Number, ErrRound, err)
	}
	if len(sums) == 0 {
		return fail(errors.New(out.failures()))
	}
	update, held, err := c.combine(sums)
	if err != nil {
		return fail(err)
	}
	total := 0.0
	for i, s := range sums {
		out.Groups[s.group(out)].Held = held[i]
		total += s.weight
		out.Loss += s.loss * s.weight
	}
	out.Loss /= total
	n := len(c.Variables)
	out.Length = length(update[:n])
	c.server.move(c.Terms, c.Variables, c.Trained, update[:n], update[n:], float64(out.Sites)/float64(len(c.Members)), c.state.Index)
	c.server.average(c.Terms.Average, c.Variables, c.state.Index)
	c.state.Index++
	return nil
}

// group finds the outcome of the group that a sum is of.
func (s groupSum) group(out *Outcome) int {
	return slices.IndexFunc(out.Groups, func(g GroupOutcome) bool { return g.Members[0] == s.first })
}

func (o Outcome) failures() string {
	var all []string
	for _, g := range o.Groups {
		all = append(all, g.Failure)
	}
	return strings.Join(all, "; ")
}

// add keeps a group's sum with those before it. Where the rule is their mean there
// is one row, the mean of those so far: memory does not grow with the groups.
func (c *Coordinator) add(sums []groupSum, s groupSum) []groupSum {
	if c.Terms.Rule != robust.Mean || len(sums) == 0 {
		return append(sums, s)
	}
	total := s.weight
	for _, before := range sums {
		total += before.weight
	}
	share, mean := float32(s.weight/total), sums[0].mean
	for j, v := range s.mean {
		mean[j] += share * (v - mean[j])
	}
	s.mean = nil
	return append(sums, s)
}

// combine makes one mean update of the groups' sums, by the terms' rule.
func (c *Coordinator) combine(sums []groupSum) (update []float32, held []float64, err error) {
	if c.Terms.Rule == robust.Mean { // see add
		return sums[0].mean, make([]float64, len(sums)), nil
	}
	rule, err := robust.Find(c.Terms.Rule)
	if err != nil {
		return nil, nil, err
	}
	in := robust.Input{Bad: c.Terms.Bad}
	for c.Terms.Naming == NamingExclude && in.Bad > 0 && len(sums) < rule.Least(in.Bad) {
		in.Bad-- // whoever was excluded need not be stood any more
	}
	for _, s := range sums {
		in.Rows = append(in.Rows, s.mean)
		in.Weights = append(in.Weights, s.weight)
	}
	out, err := rule.Combine(in)
	return out.Update, out.Held, err
}

// divide draws the groups of an attempt, in the order of their names each.
func (c *Coordinator) divide(links []Link, attempt uint64) [][]Link {
	groups := c.Terms.groups(len(links))
	rng := rand.New(rand.NewPCG(c.Terms.Seed^0x6a09e667f3bcc908, attempt))
	order := rng.Perm(len(links))
	out := make([][]Link, groups)
	for at, i := range order {
		out[at%groups] = append(out[at%groups], links[i])
	}
	for _, g := range out {
		slices.SortFunc(g, func(a, b Link) int { return strings.Compare(a.Name(), b.Name()) })
	}
	return out
}

// groupSum is what a group's masked vectors come to.
type groupSum struct {
	first  string    // member, which says which group it is
	mean   []float32 // update, and control change, by weight
	weight float64
	loss   float64
}

// groupRound leads one group through the steps of a round.
type groupRound struct {
	coordinator *Coordinator
	links       []Link
	weights     *Weights
	order       Order // fields that all orders of the round have
	at          int   // its place among the round's groups
	traffic     Traffic
	record      GroupRecord
	lapses      []Lapse
}

func (g *groupRound) run(ctx context.Context) (groupSum, GroupOutcome, error) {
	c := g.coordinator
	sum, out, err := g.open(ctx)
	if err != nil {
		return groupSum{}, out, err
	}
	s, err := c.meanOf(&out, sum)
	g.record.Failure = out.Failure
	return s, out, err
}

// meanOf reads a group's opened sum.
func (c *Coordinator) meanOf(out *GroupOutcome, sum []uint32) (groupSum, error) {
	if c.Terms.DP != nil {
		return c.privateMean(out, sum), nil
	}
	fixed := c.Terms.fixed(c.Terms.largest(len(c.Members)))
	n := len(sum) - 2
	var last [2]float64 // Σ weight, Σ weight·loss
	fixed.Decode(last[:], sum[n:])
	s := groupSum{first: out.Members[0], weight: last[0]}
	if !(s.weight > 0) {
		err := fmt.Errorf("the sites' weights come to %g", s.weight)
		out.Survivors, out.Failure = nil, err.Error()
		return groupSum{}, err
	}
	s.mean = c.Terms.numbers(c.Terms.largest(len(c.Members))).DecodeInPlace(sum[:n], s.weight)
	if err := c.bounded(s, len(out.Survivors)); err != nil {
		out.Beyond, out.Survivors, out.Failure = out.Survivors, nil, err.Error()
		return groupSum{}, err
	}
	s.loss, out.Weight = last[1]/s.weight, s.weight
	if c.Opened != nil {
		c.Opened(out.Survivors, slices.Clone(s.mean), s.weight)
	}
	return s, nil
}

// end tells the sites of the group that have not revealed that the round is over,
// so that they forget its secrets. It does not wait for them: they may be gone.
func (g *groupRound) end(ctx context.Context) {
	c := g.coordinator
	revealed := map[string]bool{}
	for _, m := range g.record.Reveals {
		revealed[m.From] = true
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(c.Terms.Deadline, time.Minute))
	var told sync.WaitGroup
	for _, l := range g.links {
		if !revealed[l.Name()] {
			told.Go(func() { l.Ask(ctx, Order{Step: StepEnd, Round: g.order.Round}) })
		}
	}
	c.ending.Go(func() { told.Wait(); cancel() })
}

// open returns the group's sum, of training or of a question.
func (g *groupRound) open(ctx context.Context) ([]uint32, GroupOutcome, error) {
	var out GroupOutcome
	for _, l := range g.links {
		out.Members = append(out.Members, l.Name())
	}
	g.order.Group, g.record.Members = out.Members, out.Members
	sum, aggregation, err := g.steps(ctx, &out)
	g.end(ctx)
	if aggregation != nil {
		out.Accused = aggregation.Accusations
	}
	out.Lapses, g.record.Lapses = g.lapses, g.lapses
	if err != nil {
		out.Survivors, out.Failure = nil, err.Error()
		g.record.Failure = out.Failure
	}
	return sum, out, err
}

// steps returns the opened sum.
func (g *groupRound) steps(ctx context.Context, out *GroupOutcome) ([]uint32, *secagg.Coordinator, error) {
	c := g.coordinator
	length := c.Terms.length(g.order, len(c.Variables), c.Trained)
	g.order.Step = StepKeys
	round, err := c.Terms.round(g.order, c.Members, length)
	if err != nil {
		return nil, nil, err
	}
	a, err := secagg.NewCoordinator(round)
	if err != nil {
		return nil, nil, err
	}
	if err := g.ask(ctx, StepKeys, out.Members, nil, func(name string, answer Answer) error {
		return g.take(a, name, answer, &g.record.Keys, a.AddKeys)
	}); err != nil {
		return nil, a, err
	}
	roster, err := a.CloseKeys()
	if err != nil {
		return nil, a, err
	}
	var entered []string
	for _, m := range roster {
		entered = append(entered, m.From)
	}
	if err := g.ask(ctx, StepShares, entered, func(_ string, o *Order) { o.Messages = roster }, func(name string, answer Answer) error {
		before := len(a.Accusations)
		err := a.AddShares(name, answer.Messages)
		if err == nil || len(a.Accusations) > before {
			g.record.Parcels = append(g.record.Parcels, answer.Messages)
		}
		return err
	}); err != nil {
		return nil, a, err
	}
	parcels, err := a.CloseShares()
	if err != nil {
		return nil, a, err
	}
	var dealers []string
	for _, name := range entered {
		if parcels[name] != nil {
			dealers = append(dealers, name)
		}
	}
	if err := g.ask(ctx, StepAccept, dealers, func(name string, o *Order) { o.Messages = parcels[name] }, func(name string, answer Answer) error {
		return g.take(a, name, answer, &g.record.Acceptances, a.AddAcceptance)
	}); err != nil {
		return nil, a, err
	}
	partners, err := a.CloseAcceptances()
	if err != nil {
		return nil, a, err
	}
	sum := secagg.NewSum(length)
	var broken error
	vectors := arrivals{}
	defer vectors.close()
	if err := g.ask(ctx, StepTrain, partners, func(_ string, o *Order) { o.Names, o.Weights = partners, g.weights }, func(name string, answer Answer) error {
		digest, err := answer.digest(round)
		if err != nil {
			return err
		}
		m, err := single(answer)
		if err != nil {
			return err
		}
		if m.From != name {
			return fmt.Errorf("%q speaks for %q", name, m.From)
		}
		if err := a.Arrived(m, digest); err != nil {
			return err
		}
		g.record.Vectors = append(g.record.Vectors, m)
		vectors[name] = answer
		if err := answer.each(round, sum.Add); err != nil {
			broken = err // the sum holds a part of it
		}
		g.traffic.Down += 4 * int64(g.weights.Words())
		g.traffic.Up += round.Bytes()
		return nil
	}); err != nil {
		return nil, a, err
	}
	if broken != nil {
		return nil, a, broken
	}
	survivors, err := a.CloseMasked()
	if err != nil {
		return nil, a, err
	}
	if d := c.Terms.DP; d != nil && g.order.Question == nil && len(survivors) < d.survivors() {
		return nil, a, fmt.Errorf("%d sites are left, and privacy needs %d", len(survivors), d.survivors())
	}
	if c.Terms.together(g.order, len(c.Members)) && len(survivors) < c.Terms.Least(len(c.Members)) {
		return nil, a, fmt.Errorf("%d sites are left, and the terms want %d of %d in the sum", len(survivors), c.Terms.Least(len(c.Members)), len(c.Members))
	}
	out.Survivors = survivors
	commitment := sum.Digest()
	if err := a.Commit(commitment); err != nil {
		return nil, a, err
	}
	g.record.Sum = commitment[:] // from here on a sum may be opened
	if err := g.ask(ctx, StepConfirm, survivors, func(_ string, o *Order) { o.Names, o.Sum = survivors, commitment[:] }, func(name string, answer Answer) error {
		return g.take(a, name, answer, &g.record.Confirmations, a.AddConfirmation)
	}); err != nil {
		return nil, a, err
	}
	unvouched, err := a.Audit(ctx, sum, func(name string) ([]uint32, error) { return vectors.vector(name, round) })
	if err != nil {
		return nil, a, err
	}
	if err := g.keep(sum, commitment, unvouched, vectors, round); err != nil {
		return nil, a, err
	}
	vectors.close()
	confirmations, err := a.CloseConfirmations()
	if err != nil {
		return nil, a, err
	}
	var confirmed []string
	for _, m := range confirmations {
		confirmed = append(confirmed, m.From)
	}
	if err := g.ask(ctx, StepReveal, confirmed, func(_ string, o *Order) { o.Messages = confirmations }, func(name string, answer Answer) error {
		return g.take(a, name, answer, &g.record.Reveals, a.AddReveal)
	}); err != nil {
		return nil, a, err
	}
	return sum.Low, a, a.Open(ctx, sum.Low)
}

// take takes a site's one message of a step, and records it if it was good, or proves
// something: what was refused without proof would be anybody's.
func (g *groupRound) take(a *secagg.Coordinator, name string, answer Answer, record *[]secagg.Message, add func(secagg.Message) error) error {
	m, err := single(answer)
	if err != nil {
		return err
	}
	if m.From != name {
		return fmt.Errorf("%w: %q speaks for %q", ErrAnswer, name, m.From)
	}
	before := len(a.Accusations)
	if err = add(m); err == nil || len(a.Accusations) > before {
		*record = append(*record, m)
	}
	return err
}

func single(answer Answer) (secagg.Message, error) {
	if len(answer.Messages) != 1 {
		return secagg.Message{}, fmt.Errorf("%w: %d messages, want 1", ErrAnswer, len(answer.Messages))
	}
	return answer.Messages[0], nil
}

// ask sends an order to each of the named sites and takes the answers as they
// come, one at a time. A site that fails, refuses, answers badly or is late is
// left out, and named in the group's lapses: what is missing shows when the step is
// closed. The error is the context's alone.
func (g *groupRound) ask(ctx context.Context, step Step, among []string, fill func(string, *Order), take func(string, Answer) error) error {
	c := g.coordinator
	limited, cancel := context.WithTimeout(ctx, c.Terms.Deadline)
	defer cancel()
	parallel := c.Parallel
	if parallel < 1 {
		parallel = len(g.links)
	}
	slots := make(chan struct{}, parallel)
	var taking sync.Mutex
	var waiting sync.WaitGroup
	closed := false
	missing := map[string]bool{}
	done := make(chan struct{})
	for _, l := range g.links {
		name := l.Name()
		if _, in := slices.BinarySearch(among, name); !in {
			continue
		}
		taking.Lock()
		missing[name] = true
		taking.Unlock()
		waiting.Go(func() {
			select {
			case slots <- struct{}{}:
			case <-limited.Done():
				return
			}
			defer func() { <-slots }()
			o := g.order
			o.Step = step
			if step != StepKeys {
				o.Group, o.Model, o.Index, o.Question = nil, nil, 0, nil
			}
			if fill != nil {
				fill(name, &o)
			}
			answer, err := l.Ask(limited, o)
			taking.Lock()
			defer taking.Unlock()
			late := closed || err != nil && limited.Err() != nil
			if !late {
				delete(missing, name)
				if err == nil {
					err = take(name, answer)
				}
				if err != nil {
					g.lapses = append(g.lapses, Lapse{Site: name, Step: step, Reason: err.Error()})
				}
			}
			if late || err != nil || step != StepTrain {
				answer.Close()
			}
		})
	}
	go func() { waiting.Wait(); close(done) }()
	select {
	case <-done:
	case <-limited.Done(): // whoever has not answered is late, and must not be heard any more
	}
	taking.Lock()
	defer taking.Unlock()
	closed = true
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		g.lapses = append(g.lapses, Lapse{Site: name, Step: step, Late: true, Reason: fmt.Sprintf("no answer within %v", c.Terms.Deadline)})
	}
	return ctx.Err()
}

func length(v []float32) float64 {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	return math.Sqrt(sum)
}

const coordinatorMemory = "coordinator"

// save keeps the state: numbers and variables in one file, so that they cannot
// be of different rounds.
func (c *Coordinator) save() error {
	if c.Keeper == nil {
		return nil
	}
	terms := c.Terms.Digest()
	c.state.Terms = terms[:]
	header, err := json.Marshal(c.state)
	if err != nil {
		return fmt.Errorf("federate: keeping the coordinator's state: %w", err)
	}
	var parts [][]float32
	for _, part := range c.numbers() {
		parts = append(parts, *part)
	}
	return putNumbers(c.Keeper, coordinatorMemory, append(header, '\n'), parts...)
}

// numbers are all that the coordinator keeps besides its state.
func (c *Coordinator) numbers() []*[]float32 {
	return []*[]float32{&c.Variables, &c.server.Moment, &c.server.Variance, &c.server.Control, &c.server.Average}
}

func (c *Coordinator) restore() error {
	if c.Keeper == nil {
		return nil
	}
	data, err := c.Keeper.Get(coordinatorMemory)
	if err != nil || data == nil {
		return err
	}
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("federate: going on as a coordinator: %w: %s", ErrKept, fmt.Sprintf(format, arguments...))
	}
	end := slices.Index(data, '\n')
	if end < 0 {
		return fail("the file is damaged")
	}
	var state coordinatorState
	if err := json.Unmarshal(data[:end], &state); err != nil {
		return fail("%v", err)
	}
	terms := c.Terms.Digest()
	if string(terms[:]) != string(state.Terms) {
		return fail("it was kept under other terms; keep those of these elsewhere")
	}
	data = data[end+1:]
	want := 0
	for _, part := range c.numbers() {
		want += 4 * len(*part)
	}
	if len(data) != want {
		return fail("it holds %d bytes of numbers, this model has %d", len(data), want)
	}
	for _, part := range c.numbers() {
		n := 4 * len(*part)
		if *part, err = decodeFloats(data[:n], n/4); err != nil {
			return fail("%v", err)
		}
		data = data[n:]
	}
	if err := c.checkObserved(state.Observed); err != nil {
		return fail("%v", err)
	}
	c.state = state
	return nil
}
