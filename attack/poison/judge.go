package poison

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
)

// The judge is a kernel ridge regression on the fixed descriptions. What it says
// of a case is said without the case's own label and those of the same patient,
// exactly, from one decomposition: no fold is trained.
const (
	ridge     = 0.1  // of the regression
	landmarks = 1200 // cases that the kernel of more cases is built on (Nyström)
	choosing  = 600  // cases that the kernel is chosen by
	repeats   = 2    // drawings of landmarks that are averaged
)

// judgement is what a judge says of each case.
type judgement struct {
	scores [][]float64 // [n][classes], out of fold; larger is likelier
	mirror bool        // mirror images count as alike
	sharp  float64     // of the kernel
	exact  bool        // every case was a landmark
}

// judge judges each case by the others. group numbers the patients.
func judge(ctx context.Context, d *described, labels []int, classes int, group []int, seed uint64, progress func(float64)) (*judgement, error) {
	rng := rand.New(rand.NewPCG(seed, 0x0dd5))
	every := rng.Perm(d.n)
	few := slices.Sorted(slices.Values(every[:min(choosing, d.n)]))
	best, least := &judgement{}, 0.0
	tries := []struct {
		mirror bool
		sharp  float64
	}{{true, 1}, {false, 1}, {true, 0.5}, {false, 0.5}}
	for k, try := range tries {
		scores, err := d.outOfFold(ctx, few, few, labels, classes, group, try.mirror, try.sharp)
		if errors.Is(err, errSingular) {
			continue
		}
		if err != nil {
			return nil, err
		}
		loss := 0.0 // squared, of the class itself
		for i, at := range few {
			for c, z := range scores[i] {
				e := z - sign(labels[at] == c)
				loss += e * e
			}
		}
		if best.sharp == 0 || loss < least {
			best, least = &judgement{mirror: try.mirror, sharp: try.sharp}, loss
		}
		progress(0.3 * float64(k+1) / float64(len(tries)))
	}
	if best.sharp == 0 {
		return nil, errSingular
	}
	all := make([]int, d.n)
	for i := range all {
		all[i] = i
	}
	times := repeats
	if d.n <= landmarks {
		times, best.exact = 1, true
	}
	best.scores = make([][]float64, d.n)
	for i := range best.scores {
		best.scores[i] = make([]float64, classes)
	}
	for t := range times {
		marks := slices.Sorted(slices.Values(rng.Perm(d.n)[:min(landmarks, d.n)]))
		scores, err := d.outOfFold(ctx, all, marks, labels, classes, group, best.mirror, best.sharp)
		if err != nil {
			return nil, err
		}
		for i, row := range scores {
			for c, z := range row {
				best.scores[i][c] += z / float64(times)
			}
		}
		progress(0.3 + 0.7*float64(t+1)/float64(times))
	}
	return best, nil
}

func sign(yes bool) float64 {
	if yes {
		return 1
	}
	return -1
}

// outOfFold predicts ±1 for each class of the cases, each patient's from the
// others'. With Φ the map onto landmarks, H = Φ(ΦᵀΦ+λ)⁻¹Φᵀ and a patient's cases
// B, what is predicted without them is y_B - (1-H_BB)⁻¹(y_B - ŷ_B).
func (d *described) outOfFold(ctx context.Context, cases, marks []int, labels []int, classes int, group []int, mirror bool, sharp float64) ([][]float64, error) {
	n, m := len(cases), len(marks)
	self, err := d.kernel(ctx, marks, marks, mirror, sharp)
	if err != nil {
		return nil, err
	}
	l := square(m)
	for i := range m {
		for j := 0; j <= i; j++ {
			l[i][j] = float64(self[i*m+j]+self[j*m+i]) / 2 // the mirrored half need not be symmetric
		}
		l[i][i] += 1e-3
	}
	if err := cholesky(l); err != nil {
		return nil, err
	}
	whitener := make([]float32, m*m)
	for i, row := range inverted(l) {
		for j, v := range row[:i+1] {
			whitener[i*m+j] = float32(v)
		}
	}
	cross, err := d.kernel(ctx, cases, marks, mirror, sharp)
	if err != nil {
		return nil, err
	}
	phi, err := d.product.transposed(ctx, cross, whitener, m) // [n, m]
	if err != nil {
		return nil, err
	}
	columns := make([]float32, n*m)
	for i := range n {
		for j := range m {
			columns[j*n+i] = phi[i*m+j]
		}
	}
	gram, err := d.product.transposed(ctx, columns, columns, n)
	if err != nil {
		return nil, err
	}
	g := square(m)
	for i := range m {
		for j := 0; j <= i; j++ {
			g[i][j] = float64(gram[i*m+j])
		}
		g[i][i] += ridge
	}
	if err := cholesky(g); err != nil {
		return nil, err
	}
	for i, row := range inverted(g) {
		clear(whitener[i*m : (i+1)*m])
		for j, v := range row[:i+1] {
			whitener[i*m+j] = float32(v)
		}
	}
	white, err := d.product.transposed(ctx, phi, whitener, m) // H = white·whiteᵀ
	if err != nil {
		return nil, err
	}
	out := make([][]float64, n)
	members := map[int][]int{}
	for i, at := range cases {
		out[i] = make([]float64, classes)
		members[group[at]] = append(members[group[at]], i)
	}
	for c := range classes {
		y, mean := make([]float64, n), 0.0
		for i, at := range cases {
			y[i] = sign(labels[at] == c)
			mean += y[i] / float64(n)
		}
		weights := make([]float64, m)
		for i := range n {
			for j, v := range white[i*m : (i+1)*m] {
				weights[j] += float64(v) * (y[i] - mean)
			}
		}
		for i, at := range cases {
			mine := members[group[at]]
			if mine[0] != i {
				continue // its patient's turn has been
			}
			block, rest := square(len(mine)), make([]float64, len(mine))
			for a, x := range mine {
				hat := 0.0
				row := white[x*m : (x+1)*m]
				for j, v := range row {
					hat += float64(v) * weights[j]
				}
				rest[a] = y[x] - mean - hat
				for b, z := range mine[:a+1] {
					dot := 0.0
					for j, v := range white[z*m : (z+1)*m] {
						dot += float64(v) * float64(row[j])
					}
					block[a][b] = -dot
				}
				block[a][a] += 1 + 1e-6
			}
			if err := cholesky(block); err != nil {
				return nil, err
			}
			for a, v := range solve(block, rest) {
				out[mine[a]][c] = y[mine[a]] - v
			}
		}
	}
	return out, nil
}
