package explain_test

import (
	"image/color"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
)

func TestADrawingShowsThePictureTheSignAndTheLabel(t *testing.T) {
	picture, err := explain.Picture(engine.Float32([]int64{1, 1, 2, 2}, []float32{0, 0.5, 1, 0.5}), false)
	if err != nil {
		t.Fatal(err)
	}
	if picture.RGBAAt(0, 0) != (color.RGBA{0, 0, 0, 255}) || picture.RGBAAt(0, 1) != (color.RGBA{255, 255, 255, 255}) {
		t.Errorf("the darkest value is %v, the brightest %v", picture.RGBAAt(0, 0), picture.RGBAAt(0, 1))
	}
	made := &explain.Map{Kind: explain.Contribution, Rows: 2, Columns: 2, Values: []float32{1, -1, 0, 0.5}}
	verdict := explain.Judge(made, &explain.Fidelity{P: 0.6}, nil)
	out, err := explain.Draw(picture, made, verdict)
	if err != nil {
		t.Fatal(err)
	}
	const side, gap = 420, 8
	at := func(row, column int) color.RGBA { return out.RGBAAt(side+gap+column*side/2+50, row*side/2+50) }
	if c := at(0, 0); c.R <= c.B || c.R < 100 {
		t.Errorf("what speaks for the class is %v", c)
	}
	if c := at(0, 1); c.B <= c.R {
		t.Errorf("what speaks against it is %v", c)
	}
	if c := at(1, 0); c != (color.RGBA{255, 255, 255, 255}) {
		t.Errorf("where nothing speaks the picture shows as %v", c)
	}
	amber := func(v explain.Verdict) int {
		out, err := explain.Draw(picture, made, v)
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for y := side; y < out.Bounds().Dy(); y++ {
			for x := range out.Bounds().Dx() {
				if c := out.RGBAAt(x, y); c.R > 200 && c.B < 120 {
					count++
				}
			}
		}
		return count
	}
	if failed, held := amber(verdict), amber(explain.Judge(made, &explain.Fidelity{P: 0.01}, nil)); failed < 100 || held != 0 {
		t.Errorf("%d amber pixels under a map that does not explain, %d under one that does", failed, held)
	}
	// A long label is broken, not cut.
	verdict.Text.English = strings.Repeat("weights ", 100)
	longer, err := explain.Draw(picture, made, verdict)
	if err != nil || longer.Bounds().Dy() <= out.Bounds().Dy() || longer.Bounds().Dx() != out.Bounds().Dx() {
		t.Errorf("the drawing is %v, with a long label %v (error %v)", out.Bounds(), longer.Bounds(), err)
	}
	made.Rows = 3
	if _, err := explain.Draw(picture, made, verdict); err == nil {
		t.Error("a map of another size was drawn")
	}
	if _, err := explain.Picture(engine.Float32([]int64{1, 4}, make([]float32, 4)), false); err == nil {
		t.Error("a table was drawn as a picture")
	}
}
