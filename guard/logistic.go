package guard

import "math"

// logistic is a linear classifier of clean and altered images.
type logistic struct {
	Mean, Scale, Weights []float64 // of each number; Scale divides
	Bias                 float64
}

// fitLogistic fits it by Newton's method with a ridge on the weights (Hastie,
// Tibshirani and Friedman 2009, section 4.4.1). Both kinds weigh the same in
// total, numbers are scaled by the clean ones.
func fitLogistic(clean, altered [][]float64) (*logistic, error) {
	p := len(clean[0])
	m := &logistic{Mean: make([]float64, p), Scale: make([]float64, p), Weights: make([]float64, p)}
	for _, x := range clean {
		for j, v := range x {
			m.Mean[j] += v / float64(len(clean))
		}
	}
	for _, x := range clean {
		for j, v := range x {
			m.Scale[j] += (v - m.Mean[j]) * (v - m.Mean[j]) / float64(len(clean))
		}
	}
	for j := range m.Scale {
		m.Scale[j] = math.Sqrt(m.Scale[j]) + 1e-3
	}
	rows := make([][]float64, 0, len(clean)+len(altered))
	for _, x := range clean {
		rows = append(rows, m.standard(x))
	}
	for _, x := range altered {
		rows = append(rows, m.standard(x))
	}
	const ridge = 1.0
	n := float64(len(rows))
	weight := [2]float64{n / 2 / float64(len(clean)), n / 2 / float64(len(altered))}
	beta := make([]float64, p+1)
	for range 25 {
		hessian := square(p + 1)
		slope := make([]float64, p+1)
		for i, x := range rows {
			z := beta[p]
			for j, v := range x {
				z += beta[j] * v
			}
			kind, target := 0, 0.0
			if i >= len(clean) {
				kind, target = 1, 1
			}
			q := 1 / (1 + math.Exp(-z))
			d, h := weight[kind]*(target-q), weight[kind]*q*(1-q)
			for j, v := range x {
				slope[j] += d * v
				hv := h * v
				row := hessian[j]
				for k := 0; k <= j; k++ {
					row[k] += hv * x[k]
				}
				hessian[p][j] += hv
			}
			slope[p] += d
			hessian[p][p] += h
		}
		for j := range p {
			hessian[j][j] += ridge
			slope[j] -= ridge * beta[j]
		}
		hessian[p][p] += 1e-9
		step, err := solve(hessian, slope)
		if err != nil {
			return nil, err
		}
		largest := 0.0
		for j, v := range step {
			largest = max(largest, math.Abs(v))
			beta[j] += v
		}
		if largest > 5 { // a full step from far away overshoots
			for j, v := range step {
				beta[j] -= v * (1 - 5/largest)
			}
		}
		if largest < 1e-8 {
			break
		}
	}
	copy(m.Weights, beta)
	m.Bias = beta[p]
	return m, nil
}

func (m *logistic) standard(x []float64) []float64 {
	out := make([]float64, len(x))
	for j, v := range x {
		out[j] = (v - m.Mean[j]) / m.Scale[j]
	}
	return out
}

// score is the logit of being altered.
func (m *logistic) score(x []float64) float64 {
	z := m.Bias
	for j, v := range x {
		z += m.Weights[j] * (v - m.Mean[j]) / m.Scale[j]
	}
	return z
}
