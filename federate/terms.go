package federate

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/vigie/vigie/federate/robust"
	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/train"
)

// Errors that callers branch on. Each is wrapped with what happened.
var (
	// ErrTerms is returned for terms that no federation can run under.
	ErrTerms = errors.New("not terms that a federation can run under")
	// ErrOrder is returned by a site for an order that its terms do not allow, or
	// that is not due.
	ErrOrder = errors.New("not an order that this site follows")
	// ErrRound is returned for a round that ended without a result. The next one
	// may be tried.
	ErrRound = errors.New("the round has no result")
)

// Terms are what the hospitals of a federation agreed to. Every signature of a
// round covers their digest.
type Terms struct {
	Federation string    `json:"federation"`
	Algorithm  Algorithm `json:"algorithm"`
	Rounds     int       `json:"rounds"`

	// How a site trains in a round: epochs over its examples by stochastic
	// gradient descent, at a rate that falls along a cosine from Rate in the first
	// round to FinalRate in the last.
	Epochs       int                `json:"epochs"`
	Batch        int                `json:"batch"`
	Rate         float64            `json:"rate"`
	FinalRate    float64            `json:"final_rate"`
	Momentum     float64            `json:"momentum"`
	Decay        float64            `json:"decay"`
	Augmentation train.Augmentation `json:"augmentation"`
	Proximal     float64            `json:"proximal,omitempty"` // μ of FedProx

	// How the coordinator moves the global weights.
	ServerRate float64 `json:"server_rate"`
	Beta1      float64 `json:"beta1,omitempty"` // of FedAdam and FedYogi
	Beta2      float64 `json:"beta2,omitempty"`
	Tau        float64 `json:"tau,omitempty"` // their adaptivity

	// Bound is the largest Euclidean length of a site's update; a longer one is
	// shortened at the site.
	Bound float64 `json:"bound"`
	// MaxExamples is how many examples a site counts for, at most: it weighs
	// min(its examples, MaxExamples)/MaxExamples.
	MaxExamples int `json:"max_examples"`

	// Minimum is how many sites' updates a sum must hold.
	Minimum int `json:"minimum"`
	// Quorum is how many of all members must be asked for a round and be in its sum, if
	// that is one of all: whoever leads cannot choose a few whom it knows. 0 is more
	// than two thirds. Groups of GroupSize are chosen by lot instead.
	Quorum int `json:"quorum,omitempty"`
	// GroupSize divides the sites into groups of at least so many, drawn anew each
	// round, whose sums are opened one by one for Rule to judge. 0 is one group
	// of all.
	GroupSize int         `json:"group_size,omitempty"`
	Rule      robust.Name `json:"rule"`
	Bad       int         `json:"bad,omitempty"` // groups that Rule stands
	// Naming keeps evidence against sites over the rounds, from the sums of groups:
	// of each a sketch of Sketch numbers. FalseNaming is the chance that an honest
	// site is named in a run, at most, as far as the evidence's assumptions hold.
	Naming      Naming  `json:"naming,omitempty"`
	Sketch      int     `json:"sketch,omitempty"`
	FalseNaming float64 `json:"false_naming,omitempty"`

	// Personal are the parts of the model that each site keeps to itself: they are
	// trained at the site, and never leave it.
	Personal []Part `json:"personal,omitempty"`

	// Bits, if not 0, is how many bits a number of an update has on its way, 16 for
	// half the bytes; Limit is the largest size of one, weighed: a larger one is cut to
	// it. Down likewise is how many bits a weight has on its way to the sites: 0, which
	// is 32, or 16.
	Bits  int     `json:"bits,omitempty"`
	Limit float64 `json:"limit,omitempty"`
	Down  int     `json:"down,omitempty"`

	// Tasks are what may be asked besides training, up to Questions times
	// together: each answer is opened as a sum without noise.
	Tasks     []Task `json:"tasks,omitempty"`
	Questions int    `json:"questions,omitempty"`

	// DP makes every sum differentially private; nil: none is. Average is the decay
	// of the moving average of the weights that is published then (post-processing,
	// which costs nothing); 0 publishes the last ones.
	DP      *DP     `json:"dp,omitempty"`
	Average float64 `json:"average,omitempty"`

	// Deadline is how long a step may take a site; longer, and the round goes on
	// without it.
	Deadline time.Duration `json:"deadline_ns"`
	Seed     uint64        `json:"seed"`
}

// DefaultTerms are FedAvg terms that work for small networks on images of a few
// dozen pixels.
func DefaultTerms(federation string) Terms {
	return Terms{
		Federation: federation, Algorithm: FedAvg, Rounds: 60,
		Epochs: 1, Batch: 32, Rate: 0.05, FinalRate: 1e-3, Momentum: 0.9, Decay: 1e-3,
		ServerRate: 1, Beta1: 0.9, Beta2: 0.99, Tau: 1e-3,
		Bound: 10, MaxExamples: 1000, Minimum: 3, Rule: robust.Mean,
		Deadline: 10 * time.Minute, Seed: 1,
	}
}

// Check returns an error that wraps ErrTerms if no federation of so many sites
// can run under the terms.
func (t Terms) Check(sites int) error {
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("federate: checking the terms of %q: %w: %s", t.Federation, ErrTerms, fmt.Sprintf(format, arguments...))
	}
	positive := func(v float64) bool { return v > 0 && !math.IsInf(v, 0) }
	rule, err := robust.Find(t.Rule)
	if err != nil {
		return fail("%v", err)
	}
	if _, err := t.Algorithm.row(); err != nil {
		return fail("%v", err)
	}
	switch {
	case strings.TrimSpace(t.Federation) == "":
		return fail("they name no federation")
	case t.Rounds < 1 || t.Epochs < 1 || t.Batch < 1:
		return fail("%d rounds of %d epochs with batches of %d: want at least one of each", t.Rounds, t.Epochs, t.Batch)
	case !positive(t.Rate) || !(t.FinalRate > 0) || t.FinalRate > t.Rate:
		return fail("a rate from %g to %g: want numbers above 0 that do not rise", t.Rate, t.FinalRate)
	case !(t.Momentum >= 0 && t.Momentum < 1) || !(t.Decay >= 0):
		return fail("a momentum of %g and a decay of %g: want 0 to less than 1, and 0 or more", t.Momentum, t.Decay)
	case !(t.Proximal >= 0) || (t.Proximal > 0) != (t.Algorithm == FedProx):
		return fail("a proximal term of %g with %s: FedProx has one above 0, the others have none", t.Proximal, t.Algorithm)
	case t.Algorithm == SCAFFOLD && t.Momentum != 0:
		return fail("a momentum of %g with scaffold, whose control variates are of steps without: want 0", t.Momentum)
	case !positive(t.ServerRate) || !positive(t.Bound) || t.MaxExamples < 1 || t.Deadline <= 0:
		return fail("a server rate of %g, a bound of %g, %d examples at most, a deadline of %v: all must be above 0", t.ServerRate, t.Bound, t.MaxExamples, t.Deadline)
	case (t.Algorithm.adaptive() || t.Algorithm == FedSGD) && (!(t.Beta1 >= 0 && t.Beta1 < 1) || !(t.Beta2 >= 0 && t.Beta2 < 1) || !positive(t.Tau)):
		return fail("β₁ %g, β₂ %g, τ %g: want 0 to less than 1 twice, and above 0", t.Beta1, t.Beta2, t.Tau)
	case t.Bound > 1e6:
		return fail("a bound of %g: beyond 1e6 a site's weight has no digits left in the sum", t.Bound)
	case t.Minimum < 3:
		return fail("a minimum of %d sites: a sum of fewer than 3 hides nothing from its parts", t.Minimum)
	case t.Quorum != 0 && t.Quorum < t.Minimum:
		return fail("a quorum of %d sites, of which a sum must hold %d", t.Quorum, t.Minimum)
	case sites < t.Minimum:
		return fail("%d sites, of which a sum must hold %d", sites, t.Minimum)
	case t.GroupSize != 0 && t.GroupSize < t.Minimum:
		return fail("groups of %d, of which a sum must hold %d", t.GroupSize, t.Minimum)
	case t.GroupSize == 0 && t.Rule != robust.Mean:
		return fail("the rule %s over one group: there is nothing to compare; divide the sites into groups", t.Rule)
	case t.Rule == robust.FLTrust:
		return fail("the rule %s needs a trusted update, which no party of a federation has yet", t.Rule)
	}
	if err := errors.Join(t.checkTasks(sites), t.checkPersonal()); err != nil {
		return fail("%v", err)
	}
	if !(t.Average >= 0 && t.Average < 1) {
		return fail("a moving average with a decay of %g: want 0 to less than 1", t.Average)
	}
	switch {
	case t.Naming == NamingOff && (t.Sketch != 0 || t.FalseNaming != 0):
		return fail("a sketch of %d numbers and a false naming of %g without naming", t.Sketch, t.FalseNaming)
	case t.Naming == NamingOff:
	case t.Naming != NamingReport && t.Naming != NamingExclude:
		return fail("the naming %q: want %s or %s, or none", t.Naming, NamingReport, NamingExclude)
	case t.Sketch < 16 || t.Sketch > 1<<16 || !(t.FalseNaming > 0 && t.FalseNaming < 1):
		return fail("sketches of %d numbers and a false naming of %g: want 16 to 65536, and more than 0 to less than 1", t.Sketch, t.FalseNaming)
	case t.DP != nil:
		return fail("naming with differential privacy: its noise is more than what a site adds")
	case t.groups(sites) < comparable:
		return fail("sites are named by comparing the sums of %d groups or more, and %d sites in groups of %d make %d", comparable, sites, t.GroupSize, t.groups(sites))
	}
	groups := t.groups(sites)
	if t.Bad < 0 || groups < rule.Least(t.Bad) {
		return fail("%d sites make %d groups; %s needs %d to stand %d bad ones", sites, groups, t.Rule, rule.Least(t.Bad), t.Bad)
	}
	if err := t.fixed(t.largest(sites)).Check(); err != nil {
		return fail("%v", err)
	}
	switch {
	case t.Down != 0 && t.Down != 16:
		return fail("weights of %d bits: want 0, for 32, or 16", t.Down)
	case t.Bits == 0 && t.Limit != 0:
		return fail("a limit of %g for numbers, which have all their bits", t.Limit)
	case t.Bits != 0 && (t.Bits < 12 || t.Bits > 31 || !positive(t.Limit) || t.Limit > t.Bound):
		return fail("numbers of %d bits up to %g: want 12 to 31 bits, and more than 0 up to the bound", t.Bits, t.Limit)
	case (t.Bits != 0 || t.Down != 0) && t.Algorithm == SCAFFOLD:
		return fail("fewer bits with scaffold, whose control variates have no limit")
	case t.Bits != 0 && t.DP != nil:
		return fail("fewer bits with noise, which has steps of its own")
	}
	if err := t.numbers(t.largest(sites)).Check(); err != nil {
		return fail("%v", err)
	}
	if err := t.checkPrivacy(sites); err != nil {
		return fail("%v", err)
	}
	return nil
}

// Least is how many of so many members must be asked for a round.
func (t Terms) Least(members int) int {
	if t.Quorum > 0 {
		return min(t.Quorum, members)
	}
	if t.GroupSize > 0 {
		return t.GroupSize
	}
	return max(t.Minimum, 2*members/3+1)
}

// together says whether an order is about one sum of all sites, which the quorum
// holds for.
func (t Terms) together(o Order, members int) bool {
	return t.GroupSize == 0 || o.Question != nil && members <= together
}

// groups is how many groups so many sites make.
func (t Terms) groups(sites int) int {
	if t.GroupSize == 0 {
		return 1
	}
	return max(1, sites/t.GroupSize)
}

// largest is the size of the largest group that so many sites, or fewer of them,
// are divided into: of sites that are not all there, 2·GroupSize−1 make one group.
func (t Terms) largest(sites int) int {
	if t.GroupSize == 0 {
		return sites
	}
	return min(sites, 2*t.GroupSize-1)
}

// fixed is how a group of so many sites writes numbers. A weight of 1 fits, too.
func (t Terms) fixed(group int) secagg.Fixed {
	return secagg.Fixed{Bound: max(1, t.Bound), Sites: group}
}

// numbers is how it writes those of an update.
func (t Terms) numbers(group int) secagg.Fixed {
	if t.Bits == 0 {
		return t.fixed(group)
	}
	return secagg.Fixed{Bound: t.Limit, Sites: group, Bits: t.Bits}
}

// Digest is the SHA-256 digest of the terms' JSON.
func (t Terms) Digest() [sha256.Size]byte {
	data, err := json.Marshal(t)
	if err != nil {
		panic("federate: " + err.Error()) // only for numbers that Check refuses
	}
	return sha256.Sum256(data)
}

// rate is the local rate of a round, from 0.
func (t Terms) rate(round int) float64 {
	share := 0.0
	if t.Rounds > 1 {
		share = float64(round) / float64(t.Rounds-1)
	}
	return t.FinalRate + (t.Rate-t.FinalRate)*(1+math.Cos(math.Pi*min(1, share)))/2
}

// recipe is how a site trains.
func (t Terms) recipe() train.Recipe {
	return train.Recipe{Batch: t.Batch, Parts: 1, Optimizer: "sgd", Momentum: t.Momentum, Decay: t.Decay, Augmentation: t.Augmentation}
}
