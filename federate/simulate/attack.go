package simulate

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/train"
)

// Attack names what malicious sites do.
type Attack string

// The attacks.
const (
	LabelFlip Attack = "label-flip"
	SignFlip  Attack = "sign-flip"
	Gaussian  Attack = "gaussian"
	ALIE      Attack = "alie"
	IPM       Attack = "ipm"
	MinMax    Attack = "min-max"
	MinSum    Attack = "min-sum"
	FreeRider Attack = "free-rider"
	Replay    Attack = "replay"
)

// AttackRow is a row of the table of attacks.
type AttackRow struct {
	Name   Attack
	About  string
	Source string
	// Strength is what scales it, by default.
	Strength float64
	Unit     string // of the strength
}

// Attacks lists all attacks. The malicious sites work together; those of ALIE,
// IPM, min-max and min-sum know every honest update before they choose theirs.
func Attacks() []AttackRow {
	return []AttackRow{
		{LabelFlip, "trains on wrong labels", "Tolpegin et al. 2020", 1, "times its update"},
		{SignFlip, "sends the opposite of what it learnt", "Li et al. 2019", 4, "times its update"},
		{Gaussian, "sends noise", "Blanchard et al. 2017", 4, "times the length of its update"},
		{ALIE, "the honest mean, moved by a part of the honest spread", "Baruch et al. 2019", 1.5, "standard deviations"},
		{IPM, "against the honest mean", "Xie et al. 2020", 4, "times the honest mean"},
		{MinMax, "as far from the honest mean as the farthest honest site from another", "Shejwalkar and Houmansadr 2021", 1, "of that distance"},
		{MinSum, "as far as keeps the sum of squared distances within an honest one's", "Shejwalkar and Houmansadr 2021", 1, "of that distance"},
		{FreeRider, "sends nothing, and takes the model", "Lin et al. 2019", 1, ""},
		{Replay, "sends what it learnt in its first round again and again", "of our own", 1, "times that update"},
	}
}

// FindAttack returns an attack by its name.
func FindAttack(name Attack) (AttackRow, error) {
	var names []string
	for _, r := range Attacks() {
		if r.Name == name {
			return r, nil
		}
		names = append(names, string(r.Name))
	}
	return AttackRow{}, fmt.Errorf("simulate: attack %q: want %s", name, strings.Join(names, ", "))
}

// flipped is a set whose every label is the next one.
func flipped(s *train.Set) *train.Set {
	out := *s
	out.Labels = make([]int, len(s.Labels))
	for i, l := range s.Labels {
		out.Labels[i] = (l + 1) % s.Classes
	}
	return &out
}

// conspiracy is what the malicious sites do together.
type conspiracy struct {
	attack   AttackRow
	strength float64
	terms    federate.Terms
	honest   []honestSite
	rng      *rand.Rand

	mu    sync.Mutex
	round int // that crafted is of; -1 before the first
	craft []float32
	first map[string][]float32
}

type honestSite struct {
	trainer federate.Trainer
	seed    uint64
}

// tamper is what a malicious site does to the update that it learnt.
func (c *conspiracy) tamper(name string) func(context.Context, int, []float32, []float32) error {
	return func(ctx context.Context, round int, global, update []float32) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch c.attack.Name {
		case LabelFlip: // its examples are what is wrong
			scale(update, c.strength)
		case SignFlip:
			scale(update, -c.strength)
		case FreeRider:
			clear(update)
		case Gaussian:
			deviation := c.strength * length(update) / math.Sqrt(float64(len(update)))
			for i := range update {
				update[i] = float32(deviation * c.rng.NormFloat64())
			}
		case Replay:
			if c.first[name] == nil {
				c.first[name] = append([]float32(nil), update...)
			}
			copy(update, c.first[name])
			scale(update, c.strength)
		default:
			if err := c.know(ctx, round, global); err != nil {
				return err
			}
			copy(update, c.craft)
		}
		for i, v := range update { // what no site could send
			update[i] = float32(max(-c.terms.Bound, min(c.terms.Bound, float64(v))))
		}
		return nil
	}
}

// know learns what every honest site will send this round, and crafts.
func (c *conspiracy) know(ctx context.Context, round int, global []float32) error {
	if c.round == round && c.craft != nil {
		return nil
	}
	var updates [][]float32
	for _, h := range c.honest {
		update, err := federate.Learn(ctx, h.trainer, federate.Work{Terms: c.terms, Round: round, Seed: h.seed}, global)
		if err != nil {
			return err
		}
		updates = append(updates, update)
	}
	mean, deviation := moments(updates)
	c.round, c.craft = round, mean
	switch c.attack.Name {
	case IPM:
		scale(c.craft, -c.strength)
	case ALIE:
		for i := range c.craft {
			c.craft[i] -= float32(c.strength) * deviation[i]
		}
	case MinMax, MinSum:
		gamma := c.strength * reach(updates, mean, deviation, c.attack.Name == MinSum)
		for i := range c.craft {
			c.craft[i] -= float32(gamma) * deviation[i]
		}
	}
	return nil
}

func moments(rows [][]float32) (mean, deviation []float32) {
	n := float64(len(rows))
	mean, deviation = make([]float32, len(rows[0])), make([]float32, len(rows[0]))
	for j := range mean {
		sum, squares := 0.0, 0.0
		for _, row := range rows {
			sum += float64(row[j])
			squares += float64(row[j]) * float64(row[j])
		}
		mean[j] = float32(sum / n)
		deviation[j] = float32(math.Sqrt(max(0, squares/n-sum/n*sum/n)))
	}
	return mean, deviation
}

// reach is the largest γ with which mean − γ·deviation is no farther from the
// rows than they are from each other: the farthest, or the sum of squares.
func reach(rows [][]float32, mean, deviation []float32, sum bool) float64 {
	farthest := func(to func(int) float64) float64 {
		out := 0.0
		for i := range rows {
			d := to(i)
			if sum {
				out += d
			} else {
				out = max(out, d)
			}
		}
		return out
	}
	limit := 0.0
	for i := range rows {
		limit = max(limit, farthest(func(j int) float64 { return distance(rows[i], rows[j], nil, 0) }))
	}
	low, high := 0.0, 1.0
	fits := func(gamma float64) bool {
		return farthest(func(i int) float64 { return distance(rows[i], mean, deviation, gamma) }) <= limit
	}
	for fits(high) && high < 1e6 {
		low, high = high, 2*high
	}
	for range 30 {
		if middle := (low + high) / 2; fits(middle) {
			low = middle
		} else {
			high = middle
		}
	}
	return low
}

// distance is ‖a − (b − γ·d)‖².
func distance(a, b, d []float32, gamma float64) float64 {
	sum := 0.0
	for i, v := range a {
		x := float64(v) - float64(b[i])
		if d != nil {
			x += gamma * float64(d[i])
		}
		sum += x * x
	}
	return sum
}

func scale(v []float32, by float64) {
	for i := range v {
		v[i] *= float32(by)
	}
}

func length(v []float32) float64 {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	return math.Sqrt(sum)
}
