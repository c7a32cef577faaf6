package poison

import (
	"cmp"
	"math"
	"slices"
)

// trusted is how many labels of each class count as right before any is looked
// at: it keeps the estimated noise from following single hard images.
const trusted = 10

// link turns a judge's scores into probabilities of the true class,
//
//	p(k|x) = softmax_k(Slope·z_k + Bias_k)
//
// and knows how labels err: Noise[k][j] is the probability that a case of class k
// is labelled j.
type link struct {
	slope float64
	bias  []float64
	noise [][]float64
}

func (l *link) probabilities(z []float64) []float64 {
	p, top := make([]float64, len(z)), math.Inf(-1)
	for k, v := range z {
		p[k] = l.slope*v + l.bias[k]
		top = max(top, p[k])
	}
	sum := 0.0
	for k, v := range p {
		p[k] = math.Exp(v - top)
		sum += p[k]
	}
	for k := range p {
		p[k] /= sum
	}
	return p
}

// truth is the probability of each class of a case whose label is known, and the
// likelihood of the label.
func truth(p []float64, label int, noise [][]float64) (q []float64, likelihood float64) {
	q = make([]float64, len(p))
	for k, v := range p {
		q[k] = v * noise[k][label]
		likelihood += q[k]
	}
	for k := range q {
		q[k] /= max(likelihood, 1e-300)
	}
	return q, max(likelihood, 1e-300)
}

func clean(classes int, error float64) [][]float64 {
	t := square(classes)
	for k := range t {
		for j := range t[k] {
			t[k][j] = error / float64(classes-1)
		}
		t[k][k] = 1 - error
	}
	return t
}

// fitLink estimates the link and the noise together by expectation-maximisation,
// over the cases listed.
func fitLink(scores [][]float64, labels []int, classes int, at []int) *link {
	l := &link{slope: 2, bias: make([]float64, classes), noise: clean(classes, 0.03)}
	rows := make([][]float64, len(at)) // responsibilities
	for range 80 {
		for r, i := range at {
			rows[r], _ = truth(l.probabilities(scores[i]), labels[i], l.noise)
		}
		l.noise = noiseOf(rows, labels, at, classes, trusted)
		l.newton(scores, rows, at)
	}
	return l
}

// noiseOf counts what labels the cases of each class have.
func noiseOf(rows [][]float64, labels []int, at []int, classes int, trusted float64) [][]float64 {
	t := square(classes)
	for r, i := range at {
		for k, q := range rows[r] {
			t[k][labels[i]] += q
		}
	}
	for k := range t {
		t[k][k] += trusted
		sum := 0.0
		for _, v := range t[k] {
			sum += v
		}
		for j := range t[k] {
			t[k][j] = max(t[k][j]/max(sum, 1e-12), 1e-6)
		}
	}
	return t
}

// newton raises the likelihood of soft classes by one step in slope and biases.
func (l *link) newton(scores, rows [][]float64, at []int) {
	classes := len(l.bias)
	n := classes // slope, and the biases of all classes but the last
	slope, curve := make([]float64, n), square(n)
	f := make([][]float64, classes)
	for k := range f {
		f[k] = make([]float64, n)
	}
	mean := make([]float64, n)
	for r, i := range at {
		p := l.probabilities(scores[i])
		clear(mean)
		for k := range f {
			clear(f[k])
			f[k][0] = scores[i][k]
			if k < classes-1 {
				f[k][1+k] = 1
			}
			for a, v := range f[k] {
				mean[a] += p[k] * v
			}
		}
		for k := range f {
			for a := range n {
				slope[a] += (rows[r][k] - p[k]) * f[k][a]
				for b := 0; b <= a; b++ {
					curve[a][b] += p[k] * (f[k][a] - mean[a]) * (f[k][b] - mean[b])
				}
			}
		}
	}
	slope[0] -= 1e-3 * l.slope
	for a := range n {
		curve[a][a] += 1e-3
	}
	if cholesky(curve) != nil {
		return
	}
	step := solve(curve, slope)
	longest := 0.0
	for _, v := range step {
		longest = max(longest, math.Abs(v))
	}
	scale := min(1, 2/max(longest, 1e-12))
	l.slope = max(0, l.slope+scale*step[0])
	for k := range classes - 1 {
		l.bias[k] += scale * step[1+k]
	}
}

// SiteNoise is how the labels of one contributor err.
type SiteNoise struct {
	Site     string      `json:"site"`
	Cases    int         `json:"cases"`
	Expected float64     `json:"expected_wrong"` // labels, by its noise matrix
	Noise    [][]float64 `json:"noise"`          // [class][label]
	P        float64     `json:"p"`              // of the least likely direction of error, that it is as elsewhere
	Adjusted float64     `json:"p_adjusted"`     // for the number of sites and directions (Bonferroni)
	From     int         `json:"from"`           // that direction: cases of this class
	To       int         `json:"to"`             // are labelled this
	Own      bool        `json:"own"`            // it errs more than the others, and by its own matrix
}

// siteLevel is the level at which a site is said to err more than the others.
const siteLevel = 0.05

// fitSites fits link and noise, and gives sites whose labels contradict the
// images more than elsewhere a noise matrix of their own. One site after another,
// the most conspicuous first: each leaves those whose labels say what is usual.
func fitSites(scores [][]float64, labels []int, classes int, sites []string) (*link, []SiteNoise) {
	n := len(labels)
	every := make([]int, n)
	for i := range every {
		every[i] = i
	}
	base := fitLink(scores, labels, classes, every)
	if sites == nil {
		return base, nil
	}
	members := map[string][]int{}
	for i, s := range sites {
		members[s] = append(members[s], i)
	}
	var names []string
	for s := range members {
		if s != "" {
			names = append(names, s)
		}
	}
	slices.Sort(names)
	if len(names) < 2 {
		return base, nil
	}
	out := make([]SiteNoise, len(names))
	tests := float64(len(names) * classes * (classes - 1))
	var p [][]float64
	for {
		p = make([][]float64, n)
		for i := range p {
			p[i] = base.probabilities(scores[i])
		}
		worst := -1
		for k, s := range names {
			if out[k].Own {
				continue
			}
			out[k] = direction(p, labels, members[s], base.noise)
			out[k].Site, out[k].Cases, out[k].Noise = s, len(members[s]), base.noise
			out[k].Adjusted = min(1, out[k].P*tests)
			if out[k].Adjusted <= siteLevel && (worst < 0 || out[k].P < out[worst].P) {
				worst = k
			}
		}
		own := 0
		for _, s := range out {
			if s.Own {
				own++
			}
		}
		if worst < 0 || own+1 >= len(names) {
			break
		}
		out[worst].Own = true
		var rest []int
		for i, s := range sites {
			k, known := slices.BinarySearch(names, s)
			if !known || !out[k].Own {
				rest = append(rest, i)
			}
		}
		base = fitLink(scores, labels, classes, rest)
	}
	for k := range out {
		at := members[out[k].Site]
		out[k].Noise = base.noise
		if out[k].Own {
			out[k].Noise = siteNoise(p, labels, at, base.noise)
		}
		out[k].Expected = 0
		for _, i := range at {
			q, _ := truth(p[i], labels[i], out[k].Noise)
			out[k].Expected += 1 - q[labels[i]]
		}
	}
	return base, out
}

// siteNoise estimates the noise of a site with the link as it is.
func siteNoise(p [][]float64, labels, at []int, base [][]float64) [][]float64 {
	t := base
	rows := make([][]float64, len(at))
	for range 100 {
		for r, i := range at {
			rows[r], _ = truth(p[i], labels[i], t)
		}
		t = noiseOf(rows, labels, at, len(base), 1)
	}
	return t
}

// direction finds the direction in which a site's labels err most beyond what is
// usual: a likelihood ratio for each pair of class and label, one-sided.
func direction(p [][]float64, labels, at []int, base [][]float64) SiteNoise {
	classes := len(base)
	out := SiteNoise{P: 1}
	likelihood := func(t [][]float64) float64 {
		sum := 0.0
		for _, i := range at {
			_, v := truth(p[i], labels[i], t)
			sum += math.Log(v)
		}
		return sum
	}
	usual := likelihood(base)
	for k := range classes {
		for j := range classes {
			if j == k {
				continue
			}
			t := square(classes)
			for a := range t {
				copy(t[a], base[a])
			}
			with := func(e float64) float64 {
				t[k][j], t[k][k] = e, max(base[k][k]+base[k][j]-e, 1e-6)
				return likelihood(t)
			}
			low, high := base[k][j], base[k][j]+0.9*base[k][k]
			const golden = 0.6180339887498949
			for range 30 {
				a, b := high-golden*(high-low), low+golden*(high-low)
				if with(a) < with(b) {
					low = a
				} else {
					high = b
				}
			}
			if v := boundary(2 * (with((low+high)/2) - usual)); v < out.P {
				out.P, out.From, out.To = v, k, j
			}
		}
	}
	return out
}

// Labels is what the audit says of the labels.
type Labels struct {
	Probabilities [][]float64 // [n][classes] of the true class, out of fold, the label unseen
	Wrong         []float64   // [n] that the label is wrong, given it and its site's noise
	Likely        []int       // [n] the likeliest class that is not the label
	Confident     []bool      // [n] off the diagonal of the confident joint
	Suspects      []int       // positions, the likeliest wrong first
	Precision     float64     // expected share of the suspects whose label is wrong
	Noise         [][]float64 // [class][label] where no site has its own
	Joint         [][]float64 // [label][class], share of the cases (Northcutt et al. 2021, section 3.1)
	Thresholds    []float64   // [classes] mean probability of a class among its labels
	Agreement     float64     // share of labels that are the judge's likeliest class
	Exact         bool        // judged on all cases, not on landmarks
	Sites         []SiteNoise // sorted by name
}

// labelsOf finds wrong labels in a judge's scores. share bounds the expected share
// of right labels among the suspects.
func labelsOf(j *judgement, labels []int, classes int, sites []string, share float64) *Labels {
	n := len(labels)
	base, own := fitSites(j.scores, labels, classes, sites)
	out := &Labels{Wrong: make([]float64, n), Likely: make([]int, n), Noise: base.noise, Sites: own, Exact: j.exact}
	at := map[string]int{}
	for k, s := range own {
		at[s.Site] = k
	}
	agree := 0
	for i, label := range labels {
		p := base.probabilities(j.scores[i])
		out.Probabilities = append(out.Probabilities, p)
		noise := base.noise
		if own != nil {
			if k, ok := at[sites[i]]; ok {
				noise = own[k].Noise
			}
		}
		q, _ := truth(p, label, noise)
		out.Wrong[i] = 1 - q[label]
		q[label] = -1
		out.Likely[i] = slices.Index(q, slices.Max(q))
		if slices.Index(p, slices.Max(p)) == label {
			agree++
		}
	}
	out.Agreement = float64(agree) / float64(n)
	out.confident(labels, classes)
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(out.Wrong[b], out.Wrong[a]) })
	sum, taken := 0.0, 0
	for k, i := range order {
		sum += out.Wrong[i]
		if sum/float64(k+1) >= 1-share {
			taken, out.Precision = k+1, sum/float64(k+1)
		}
	}
	out.Suspects = order[:taken]
	return out
}

// confident counts the confident joint (Northcutt, Jiang and Chuang 2021, equation
// 1): a case counts for the likeliest of the classes whose probability is at least
// the mean that the class has among its own labels. Rows are scaled to the labels
// that there are.
func (l *Labels) confident(labels []int, classes int) {
	l.Thresholds = make([]float64, classes)
	counts := make([]float64, classes)
	for i, label := range labels {
		l.Thresholds[label] += l.Probabilities[i][label]
		counts[label]++
	}
	for c := range l.Thresholds {
		l.Thresholds[c] /= max(counts[c], 1)
	}
	l.Joint, l.Confident = square(classes), make([]bool, len(labels))
	for i, label := range labels {
		best := -1
		for c, p := range l.Probabilities[i] {
			if p >= l.Thresholds[c] && (best < 0 || p > l.Probabilities[i][best]) {
				best = c
			}
		}
		if best >= 0 {
			l.Joint[label][best]++
			l.Confident[i] = best != label
		}
	}
	for j, row := range l.Joint {
		sum := 0.0
		for _, v := range row {
			sum += v
		}
		for c := range row {
			if sum > 0 {
				row[c] *= counts[j] / sum / float64(len(labels))
			}
		}
	}
}
