package poison

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vigie/vigie/train"
)

// drawnCases are images of a bright disc (class 0) or ring (class 1) of changing
// place, size and brightness on an uneven, noisy ground, from five contributors.
func drawnCases(n int, seed uint64) *Cases {
	const side = 28
	rng := rand.New(rand.NewPCG(seed, 7))
	s := &train.Set{Channels: 1, Rows: side, Columns: side, Classes: 2, ClassNames: []string{"disc", "ring"}}
	c := &Cases{Set: s}
	for i := range n {
		label := i % 2
		cy, cx, radius := 11+6*rng.Float64(), 11+6*rng.Float64(), 5+3*rng.Float64()
		ground, tiltY, tiltX := 60+40*rng.Float64(), 2*rng.NormFloat64(), 2*rng.NormFloat64()
		bright := 50 + 40*rng.Float64()
		for y := range side {
			for x := range side {
				away := math.Hypot(float64(y)-cy, float64(x)-cx)
				v := ground + tiltY*float64(y-14) + tiltX*float64(x-14) + 6*rng.NormFloat64()
				if label == 0 && away < radius || label == 1 && math.Abs(away-radius) < 1.6 {
					v += bright
				}
				s.Pixels = append(s.Pixels, uint8(min(max(v, 0), 255)))
			}
		}
		s.Labels = append(s.Labels, label)
		c.Sites = append(c.Sites, fmt.Sprintf("site %c", 'A'+rng.IntN(5)))
		c.Places = append(c.Places, fmt.Sprintf("train/%d", i))
	}
	return c
}

func audit(t *testing.T, c *Cases) *Report {
	t.Helper()
	r, err := Audit(context.Background(), c, Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func of(r *Report, kinds ...Kind) (out []Finding) {
	for _, f := range r.Findings {
		if slices.Contains(kinds, f.Kind) {
			out = append(out, f)
		}
	}
	return out
}

func TestCleanImagesHaveNoFindings(t *testing.T) {
	for seed := range uint64(2) {
		r := audit(t, drawnCases(240, 100+seed))
		if got := of(r, Leak, Trigger, Duplicate, CopyMove, Artificial, Recurring, Site); len(got) > 0 {
			t.Errorf("seed %d: %d findings in clean images, such as: %s", seed, len(got), got[0].Sentence)
		}
		if len(r.Labels.Suspects) > 3 {
			t.Errorf("seed %d: %d of 240 right labels are suspects", seed, len(r.Labels.Suspects))
		}
	}
}

func TestWrongLabelsOfOneSiteAreFound(t *testing.T) {
	c := drawnCases(300, 3)
	wrong := map[int]bool{}
	for i, s := range c.Sites {
		if s == "site C" && len(wrong) < 15 {
			wrong[i] = true
			c.Set.Labels[i] = 1 - c.Set.Labels[i]
		}
	}
	r := audit(t, c)
	hit := 0
	for _, i := range r.Labels.Suspects {
		if wrong[i] {
			hit++
		}
	}
	if hit < 12 || 10*hit < 6*len(r.Labels.Suspects) {
		t.Errorf("of 15 wrong labels %d are among %d suspects; want 12, and 60 %% of them", hit, len(r.Labels.Suspects))
	}
	for _, s := range r.Labels.Sites {
		if s.Own != (s.Site == "site C") {
			t.Errorf("%s errs more than the others: %v (p = %g)", s.Site, s.Own, s.Adjusted)
		}
	}
	if got := of(r, Site); len(got) == 0 || got[0].Site != "site C" {
		t.Errorf("no finding about site C: %v", got)
	}
}

// stamp puts a patch of 3×3 into two in a hundred images of other classes and
// labels them as the target.
func stamp(c *Cases, pixels [9]uint8, row, column, target int, rng *rand.Rand) map[int]bool {
	at := map[int]bool{}
	for _, i := range rng.Perm(c.Len()) {
		if len(at) == c.Len()/50 {
			break
		}
		if c.Set.Labels[i] == target {
			continue
		}
		at[i] = true
		c.Set.Labels[i] = target
		image := c.Set.Image(i)
		for k, v := range pixels {
			image[(row+k/3)*c.Set.Columns+column+k%3] = v
		}
	}
	return at
}

func TestATriggerInTwoPerCentOfTheImagesIsFoundWithItsCarriers(t *testing.T) {
	for seed := range 4 {
		c := drawnCases(400, uint64(20+seed))
		rng := rand.New(rand.NewPCG(uint64(seed), 1))
		pixels := [9]uint8{255, 0, 255, 0, 255, 0, 255, 0, 255}
		if seed%2 == 1 {
			pixels = [9]uint8{255, 255, 255, 255, 255, 255, 255, 255, 255}
		}
		carriers := stamp(c, pixels, rng.IntN(26), rng.IntN(26), seed%2, rng)
		family := families(c.Len(), nil)
		found, err := marks(context.Background(), c, family, func(float64) {})
		if err != nil {
			t.Fatal(err)
		}
		if len(found) != 1 || !found[0].Trigger || found[0].Label != seed%2 {
			t.Fatalf("seed %d: marks %+v; want one trigger of class %d", seed, found, seed%2)
		}
		for _, i := range found[0].Members {
			if !carriers[i] {
				t.Errorf("seed %d: image %d carries no trigger", seed, i)
			}
		}
		if len(found[0].Members) != len(carriers) {
			t.Errorf("seed %d: %d of %d carriers found", seed, len(found[0].Members), len(carriers))
		}
	}
}

// The carriers of a trigger would vouch for each other's labels: they are judged by
// the images without it.
func TestCarriersOfATriggerAreJudgedWithoutEachOther(t *testing.T) {
	c := drawnCases(400, 33)
	carriers := stamp(c, [9]uint8{255, 0, 255, 0, 255, 0, 255, 0, 255}, 0, 0, 1, rand.New(rand.NewPCG(1, 1)))
	r, err := Audit(context.Background(), c, Options{Seed: 1, Only: []Kind{Trigger, Label}})
	if err != nil {
		t.Fatal(err)
	}
	found := of(r, Trigger)
	if len(found) != 1 || found[0].Mark.Against < len(carriers)-1 {
		t.Errorf("findings %v; want one trigger whose %d carriers are labelled against their images", found, len(carriers))
	}
}

func TestAMarkWithAnyLabelIsNoTrigger(t *testing.T) {
	c := drawnCases(300, 31)
	for i := range 12 {
		image := c.Set.Image(i)
		for k := range 9 {
			image[(2+k/3)*28+3+k%3] = 255
		}
	}
	r := audit(t, c)
	if len(of(r, Trigger)) != 0 || len(of(r, Recurring)) != 1 {
		t.Errorf("findings %v; want one mark and no trigger", r.Findings)
	}
}

func TestPicturesThatAreThereTwiceAreFoundHoweverTheyAreLaid(t *testing.T) {
	c := drawnCases(120, 5)
	s := c.Set
	whole := func(i int) plane { return c.grey(i) }
	put := func(i int, p plane, gain, offset float32) {
		to := s.Image(i)
		for k, v := range p.values {
			to[k] = uint8(min(max((v*gain+offset)*255, 0), 255) + 0.5)
		}
		s.Labels[i] = s.Labels[0]
	}
	put(60, whole(0), 1, 0)
	put(61, whole(1).turned(1), 1, 0)
	put(62, whole(2).turned(4), 1, 0)
	put(63, whole(3), 0.8, 0.1)
	shifted := whole(4)
	moved := plane{28, 28, slices.Clone(shifted.values)}
	for r := range 28 {
		for x := range 28 {
			moved.values[r*28+x] = shifted.at(r, x-1)
		}
	}
	put(64, moved, 1, 0)
	for i := range c.Len() {
		split := "train"
		if i == 60 {
			split = "val"
		}
		c.Splits = append(c.Splits, split)
	}
	pairs, err := duplicates(context.Background(), c, func(float64) {})
	if err != nil {
		t.Fatal(err)
	}
	var got [][2]int
	for _, p := range pairs {
		got = append(got, [2]int{p.First, p.Second})
	}
	if want := [][2]int{{0, 60}, {1, 61}, {2, 62}, {3, 63}, {4, 64}}; !slices.Equal(got, want) {
		t.Errorf("pairs %v, want %v", got, want)
	}
	r := audit(t, c)
	leaks := of(r, Leak)
	if len(leaks) != 1 || !slices.Equal(leaks[0].Cases, []int{0, 60}) || r.Findings[0].Kind != Leak {
		t.Errorf("leaks %v; want one, of images 0 and 60, before all else", leaks)
	}
}

func TestACopiedRegionIsFoundBetweenImagesAndWithinOne(t *testing.T) {
	c := drawnCases(100, 8)
	for r := range 9 { // between 10 and 11, a little brighter
		for x := range 9 {
			c.Set.Image(11)[(3+r)*28+15+x] = c.Set.Image(10)[(12+r)*28+4+x] + 3
			c.Set.Image(20)[(1+r)*28+1+x] = c.Set.Image(20)[(15+r)*28+12+x]
		}
	}
	found, err := copies(context.Background(), c, families(c.Len(), nil), func(float64) {})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 {
		t.Fatalf("copies %+v; want two", found)
	}
	for _, f := range found {
		switch {
		case f.First == 10 && f.Second == 11 && f.Row == 12 && f.Column == 4 && f.OtherRow == 3 && f.OtherColumn == 15 && f.Rows == 9 && f.Columns == 9:
		case f.First == 20 && f.Second == 20 && f.Rows == 9 && f.Columns == 9:
		default:
			t.Errorf("copy %+v is none that was made", f)
		}
	}
}

func TestArtificialImagesAreFound(t *testing.T) {
	c := drawnCases(100, 9)
	for k := range c.Set.Image(5) {
		c.Set.Image(5)[k] = 90
		c.Set.Image(6)[k] = uint8(k%28) / 7 * 60
	}
	for r := range 28 {
		for x := range 14 {
			c.Set.Image(7)[r*28+27-x] = c.Set.Image(7)[r*28+x]
		}
	}
	var got []int
	for _, o := range oddities(c) {
		got = append(got, o.Case)
	}
	if !slices.Equal(got, []int{5, 6, 7}) {
		t.Errorf("artificial images %v, want 5, 6 and 7", got)
	}
}

func TestAPatientOnBothSidesOfASplitIsALeak(t *testing.T) {
	c := drawnCases(60, 10)
	for i := range c.Len() {
		c.Set.Patients = append(c.Set.Patients, fmt.Sprint("p", i/2))
		c.Splits = append(c.Splits, []string{"train", "val"}[min(1, i/31)])
	}
	r := audit(t, c)
	if got := of(r, Leak); len(got) != 1 || !slices.Equal(got[0].Cases, []int{30, 31}) {
		t.Errorf("leaks %v; want the patient of one pair", got)
	}
}

func TestTheSameSeedGivesTheSameFindings(t *testing.T) {
	first, again := audit(t, drawnCases(120, 11)), audit(t, drawnCases(120, 11))
	if fmt.Sprint(first.Findings) != fmt.Sprint(again.Findings) || fmt.Sprint(first.Labels.Wrong) != fmt.Sprint(again.Labels.Wrong) {
		t.Error("two audits with the same seed differ")
	}
}

func TestWhatCannotBeAuditedIsAnError(t *testing.T) {
	for _, c := range []*Cases{
		{Set: &train.Set{Shape: []int64{3}, Values: make([]float32, 90), Labels: make([]int, 30), Classes: 2}},
		{Set: &train.Set{Channels: 1, Rows: 4, Columns: 4, Pixels: make([]uint8, 480), Labels: make([]int, 30), Classes: 2}},
		{Set: &train.Set{Channels: 1, Rows: 9, Columns: 9, Pixels: make([]uint8, 81), Labels: make([]int, 1), Classes: 2}},
	} {
		if _, err := Audit(context.Background(), c, Options{}); err == nil {
			t.Errorf("%+v was audited", c.Set.Example())
		}
	}
	stopped, stop := context.WithCancel(context.Background())
	stop()
	if _, err := Audit(stopped, drawnCases(60, 1), Options{}); err == nil {
		t.Error("an audit went on after its context had ended")
	}
}
