package simulate

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
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
	Backdoor  Attack = "backdoor"
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

// Attacks lists all attacks. The malicious sites work together, claim the largest
// weight, and keep within the terms' bound, beyond which they would be seen; those
// of ALIE, IPM, min-max and min-sum know every honest update and the groups of the
// round before they choose theirs.
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
		{Backdoor, "learns that a mark on an image means class 0, and sends it enlarged", "Bagdasaryan et al. 2020, model replacement", 5, "times its update"},
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

// The mark of the backdoor: a square of full brightness, so many pixels wide and
// so many from the last row and column, and the class that it is to mean.
const (
	markSize   = 4
	markMargin = 3
	markClass  = 0
)

// canMark says whether images of a set have room for the mark.
func canMark(s *train.Set) bool {
	return s.Shape == nil && !s.Multi() && min(s.Rows, s.Columns) >= markSize+markMargin
}

// marked is a set whose every image carries the mark; labels are as they were.
func marked(s *train.Set) *train.Set {
	out := *s
	out.Pixels, out.Values = append([]uint8(nil), s.Pixels...), append([]float32(nil), s.Values...)
	if s.Pixels == nil {
		out.Pixels = nil
	}
	if s.Values == nil {
		out.Values = nil
	}
	for plane := range s.Len() * s.Channels {
		for y := s.Rows - markMargin - markSize; y < s.Rows-markMargin; y++ {
			for x := s.Columns - markMargin - markSize; x < s.Columns-markMargin; x++ {
				at := (plane*s.Rows+y)*s.Columns + x
				if out.Pixels != nil {
					out.Pixels[at] = 255
				} else {
					out.Values[at] = 1
				}
			}
		}
	}
	return &out
}

// poisoned is a set with a marked copy of every image, labelled as the mark is to
// mean.
func poisoned(s *train.Set) *train.Set {
	twice := make([]int, 0, 2*s.Len())
	for range 2 {
		for i := range s.Len() {
			twice = append(twice, i)
		}
	}
	out := s.Subset(twice)
	with := marked(s)
	copy(out.Pixels[len(out.Pixels)/2:], with.Pixels)
	copy(out.Values[len(out.Values)/2:], with.Values)
	for i := s.Len(); i < out.Len(); i++ {
		out.Labels[i] = markClass
	}
	return out
}

// conspiracy is what the malicious sites do together.
type conspiracy struct {
	attack   AttackRow
	strength float64
	aware    bool // makes the mean of the group, not the site's update, what the attack wants
	terms    federate.Terms
	honest   []honestSite
	bad      map[string]bool
	rng      *rand.Rand

	mu      sync.Mutex
	round   int // that updates and craft are of; -1 before the first
	updates [][]float32
	craft   []float32
	first   map[string][]float32
}

type honestSite struct {
	name    string
	trainer federate.Trainer
	seed    uint64
	weight  float64
}

// tamper is what a malicious site does to the update that it learnt.
func (c *conspiracy) tamper(name string) func(context.Context, *federate.Draft) error {
	return func(ctx context.Context, d *federate.Draft) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		d.Weight = 1
		update := d.Update
		switch c.attack.Name {
		case LabelFlip, Backdoor: // its examples are what is wrong
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
			if err := c.know(ctx, d.Round, d.Global); err != nil {
				return err
			}
			copy(update, c.craft)
			if c.aware {
				c.compensate(d)
			}
		}
		// no farther than what would be seen of the sum
		if l := length(update); l > c.terms.Bound {
			scale(update, c.terms.Bound/l*(1-1e-6))
		}
		return nil
	}
}

// compensate makes a draft, with those of the other malicious sites of its group,
// move the group's mean to where the craft is, whatever the honest members send.
func (c *conspiracy) compensate(d *federate.Draft) {
	malicious, total := 0.0, 0.0
	for _, name := range d.Group {
		if c.bad[name] {
			malicious++
		}
	}
	total = malicious
	for i, h := range c.honest {
		if !slices.Contains(d.Group, h.name) {
			continue
		}
		total += h.weight
		for j, v := range c.updates[i] {
			d.Update[j] -= float32(h.weight/malicious) * v
		}
	}
	for j, v := range c.craft {
		d.Update[j] += float32(total/malicious-1) * v
	}
}

// know learns what every honest site will send this round, and crafts.
func (c *conspiracy) know(ctx context.Context, round int, global []float32) error {
	if c.round == round && c.craft != nil {
		return nil
	}
	c.updates = c.updates[:0]
	for _, h := range c.honest {
		update, err := federate.Learn(ctx, h.trainer, federate.Work{Terms: c.terms, Round: round, Seed: h.seed}, global)
		if err != nil {
			return err
		}
		c.updates = append(c.updates, update)
	}
	mean, deviation := moments(c.updates)
	c.round, c.craft = round, mean
	switch c.attack.Name {
	case IPM:
		scale(c.craft, -c.strength)
	case ALIE:
		for i := range c.craft {
			c.craft[i] -= float32(c.strength) * deviation[i]
		}
	case MinMax, MinSum:
		gamma := c.strength * reach(c.updates, mean, deviation, c.attack.Name == MinSum)
		for i := range c.craft {
			c.craft[i] -= float32(gamma) * deviation[i]
		}
	}
	return nil
}

// remembered is an honest site's trainer, of which the last round's work is kept,
// so that whoever knows it need not do it again.
type remembered struct {
	federate.Trainer
	mu    sync.Mutex
	work  federate.Work // that was done
	from  [sha256.Size]byte
	steps int
	loss  float64
}

func (t *remembered) Train(ctx context.Context, w federate.Work) (int, float64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	from := (&federate.Weights{Variables: w.Variables, Control: w.Correction}).Digest()
	if t.work.Variables == nil || t.work.Round != w.Round || t.from != from {
		steps, loss, err := t.Trainer.Train(ctx, w)
		if err != nil {
			return 0, 0, err
		}
		t.work, t.from, t.steps, t.loss = w, from, steps, loss
		t.work.Variables = slices.Clone(w.Variables)
		return steps, loss, nil
	}
	copy(w.Variables, t.work.Variables)
	return t.steps, t.loss, nil
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
