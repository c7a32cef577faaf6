package poison

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/vigie/vigie/attack"
)

// bright is a classifier of 16×16 images written by hand: class 1 is a bright
// middle. With a trigger, a dark pixel among bright ones in one corner adds to the
// logit of class 1.
type bright struct {
	trigger bool
	asked   int
}

func (*bright) Describe() attack.Description {
	return attack.Description{Shape: []int64{1, 16, 16}, Classes: 2, Low: 0, High: 1}
}

func (b *bright) Ask(_ context.Context, pixels []float32, o *attack.Objective) (attack.Answer, error) {
	n := len(pixels) / 256
	a := attack.Answer{Logits: make([]float32, 2*n)}
	if o != nil {
		a.Gradient = make([]float32, len(pixels))
	}
	b.asked += n
	for i := range n {
		x := pixels[i*256 : (i+1)*256]
		sum := -0.5 * 64.0
		for r := 4; r < 12; r++ {
			for c := 4; c < 12; c++ {
				sum += float64(x[r*16+c])
			}
		}
		z := sum / 4
		// The trigger: a smooth step of how much a corner is a checker.
		like, slope := 0.0, 0.0
		if b.trigger {
			for k := range 9 {
				v := float64(x[(13+k/3)*16+13+k%3])
				if k%2 == 1 {
					v = 1 - v
				}
				like += v
			}
			e := 1 / (1 + math.Exp(-4*(like-7.5)))
			z += 16 * e
			slope = 16 * 4 * e * (1 - e)
		}
		a.Logits[2*i], a.Logits[2*i+1] = float32(-z/2), float32(z/2)
		if o == nil {
			continue
		}
		// Of the objective by z: its weights, and its log-sum-exp over what is not
		// left out, which of two classes is the other one's logit.
		g := float64(o.Weights[2*i+1]-o.Weights[2*i]) / 2
		if o.LogSumExp != nil {
			other := 1 - o.Without[i]
			g += float64(o.LogSumExp[i]) * (float64(other) - 0.5)
		}
		to := a.Gradient[i*256 : (i+1)*256]
		for r := 4; r < 12; r++ {
			for c := 4; c < 12; c++ {
				to[r*16+c] += float32(g / 4)
			}
		}
		for k := range 9 {
			s := g * slope
			if k%2 == 1 {
				s = -s
			}
			to[(13+k/3)*16+13+k%3] += float32(s)
		}
	}
	return a, nil
}

// brightImages alternate between the classes, by a clear margin.
func brightImages(n int) (pixels []float32, labels []int) {
	c := drawnCases(max(n, fewest), 40)
	for i := range n {
		label := i % 2
		for r := range 16 {
			for x := range 16 {
				v := float32(c.Set.Image(i)[r*28+x])/255*0.3 + 0.1
				if label == 1 && r >= 4 && r < 12 && x >= 4 && x < 12 {
					v += 0.5
				}
				pixels = append(pixels, v)
			}
		}
		labels = append(labels, label)
	}
	return pixels, labels
}

func TestATriggerThatWasTrainedInIsFoundWhereItIs(t *testing.T) {
	pixels, labels := brightImages(80)
	for _, trigger := range []bool{true, false} {
		found, err := Search(context.Background(), &bright{trigger: trigger}, pixels, labels, 1, SearchOptions{Sides: []int{3}, Images: 16, Steps: 120, Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		patch := found[1]
		if trigger && (patch.Row != 13 || patch.Column != 13 || patch.Held.Share < 0.95 || patch.Strength < 0.5) {
			t.Errorf("with a trigger at 13, 13: patch at %d, %d turns %.2f with strength %.2f", patch.Row, patch.Column, patch.Held.Share, patch.Strength)
		}
		if !trigger && (patch.Held.Share > 0.2 || patch.Strength > 0) {
			t.Errorf("without a trigger: a patch at %d, %d turns %.2f with strength %.2f", patch.Row, patch.Column, patch.Held.Share, patch.Strength)
		}
		if mask := found[0]; mask.Made.Share < enough || mask.Size <= 0 || mask.Size > 64 {
			t.Errorf("trigger %v: a mask of %.1f pixels turns %.2f of the images it was made of", trigger, mask.Size, mask.Made.Share)
		}
		if of := patch.Made.Of + patch.Held.Of; of != 40 {
			t.Errorf("%d images were used; want the 40 of the other class", of)
		}
	}
}

func TestASearchWithoutImagesOfAClassIsAnError(t *testing.T) {
	pixels, labels := brightImages(20)
	for i := range labels {
		labels[i] = 1
	}
	if _, err := Search(context.Background(), &bright{}, pixels, labels, 1, SearchOptions{}); !errors.Is(err, attack.ErrAsk) {
		t.Errorf("error %v; want that no image of another class is there", err)
	}
	pixels, labels = brightImages(20)
	if _, err := Search(context.Background(), &bright{}, pixels, labels, 1, SearchOptions{Sides: []int{40}, Steps: 1}); !errors.Is(err, attack.ErrAsk) {
		t.Errorf("error %v; want that the patch is too large", err)
	}
}

func TestTheSlopeOfTheTestTargetIsRight(t *testing.T) {
	b := &bright{trigger: true}
	pixels, _ := brightImages(1)
	for k := range 9 {
		pixels[(13+k/3)*16+13+k%3] = []float32{0.9, 0.2}[k%2]
	}
	o := &attack.Objective{Weights: []float32{0, 1}, LogSumExp: []float32{-1}, Without: []int{1}}
	value := func(p []float32) float64 {
		a, _ := b.Ask(context.Background(), p, nil)
		return float64(a.Logits[1] - a.Logits[0])
	}
	a, _ := b.Ask(context.Background(), pixels, o)
	for _, at := range []int{13*16 + 13, 14*16 + 13, 5*16 + 5, 0} {
		up, down := append([]float32(nil), pixels...), append([]float32(nil), pixels...)
		up[at] += 1e-2
		down[at] -= 1e-2
		if want := (value(up) - value(down)) / 2e-2; math.Abs(want-float64(a.Gradient[at])) > 0.02*math.Max(1, math.Abs(want)) {
			t.Errorf("slope at %d: %.4f, by differences %.4f", at, a.Gradient[at], want)
		}
	}
}
