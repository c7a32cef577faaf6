package poison

import (
	"cmp"
	"context"
	"math"
	"math/bits"
	"slices"
)

// Pair are two cases whose images are the same picture.
type Pair struct {
	First, Second int
	Way           int     // how the second is laid against the first: quarter turns, from 4 on mirrored first
	Correlation   float64 // of their detail, -1 to 1
	Same          bool    // bytes for bytes
}

const (
	// hashDistance is how many bits of the perceptual hashes of one picture may
	// differ. It only chooses what is compared; correlation decides.
	hashDistance = 12
	// alike is the correlation of detail from which two images are one picture.
	alike = 0.90
	// alikeWhole is what the correlation of the images themselves must be, too.
	alikeWhole = 0.95
	// hopeless is the correlation of softened detail below which no shift is tried.
	hopeless = 0.5
	// hashSide is the size that images are compared at, pixels.
	hashSide = 32
	// allPairs is how many images are compared pair by pair; of more, those that
	// share a quarter of a hash.
	allPairs = 30000
)

// hash is a perceptual hash: which of the 64 lowest cosine frequencies (DCT-II of
// the image at 32×32, without the mean) exceed their median (Zauner 2010, section
// 3.2.1).
func (p plane) hash() uint64 {
	const side = 32
	square := plane{side, side, make([]float32, side*side)}
	for r := range side {
		for c := range side {
			square.values[r*side+c] = p.sample((float64(r)+0.5)*float64(p.rows)/side-0.5, (float64(c)+0.5)*float64(p.columns)/side-0.5)
		}
	}
	const low = 9 // frequencies a side, of which the first row and column are left out
	var rows [low][side]float64
	for f := range low {
		for c := range side {
			for r := range side {
				rows[f][c] += cosines[f][r] * float64(square.values[r*side+c])
			}
		}
	}
	var values []float64
	for f := 1; f < low; f++ {
		for g := 1; g < low; g++ {
			sum := 0.0
			for c := range side {
				sum += cosines[g][c] * rows[f][c]
			}
			values = append(values, sum)
		}
	}
	middle, h := median(values), uint64(0)
	for i, v := range values {
		if v > middle {
			h |= 1 << i
		}
	}
	return h
}

// cosines of DCT-II over 32 places.
var cosines = func() (t [9][32]float64) {
	for f := range t {
		for i := range t[f] {
			t[f][i] = math.Cos(math.Pi * float64(f) * (float64(i) + 0.5) / 32)
		}
	}
	return t
}()

// sample interpolates bilinearly; the border repeats.
func (p plane) sample(y, x float64) float32 {
	y, x = min(max(y, 0), float64(p.rows-1)), min(max(x, 0), float64(p.columns-1))
	r, c := int(y), int(x)
	fy, fx := float32(y-float64(r)), float32(x-float64(c))
	return (p.at(r, c)*(1-fx)+p.at(r, c+1)*fx)*(1-fy) + (p.at(r+1, c)*(1-fx)+p.at(r+1, c+1)*fx)*fy
}

// looked is what duplicates are found by.
type looked struct {
	hashes [8]uint64 // of each way to lay the picture
	small  plane
	detail plane // what a blur takes away
	soft   plane // the same, blurred a little, so that a shift of a pixel leaves it alike
	flat   bool
}

// duplicates finds pairs of images of one picture, also turned, mirrored,
// brighter, of other contrast or a little shifted.
func duplicates(ctx context.Context, c *Cases, progress func(float64)) ([]Pair, error) {
	n := c.Len()
	all := make([]looked, n)
	for i := range n {
		if i%128 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			progress(0.5 * float64(i) / float64(n))
		}
		p := c.grey(i).fit(hashSide)
		all[i].small, all[i].detail = p, p.minus(p.blur(2))
		all[i].soft = all[i].detail.blur(1)
		all[i].flat = deviation(all[i].detail.values) < 0.5/255
		for way := range 8 {
			all[i].hashes[way] = p.turned(way).hash()
		}
	}
	var pairs []Pair
	try := func(i, j int) {
		if all[i].flat || all[j].flat {
			return // constant images are another finding
		}
		for way := range 8 {
			if bits.OnesCount64(all[i].hashes[0]^all[j].hashes[way]) > hashDistance {
				continue
			}
			if v := all[i].same(all[j], way); v >= alike {
				same := way == 0 && slices.Equal(all[i].small.values, all[j].small.values) && c.sameBytes(i, j)
				pairs = append(pairs, Pair{i, j, way, v, same})
				return
			}
		}
	}
	if n <= allPairs {
		for i := range n {
			if i%64 == 0 {
				if err := ctx.Err(); err != nil {
					return nil, err
				}
				progress(0.5 + 0.5*float64(i)*float64(2*n-i)/float64(n*n))
			}
			for j := i + 1; j < n; j++ {
				try(i, j)
			}
		}
	} else {
		shared(all, try)
	}
	progress(1)
	slices.SortStableFunc(pairs, func(a, b Pair) int {
		return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Second, b.Second))
	})
	return pairs, nil
}

// shared tries pairs whose hashes agree in one of their four parts of 16 bits.
func shared(all []looked, try func(i, j int)) {
	type pair struct{ i, j int }
	tried := map[pair]bool{}
	for band := range 4 {
		part := func(h uint64) uint16 { return uint16(h >> (16 * band)) }
		at := map[uint16][]int{}
		for i := range all {
			at[part(all[i].hashes[0])] = append(at[part(all[i].hashes[0])], i)
		}
		for j := range all {
			for way := range 8 {
				for _, i := range at[part(all[j].hashes[way])] {
					p := pair{min(i, j), max(i, j)}
					if i != j && !tried[p] {
						tried[p] = true
						try(p.i, p.j)
					}
				}
			}
		}
	}
}

func (c *Cases) sameBytes(i, j int) bool {
	n := c.Set.Channels * c.Set.Rows * c.Set.Columns
	a, b := make([]float32, n), make([]float32, n)
	c.Set.Fill(a, i)
	c.Set.Fill(b, j)
	return slices.Equal(a, b)
}

func deviation(values []float32) float64 {
	sum, squares := 0.0, 0.0
	for _, v := range values {
		sum += float64(v)
		squares += float64(v) * float64(v)
	}
	n := float64(len(values))
	return math.Sqrt(math.Max(0, squares/n-sum/n*(sum/n)))
}

// same is the correlation of the detail of two images, the other laid one way, at
// the best shift of up to a pixel; -1 if the images as wholes are not alike.
func (l looked) same(other looked, way int) float64 {
	if l.detail.rows*l.detail.columns != other.detail.rows*other.detail.columns {
		return -1
	}
	soft := other.soft.turned(way)
	if soft.rows != l.soft.rows || correlation(l.soft, soft, 0, 0) < hopeless {
		return -1
	}
	detail, whole := other.detail.turned(way), other.small.turned(way)
	best := -1.0
	for dy := -1; dy <= 1; dy++ {
		for dx := -1; dx <= 1; dx++ {
			v := correlation(l.detail, detail, dy, dx)
			if v > best && (v < alike || correlation(l.small, whole, dy, dx) >= alikeWhole) {
				best = v
			}
		}
	}
	return best
}

// correlation of two planes where they overlap, the second shifted.
func correlation(a, b plane, dy, dx int) float64 {
	var n, sa, sb, saa, sbb, sab float64
	for r := max(0, dy); r < a.rows+min(0, dy); r++ {
		for c := max(0, dx); c < a.columns+min(0, dx); c++ {
			x, y := float64(a.values[r*a.columns+c]), float64(b.values[(r-dy)*a.columns+c-dx])
			n++
			sa += x
			sb += y
			saa += x * x
			sbb += y * y
			sab += x * y
		}
	}
	va, vb := saa-sa*sa/n, sbb-sb*sb/n
	if !(va > 1e-9 && vb > 1e-9) {
		return 0
	}
	return (sab - sa*sb/n) / math.Sqrt(va*vb)
}

// families groups cases that are linked by pairs; the smallest position names one.
func families(n int, pairs []Pair) []int {
	of := make([]int, n)
	for i := range of {
		of[i] = i
	}
	root := func(i int) int {
		for of[i] != i {
			of[i] = of[of[i]]
			i = of[i]
		}
		return i
	}
	for _, p := range pairs {
		a, b := root(p.First), root(p.Second)
		of[max(a, b)] = min(a, b)
	}
	for i := range of {
		of[i] = root(i)
	}
	return of
}
