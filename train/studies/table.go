package studies

import (
	"fmt"
	"os"
	"slices"

	"github.com/vigie/vigie/train"
)

func readTable(path string) (*train.Table, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("studies: opening a table: %w", err)
	}
	defer f.Close()
	t, err := train.ReadTable(f, train.TableLimits{})
	if err != nil {
		return nil, fmt.Errorf("studies: reading %s: %w", path, err)
	}
	return t, nil
}

// columns are the positions of what a table says besides its features; -1 where
// it does not.
type columns struct {
	labels         []int
	patient, split int
}

// findColumns finds the columns by the names that the options give, else by the
// usual ones.
func findColumns(t *train.Table, path string, o Options, last bool) (columns, error) {
	c := columns{patient: -1, split: -1}
	find := func(name string, usual ...string) (int, error) {
		if name == "" {
			at, _ := t.Find(usual...)
			return at, nil
		}
		at, ok := t.Column(name)
		if !ok {
			return -1, fmt.Errorf("studies: reading %s: %w: there is no column %q; there are %q", path, ErrData, name, t.Header)
		}
		return at, nil
	}
	for _, name := range o.LabelColumns {
		at, err := find(name)
		if err != nil {
			return c, err
		}
		c.labels = append(c.labels, at)
	}
	if c.labels == nil {
		at, _ := find("", "label", "class", "target", "diagnosis")
		if at < 0 && last {
			at = len(t.Header) - 1
		}
		if at < 0 {
			return c, fmt.Errorf("studies: reading %s: %w: no column is called label, class, target or diagnosis; name the label column; there are %q", path, ErrData, t.Header)
		}
		c.labels = []int{at}
	}
	var err error
	if c.patient, err = find(o.PatientColumn, "patient", "patient_id", "patientid", "subject", "subject_id"); err != nil {
		return c, err
	}
	c.split, err = find(o.SplitColumn, "split")
	return c, err
}

// labelled is a set with the labels of a table and nothing else yet.
func labelled(t *train.Table, path string, c columns, o Options) (*train.Set, []string, error) {
	s := &train.Set{}
	var err error
	if len(c.labels) == 1 {
		if s.Labels, s.ClassNames, err = t.LabelsOf(c.labels[0], o.Classes); err != nil {
			return nil, nil, fmt.Errorf("studies: reading %s: %w", path, o.named(err))
		}
		s.Classes = len(s.ClassNames)
	} else {
		s.Classes = len(c.labels)
		for _, at := range c.labels {
			s.ClassNames = append(s.ClassNames, t.Header[at])
		}
		if err := o.checkColumns(s.ClassNames); err != nil {
			return nil, nil, fmt.Errorf("studies: reading %s: %w", path, o.named(err))
		}
		for i, row := range t.Rows {
			for _, at := range c.labels {
				switch row[at] {
				case "0", "0.0":
					s.Marks = append(s.Marks, 0)
				case "1", "1.0":
					s.Marks = append(s.Marks, 1)
				default:
					return nil, nil, fmt.Errorf("studies: reading %s: %w: row %d has %q in column %q, want 0 or 1", path, ErrData, i+1, row[at], t.Header[at])
				}
			}
		}
	}
	var splits []string
	for i, row := range t.Rows {
		if c.patient >= 0 {
			if train.Missing(row[c.patient]) {
				return nil, nil, fmt.Errorf("studies: reading %s: %w: row %d has no patient in column %q (%q), and the data are divided by patient; fill it in, leave the row out, or name another column", path, ErrData, i+1, t.Header[c.patient], row[c.patient])
			}
			s.Patients = append(s.Patients, row[c.patient])
		}
		if c.split >= 0 {
			splits = append(splits, row[c.split])
		}
	}
	return s, splits, nil
}

// rowName names an example of a table by its row, counted from 1 below the header.
const rowName = "row %d"

// Cells returns of an example of a table the columns that it is made of, the
// column of each of its numbers, and what its row says in the columns.
func (s *Studies) Cells(set *train.Set, i int) (names []string, of []int, cells []string, err error) {
	row := 0
	if _, err := fmt.Sscanf(set.Names[i], rowName, &row); err != nil || s.Table == nil {
		return nil, nil, nil, fmt.Errorf("studies: %q is no row of a table: %w", set.Names[i], ErrData)
	}
	for _, c := range s.Encoding.Columns {
		names = append(names, c.Name)
	}
	cells, err = s.Encoding.Cells(s.Table, row-1)
	return names, s.Encoding.Origins(), cells, err
}

// openTable reads a table whose rows are the examples. How columns become
// numbers is learnt from the training rows only.
func openTable(o Options) (*Studies, error) {
	t, err := readTable(o.Data)
	if err != nil {
		return nil, err
	}
	c, err := findColumns(t, o.Data, o, true)
	if err != nil {
		return nil, err
	}
	whole, splits, err := labelled(t, o.Data, c, o)
	if err != nil {
		return nil, err
	}
	leaveOut := slices.Clone(o.LeaveOut)
	for _, at := range append(slices.Clone(c.labels), c.patient, c.split) {
		if at >= 0 {
			leaveOut = append(leaveOut, t.Header[at])
		}
	}
	every := make([]int, len(t.Rows))
	for i := range every {
		every[i] = i
		whole.Names = append(whole.Names, fmt.Sprintf(rowName, i+1))
	}
	// The rows are divided before anything is learnt from them; until then the
	// encoding is that of all rows, which says no more than that they are rows.
	encode := func(e *train.Columns, rows []int) ([]float32, []int64, error) {
		values, err := e.Encode(t, rows)
		return values, []int64{int64(e.Width())}, err
	}
	encoding := o.Encoding
	if encoding == nil {
		if encoding, err = train.LearnColumns(t, every, leaveOut, o.Categorical); err != nil {
			return nil, fmt.Errorf("studies: reading %s: %w", o.Data, err)
		}
	}
	if whole.Values, whole.Shape, err = encode(encoding, every); err != nil {
		return nil, fmt.Errorf("studies: reading %s: %w", o.Data, err)
	}
	var at [3][]int
	if splits != nil {
		if at, err = given(splits); err != nil {
			return nil, fmt.Errorf("studies: dividing %s: %w", o.Data, err)
		}
	} else {
		parts, err := train.Partition(whole, o.Seed, o.Shares...)
		if err != nil {
			return nil, fmt.Errorf("studies: dividing %s: %w", o.Data, err)
		}
		copy(at[:], parts)
	}
	if o.Encoding == nil {
		if encoding, err = train.LearnColumns(t, at[0], leaveOut, o.Categorical); err != nil {
			return nil, fmt.Errorf("studies: reading %s: %w", o.Data, err)
		}
		if whole.Values, whole.Shape, err = encode(encoding, every); err != nil {
			return nil, fmt.Errorf("studies: reading %s: %w", o.Data, err)
		}
	}
	s := &Studies{Kind: "table", Given: splits != nil, Encoding: encoding, Table: t}
	s.Train, s.Validation = whole.Subset(at[0]), whole.Subset(at[1])
	if len(at[2]) > 0 {
		s.Test = whole.Subset(at[2])
	}
	s.Digest, err = digestFile(o.Data)
	return s, err
}
