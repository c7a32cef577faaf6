package enclave

import (
	"math"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/model"
)

// maxMapSide bounds a relevance map: finer than any layer that it is drawn from.
const maxMapSide = 1024

// overImage lays a map over the model's input, 0..1, back over the whole image
// it was cut from, at about the map's own resolution, and puts it under its
// label. What the model did not see is 0.
func overImage(e *vigie.Explanation, relevance *explain.Map, window model.Window, rows, columns int) {
	// Input pixels for each image pixel, and map cells for each input pixel: 1,
	// as maps are as large as the input.
	down := float64(window.InputRows) / float64(window.Rows)
	across := float64(window.InputColumns) / float64(window.Columns)
	e.Rows = min(max(1, int(math.Round(float64(rows)*down))), maxMapSide)
	e.Columns = min(max(1, int(math.Round(float64(columns)*across))), maxMapSide)
	e.Map = make([]uint8, e.Rows*e.Columns)
	for row := range e.Rows {
		y := (float64(row) + 0.5) / float64(e.Rows) * float64(rows)
		if y < float64(window.Top) || y >= float64(window.Top+window.Rows) {
			continue
		}
		inputY := float64(window.InputTop) + (y-float64(window.Top))*down
		for column := range e.Columns {
			x := (float64(column) + 0.5) / float64(e.Columns) * float64(columns)
			if x < float64(window.Left) || x >= float64(window.Left+window.Columns) {
				continue
			}
			inputX := float64(window.InputLeft) + (x-float64(window.Left))*across
			e.Map[row*e.Columns+column] = uint8(math.Round(255 * bilinear(relevance, inputY, inputX)))
		}
	}
}

// bilinear samples a map at a position in input pixels, where the centre of
// the first pixel is at 0.5; the border is repeated. The result is 0..1.
func bilinear(m *explain.Map, y, x float64) float64 {
	top, v := split(y-0.5, m.Rows)
	left, u := split(x-0.5, m.Columns)
	bottom, right := min(top+1, m.Rows-1), min(left+1, m.Columns-1)
	at := func(row, column int) float64 { return float64(m.Values[row*m.Columns+column]) }
	value := (1-v)*((1-u)*at(top, left)+u*at(top, right)) + v*((1-u)*at(bottom, left)+u*at(bottom, right))
	if !(value > 0) { // not a number: no relevance
		return 0
	}
	return min(value, 1)
}

// split returns the cell at or before a position, within a map, and how far
// beyond its centre the position is.
func split(position float64, cells int) (int, float64) {
	position = min(max(position, 0), float64(cells-1))
	cell := int(position)
	return cell, position - float64(cell)
}
