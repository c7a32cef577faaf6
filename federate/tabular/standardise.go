package tabular

import (
	"context"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/train"
)

// Statistics are what the rows of all hospitals come to.
type Statistics struct {
	Sites   int                `json:"sites"`
	Rows    int                `json:"rows"`
	Classes []int              `json:"classes"` // rows of each
	Columns []ColumnStatistics `json:"columns"`
	// Learned is how rows become numbers by them. Columns that say nothing at any
	// hospital are not in it.
	Learned *train.Columns `json:"learned"`
}

// ColumnStatistics are those of one column.
type ColumnStatistics struct {
	Name      string  `json:"name"`
	Present   int     `json:"present"`             // rows that have a value
	Counts    []int   `json:"counts,omitempty"`    // of each of the schema's values
	Mean      float64 `json:"mean,omitempty"`      // of a measurement
	Deviation float64 `json:"deviation,omitempty"` // over all rows that have it
}

// perMeasurement is how many sums a measurement has: how often it is there, and
// the sum and the sum of squares of what share of the way from the lower limit to
// the upper one it has gone.
const perMeasurement = 3

// Question is what hospitals are asked to standardise by. least is as in
// federate.EvaluationOptions.
func (s *Schema) Question(least int) federate.Question {
	digest := s.Digest()
	return federate.Question{Task: federate.TaskStandardise, Numbers: s.numbers(), Least: least, About: []string{hex.EncodeToString(digest[:])}}
}

func (s *Schema) numbers() int {
	n := len(s.Label.Classes)
	for _, c := range s.Columns {
		if c.Values != nil {
			n += len(c.Values)
		} else {
			n += perMeasurement
		}
	}
	return n
}

// Answer implements federate.Answerer for the schema's question.
func (h *Hospital) Answer(_ context.Context, q federate.Question, _ federate.Subject) ([]float64, error) {
	want := h.schema.Question(q.Least)
	if q.Task != want.Task || q.Numbers != want.Numbers || len(q.About) != 1 || q.About[0] != want.About[0] {
		return nil, fmt.Errorf("tabular: answering for %q: %w: the question is about another schema", h.Name, federate.ErrOrder)
	}
	if h.Rows() < q.Least {
		return make([]float64, q.Numbers), nil
	}
	return h.sums()
}

func (h *Hospital) sums() ([]float64, error) {
	out := make([]float64, len(h.schema.Label.Classes))
	for _, l := range h.labels {
		out[l]++
	}
	for j, c := range h.schema.Columns {
		if c.Values != nil {
			at := map[string]int{}
			for k, v := range c.Values {
				at[v] = k
			}
			counts := make([]float64, len(c.Values))
			for _, row := range h.table.Rows {
				if row[j] != "" {
					counts[at[row[j]]]++
				}
			}
			out = append(out, counts...)
			continue
		}
		var sums [perMeasurement]float64
		for _, row := range h.table.Rows {
			if row[j] == "" {
				continue
			}
			v, err := strconv.ParseFloat(row[j], 64)
			if err != nil {
				return nil, fmt.Errorf("tabular: adding up the table of %q: %w", h.Name, err)
			}
			u := (v - c.Low) / (c.High - c.Low)
			sums[0]++
			sums[1] += u
			sums[2] += u * u
		}
		out = append(out, sums[:]...)
	}
	return out, nil
}

// Standardise asks the hospitals and learns from the sums. The coordinator's
// terms must allow federate.TaskStandardise.
func (s *Schema) Standardise(ctx context.Context, c *federate.Coordinator, links []federate.Link, least int) (*Statistics, error) {
	sums, err := c.Ask(ctx, links, s.Question(least))
	if err != nil {
		return nil, fmt.Errorf("tabular: learning to standardise: %w", err)
	}
	out, err := s.learn(sums.Values)
	if err != nil {
		return nil, err
	}
	out.Sites = sums.Sites
	return out, nil
}

// Pool learns from hospitals whose rows are in one place: what Standardise comes
// to, but for rounding.
func (s *Schema) Pool(hospitals ...*Hospital) (*Statistics, error) {
	total := make([]float64, s.numbers())
	for _, h := range hospitals {
		sums, err := h.sums()
		if err != nil {
			return nil, err
		}
		for i, v := range sums {
			total[i] += v
		}
	}
	out, err := s.learn(total)
	if err != nil {
		return nil, err
	}
	out.Sites = len(hospitals)
	return out, nil
}

func (s *Schema) learn(sums []float64) (*Statistics, error) {
	out := &Statistics{Learned: &train.Columns{}}
	take := func(n int) []float64 {
		v := sums[:n]
		sums = sums[n:]
		return v
	}
	for _, n := range take(len(s.Label.Classes)) {
		out.Classes = append(out.Classes, int(math.Round(n)))
		out.Rows += int(math.Round(n))
	}
	if out.Rows < 1 {
		return nil, fmt.Errorf("tabular: learning to standardise: %w: no hospital has rows to count", ErrRows)
	}
	for _, c := range s.Columns {
		one := ColumnStatistics{Name: c.Name}
		learned := train.Column{Name: c.Name}
		if c.Values != nil {
			for k, n := range take(len(c.Values)) {
				one.Counts = append(one.Counts, int(math.Round(n)))
				one.Present += one.Counts[k]
				if one.Counts[k] > 0 {
					learned.Values = append(learned.Values, c.Values[k])
				}
			}
		} else {
			v := take(perMeasurement)
			one.Present = int(math.Round(v[0]))
			if one.Present > 0 {
				mean := v[1] / v[0]
				one.Mean = c.Low + mean*(c.High-c.Low)
				one.Deviation = math.Sqrt(max(0, v[2]/v[0]-mean*mean)) * (c.High - c.Low)
				// what rounding of the sums alone comes to is no deviation
				if one.Deviation < 1e-6*(c.High-c.Low) {
					one.Deviation = 0
				}
			}
			learned.Mean, learned.Deviation = one.Mean, one.Deviation
		}
		out.Columns = append(out.Columns, one)
		learned.Missing = c.Missing && one.Present > 0 && one.Present < out.Rows
		if len(learned.Values) > 1 || learned.Deviation > 0 || learned.Missing {
			out.Learned.Columns = append(out.Learned.Columns, learned)
		}
	}
	if len(out.Learned.Columns) == 0 {
		return nil, fmt.Errorf("tabular: learning to standardise: %w: no column says anything at any hospital", ErrRows)
	}
	return out, nil
}
