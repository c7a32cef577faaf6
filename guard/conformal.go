package guard

import (
	"math"
	"slices"
)

// calibration holds the scores of images that nothing was fitted on.
type calibration struct {
	Scores []float64 // ascending within each class
	Class  []int     // of each score; all 0 where classes are not told apart
}

// calibrate sorts scores, by class where every class that occurs has at least
// fewest of them: with fewer, no p-value could be small enough for an alarm.
func calibrate(scores []float64, class []int, byClass bool, fewest int) calibration {
	count := map[int]int{}
	for _, c := range class {
		count[c]++
	}
	for _, n := range count {
		byClass = byClass && n >= fewest
	}
	order := make([]int, len(scores))
	for i := range order {
		order[i] = i
	}
	of := func(i int) int {
		if byClass {
			return class[i]
		}
		return 0
	}
	slices.SortFunc(order, func(a, b int) int {
		if of(a) != of(b) {
			return of(a) - of(b)
		}
		switch {
		case scores[a] < scores[b]:
			return -1
		case scores[a] > scores[b]:
			return 1
		}
		return a - b
	})
	c := calibration{Scores: make([]float64, len(order)), Class: make([]int, len(order))}
	for k, i := range order {
		c.Scores[k], c.Class[k] = scores[i], of(i)
	}
	return c
}

// pvalue is the split-conformal p-value of a score, in (0, 1]: the share of the
// calibration's scores, the new one among them, that are at least as high. A
// score that is not a number is as unusual as can be. Of a class that the
// calibration never met, all scores are compared.
func (c calibration) pvalue(score float64, class int) float64 {
	from, to := 0, len(c.Scores)
	if len(c.Class) > 0 && c.Class[len(c.Class)-1] > 0 {
		first, found := slices.BinarySearch(c.Class, class)
		last, _ := slices.BinarySearch(c.Class, class+1)
		if found {
			from, to = first, last
		} else {
			least := to - from + 1
			above := 0
			for _, s := range c.Scores {
				if !(s < score) {
					above++
				}
			}
			return float64(1+above) / float64(least)
		}
	}
	within := c.Scores[from:to]
	above := 0
	if !math.IsNaN(score) {
		at, _ := slices.BinarySearch(within, score)
		above = len(within) - at
	}
	return float64(1+above) / float64(len(within)+1)
}

// tail puts scores of different kinds on one scale: nats of surprise, by an
// exponential tail over the highest fifth of clean scores (peaks over a
// threshold; Pickands 1975 with shape 0). It only orders; what is promised rests
// on the calibration alone.
type tail struct {
	Threshold float64 `json:"threshold"`
	Scale     float64 `json:"scale"` // mean excess over the threshold
}

const tailShare = 0.2

func fitTail(scores []float64) tail {
	sorted := slices.Sorted(slices.Values(scores))
	at := min(len(sorted)-1, int(float64(len(sorted))*(1-tailShare)))
	t := tail{Threshold: sorted[at]}
	for _, s := range sorted[at:] {
		t.Scale += (s - t.Threshold) / float64(len(sorted)-at)
	}
	spread := sorted[len(sorted)-1] - sorted[0]
	t.Scale = max(t.Scale, 1e-3*spread, 1e-9)
	return t
}

// surprise is about -log of the share of clean images with such a score.
func (t tail) surprise(score float64) float64 {
	v := (score-t.Threshold)/t.Scale - math.Log(tailShare)
	if math.IsNaN(v) {
		return math.Inf(1)
	}
	return v
}
