package tabular

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/vigie/vigie/train"
)

// Hospital is a hospital's table, read by a schema.
type Hospital struct {
	Name string
	// Outside counts the cells that held a number beyond its column's limits, or a
	// text that is none of its column's values.
	Outside int

	schema   *Schema
	table    *train.Table // the schema's columns, in its order and spelling; "" is missing
	labels   []int
	patients []string
}

// Rows is how many rows the table has.
func (h *Hospital) Rows() int { return len(h.labels) }

// Labels are the rows' classes.
func (h *Hospital) Labels() []int { return h.labels }

// Read reads a hospital's CSV file. It has the schema's columns in any order and
// maybe others, which are left out. A row without a known class is an error.
func (s *Schema) Read(name string, r io.Reader) (*Hospital, error) {
	fail := func(format string, arguments ...any) (*Hospital, error) {
		return nil, fmt.Errorf("tabular: reading the table of %q: %w: %s", name, ErrRows, fmt.Sprintf(format, arguments...))
	}
	raw, err := train.ReadTable(r, train.TableLimits{})
	if err != nil {
		return nil, fmt.Errorf("tabular: reading the table of %q: %w", name, err)
	}
	if s.Header != nil && raw.Header[0] == "c1" { // as ReadTable names columns without a header
		if len(raw.Header) != len(s.Header) {
			return fail("it has %d columns and no header; the schema's header has %d", len(raw.Header), len(s.Header))
		}
		raw.Header = s.Header
	}
	find := func(column string) (int, error) {
		at, ok := raw.Column(column)
		if !ok {
			return 0, fmt.Errorf("tabular: reading the table of %q: %w: it has no column %q; it has %s", name, ErrRows, column, strings.Join(raw.Header, ", "))
		}
		return at, nil
	}
	label, err := find(s.Label.Column)
	if err != nil {
		return nil, err
	}
	patient := -1
	if s.Patient != "" {
		if patient, err = find(s.Patient); err != nil {
			return nil, err
		}
	}
	h := &Hospital{Name: name, schema: s, table: &train.Table{}}
	at := make([]int, len(s.Columns))
	spelling := make([]map[string]string, len(s.Columns))
	for i, c := range s.Columns {
		if at[i], err = find(c.Name); err != nil {
			return nil, err
		}
		h.table.Header = append(h.table.Header, c.Name)
		if c.Values != nil {
			spelling[i] = map[string]string{}
			for _, v := range c.Values {
				spelling[i][plain(v)] = v
			}
		}
	}
	classes := map[string]int{}
	for class, texts := range s.Label.Classes {
		for _, text := range texts {
			classes[plain(text)] = class
		}
	}
	for i, row := range raw.Rows {
		class, known := classes[plain(row[label])]
		if !known {
			return fail("row %d has %q in column %q, which is of no class of the schema", i+1, row[label], s.Label.Column)
		}
		h.labels = append(h.labels, class)
		if patient >= 0 {
			if train.Missing(row[patient]) {
				return fail("row %d has no patient", i+1)
			}
			h.patients = append(h.patients, row[patient])
		}
		cells := make([]string, len(s.Columns))
		for j, c := range s.Columns {
			cell := row[at[j]]
			if train.Missing(cell) {
				continue
			}
			if c.Values != nil {
				v, is := spelling[j][plain(cell)]
				if !is {
					h.Outside++
				}
				cells[j] = v
				continue
			}
			v, err := strconv.ParseFloat(cell, 64)
			if err != nil {
				return fail("row %d has %q in column %q, want a number", i+1, cell, c.Name)
			}
			if !(v >= c.Low && v <= c.High) {
				h.Outside++
				continue
			}
			cells[j] = cell
		}
		h.table.Rows = append(h.table.Rows, cells)
	}
	return h, nil
}

// Set makes examples of the rows, standardised as columns say.
func (h *Hospital) Set(columns *train.Columns) (*train.Set, error) {
	rows := make([]int, h.Rows())
	s := &train.Set{Name: h.Name, Labels: h.labels, Classes: len(h.schema.Label.Classes), ClassNames: h.schema.Label.Names, Patients: h.patients, Shape: []int64{int64(columns.Width())}}
	for i := range rows {
		rows[i] = i
		s.Names = append(s.Names, fmt.Sprintf("row %d", i+1))
	}
	var err error
	if s.Values, err = columns.Encode(h.table, rows); err != nil {
		return nil, fmt.Errorf("tabular: making examples of the table of %q: %w", h.Name, err)
	}
	return s, nil
}
