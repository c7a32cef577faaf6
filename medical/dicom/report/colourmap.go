package report

import "image/color"

// relevance is the colour scale of the heat map: dark violet over red and
// orange to pale yellow. Lightness rises evenly from end to end, so that equal
// steps of relevance look equal, in grey print and to colour-blind eyes too.
var relevance = [...][3]float64{
	{20, 11, 53}, {66, 10, 104}, {110, 24, 110}, {155, 41, 100}, {198, 60, 78},
	{230, 93, 47}, {247, 138, 16}, {251, 188, 36}, {252, 253, 164},
}

// heatColour returns the colour of a relevance of 0..1.
func heatColour(v float64) color.RGBA {
	at := min(max(v, 0), 1) * float64(len(relevance)-1)
	i := min(int(at), len(relevance)-2)
	f := at - float64(i)
	mix := func(c int) uint8 { return uint8(relevance[i][c]*(1-f) + relevance[i+1][c]*f + 0.5) }
	return color.RGBA{mix(0), mix(1), mix(2), 255}
}

// heatOpacity returns how much of the colour covers the image: nothing where
// nothing is relevant, and never so much that the anatomy is hidden.
func heatOpacity(v float64) float64 {
	const faintest, strongest = 0.12, 0.58
	if v <= faintest {
		return 0
	}
	return strongest * (v - faintest) / (1 - faintest)
}
