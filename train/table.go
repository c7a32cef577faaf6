package train

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Table is what a CSV file holds: text in rows of equal length.
type Table struct {
	Header []string
	Rows   [][]string
}

// TableLimits bound what a CSV file may make the reader allocate.
type TableLimits struct {
	Cells   int // rows times columns; 0 means 50 million
	Columns int // 0 means 10 000
}

// ErrTable is returned for a CSV file that is not a table one can learn from.
var ErrTable = errors.New("not a usable table")

// ReadTable reads a CSV file. The first line is the header unless it holds
// numbers and missing values only: then columns are called c1, c2, …
func ReadTable(r io.Reader, limits TableLimits) (*Table, error) {
	if limits.Cells <= 0 {
		limits.Cells = 50_000_000
	}
	if limits.Columns <= 0 {
		limits.Columns = 10_000
	}
	in := csv.NewReader(r)
	in.TrimLeadingSpace = true
	in.ReuseRecord = false
	t := &Table{}
	for {
		record, err := in.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("train: reading a table: %w: %w", ErrTable, err)
		}
		for i, cell := range record {
			record[i] = strings.TrimSpace(cell)
		}
		if t.Header == nil {
			if len(record) > limits.Columns {
				return nil, fmt.Errorf("train: reading a table of %d columns: %w of %d", len(record), ErrLimit, limits.Columns)
			}
			record[0] = strings.TrimPrefix(record[0], "\ufeff") // byte order mark, as spreadsheets write it
			if slices.ContainsFunc(record, func(cell string) bool { _, missing, err := number(cell); return err != nil && !missing }) {
				t.Header = record
				continue
			}
			for i := range record {
				t.Header = append(t.Header, fmt.Sprintf("c%d", i+1))
			}
		}
		if (len(t.Rows)+1)*len(t.Header) > limits.Cells {
			return nil, fmt.Errorf("train: reading a table: %w of %d cells", ErrLimit, limits.Cells)
		}
		t.Rows = append(t.Rows, record)
	}
	if len(t.Rows) == 0 {
		return nil, fmt.Errorf("train: reading a table: %w: it has no rows", ErrTable)
	}
	for i, name := range t.Header {
		if name == "" || slices.Contains(t.Header[:i], name) {
			return nil, fmt.Errorf("train: reading a table: %w: the name of column %d, %q, is empty or there twice", ErrTable, i+1, name)
		}
	}
	return t, nil
}

// number reads a cell. Missing cells are empty, "?", "NA", "N/A", "null" or "NaN".
func number(cell string) (v float64, missing bool, err error) {
	switch strings.ToLower(cell) {
	case "", "?", "na", "n/a", "null", "nan":
		return 0, true, nil
	}
	v, err = strconv.ParseFloat(cell, 64)
	if err == nil && math.Abs(v) > 1e30 { // its square would not be a number
		err = strconv.ErrRange
	}
	return v, false, err
}

// Missing says that a cell holds no value: that it is empty, "?", "NA", "N/A",
// "null" or "NaN".
func Missing(cell string) bool {
	_, missing, _ := number(cell)
	return missing
}

// Column returns the position of a column; names are compared without regard to
// case.
func (t *Table) Column(name string) (int, bool) {
	at := slices.IndexFunc(t.Header, func(h string) bool { return strings.EqualFold(h, name) })
	return at, at >= 0
}

// Find returns the position of the first of the columns that is there.
func (t *Table) Find(names ...string) (int, bool) {
	for _, name := range names {
		if at, ok := t.Column(name); ok {
			return at, true
		}
	}
	return -1, false
}

// Columns says how rows of a table become numbers. It is learnt from training
// rows alone, and travels with the model, so that any later row is taken in the
// same way.
type Columns struct {
	Columns []Column `json:"columns"`
}

// Column is one column of a table.
type Column struct {
	Name string `json:"name"`
	// Values are those of a categorical column, each of which becomes one
	// number, 0 or 1. A value that training did not see is 0 for all of them.
	Values []string `json:"values,omitempty"`
	// Mean and Deviation standardise a numeric column; a missing value becomes
	// the mean.
	Mean      float64 `json:"mean,omitempty"`
	Deviation float64 `json:"deviation,omitempty"`
	// Missing adds a number that says whether the value is missing.
	Missing bool `json:"missing,omitempty"`
}

// maxCategories keeps a column of identifiers from becoming thousands of numbers.
const maxCategories = 200

// LearnColumns learns how to encode the rows of a table, leaving out some
// columns (label, patient). A column is numeric if all its cells are, unless it
// is named as categorical. One that holds numbers and other texts is an error
// unless it is so named: a single slip of the pen would turn a measurement into
// as many categories as it has values.
func LearnColumns(t *Table, rows []int, leaveOut, categorical []string) (*Columns, error) {
	for _, name := range slices.Concat(leaveOut, categorical) {
		if _, ok := t.Column(name); !ok {
			return nil, fmt.Errorf("train: learning columns: there is no column %q; there are %s", name, strings.Join(t.Header, ", "))
		}
	}
	named := func(list []string, name string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.EqualFold(s, name) })
	}
	out := &Columns{}
	for at, name := range t.Header {
		if named(leaveOut, name) {
			continue
		}
		c := Column{Name: name}
		numeric := !named(categorical, name)
		var values []float64
		seen := map[string]bool{}
		odd := -1 // first row whose cell is not a number
		for _, r := range rows {
			v, missing, err := number(t.Rows[r][at])
			if missing {
				c.Missing = true
				continue
			}
			if err == nil {
				values = append(values, v)
			} else if numeric = false; odd < 0 {
				odd = r
			}
			seen[t.Rows[r][at]] = true
		}
		switch {
		case odd >= 0 && len(values) > 0 && !named(categorical, name):
			return nil, fmt.Errorf("train: learning columns: %w: column %q holds %d numbers, and %q in row %d; correct or empty that cell, or name the column as categorical", ErrTable, name, len(values), t.Rows[odd][at], odd+1)
		case len(seen) == 0:
			continue // always missing: says nothing
		case numeric:
			c.Mean, c.Deviation = moments(values)
			if c.Deviation == 0 && !c.Missing {
				continue // always the same
			}
		default:
			if len(seen) > maxCategories {
				return nil, fmt.Errorf("train: learning columns: column %q has %d different texts, more than %d; if it names patients, say so with the patient column, otherwise leave it out", name, len(seen), maxCategories)
			}
			for v := range seen {
				c.Values = append(c.Values, v)
			}
			slices.Sort(c.Values)
		}
		out.Columns = append(out.Columns, c)
	}
	if len(out.Columns) == 0 {
		return nil, fmt.Errorf("train: learning columns: %w: no column besides the label says anything", ErrTable)
	}
	return out, nil
}

func moments(values []float64) (mean, deviation float64) {
	sum, squares, n := 0.0, 0.0, float64(len(values))
	for _, v := range values {
		sum += v
	}
	for _, v := range values {
		squares += (v - sum/n) * (v - sum/n)
	}
	return sum / n, math.Sqrt(squares / n)
}

// Width is how many numbers a row becomes.
func (c *Columns) Width() int {
	width := 0
	for _, column := range c.Columns {
		width += max(1, len(column.Values))
		if column.Missing {
			width++
		}
	}
	return width
}

// Numbers names the numbers that a row becomes, in order: a column's name,
// "column=value" for each value of a categorical one, "column missing" for the
// number that says so.
func (c *Columns) Numbers() []string {
	var names []string
	for _, column := range c.Columns {
		for _, v := range column.Values {
			names = append(names, column.Name+"="+v)
		}
		if column.Values == nil {
			names = append(names, column.Name)
		}
		if column.Missing {
			names = append(names, column.Name+" missing")
		}
	}
	return names
}

// Origins says of each number that a row becomes which of Columns it is of.
func (c *Columns) Origins() []int {
	var of []int
	for i, column := range c.Columns {
		numbers := max(1, len(column.Values))
		if column.Missing {
			numbers++
		}
		of = append(of, slices.Repeat([]int{i}, numbers)...)
	}
	return of
}

// Cells returns what a row of a table says in each of Columns.
func (c *Columns) Cells(t *Table, row int) ([]string, error) {
	cells := make([]string, len(c.Columns))
	for i, column := range c.Columns {
		at, ok := t.Column(column.Name)
		if !ok {
			return nil, fmt.Errorf("train: reading a table: %w: it has no column %q, which the model reads; it has %q", ErrTable, column.Name, t.Header)
		}
		cells[i] = t.Rows[row][at]
	}
	return cells, nil
}

// Encode turns rows of a table into examples without labels. The table must have
// every column, in any order.
func (c *Columns) Encode(t *Table, rows []int) ([]float32, error) {
	out := make([]float32, 0, len(rows)*c.Width())
	at := make([]int, len(c.Columns))
	for i, column := range c.Columns {
		var ok bool
		if at[i], ok = t.Column(column.Name); !ok {
			return nil, fmt.Errorf("train: encoding a table: %w: it has no column %q, which the model reads; it has %q", ErrTable, column.Name, t.Header)
		}
	}
	for _, r := range rows {
		for i, column := range c.Columns {
			cell := t.Rows[r][at[i]]
			v, missing, err := number(cell)
			switch {
			case column.Values != nil:
				for _, value := range column.Values {
					out = append(out, indicator(!missing && cell == value))
				}
			case err != nil:
				return nil, fmt.Errorf("train: encoding row %d: %w: column %q holds %q, want a number; clean it, or name the column as categorical", r+1, ErrTable, column.Name, cell)
			case missing || column.Deviation == 0:
				out = append(out, 0)
			default:
				out = append(out, float32((v-column.Mean)/column.Deviation))
			}
			if column.Missing {
				out = append(out, indicator(missing))
			}
		}
	}
	return out, nil
}

func indicator(yes bool) float32 {
	if yes {
		return 1
	}
	return 0
}

// LabelsOf turns a column into classes: the given names in their order or, if
// none are given, those that occur, in numeric or else alphabetical order. A
// label outside the names, or none, is an error.
func (t *Table) LabelsOf(column int, classes []string) (labels []int, names []string, err error) {
	given := classes != nil
	if !given {
		for _, row := range t.Rows {
			if !slices.Contains(classes, row[column]) {
				classes = append(classes, row[column])
				if len(classes) > 1000 {
					return nil, nil, fmt.Errorf("train: reading labels: column %q has more than 1000 different values; is it the label?", t.Header[column])
				}
			}
		}
		sortLabels(classes)
		if a, b, alike := t.alike(column, classes); alike {
			return nil, nil, fmt.Errorf("train: reading labels: %w: row %d has the label %q in column %q and row %d has %q: they differ in their spelling only; write them alike, or name the classes if both are meant", ErrTable, a+1, t.Rows[a][column], t.Header[column], b+1, t.Rows[b][column])
		}
	}
	for i, row := range t.Rows {
		l := slices.Index(classes, row[column])
		if _, missing, _ := number(row[column]); missing && !given {
			l = -1
		}
		if l < 0 {
			return nil, nil, fmt.Errorf("train: reading labels: row %d has the label %q in column %q, which is outside the set; want one of %s", i+1, row[column], t.Header[column], strings.Join(classes, ", "))
		}
		labels = append(labels, l)
	}
	return labels, classes, nil
}

// alike finds two rows whose labels differ and mean the same: texts in upper and
// lower case, a number in two forms.
func (t *Table) alike(column int, classes []string) (a, b int, found bool) {
	row := func(label string) int {
		return slices.IndexFunc(t.Rows, func(r []string) bool { return r[column] == label })
	}
	for i, one := range classes {
		x, missing, err := number(one)
		isNumber := !missing && err == nil
		for _, other := range classes[:i] {
			y, missing, err := number(other)
			if strings.EqualFold(one, other) || isNumber && !missing && err == nil && x == y {
				a, b = row(one), row(other)
				return min(a, b), max(a, b), true
			}
		}
	}
	return 0, 0, false
}

// sortLabels sorts by number if all are numbers, else by name.
func sortLabels(names []string) {
	numeric := !slices.ContainsFunc(names, func(s string) bool { _, missing, err := number(s); return missing || err != nil })
	slices.SortFunc(names, func(a, b string) int {
		if numeric {
			x, _, _ := number(a)
			y, _, _ := number(b)
			switch {
			case x < y:
				return -1
			case x > y:
				return 1
			}
		}
		return strings.Compare(a, b)
	})
}
