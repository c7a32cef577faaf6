// Package robust combines updates of which some may be meant to harm. Each rule
// is a row of Rules, with its source and how many bad rows it stands.
//
// A row is the update of one site or, under secure aggregation, the mean update
// of one masked group; the rules do not care. They return the combination and
// what they held against each row.
//
// The package knows nothing of models, rounds or transport.
package robust

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// ErrRows is returned for rows that a rule cannot combine.
var ErrRows = errors.New("not rows that this rule combines")

// Name names a rule.
type Name string

// The rules.
const (
	Mean        Name = "mean"
	NormBound   Name = "norm-bound"
	Cosine      Name = "cosine"
	Median      Name = "median"
	TrimmedMean Name = "trimmed-mean"
	MultiKrum   Name = "multi-krum"
	Bulyan      Name = "bulyan"
	FLTrust     Name = "fltrust"
	FLAME       Name = "flame"
)

// Input is what a rule combines.
type Input struct {
	Rows    [][]float32 // [n][d], finite
	Weights []float64   // of each row, such as its number of examples; nil counts all alike. Mean, NormBound and Cosine heed them.
	Bad     int         // how many rows may be bad, at most
	// Reference is what a trusted party would do, [d]: for FLTrust alone.
	Reference []float32
}

// Output is what comes of it.
type Output struct {
	Update []float32 // [d]
	// Held is how much the rule holds against each row, 0 to 1: the share of it
	// that did not enter the update.
	Held []float64
}

// Rule is one way to combine.
type Rule struct {
	Name   Name
	About  string
	Source string
	// Least is how many rows are needed to stand bad ones.
	Least   func(bad int) int
	combine func(Input) Output
}

// Rules lists all rules.
func Rules() []Rule {
	return []Rule{
		{Mean, "weighted mean; stands no bad row", "McMahan et al. 2017", func(int) int { return 1 }, mean},
		{NormBound, "rows longer than the median length are shortened to it", "Sun et al. 2019, section 4", func(b int) int { return 2*b + 1 }, normBound},
		{Cosine, "rows that point away from the coordinate-wise median are left out, the others bounded", "screening by direction, as in Cao et al. 2021 with the median for the reference", func(b int) int { return 2*b + 1 }, cosine},
		{Median, "the median of each coordinate", "Yin et al. 2018, definition 1", func(b int) int { return 2*b + 1 }, median},
		{TrimmedMean, "the mean of each coordinate without its largest and smallest", "Yin et al. 2018, definition 2", func(b int) int { return 2*b + 1 }, trimmedMean},
		{MultiKrum, "the mean of the rows that are closest to their neighbours", "Blanchard et al. 2017, section 4", func(b int) int { return 2*b + 3 }, multiKrum},
		{Bulyan, "a trimmed mean around the median of rows chosen by Krum", "El Mhamdi et al. 2018, section 4", func(b int) int { return 4*b + 3 }, bulyan},
		{FLTrust, "rows weighted by their agreement with a trusted update, all of its length", "Cao et al. 2021, algorithm 2", func(int) int { return 1 }, flTrust},
		{FLAME, "the one cluster of directions that holds more than half, shortened to the median length", "Nguyen et al. 2022, algorithm 1, without its noise", func(b int) int { return 2*b + 1 }, flame},
	}
}

// Find returns a rule by its name.
func Find(name Name) (Rule, error) {
	var names []string
	for _, r := range Rules() {
		if r.Name == name {
			return r, nil
		}
		names = append(names, string(r.Name))
	}
	return Rule{}, fmt.Errorf("robust: rule %q: want %s", name, strings.Join(names, ", "))
}

// Combine applies the rule. It refuses rows of different lengths or with numbers
// that are not finite, fewer rows than the rule needs for so many bad ones, and
// FLTrust without a reference.
func (r Rule) Combine(in Input) (Output, error) {
	fail := func(format string, arguments ...any) (Output, error) {
		return Output{}, fmt.Errorf("robust: combining by %s: %w: %s", r.Name, ErrRows, fmt.Sprintf(format, arguments...))
	}
	if in.Bad < 0 || len(in.Rows) < max(1, r.Least(in.Bad)) {
		return fail("%d rows, of which %d may be bad: at least %d are needed", len(in.Rows), in.Bad, max(1, r.Least(in.Bad)))
	}
	if in.Weights != nil && len(in.Weights) != len(in.Rows) {
		return fail("%d weights for %d rows", len(in.Weights), len(in.Rows))
	}
	for i, w := range in.Weights {
		if !(w > 0) || math.IsInf(w, 0) {
			return fail("row %d has the weight %g", i, w)
		}
	}
	for i, row := range in.Rows {
		if len(row) != len(in.Rows[0]) || len(row) == 0 {
			return fail("row %d has %d numbers, the first %d", i, len(row), len(in.Rows[0]))
		}
		for j, v := range row {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return fail("number %d of row %d is %v", j, i, v)
			}
		}
	}
	if r.Name == FLTrust && (len(in.Reference) != len(in.Rows[0]) || norm(in.Reference) == 0) {
		return fail("it needs a trusted update of %d numbers, not all of them 0", len(in.Rows[0]))
	}
	return r.combine(in), nil
}

func (in Input) weight(i int) float64 {
	if in.Weights == nil {
		return 1
	}
	return in.Weights[i]
}

// combined is Σ share·row / Σ weight, with 1 − share/weight held against a row;
// divisor 0 takes the sum of the shares.
func (in Input) combined(shares []float64, divisor float64) Output {
	sum := make([]float64, len(in.Rows[0]))
	out := Output{Update: make([]float32, len(sum)), Held: make([]float64, len(shares))}
	total := 0.0
	for i, share := range shares {
		total += share
		out.Held[i] = min(1, max(0, 1-share/in.weight(i)))
		if share == 0 {
			continue
		}
		for j, v := range in.Rows[i] {
			sum[j] += share * float64(v)
		}
	}
	if divisor == 0 {
		divisor = total
	}
	if divisor == 0 {
		return out // nobody is left: the update is none
	}
	for j, v := range sum {
		out.Update[j] = float32(v / divisor)
	}
	return out
}

func mean(in Input) Output {
	shares := make([]float64, len(in.Rows))
	for i := range shares {
		shares[i] = in.weight(i)
	}
	return in.combined(shares, 0)
}

func normBound(in Input) Output {
	shares, total := make([]float64, len(in.Rows)), 0.0
	bound := medianOf(norms(in.Rows))
	for i, row := range in.Rows {
		shares[i] = in.weight(i)
		total += shares[i]
		if length := norm(row); length > bound {
			shares[i] *= bound / length
		}
	}
	return in.combined(shares, total)
}

func cosine(in Input) Output {
	middle := coordinateMedian(in.Rows)
	bound := medianOf(norms(in.Rows))
	shares, total := make([]float64, len(in.Rows)), 0.0
	for i, row := range in.Rows {
		if dot(row, middle) <= 0 {
			continue
		}
		shares[i] = in.weight(i)
		total += shares[i]
		if length := norm(row); length > bound {
			shares[i] *= bound / length
		}
	}
	return in.combined(shares, total)
}

func median(in Input) Output {
	out := Output{Update: coordinateMedian(in.Rows)}
	out.Held = distanceHeld(in.Rows, out.Update)
	return out
}

func trimmedMean(in Input) Output {
	n := len(in.Rows)
	out := Output{Update: make([]float32, len(in.Rows[0])), Held: make([]float64, n)}
	order, column := make([]int, n), make([]float32, n)
	for j := range out.Update {
		for i, row := range in.Rows {
			order[i], column[i] = i, row[j]
		}
		slices.SortStableFunc(order, func(a, b int) int { return compare(column[a], column[b]) })
		sum := 0.0
		for at, i := range order {
			if at < in.Bad || at >= n-in.Bad {
				out.Held[i] += 1 / float64(len(out.Update))
				continue
			}
			sum += float64(column[i])
		}
		out.Update[j] = float32(sum / float64(n-2*in.Bad))
	}
	return out
}

// krumScores is, for each row, the sum of squared distances to its closest
// neighbours: all but the bad ones and itself.
func krumScores(distances [][]float64, among []int, bad int) map[int]float64 {
	scores := map[int]float64{}
	for _, i := range among {
		var to []float64
		for _, j := range among {
			if i != j {
				to = append(to, distances[i][j])
			}
		}
		slices.Sort(to)
		for _, d := range to[:min(len(to), max(1, len(among)-bad-2))] {
			scores[i] += d
		}
	}
	return scores
}

func multiKrum(in Input) Output {
	all := everyRow(len(in.Rows))
	scores := krumScores(squaredDistances(in.Rows), all, in.Bad)
	slices.SortStableFunc(all, func(a, b int) int { return compare(scores[a], scores[b]) })
	shares := make([]float64, len(in.Rows))
	for _, i := range all[:len(all)-in.Bad] {
		shares[i] = 1
	}
	return Input{Rows: in.Rows}.combined(shares, 0)
}

func bulyan(in Input) Output {
	distances := squaredDistances(in.Rows)
	rest := everyRow(len(in.Rows))
	var chosen []int
	for len(chosen) < len(in.Rows)-2*in.Bad {
		scores := krumScores(distances, rest, in.Bad)
		best := slices.MinFunc(rest, func(a, b int) int { return compare(scores[a], scores[b]) })
		chosen = append(chosen, best)
		rest = slices.DeleteFunc(slices.Clone(rest), func(i int) bool { return i == best })
	}
	keep := len(chosen) - 2*in.Bad
	out := Output{Update: make([]float32, len(in.Rows[0])), Held: make([]float64, len(in.Rows))}
	for i := range out.Held {
		out.Held[i] = 1
	}
	column, sorted := make([]float32, len(chosen)), make([]float32, len(chosen))
	order := make([]int, len(chosen))
	for j := range out.Update {
		for k, i := range chosen {
			column[k], order[k] = in.Rows[i][j], k
		}
		copy(sorted, column)
		middle := medianOf32(sorted)
		slices.SortStableFunc(order, func(a, b int) int {
			return compare(math.Abs(float64(column[a]-middle)), math.Abs(float64(column[b]-middle)))
		})
		sum := 0.0
		for _, k := range order[:keep] {
			sum += float64(column[k])
			out.Held[chosen[k]] -= 1 / float64(len(out.Update))
		}
		out.Update[j] = float32(sum / float64(keep))
	}
	for i := range out.Held {
		out.Held[i] = min(1, max(0, out.Held[i]))
	}
	return out
}

func flTrust(in Input) Output {
	length := norm(in.Reference)
	trust, shares, total := make([]float64, len(in.Rows)), make([]float64, len(in.Rows)), 0.0
	for i, row := range in.Rows {
		if n := norm(row); n > 0 {
			trust[i] = max(0, dot(row, in.Reference)/(n*length))
			shares[i] = trust[i] * length / n
		}
		total += trust[i]
	}
	out := Input{Rows: in.Rows}.combined(shares, total)
	for i, t := range trust {
		out.Held[i] = 1 - min(1, t)
	}
	return out
}

// flame finds the smallest cosine distance at which more than half of the rows
// hang together, which is what HDBSCAN with a least cluster of more than half
// comes to, and leaves out the others.
func flame(in Input) Output {
	n := len(in.Rows)
	lengths := norms(in.Rows)
	distance := func(i, j int) float64 {
		if lengths[i] == 0 || lengths[j] == 0 {
			return 1
		}
		return 1 - dot(in.Rows[i], in.Rows[j])/(lengths[i]*lengths[j])
	}
	type edge struct {
		d    float64
		i, j int
	}
	var edges []edge
	for i := range n {
		for j := range i {
			edges = append(edges, edge{distance(i, j), i, j})
		}
	}
	slices.SortStableFunc(edges, func(a, b edge) int { return compare(a.d, b.d) })
	cluster, size := everyRow(n), map[int]int{}
	for i := range n {
		size[i] = 1
	}
	kept := -1
	if n == 1 {
		kept = 0
	}
	for _, e := range edges {
		a, b := cluster[e.i], cluster[e.j]
		if a == b {
			continue
		}
		for i := range cluster {
			if cluster[i] == b {
				cluster[i] = a
			}
		}
		size[a] += size[b]
		if size[a] > n/2 {
			kept = a
			break
		}
	}
	bound := medianOf(lengths)
	shares, members := make([]float64, n), 0.0
	for i := range n {
		if cluster[i] != kept {
			continue
		}
		members++
		shares[i] = 1
		if lengths[i] > bound {
			shares[i] = bound / lengths[i]
		}
	}
	return Input{Rows: in.Rows}.combined(shares, members)
}

// distanceHeld holds against a row by how much farther from the centre it lies
// than the median row: 0 up to there, 1/2 at twice that distance.
func distanceHeld(rows [][]float32, centre []float32) []float64 {
	distances := make([]float64, len(rows))
	for i, row := range rows {
		sum := 0.0
		for j, v := range row {
			d := float64(v) - float64(centre[j])
			sum += d * d
		}
		distances[i] = math.Sqrt(sum)
	}
	typical := medianOf(distances)
	held := make([]float64, len(rows))
	for i, d := range distances {
		if d > typical && d > 0 {
			held[i] = 1 - typical/d
		}
	}
	return held
}

func coordinateMedian(rows [][]float32) []float32 {
	out, column := make([]float32, len(rows[0])), make([]float32, len(rows))
	for j := range out {
		for i, row := range rows {
			column[i] = row[j]
		}
		out[j] = medianOf32(column)
	}
	return out
}

// medianOf32 sorts v in place.
func medianOf32(v []float32) float32 {
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return float32((float64(v[n/2-1]) + float64(v[n/2])) / 2)
	}
	return v[len(v)/2]
}

func medianOf(v []float64) float64 {
	v = slices.Clone(v)
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

func norms(rows [][]float32) []float64 {
	out := make([]float64, len(rows))
	for i, row := range rows {
		out[i] = norm(row)
	}
	return out
}

func norm(v []float32) float64 { return math.Sqrt(dot(v, v)) }

func dot(a, b []float32) float64 {
	sum := 0.0
	for i, v := range a {
		sum += float64(v) * float64(b[i])
	}
	return sum
}

func squaredDistances(rows [][]float32) [][]float64 {
	out := make([][]float64, len(rows))
	for i := range rows {
		out[i] = make([]float64, len(rows))
	}
	for i := range rows {
		for j := range i {
			sum := 0.0
			for k, v := range rows[i] {
				d := float64(v) - float64(rows[j][k])
				sum += d * d
			}
			out[i][j], out[j][i] = sum, sum
		}
	}
	return out
}

func everyRow(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

func compare[T float32 | float64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
