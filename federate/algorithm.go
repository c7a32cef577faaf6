package federate

import (
	"fmt"
	"math"
	"strings"
)

// Algorithm names how sites learn and what becomes of the sum.
type Algorithm string

// The algorithms.
const (
	FedAvg   Algorithm = "fedavg"
	FedProx  Algorithm = "fedprox"
	FedAdam  Algorithm = "fedadam"
	FedYogi  Algorithm = "fedyogi"
	SCAFFOLD Algorithm = "scaffold"
	FedSGD   Algorithm = "fedsgd"
)

// AlgorithmRow is a row of the table of algorithms.
type AlgorithmRow struct {
	Name   Algorithm
	About  string
	Source string
}

// Algorithms lists all algorithms.
func Algorithms() []AlgorithmRow {
	return []AlgorithmRow{
		{FedAvg, "the weighted mean of the sites' updates", "McMahan et al. 2017"},
		{FedProx, "FedAvg with local steps that are pulled back to where they began", "Li et al. 2020"},
		{FedAdam, "the mean update moves the weights as a gradient would under Adam", "Reddi et al. 2021, algorithm 2"},
		{FedYogi, "likewise under Yogi, whose second moment falls more slowly", "Reddi et al. 2021, algorithm 2"},
		{FedSGD, "one step of Adam a round along everybody's clipped gradients: what protects patients (DP)", "McMahan et al. 2017; Abadi et al. 2016"},
		{SCAFFOLD, "local steps corrected by how the site's gradient differs from everybody's", "Karimireddy et al. 2020, option II"},
	}
}

func (a Algorithm) row() (AlgorithmRow, error) {
	var names []string
	for _, r := range Algorithms() {
		if r.Name == a {
			return r, nil
		}
		names = append(names, string(r.Name))
	}
	return AlgorithmRow{}, fmt.Errorf("algorithm %q: want %s", a, strings.Join(names, ", "))
}

func (a Algorithm) adaptive() bool { return a == FedAdam || a == FedYogi }

// server is what the coordinator keeps of an algorithm from round to round.
type server struct {
	Moment   []float32 // of FedAdam and FedYogi
	Variance []float32 //
	Control  []float32 // of SCAFFOLD
	Average  []float32 // of Terms.Average
}

// newServer makes the state for a model with so many variables, of which the
// first so many are trained.
func newServer(a Algorithm, variables, trained int) server {
	switch {
	case a.adaptive() || a == FedSGD:
		return server{Moment: make([]float32, variables), Variance: make([]float32, variables)}
	case a == SCAFFOLD:
		return server{Control: make([]float32, trained)}
	}
	return server{}
}

// move changes the global variables by a mean update, and the control variate by
// the mean change of the sites', which reach of all sites have sent. Running
// statistics, behind the first trained variables, take the mean as it is. step
// counts rounds from 0.
func (s *server) move(t Terms, x []float32, trained int, update, control []float32, reach float64, step int) {
	rate := float32(t.ServerRate)
	for j := trained; j < len(x); j++ {
		x[j] += update[j]
	}
	switch {
	case t.Algorithm == FedSGD:
		s.adam(t, x[:trained], update[:trained], step)
	case t.Algorithm.adaptive():
		b1, b2, tau := float32(t.Beta1), float32(t.Beta2), float32(t.Tau)
		for j, d := range update[:trained] {
			s.Moment[j] = b1*s.Moment[j] + (1-b1)*d
			square := d * d
			if t.Algorithm == FedAdam {
				s.Variance[j] = b2*s.Variance[j] + (1-b2)*square
			} else if s.Variance[j] > square {
				s.Variance[j] -= (1 - b2) * square
			} else {
				s.Variance[j] += (1 - b2) * square
			}
			x[j] += rate * s.Moment[j] / (float32(math.Sqrt(float64(s.Variance[j]))) + tau)
		}
	default:
		for j, d := range update[:trained] {
			x[j] += rate * d
		}
	}
	for j := range s.Control {
		s.Control[j] += float32(reach) * control[j]
	}
}

// adam is a step of Adam (Kingma and Ba 2015, with their correction of the moments'
// beginnings) along a mean of gradients downhill, at the round's rate.
func (s *server) adam(t Terms, x, downhill []float32, step int) {
	n := float64(step + 1)
	b1, b2 := float32(t.Beta1), float32(t.Beta2)
	n1, n2 := float32(1-t.Beta1), float32(1-t.Beta2)
	size := float32(t.ServerRate * t.rate(step) / (1 - math.Pow(t.Beta1, n)))
	correct := 1 / (1 - math.Pow(t.Beta2, n))
	for j, d := range downhill {
		s.Moment[j] = b1*s.Moment[j] + n1*d
		s.Variance[j] = b2*s.Variance[j] + n2*d*d
		x[j] += size * s.Moment[j] / (float32(math.Sqrt(float64(s.Variance[j])*correct)) + float32(t.Tau))
	}
}

// average moves the moving average of the weights. Its decay grows from 0, so that
// the start does not weigh on short runs: min(decay, (1+n)/(10+n)).
func (s *server) average(decay float64, x []float32, step int) {
	if decay == 0 {
		return
	}
	n := float64(step + 1)
	keep := float32(min(decay, (1+n)/(10+n)))
	if step == 0 {
		keep = 0
	}
	for j, v := range x {
		s.Average[j] += (1 - keep) * (v - s.Average[j])
	}
}
