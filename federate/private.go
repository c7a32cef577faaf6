package federate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	"github.com/vigie/vigie/dp"
)

// Unit says whose part in a sum a promise of differential privacy hides. The two
// promises are different ones, with noise of different size, and are never added
// up or compared: an epsilon without its unit means nothing.
type Unit string

// The units.
const (
	// Patient hides whether any one patient of any hospital took part: all that the
	// federation opens is nearly as likely without that patient. What an opened sum
	// holds of a patient is one gradient, clipped.
	Patient Unit = "patient"
	// Hospital hides whether any one hospital took part, with all its patients: what
	// an opened sum holds of it is one update, clipped. It says nothing about
	// patients that the hospital does not hide itself.
	Hospital Unit = "hospital"
)

// ErrBudget is returned by a site for an order that would spend more than its
// privacy budget. It wraps ErrOrder.
var ErrBudget = fmt.Errorf("%w: the privacy budget is spent", ErrOrder)

// DP makes every sum that is opened differentially private, whoever opens it.
// Noise is added in whole numbers inside the masked sum: each site adds a share of
// its own, so that nobody ever has a sum without it.
//
// The promise is made under one assumption, which is part of the terms: of the
// sites in a sum, Honest add their share as they should and tell nobody about it.
// Up to Colluding others in the sum may work for the coordinator, know everybody's
// model and data but the honest ones', leave out their noise or tell it. A site
// opens no sum of fewer than Honest + Colluding sites. If more sites than Colluding
// work together the promise is weaker, by and by: noise of k honest sites has the
// standard deviation √(k/Honest) of what is promised.
//
// For patients a round is one step of DP-SGD over the union of all sites' patients
// (FedSGD): each is drawn on its own with chance Rate (Poisson), its gradient is
// clipped to Clip, and what is opened is the sum over those who were drawn, and the
// noise. Nothing that a site computes from a patient influences anything else before
// noise is on it: several local steps between two sums would break that, and are
// refused.
//
// For hospitals a site's whole update is clipped to Clip; it may come of any number
// of local steps. A hospital is in a round with chance Rate, and sends nothing but
// noise otherwise.
type DP struct {
	Unit    Unit    `json:"unit"`
	Epsilon float64 `json:"epsilon"` // budget: the most that all attempts together spend
	Delta   float64 `json:"delta"`
	// Clip bounds what one unit adds to a sum, as a Euclidean length.
	Clip float64 `json:"clip"`
	Rate float64 `json:"sampling_rate"` // chance of a unit to be in a round, above 0, at most 1
	// Lot is what a sum is divided by: how many units are expected in a round. It is
	// agreed to and not counted, because a count would tell about who is in it.
	Lot float64 `json:"lot"`
	// Noise is the standard deviation of Honest sites' noise together, over Clip.
	Noise     float64 `json:"noise_multiplier"`
	Honest    int     `json:"honest"`
	Colluding int     `json:"colluding"`
	// Attempts is for how many attempts at rounds the noise is enough. An attempt
	// that fails after sites have sent their vectors is spent.
	Attempts int `json:"attempts"`
	// Views is how many augmentations of a patient's examples are averaged before
	// clipping: they cost time, and no privacy. 0 is 1.
	Views int `json:"views,omitempty"`
}

// survivors is how many sites a sum must hold.
func (d *DP) survivors() int { return d.Honest + d.Colluding }

// MaxEpsilon is the largest budget that terms may name. Beyond it a promise hides
// nobody.
const MaxEpsilon = 20

// checkPrivacy says what is wrong with the terms' privacy.
func (t Terms) checkPrivacy(sites int) error {
	d := t.DP
	positive := func(v float64) bool { return v > 0 && !math.IsInf(v, 0) }
	switch {
	case d == nil && t.Algorithm == FedSGD:
		return fmt.Errorf("the algorithm %s without privacy: it is how patients are protected; fedavg learns more in a round", FedSGD)
	case d == nil:
		return nil
	case d.Unit != Patient && d.Unit != Hospital:
		return fmt.Errorf("privacy of a %q: want %s or %s", d.Unit, Patient, Hospital)
	case !(d.Epsilon > 0 && d.Epsilon <= MaxEpsilon):
		return fmt.Errorf("an epsilon of %g: want more than 0 and at most %d", d.Epsilon, MaxEpsilon)
	case !(d.Delta > 0 && d.Delta < 1):
		return fmt.Errorf("a delta of %g: want it in (0, 1)", d.Delta)
	case !positive(d.Clip) || !(d.Rate > 0 && d.Rate <= 1) || !positive(d.Lot) || d.Lot > 1e8:
		return fmt.Errorf("a clipping norm of %g, a sampling rate of %g, a lot of %g: want more than 0, above 0 to 1, and above 0 to 1e8", d.Clip, d.Rate, d.Lot)
	case d.Delta*d.Lot/d.Rate >= 1:
		return fmt.Errorf("a delta of %g with some %.0f %ss would allow giving away one of them whole; take %.0e or less", d.Delta, d.Lot/d.Rate, d.Unit, 0.1*d.Rate/d.Lot)
	case !(d.Noise >= 0.1 && d.Noise <= 1e4):
		return fmt.Errorf("a noise multiplier of %g: want 0.1 to 1e4", d.Noise)
	case d.Honest < 1 || d.Colluding < 0:
		return fmt.Errorf("noise of %d honest sites among %d that may not be: want at least 1, and 0 or more", d.Honest, d.Colluding)
	case d.Attempts < t.Rounds:
		return fmt.Errorf("privacy for %d attempts at %d rounds", d.Attempts, t.Rounds)
	case d.Views < 0 || d.Views > 1<<10:
		return fmt.Errorf("%d views of an example: want at most %d", d.Views, 1<<10)
	case (d.Unit == Patient) != (t.Algorithm == FedSGD):
		return fmt.Errorf("privacy of a %s with %s: a patient is protected by %s alone, one noisy step a round, and a hospital by the others", d.Unit, t.Algorithm, FedSGD)
	case t.Algorithm == SCAFFOLD:
		return errors.New("privacy with scaffold: its control variates are a second release that no noise is on")
	case len(t.Tasks) > 0:
		return errors.New("privacy and questions besides training: their sums are opened without noise, which would break the promise")
	case t.Naming != NamingOff:
		return errors.New("privacy and the naming of sites: its evidence is of sums without noise, and would accuse the honest")
	case d.Unit == Patient && len(t.Personal) > 0:
		return errors.New("privacy of a patient with parts of the model that stay at the site: they are trained locally, which this step is not")
	}
	smallest := sites / t.groups(sites)
	switch {
	case d.survivors() > smallest:
		return fmt.Errorf("sums of %d honest sites and %d others, in groups of %d", d.Honest, d.Colluding, smallest)
	case 3*d.Colluding >= smallest:
		return fmt.Errorf("%d colluding sites of %d: a third of them can open what they like", d.Colluding, smallest)
	case t.sensitivity(sites) < 1<<10:
		return fmt.Errorf("sums of a lot of %g with a noise multiplier of %g: no unit leaves room for them in 32 bits", d.Lot, d.Noise)
	}
	return t.noise(sites, 1).Check()
}

// sensitivity is Clip in whole units of the ring: the largest power of two, at most
// 2²², with which a sum does not reach 2³¹ but for a chance below 1e-20. The sum
// holds at most lot + 10√lot + 50 units (Bernstein's inequality: exp(-50)), each
// number of each at most the sensitivity in size, and noise of all sites within 14
// deviations. (An overflow would spoil the model, not the promise: what is told
// then is a function of the true sum.)
func (t Terms) sensitivity(sites int) uint64 {
	d := t.DP
	most := d.Lot + 10*math.Sqrt(d.Lot) + 50
	if d.Unit == Hospital {
		most = float64(t.largest(sites))
	}
	room := math.MaxInt32 / (most + 14*d.Noise*math.Sqrt(float64(t.largest(sites))/float64(d.Honest)))
	if !(room >= 1) {
		return 0
	}
	_, exponent := math.Frexp(room)
	return 1 << min(22, exponent-1)
}

// noise is the sum that is accounted for: that of the honest sites' shares.
func (t Terms) noise(sites, length int) dp.Sum {
	s := dp.Sum{Sensitivity: t.sensitivity(sites), Shares: t.DP.Honest, Length: length}
	s.Variance, _ = dp.ShareFor(t.DP.Noise, s.Sensitivity, s.Shares) // 0, which Check refuses, if there is none
	return s
}

// ulp is what a unit of the ring stands for.
func (t Terms) ulp(sites int) float64 { return t.DP.Clip / float64(t.sensitivity(sites)) }

// Plan returns the terms with the least noise that keeps their attempts within
// their epsilon, for a model of so many variables at so many sites.
func (t Terms) Plan(sites, variables int) (Terms, error) {
	fail := func(err error) (Terms, error) {
		return Terms{}, fmt.Errorf("federate: planning the noise for %q: %w: %w", t.Federation, ErrTerms, err)
	}
	if t.DP == nil {
		return t, nil
	}
	d := *t.DP
	t.DP = &d
	plan, err := dp.Plan{Epsilon: d.Epsilon, Delta: d.Delta, Run: dp.Run{Rate: d.Rate, Steps: d.Attempts}}.Solve(planner)
	if err != nil {
		return fail(err)
	}
	for d.Noise = plan.Run.Sigma; ; d.Noise *= 1 + 1e-5 { // once, as a rule: being discrete costs next to nothing
		if err := t.Check(sites); err != nil {
			return Terms{}, err
		}
		spent, err := t.noise(sites, variables).Epsilon(planner, d.Rate, d.Attempts, d.Delta)
		if err != nil {
			return fail(err)
		}
		if math.IsInf(spent, 1) {
			return fail(fmt.Errorf("%d variables and %d attempts are too many for noise in so coarse units", variables, d.Attempts))
		}
		if spent <= d.Epsilon {
			return t, nil
		}
	}
}

// Defaults of privacy: those of the recipe private-28, which was chosen on
// PneumoniaMNIST's validation split (docs/measurements.md).
const (
	DefaultClip = 3.0   // of a patient's gradient, or a hospital's update
	DefaultRate = 0.055 // at which patients are drawn
)

// Open is the value of DP.Colluding that Complete fills in: 0 is a promise, too.
const Open = -1

// Complete fills in what the terms' privacy leaves open (0, and Open for
// Colluding), for units patients or hospitals in all, and plans the noise. Colluding
// becomes a fourth of the sites, rounded down so that it is below a third; Honest as
// many as open a sum anyway, without them: so that privacy never ends a round that
// secret sharing would not.
func (t Terms) Complete(sites, units, variables int) (Terms, error) {
	if t.DP == nil {
		return t, nil
	}
	d := *t.DP
	t.DP = &d
	smallest := sites / t.groups(sites)
	if d.Colluding == Open {
		d.Colluding = max(0, (smallest-1)/4)
	}
	if d.Honest == 0 {
		d.Honest = max(1, max(t.Minimum, 2*smallest/3+1)-d.Colluding)
	}
	if d.Attempts == 0 {
		d.Attempts = t.Rounds
	}
	if d.Rate == 0 {
		d.Rate = 1
		if d.Unit == Patient {
			d.Rate = DefaultRate
		}
	}
	if d.Clip == 0 {
		d.Clip = DefaultClip
	}
	if d.Delta == 0 {
		d.Delta = min(1e-5, 0.1/float64(units))
		if d.Unit == Hospital {
			d.Delta = 0.01 / float64(units)
		}
	}
	if d.Lot == 0 {
		d.Lot = d.Rate * float64(units)
	}
	return t.Plan(sites, variables)
}

// planner is as safe as the finest grid, a fraction of a per cent less tight, and
// takes a second.
var planner = dp.PLD{Interval: 1e-3}

// Spent is what a site has spent.
type Spent struct {
	Unit     Unit `json:"unit"`
	Attempts int  `json:"attempts"` // at rounds, that its noise has gone out in
	// Epsilon is by the privacy loss distribution, EpsilonRDP the same by Rényi
	// divergences, another proof; at Delta.
	Epsilon    float64 `json:"epsilon"`
	EpsilonRDP float64 `json:"epsilon_rdp"`
	Delta      float64 `json:"delta"`
}

// Spent is what a unit of a site has spent that has sent its vector in so many
// attempts at rounds under the terms, at one of so many sites that train so many
// variables.
func (t Terms) Spent(attempts, sites, variables int) (Spent, error) {
	if t.DP == nil {
		return Spent{}, fmt.Errorf("federate: accounting for %q: %w: its terms promise no privacy", t.Federation, ErrTerms)
	}
	out := Spent{Unit: t.DP.Unit, Attempts: attempts, Delta: t.DP.Delta}
	sum := t.noise(sites, variables)
	var err error
	if out.Epsilon, err = sum.Epsilon(planner, t.DP.Rate, attempts, t.DP.Delta); err == nil {
		out.EpsilonRDP, err = sum.Renyi(t.DP.Rate, attempts, t.DP.Delta)
	}
	if err != nil {
		return Spent{}, fmt.Errorf("federate: accounting for %q: %w", t.Federation, err)
	}
	return out, nil
}

// Spending is what a site is about to spend: one attempt at a round.
type Spending struct {
	Federation string `json:"federation"`
	Unit       Unit   `json:"unit"`
	Round      uint64 `json:"round"` // number of the attempt
	// Run is the Gaussian mechanism that gives away as much; runs of one unit
	// compose (dp.PLD), and those of different units do not.
	Run dp.Run `json:"run"`
}

// Ledger is a hospital's own book of what was spent, over all federations. Charge
// enters a spending, durably, before anything of it leaves, and refuses it with an
// error that wraps ErrBudget if the hospital does not want to spend so much. The
// same federation's same round comes again after a crash, and is charged once.
type Ledger interface {
	Charge(ctx context.Context, s Spending) error
}

// account is a site's own memory of what it has spent in one federation, whatever
// the terms were.
type account struct {
	Unit  Unit     `json:"unit"`
	Round uint64   `json:"round"` // the last that was charged
	Runs  []dp.Run `json:"runs"`  // equal neighbours are one

	allowed int          // attempts that the budget still has
	noise   *dp.Discrete // of a share
}

const accountMemory = "privacy.json"

// openAccount reads what was spent before, and works out what is left.
func (s *Site) openAccount() error {
	d := s.Terms.DP
	if d == nil {
		return nil
	}
	fail := func(err error) error {
		return fmt.Errorf("federate: opening the privacy account of %q: %w", s.name, err)
	}
	a := &account{Unit: d.Unit}
	if s.Keeper != nil {
		data, err := s.Keeper.Get(accountMemory)
		if err != nil {
			return fail(err)
		}
		if data != nil {
			if err := json.Unmarshal(data, a); err != nil {
				return fail(fmt.Errorf("%w: %w", ErrKept, err))
			}
		}
		if a.Unit != d.Unit {
			return fail(fmt.Errorf("%w: it counts what a %s has spent, and the terms are about a %s: the two are not added; keep them apart", ErrKept, a.Unit, d.Unit))
		}
	}
	variables, _ := s.size()
	sum := s.Terms.noise(len(s.Members), variables)
	key := fmt.Sprint(sum, *d, a.Runs)
	if left, known := allowances.Load(key); known {
		a.allowed = left.(int)
	} else {
		left, err := allowance(sum, *d, a.Runs)
		if err != nil {
			return fail(err)
		}
		a.allowed = left
		allowances.Store(key, left)
	}
	var err error
	if a.noise, err = dp.DiscreteFrom(sum.Variance, s.Noise); err != nil {
		return fail(err)
	}
	s.account = a
	return nil
}

// allowances are known answers: of the many sites of a simulation all have the
// same.
var allowances sync.Map

// allowance is how many attempts a budget has room for after what was spent
// before.
func allowance(sum dp.Sum, d DP, before []dp.Run) (int, error) {
	if err := sum.Check(); err != nil {
		return 0, err
	}
	// being discrete costs this much of the budget
	loss, slip := sum.Slack(d.Attempts+steps(before), MaxEpsilon+1)
	epsilon, delta := d.Epsilon-loss, (d.Delta-slip)*math.Exp(-loss/2)
	if !(epsilon > 0 && delta > 0) {
		return 0, nil
	}
	fits := func(attempts int) (bool, error) {
		spent, err := planner.Compose(append(append([]dp.Run(nil), before...), dp.Run{Sigma: sum.Sigma(), Rate: d.Rate, Steps: attempts}), delta)
		return spent <= epsilon, err
	}
	low, high := 0, d.Attempts // low fits
	if ok, err := fits(high); err != nil || ok {
		return high, err
	}
	for high-low > 1 {
		middle := (low + high) / 2
		ok, err := fits(middle)
		if err != nil {
			return 0, err
		}
		if ok {
			low = middle
		} else {
			high = middle
		}
	}
	return low, nil
}

func steps(runs []dp.Run) int {
	n := 0
	for _, r := range runs {
		n += r.Steps
	}
	return n
}

// charge enters the attempt that is under way into the site's own account and the
// hospital's ledger: before its noise is drawn.
func (s *Site) charge(ctx context.Context) error {
	a, d := s.account, s.Terms.DP
	if a.Round == s.round.Number {
		return nil // a vector of this round was never finished, or it would not be made again
	}
	if a.allowed < 1 {
		return fmt.Errorf("%w: %d attempts were made, and another would spend more than epsilon %g of a %s", ErrBudget, steps(a.Runs), d.Epsilon, d.Unit)
	}
	variables, _ := s.size()
	run := dp.Run{Sigma: s.Terms.noise(len(s.Members), variables).Sigma(), Rate: d.Rate, Steps: 1}
	if s.Ledger != nil {
		if err := s.Ledger.Charge(ctx, Spending{Federation: s.Terms.Federation, Unit: d.Unit, Round: s.round.Number, Run: run}); err != nil {
			return err
		}
	}
	next := account{Unit: a.Unit, Round: s.round.Number, Runs: append([]dp.Run(nil), a.Runs...), allowed: a.allowed - 1, noise: a.noise}
	if n := len(next.Runs); n > 0 && next.Runs[n-1].Sigma == run.Sigma && next.Runs[n-1].Rate == run.Rate {
		next.Runs[n-1].Steps++
	} else {
		next.Runs = append(next.Runs, run)
	}
	if s.Keeper != nil {
		data, err := json.Marshal(next)
		if err != nil {
			return err
		}
		if err := s.Keeper.Put(accountMemory, data); err != nil {
			return err
		}
	}
	*a = next
	return nil
}

// Spent is what the site has spent in this federation, under these terms and any
// before.
func (s *Site) Spent() (Spent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.account == nil {
		return Spent{}, fmt.Errorf("federate: accounting at %q: %w: its terms promise no privacy", s.name, ErrTerms)
	}
	variables, _ := s.size()
	if len(s.account.Runs) < 2 {
		return s.Terms.Spent(steps(s.account.Runs), len(s.Members), variables)
	}
	out := Spent{Unit: s.account.Unit, Attempts: steps(s.account.Runs), Delta: s.Terms.DP.Delta}
	loss, slip := s.Terms.noise(len(s.Members), variables).Slack(out.Attempts, MaxEpsilon+1)
	delta := (out.Delta - slip) * math.Exp(-loss/2)
	var err error
	if out.Epsilon, err = planner.Compose(s.account.Runs, delta); err == nil {
		out.EpsilonRDP, err = dp.RDP{}.Compose(s.account.Runs, delta)
	}
	out.Epsilon += loss
	out.EpsilonRDP += loss
	return out, err
}

// Left is for how many attempts at rounds the site's own account has budget: with
// no promise of privacy, for any number.
func (s *Site) Left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.account == nil {
		return math.MaxInt
	}
	return s.account.allowed
}

// enough refuses a set of sites whose noise is less than what was promised.
func (s *Site) enough(names []string) error {
	if d := s.Terms.DP; d != nil && s.keep.Order.Question == nil && len(names) < d.survivors() {
		return fmt.Errorf("%w: a sum of %d sites; the promise of privacy counts on the noise of %d, and allows for %d more that leave theirs out", ErrOrder, len(names), d.Honest, d.Colluding)
	}
	return nil
}

// PatientTrainer is a Trainer that can say what each patient's gradient is. Terms
// that protect patients need one.
type PatientTrainer interface {
	Trainer
	// Patients is how many patients the site has.
	Patients() int
	// Gradients calls yield with the gradient of the mean loss of each of the
	// patients, at w.Variables: trained variables, one after the other. A patient's
	// gradient depends on nothing of another's, bit for bit. The slice is good until
	// yield returns.
	Gradients(ctx context.Context, w Work, patients []int, yield func(gradient []float32) error) error
}

// trainPrivately makes the vector of a round under DP and masks it. What comes
// before the charge tells nothing, and nothing comes without noise after it.
func (s *Site) trainPrivately(ctx context.Context, o Order) ([]uint32, error) {
	if err := s.enough(o.Names); err != nil {
		return nil, err
	}
	if err := s.charge(ctx); err != nil {
		return nil, err
	}
	d, sites := s.Terms.DP, len(s.Members)
	variables, _ := s.size()
	work := Work{Terms: s.Terms, Round: s.keep.Order.Index, Own: s.own.begin(), Seed: s.Seed}
	vector := make([]uint32, variables)
	e := encoder{bound: s.Terms.sensitivity(sites), clip: d.Clip, whole: make([]int32, variables)}
	var err error
	if d.Unit == Patient {
		err = s.addPatients(ctx, work, o.Weights.Variables, &e, vector)
	} else {
		err = s.addHospital(ctx, work, o.Weights.Variables, &e, vector)
	}
	if err != nil {
		return nil, err
	}
	quiet := false
	if s.Tamper != nil {
		if quiet, err = s.tamperPrivately(ctx, work.Round, o.Weights.Variables, vector); err != nil {
			return nil, err
		}
	}
	if !quiet {
		if err := s.account.noise.Add(vector); err != nil {
			return nil, err
		}
	}
	if _, err := s.session.Mask(ctx, o.Names, vector); err != nil {
		return nil, err
	}
	s.vector = vector
	return vector, nil
}

// addPatients adds the clipped gradients, downhill, of the patients that are drawn.
func (s *Site) addPatients(ctx context.Context, work Work, global []float32, e *encoder, sum []uint32) error {
	trainer := s.Trainer.(PatientTrainer) // NewSite has seen to it
	drawn, err := dp.SamplerFrom(s.Noise).Draw(trainer.Patients(), s.Terms.DP.Rate)
	if err != nil {
		return err
	}
	work.Variables = global
	return trainer.Gradients(ctx, work, drawn, func(gradient []float32) error {
		if len(gradient) != len(sum) {
			return fmt.Errorf("federate: a gradient of %d numbers, want %d", len(gradient), len(sum))
		}
		for j, v := range e.encode(gradient) {
			sum[j] -= uint32(v)
		}
		return nil
	})
}

// addHospital adds the hospital's clipped update, if the hospital is in the round.
func (s *Site) addHospital(ctx context.Context, work Work, global []float32, e *encoder, sum []uint32) error {
	drawn, err := dp.SamplerFrom(s.Noise).Draw(1, s.Terms.DP.Rate)
	if err != nil {
		return err
	}
	// A hospital that was not drawn trains all the same: the time that its answer
	// takes must not tell.
	update, _, _, err := learn(ctx, s.Trainer, work, global)
	if err != nil || len(drawn) == 0 {
		return err
	}
	s.own.trained(work.Own)
	for j, v := range e.encode(update) {
		sum[j] += uint32(v)
	}
	return nil
}

// tamperPrivately lets a malicious site change its sum as if it were an update, the
// mean of what the site expects to be in it. A draft with a weight of 0 leaves out
// the noise.
func (s *Site) tamperPrivately(ctx context.Context, round int, global []float32, vector []uint32) (quiet bool, err error) {
	d := s.Terms.DP
	expected := 1.0
	if t, is := s.Trainer.(PatientTrainer); is && d.Unit == Patient {
		expected = max(1, d.Rate*float64(t.Patients()))
	}
	unit := s.Terms.ulp(len(s.Members)) / expected
	draft := &Draft{Round: round, Group: s.keep.Order.Group, Global: global, Update: make([]float32, len(vector)), Weight: 1}
	for j, v := range vector {
		draft.Update[j] = float32(float64(int32(v)) * unit)
	}
	if err := s.Tamper(ctx, draft); err != nil {
		return false, err
	}
	for j, v := range draft.Update {
		vector[j] = uint32(int64(max(-math.MaxInt32, min(math.MaxInt32, math.RoundToEven(float64(v)/unit)))))
	}
	return draft.Weight == 0, nil
}

// encoder turns vectors into whole numbers whose Euclidean length is at most bound,
// which stands for clip.
type encoder struct {
	bound uint64
	clip  float64
	whole []int32
}

// encode clips a vector and rounds it. The result's length is counted in whole
// numbers, so that no rounding, and no error of a norm, lets it pass the bound: what
// one unit adds to a sum has exactly that sensitivity. A vector that is not finite
// adds nothing. The result is good until the next call.
func (e *encoder) encode(v []float32) []int32 {
	square := 0.0
	for _, x := range v {
		square += float64(x) * float64(x)
	}
	norm := math.Sqrt(square)
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		clear(e.whole)
		return e.whole
	}
	bound := float64(e.bound)
	scale := bound / e.clip
	// rounding moves the vector by at most half a unit in each direction
	if most := bound - math.Sqrt(float64(len(v)))/2; norm*scale > most {
		scale = most / norm
	}
	for limit := e.bound * e.bound; ; scale *= 1 - 1e-6 { // once, but for errors of the norm
		total := uint64(0)
		for j, x := range v {
			w := int32(math.RoundToEven(float64(x) * scale))
			e.whole[j] = w
			total += uint64(int64(w) * int64(w))
			if total > limit {
				break
			}
		}
		if total <= limit {
			return e.whole
		}
	}
}

// checkPrivate says whether a site can keep the promise of its terms.
func (s *Site) checkPrivate() error {
	d := s.Terms.DP
	if d == nil || s.Trainer == nil {
		return nil
	}
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("federate: making a site of %q: %w: %s", s.name, ErrTerms, fmt.Sprintf(format, arguments...))
	}
	variables, trained := s.Trainer.Size()
	if most := float64(s.Terms.sensitivity(len(s.Members))) / 8; math.Sqrt(float64(variables)) > most {
		return fail("%d variables: rounding to whole units would weigh beside a gradient of %d of them", variables, uint64(8*most))
	}
	if d.Unit == Patient {
		if _, is := s.Trainer.(PatientTrainer); !is {
			return fail("the terms protect patients, and its trainer does not know a patient's gradient")
		}
		if variables != trained {
			return fail("%d of the model's variables are running statistics, which mix patients; use a network without batch normalisation", variables-trained)
		}
	}
	return nil
}

// privateMean reads a group's opened sum. What it is divided by was agreed to, and
// losses are not known.
func (c *Coordinator) privateMean(out *GroupOutcome, sum []uint32) groupSum {
	sites := len(c.Members)
	lot := c.Terms.DP.Lot / float64(c.Terms.groups(sites))
	unit := c.Terms.ulp(sites) / lot
	s := groupSum{first: out.Members[0], weight: lot, mean: make([]float32, len(sum))}
	for j, v := range sum {
		s.mean[j] = float32(float64(int32(v)) * unit)
	}
	if c.Opened != nil {
		c.Opened(out.Survivors, slices.Clone(s.mean), s.weight)
	}
	return s
}

// expected is what a site that protects patients adds to a sum for each patient, on
// average and without noise.
func expected(ctx context.Context, t Trainer, w Work, global []float32) ([]float32, error) {
	trainer, is := t.(PatientTrainer)
	if !is {
		return nil, fmt.Errorf("federate: learning: %w: the trainer does not know a patient's gradient", ErrTerms)
	}
	all := make([]int, trainer.Patients())
	for i := range all {
		all[i] = i
	}
	w.Variables = global
	sum := make([]float64, len(global))
	e := encoder{bound: 1 << 22, clip: w.Terms.DP.Clip, whole: make([]int32, len(global))}
	unit := w.Terms.DP.Clip / (1 << 22) / float64(len(all))
	if err := trainer.Gradients(ctx, w, all, func(gradient []float32) error {
		for j, v := range e.encode(gradient) {
			sum[j] -= float64(v) * unit
		}
		return nil
	}); err != nil {
		return nil, err
	}
	out := make([]float32, len(sum))
	for j, v := range sum {
		out[j] = float32(v)
	}
	return out, nil
}
