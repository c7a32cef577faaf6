package simulate

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/robust"
	"github.com/vigie/vigie/train"
)

// shapes is a set that a small network learns: bright squares in one half of the
// image or the other, in noise.
func shapes(n int, seed uint64) *train.Set {
	rng := rand.New(rand.NewPCG(seed, 0))
	const side = 8
	s := &train.Set{Name: "shapes", Channels: 1, Rows: side, Columns: side, Classes: 2, Pixels: make([]uint8, n*side*side)}
	for i := range n {
		class := i % 2
		s.Labels = append(s.Labels, class)
		image := s.Pixels[i*side*side : (i+1)*side*side]
		for j := range image {
			image[j] = uint8(rng.IntN(120))
		}
		row, column := rng.IntN(5)+1, rng.IntN(2)+5*class
		for y := range 2 {
			for x := range 2 {
				image[(row+y)*side+min(side-1, column+x)] += 110
			}
		}
	}
	return s
}

func options(t *testing.T) Options {
	t.Helper()
	network, err := train.CNN{Channels: 1, Rows: 8, Columns: 8, Classes: 2, Stages: [][]int{{4}, {8}}, GroupSize: 4, Hidden: 8, Mean: 0.25, Deviation: 0.2}.Build(rand.New(rand.NewPCG(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	terms := federate.DefaultTerms("test")
	terms.Rounds, terms.Batch, terms.Rate = 6, 16, 0.1
	return Options{Train: shapes(240, 1), Evaluation: shapes(120, 2), Network: network, Terms: terms, Sites: 5, Seed: 3}
}

func run(t *testing.T, o Options) *Report {
	t.Helper()
	r, err := Run(t.Context(), o)
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestVirtualSitesLearnTogetherAndTheSameWayAgain(t *testing.T) {
	o := options(t)
	o.Dirichlet, o.Dropout, o.Compare = 0.5, 0.1, true
	first, again := run(t, o), run(t, o)
	if first.AUC.Value < 0.9 {
		t.Errorf("AUC %v", first.AUC)
	}
	if first.AUC != again.AUC || first.Model == nil {
		t.Errorf("the same options give %v and %v", first.AUC, again.AUC)
	}
	total := 0
	for _, s := range first.Sites {
		total += s.Examples
		if s.Malicious || s.Alone == nil {
			t.Errorf("%+v", s)
		}
	}
	if total != 240 || first.Central == nil || first.Alone.Low > first.Alone.Value || first.Epsilon != nil {
		t.Errorf("%d examples at the sites; %+v, %+v", total, first.Central, first.Alone)
	}
	if over := float64(first.Traffic.Up) / float64(first.Ideal.Up); over < 0.9 || over > 1.2 {
		t.Errorf("%d bytes up, ideally %d", first.Traffic.Up, first.Ideal.Up)
	}
}

func TestEveryAttackMovesTheModelAndRulesHoldAgainstIt(t *testing.T) {
	o := options(t)
	o.Terms.Rounds = 2
	clean := run(t, o)
	for _, row := range Attacks() {
		attacked := o
		attacked.Malicious, attacked.Attack = 2, row.Name
		r := run(t, attacked)
		bad := 0
		for _, s := range r.Sites {
			if s.Malicious {
				bad++
			}
		}
		if bad != 2 || r.Strength != row.Strength {
			t.Errorf("%s: %d malicious sites, strength %g", row.Name, bad, r.Strength)
		}
		if r.Rounds[1].Length == clean.Rounds[1].Length {
			t.Errorf("%s: the updates are as without an attack", row.Name)
		}
	}
	if testing.Short() {
		return
	}
	// nine sites in three groups, one of them malicious: the group that has it is
	// held against most
	o.Sites, o.Malicious, o.Attack = 9, 1, SignFlip
	o.Strength, o.Terms.Rounds = 20, 4
	o.Terms.GroupSize, o.Terms.Rule, o.Terms.Bad = 3, robust.Median, 1
	r := run(t, o)
	worst := slices.MaxFunc(r.Sites, func(a, b SiteReport) int {
		if a.Held < b.Held {
			return -1
		}
		return 1
	})
	if !worst.Malicious {
		t.Errorf("most is held against %s, which is honest", worst.Name)
	}
}

func TestADivisionIsOneAndKeepsPeopleTogether(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := shapes(rapid.IntRange(80, 200).Draw(t, "examples"), 1)
		s.Patients = make([]string, s.Len())
		for i := range s.Patients {
			s.Patients[i] = string(rune('A' + i%60))
		}
		n := rapid.IntRange(1, 6).Draw(t, "sites")
		alpha := rapid.SampledFrom([]float64{0, 0.5, 100}).Draw(t, "alpha")
		sites, err := Divide(s, n, alpha, rapid.Uint64().Draw(t, "seed"))
		if err != nil {
			t.Fatal(err)
		}
		seen, home := map[int]bool{}, map[string]int{}
		for k, site := range sites {
			people := map[string]bool{}
			for _, i := range site {
				if seen[i] {
					t.Fatalf("example %d is at two sites", i)
				}
				seen[i] = true
				if other, met := home[s.Patients[i]]; met && other != k {
					t.Fatalf("patient %s is at two sites", s.Patients[i])
				}
				home[s.Patients[i]] = k
				people[s.Patients[i]] = true
			}
			if len(people) < least {
				t.Fatalf("site %d has %d people", k, len(people))
			}
		}
		if len(seen) != s.Len() {
			t.Fatalf("%d of %d examples are at a site", len(seen), s.Len())
		}
	})
}

func TestSmallerParametersMakeSitesThatDifferMore(t *testing.T) {
	s := shapes(2000, 1)
	spread := func(alpha float64) float64 {
		sites, err := Divide(s, 10, alpha, 7)
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for _, site := range sites {
			positive := 0
			for _, i := range site {
				positive += s.Labels[i]
			}
			d := float64(positive)/float64(len(site)) - 0.5
			sum += d * d
		}
		return math.Sqrt(sum / 10)
	}
	if equal, wide, narrow := spread(0), spread(100), spread(0.5); equal > 0.01 || !(wide < narrow) || narrow < 0.1 {
		t.Errorf("the share of a class differs by %.3f with equal shares, %.3f with 100, %.3f with 0.5", equal, wide, narrow)
	}
	// Gamma(a) has mean a and variance a
	rng := rand.New(rand.NewPCG(1, 1))
	for _, a := range []float64{0.5, 1, 3} {
		sum, squares := 0.0, 0.0
		const n = 50_000
		for range n {
			x := gamma(rng, a)
			sum += x
			squares += x * x
		}
		mean := sum / n
		if math.Abs(mean-a) > 0.05*a || math.Abs(squares/n-mean*mean-a) > 0.08*a {
			t.Errorf("Gamma(%g): mean %g, variance %g", a, mean, squares/n-mean*mean)
		}
	}
}

func TestReachIsAsFarAsThePaperAllows(t *testing.T) {
	rows := [][]float32{{0, 0}, {2, 0}, {0, 2}, {2, 2}}
	mean, deviation := moments(rows)
	if !slices.Equal(mean, []float32{1, 1}) || !slices.Equal(deviation, []float32{1, 1}) {
		t.Fatalf("mean %v, deviation %v", mean, deviation)
	}
	// min-max: mean − γ·(1,1) is farthest from (2,2): √2·(1+γ) ≤ √8, so γ = 1
	if got := reach(rows, mean, deviation, false); math.Abs(got-1) > 1e-6 {
		t.Errorf("min-max reaches %v, want 1", got)
	}
	// min-sum: Σ‖·‖² = 8 + 8γ² ≤ 16, so γ = 1
	if got := reach(rows, mean, deviation, true); math.Abs(got-1) > 1e-6 {
		t.Errorf("min-sum reaches %v, want 1", got)
	}
}

func TestASimulationThatCannotBeRunIsRefused(t *testing.T) {
	for what, change := range map[string]func(*Options){
		"no data":               func(o *Options) { o.Train = nil },
		"half are malicious":    func(o *Options) { o.Malicious, o.Attack = 3, SignFlip },
		"an unknown attack":     func(o *Options) { o.Malicious, o.Attack = 1, "magic" },
		"everybody silent":      func(o *Options) { o.Dropout = 1 },
		"too many sites":        func(o *Options) { o.Sites = 100 },
		"a negative dirichlet":  func(o *Options) { o.Dirichlet = -1 },
		"terms out of range":    func(o *Options) { o.Terms.Rate = 0 },
		"an infinite strength":  func(o *Options) { o.Strength = math.Inf(1) },
		"a site with no people": func(o *Options) { o.Dirichlet = 1e-9 },
	} {
		o := options(t)
		change(&o)
		if _, err := Run(t.Context(), o); err == nil || errors.Is(err, engine.ErrNoRuntime) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, text := range []string{"alie", "x:alie", "0:alie", "3:magic", "3:alie:much", "3:alie:-1", "3:alie:1:2"} {
		var o Options
		if err := o.ParseMalicious(text); err == nil {
			t.Errorf("%q was read as %d %s %g", text, o.Malicious, o.Attack, o.Strength)
		}
	}
	var o Options
	if err := o.ParseMalicious("3:alie:1.5"); err != nil || o.Malicious != 3 || o.Attack != ALIE || o.Strength != 1.5 {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestASimulationLeavesATranscriptThatReplaysToItsModel(t *testing.T) {
	o := options(t)
	o.Terms.Rounds, o.Dropout, o.Transcript = 3, 0.2, t.TempDir()
	r := run(t, o)
	_, key, err := federate.ReadHeader(o.Transcript)
	if err != nil {
		t.Fatal(err)
	}
	replayed, err := federate.ReplayRun(t.Context(), federate.ReplayOptions{Dir: o.Transcript, Coordinator: key})
	if err != nil {
		t.Fatal(err)
	}
	if err := replayed.CheckModel(r.Model); err != nil {
		t.Error(err)
	}
	for i, s := range r.Sites {
		if s.Sums != len(replayed.Sites[i].Rounds) {
			t.Errorf("%s was in %d sums, the transcript says %d", s.Name, s.Sums, len(replayed.Sites[i].Rounds))
		}
	}
}
