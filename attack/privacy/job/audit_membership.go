package job

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/attack/privacy"
	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/train"
)

// recorder keeps the variables that a site's own training led to: what a server
// would see of a site whose update nothing hides.
type recorder struct {
	federate.Trainer
	last []float32
}

func (t *recorder) Train(ctx context.Context, w federate.Work) (int, float64, error) {
	steps, loss, err := t.Trainer.Train(ctx, w)
	t.last = slices.Clone(w.Variables)
	return steps, loss, err
}

// federated are shadow federations: of each, what the two views answer.
type federated struct {
	global privacy.Shadows
	local  privacy.Shadows // of each person, the model of the site that it would be at
}

// membership trains federations of random halves of the people, through the
// protocol, and attacks each with the others' help.
func (a *auditor) membership(ctx context.Context, c *consortium) ([]AuditMember, error) {
	pool, site := a.people()
	out := []AuditMember{}
	views, err := a.federations(ctx, c, pool, site, "membership, "+string(SecureSum))
	if err != nil {
		return nil, err
	}
	for _, v := range []struct {
		protection Protection
		view       string
		shadows    privacy.Shadows
	}{{Unprotected, viewLocal, views.local}, {SecureSum, viewGlobal, views.global}} {
		m, err := a.compare(pool, v.shadows)
		if err != nil {
			return nil, err
		}
		m.Protection, m.View = v.protection, v.view
		out = append(out, *m)
	}
	return out, nil
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

func (a *auditor) federations(ctx context.Context, c *consortium, pool *train.Set, site []int, stage string) (*federated, error) {
	out := &federated{}
	out.global.Queries, out.local.Queries = 1, 1
	out.global.In = assign(pool, a.Shadows, 0.5, a.Seed)
	out.local.In = out.global.In
	engine, err := federate.NewEngine(a.network, c.terms, a.set, a.Kernels)
	if err != nil {
		return nil, err
	}
	defer engine.Close()
	start, trained := engine.Variables()
	for k := range a.Shadows {
		var sites []*recorder
		var links []federate.Link
		for s := range a.Sites {
			var at []int
			for i, in := range out.global.In[k] {
				if in && site[i] == s {
					at = append(at, i)
				}
			}
			if len(at) == 0 {
				return nil, errTooFewPeople(a.People, a.Sites)
			}
			t := &recorder{Trainer: engine.Trainer(pool.Subset(at))}
			made, err := c.site(s, t, a.Seed<<20+uint64(k)<<8+uint64(s), nil)
			if err != nil {
				return nil, err
			}
			sites, links = append(sites, t), append(links, federate.Direct(made))
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
		signal := func(variables []float32) ([]float64, error) {
			z, err := engine.Logits(ctx, variables, pool)
			if err != nil {
				return nil, err
			}
			return privacy.Signal(both(z), pool.Labels)
		}
		global, err := signal(coordinator.Weights().Variables)
		if err != nil {
			return nil, err
		}
		local := make([]float64, pool.Len())
		for s, t := range sites {
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
	var who []int
	for k := range s.Signals {
		target, in, rest := s.LeaveOut(k)
		each, err := privacy.LiRAOnline(target, rest, privacy.AutoVariance)
		if err != nil {
			return nil, err
		}
		scores, losses = append(scores, each...), append(losses, privacy.Loss(target, 1)...)
		member, who = append(member, in...), append(who, of...)
	}
	out := &AuditMember{People: pool.Len(), Federations: a.Shadows, Rounds: a.MemRounds}
	var err error
	if out.ROC, err = privacy.Compare(scores, member, who, a.Seed); err != nil {
		return nil, err
	}
	if out.Loss, err = privacy.Compare(losses, member, who, a.Seed); err != nil {
		return nil, err
	}
	out.ROC.Points, out.Loss.Points = nil, nil
	return out, nil
}

func errTooFewPeople(people, sites int) error {
	return fmt.Errorf("job: membership of %d people at %d sites: %w: a site has none of them in a half; ask of more", people, sites, ErrAsk)
}
