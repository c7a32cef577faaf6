package job

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attack/privacy"
	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/federate/simulate"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// The attacks of an audit.
const (
	AuditLinear     = "linear"
	AuditImprint    = "imprint"
	AuditOptimise   = "optimise"
	AuditMembership = "membership"
)

// AuditAttacks is the table of them, in the order of a report.
var AuditAttacks = []struct{ Name, About string }{
	{AuditLinear, "arithmetic on a linear first layer, by a server that keeps to the protocol (Phong et al. 2018)"},
	{AuditImprint, "a layer of brightness thresholds, by a server that makes the weights itself (Fowl et al. 2022)"},
	{AuditOptimise, "search of images with the same gradient: cosine and total variation (Geiping et al. 2020)"},
	{AuditMembership, "likelihood ratio of shadow federations with and without the person (Carlini et al. 2022)"},
}

// How an imprint comes into a model.
const (
	MeansWeights = "weights" // of the agreed architecture
	MeansLayer   = "layer"   // that is inserted
)

// Protection is what stands between a site's update and the server.
type Protection string

// The protections.
const (
	Unprotected Protection = "none"
	SecureSum   Protection = "secure-sum"
	Private     Protection = "dp"
	SumAndDP    Protection = "secure-sum+dp"
)

// Protections are all of them, in the order of a report.
var Protections = []Protection{Unprotected, SecureSum, Private, SumAndDP}

// Audit asks what a federation would give away: the real model, under its terms,
// through the code that hospitals run, against a server that keeps to the protocol
// and one that does not.
type Audit struct {
	Common
	Terms   federate.Terms // that the hospitals would agree to
	Plan    bool           // fill in what the terms' privacy leaves open, and plan its noise
	Split   string         // whose images the sites have [train]
	Aux     string         // what the server has of its own [val]
	Attacks []string       // of AuditAttacks; nil: all
	// Sites take part; 0: as few as the terms allow, which hide the least.
	Sites int
	// Batch is how many images a site has: one step of its training [the terms'].
	Batch int
	// Trials are images that the arithmetic attacks are tried on, against what the
	// terms let a server see [30000]; 0.01 % can be shown of 30,000.
	Trials int
	// Compared are the trials against the other protections [2048].
	Compared int
	Searches int // images that are searched for, of each protection [16]
	Steps    int // of a search
	Bins     int // of an inserted layer [512]
	Limit    float64
	Kernels  int // train.Recipe.Kernels

	People    int // whose membership is asked [600]
	Shadows   int // federations of which each is attacked in turn [16]
	MemRounds int // of each [10]

	Limits AuditLimits
}

// AuditFigure is what an attack on images came to.
type AuditFigure struct {
	Attack     string     `json:"attack"`
	Means      string     `json:"means,omitempty"` // of an imprint
	Protection Protection `json:"protection"`
	View       string     `json:"view"`   // what was attacked
	Images     int        `json:"images"` // in it
	Rounds     int        `json:"rounds"`
	// Refused says that the sites refused what this attack begins with: the figure
	// is of sites that would not have.
	Refused bool `json:"refused_by_sites,omitempty"`
	privacy.Hits
	Rate      train.Interval `json:"hit_rate"`       // Clopper-Pearson, two-sided
	NeverRate train.Interval `json:"never_hit_rate"` // of images that were in no update
	// AtMost is the one-sided upper end: with 95 % confidence, no more are found.
	AtMost     float64 `json:"at_most"`
	MedianSSIM float64 `json:"median_ssim"`
}

// AuditMember is what a membership attack came to.
type AuditMember struct {
	Protection   Protection   `json:"protection"`
	View         string       `json:"view"`
	People       int          `json:"people"`
	Federations  int          `json:"federations"`
	Rounds       int          `json:"rounds"`
	*privacy.ROC              // of the likelihood ratio
	Loss         *privacy.ROC `json:"loss"` // of the plain loss
}

// AuditReport is what an audit found.
type AuditReport struct {
	Head
	Terms   string `json:"terms_digest"` // TermsDigest, hexadecimal
	Weights string `json:"weights_digest"`
	// Protocol is what the terms put between an update and the server: what the
	// verdict is about.
	Protocol  Protection        `json:"protocol"`
	Sites     int               `json:"sites"`
	Threshold int               `json:"threshold"` // sites in the sum of the smallest group
	Batch     int               `json:"images_per_site"`
	Variables int               `json:"variables"`
	SSIM      float64           `json:"ssim_threshold"`
	Images    int               `json:"candidates"`
	Moves     []Move            `json:"moves"`
	Figures   []AuditFigure     `json:"figures"`
	Members   []AuditMember     `json:"membership"`
	Without   map[string]string `json:"not_applicable,omitempty"` // attacks that the model is not open to, and why
	Limits    AuditLimits       `json:"limits"`
	Passed    bool              `json:"passed"`
	Failures  []vigie.Text      `json:"failures,omitempty"`
	French    string            `json:"verdict_fr"`
}

func (o *Audit) asks(attack string) bool { return slices.Contains(o.Attacks, attack) }

func (o *Audit) check() error {
	if err := o.begin(); err != nil {
		return err
	}
	def := func(v *int, to int) {
		if *v == 0 {
			*v = to
		}
	}
	if o.Split == "" {
		o.Split = studies.Train
	}
	if o.Aux == "" {
		o.Aux = studies.Validation
	}
	if o.Attacks == nil {
		for _, a := range AuditAttacks {
			o.Attacks = append(o.Attacks, a.Name)
		}
	}
	for _, name := range o.Attacks {
		if !slices.ContainsFunc(AuditAttacks, func(a struct{ Name, About string }) bool { return a.Name == name }) {
			return fmt.Errorf("job: attack %q: %w: want linear, imprint, optimise or membership", name, ErrAsk)
		}
	}
	checked := o.Terms
	if o.Plan {
		checked.DP, checked.Algorithm = nil, federate.FedAvg
	}
	if o.Sites == 0 {
		for o.Sites = max(o.Terms.Minimum, o.Terms.GroupSize); o.Sites < secagg.MaxSites && checked.Check(o.Sites) != nil; o.Sites++ {
		}
		if err := checked.Check(o.Sites); err != nil { // of no number: say why not of the least
			return checked.Check(max(o.Terms.Minimum, o.Terms.GroupSize))
		}
	}
	def(&o.Batch, o.Terms.Batch)
	def(&o.Trials, 30_000)
	def(&o.Compared, 2048)
	def(&o.Searches, 16)
	def(&o.Bins, 512)
	def(&o.People, 600)
	def(&o.Shadows, 16)
	def(&o.MemRounds, min(10, o.Terms.Rounds))
	if o.Limit == 0 {
		o.Limit = 0.9
	}
	if o.Limits == (AuditLimits{}) {
		o.Limits = DefaultAuditLimits()
	}
	if err := checked.Check(o.Sites); err != nil {
		return err
	}
	switch {
	case o.Model == "":
		return fmt.Errorf("job: %w: name a model", ErrAsk)
	case o.Batch < 1 || o.Batch > 1<<12:
		return fmt.Errorf("job: %d images at a site: %w: want 1 to %d", o.Batch, ErrAsk, 1<<12)
	case o.Trials < 1 || o.Compared < 1 || o.Searches < 1 || o.Trials > 1<<24 || o.Compared > 1<<24 || o.Searches > 1<<16:
		return fmt.Errorf("job: %d trials, %d of the other protections, %d searches: %w: want 1 or more of each", o.Trials, o.Compared, o.Searches, ErrAsk)
	case o.Bins < 2 || o.Bins > 1<<14:
		return fmt.Errorf("job: %d bins: %w: want 2 to %d", o.Bins, ErrAsk, 1<<14)
	case !(o.Limit > 0 && o.Limit <= 1):
		return fmt.Errorf("job: a similarity of %v: %w: want more than 0, at most 1", o.Limit, ErrAsk)
	case o.Shadows < 6 || o.Shadows > 1<<10 || o.People < 20 || o.MemRounds < 1 || o.MemRounds > o.Terms.Rounds:
		return fmt.Errorf("job: membership of %d people in %d federations of %d rounds: %w: want 20 people and 6 federations or more, and no more rounds than the terms' %d", o.People, o.Shadows, o.MemRounds, ErrAsk, o.Terms.Rounds)
	}
	return o.Limits.Check()
}

// Run audits.
func (o Audit) Run(ctx context.Context) (*AuditReport, error) {
	start := time.Now()
	if err := o.check(); err != nil {
		return nil, err
	}
	v := &victim{}
	n, aux, err := o.trainable(ctx, v, o.Split, o.Aux)
	if err != nil {
		return nil, err
	}
	if need := 2 * o.Sites * o.Batch; v.set.Len() < need {
		return nil, fmt.Errorf("job: split %s has %d images: %w: %d sites of %d images, and as many that are in no update, take %d; ask for fewer", o.Split, v.set.Len(), ErrAsk, o.Sites, o.Batch, need)
	}
	v.images = rows(v.set)
	v.candidates = slices.Concat(v.images, rows(aux))
	a := &auditor{Audit: &o, victim: v, aux: aux, network: n, twin: twins(v.images)}
	r := &AuditReport{Head: o.head("federation", v.subject, inversionTechnique, membershipTechnique), Sites: o.Sites, Batch: o.Batch, SSIM: o.Limit,
		Images: len(v.candidates), Limits: o.Limits, Protocol: SecureSum}
	if err := a.run(ctx, r); err != nil {
		return nil, err
	}
	r.judge()
	return r, o.finish(&r.Head, r, start)
}

// auditor is an audit under way.
type auditor struct {
	*Audit
	*victim
	aux     *train.Set
	network *train.Network
	twin    []int // of each image, the first of equal content
	plain   *consortium
	private *consortium // nil: there cannot be one
	steps   int         // of a site without privacy
}

// consortia are the federation as agreed, and the same with or without differential
// privacy, whichever it lacks.
func (a *auditor) consortia(r *AuditReport, variables, trained int) error {
	if a.Plan {
		o := simulate.Options{Terms: a.Terms, Sites: a.Sites, Train: a.set}
		if err := o.Private(variables); err != nil {
			return err
		}
		a.Terms = o.Terms
	}
	terms := a.Terms
	digest := TermsDigest(terms)
	r.Terms = hex.EncodeToString(digest[:])
	// An image that was moved by two pixels is as recognisable, but would not be
	// counted: sites train on images as they are.
	if terms.Augmentation != (train.Augmentation{}) {
		r.Notes = append(r.Notes, "the terms' augmentation was left out: a moved image is as recognisable, and would not be counted")
		terms.Augmentation = train.Augmentation{}
	}
	without := terms
	var lacks error // why there can be no privacy to compare with
	if terms.DP != nil {
		r.Protocol = SumAndDP
		without.DP, without.Average = nil, 0
		if without.Algorithm == federate.FedSGD {
			without.Algorithm = federate.FedAvg
		}
	} else if terms, lacks = a.withPrivacy(terms, variables); lacks == nil {
		r.Notes = append(r.Notes, fmt.Sprintf("the terms have no differential privacy; for comparison, ε = %g, δ = %g of a patient", terms.DP.Epsilon, terms.DP.Delta))
	}
	if err := without.Check(a.Sites); err != nil {
		return err
	}
	a.plain = newConsortium(without, a.Sites, a.Seed)
	a.steps = without.Epochs * ((a.Batch + without.Batch - 1) / without.Batch)
	switch {
	case lacks != nil:
		r.Without[string(Private)] = lacks.Error()
	case terms.DP.Unit == federate.Patient && trained != variables:
		r.Without[string(Private)] = "the model has running statistics of batch normalisations, which mix patients"
	default:
		if terms.DP.Views > 1 {
			d := *terms.DP
			d.Views, terms.DP = 0, &d
		}
		a.private = newConsortium(terms, a.Sites, a.Seed)
	}
	if why := r.Without[string(Private)]; why != "" && a.Terms.DP != nil {
		return fmt.Errorf("job: %s: %w: %s; these terms' privacy needs a model without", a.Model, ErrAsk, why)
	}
	r.Threshold = a.agreed().threshold()
	return nil
}

// agreed is the federation that the verdict is about.
func (a *auditor) agreed() *consortium {
	if a.Terms.DP != nil {
		return a.private
	}
	return a.plain
}

// withPrivacy are the terms with the privacy that they are compared with.
func (a *auditor) withPrivacy(t federate.Terms, variables int) (federate.Terms, error) {
	o := simulate.Options{Terms: simulate.PrivateTerms(t, federate.Patient), Sites: a.Sites, Train: a.set}
	o.Terms.Augmentation = train.Augmentation{}
	o.Terms.DP = &federate.DP{Unit: federate.Patient, Epsilon: 8, Colluding: -1}
	err := o.Private(variables)
	return o.Terms, err
}

func (a *auditor) run(ctx context.Context, r *AuditReport) error {
	terms := a.Terms
	terms.Augmentation, terms.DP = train.Augmentation{}, nil // which the network's form does not depend on
	whole, err := newScene("", a.network, terms, a.set, a.Kernels)
	if err != nil {
		return err
	}
	defer whole.engine.Close()
	r.Without = map[string]string{}
	if err := a.consortia(r, len(whole.start), whole.trained); err != nil {
		return err
	}
	r.Variables = len(whole.start)
	weights := (&federate.Weights{Variables: whole.start}).Digest()
	r.Weights = hex.EncodeToString(weights[:])
	a.Progress("the sites' refusals", 0)
	if r.Moves, err = a.agreed().tryMoves(ctx, whole.engine, whole.start, a.set, a.Seed); err != nil {
		return err
	}
	a.Progress("the sites' refusals", 1)
	layer := slices.IndexFunc(r.Moves, func(m Move) bool { return m.Name == "inserted-layer" })
	scenes, why, err := a.scenes(ctx, a.plain, a.network, a.set, a.aux, func(names ...string) bool {
		return !slices.ContainsFunc(names, func(name string) bool {
			_, in := whole.from[name]
			return !in || !slices.Contains(a.network.Weights, name)
		})
	})
	if err != nil {
		return err
	}
	defer func() {
		for _, s := range scenes {
			s.engine.Close()
		}
	}()
	maps.Copy(r.Without, why)
	for _, s := range scenes {
		figures, err := a.invert(ctx, s)
		if err != nil {
			return err
		}
		for i := range figures {
			figures[i].Refused = s.means == MeansLayer && r.Moves[layer].Refused && figures[i].Protection != Unprotected
		}
		r.Figures = append(r.Figures, figures...)
	}
	if a.asks(AuditOptimise) {
		figures, err := a.search(ctx)
		if err != nil {
			return err
		}
		r.Figures = append(r.Figures, figures...)
	}
	if a.asks(AuditMembership) {
		if r.Members, err = a.membership(ctx); err != nil {
			return err
		}
	}
	return nil
}

// draw are the images that each site has in a round. The same round draws the same,
// whatever the attack.
func (a *auditor) draw(round, each int) (at [][]int) {
	rng := rand.New(rand.NewPCG(a.Seed, uint64(round)|0xd4a<<32))
	order := rng.Perm(len(a.images))
	for i := range a.Sites {
		at = append(at, order[i*each:(i+1)*each])
	}
	return at
}

// privately is how many images a site has so that a round learns from about so many
// of them.
func (a *auditor) privately(each int) int {
	return min(int(math.Ceil(float64(each)/a.private.terms.DP.Rate)), len(a.images)/a.Sites)
}

// others are as many images that are in no update: a copy of one that is in it is in
// it, too.
func (a *auditor) others(used []int, round int) (never [][]float32) {
	in := map[int]bool{}
	for _, k := range used {
		in[a.twin[k]] = true
	}
	rng := rand.New(rand.NewPCG(a.Seed, uint64(round)|0x0fe<<32))
	for _, k := range rng.Perm(len(a.images)) {
		if len(never) == len(used) {
			break
		}
		if !in[a.twin[k]] {
			never = append(never, a.images[k])
		}
	}
	return never
}

// twins says of each image which is the first of equal content.
func twins(images [][]float32) []int {
	first := map[string]int{}
	out := make([]int, len(images))
	for i, image := range images {
		key := make([]byte, 0, 4*len(image))
		for _, x := range image {
			key = binary.LittleEndian.AppendUint32(key, math.Float32bits(x))
		}
		if _, known := first[string(key)]; !known {
			first[string(key)] = i
		}
		out[i] = first[string(key)]
	}
	return out
}

// tally counts hits of one kind of view.
type tally struct {
	figure AuditFigure
	want   int // trials
}

func (t *tally) done() bool { return t.figure.Trials >= t.want }

func (a *auditor) count(t *tally, found [][]float32, used []int, round int) error {
	t.figure.Rounds++
	if len(used) == 0 { // nobody was drawn
		return nil
	}
	h, err := privacy.Count(found, pick(a.images, used), a.others(used, round), a.candidates, privacy.Matching{Rows: a.set.Rows, Columns: a.set.Columns, Threshold: a.Limit})
	if err != nil {
		return err
	}
	t.figure.Add(h)
	t.figure.Images = int(math.Round(float64(t.figure.Trials) / float64(t.figure.Rounds)))
	return nil
}

// want is how many trials a protection gets.
func (a *auditor) want(p Protection, of, compared int) int {
	if p == SumAndDP && a.Terms.DP != nil || p == SecureSum && a.Terms.DP == nil {
		return of
	}
	return compared
}

// invert runs rounds until every view has been attacked often enough. What a site
// sent without protection is of the same rounds as the sums.
func (a *auditor) invert(ctx context.Context, s *scene) ([]AuditFigure, error) {
	new := func(p Protection, view string, want int) *tally {
		return &tally{AuditFigure{Attack: s.attack, Means: s.means, Protection: p, View: view}, want}
	}
	bare, masked := new(Unprotected, viewUpdate, a.Compared), new(SecureSum, viewMasked, a.Compared)
	summed := new(SecureSum, viewSum, a.want(SecureSum, a.Trials, a.Compared))
	all := []*tally{bare, masked, summed}
	stage := "attack " + s.attack
	if s.means != "" {
		stage += " by " + s.means
	}
	for round := 0; slices.ContainsFunc(all, func(t *tally) bool { return !t.done() }); round++ {
		e, err := a.plain.round(ctx, game{scene: s, set: a.set, at: a.draw(round, a.Batch), seed: a.seed(round), lie: s.lie})
		if err != nil {
			return nil, err
		}
		for i, used := range e.used {
			for _, one := range []struct {
				tally  *tally
				update []float32
			}{{bare, e.sent[i]}, {masked, e.masked[i]}} {
				if one.tally.done() {
					continue
				}
				if err := a.count(one.tally, s.found(a.plain.terms, a.steps, one.update), used, round); err != nil {
					return nil, err
				}
			}
		}
		if err := a.countSums(summed, s, a.plain.terms, e, round); err != nil {
			return nil, err
		}
		a.Progress(stage+", no noise", min(1, float64(summed.figure.Trials)/float64(summed.want)))
	}
	if a.private == nil {
		return finished(all), nil
	}
	for _, t := range []*tally{new(Private, viewNoisy, a.Compared), new(SumAndDP, viewSum, a.want(SumAndDP, a.Trials, a.Compared))} {
		for round := 0; !t.done(); round++ {
			e, err := a.private.round(ctx, game{scene: s, set: a.set, at: a.draw(round, a.privately(a.Batch)), seed: a.seed(round), lie: s.lie, alone: t.figure.Protection == Private})
			if err != nil {
				return nil, err
			}
			if err := a.countSums(t, s, a.private.terms, e, round); err != nil {
				return nil, err
			}
			a.Progress(stage+", "+string(t.figure.Protection), min(1, float64(t.figure.Trials)/float64(t.want)))
		}
		all = append(all, t)
	}
	return finished(all), nil
}

func (a *auditor) seed(round int) uint64 { return a.Seed<<24 + uint64(round)<<8 }

// countSums counts what the opened sums of a round give.
func (a *auditor) countSums(t *tally, s *scene, terms federate.Terms, e *exchange, round int) error {
	if len(e.sums) == 0 {
		return errors.New("job: a round of the audit opened no sum")
	}
	for _, sum := range e.sums {
		if t.done() {
			break
		}
		if err := a.count(t, s.found(terms, a.steps, sum.mean), e.images(sum.sites), round); err != nil {
			return err
		}
	}
	return nil
}

// What was attacked.
const (
	viewUpdate = "a site's update"
	viewMasked = "a site's masked update"
	viewSum    = "the opened sum"
	viewNoisy  = "a site's noisy update"
	viewGlobal = "the global model"
	viewLocal  = "a site's model, in the last round"
	viewAlone  = "a model of one site's noisy updates"
)

func finished(all []*tally) []AuditFigure {
	var out []AuditFigure
	for _, t := range all {
		f := t.figure
		f.Rate = f.Hits.Rate()
		f.NeverRate = privacy.ClopperPearson(f.NeverHits, f.NeverTrials)
		f.AtMost = privacy.AtMost(f.Hits.Hits, f.Trials)
		if len(f.Hits.SSIM) > 0 {
			sorted := slices.Clone(f.Hits.SSIM)
			sort.Float64s(sorted)
			f.MedianSSIM = sorted[len(sorted)/2]
		}
		f.Hits.SSIM, f.Best = nil, nil
		out = append(out, f)
	}
	return out
}

// search looks for the images of sites that learn from one each, the hardest case for
// a hospital: every gradient of every weight is matched.
func (a *auditor) search(ctx context.Context) ([]AuditFigure, error) {
	s, err := newScene(AuditOptimise, a.network, a.plain.terms, a.set, a.Kernels)
	if err != nil {
		return nil, err
	}
	defer s.engine.Close()
	new := func(p Protection, view string) *tally {
		return &tally{AuditFigure{Attack: AuditOptimise, Protection: p, View: view}, a.Searches}
	}
	views := []*tally{new(Unprotected, viewUpdate), new(SecureSum, viewSum)}
	if a.private != nil {
		views = append(views, new(Private, viewNoisy), new(SumAndDP, viewSum))
	}
	var weights []string // that leave a site
	for _, name := range a.network.Weights {
		if _, in := s.from[name]; in {
			weights = append(weights, name)
		}
	}
	leaks := map[int]*privacy.Leak{}
	defer func() {
		for _, l := range leaks {
			l.Close()
		}
	}()
	match := func(t *tally, terms federate.Terms, update []float32, used []int, round int) error {
		if len(used) == 0 || t.done() {
			return nil
		}
		l := leaks[len(used)]
		if l == nil {
			var err error
			if l, err = privacy.NewLeak(a.network.Model, privacy.LeakOptions{Input: a.network.Input, Logits: a.network.Logits, Weights: weights, Batch: len(used)}); err != nil {
				return err
			}
			leaks[len(used)] = l
		}
		var observed [][]float32
		for _, name := range weights {
			observed = append(observed, s.gradient(terms, terms.Epochs, update, name))
		}
		m, err := privacy.Match(ctx, l, observed, pick(a.set.Labels, used), privacy.MatchOptions{Steps: a.Steps, Rows: a.set.Rows, Columns: a.set.Columns, Low: 0, High: 1, TV: 1e-4,
			Seed: a.Seed + uint64(round)<<20 + uint64(used[0])})
		if err != nil {
			return err
		}
		return a.count(t, m.Images, used, round)
	}
	for n, t := range views {
		for round := 0; !t.done(); round++ {
			c, each := a.plain, 1
			if n > 1 {
				c, each = a.private, a.privately(1)
			}
			e, err := c.round(ctx, game{scene: s, set: a.set, at: a.draw(round, each), seed: a.seed(round), alone: t.figure.Protection == Private})
			if err != nil {
				return nil, err
			}
			if n == 0 {
				for i, used := range e.used {
					if err := match(t, c.terms, e.sent[i], used, round); err != nil {
						return nil, err
					}
				}
			} else {
				for _, sum := range e.sums {
					if err := match(t, c.terms, sum.mean, e.images(sum.sites), round); err != nil {
						return nil, err
					}
				}
			}
			a.Progress("attack "+AuditOptimise, (float64(n)+min(1, float64(t.figure.Trials)/float64(t.want)))/float64(len(views)))
		}
	}
	return finished(views), nil
}

func trimDigest(s string) string { return strings.TrimPrefix(strings.ToLower(s), "sha256:") }
