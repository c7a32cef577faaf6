package robust

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"pgregory.net/rapid"
)

func TestEveryRuleIsWhatNumPyMakesOfItsPaper(t *testing.T) {
	data, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Rows      [][]float32
		Weights   []float64
		Bad       int
		Reference []float32
		Updates   map[Name][]float64
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	for n, c := range cases {
		for _, rule := range Rules() {
			want, there := c.Updates[rule.Name]
			if !there {
				t.Fatalf("testdata/reference.py has no %s", rule.Name)
			}
			out, err := rule.Combine(Input{Rows: c.Rows, Weights: c.Weights, Bad: c.Bad, Reference: c.Reference})
			if len(c.Rows) < rule.Least(c.Bad) {
				if !errors.Is(err, ErrRows) {
					t.Errorf("%s of %d rows, %d of them bad: %v", rule.Name, len(c.Rows), c.Bad, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			for j := range want {
				if math.Abs(float64(out.Update[j])-want[j]) > 1e-5 {
					t.Errorf("case %d, %s: number %d is %v, want %v", n, rule.Name, j, out.Update[j], want[j])
					break
				}
			}
			if rule.Name == Mean {
				continue
			}
			usual := 0.0 // held against the good rows, on average
			for _, h := range out.Held[c.Bad:] {
				usual += h / float64(len(c.Rows)-c.Bad)
			}
			for i, h := range out.Held[:c.Bad] {
				if h <= usual {
					t.Errorf("case %d, %s: %.2f is held against bad row %d, %.2f against the average good one", n, rule.Name, h, i, usual)
				}
			}
		}
	}
}

func TestBadRowsCannotMoveARobustUpdateFarFromTheGoodOnes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bad := rapid.IntRange(0, 2).Draw(t, "bad")
		n := rapid.IntRange(4*bad+3, 12).Draw(t, "rows")
		const d = 5
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		rows := make([][]float32, n)
		low, high, longest := [d]float64{}, [d]float64{}, 0.0
		for j := range d {
			low[j], high[j] = math.Inf(1), math.Inf(-1)
		}
		for i := range rows {
			rows[i] = make([]float32, d)
			for j := range rows[i] {
				if i < bad {
					rows[i][j] = rapid.Float32Range(-1e9, 1e9).Draw(t, "value")
					continue
				}
				rows[i][j] = float32(1 + rng.NormFloat64())
				low[j], high[j] = min(low[j], float64(rows[i][j])), max(high[j], float64(rows[i][j]))
			}
			if i >= bad {
				longest = max(longest, norm(rows[i]))
			}
		}
		reference := []float32{1, 1, 1, 1, 1}
		for _, rule := range Rules() {
			out, err := rule.Combine(Input{Rows: rows, Bad: bad, Reference: reference})
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range out.Held {
				if !(h >= 0 && h <= 1) {
					t.Fatalf("%s: %v is held against a row", rule.Name, h)
				}
			}
			switch rule.Name {
			case Median, TrimmedMean, Bulyan:
				// each coordinate stays among the good ones; Bulyan's mean may take in a
				// bad number that is closer to the median than the farthest good one
				for j, v := range out.Update {
					slack := 1e-5
					if rule.Name == Bulyan {
						slack += high[j] - low[j]
					}
					if float64(v) < low[j]-slack || float64(v) > high[j]+slack {
						t.Fatalf("%s: coordinate %d is %v, the good ones are %v to %v", rule.Name, j, v, low[j], high[j])
					}
				}
			case NormBound, Cosine, FLAME, FLTrust: // the length is bounded by a good one's, or the reference's
				if length := norm(out.Update); length > max(longest, norm(reference))*(1+1e-5) {
					t.Fatalf("%s: the update is %v long, the longest good row %v", rule.Name, length, longest)
				}
			}
		}
	})
}

func TestRowsThatNoRuleCombinesAreRefused(t *testing.T) {
	good := [][]float32{{1, 2}, {2, 3}, {1, 1}, {2, 2}, {1, 3}}
	nan := float32(math.NaN())
	for what, in := range map[string]Input{
		"none":              {},
		"an empty row":      {Rows: [][]float32{{}, {}, {}, {}, {}}},
		"uneven rows":       {Rows: [][]float32{{1, 2}, {1}, {1, 2}, {1, 2}, {1, 2}}},
		"not a number":      {Rows: [][]float32{{1, nan}, {1, 2}, {1, 2}, {1, 2}, {1, 2}}},
		"infinity":          {Rows: [][]float32{{1, float32(math.Inf(1))}, {1, 2}, {1, 2}, {1, 2}, {1, 2}}},
		"a negative number": {Rows: good, Bad: -1},
		"weights missing":   {Rows: good, Weights: []float64{1}},
		"a weight of 0":     {Rows: good, Weights: []float64{1, 1, 0, 1, 1}},
	} {
		for _, rule := range Rules() {
			in.Reference = []float32{1, 1}
			if _, err := rule.Combine(in); !errors.Is(err, ErrRows) {
				t.Errorf("%s, %s: %v", rule.Name, what, err)
			}
		}
	}
	rule, err := Find(FLTrust)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rule.Combine(Input{Rows: good}); !errors.Is(err, ErrRows) {
		t.Errorf("fltrust without a reference: %v", err)
	}
	if _, err := Find("best"); err == nil {
		t.Error("a rule that does not exist was found")
	}
}
