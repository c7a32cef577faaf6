package job

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/vigie/vigie/attack/privacy"
	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/train"
)

// consortium is the federation that an audit plays: every site is a
// federate.Site, and the server sees what a federate.Coordinator is sent.
type consortium struct {
	terms   federate.Terms // as agreed, but for augmentation
	members []secagg.Member
	signers []ed25519.PrivateKey
}

func newConsortium(terms federate.Terms, sites int, seed uint64) *consortium {
	c := &consortium{terms: terms}
	rng := rand.New(rand.NewPCG(seed, 0xa0d17))
	for i := range sites {
		var own [ed25519.SeedSize]byte
		for j := range own {
			own[j] = byte(rng.Uint32())
		}
		c.signers = append(c.signers, ed25519.NewKeyFromSeed(own[:]))
		c.members = append(c.members, secagg.Member{Name: fmt.Sprintf("site-%03d", i), Key: c.signers[i].Public().(ed25519.PublicKey)})
	}
	return c
}

// site makes one of the consortium's sites. Its noise is of the seed, so that an
// audit can be repeated: it protects nobody, and need not.
func (c *consortium) site(i int, t federate.Trainer, seed uint64, tamper func(*federate.Draft)) (*federate.Site, error) {
	var noise [32]byte
	binary.LittleEndian.PutUint64(noise[:], seed)
	binary.LittleEndian.PutUint64(noise[8:], uint64(i))
	o := federate.SiteOptions{Name: c.members[i].Name, Terms: c.terms, Members: c.members, Signer: c.signers[i], Trainer: t, Seed: seed + uint64(i), Noise: rand.NewChaCha8(noise)}
	if tamper != nil {
		o.Tamper = func(_ context.Context, d *federate.Draft) error {
			tamper(d)
			return nil
		}
	}
	return federate.NewSite(o)
}

// accomplice is a site that works for the server: it adds nothing to the sum, and
// none of its noise.
func accomplice(d *federate.Draft) {
	clear(d.Update)
	d.Weight = 0
}

// group is how many sites the smallest group has, in which a sum hides the least.
func (c *consortium) group() int {
	if c.terms.GroupSize == 0 {
		return len(c.members)
	}
	return len(c.members) / max(1, len(c.members)/c.terms.GroupSize)
}

// threshold is how many sites must be in the sum of the smallest group.
func (c *consortium) threshold() int {
	t := secagg.Round{Minimum: c.terms.Minimum}.Threshold(c.group())
	if d := c.terms.DP; d != nil {
		t = max(t, d.Honest+d.Colluding)
	}
	return t
}

// watched is the way to a site, on which the server reads what comes back.
type watched struct {
	federate.Link
	read func(vector []uint32)
	lose bool // the server says that the update never came
}

var errLost = errors.New("the server says that it was lost")

func (w watched) Ask(ctx context.Context, o federate.Order) (federate.Answer, error) {
	answer, err := w.Link.Ask(ctx, o)
	if err == nil && answer.Vector != nil {
		w.read(answer.Vector)
		if w.lose {
			return federate.Answer{}, errLost
		}
	}
	return answer, err
}

// learner is a trainer that remembers which of a set's examples a round learns from.
type learner struct {
	federate.Trainer
	at     []int   // positions of the site's examples
	people [][]int // examples of each patient, as positions among these
	used   []int   // positions of those that the last round learnt from
	last   federate.Subject
}

func newLearner(e *federate.Engine, set *train.Set, at []int) federate.Trainer {
	own := set.Subset(at)
	l := &learner{Trainer: e.Trainer(own), at: at}
	places := map[string]int{}
	for i := range own.Len() {
		name := own.Person(i)
		p, met := places[name]
		if !met {
			p = len(l.people)
			places[name] = p
			l.people = append(l.people, nil)
		}
		l.people[p] = append(l.people[p], i)
	}
	patients, knows := l.Trainer.(federate.PatientTrainer)
	ofSite, personal := l.Trainer.(federate.PersonalTrainer)
	switch {
	case personal:
		return &personalLearner{l, ofSite}
	case knows:
		return &patientLearner{l, patients}
	}
	return l
}

// Train implements federate.Trainer.
func (l *learner) Train(ctx context.Context, w federate.Work) (int, float64, error) {
	steps, loss, err := l.Trainer.Train(ctx, w)
	l.used, l.last = l.at, federate.Subject{Variables: slices.Clone(w.Variables), Own: slices.Clone(w.Own)}
	return steps, loss, err
}

func (l *learner) record() *learner { return l }

// personalLearner has variables of its own.
type personalLearner struct {
	*learner
	ofSite federate.PersonalTrainer
}

// Personal implements federate.PersonalTrainer.
func (l *personalLearner) Personal() []float32 { return l.ofSite.Personal() }

// patientLearner knows patients, too.
type patientLearner struct {
	*learner
	patients federate.PatientTrainer
}

// Patients implements federate.PatientTrainer.
func (l *patientLearner) Patients() int { return l.patients.Patients() }

// Gradients implements federate.PatientTrainer.
func (l *patientLearner) Gradients(ctx context.Context, w federate.Work, patients []int, yield func([]float32) error) error {
	l.used = nil
	for _, p := range patients {
		for _, i := range l.people[p] {
			l.used = append(l.used, l.at[i])
		}
	}
	return l.patients.Gradients(ctx, w, patients, yield)
}

// exchange is what a round gives the server, beside what it must not.
type exchange struct {
	used   [][]int     // positions of the images that each site learnt from
	sent   [][]float32 // what each site learnt, before anything hides it
	masked [][]float32 // what left each site, read as if it were not masked
	sums   []opened
}

// opened is a sum that the server opened.
type opened struct {
	sites []int
	mean  []float32 // update
}

// images are those that the sites in a sum learnt from.
func (e *exchange) images(sites []int) (at []int) {
	for _, i := range sites {
		at = append(at, e.used[i]...)
	}
	return at
}

// game says how the server plays.
type game struct {
	scene *scene
	set   *train.Set
	at    [][]int // positions of each site's images
	seed  uint64
	lie   bool // it loses as many updates as the sites allow
	alone bool // all sites but the first work for it
}

// round runs the first round of a federation.
func (c *consortium) round(ctx context.Context, g game) (*exchange, error) {
	out := &exchange{used: make([][]int, len(g.at)), sent: make([][]float32, len(g.at)), masked: make([][]float32, len(g.at))}
	place := map[string]int{}
	scale := secagg.Fixed{Bound: max(1, c.terms.Bound), Sites: len(c.members)}
	var links []federate.Link
	learners := make([]*learner, len(g.at))
	lost := 0
	if g.lie && c.terms.GroupSize == 0 {
		lost = len(c.members) - c.threshold()
	}
	for i := range g.at {
		t := newLearner(g.scene.engine, g.set, g.at[i])
		learners[i] = t.(interface{ record() *learner }).record()
		var tamper func(*federate.Draft)
		if c.terms.DP == nil {
			tamper = func(d *federate.Draft) { out.sent[i] = slices.Clone(d.Update) } // which stays as it is
		}
		if g.alone && i > 0 {
			tamper = accomplice
		}
		site, err := c.site(i, t, g.seed, tamper)
		if err != nil {
			return nil, err
		}
		place[c.members[i].Name] = i
		links = append(links, watched{Link: federate.Direct(site), lose: i >= len(g.at)-lost, read: func(v []uint32) {
			plain := make([]float64, len(v))
			scale.Decode(plain, v)
			own := make([]float32, len(g.scene.start))
			for j := range own {
				own[j] = float32(plain[j])
			}
			out.masked[i] = own
		}})
	}
	coordinator, err := federate.NewCoordinator(federate.CoordinatorOptions{Terms: c.terms, Members: c.members, Variables: g.scene.start, Trained: g.scene.trained, Parallel: 1,
		Opened: func(survivors []string, mean []float32, _ float64) {
			sum := opened{mean: slices.Clone(mean[:len(g.scene.start)])}
			for _, name := range survivors {
				if i := place[name]; !g.alone || i == 0 {
					sum.sites = append(sum.sites, i)
				}
			}
			out.sums = append(out.sums, sum)
		}})
	if err != nil {
		return nil, err
	}
	if _, err := coordinator.Round(ctx, links); err != nil {
		return nil, err
	}
	for i, l := range learners {
		out.used[i] = l.used
	}
	return out, nil
}

// move is something that a lying server may try, and what the sites say to it.
type move struct {
	name, about string
	// harmless says that the sites cannot tell it from what is right.
	undetectable bool
	try          func(ctx context.Context, p *play) error
}

// Move is what came of it.
type Move struct {
	Name    string `json:"name"`
	About   string `json:"about"`
	Refused bool   `json:"refused"`
	Why     string `json:"why,omitempty"` // the site's own words
	// Expected says whether sites should refuse it: what they cannot tell from a
	// server that keeps to the protocol is measured instead.
	Expected bool `json:"refusal_expected"`
}

// play is a round that the audit's server leads by hand, up to where it lies.
type play struct {
	c     *consortium
	sites []*federate.Site
	start []float32
	other []float32 // weights of the agreed shape, of the server's making
}

// keys enters a round with everybody in the group.
func (p *play) keys(ctx context.Context, number uint64, weights []float32) ([]secagg.Message, []string, error) {
	digest := (&federate.Weights{Variables: weights}).Digest()
	var names []string
	for _, m := range p.c.members[:len(p.sites)] {
		names = append(names, m.Name)
	}
	var roster []secagg.Message
	for _, s := range p.sites {
		a, err := s.Obey(ctx, federate.Order{Step: federate.StepKeys, Round: number, Group: names, Model: digest[:]})
		if err != nil {
			return nil, nil, err
		}
		roster = append(roster, a.Messages...)
	}
	return roster, names, nil
}

// accepted goes on until everybody has judged what it was dealt.
func (p *play) accepted(ctx context.Context, number uint64, weights []float32) ([]string, error) {
	roster, names, err := p.keys(ctx, number, weights)
	if err != nil {
		return nil, err
	}
	parcels := make([][]secagg.Message, len(names))
	for i, s := range p.sites {
		a, err := s.Obey(ctx, federate.Order{Step: federate.StepShares, Round: number, Messages: roster})
		if err != nil {
			return nil, err
		}
		at := 0
		for k := range names {
			if k != i {
				parcels[k] = append(parcels[k], a.Messages[at])
				at++
			}
		}
	}
	for i, s := range p.sites {
		if _, err := s.Obey(ctx, federate.Order{Step: federate.StepAccept, Round: number, Messages: parcels[i]}); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// masked goes on until everybody has sent its update.
func (p *play) masked(ctx context.Context, number uint64) ([]string, error) {
	names, err := p.accepted(ctx, number, p.start)
	if err != nil {
		return nil, err
	}
	for _, s := range p.sites {
		if _, err := s.Obey(ctx, federate.Order{Step: federate.StepTrain, Round: number, Names: names, Weights: &federate.Weights{Variables: p.start}}); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// errPlay says that the audit could not even come to where it would lie.
var errPlay = errors.New("the round did not come so far")

// someSum is what the server says is the digest of the sum; no site can know better.
var someSum = make([]byte, sha256.Size)

const trainedInMoves = 4 // images of a site

func step(err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", errPlay, err)
	}
	return nil
}

// moves is the table of them. Each returns the sites' refusal, or nil.
var moves = []move{
	{name: "inserted-layer", about: "weights of a model with another layer in it, than which nothing reads images better", try: func(ctx context.Context, p *play) error {
		larger := append(slices.Clone(p.start), make([]float32, 64)...)
		names, err := p.accepted(ctx, 1, larger)
		if err != nil {
			return step(err)
		}
		_, err = p.sites[0].Obey(ctx, federate.Order{Step: federate.StepTrain, Round: 1, Names: names, Weights: &federate.Weights{Variables: larger}})
		return err
	}},
	{name: "other-weights", about: "other weights for one site than the round began with", try: func(ctx context.Context, p *play) error {
		names, err := p.accepted(ctx, 1, p.start)
		if err != nil {
			return step(err)
		}
		_, err = p.sites[0].Obey(ctx, federate.Order{Step: federate.StepTrain, Round: 1, Names: names, Weights: &federate.Weights{Variables: p.other}})
		return err
	}},
	{name: "small-group", about: "a round of fewer sites than a sum must hold", try: func(ctx context.Context, p *play) error {
		digest := (&federate.Weights{Variables: p.start}).Digest()
		var names []string
		for _, m := range p.c.members[:p.c.terms.Minimum-1] {
			names = append(names, m.Name)
		}
		_, err := p.sites[0].Obey(ctx, federate.Order{Step: federate.StepKeys, Round: 1, Group: names, Model: digest[:]})
		return err
	}},
	{name: "few-partners", about: "masks for one site alone, the others being said to have left", try: func(ctx context.Context, p *play) error {
		names, err := p.accepted(ctx, 1, p.start)
		if err != nil {
			return step(err)
		}
		_, err = p.sites[0].Obey(ctx, federate.Order{Step: federate.StepTrain, Round: 1, Names: names[:1], Weights: &federate.Weights{Variables: p.start}})
		return err
	}},
	{name: "only-survivor", about: "all updates but one are said to be lost", try: func(ctx context.Context, p *play) error {
		names, err := p.masked(ctx, 1)
		if err != nil {
			return step(err)
		}
		_, err = p.sites[0].Obey(ctx, federate.Order{Step: federate.StepConfirm, Round: 1, Names: names[:1], Sum: someSum})
		return err
	}},
	{name: "few-survivors", about: "one update fewer than the threshold survives", try: func(ctx context.Context, p *play) error {
		names, err := p.masked(ctx, 1)
		if err != nil {
			return step(err)
		}
		_, err = p.sites[0].Obey(ctx, federate.Order{Step: federate.StepConfirm, Round: 1, Names: names[:p.c.threshold()-1], Sum: someSum})
		return err
	}},
	{name: "two-sums", about: "a second sum of the same round, without one of the sites, whose difference is that site's update", try: func(ctx context.Context, p *play) error {
		names, err := p.masked(ctx, 1)
		if err != nil {
			return step(err)
		}
		if _, err := p.sites[0].Obey(ctx, federate.Order{Step: federate.StepConfirm, Round: 1, Names: names, Sum: someSum}); err != nil {
			return step(err)
		}
		_, err = p.sites[0].Obey(ctx, federate.Order{Step: federate.StepConfirm, Round: 1, Names: names[:len(names)-1], Sum: someSum})
		return err
	}},
	{name: "same-round", about: "a round that was entered begins again with other weights", try: func(ctx context.Context, p *play) error {
		if _, _, err := p.keys(ctx, 1, p.start); err != nil {
			return step(err)
		}
		_, _, err := p.keys(ctx, 1, p.other)
		return err
	}},
	{name: "altered-weights", about: "weights of the agreed shape, of the server's own making, the same for all", undetectable: true, try: func(ctx context.Context, p *play) error {
		names, err := p.accepted(ctx, 1, p.other)
		if err != nil {
			return step(err)
		}
		_, err = p.sites[0].Obey(ctx, federate.Order{Step: federate.StepTrain, Round: 1, Names: names, Weights: &federate.Weights{Variables: p.other}})
		return err
	}},
}

// tryMoves plays a lying server against fresh sites, once a move.
func (c *consortium) tryMoves(ctx context.Context, e *federate.Engine, start []float32, set *train.Set, seed uint64) ([]Move, error) {
	other := slices.Clone(start)
	rng := rand.New(rand.NewPCG(seed, 0x07e4))
	for j := range other {
		other[j] *= 1 + 0.01*float32(rng.NormFloat64())
	}
	var out []Move
	for _, m := range moves {
		p := &play{c: c, start: start, other: other}
		for i := range c.group() {
			own := make([]int, trainedInMoves)
			for k := range own {
				own[k] = (i*trainedInMoves + k) % set.Len()
			}
			site, err := c.site(i, e.Trainer(set.Subset(own)), seed, nil)
			if err != nil {
				return nil, err
			}
			p.sites = append(p.sites, site)
		}
		err := m.try(ctx, p)
		if errors.Is(err, errPlay) || ctx.Err() != nil {
			return nil, fmt.Errorf("job: playing a server that lies (%s): %w", m.name, err)
		}
		made := Move{Name: m.name, About: m.about, Refused: err != nil, Expected: !m.undetectable}
		if err != nil {
			made.Why = strings.TrimPrefix(err.Error(), "federate: ")
		}
		out = append(out, made)
	}
	return out, nil
}

// scene is a model, as it is or as a malicious server makes it, and a way to read
// images off what its sites learn.
type scene struct {
	attack  string
	means   string // of an imprint: MeansWeights or MeansLayer
	network *train.Network
	engine  *federate.Engine
	start   []float32
	trained int
	from    map[string]int // where each trained weight begins in the variables
	weight  string         // of the layer that is read
	bias    string
	lie     bool // the server lets go of all sites that it can
	read    func(weight, bias []float32) [][]float32
}

func newScene(attack string, n *train.Network, terms federate.Terms, like *train.Set, kernels int) (*scene, error) {
	s := &scene{attack: attack, network: n, from: map[string]int{}}
	var err error
	if s.engine, err = federate.NewEngine(n, terms, like, kernels); err != nil {
		return nil, err
	}
	s.start, s.trained = s.engine.Variables()
	at := 0
	for _, span := range s.engine.Layout() { // what stays at the sites is not in it
		s.from[span.Name] = at
		at += span.Length
	}
	return s, nil
}

// gradient is what a weight's update says of its gradient, as the server works it
// out: the step of the terms undone, and the weight decay taken off, which needs
// no image.
func (s *scene) gradient(terms federate.Terms, steps int, update []float32, name string) []float32 {
	w := s.network.Model.Graph.Initializer(name)
	from := s.from[name]
	count, _ := w.Count()
	out := make([]float32, count)
	size, decay := 1.0, 0.0
	if terms.DP == nil {
		size = terms.Rate * float64(steps)
		if terms.Algorithm != federate.SCAFFOLD {
			size *= 1 + terms.Momentum // of the first step, by Nesterov
		}
	}
	if terms.DP == nil && len(w.Dims) > 1 && norm(update[:s.trained]) < 0.999*terms.Bound { // of a shortened one nobody knows by how much
		decay = terms.Decay
	}
	for j := range out {
		out[j] = float32(-float64(update[from+j])/size - decay*float64(s.start[from+j]))
	}
	return out
}

// found are the images that an update gives.
func (s *scene) found(terms federate.Terms, steps int, update []float32) [][]float32 {
	return s.read(s.gradient(terms, steps, update, s.weight), s.gradient(terms, steps, update, s.bias))
}

func norm(v []float32) float64 {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	return math.Sqrt(sum)
}

// scenes are the arithmetic attacks that the model is open to; why says of the
// others why not.
func (o *auditor) scenes(ctx context.Context, c *consortium, n *train.Network, set, aux *train.Set, shared func(...string) bool) (all []*scene, why map[string]string, err error) {
	why = map[string]string{}
	defer func() {
		if err != nil {
			for _, s := range all {
				s.engine.Close()
			}
			all = nil
		}
	}()
	layer, layerErr := privacy.FirstLayer(ctx, n.Model, n.Input)
	if layerErr != nil && !errors.Is(layerErr, ErrAsk) {
		return nil, nil, layerErr
	}
	if layerErr == nil && !shared(layer.Weight, layer.Bias) {
		layerErr = fmt.Errorf("%w: its first layer is not trained, or stays at the sites", ErrAsk)
	}
	if o.asks(AuditLinear) {
		if layerErr != nil {
			why[AuditLinear] = "the model does not begin with a linear layer whose bias is trained: " + layerErr.Error()
		} else {
			s, err := newScene(AuditLinear, n, c.terms, set, o.Kernels)
			if err != nil {
				return all, why, err
			}
			s.weight, s.bias = layer.Weight, layer.Bias
			s.read = func(w, b []float32) [][]float32 { return layer.Found(w, b, 0, 1) }
			all = append(all, s)
		}
	}
	if !o.asks(AuditImprint) {
		return all, why, nil
	}
	mean, deviation := brightness(rows(aux))
	if layerErr == nil && layer.Head() != "" && shared(layer.Head()) {
		s, err := o.strengthen(ctx, c, set, aux, 1, func(strength float64) (*scene, error) {
			p, err := layer.Implant(n.Model, mean, deviation, strength)
			if err != nil {
				return nil, err
			}
			changed := *n
			changed.Model = p.Model
			s, err := newScene(AuditImprint, &changed, c.terms, set, o.Kernels)
			if err != nil {
				return nil, err
			}
			s.means, s.lie, s.weight, s.bias = MeansWeights, true, layer.Weight, layer.Bias
			s.read = func(w, b []float32) [][]float32 { return p.Found(w, b, 0, 1) }
			return s, nil
		})
		if err != nil {
			return all, why, err
		}
		all = append(all, s)
	} else {
		why[AuditImprint+"/"+MeansWeights] = "the model is not linear, Relu, linear with two classes, all of it trained and shared: how its own weights could be made to read images is not known here"
	}
	s, err := o.strengthen(ctx, c, set, aux, privacy.ImprintShare, func(share float64) (*scene, error) {
		p, err := privacy.NewImprint(n.Model, n.Input, o.Bins, mean, deviation, share)
		if err != nil {
			return nil, err
		}
		with, err := train.Import(p.Model, train.ImportOptions{Output: n.Logits, Freeze: append(slices.Clone(o.Freeze), "privacy.little")})
		if err != nil {
			return nil, fmt.Errorf("job: a model with an imprint: %w", err)
		}
		s, err := newScene(AuditImprint, with, c.terms, set, o.Kernels)
		if err != nil {
			return nil, err
		}
		s.means, s.lie, s.weight, s.bias = MeansLayer, true, p.Weight, p.Bias
		s.read = func(w, b []float32) [][]float32 { return p.Found(w, b, 0, 1) }
		return s, nil
	})
	if err != nil {
		return all, why, err
	}
	return append(all, s), why, nil
}

// strengthen makes a malicious server's model whose gradients fill what the terms'
// bound leaves room for, so that they rise above the steps of fixed point: the server
// tries on images of its own.
func (o *auditor) strengthen(ctx context.Context, c *consortium, set, aux *train.Set, strength float64, with func(float64) (*scene, error)) (*scene, error) {
	own := make([]int, min(o.Batch, aux.Len()))
	for i := range own {
		own[i] = i
	}
	for try := 0; ; try++ {
		s, err := with(strength)
		if err != nil {
			return nil, err
		}
		update, err := federate.Learn(ctx, s.engine.Trainer(aux.Subset(own)), federate.Work{Terms: c.terms, Seed: o.Seed}, s.start)
		if err != nil {
			return nil, errors.Join(err, s.engine.Close())
		}
		length := norm(update)
		if try == 3 || !(length > 0) || length < c.terms.Bound && length > c.terms.Bound/8 {
			return s, nil
		}
		if err := s.engine.Close(); err != nil {
			return nil, err
		}
		strength *= max(1e-3, min(8, c.terms.Bound/2/length))
	}
}
