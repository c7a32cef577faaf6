package attack

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// knapsack is the highest that Σ slope·d can be over |d| ≤ eps while
// Σ guard·d ≤ room: pixels by what they cost the guard for what they gain.
func knapsack(slope, guard []float64, eps, room float64) float64 {
	// From the corner that the guard likes best, where it leaves most room.
	gain, order := 0.0, []int(nil)
	for i := range slope {
		d := -eps
		if i < len(guard) && guard[i] < 0 {
			d = eps
		}
		if i >= len(guard) || guard[i] == 0 {
			gain += math.Abs(slope[i]) * eps
			continue
		}
		gain += slope[i] * d
		room -= guard[i] * d
		if slope[i]*d < 0 { // the other end would gain, and cost
			order = append(order, i)
		}
	}
	if room < 0 {
		return math.Inf(-1)
	}
	slices.SortFunc(order, func(a, b int) int {
		if math.Abs(slope[a]/guard[a]) > math.Abs(slope[b]/guard[b]) {
			return -1
		}
		return 1
	})
	for _, i := range order {
		cost := 2 * eps * math.Abs(guard[i])
		share := min(1, room/cost)
		gain += share * 2 * eps * math.Abs(slope[i])
		room -= share * cost
	}
	return gain
}

// Of a linear model behind a linear guard it is known exactly which images can be
// turned without being held. The attacker who knows the guard must turn these and
// no others; one who does not is held more often.
func TestTheAdaptiveAttackReachesTheOptimumOfALinearGuard(t *testing.T) {
	const size, eps, images = 24, 0.06, 48
	n, slope, pixels, labels, margins := drawnLinear(t, 9, images, size)
	rng := rand.New(rand.NewPCG(2, 3))
	watch := make([]float64, size*3/4) // a score that grows with the model's, roughly
	for i := range watch {
		watch[i] = slope[i] + 0.8*rng.NormFloat64()
	}
	// Only images of class 0 are attacked, towards 1.
	class := 1
	var of []int
	score := 0.0
	for j, l := range labels {
		if l == 0 {
			of = append(of, j)
			for i, w := range watch {
				score += w * float64(pixels[j*size+i])
			}
		}
	}
	limit := score / float64(len(of))
	target := guarded{n, watch, 3, limit}
	o := Options{Eps: eps, Seed: 1, Class: &class, AlsoHeld: true}
	r, err := Run(context.Background(), target, Adaptive, pixels, labels, o)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := Run(context.Background(), n, PGD, pixels, labels, o)
	if err != nil {
		t.Fatal(err)
	}
	can, cannot, got, oblivious := 0, 0, 0, 0
	for _, j := range of {
		room := limit
		for i, w := range watch {
			room -= w * float64(pixels[j*size+i])
		}
		most := knapsack(slope, watch, eps, room) - margins[j]
		fooled := r.Cases[j].Fooled
		switch {
		case most > 0.05*margins[j]:
			can++
			if fooled {
				got++
			} else {
				t.Logf("image %d can be turned by %.3f beyond the boundary, of a margin of %.3f, and was not", j, most, margins[j])
			}
		case most < 0:
			cannot++
			if fooled {
				t.Errorf("image %d was turned, and cannot be: %.3f short", j, -most)
			}
		}
		if plain.Cases[j].Fooled {
			a, err := target.Ask(context.Background(), plain.Pixels[j*size:(j+1)*size], nil)
			if err != nil {
				t.Fatal(err)
			}
			if !a.held(0) {
				oblivious++
			}
		}
	}
	if can < 5 || cannot < 5 {
		t.Fatalf("%d images can be turned and %d cannot: the test says nothing", can, cannot)
	}
	if got != can {
		t.Errorf("%d of %d images that can be turned were", got, can)
	}
	if oblivious >= got {
		t.Errorf("%d pass without knowing the guard, %d knowing it", oblivious, got)
	}
}

// shaky is a guard whose limit is another at each question.
type shaky struct {
	guarded
	rng *rand.Rand
}

func (s shaky) Ask(ctx context.Context, pixels []float32, o *Objective) (Answer, error) {
	g := s.guarded
	g.limit += 0.1 * s.rng.NormFloat64()
	return g.Ask(ctx, pixels, o)
}

// Through a mean over draws the attack passes a guard that answers by chance, as
// most draws see it.
func TestARandomGuardIsPassedInExpectation(t *testing.T) {
	const size, eps = 24, 0.08
	n, slope, pixels, labels, _ := drawnLinear(t, 9, 24, size)
	score := 0.0
	for i, w := range slope[:size/2] {
		score += w * 0.5
		_ = i
	}
	plain := guarded{n, slope[:size/2], 3, score + 0.8}
	class := 1
	o := Options{Eps: eps, Seed: 1, Class: &class, AlsoHeld: true, Steps: 60}
	exact, err := Run(context.Background(), plain, Adaptive, pixels, labels, o)
	if err != nil {
		t.Fatal(err)
	}
	random := Expectation(shaky{plain, rand.New(rand.NewPCG(4, 4))}, 15)
	r, err := Run(context.Background(), random, Adaptive, pixels, labels, o)
	if err != nil {
		t.Fatal(err)
	}
	if exact.Fooled() < 3 || r.Fooled() < exact.Fooled()-2 {
		t.Errorf("%d pass the guard in expectation, %d where it is certain", r.Fooled(), exact.Fooled())
	}
}
