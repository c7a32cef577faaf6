package dp

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"
)

// The vectors were computed with Google's dp_accounting; they are facts that
// stay outside the repository.
func vectors(t *testing.T) []map[string]float64 {
	t.Helper()
	dir := os.Getenv("VIGIE_DATA")
	if dir == "" {
		dir = filepath.Join("..", "..", "shared", "data")
	}
	data, err := os.ReadFile(filepath.Join(dir, "dp_vectors.json"))
	if err != nil {
		t.Skipf("SKIPPED: the reference epsilons are not here (%v); set VIGIE_DATA", err)
	}
	var file struct{ Vectors []map[string]float64 }
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) == 0 {
		t.Fatal("no vectors in dp_vectors.json")
	}
	return file.Vectors
}

func TestBothAccountantsAgreeWithTheReference(t *testing.T) {
	for _, v := range vectors(t) {
		run := Run{Sigma: v["sigma"], Rate: v["q"], Steps: int(v["steps"])}
		rdp, err := RDP{}.Epsilon(run, v["delta"])
		if err != nil {
			t.Fatal(err)
		}
		// Opacus evaluates the same formula; dp_accounting is looser at small
		// fractional orders, so it is only an upper limit.
		if want := v["opacus_rdp"]; math.Abs(rdp-want) > 1e-3 {
			t.Errorf("%+v: RDP epsilon %v, Opacus %v", run, rdp, want)
		}
		if limit := v["dp_accounting_rdp"]; rdp > limit+1e-3 {
			t.Errorf("%+v: RDP epsilon %v above dp_accounting's %v", run, rdp, limit)
		}
		pld, err := PLD{}.Epsilon(run, v["delta"])
		if err != nil {
			t.Fatal(err)
		}
		want := v["dp_accounting_pld"]
		t.Logf("%+v: PLD %.6f, reference %.6f (%+.2e); RDP %.6f", run, pld, want, pld-want, rdp)
		if pld < want || pld > want+0.02 {
			t.Errorf("%+v: PLD epsilon %v, want within [%v, %v]", run, pld, want, want+0.02)
		}
	}
}

// Without sampling the exact curve is known in closed form (Balle and Wang 2018,
// theorem 8), and n steps are one step with sigma/√n.
func TestWithoutSamplingThePLDIsTheExactGaussianCurve(t *testing.T) {
	exactDelta := func(epsilon, sigma float64) float64 {
		phi := func(x float64) float64 { return 0.5 * math.Erfc(-x/math.Sqrt2) }
		return phi(0.5/sigma-epsilon*sigma) - math.Exp(epsilon)*phi(-0.5/sigma-epsilon*sigma)
	}
	rapid.Check(t, func(t *rapid.T) {
		sigma := rapid.Float64Range(2, 60).Draw(t, "sigma")
		steps := rapid.IntRange(1, 12).Draw(t, "steps")
		delta := math.Pow(10, -rapid.Float64Range(3, 7).Draw(t, "digits"))
		epsilon, err := PLD{}.Epsilon(Run{Sigma: sigma, Rate: 1, Steps: steps}, delta)
		if err != nil {
			t.Fatal(err)
		}
		single := sigma / math.Sqrt(float64(steps))
		if exactDelta(epsilon, single) > delta*(1+1e-6) {
			t.Fatalf("epsilon %v is below the truth: its exact delta is %v > %v", epsilon, exactDelta(epsilon, single), delta)
		}
		if epsilon > 1e-3 && exactDelta(epsilon-1e-3, single) < delta {
			t.Fatalf("epsilon %v is loose by more than 1e-3", epsilon)
		}
	})
}

func TestMoreNoiseFewerStepsOrRarerSamplingNeverCostMore(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		run := Run{
			Sigma: rapid.Float64Range(0.7, 4).Draw(t, "sigma"),
			Rate:  rapid.Float64Range(0.001, 0.2).Draw(t, "rate"),
			Steps: rapid.IntRange(1, 500).Draw(t, "steps"),
		}
		for name, accountant := range map[string]Accountant{"RDP": RDP{}, "PLD": PLD{Interval: 1e-3}} {
			epsilon := func(r Run) float64 {
				e, err := accountant.Epsilon(r, 1e-5)
				if err != nil {
					t.Fatal(err)
				}
				return e
			}
			base := epsilon(run)
			cheaper := []Run{run, run, run}
			cheaper[0].Sigma *= 1.2
			cheaper[1].Rate /= 1.5
			cheaper[2].Steps = (run.Steps + 1) / 2
			for _, r := range cheaper {
				if got := epsilon(r); got > base+1e-6 {
					t.Fatalf("%s: %+v costs %v, more than %+v at %v", name, r, got, run, base)
				}
			}
		}
	})
}

func TestTheRenyiBoundIsNeverBelowTheTightOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		run := Run{
			Sigma: rapid.Float64Range(0.6, 5).Draw(t, "sigma"),
			Rate:  rapid.Float64Range(0.001, 0.5).Draw(t, "rate"),
			Steps: rapid.IntRange(1, 1000).Draw(t, "steps"),
		}
		rdp, err := RDP{}.Epsilon(run, 1e-5)
		if err != nil {
			t.Fatal(err)
		}
		pld, err := PLD{Interval: 1e-3}.Epsilon(run, 1e-5)
		if err != nil {
			t.Fatal(err)
		}
		if pld > rdp+2e-2 {
			t.Fatalf("%+v: PLD %v above RDP %v", run, pld, rdp)
		}
	})
}

func TestNonsenseIsRefusedWithTheReason(t *testing.T) {
	for _, run := range []Run{{0, 0.1, 1}, {-1, 0.1, 1}, {math.NaN(), 0.1, 1}, {1, 0, 1}, {1, 1.5, 1}, {1, math.NaN(), 1}, {1, 0.1, -1}} {
		if _, err := (PLD{}).Epsilon(run, 1e-5); !errors.Is(err, ErrRun) {
			t.Errorf("PLD accepted %+v (%v)", run, err)
		}
		if _, err := (RDP{}).Epsilon(run, 1e-5); !errors.Is(err, ErrRun) {
			t.Errorf("RDP accepted %+v (%v)", run, err)
		}
	}
	for _, delta := range []float64{0, 1, -1, math.NaN()} {
		if _, err := (PLD{}).Epsilon(Run{1, 0.1, 1}, delta); !errors.Is(err, ErrRun) {
			t.Errorf("delta %v accepted (%v)", delta, err)
		}
	}
}

func TestThePlannerInvertsTheAccountant(t *testing.T) {
	want := Run{Sigma: 1.3, Rate: 0.02, Steps: 800}
	epsilon, err := PLD{}.Epsilon(want, 1e-5)
	if err != nil {
		t.Fatal(err)
	}
	for _, missing := range []string{"sigma", "rate", "steps", "epsilon"} {
		plan := Plan{Epsilon: epsilon, Delta: 1e-5, Run: want}
		switch missing {
		case "sigma":
			plan.Run.Sigma = 0
		case "rate":
			plan.Run.Rate = 0
		case "steps":
			plan.Run.Steps = 0
		case "epsilon":
			plan.Epsilon = 0
		}
		solved, err := plan.Solve(PLD{})
		if err != nil {
			t.Fatalf("%s: %v", missing, err)
		}
		if solved.Epsilon > epsilon+1e-9 && missing != "epsilon" {
			t.Errorf("solving for %s overspends: %v > %v", missing, solved.Epsilon, epsilon)
		}
		if math.Abs(solved.Run.Sigma-want.Sigma) > 2e-3 || math.Abs(solved.Run.Rate-want.Rate) > 1e-4 ||
			solved.Run.Steps < want.Steps-2 || solved.Run.Steps > want.Steps || math.Abs(solved.Epsilon-epsilon) > 2e-2 {
			t.Errorf("solving for %s: got %+v, want %+v at %v", missing, solved, want, epsilon)
		}
	}
	if _, err := (Plan{Delta: 1e-5, Run: Run{Rate: 0.1}}).Solve(PLD{}); !errors.Is(err, ErrRun) {
		t.Errorf("three unknowns accepted: %v", err)
	}
	if _, err := (Plan{Epsilon: 1e-9, Delta: 1e-5, Run: Run{Rate: 1, Steps: 1 << 30}}).Solve(RDP{}); !errors.Is(err, ErrRun) {
		t.Errorf("an unreachable budget was planned: %v", err)
	}
}

func ExamplePlan() {
	plan, err := Plan{Epsilon: 8, Delta: 1e-5, Run: Run{Rate: 240.0 / 4708, Steps: 400}}.Solve(PLD{})
	if err != nil {
		panic(err)
	}
	fmt.Printf("noise multiplier %.3f\n", plan.Run.Sigma)
	// Output: noise multiplier 0.925
}
