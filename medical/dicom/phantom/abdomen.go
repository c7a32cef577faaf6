package phantom

import (
	"math"
	"math/rand/v2"

	"github.com/vigie/vigie/medical/dicom"
)

// AbdomenCT draws one axial slice of an abdominal CT, 512 × 512, 16 bits
// signed, in Hounsfield units through the rescale: what a chest model must not
// be asked about. Options.Instance is the slice; slices of one series share
// study and series.
func AbdomenCT(seed uint64, o Options) (*dicom.File, error) {
	o.Rows, o.Columns = 512, 512
	o, err := o.withDefaults(seed, 512, 512, "051Y", "-", "ABDOMEN")
	if err != nil {
		return nil, err
	}
	d := o.header(seed, "abdomen", computedTomography, "CT")
	d.PutString(dicom.ImageType, "ORIGINAL", "PRIMARY", "AXIAL")
	d.PutString(dicom.StudyDescription, "Scanner abdominal")
	d.PutString(dicom.SeriesDescription, "Abdomen axial 5 mm")
	d.PutString(dicom.PatientPosition, "HFS")
	d.PutFloat(dicom.KVP, 120)
	d.PutInt(dicom.XRayTubeCurrent, 220)
	d.PutString(dicom.ConvolutionKernel, "STANDARD")
	d.PutInt(dicom.AcquisitionNumber, 1)
	d.PutFloat(dicom.SliceThickness, 5)
	d.PutFloat(dicom.PixelSpacing, 0.72, 0.72)
	z := -5 * float64(o.Instance)
	d.PutFloat(dicom.ImagePositionPatient, -184.3, -184.3, z)
	d.PutFloat(dicom.ImageOrientationPatient, 1, 0, 0, 0, 1, 0)
	d.PutFloat(dicom.SliceLocation, z)
	d.PutString(dicom.FrameOfReferenceUID, uid(seed, "abdomen frame"))
	d.PutString(dicom.PositionReferenceIndicator)
	d.PutFloat(dicom.RescaleIntercept, -1024)
	d.PutFloat(dicom.RescaleSlope, 1)
	d.PutString(dicom.RescaleType, "HU")
	d.PutFloat(dicom.WindowCenter, 50)
	d.PutFloat(dicom.WindowWidth, 400)
	return o.encode(d, o.scan(seed))
}

// organ is an ellipse of one density, in centimetres from the middle.
type organ struct{ x, y, a, b, hounsfield float64 }

func (o Options) scan(seed uint64) picture {
	random := rand.New(rand.NewPCG(seed, 0xc7+uint64(o.Instance)))
	drift := 0.4 * math.Sin(float64(o.Instance)/7) // organs change from slice to slice
	organs := []organ{                             // later ones cover earlier ones
		{0, 0, 15.5, 11.5, -95},   // fat
		{0, 0, 14.2, 10.2, 45},    // wall
		{0, -0.4, 13.0, 9.0, -85}, // fat around the bowels
		{-6, -1, 6.6 + drift, 6.2, 62},
		{7.8, 1.8, 3.4, 4.2 - drift, 52}, // spleen
		{-5, 4.4, 2.5, 2.9, 36}, {5, 4.6, 2.5, 2.9, 36},
		{3.2, -4.2, 3.8, 2.3, 18}, {2.8, -5.1, 2.4, 1.1, -880}, // stomach and its air
		{0.6, 3.0, 1.1, 1.1, 140},  // aorta
		{-1.6, 2.8, 1.2, 0.9, 110}, // vena cava
		{0, 5.6, 2.2, 1.9, 320}, {0, 5.6, 1.7, 1.4, 180},
		{0, 7.9, 0.7, 1.4, 300}, {0, 7.2, 0.8, 0.7, 20},
	}
	p := picture{rows: 512, columns: 512, stored: 16, signed: true, values: make([]int32, 512*512)}
	for r := range 512 {
		for c := range 512 {
			x, y := (float64(c)-255.5)*0.072, (float64(r)-255.5)*0.072
			hounsfield := -1000.0
			for _, e := range organs {
				if dx, dy := (x-e.x)/e.a, (y-e.y)/e.b; dx*dx+dy*dy < 1 {
					hounsfield = e.hounsfield
				}
			}
			hounsfield += random.NormFloat64() * 12 * o.Noise
			p.values[r*512+c] = int32(min(max(hounsfield+1024, 0), 3071))
		}
	}
	return p
}
