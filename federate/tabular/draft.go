package tabular

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/vigie/vigie/train"
)

// DraftOptions says what a table does not say by itself.
type DraftOptions struct {
	Label    string   // column; empty is the last
	Patient  string   // column of who a row is of; may be empty
	LeaveOut []string // columns that are not learnt from
	// Negative are the texts of the label that are class 0, all others being class
	// 1. Empty: the label has two texts.
	Negative []string
}

// few is how many whole numbers a column may hold at most to be taken for codes
// of a category.
const few = 5

// Draft makes a schema that tables fit, for people to correct before hospitals
// agree on it: limits are the least and the greatest number there is, and a column
// of texts, or of at most five whole numbers, is taken for a category.
func Draft(tables []*train.Table, o DraftOptions) (*Schema, error) {
	fail := func(format string, arguments ...any) (*Schema, error) {
		return nil, fmt.Errorf("tabular: drafting a schema: %w: %s", ErrSchema, fmt.Sprintf(format, arguments...))
	}
	if len(tables) == 0 {
		return fail("no tables")
	}
	header := tables[0].Header
	if o.Label == "" {
		o.Label = header[len(header)-1]
	}
	s := &Schema{Label: Label{Column: o.Label}, Patient: o.Patient}
	cells := func(column string) ([]string, error) {
		var out []string
		for _, t := range tables {
			at, ok := t.Column(column)
			if !ok {
				return nil, fmt.Errorf("tabular: drafting a schema: %w: a table has no column %q; it has %s", ErrSchema, column, strings.Join(t.Header, ", "))
			}
			for _, row := range t.Rows {
				if !train.Missing(row[at]) && !slices.Contains(out, plain(row[at])) {
					out = append(out, plain(row[at]))
				}
			}
			if len(out) > 1_000_000 {
				return nil, fmt.Errorf("tabular: drafting a schema: %w: column %q has more than a million values", ErrSchema, column)
			}
		}
		sortTexts(out)
		return out, nil
	}
	labels, err := cells(o.Label)
	if err != nil {
		return nil, err
	}
	switch {
	case o.Negative != nil:
		var negative, positive []string
		for _, l := range labels {
			if slices.ContainsFunc(o.Negative, func(n string) bool { return plain(n) == l }) {
				negative = append(negative, l)
			} else {
				positive = append(positive, l)
			}
		}
		if negative == nil || positive == nil {
			return fail("the label %q has the texts %s, of which %s are to be class 0: one of both classes is empty", o.Label, strings.Join(labels, ", "), strings.Join(o.Negative, ", "))
		}
		s.Label.Classes, s.Label.Names = [][]string{negative, positive}, []string{"negative", "positive"}
	case len(labels) == 2:
		s.Label.Classes, s.Label.Names = [][]string{{labels[0]}, {labels[1]}}, labels
	default:
		return fail("the label %q has %d texts, %s: say which are class 0 (--negative)", o.Label, len(labels), strings.Join(labels[:min(10, len(labels))], ", "))
	}
	for _, name := range header {
		if same(name, o.Label) || o.Patient != "" && same(name, o.Patient) || slices.ContainsFunc(o.LeaveOut, func(l string) bool { return same(l, name) }) {
			continue
		}
		values, err := cells(name)
		if err != nil {
			return nil, err
		}
		c := Column{Name: name, Low: math.Inf(1), High: math.Inf(-1)}
		numbers, whole := true, true
		for _, v := range values {
			x, err := strconv.ParseFloat(v, 64)
			numbers = numbers && err == nil
			whole = whole && err == nil && x == math.Trunc(x)
			c.Low, c.High = min(c.Low, x), max(c.High, x)
		}
		switch {
		case len(values) < 2:
			continue // it says nothing
		case !numbers || whole && len(values) <= few:
			c.Values, c.Low, c.High = values, 0, 0
		}
		s.Columns = append(s.Columns, c)
	}
	return s, s.Check()
}

// sortTexts sorts by number, then by letters.
func sortTexts(texts []string) {
	slices.SortFunc(texts, func(a, b string) int {
		x, badX := strconv.ParseFloat(a, 64)
		y, badY := strconv.ParseFloat(b, 64)
		if badX == nil && badY == nil && x != y {
			if x < y {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
}
