package simulate

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/train"
)

// Personal is a simulation of sites each of which is judged on examples of its
// own: by the global model, by one whose parts of Terms.Personal stay at the site,
// and by what it learns alone.
type Personal struct {
	Options
	// Held is the share of a site's examples that it is judged on.
	Held float64
	// Scanners gives each site a scanner of its own: its images differ in contrast
	// and brightness, by up to a third.
	Scanners bool
}

// PersonalReport is what came of it.
type PersonalReport struct {
	Terms     federate.Terms `json:"terms"`
	Data      string         `json:"data"`
	Dirichlet float64        `json:"dirichlet"`
	Seed      uint64         `json:"seed"`
	Scanners  bool           `json:"scanners"`
	Shared    int            `json:"shared_variables"`
	Own       int            `json:"own_variables"`
	Sites     []PersonalSite `json:"sites"`
	// Means of the sites' AUCs, over the sites whose own examples have both classes.
	Judged   int     `json:"sites_judged"`
	Global   float64 `json:"global"`
	Personal float64 `json:"personal"`
	Alone    float64 `json:"alone"`
	// Gain is the mean of personal less global, with a 95 % interval from its spread
	// over the sites (normal).
	Gain    train.Interval `json:"gain"`
	Seconds float64        `json:"seconds"`
}

// PersonalSite is a site of it. AUCs are on its own held examples; nil where those
// are of one class.
type PersonalSite struct {
	Name     string   `json:"name"`
	Examples int      `json:"examples"`
	Held     int      `json:"held"`
	Global   *float64 `json:"global,omitempty"`
	Personal *float64 `json:"personal,omitempty"`
	Alone    *float64 `json:"alone,omitempty"`
}

// Run simulates twice, with and without personal parts, on the same division.
func (o Personal) Run(ctx context.Context) (*PersonalReport, error) {
	start := time.Now()
	fail := func(format string, arguments ...any) (*PersonalReport, error) {
		return nil, fmt.Errorf("simulate: %w: %s", ErrOptions, fmt.Sprintf(format, arguments...))
	}
	switch {
	case o.Train == nil || o.Network == nil:
		return fail("a set to train on and a network are needed")
	case len(o.Terms.Personal) == 0:
		return fail("no part of the model stays at its site")
	case !(o.Held > 0 && o.Held < 1):
		return fail("a share of %g to judge on: want more than 0 and less than 1", o.Held)
	case o.Malicious > 0 || o.Dropout > 0 || o.Program != "":
		return fail("malicious sites, failures and programs have no part in this comparison")
	case o.Scanners && o.Train.Pixels == nil:
		return fail("scanners are for images")
	}
	if err := o.Terms.Check(o.Sites); err != nil {
		return nil, err
	}
	division, err := Divide(o.Train, o.Sites, o.Dirichlet, o.Seed)
	if err != nil {
		return nil, err
	}
	r := &PersonalReport{Terms: o.Terms, Data: o.Train.Name, Dirichlet: o.Dirichlet, Seed: o.Seed, Scanners: o.Scanners}
	var learnt, held []*train.Set
	rng := rand.New(rand.NewPCG(o.Seed, 0x5ca7))
	for i, at := range division {
		set := o.Train.Subset(at)
		if o.Scanners {
			set = scanned(set, rng)
		}
		set.Name = fmt.Sprintf("site-%04d", i)
		one, other := apart(set, o.Held, rng)
		learnt, held = append(learnt, one), append(held, other)
		r.Sites = append(r.Sites, PersonalSite{Name: set.Name, Examples: one.Len(), Held: other.Len()})
	}
	common := o.Terms
	common.Personal = nil
	if _, _, err := o.federate(ctx, common, learnt, held, func(i int, auc *float64) { r.Sites[i].Global = auc }); err != nil {
		return nil, err
	}
	if r.Shared, r.Own, err = o.federate(ctx, o.Terms, learnt, held, func(i int, auc *float64) { r.Sites[i].Personal = auc }); err != nil {
		return nil, err
	}
	if err := o.alone(ctx, common, learnt, held, r); err != nil {
		return nil, err
	}
	var gains []float64
	for _, s := range r.Sites {
		if s.Global == nil || s.Personal == nil {
			continue
		}
		gains = append(gains, *s.Personal-*s.Global)
		r.Global += *s.Global
		r.Personal += *s.Personal
		r.Alone += *s.Alone
	}
	if r.Judged = len(gains); r.Judged == 0 {
		return fail("no site's own examples have both classes")
	}
	n := float64(r.Judged)
	r.Global, r.Personal, r.Alone = r.Global/n, r.Personal/n, r.Alone/n
	spread := 0.0
	for _, g := range gains {
		r.Gain.Value += g / n
	}
	for _, g := range gains {
		spread += (g - r.Gain.Value) * (g - r.Gain.Value)
	}
	half := 1.0 // of one site nothing is known
	if n > 1 {
		half = 1.959963984540054 * math.Sqrt(spread/(n-1)/n)
	}
	r.Gain.Low, r.Gain.High = r.Gain.Value-half, r.Gain.Value+half
	r.Seconds = time.Since(start).Seconds()
	return r, nil
}

// apart divides a site's examples by person, each class by itself, so that as
// many sites as can be have both classes on both sides.
func apart(s *train.Set, share float64, rng *rand.Rand) (learnt, held *train.Set) {
	var people [][]int
	known := map[string]int{}
	for i := range s.Len() {
		person := s.Person(i)
		at, met := known[person]
		if !met {
			at = len(people)
			known[person] = at
			people = append(people, nil)
		}
		people[at] = append(people[at], i)
	}
	rng.Shuffle(len(people), func(i, j int) { people[i], people[j] = people[j], people[i] })
	class := func(p []int) int {
		for c := range s.Classes {
			if s.Has(p[0], c) {
				return c
			}
		}
		return s.Classes
	}
	slices.SortStableFunc(people, func(a, b []int) int { return class(a) - class(b) })
	var ins, outs []int
	due := 0.0
	for _, p := range people {
		if due += share; due >= 1-1e-9 {
			due--
			outs = append(outs, p...)
		} else {
			ins = append(ins, p...)
		}
	}
	slices.Sort(ins)
	slices.Sort(outs)
	return s.Subset(ins), s.Subset(outs)
}

// scanned is a set of images as another scanner would show them.
func scanned(s *train.Set, rng *rand.Rand) *train.Set {
	out := *s
	contrast, brightness := 1+(2*rng.Float64()-1)/3, 255*(2*rng.Float64()-1)/3
	out.Pixels = make([]uint8, len(s.Pixels))
	for i, p := range s.Pixels {
		out.Pixels[i] = uint8(max(0, min(255, math.Round(contrast*(float64(p)-127.5)+127.5+brightness))))
	}
	return &out
}

// federate trains at all sites under the terms and tells what each site's own
// model is worth on what it holds.
func (o Personal) federate(ctx context.Context, terms federate.Terms, learnt, held []*train.Set, tell func(int, *float64)) (shared, own int, err error) {
	engine, err := federate.NewEngine(o.Network, terms, o.Train, o.Kernels)
	if err != nil {
		return 0, 0, err
	}
	defer engine.Close()
	initial, trained := engine.Variables()
	var members []secagg.Member
	var signers []ed25519.PrivateKey
	rng := rand.New(rand.NewPCG(o.Seed, 0x9e5))
	for i := range learnt {
		var seed [ed25519.SeedSize]byte
		for j := range seed {
			seed[j] = byte(rng.Uint32())
		}
		signers = append(signers, ed25519.NewKeyFromSeed(seed[:]))
		members = append(members, secagg.Member{Name: fmt.Sprintf("site-%04d", i), Key: signers[i].Public().(ed25519.PublicKey)})
	}
	var links []federate.Link
	var sites []*federate.Site
	for i, set := range learnt {
		site, err := federate.NewSite(federate.SiteOptions{Name: members[i].Name, Terms: terms, Members: members, Signer: signers[i], Trainer: engine.Trainer(set), Seed: o.Seed<<20 + uint64(i)})
		if err != nil {
			return 0, 0, err
		}
		sites, links = append(sites, site), append(links, federate.Direct(site))
	}
	c, err := federate.NewCoordinator(federate.CoordinatorOptions{Terms: terms, Members: members, Variables: initial, Trained: trained, Parallel: runtime.GOMAXPROCS(0)})
	if err != nil {
		return 0, 0, err
	}
	defer c.Settle()
	failed := 0
	for !c.Done() {
		out, err := c.Round(ctx, links)
		if ctx.Err() != nil {
			return 0, 0, ctx.Err()
		}
		if err != nil {
			if failed++; failed >= 3 {
				return 0, 0, fmt.Errorf("simulate: three attempts in a row had no result: %w", err)
			}
			continue
		}
		failed = 0
		if o.Progress != nil {
			o.Progress(Round{Outcome: out, Rounds: terms.Rounds})
		}
	}
	for i, site := range sites {
		own = len(site.Own())
		auc, err := siteAUC(ctx, engine, federate.Subject{Variables: c.Weights().Variables, Own: site.Own()}, held[i])
		if err != nil {
			return 0, 0, err
		}
		tell(i, auc)
	}
	return len(initial), own, nil
}

// alone trains at every site by itself.
func (o Personal) alone(ctx context.Context, terms federate.Terms, learnt, held []*train.Set, r *PersonalReport) error {
	engine, err := federate.NewEngine(o.Network, terms, o.Train, o.Kernels)
	if err != nil {
		return err
	}
	defer engine.Close()
	for i, set := range learnt {
		if r.Sites[i].Global == nil {
			continue
		}
		initial, _ := engine.Variables()
		x, err := alone(ctx, terms, engine.Trainer(set), initial, o.Seed<<20+uint64(i))
		if err != nil {
			return err
		}
		if r.Sites[i].Alone, err = siteAUC(ctx, engine, federate.Subject{Variables: x}, held[i]); err != nil {
			return err
		}
	}
	return nil
}

// siteAUC is nil for a set that lacks a class.
func siteAUC(ctx context.Context, e *federate.Engine, of federate.Subject, s *train.Set) (*float64, error) {
	for class := range s.Classes {
		positives := 0
		for i := range s.Len() {
			if s.Has(i, class) {
				positives++
			}
		}
		if positives == 0 || positives == s.Len() {
			return nil, nil
		}
	}
	logits, err := e.LogitsOf(ctx, of, s)
	if err != nil {
		return nil, err
	}
	auc, err := s.MeanAUC(logits)
	if err != nil {
		return nil, err
	}
	return &auc, nil
}

// Write writes the report for a person.
func (r *PersonalReport) Write(w io.Writer) error {
	var b strings.Builder
	var parts []string
	for _, p := range r.Terms.Personal {
		parts = append(parts, string(p))
	}
	scanners := ""
	if r.Scanners {
		scanners = ", each with a scanner of its own"
	}
	fmt.Fprintf(&b, "%s, %d rounds, %d sites%s, seed %d; %s stays at its site: %d of %d variables\n", r.Terms.Algorithm, r.Terms.Rounds, len(r.Sites), scanners, r.Seed, strings.Join(parts, " and "), r.Own, r.Own+r.Shared)
	fmt.Fprintf(&b, "mean AUC of the %d sites whose own held examples have all classes:\n", r.Judged)
	fmt.Fprintf(&b, "global    %.4f\npersonal  %.4f  (%+.4f, 95 %% %+.4f to %+.4f)\nalone     %.4f\n", r.Global, r.Personal, r.Gain.Value, r.Gain.Low, r.Gain.High, r.Alone)
	fmt.Fprintf(&b, "%.0f s\n", r.Seconds)
	_, err := io.WriteString(w, b.String())
	return err
}
