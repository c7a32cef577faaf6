package simulate

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/vigie/vigie/train"
)

// least is how many people a virtual site has at least: divisions that leave one
// with fewer are drawn again.
const least = 4

// Divide draws which examples of a set each of n sites has. With alpha 0 each has
// an equal share of all; otherwise the people of each class are divided by a
// draw from Dirichlet(alpha), so that sites differ in size and in how often they
// see a class, the more the smaller alpha is (Hsu et al. 2019, by class as in Li
// et al. 2022). A person's examples stay together. The same seed draws the same
// division.
func Divide(s *train.Set, n int, alpha float64, seed uint64) ([][]int, error) {
	if n < 1 || !(alpha >= 0) || math.IsInf(alpha, 0) {
		return nil, fmt.Errorf("simulate: dividing %q among %d sites with a Dirichlet parameter of %g: want at least 1, and 0 or more", s.Name, n, alpha)
	}
	// people, by the first class that one of their examples has
	var people [][]int
	known := map[string]int{}
	for i := range s.Len() {
		person := s.Person(i)
		at, met := known[person]
		if !met {
			at = len(people)
			known[person] = at
			people = append(people, nil)
		}
		people[at] = append(people[at], i)
	}
	if len(people) < n*least {
		return nil, fmt.Errorf("simulate: dividing %q among %d sites: it has examples of %d people, and %d are needed for each site", s.Name, n, len(people), least)
	}
	byClass := make([][]int, s.Classes+1)
	for p, examples := range people {
		class := 0
		for class < s.Classes && !s.Has(examples[0], class) {
			class++
		}
		byClass[class] = append(byClass[class], p)
	}
	rng := rand.New(rand.NewPCG(seed, 0x5b8e7ab1))
	for range 10_000 {
		sites := make([][]int, n)
		for _, class := range byClass {
			class = slices.Clone(class)
			rng.Shuffle(len(class), func(i, j int) { class[i], class[j] = class[j], class[i] })
			shares := make([]float64, n)
			total := 0.0
			for i := range shares {
				shares[i] = 1
				if alpha > 0 {
					shares[i] = gamma(rng, alpha)
				}
				total += shares[i]
			}
			if !(total > 0) { // so small a parameter that every draw was rounded to 0
				shares[rng.IntN(n)], total = 1, 1
			}
			from, sum := 0, 0.0
			for i, share := range shares {
				sum += share
				to := int(math.Round(sum / total * float64(len(class))))
				if i == n-1 {
					to = len(class)
				}
				sites[i] = append(sites[i], class[from:to]...)
				from = to
			}
		}
		if slices.ContainsFunc(sites, func(p []int) bool { return len(p) < least }) {
			continue
		}
		out := make([][]int, n)
		for i, site := range sites {
			for _, p := range site {
				out[i] = append(out[i], people[p]...)
			}
			slices.Sort(out[i])
		}
		return out, nil
	}
	return nil, fmt.Errorf("simulate: dividing %q among %d sites with a Dirichlet parameter of %g: in 10,000 draws some site had fewer than %d people; take fewer sites, or a larger parameter", s.Name, n, alpha, least)
}

// gamma draws from Gamma(a, 1) by Marsaglia and Tsang (2000), for a < 1 with
// their boost.
func gamma(rng *rand.Rand, a float64) float64 {
	if a < 1 {
		return gamma(rng, a+1) * math.Pow(1-rng.Float64(), 1/a)
	}
	d := a - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := rng.NormFloat64()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if math.Log(1-rng.Float64()) < x*x/2+d-d*v+d*math.Log(v) {
			return d * v
		}
	}
}
