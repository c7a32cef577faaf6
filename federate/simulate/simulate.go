// Package simulate runs a federation of virtual sites in one process, through
// the code that hospitals run: orders, secure sums, rules, memory. What is
// simulated is the division of a data set among sites, failures, and malicious
// sites (Attacks); nothing of the protocol.
//
//	report, err := simulate.Run(ctx, simulate.Options{
//		Train: set, Evaluation: validation, Network: network,
//		Terms: federate.DefaultTerms("north"), Sites: 15, Dirichlet: 0.5, Seed: 1,
//	})
//	fmt.Println(report.AUC)
//
// The same options give the same model on the same type of processor.
package simulate

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"time"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// Options says what to simulate.
type Options struct {
	Train      *train.Set // divided among the sites
	Evaluation *train.Set // what the global model is judged on; at no site
	Network    *train.Network
	Kernels    int // train.Recipe.Kernels
	// Program is a command that trains at every site instead of the engine; see
	// federate.CommandOptions. The sites' examples are in files while it runs.
	Program string
	// AtSites also divides the evaluation set among the sites, which judge and
	// calibrate the final model together.
	AtSites bool

	Terms     federate.Terms
	Sites     int
	Dirichlet float64 // see Divide
	Seed      uint64  // of the division, the sites' orders of examples, failures and noise

	Malicious int    // so many sites, drawn by the seed
	Attack    Attack // what they do
	Strength  float64
	Aware     bool    // ALIE, IPM, min-max and min-sum aim with the mean of the group
	Dropout   float64 // share of sites that fall silent in a round, each at a step of its own

	// Trusted examples are drawn from Train, and kept from the sites, for the
	// coordinator to judge groups' sums by.
	Trusted int

	// Compare also trains on all examples in one place, and at every honest site
	// alone, for as many rounds.
	Compare  bool
	Progress func(Round) // told of every round; may be nil
	// Transcript is a folder to record the run into, for vigie fed replay; empty is
	// none. The coordinator's key is made from the seed.
	Transcript string
}

// Round is a line of a Report.
type Round struct {
	federate.Outcome
	Rounds  int           `json:"-"`
	AUC     *float64      `json:"auc,omitempty"` // on the evaluation set; not of every round
	Failed  string        `json:"failed,omitempty"`
	Elapsed time.Duration `json:"ns"`
}

// Report is what came of a simulation.
type Report struct {
	Terms      federate.Terms `json:"terms"`
	Sites      []SiteReport   `json:"sites"`
	Dirichlet  float64        `json:"dirichlet"`
	Seed       uint64         `json:"seed"`
	Data       string         `json:"data"`
	DataDigest string         `json:"train_digest"`
	EvalDigest string         `json:"evaluation_digest"`
	Variables  int            `json:"variables"`
	Malicious  int            `json:"malicious"`
	Attack     Attack         `json:"attack,omitempty"`
	Strength   float64        `json:"strength,omitempty"`
	Dropout    float64        `json:"dropout,omitempty"`

	AUC      train.Interval `json:"auc"` // after the last round, DeLong's interval
	Accuracy train.Interval `json:"accuracy"`
	// Triggered is how often an image of another class is taken for the backdoor's
	// once it carries the mark, and Untriggered how often it is without: nil but
	// for that attack.
	Triggered   *train.Interval  `json:"triggered,omitempty"`
	Untriggered *train.Interval  `json:"untriggered,omitempty"`
	Central     *train.Interval  `json:"central,omitempty"` // all examples in one place
	Alone       *train.Interval  `json:"alone,omitempty"`   // mean over the sites, from the worst to the best
	Rounds      []Round          `json:"rounds"`
	Scores      []federate.Score `json:"scores,omitempty"`  // after the last round, if the terms name sites
	Trusted     int              `json:"trusted,omitempty"` // examples that the coordinator had
	Traffic     federate.Traffic `json:"bytes"`
	// Ideal is 4 bytes a variable, site and round, both ways.
	Ideal   federate.Traffic `json:"bytes_ideal"`
	Seconds float64          `json:"seconds"`
	Memory  int64            `json:"peak_memory_bytes"` // of the whole process
	// Epsilon is what the site has spent that has spent most, of a unit: null is no
	// differential privacy. Privacy says the rest.
	Epsilon     *float64            `json:"epsilon"`
	EpsilonUnit federate.Unit       `json:"epsilon_unit,omitempty"`
	Privacy     *federate.Statement `json:"privacy,omitempty"`

	AtSites *AtSites          `json:"at_sites,omitempty"`
	Program *federate.Program `json:"trainer,omitempty"` // nil: the engine

	Model *onnx.Model `json:"-"`
}

// SiteReport is what a site was.
type SiteReport struct {
	Name      string  `json:"name"`
	Examples  int     `json:"examples"`
	Counts    []int   `json:"by_class"`
	Malicious bool    `json:"malicious,omitempty"`
	Sums      int     `json:"sums"` // rounds that it was in
	Held      float64 `json:"held"` // mean over those of what the rule held against its group
	// Named is what the site was named for, and Since after how many rounds.
	Named   federate.Charge `json:"named,omitempty"`
	Since   int             `json:"named_after,omitempty"`
	Epsilon *float64        `json:"epsilon,omitempty"` // spent, of Report.EpsilonUnit
	Alone   *float64        `json:"alone,omitempty"`   // AUC of what it learns by itself
}

// ErrOptions is returned for a simulation that cannot be run.
var ErrOptions = errors.New("not a simulation that can be run")

func (o Options) check() error {
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("simulate: %w: %s", ErrOptions, fmt.Sprintf(format, arguments...))
	}
	if o.Train == nil || o.Evaluation == nil || o.Network == nil {
		return fail("sets to train and to evaluate on and a network are needed")
	}
	if o.Terms.Personal != nil {
		return fail("parts of the model that stay at their site: there is no global model to judge; see Personal")
	}
	if o.Malicious < 0 || 2*o.Malicious >= o.Sites {
		return fail("%d malicious sites of %d: want fewer than half", o.Malicious, o.Sites)
	}
	if o.Malicious > 0 {
		if _, err := FindAttack(o.Attack); err != nil {
			return err
		}
		if o.Attack == LabelFlip && o.Train.Multi() {
			return fail("label-flip needs classes that exclude each other")
		}
		if o.Attack == Backdoor && !canMark(o.Train) {
			return fail("backdoor needs images of at least %d pixels a side, and classes that exclude each other", markSize+markMargin)
		}
	}
	if !(o.Dropout >= 0 && o.Dropout < 1) || o.Strength < 0 || math.IsNaN(o.Strength) || math.IsInf(o.Strength, 0) {
		return fail("a dropout of %g and a strength of %g: want 0 to less than 1, and 0 or more", o.Dropout, o.Strength)
	}
	for _, s := range []*train.Set{o.Train, o.Evaluation} {
		if err := s.Check(); err != nil {
			return err
		}
	}
	if o.Terms.DP != nil { // checked with the noise, once the sites' patients are counted
		if o.Compare && o.Terms.DP.Unit == federate.Patient {
			return fail("a comparison with local training, of which there is none where patients are protected")
		}
		return nil
	}
	return o.Terms.Check(o.Sites)
}

// setAside draws so many examples, in the shares of their classes, with all others
// of their patients.
func setAside(s *train.Set, n int, seed uint64) (rest, aside *train.Set, err error) {
	var in, out []int
	if n > 0 {
		division, err := Divide(s, max(1, s.Len()/n), 0, seed^0x7205)
		if err != nil {
			return nil, nil, err
		}
		for i, at := range division {
			if i == 0 {
				out = at
			} else {
				in = append(in, at...)
			}
		}
	}
	slices.Sort(in)
	return s.Subset(in), s.Subset(out), nil
}

// Run simulates. A round that has no result is recorded and tried again, up to
// three times in a row.
func Run(ctx context.Context, o Options) (*Report, error) {
	start := time.Now()
	err := o.check()
	if err != nil {
		return nil, err
	}
	var trusted *train.Set
	if o.Trusted > 0 {
		if o.Trusted >= o.Train.Len() {
			return nil, fmt.Errorf("simulate: %w: %d trusted examples of %d leave none to the sites", ErrOptions, o.Trusted, o.Train.Len())
		}
		if o.Train, trusted, err = setAside(o.Train, o.Trusted, o.Seed); err != nil {
			return nil, err
		}
	}
	division, err := Divide(o.Train, o.Sites, o.Dirichlet, o.Seed)
	if err != nil {
		return nil, err
	}
	engine, err := federate.NewEngine(o.Network, o.Terms, o.Train, o.Kernels)
	if err != nil {
		return nil, err
	}
	defer engine.Close()
	shop, err := newWorkshop(engine, o.Program)
	if err != nil {
		return nil, err
	}
	defer shop.close()
	if o.AtSites {
		o.Terms = askable(o.Terms)
		if err := o.Terms.Check(o.Sites); err != nil {
			return nil, err
		}
	}
	initial, trained := engine.Variables()
	if err := o.Private(len(initial)); err != nil {
		return nil, err
	}
	r := &Report{Terms: o.Terms, Dirichlet: o.Dirichlet, Seed: o.Seed, Data: o.Train.Name, DataDigest: o.Train.Digest(), EvalDigest: o.Evaluation.Digest(),
		Variables: len(initial), Malicious: o.Malicious, Dropout: o.Dropout, Trusted: o.Trusted}
	cast, err := o.cast(r, shop, division)
	if err != nil {
		return nil, err
	}
	leading := federate.CoordinatorOptions{Terms: o.Terms, Members: cast.members, Variables: initial, Trained: trained, Layout: engine.Layout(), Parallel: runtime.GOMAXPROCS(0)}
	if o.Transcript != "" {
		seed := sha256.Sum256(fmt.Appendf(nil, "vigie simulated coordinator %d", o.Seed))
		if leading.Transcript, err = leading.Record(o.Transcript, ed25519.NewKeyFromSeed(seed[:])); err != nil {
			return nil, err
		}
	}
	if trusted != nil {
		if leading.Trusted, err = engine.References(trusted); err != nil {
			return nil, err
		}
	}
	coordinator, err := federate.NewCoordinator(leading)
	if err != nil {
		return nil, err
	}
	defer coordinator.Settle()
	failed, stopped := 0, ""
	for !coordinator.Done() {
		if stopped = cast.over(o.Terms); stopped != "" && coordinator.Rounds() > 0 {
			break
		}
		began := time.Now()
		out, err := coordinator.Round(ctx, cast.links(o, len(r.Rounds)))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		line := Round{Outcome: out, Rounds: o.Terms.Rounds}
		if err != nil {
			line.Failed = err.Error()
			if failed++; failed >= 3 {
				return nil, fmt.Errorf("simulate: three attempts in a row had no result: %w", err)
			}
		} else {
			failed = 0
			if every := max(1, o.Terms.Rounds/20); coordinator.Rounds()%every == 0 || coordinator.Done() {
				auc, _, err := o.evaluate(ctx, engine, coordinator.Published())
				if err != nil {
					return nil, err
				}
				line.AUC = &auc.Value
				r.AUC = auc
			}
		}
		line.Elapsed = time.Since(began)
		r.Traffic.Down += out.Bytes.Down
		r.Traffic.Up += out.Bytes.Up
		r.Ideal.Down += 4 * int64(len(initial)*out.Sites)
		r.Ideal.Up += 4 * int64(len(initial)*out.Sites)
		r.note(out)
		r.Rounds = append(r.Rounds, line)
		if o.Progress != nil {
			o.Progress(line)
		}
	}
	for i, score := range coordinator.Scores() {
		r.Sites[i].Named, r.Sites[i].Since = score.Named, score.Since
	}
	r.Scores = coordinator.Scores()
	final := coordinator.Published()
	if err := cast.state(r, o.Terms, len(initial)); err != nil {
		return nil, err
	}
	if r.Privacy != nil {
		r.Privacy.Stopped = stopped
	}
	if r.AUC, r.Accuracy, err = o.evaluate(ctx, engine, final); err != nil {
		return nil, err
	}
	if r.Model, err = engine.Model(final); err != nil {
		return nil, err
	}
	if o.Malicious > 0 && o.Attack == Backdoor {
		if r.Triggered, r.Untriggered, err = o.backdoored(ctx, engine, final); err != nil {
			return nil, err
		}
	}
	r.Program = shop.program
	if o.AtSites {
		var links []federate.Link
		for _, s := range cast.sites {
			links = append(links, federate.Direct(s))
		}
		if err := o.ask(ctx, r, engine, coordinator, links); err != nil {
			return nil, err
		}
	}
	if o.Compare {
		if err := o.compare(ctx, r, shop, cast, initial); err != nil {
			return nil, err
		}
	}
	for i := range r.Sites {
		if r.Sites[i].Sums > 0 {
			r.Sites[i].Held /= float64(r.Sites[i].Sums)
		}
	}
	r.Seconds, r.Memory = time.Since(start).Seconds(), peakMemory()
	return r, nil
}

// note counts what a round's rule held against the groups of each site.
func (r *Report) note(out federate.Outcome) {
	for _, g := range out.Groups {
		for _, name := range g.Survivors {
			at := slices.IndexFunc(r.Sites, func(s SiteReport) bool { return s.Name == name })
			r.Sites[at].Sums++
			r.Sites[at].Held += g.Held
		}
	}
}

func (o Options) evaluate(ctx context.Context, e *federate.Engine, variables []float32) (auc, accuracy train.Interval, err error) {
	logits, err := e.Logits(ctx, variables, o.Evaluation)
	if err != nil {
		return auc, accuracy, err
	}
	if auc, err = o.Evaluation.AUCInterval(logits, o.Seed); err != nil {
		return auc, accuracy, err
	}
	return auc, train.Wilson(int(math.Round(o.Evaluation.Accuracy(logits)*float64(len(logits)))), len(logits)), nil
}

// backdoored is how often images of other classes are taken for the mark's, with
// the mark and without.
func (o Options) backdoored(ctx context.Context, e *federate.Engine, variables []float32) (with, without *train.Interval, err error) {
	var others []int
	for i, label := range o.Evaluation.Labels {
		if label != markClass {
			others = append(others, i)
		}
	}
	if len(others) == 0 {
		return nil, nil, nil
	}
	set := o.Evaluation.Subset(others)
	for _, s := range []*train.Set{marked(set), set} {
		logits, err := e.Logits(ctx, variables, s)
		if err != nil {
			return nil, nil, err
		}
		taken := 0
		for _, l := range logits {
			p := s.Probabilities(l, 1)
			if !slices.ContainsFunc(p, func(v float64) bool { return v > p[markClass] }) {
				taken++
			}
		}
		share := train.Wilson(taken, len(logits))
		with, without = without, &share
	}
	return with, without, nil
}

// cast is everybody.
type cast struct {
	members  []secagg.Member
	sites    []*federate.Site
	trainers []federate.Trainer
	bad      []bool
	seed     uint64
}

func (o Options) cast(r *Report, shop *workshop, division [][]int) (*cast, error) {
	var answers []*train.Set
	if o.AtSites {
		answers = portions(o.Evaluation, o.Sites, o.Seed)
	}
	c := &cast{bad: make([]bool, o.Sites), seed: o.Seed}
	rng := rand.New(rand.NewPCG(o.Seed, 0x51a7e))
	for _, i := range rng.Perm(o.Sites)[:o.Malicious] {
		c.bad[i] = true
	}
	var plot *conspiracy
	if o.Malicious > 0 {
		row, err := FindAttack(o.Attack)
		if err != nil {
			return nil, err
		}
		plot = &conspiracy{attack: row, strength: o.Strength, aware: o.Aware, terms: o.Terms, round: -1, rng: rng, first: map[string][]float32{}, bad: map[string]bool{}}
		if plot.strength == 0 {
			plot.strength = row.Strength
		}
		r.Attack, r.Strength = o.Attack, plot.strength
	}
	signers := make([]ed25519.PrivateKey, o.Sites)
	for i := range o.Sites {
		var seed [ed25519.SeedSize]byte
		for j := range seed {
			seed[j] = byte(rng.Uint32())
		}
		signers[i] = ed25519.NewKeyFromSeed(seed[:])
		c.members = append(c.members, secagg.Member{Name: fmt.Sprintf("site-%04d", i), Key: signers[i].Public().(ed25519.PublicKey)})
	}
	for i, at := range division {
		set := o.Train.Subset(at)
		set.Name = c.members[i].Name
		options := federate.SiteOptions{Name: set.Name, Terms: o.Terms, Members: c.members, Signer: signers[i], Seed: o.Seed<<20 + uint64(i)}
		r.Sites = append(r.Sites, SiteReport{Name: set.Name, Examples: set.Len(), Counts: set.Counts(), Malicious: c.bad[i]})
		if c.bad[i] {
			options.Tamper = plot.tamper(set.Name)
			plot.bad[set.Name] = true
			switch o.Attack {
			case LabelFlip:
				set = flipped(set)
			case Backdoor:
				set = poisoned(set)
			}
		}
		if answers != nil {
			options.Answers = o.answers(shop.engine, answers[i])
		}
		var err error
		if options.Trainer, err = shop.trainer(set); err != nil {
			return nil, err
		}
		if plot != nil && !c.bad[i] {
			if o.Terms.Algorithm != federate.FedSGD { // whose draws nobody can do again
				options.Trainer = &remembered{Trainer: options.Trainer}
			}
			weight := float64(min(set.Len(), o.Terms.MaxExamples)) / float64(o.Terms.MaxExamples)
			plot.honest = append(plot.honest, honestSite{set.Name, options.Trainer, options.Seed, weight})
		}
		site, err := federate.NewSite(options)
		if err != nil {
			return nil, err
		}
		c.sites = append(c.sites, site)
		c.trainers = append(c.trainers, options.Trainer)
	}
	return c, nil
}

// links are the ways to all sites in an attempt at a round, some of which end at a step.
func (c *cast) links(o Options, attempt int) []federate.Link {
	rng := rand.New(rand.NewPCG(o.Seed^0xd509, uint64(attempt)))
	steps := []federate.Step{federate.StepKeys, federate.StepShares, federate.StepAccept, federate.StepTrain, federate.StepConfirm, federate.StepReveal}
	var links []federate.Link
	for _, s := range c.sites {
		l := federate.Direct(s)
		if rng.Float64() < o.Dropout {
			l = silent{l, steps[rng.IntN(len(steps)):]}
		}
		links = append(links, l)
	}
	return links
}

// silent is a site that does not answer from a step on.
type silent struct {
	federate.Link
	from []federate.Step
}

var errSilent = errors.New("the site has fallen silent")

func (s silent) Ask(ctx context.Context, o federate.Order) (federate.Answer, error) {
	if slices.Contains(s.from, o.Step) {
		return federate.Answer{}, errSilent
	}
	return s.Link.Ask(ctx, o)
}

// compare trains in one place and at every honest site alone, by the same local
// rounds from the same start.
func (o Options) compare(ctx context.Context, r *Report, shop *workshop, c *cast, initial []float32) error {
	terms := o.Terms
	if terms.Algorithm == federate.FedProx { // there is nobody to stay close to
		terms.Algorithm, terms.Proximal = federate.FedAvg, 0
	}
	alone := func(t federate.Trainer, seed uint64) (train.Interval, error) {
		x := slices.Clone(initial)
		for round := range terms.Rounds {
			update, err := federate.Learn(ctx, t, federate.Work{Terms: terms, Round: round, Seed: seed}, x)
			if err != nil {
				return train.Interval{}, err
			}
			for j, v := range update {
				x[j] += v
			}
		}
		auc, _, err := o.evaluate(ctx, shop.engine, x)
		return auc, err
	}
	together, err := shop.trainer(o.Train)
	if err != nil {
		return err
	}
	central, err := alone(together, o.Seed)
	if err != nil {
		return err
	}
	r.Central = &central
	spread := train.Interval{Low: math.Inf(1), High: math.Inf(-1)}
	n := 0
	for i, t := range c.trainers {
		if c.bad[i] {
			continue
		}
		auc, err := alone(t, o.Seed<<20+uint64(i))
		if err != nil {
			return err
		}
		r.Sites[i].Alone = &auc.Value
		spread.Value += auc.Value
		spread.Low, spread.High = min(spread.Low, auc.Value), max(spread.High, auc.Value)
		n++
	}
	spread.Value /= float64(n)
	r.Alone = &spread
	return nil
}
