package phantom

import (
	"math"
	"math/rand/v2"

	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"

	"image"
	"image/color"

	"github.com/vigie/vigie/medical/dicom"
)

// Chest draws a frontal chest radiograph (CR) of a child: lungs, ribs,
// clavicles, spine, heart, hila with vessels, diaphragm, shoulders, quantum
// noise, and with Options.Opacity a consolidation.
func Chest(seed uint64, o Options) (*dicom.File, error) {
	o, err := o.withDefaults(seed, 1024, 1152, "004Y", "AP", "CHEST")
	if err != nil {
		return nil, err
	}
	d := o.header(seed, "chest", computedRadiography, "CR")
	d.PutString(dicom.ImageType, "ORIGINAL", "PRIMARY")
	d.PutString(dicom.StudyDescription, "Thorax de face")
	d.PutString(dicom.SeriesDescription, "Chest AP")
	d.PutString(dicom.ProtocolName, "PED THORAX")
	if o.View != "-" {
		d.PutString(dicom.ViewPosition, o.View)
	}
	d.PutString(dicom.PatientOrientation, "L", "F")
	d.PutFloat(dicom.KVP, 66)
	d.PutInt(dicom.Exposure, 2)
	d.PutFloat(dicom.DistanceSourceToDetector, 1150)
	spacing := 290 / float64(max(o.Rows, o.Columns)) // a cassette of 29 cm
	d.PutFloat(dicom.ImagerPixelSpacing, spacing, spacing)
	d.PutString(dicom.PlateType, "storage phosphor")
	d.PutString(dicom.PixelIntensityRelationship, "LOG")

	// The window shows exactly the stored range (PS3.3 C.11.2.1.2.1).
	bits := 12
	if o.TransferSyntax == dicom.JPEGBaseline {
		bits = 8
	}
	d.PutFloat(dicom.WindowCenter, float64(int(1)<<(bits-1)))
	d.PutFloat(dicom.WindowWidth, float64(int(1)<<bits))
	d.PutFloat(dicom.RescaleIntercept, 0)
	d.PutFloat(dicom.RescaleSlope, 1)
	d.PutString(dicom.RescaleType, "US")
	return o.encode(d, o.expose(seed, newThorax(seed, o)))
}

// thorax is one child's anatomy in fractions of the square that it fills: x to
// the right, y down. The numbers in the drawing were fitted by hand and by random
// search until small networks trained on real children's radiographs told clear
// phantoms from consolidated ones.
type thorax struct {
	width, height  float64 // how wide and high the lungs are, about 1
	shift, tilt    float64 // of the midline
	apex, base     float64 // of the lungs
	heart          float64 // size, about 1
	ribs           []rib
	vessels        []vessel
	bronchial      []wave
	opacity        func(x, y float64) float64
	soft, lungDark float64
}

type rib struct{ side, start, drop, width, bright float64 }

type vessel struct{ x, y, dx, dy, width, bright float64 }

type wave struct{ fx, fy, phase, size float64 }

func newThorax(seed uint64, o Options) *thorax {
	random := rand.New(rand.NewPCG(seed, uint64(o.Instance)<<8+uint64(o.Series)+0xc1e57))
	about := func(mean, spread float64) float64 { return mean + spread*(2*random.Float64()-1) }
	t := &thorax{
		width: about(1, 0.035), height: about(1, 0.02), shift: about(0, 0.01), tilt: about(0, 0.01),
		apex: about(0.12, 0.008), base: about(0.79, 0.012), heart: about(1, 0.04),
		soft: about(0.70, 0.015), lungDark: about(0.366, 0.015),
	}
	for side := -1.0; side <= 1; side += 2 {
		for i := range 10 {
			start := t.apex + 0.02 + float64(i)*0.0757
			t.ribs = append(t.ribs,
				rib{side, start, about(0.16, 0.01) + 0.012*float64(i), about(0.017, 0.001), about(0.102, 0.01)},
				rib{side, start + 0.22, about(-0.16, 0.01), about(0.010, 0.001), about(0.045, 0.008)})
		}
		for range 22 {
			angle := about(math.Pi/2, 1.25)
			length := about(0.15, 0.07)
			t.vessels = append(t.vessels, vessel{
				x: 0.5 + side*about(0.10, 0.02), y: about(0.47, 0.06),
				dx: side * math.Sin(angle) * length, dy: -math.Cos(angle) * length * 1.3,
				width: about(0.008, 0.003), bright: about(0.03, 0.012),
			})
		}
	}
	for octave := range 4 {
		f := 9 * math.Pow(1.9, float64(octave))
		for range 3 {
			t.bronchial = append(t.bronchial, wave{about(0, f), about(0, f), about(0, math.Pi), 0.010 / math.Pow(1.5, float64(octave))})
		}
	}
	t.opacity = consolidation(random, o)
	return t
}

// consolidation returns how much of the air at a place is replaced by fluid,
// 0..1: a core with a ragged edge.
func consolidation(random *rand.Rand, o Options) func(x, y float64) float64 {
	side := float64(random.IntN(2))*2 - 1
	cx, cy := 0.5+side*(0.23+0.05*random.Float64()), 0.5+0.15*random.Float64()
	x, y := o.place(o.OpacityX, o.OpacityY)
	if o.OpacityX > 0 {
		cx = x
	}
	if o.OpacityY > 0 {
		cy = y
	}
	var phases [6]float64
	for i := range phases {
		phases[i] = random.Float64() * 2 * math.Pi
	}
	if o.Opacity <= 0 {
		return func(x, y float64) float64 { return 0 }
	}
	strength, radius := min(o.Opacity, 1), o.OpacityRadius
	const haze = 0.45 // the rest of both lungs clouds too, as in the children's images
	return func(x, y float64) float64 {
		dx, dy := (x-cx)/radius, (y-cy)/radius
		r, angle := math.Hypot(dx, dy), math.Atan2(dy, dx)
		edge := 1.0
		for i, phase := range phases {
			edge += 0.14 / float64(i+1) * math.Sin(float64(i+2)*angle+phase)
		}
		core := strength * (1 - smooth(0.35*edge, 1.25*edge, r))
		return 1 - (1-core)*(1-haze*strength)
	}
}

// smooth goes from 0 at a to 1 at b without a corner.
func smooth(a, b, x float64) float64 {
	t := min(max((x-a)/(b-a), 0), 1)
	return t * t * (3 - 2*t)
}

// bell is 1 at 0 and falls off over width.
func bell(x, width float64) float64 { x /= width; return math.Exp(-x * x) }

// density is the darkening of the path through the body, as brightness 0..1 of
// the radiograph.
func (t *thorax) density(x, y float64) float64 {
	x -= t.shift + t.tilt*(y-0.5)
	body := t.body(x, y)
	lung := t.lungs(x, y)
	heart := t.heartShadow(x, y)
	air := lung * (1 - 0.72*heart)

	v := t.soft
	v -= 0.093 * smooth(0.2, 0.5, math.Abs(x-0.5)) * (1 - smooth(t.base-0.1, t.base+0.1, y)) // the chest wall thins to the sides
	v += 0.06 * bell(x-0.5, 0.11) * smooth(-0.1, 0.15, y)                                    // spine and mediastinum
	v += 0.029 * bell(x-0.5, 0.035) * (0.7 + 0.3*math.Cos(y*2*math.Pi/0.062))
	v -= 0.085 * bell(x-0.5, 0.02) * (1 - smooth(0.30, 0.40, y)) // trachea
	v += 0.04 * heart
	v += 0.02*smooth(t.base-0.06, t.base+0.06, y) + 0.115*smooth(t.base-0.02, 1.02, y) // liver, spleen, stomach
	v -= 0.116 * bell(x-0.69, 0.06) * bell(y-(t.base+0.10), 0.035)

	filled := t.opacity(x, y)
	darkness := t.lungDark * (1 - 0.92*filled)
	for _, w := range t.bronchial {
		darkness += w.size * math.Sin(w.fx*x*math.Pi+w.fy*y*math.Pi+w.phase) * (0.6 + filled)
	}
	v -= darkness * air
	if air > 0 {
		for _, vein := range t.vessels {
			v += vein.shadow(x, y) * air * (1 - filled)
		}
	}
	v += 0.08 * air * (bell(x-0.60, 0.04)*bell(y-0.46, 0.07) + bell(x-0.40, 0.04)*bell(y-0.49, 0.07)) // hila
	for _, r := range t.ribs {
		v += r.shadow(x, y, t) * (0.4 + 0.6*air*(1-0.5*filled))
	}
	for side := -1.0; side <= 1; side += 2 { // clavicles
		along := (x - 0.5) * side
		line := t.apex + 0.075 - 0.18*(along-0.03) + 0.25*(along-0.2)*(along-0.2)
		v += 0.06 * bell(y-line, 0.014) * smooth(0.02, 0.06, along) * (1 - smooth(0.36, 0.42, along))
	}
	return 0.03 + (v-0.03)*body
}

// body is 1 inside the child and 0 in the air beside neck and flanks.
func (t *thorax) body(x, y float64) float64 {
	along := math.Abs(x - 0.5)
	shoulder := 0.13 * math.Pow(max(along-0.13, 0)/0.37, 1.4)
	neck := smooth(0, 0.05, 0.15-along)
	below := smooth(-0.015, 0.045, y-shoulder-0.02)
	flank := 0.455 + 0.05*bell(y-0.12, 0.12)
	return max(neck, below) * (1 - smooth(flank-0.012, flank+0.012, along*(2-t.width)))
}

// lungs is 1 in aerated lung.
func (t *thorax) lungs(x, y float64) float64 {
	side := 1.0
	if x < 0.5 {
		side = -1
	}
	along := (x - 0.5) * side / t.width
	depth := (y - t.apex) / ((t.base - t.apex) * t.height)
	if depth < -0.1 || depth > 1.2 {
		return 0
	}
	d := min(max(depth, 0), 1)
	lateral := 0.207 + 0.26*math.Pow(d, 0.86)
	medial := 0.103 - 0.03*d
	top := 0.045 * math.Pow((along-0.16)/0.07, 2)
	dome := t.base + 0.14*math.Pow((along-0.24)/0.2, 2) - 0.076
	if side < 0 { // the liver lifts the right dome
		dome -= 0.02
	}
	return smooth(-0.012, 0.014, along-medial) * smooth(-0.014, 0.014, lateral-along) *
		smooth(-0.01, 0.04, y-t.apex-top) * smooth(-0.012, 0.012, dome-y)
}

// heartShadow is 1 behind the heart and the aortic knob.
func (t *thorax) heartShadow(x, y float64) float64 {
	dx, dy := x-0.545, y-0.66
	// The axis points to the patient's left and down.
	u, w := dx*0.88+dy*0.47, -dx*0.47+dy*0.88
	ventricle := 1 - smooth(0.805, 1.125, math.Hypot(u/(0.16*t.heart), w/(0.16*t.heart)))
	atrium := 1 - smooth(0.75, 1.15, math.Hypot((x-0.445)/0.07, (y-0.63)/0.13))
	aorta := 1 - smooth(0.6, 1.3, math.Hypot((x-0.562)/0.058, (y-0.36)/0.075))
	pulmonary := 1 - smooth(0.6, 1.3, math.Hypot((x-0.575)/0.065, (y-0.47)/0.08))
	return 1 - (1-ventricle)*(1-atrium)*(1-0.865*aorta)*(1-0.9*pulmonary)
}

// shadow of a rib: an arch from the spine (drop > 0) or rising to it from the
// front (drop < 0), brighter at its edges as a tube is.
func (r rib) shadow(x, y float64, t *thorax) float64 {
	along := (x - 0.5) * r.side / t.width
	if along < 0.03 || along > 0.46 {
		return 0
	}
	s := (along - 0.03) / 0.4
	line := r.start - 0.045*math.Sin(math.Pi*min(s*1.3, 1)) + r.drop*s*s
	off := math.Abs(y-line) / r.width
	if off > 2.2 {
		return 0
	}
	return r.bright * (1 - smooth(0.75, 1.5, off)) * (0.75 + 0.25*smooth(0.2, 0.9, off)) *
		smooth(0.03, 0.07, along) * (1 - smooth(0.42, 0.46, along)) * (1 - smooth(0.78, 0.95, y))
}

// shadow of a vessel that narrows from the hilum outward.
func (v vessel) shadow(x, y float64) float64 {
	px, py := x-v.x, y-v.y
	length := v.dx*v.dx + v.dy*v.dy
	s := (px*v.dx + py*v.dy) / length
	if s < -0.1 || s > 1.1 {
		return 0
	}
	s = min(max(s, 0), 1)
	off := math.Hypot(px-s*v.dx, py-s*v.dy)
	width := v.width * (1.2 - s)
	if off > 3*width {
		return 0
	}
	return v.bright * (1 - 0.7*s) * bell(off, width)
}

// sharpness is how many rows the anatomy is drawn with; the rest is
// interpolated, as the focal spot and the phosphor would blur it anyway.
const sharpness = 448

// place turns fractions of the image into those of the anatomy, which fills the
// centre square whatever the shape of the image: a child is not stretched.
func (o Options) place(x, y float64) (float64, float64) {
	side := float64(min(o.Rows, o.Columns))
	x = 0.5 + (x-0.5)*float64(o.Columns)/side
	y = 0.5 + (y-0.5)*float64(o.Rows)/side
	return x, 0.508 + 0.9775*(y-0.5)
}

// expose turns the anatomy into 12-bit stored values with quantum noise: the
// denser the path, the fewer quanta and the noisier.
func (o Options) expose(seed uint64, t *thorax) picture {
	rows := min(o.Rows, sharpness)
	columns := max(min(o.Columns, o.Columns*rows/o.Rows), 2)
	coarse := make([]float64, rows*columns)
	for r := range rows {
		for c := range columns {
			x, y := o.place((float64(c)+0.5)/float64(columns), (float64(r)+0.5)/float64(rows))
			coarse[r*columns+c] = t.density(x, y)
		}
	}
	p := picture{rows: o.Rows, columns: o.Columns, stored: 12, values: make([]int32, o.Rows*o.Columns)}
	random := rand.New(rand.NewPCG(seed, 0x9071ce+uint64(o.Instance)))
	for r := range o.Rows {
		y := (float64(r)+0.5)*float64(rows)/float64(o.Rows) - 0.5
		r0, fy := cell(y, rows)
		for c := range o.Columns {
			x := (float64(c)+0.5)*float64(columns)/float64(o.Columns) - 0.5
			c0, fx := cell(x, columns)
			i := r0*columns + c0
			top := coarse[i]*(1-fx) + coarse[i+1]*fx
			bottom := coarse[i+columns]*(1-fx) + coarse[i+columns+1]*fx
			v := top*(1-fy) + bottom*fy
			v += random.NormFloat64() * o.Noise * (0.004 + 0.012*v*v)
			p.values[r*o.Columns+c] = int32(min(max(v, 0), 1) * 4095)
		}
	}
	if o.BurnedIn {
		o.write(p)
	}
	if o.Photometric == "MONOCHROME1" {
		for i, v := range p.values {
			p.values[i] = 4095 - v
		}
	}
	return p
}

// cell returns the lower neighbour of a coordinate and the distance from it.
func cell(x float64, n int) (int, float64) {
	x = min(max(x, 0), float64(n-1)-1e-9)
	i := min(int(x), n-2)
	return i, x - float64(i)
}

// write burns the name into the upper left corner, as some devices do.
func (o Options) write(p picture) {
	mask := image.NewGray(image.Rect(0, 0, p.columns, p.rows))
	drawer := font.Drawer{Dst: mask, Src: image.NewUniform(color.White), Face: basicfont.Face7x13, Dot: fixed.P(6, 18)}
	drawer.DrawString(o.Identity.Name + "  " + o.Identity.ID)
	for i, v := range mask.Pix {
		if v > 0 {
			p.values[i] = 4095
		}
	}
}
