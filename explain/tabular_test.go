package explain_test

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/zoo"
	"github.com/vigie/vigie/train"
)

// data opens a file of the data folder, or skips saying so.
func data(t *testing.T, name string) []byte {
	t.Helper()
	folder := os.Getenv("VIGIE_DATA")
	if folder == "" {
		folder = "../../shared/data"
	}
	content, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		t.Skipf("SKIPPED, nothing was checked: %v (set VIGIE_DATA)", err)
	}
	return content
}

// standardised reads rows of numbers whose last column is the class, brings the
// columns to mean 0 and deviation 1, and leaves rows with missing values out.
func standardised(t *testing.T, content []byte) (rows [][]float32, labels []int) {
	t.Helper()
	in := csv.NewReader(bufio.NewReader(bytes.NewReader(content)))
	in.FieldsPerRecord = -1
	records, err := in.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var wide [][]float64
reading:
	for _, record := range records[1:] {
		row := make([]float64, len(record))
		for i, cell := range record {
			if row[i], err = strconv.ParseFloat(strings.TrimSpace(cell), 64); err != nil {
				continue reading
			}
		}
		wide = append(wide, row[:len(row)-1])
		labels = append(labels, int(row[len(row)-1]))
	}
	columns := len(wide[0])
	for range wide {
		rows = append(rows, make([]float32, columns))
	}
	for c := range columns {
		mean, squares := 0.0, 0.0
		for _, row := range wide {
			mean += row[c] / float64(len(wide))
		}
		for _, row := range wide {
			squares += (row[c] - mean) * (row[c] - mean) / float64(len(wide))
		}
		for i, row := range wide {
			rows[i][c] = float32((row[c] - mean) / math.Sqrt(squares))
		}
	}
	return rows, labels
}

// logistic fits a logistic regression by gradient descent, in the test itself.
func logistic(rows [][]float32, labels []int) (w []float64, b float64) {
	w = make([]float64, len(rows[0]))
	for range 400 {
		slope, shift := make([]float64, len(w)), 0.0
		for i, row := range rows {
			z := b
			for j, v := range row {
				z += w[j] * float64(v)
			}
			miss := 1/(1+math.Exp(-z)) - float64(labels[i])
			shift += miss / float64(len(rows))
			for j, v := range row {
				slope[j] += miss * float64(v) / float64(len(rows))
			}
		}
		b -= 0.5 * shift
		for j := range w {
			w[j] -= 0.5 * (slope[j] + 0.001*w[j])
		}
	}
	return w, b
}

func references(rows [][]float32, n int) ([][]float32, explain.Background) {
	var kept [][]float32
	var tensors []engine.Tensor
	rng := rand.New(rand.NewPCG(4, 4))
	for _, i := range rng.Perm(len(rows))[:n] {
		kept = append(kept, rows[i])
		tensors = append(tensors, engine.Float32([]int64{1, int64(len(rows[i]))}, rows[i]))
	}
	return kept, explain.References(tensors...)
}

// Wisconsin diagnostic breast cancer, 30 columns, logistic regression: the
// contributions to the logit are w·(x - mean of the background) by any method.
func TestContributionsOnWisconsinAreThoseOfTheRegression(t *testing.T) {
	rows, labels := standardised(t, data(t, "wdbc.csv"))
	w, b := logistic(rows, labels)
	right := 0
	weights := make([]float32, len(w))
	for i, row := range rows {
		z := b
		for j, v := range row {
			z += w[j] * float64(v)
		}
		if (z > 0) == (labels[i] == 1) {
			right++
		}
	}
	for j, v := range w {
		weights[j] = float32(v)
	}
	if share := float64(right) / float64(len(rows)); share < 0.97 {
		t.Fatalf("the regression is right on %.3f of its rows: the test needs a model that learnt something", share)
	}
	m := linear(t, len(w), 1, weights, []float32{float32(b)})
	from, background := references(rows, 20)
	for _, patient := range []int{0, 100, 300} {
		want := make([]float64, len(w))
		for j := range want {
			mean := 0.0
			for _, row := range from {
				mean += float64(row[j]) / float64(len(from))
			}
			want[j] = w[j] * (float64(rows[patient][j]) - mean)
		}
		x := engine.Float32([]int64{1, int64(len(w))}, rows[patient])
		for _, method := range []explain.Method{explain.IntegratedGradients, explain.GradientSHAP, explain.KernelSHAP, explain.Occlusion} {
			got := explained(t, method, m, explain.Options{Background: background, Samples: 400}, x, 0)
			near(t, string(method), got.Values, want, 1e-4)
		}
	}
}

// Wisconsin by a network of three layers, tested: what the answer rests on is
// marked by all methods for tables, and its map is said to explain.
func TestMapsOfANetworkOnWisconsinExplainIt(t *testing.T) {
	rows, labels := standardised(t, data(t, "wdbc.csv"))
	requireRuntime(t)
	m := trainedTable(t, rows, labels)
	_, background := references(rows, 20)
	x := engine.Float32([]int64{1, 30}, rows[1])
	var order [][]float32
	for _, method := range []explain.Method{explain.IntegratedGradients, explain.GradientSHAP, explain.KernelSHAP, explain.LIME} {
		o := explain.Options{Background: background, Samples: 600, Score: explain.LogOdds, Threads: 1}
		r, err := explain.Check(t.Context(), method, m, x, labels[1], o, explain.CheckOptions{Score: explain.LogOdds, RandomMaps: 39, Randomisations: 3, Layers: 2})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: insertion - deletion %.2f, p %.3f, similarity with random weights %.2f", method, r.Fidelity.Score, r.Fidelity.P, r.Sanity.Similarity)
		if r.Fidelity.P > explain.Significance {
			t.Errorf("%s: %s", method, r.Verdict.Text.English)
		}
		order = append(order, r.Map.Values)
	}
	// Four different estimates of one thing agree on it.
	for i := 1; i < len(order); i++ {
		a, b := &explain.Map{Rows: 1, Columns: 30, Values: order[0]}, &explain.Map{Rows: 1, Columns: 30, Values: order[i]}
		if c := explain.Compare(a, b); c.Rank < 0.8 {
			t.Errorf("the ranks of two methods' contributions correlate by %.2f", c.Rank)
		}
	}
}

func trainedTable(t *testing.T, rows [][]float32, labels []int) *onnx.Model {
	t.Helper()
	columns := int64(len(rows[0]))
	set := func(from, step int) *train.Set {
		s := &train.Set{Name: "rows", Shape: []int64{columns}, Classes: 2}
		for i := from; i < len(rows); i += step {
			s.Values = append(s.Values, rows[i]...)
			s.Labels = append(s.Labels, labels[i])
		}
		return s
	}
	built, err := zoo.Build("tabular-mlp", zoo.Options{Input: []int64{columns}, Classes: 2, Norm: zoo.GroupNorm}, rand.New(rand.NewPCG(2, 0)))
	if err != nil {
		t.Fatal(err)
	}
	n, err := train.Import(built.Model, train.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := train.Run(t.Context(), train.Config{Network: n, Train: set(0, 1), Validation: set(0, 5), Recipe: train.Recipe{Epochs: 6, Batch: 32, Rate: 3e-3, Warmup: 1, Seed: 1}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if auc := r.History.Epochs[r.History.Best-1].ValidationAUC; auc < 0.98 {
		t.Fatalf("the network's AUC on its own rows is %.3f: the test needs one that learnt something", auc)
	}
	return r.Model
}

// Mammographic masses, 5 columns: KernelSHAP has room for all 32 coalitions and
// must give the Shapley values that enumeration gives.
func TestShapleyValuesOnMammographicMassesAreExact(t *testing.T) {
	rows, labels := standardised(t, data(t, "mammographic_masses.data"))
	w, _ := logistic(rows, labels)
	// A perceptron whose first unit is the regression, the others random.
	rng := rand.New(rand.NewPCG(6, 6))
	p := newPerceptron(len(rows[0]), 4, 2, rng)
	for j, v := range w {
		p.A[j*p.hidden] = float32(v)
	}
	m := p.model(t)
	from, background := references(rows, 30)
	for _, patient := range []int{0, 7, 500} {
		x := rows[patient]
		want := exactShapley(x, from, func(v []float64) float64 { return p.at(v, 1) })
		got := explained(t, explain.KernelSHAP, m, explain.Options{Background: background}, engine.Float32([]int64{1, 5}, x), 1)
		near(t, "Shapley value", got.Values, want, 2e-5)
		features, err := explain.Features(got, engine.Float32([]int64{1, 5}, x), []string{"BI-RADS", "Age", "Shape", "Margin", "Density"})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.IsSortedFunc(features, func(a, b explain.Feature) int {
			return int(math.Copysign(1, math.Abs(float64(b.Attribution))-math.Abs(float64(a.Attribution))))
		}) {
			t.Errorf("features are not listed by size: %v", features)
		}
		var table, comma bytes.Buffer
		if err := explain.WriteFeatures(&table, features, 3); err != nil || !strings.Contains(table.String(), features[0].Name) || !strings.Contains(table.String(), "2 more") {
			t.Errorf("the table is\n%s(error %v)", table.String(), err)
		}
		if err := explain.WriteCSV(&comma, features); err != nil || strings.Count(comma.String(), "\n") != 6 {
			t.Errorf("the file is\n%s(error %v)", comma.String(), err)
		}
	}
}
