package poison

import (
	"math"
	"math/rand/v2"
	"slices"
)

// ClassActivations is what a network's inner values say of the cases of one label.
type ClassActivations struct {
	Class      int
	Cases      int
	Leading    float64 // share of the variance along its first direction
	Silhouette float64 // of two clusters (Chen et al. 2018, section 4): above about 0.1 they are apart
	Members    []int   // of the smaller cluster
	Share      float64 // of the cases in it
	Against    int     // of its members, those whose label is not what the judge finds likeliest
	P          float64 // that so many are by chance (Fisher, one-sided, for all classes)
	Found      bool    // small, and far from the rest or mostly labelled against the images
}

const (
	clusterShare = 0.35 // a cluster larger than this is a kind of image, not a few poisoned ones (Chen et al. 2018)
	clusterLevel = 1e-3
	clusterFar   = 0.45 // silhouette from which a cluster of few is called found whatever its labels look like
	clusterFew   = 0.15 // of the cases: few
	clusterHalf  = 0.5  // of a poisoned cluster's members are labelled against their images, at least
	directions   = 10
)

// activations looks at inner values [n][d] label by label: the spectral signature
// (Tran, Li and Madry 2018, algorithm 1), which is the squared length of a case
// along the first direction of its class, and two clusters along the first ten.
// A network that learnt a trigger puts its carriers apart; so does it with
// anything else that a class has two kinds of. So found is only a small cluster
// that is far from the rest, or mostly labelled against its images.
func activations(c *Cases, l *Labels, values [][]float32, seed uint64) (signatures []float64, out []ClassActivations) {
	n := c.Len()
	signatures = make([]float64, n)
	for class := range c.Set.Classes {
		var at []int
		for i, label := range c.Set.Labels {
			if label == class {
				at = append(at, i)
			}
		}
		a := ClassActivations{Class: class, Cases: len(at), P: 1}
		if len(at) < fewest {
			out = append(out, a)
			continue
		}
		rng := rand.New(rand.NewPCG(seed, 0xac71<<8|uint64(class)))
		rows, leading := project(values, at, rng)
		a.Leading = leading
		for r, i := range at {
			signatures[i] = rows[r][0] * rows[r][0]
		}
		second := twoMeans(rows, rng)
		a.Silhouette = silhouette(rows, second)
		against, total := 0, 0
		for r, i := range at {
			wrong := slices.Index(l.Probabilities[i], slices.Max(l.Probabilities[i])) != class
			if wrong {
				total++
			}
			if second[r] {
				a.Members = append(a.Members, i)
				if wrong {
					against++
				}
			}
		}
		a.Share, a.Against = float64(len(a.Members))/float64(len(at)), against
		if len(a.Members) > 0 {
			a.P = min(1, AtLeast(against, len(a.Members), total, len(at))*float64(c.Set.Classes))
		}
		contrary := a.Share <= clusterShare && a.Silhouette >= 0.1 && a.P <= clusterLevel && float64(against) >= clusterHalf*float64(len(a.Members))
		far := a.Share <= clusterFew && a.Silhouette >= clusterFar
		a.Found = len(a.Members) >= markFewest && (contrary || far)
		out = append(out, a)
	}
	return signatures, out
}

// project returns the cases' coordinates along the first directions of their
// variance (power iteration with deflation), and the first one's share of it.
func project(values [][]float32, at []int, rng *rand.Rand) (rows [][]float64, leading float64) {
	d := len(values[at[0]])
	mean := make([]float64, d)
	for _, i := range at {
		for k, v := range values[i] {
			mean[k] += float64(v) / float64(len(at))
		}
	}
	rest := make([][]float64, len(at))
	rows = make([][]float64, len(at))
	total := 0.0
	for r, i := range at {
		rest[r] = make([]float64, d)
		for k, v := range values[i] {
			rest[r][k] = float64(v) - mean[k]
			total += rest[r][k] * rest[r][k]
		}
	}
	for direction := range min(directions, d) {
		v := make([]float64, d)
		for k := range v {
			v[k] = rng.NormFloat64()
		}
		for range 60 {
			next := make([]float64, d)
			for _, x := range rest {
				dot := 0.0
				for k, w := range x {
					dot += w * v[k]
				}
				for k, w := range x {
					next[k] += dot * w
				}
			}
			norm := 0.0
			for _, w := range next {
				norm += w * w
			}
			if norm = math.Sqrt(norm); !(norm > 0) {
				break
			}
			for k, w := range next {
				v[k] = w / norm
			}
		}
		along := 0.0
		for r, x := range rest {
			dot := 0.0
			for k, w := range x {
				dot += w * v[k]
			}
			rows[r] = append(rows[r], dot)
			along += dot * dot
			for k := range x {
				x[k] -= dot * v[k]
			}
		}
		if direction == 0 && total > 0 {
			leading = along / total
		}
	}
	return rows, leading
}

func distance(a, b []float64) float64 {
	sum := 0.0
	for k, v := range a {
		sum += (v - b[k]) * (v - b[k])
	}
	return sum
}

// twoMeans tells who is in the smaller of two clusters, the best of ten starts.
func twoMeans(rows [][]float64, rng *rand.Rand) []bool {
	best, least := make([]bool, len(rows)), math.Inf(1)
	for range 10 {
		a, b := slices.Clone(rows[rng.IntN(len(rows))]), slices.Clone(rows[rng.IntN(len(rows))])
		second := make([]bool, len(rows))
		cost := 0.0
		for range 30 {
			cost = 0
			var count [2]float64
			sums := [2][]float64{make([]float64, len(a)), make([]float64, len(a))}
			for r, x := range rows {
				da, db := distance(x, a), distance(x, b)
				second[r] = db < da
				cost += min(da, db)
				k := 0
				if second[r] {
					k = 1
				}
				count[k]++
				for i, v := range x {
					sums[k][i] += v
				}
			}
			if count[0] == 0 || count[1] == 0 {
				break
			}
			for i := range a {
				a[i], b[i] = sums[0][i]/count[0], sums[1][i]/count[1]
			}
		}
		if cost < least {
			best, least = second, cost
		}
	}
	in := 0
	for _, s := range best {
		if s {
			in++
		}
	}
	if 2*in > len(best) {
		for i := range best {
			best[i] = !best[i]
		}
	}
	return best
}

// silhouette is the mean silhouette of two clusters (Rousseeuw 1987), over at
// most 800 cases.
func silhouette(rows [][]float64, second []bool) float64 {
	step := 1 + len(rows)/800
	sum, n := 0.0, 0
	for i := 0; i < len(rows); i += step {
		var own, other, k, m float64
		for j := 0; j < len(rows); j += step {
			if i == j {
				continue
			}
			d := math.Sqrt(distance(rows[i], rows[j]))
			if second[i] == second[j] {
				own += d
				k++
			} else {
				other += d
				m++
			}
		}
		n++
		if k == 0 || m == 0 {
			continue // alone: 0
		}
		own, other = own/k, other/m
		sum += (other - own) / max(own, other, 1e-12)
	}
	return sum / float64(max(n, 1))
}
