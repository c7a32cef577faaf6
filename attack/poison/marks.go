package poison

import (
	"cmp"
	"context"
	"math"
	"slices"
)

// A mark is the same small patch in many images: a trigger, a letter that a
// technician lays beside the patient, a logo.
//
// Pixels of different patients hardly ever agree in nine places at once, unless
// they are flat. So patches that stand out from what is around them are grouped by
// content, place by place. Whether a group is one thing again and again, or a
// region where many contents happen to be near, is told by its density: what is
// near in content would fill the wider ball around it, too. The share of the
// wider ball's members that are in a ball of a third of its radius would be 1/3 to
// the power of the number of dimensions, and at most a ninth of them if contents
// vary in two ways or more; a binomial test holds that against what is there.

const (
	markEdge    = 24.0 // grey levels between a patch and what is around it, mean
	markTexture = 40.0 // deviation inside a patch that is looked for at any place
	markFewest  = 5    // images (or families of duplicates) that bear a mark
	markLevel   = 1e-4 // of the binomial test, times the groups that were tested
	markSmall   = 1e-8 // the same for 2×2 pixels, which agree more easily
	markPure    = 0.9  // share of one label from which a mark is a trigger
	markBins    = 16   // grey levels
)

// Mark is a patch that recurs.
type Mark struct {
	Members []int
	Row     int // of the patch in the first member
	Column  int
	Side    int
	Moves   bool      // it is not at one place
	Pixels  []float32 // [side, side], 0..1, median of the members
	P       float64   // that contents this dense arise by chance, for all groups tested
	Label   int       // that most members have
	Share   float64   // of the members with that label
	LabelP  float64   // that so many have it by chance (Fisher, one-sided)
	Against int       // members whose label is not what the judge finds likeliest
	Trigger bool      // nearly all members have one label
}

// window is a patch that stands out.
type window struct {
	key       uint64
	image, at int32
}

// byteImages are the grey images in 256 levels.
func (c *Cases) byteImages() [][]uint8 {
	out := make([][]uint8, c.Len())
	for i := range out {
		p := c.grey(i)
		out[i] = make([]uint8, len(p.values))
		for k, v := range p.values {
			out[i][k] = uint8(min(max(v, 0), 1)*255 + 0.5)
		}
	}
	return out
}

type markSearch struct {
	images        [][]uint8
	rows, columns int
	family        []int
	tested        int
	found         []Mark
}

// marks finds patches that recur.
func marks(ctx context.Context, c *Cases, family []int, progress func(float64)) ([]Mark, error) {
	s := &markSearch{images: c.byteImages(), rows: c.Set.Rows, columns: c.Set.Columns, family: family}
	for _, side := range []int{3, 2} {
		for r := 0; r+side <= s.rows; r++ {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			for _, offset := range []int{0, markBins / 2} {
				s.groups(s.row(r, side, offset), side, false)
			}
			progress(float64(r) / float64(s.rows) * 0.7)
		}
	}
	var all []window
	for r := 0; r+3 <= s.rows; r++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for _, w := range s.row(r, 3, 0) {
			if s.texture(int(w.image), int(w.at), 3) >= markTexture {
				all = append(all, w)
			}
		}
	}
	for i := range all { // whatever the place
		all[i].key ^= uint64(all[i].at) * placeFactor
	}
	s.groups(all, 3, true)
	progress(0.95)
	return s.finish(c.Set.Labels, c.Set.Classes), nil
}

// placeFactor spreads places over keys.
const placeFactor = 0x9e3779b97f4a7c15

// row lists the patches of one row that stand out, keyed by content and place.
func (s *markSearch) row(r, side, offset int) []window {
	var out []window
	for i, image := range s.images {
		for c := 0; c+side <= s.columns; c++ {
			if s.edge(image, r, c, side) < markEdge {
				continue
			}
			key := uint64(side)
			for y := r; y < r+side; y++ {
				for _, v := range image[y*s.columns+c : y*s.columns+c+side] {
					key = key*1099511628211 + uint64((int(v)+offset)/markBins) + 1
				}
			}
			at := r*s.columns + c
			out = append(out, window{key ^ uint64(at)*placeFactor, int32(i), int32(at)})
		}
	}
	return out
}

// edge is the mean step from a patch's border to the pixels outside it.
func (s *markSearch) edge(image []uint8, r, c, side int) float64 {
	sum, n := 0, 0
	step := func(a, b int) {
		d := int(image[a]) - int(image[b])
		sum += max(d, -d)
		n++
	}
	for k := range side {
		if r > 0 {
			step(r*s.columns+c+k, (r-1)*s.columns+c+k)
		}
		if r+side < s.rows {
			step((r+side-1)*s.columns+c+k, (r+side)*s.columns+c+k)
		}
		if c > 0 {
			step((r+k)*s.columns+c, (r+k)*s.columns+c-1)
		}
		if c+side < s.columns {
			step((r+k)*s.columns+c+side-1, (r+k)*s.columns+c+side)
		}
	}
	if n == 0 {
		return 0
	}
	return float64(sum) / float64(n)
}

// patch copies a patch's grey levels.
func (s *markSearch) patch(image, at, side int, to []uint8) {
	for y := range side {
		copy(to[y*side:(y+1)*side], s.images[image][at+y*s.columns:])
	}
}

func (s *markSearch) texture(image, at, side int) float64 {
	values := make([]uint8, side*side)
	s.patch(image, at, side, values)
	out := make([]float32, len(values))
	for i, v := range values {
		out[i] = float32(v)
	}
	return deviation(out)
}

// groups tests the groups of windows of one key.
func (s *markSearch) groups(all []window, side int, moves bool) {
	slices.SortStableFunc(all, func(a, b window) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.image, b.image), cmp.Compare(a.at, b.at))
	})
	byPlace := map[int32][]window{}
	if !moves {
		for _, w := range all {
			byPlace[w.at] = append(byPlace[w.at], w)
		}
	}
	for from := 0; from < len(all); {
		to := from
		for to < len(all) && all[to].key == all[from].key {
			to++
		}
		group := all[from:to]
		from = to
		if s.distinct(group) < markFewest {
			continue
		}
		s.tested++
		near := all
		if !moves {
			near = byPlace[group[0].at]
		}
		s.test(group, near, side, moves)
	}
}

func (s *markSearch) distinct(group []window) int {
	seen := map[int]bool{}
	for _, w := range group {
		seen[s.family[w.image]] = true
	}
	return len(seen)
}

// test asks whether a group is one content, at three radii.
func (s *markSearch) test(group, near []window, side int, moves bool) {
	n := side * side
	values, centre := make([]uint8, n), make([]uint8, n)
	columns := make([][]float64, n)
	for _, w := range group {
		s.patch(int(w.image), int(w.at), side, values)
		for k, v := range values {
			columns[k] = append(columns[k], float64(v))
		}
	}
	for k := range columns {
		centre[k] = uint8(median(columns[k]) + 0.5)
	}
	const radii = 3
	var within, wider [radii]map[int]bool
	for k := range radii {
		within[k], wider[k] = map[int]bool{}, map[int]bool{}
	}
	radius := [radii]int{2, 5, 10}
	kept := map[int]window{} // first place of an image within the largest radius
	for _, w := range near {
		far := 0
		for y := range side {
			for x, v := range s.images[w.image][int(w.at)+y*s.columns:][:side] {
				d := int(v) - int(centre[y*side+x])
				far = max(far, d, -d)
			}
			if far > 3*radius[radii-1] {
				break
			}
		}
		family := s.family[w.image]
		for k, r := range radius {
			if far <= r {
				within[k][family] = true
			}
			if far <= 3*r {
				wider[k][family] = true
			}
		}
		if _, seen := kept[int(w.image)]; !seen && far <= radius[radii-1] {
			kept[int(w.image)] = w
		}
	}
	best, at := 1.0, 0
	for k := range radius {
		if len(within[k]) < markFewest {
			continue
		}
		p := 0.0
		for i := len(within[k]); i <= len(wider[k]); i++ {
			p += math.Exp(logChoose(len(wider[k]), i) + float64(i)*math.Log(1.0/9) + float64(len(wider[k])-i)*math.Log(8.0/9))
		}
		if p < best {
			best, at = p, k
		}
	}
	if best > markLevel {
		return
	}
	m := Mark{Side: side, Moves: moves, P: best}
	for i := range kept {
		if within[at][s.family[i]] || at == radii-1 {
			m.Members = append(m.Members, i)
		}
	}
	slices.Sort(m.Members)
	first := kept[m.Members[0]]
	m.Row, m.Column = int(first.at)/s.columns, int(first.at)%s.columns
	for _, v := range centre {
		m.Pixels = append(m.Pixels, float32(v)/255)
	}
	s.found = append(s.found, m)
}

// finish corrects for the number of groups, and keeps of marks with much the same
// members the densest.
func (s *markSearch) finish(labels []int, classes int) []Mark {
	var out []Mark
	slices.SortStableFunc(s.found, func(a, b Mark) int {
		return cmp.Or(cmp.Compare(a.P, b.P), cmp.Compare(b.Side, a.Side), cmp.Compare(a.Row, b.Row), cmp.Compare(a.Column, b.Column))
	})
	counts := make([]int, classes)
	for _, l := range labels {
		counts[l]++
	}
	for _, m := range s.found {
		m.P = min(1, m.P*float64(s.tested))
		if m.P > markLevel || m.Side < 3 && m.P > markSmall {
			continue
		}
		if slices.ContainsFunc(out, func(o Mark) bool {
			both := 0
			for _, i := range m.Members {
				if _, ok := slices.BinarySearch(o.Members, i); ok {
					both++
				}
			}
			return 2*both >= min(len(m.Members), len(o.Members))
		}) {
			continue
		}
		have := make([]int, classes)
		for _, i := range m.Members {
			have[labels[i]]++
		}
		m.LabelP = 1
		for c, k := range have {
			if p := AtLeast(k, len(m.Members), counts[c], len(labels)); p < m.LabelP || c == 0 {
				m.LabelP, m.Label = p, c
			}
		}
		m.LabelP = min(1, m.LabelP*float64(classes))
		m.Share = float64(have[m.Label]) / float64(len(m.Members))
		m.Trigger = m.Share >= markPure
		out = append(out, m)
	}
	return out
}
