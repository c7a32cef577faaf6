package enclave

import (
	"math"

	"github.com/vigie/vigie/medical/dicom"
)

// levels is the resolution at which brightness is counted.
const levels = 1024

// imageFacts is what the input rules look at, from one pass over an image.
type imageFacts struct {
	rows, columns int
	outside       int     // pixels that are not a number from 0 to 1
	spread        float64 // brightness between the 1st and the 99th percentile, 0..1
	modal         float64 // share of the pixels in the commonest level
	extreme       float64 // share of the pixels in the darkest and the brightest level
	used          int     // levels that hold at least one pixel
	correlation   float64 // of horizontal neighbours, -1..1; 0 if the image is flat or has values outside
}

// factsOf measures an image. An image whose number of values contradicts its
// geometry has all of its pixels outside.
func factsOf(image *dicom.Luminance) imageFacts {
	facts := imageFacts{rows: image.Rows, columns: image.Columns}
	if image.Rows <= 0 || image.Columns <= 0 || len(image.Values) != image.Rows*image.Columns {
		facts.outside = max(1, len(image.Values))
		return facts
	}
	var counts [levels]int
	for _, value := range image.Values {
		if value >= 0 && value <= 1 {
			counts[min(int(value*levels), levels-1)]++
		} else {
			facts.outside++
		}
	}
	if facts.outside == 0 {
		facts.correlation = neighbours(image)
	}
	total := len(image.Values) - facts.outside
	if total == 0 {
		return facts
	}
	low, high, seen := -1, levels-1, 0
	for level, count := range counts {
		if count > 0 {
			facts.used++
		}
		facts.modal = max(facts.modal, float64(count)/float64(total))
		seen += count
		if low < 0 && 100*seen > total {
			low = level
		}
		if 100*seen >= 99*total {
			high = min(high, level)
		}
	}
	facts.spread = float64(high-low) / (levels - 1)
	facts.extreme = float64(counts[0]+counts[levels-1]) / float64(total)
	return facts
}

// correlatedRows is how many rows suffice to tell an image from noise.
const correlatedRows = 256

// neighbours returns the correlation of horizontal neighbours, on about
// correlatedRows rows spread over the image; 0 if it is flat there.
func neighbours(image *dicom.Luminance) float64 {
	var n, sumX, sumY, sumXX, sumYY, sumXY float64
	for row := 0; row < image.Rows; row += 1 + image.Rows/correlatedRows {
		line := image.Values[row*image.Columns : (row+1)*image.Columns]
		before := float64(line[0])
		for _, value := range line[1:] {
			v := float64(value)
			sumX, sumY = sumX+before, sumY+v
			sumXX, sumYY, sumXY = sumXX+before*before, sumYY+v*v, sumXY+before*v
			before = v
		}
		n += float64(len(line) - 1)
	}
	varX, varY := n*sumXX-sumX*sumX, n*sumYY-sumY*sumY
	if !(varX > 1e-9*n*n && varY > 1e-9*n*n) {
		return 0
	}
	return (n*sumXY - sumX*sumY) / math.Sqrt(varX*varY)
}
