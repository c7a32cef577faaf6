package job

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/attack/privacy"
	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/train"
)

// federated are shadow federations: of each, what the two views answer.
type federated struct {
	global privacy.Shadows
	local  privacy.Shadows // of each person, the model of the site that it would be at
}

// membership trains federations of random halves of the people, through the
// protocol, and attacks each with the others' help.
func (a *auditor) membership(ctx context.Context) ([]AuditMember, error) {
	pool, site := a.people()
	out := []AuditMember{}
	add := func(p Protection, view string, pool *train.Set, s privacy.Shadows) error {
		m, err := a.compare(pool, s)
		if err != nil {
			return err
		}
		m.Protection, m.View = p, view
		out = append(out, *m)
		return nil
	}
	plain, err := a.federations(ctx, a.plain, pool, site, false, "membership, no noise")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(add(Unprotected, viewLocal, pool, plain.local), add(SecureSum, viewGlobal, pool, plain.global)); err != nil {
		return nil, err
	}
	if a.private == nil {
		return out, nil
	}
	// Without the masks of the others, a site's noisy updates can be followed alone.
	var first []int
	for i, s := range site {
		if s == 0 {
			first = append(first, i)
		}
	}
	own := pool.Subset(first)
	alone, err := a.federations(ctx, a.private, own, make([]int, own.Len()), true, "membership, "+string(Private))
	if err != nil {
		return nil, err
	}
	both, err := a.federations(ctx, a.private, pool, site, false, "membership, "+string(SumAndDP))
	if err != nil {
		return nil, err
	}
	return out, errors.Join(add(Private, viewAlone, own, alone.global), add(SumAndDP, viewGlobal, pool, both.global))
}

// people are those whose membership is asked, and at which site each would be.
func (a *auditor) people() (*train.Set, []int) {
	rng := rand.New(rand.NewPCG(a.Seed, 0x3e0b))
	at := rng.Perm(a.set.Len())
	at = at[:min(len(at), a.People)]
	slices.Sort(at)
	pool := a.set.Subset(at)
	pool.Name = "pool"
	site := make([]int, pool.Len())
	of := map[string]int{}
	for i := range site {
		who := pool.Person(i)
		if _, known := of[who]; !known {
			of[who] = len(of) % a.Sites
		}
		site[i] = of[who]
	}
	return pool, site
}

// halves decides who is in which federation. People of a class at a site are in
// pairs, of which each federation has one: otherwise the halves would differ in how
// many of a class they have, and a model that tells that would look as if it told of
// a person.
func (a *auditor) halves(pool *train.Set, site []int) [][]bool {
	in := make([][]bool, a.Shadows)
	for m := range in {
		in[m] = make([]bool, pool.Len())
	}
	of := map[string][]int{} // examples of a person
	var kinds [][]string     // persons by class of their first example, and site
	for i := range pool.Len() {
		who := pool.Person(i)
		if of[who] == nil {
			kind := site[i]*pool.Classes + pool.Labels[i]
			for len(kinds) <= kind {
				kinds = append(kinds, nil)
			}
			kinds[kind] = append(kinds[kind], who)
		}
		of[who] = append(of[who], i)
	}
	rng := rand.New(rand.NewPCG(a.Seed, 0x4a1f))
	for _, people := range kinds {
		rng.Shuffle(len(people), func(i, j int) { people[i], people[j] = people[j], people[i] })
		var chosen []bool
		for k, who := range people {
			if k%2 == 0 {
				chosen = make([]bool, a.Shadows)
				for _, m := range rng.Perm(a.Shadows)[:a.Shadows/2] {
					chosen[m] = true
				}
			}
			for m := range in {
				for _, i := range of[who] {
					in[m][i] = chosen[m] == (k%2 == 0)
				}
			}
		}
	}
	return in
}

// federations trains them. alone: all people are at the first site, the others work
// for the server.
func (a *auditor) federations(ctx context.Context, c *consortium, pool *train.Set, site []int, alone bool, stage string) (*federated, error) {
	out := &federated{}
	out.global.Queries, out.local.Queries = 1, 1
	out.global.In = a.halves(pool, site)
	out.local.In = out.global.In
	engine, err := federate.NewEngine(a.network, c.terms, a.set, a.Kernels)
	if err != nil {
		return nil, err
	}
	defer engine.Close()
	start, trained := engine.Variables()
	for k := range a.Shadows {
		var sites []*learner
		var links []federate.Link
		for s := range a.Sites {
			var at []int
			for i, in := range out.global.In[k] {
				if in && site[i] == s {
					at = append(at, i)
				}
			}
			var tamper func(*federate.Draft)
			if alone && s > 0 {
				at, tamper = []int{0}, accomplice // which adds nothing
			}
			if len(at) == 0 {
				return nil, errTooFewPeople(a.People, a.Sites)
			}
			t := newLearner(engine, pool, at)
			made, err := c.site(s, t, a.Seed<<24+uint64(k)<<8, tamper)
			if err != nil {
				return nil, err
			}
			sites, links = append(sites, t.(interface{ record() *learner }).record()), append(links, federate.Direct(made))
		}
		coordinator, err := federate.NewCoordinator(federate.CoordinatorOptions{Terms: c.terms, Members: c.members, Variables: start, Trained: trained, Parallel: 1})
		if err != nil {
			return nil, err
		}
		for range a.MemRounds {
			if _, err := coordinator.Round(ctx, links); err != nil {
				return nil, err
			}
		}
		signal := func(of federate.Subject) ([]float64, error) {
			z, err := engine.LogitsOf(ctx, of, pool)
			if err != nil {
				return nil, err
			}
			return privacy.Signal(both(z), pool.Labels)
		}
		global, err := signal(federate.Subject{Variables: coordinator.Weights().Variables})
		if err != nil {
			return nil, err
		}
		local := make([]float64, pool.Len())
		for s, t := range sites {
			if t.last.Variables == nil { // under privacy a site has no model of its own
				continue
			}
			own, err := signal(t.last)
			if err != nil {
				return nil, err
			}
			for i := range local {
				if site[i] == s {
					local[i] = own[i]
				}
			}
		}
		out.global.Signals, out.local.Signals = append(out.global.Signals, global), append(out.local.Signals, local)
		a.Progress(stage, float64(k+1)/float64(a.Shadows))
	}
	return out, nil
}

// both writes one logit, of class 1 of two, as two.
func both(z [][]float64) [][]float64 {
	out := make([][]float64, len(z))
	for i, v := range z {
		if out[i] = v; len(v) == 1 {
			out[i] = []float64{0, v[0]}
		}
	}
	return out
}

// compare attacks each federation with the others' help.
func (a *auditor) compare(pool *train.Set, s privacy.Shadows) (*AuditMember, error) {
	of := persons(pool)
	var scores, losses []float64
	var member []bool
	var who, where []int
	for k := range s.Signals {
		target, in, rest := s.LeaveOut(k)
		each, err := privacy.LiRAOnline(target, rest, privacy.AutoVariance)
		if err != nil {
			return nil, err
		}
		scores, losses = append(scores, each...), append(losses, privacy.Loss(target, 1)...)
		member, who = append(member, in...), append(who, of...)
		for range in {
			where = append(where, k)
		}
	}
	out := &AuditMember{People: pool.Len(), Federations: a.Shadows, Rounds: a.MemRounds}
	var err error
	if out.ROC, err = a.widest(scores, member, who, where); err != nil {
		return nil, err
	}
	out.Loss, err = a.widest(losses, member, who, where)
	return out, err
}

// widest has the wider ends of the bootstrap over persons and of that over
// federations: the scores of one federation are not independent either.
func (a *auditor) widest(scores []float64, member []bool, who, where []int) (*privacy.ROC, error) {
	out, err := privacy.Compare(scores, member, who, a.Seed)
	if err != nil {
		return nil, err
	}
	other, err := privacy.Compare(scores, member, where, a.Seed)
	if err != nil {
		return nil, err
	}
	wider := func(v *train.Interval, o train.Interval) { v.Low, v.High = min(v.Low, o.Low), max(v.High, o.High) }
	wider(&out.AUC, other.AUC)
	for i := range out.Rates {
		wider(&out.Rates[i].TPR, other.Rates[i].TPR)
	}
	out.Points = nil
	return out, nil
}

func errTooFewPeople(people, sites int) error {
	return fmt.Errorf("job: membership of %d people at %d sites: %w: a site has none of them in a half; ask of more", people, sites, ErrAsk)
}
