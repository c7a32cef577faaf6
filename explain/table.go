package explain

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/vigie/vigie/engine"
)

// Feature is one column of a table with what it did.
type Feature struct {
	Name        string  `json:"name"`
	Value       float32 `json:"value"`       // of the input
	Attribution float32 `json:"attribution"` // of the map
	// Text is what stood in the table where the input's numbers were made of it;
	// Value is then what Text says as a number, or 0.
	Text string `json:"text,omitempty"`
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
		out[i] = Feature{Name: fmt.Sprintf("x%d", i+1), Value: values[i], Attribution: m.Values[i]}
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
		value := f.Text
		if value == "" {
			value = fmt.Sprintf("%.5g", f.Value)
		}
		fmt.Fprintf(table, "%s\t%s\t%+.5g\t\n", printable(f.Name), printable(value), f.Attribution)
	}
	if left := len(features) - len(shown); left > 0 {
		fmt.Fprintf(table, "… %d more\t\t\t\n", left)
	}
	if err := table.Flush(); err != nil {
		return fmt.Errorf("explain: writing features: %w", err)
	}
	return nil
}

// printable keeps the texts of a file from steering the terminal.
func printable(text string) string {
	if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(text)
	}
	return text
}

// WriteCSV writes features as a table with a header, for programs.
func WriteCSV(w io.Writer, features []Feature) error {
	out := csv.NewWriter(w)
	number := func(v float32) string { return strconv.FormatFloat(float64(v), 'g', -1, 32) }
	rows := [][]string{{"feature", "value", "attribution"}}
	for _, f := range features {
		value := f.Text
		if value == "" {
			value = number(f.Value)
		}
		rows = append(rows, []string{f.Name, value, number(f.Attribution)})
	}
	if err := out.WriteAll(rows); err != nil {
		return fmt.Errorf("explain: writing features: %w", err)
	}
	return nil
}
