package explain

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"text/tabwriter"

	"github.com/vigie/vigie/engine"
)

// Feature is one column of a table with what it did.
type Feature struct {
	Name        string  `json:"name"`
	Value       float32 `json:"value"`       // of the input
	Attribution float32 `json:"attribution"` // of the map
}

// Features lists a table's features, those of largest attribution first. names
// may be nil: they are then called x1, x2, ….
func Features(m *Map, input engine.Tensor, names []string) ([]Feature, error) {
	values, err := engine.Values[float32](input)
	if err != nil || len(values) != len(m.Values) || m.Rows != 1 {
		return nil, fmt.Errorf("explain: listing features: an input of shape %v for a map of %d×%d: %w", input.Shape, m.Rows, m.Columns, ErrInput)
	}
	if names != nil && len(names) != len(values) {
		return nil, fmt.Errorf("explain: listing features: %d names for %d features: %w", len(names), len(values), ErrInput)
	}
	out := make([]Feature, len(values))
	for i := range out {
		out[i] = Feature{fmt.Sprintf("x%d", i+1), values[i], m.Values[i]}
		if names != nil {
			out[i].Name = names[i]
		}
	}
	slices.SortStableFunc(out, func(a, b Feature) int {
		return cmp.Compare(math.Abs(float64(b.Attribution)), math.Abs(float64(a.Attribution)))
	})
	return out, nil
}

// WriteFeatures writes features for people, at most that many (0: all).
func WriteFeatures(w io.Writer, features []Feature, most int) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "feature\tvalue\tattribution\t\n") // a tabwriter keeps its error for Flush
	shown := features
	if most > 0 && len(shown) > most {
		shown = shown[:most]
	}
	for _, f := range shown {
		fmt.Fprintf(table, "%s\t%.5g\t%+.5g\t\n", f.Name, f.Value, f.Attribution)
	}
	if left := len(features) - len(shown); left > 0 {
		fmt.Fprintf(table, "… %d more\t\t\t\n", left)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("explain: writing features: %w", err)
	}
	return nil
}

// WriteCSV writes features as a table with a header, for programs.
func WriteCSV(w io.Writer, features []Feature) error {
	out := csv.NewWriter(w)
	number := func(v float32) string { return strconv.FormatFloat(float64(v), 'g', -1, 32) }
	rows := [][]string{{"feature", "value", "attribution"}}
	for _, f := range features {
		rows = append(rows, []string{f.Name, number(f.Value), number(f.Attribution)})
	}
	if err := out.WriteAll(rows); err != nil {
		return fmt.Errorf("explain: writing features: %w", err)
	}
	return nil
}
