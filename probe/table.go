package probe

import (
	"fmt"
	"io"
	"math"
	"os"
	"strconv"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/train"
)

const maxTableFile = 1 << 28

// sheet is a table as a model reads it.
type sheet struct {
	numbers engine.Tensor // float [rows, numbers]
	names   []string      // of the columns that the model reads, in its order
	// Of a model that says how columns become numbers:
	of    []int      // the column of each number; nil: each number is a column
	cells [][]string // by row, what those columns say
}

// sheet reads a CSV file: by the encoding that the model keeps, as vigie train
// wrote it there and Evaluate uses it, or else as numbers under a header.
func (m *Model) sheet(path string) (*sheet, error) {
	_, columns, err := train.Described(m.Graph)
	if err != nil {
		return nil, fmt.Errorf("probe: reading %s for %s: %w", path, m.Path, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("probe: reading a table: %w", err)
	}
	defer f.Close()
	table, err := train.ReadTable(io.LimitReader(f, maxTableFile), train.TableLimits{})
	if err != nil {
		return nil, fmt.Errorf("probe: reading %s: %w", path, err)
	}
	if columns == nil {
		return plainSheet(table, path)
	}
	every := make([]int, len(table.Rows))
	s := &sheet{of: columns.Origins(), cells: make([][]string, len(table.Rows))}
	for _, c := range columns.Columns {
		s.names = append(s.names, c.Name)
	}
	for i := range every {
		every[i] = i
		if s.cells[i], err = columns.Cells(table, i); err != nil {
			return nil, fmt.Errorf("probe: reading %s: %w", path, err)
		}
	}
	values, err := columns.Encode(table, every)
	if err != nil {
		return nil, fmt.Errorf("probe: reading %s: %w", path, err)
	}
	s.numbers = engine.Float32([]int64{int64(len(every)), int64(columns.Width())}, values)
	return s, nil
}

// plainSheet takes every column as numbers.
func plainSheet(table *train.Table, path string) (*sheet, error) {
	values := make([]float64, 0, len(table.Rows)*len(table.Header))
	for r, row := range table.Rows {
		for c, cell := range row {
			v, err := strconv.ParseFloat(cell, 64)
			if err != nil {
				return nil, fmt.Errorf("probe: reading %s: row %d, column %q is %q: want a number: the model does not say how texts become numbers (those of vigie train do); leave the column out, or write numbers", path, r+1, table.Header[c], cell)
			}
			values = append(values, v)
		}
	}
	return &sheet{numbers: engine.Float64([]int64{int64(len(table.Rows)), int64(len(table.Header))}, values), names: table.Header}, nil
}

// features lists what the map says of each column. Contributions of a column's
// numbers add up to the column's; gradients are those of the numbers, and are
// listed by number.
func (g *given) features(m *Model, made *explain.Map) ([]explain.Feature, error) {
	if g.of == nil || made.Kind != explain.Contribution {
		names := g.names
		if g.of != nil {
			_, columns, err := train.Described(m.Graph)
			if err != nil {
				return nil, err
			}
			names = columns.Numbers()
		}
		return explain.Features(made, g.input, names)
	}
	count := 0
	for _, column := range g.of {
		count = max(count, column+1)
	}
	sums, values := make([]float32, count), make([]float32, count)
	for i, v := range made.Values {
		sums[g.of[i]] += v
	}
	text := map[string]string{}
	for c, cell := range g.cells {
		if v, err := strconv.ParseFloat(cell, 32); err == nil && !math.IsNaN(v) && !math.IsInf(v, 0) {
			values[c] = float32(v)
		}
		if text[g.names[c]] = cell; cell == "" {
			text[g.names[c]] = "missing"
		}
	}
	list, err := explain.Features(&explain.Map{Rows: 1, Columns: count, Values: sums}, engine.Float32([]int64{1, int64(count)}, values), g.names)
	for i := range list {
		list[i].Text = text[list[i].Name]
	}
	return list, err
}
