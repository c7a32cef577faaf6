package guard

import (
	"fmt"
	"math"
	"math/bits"
	"sync"

	"github.com/vigie/vigie"
)

// Fingerprint is what is left of an image to recognise a near copy of it by: no
// image can be made from it. Detail is a perceptual hash (which of neighbouring
// places is brighter, on a coarse grid), Meaning one of the embedding (on which
// side of each of its mean's halves it lies).
type Fingerprint struct {
	Detail  [4]uint64
	Meaning [2]uint64
}

// Fingerprint returns the fingerprint of an image that was run.
func (g *Guard) Fingerprint(look *Look) Fingerprint {
	p := g.geometry.plane(look.values)
	var f Fingerprint
	// A grid of 17 columns and 16 rows: 16×16 comparisons (dHash; Krawetz 2013).
	const rows, columns = 16, 17
	var grid [rows][columns]float64
	for r := range rows {
		for c := range columns {
			r0, r1 := r*p.rows/rows, max(r*p.rows/rows+1, (r+1)*p.rows/rows)
			c0, c1 := c*p.columns/columns, max(c*p.columns/columns+1, (c+1)*p.columns/columns)
			sum := 0.0
			for y := r0; y < min(r1, p.rows); y++ {
				for x := c0; x < min(c1, p.columns); x++ {
					sum += float64(p.values[y*p.columns+x])
				}
			}
			grid[r][c] = sum / float64((r1-r0)*(c1-c0))
		}
	}
	for r := range rows {
		for c := range columns - 1 {
			if at := r*16 + c; grid[r][c] > grid[r][c+1] {
				f.Detail[at/64] |= 1 << (at % 64)
			}
		}
	}
	if len(look.layers) > 0 {
		place := g.statistics.models.References.place(look.layers[len(look.layers)-1])
		for k := range 128 { // signs of random projections, the same for everyone
			sum, h := 0.0, uint64(k)*0x9e3779b97f4a7c15+1
			for _, v := range place {
				h ^= h << 13
				h ^= h >> 7
				h ^= h << 17
				if h>>63 == 0 {
					v = -v
				}
				sum += v
			}
			if sum > 0 {
				f.Meaning[k/64] |= 1 << (k % 64)
			}
		}
	}
	return f
}

// Apart is in how many of 256 and of 128 bits two fingerprints differ.
func (f Fingerprint) Apart(other Fingerprint) (detail, meaning int) {
	for i := range f.Detail {
		detail += bits.OnesCount64(f.Detail[i] ^ other.Detail[i])
	}
	for i := range f.Meaning {
		meaning += bits.OnesCount64(f.Meaning[i] ^ other.Meaning[i])
	}
	return detail, meaning
}

// The distances below which two images are the same picture: a copy that was
// saved again, rescaled or slightly altered keeps nine bits of ten.
const (
	sameDetail  = 12
	sameMeaning = 6
)

// Memory remembers fingerprints of images and whose they were. It is the seam
// for a store that many copies share; Recent is one in memory.
type Memory interface {
	// Recall returns the nearest fingerprint of another patient that differs in
	// at most detail and meaning bits, and then keeps this one.
	Recall(patient vigie.PatientPseudonym, f Fingerprint, detail, meaning int) (found bool, err error)
}

// Recent is a Memory of the last images. It is safe for concurrent use, and
// forgets everything with the process.
type Recent struct {
	mu      sync.Mutex
	entries []remembered
	next    int
	full    bool
}

type remembered struct {
	patient vigie.PatientPseudonym
	print   Fingerprint
}

// NewRecent remembers the last n images.
func NewRecent(n int) *Recent { return &Recent{entries: make([]remembered, max(1, n))} }

var _ Memory = (*Recent)(nil)

// Recall implements Memory.
func (m *Recent) Recall(patient vigie.PatientPseudonym, f Fingerprint, detail, meaning int) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	count := m.next
	if m.full {
		count = len(m.entries)
	}
	found := false
	for _, e := range m.entries[:count] {
		if d, k := f.Apart(e.print); e.patient != patient && d <= detail && k <= meaning {
			found = true
			break
		}
	}
	m.entries[m.next] = remembered{patient, f}
	if m.next++; m.next == len(m.entries) {
		m.next, m.full = 0, true
	}
	return found, nil
}

// Seen asks a memory whether nearly the same image came before under another
// patient. It is a rule and no statistic: its p-value is 1, or the smallest
// there is. The combination knows nothing of it.
func (g *Guard) Seen(m Memory, patient vigie.PatientPseudonym, look *Look) (vigie.GuardResult, error) {
	result := vigie.GuardResult{Guard: string(Replay), PValue: 1}
	found, err := m.Recall(patient, g.Fingerprint(look), sameDetail, sameMeaning)
	if err != nil {
		return result, fmt.Errorf("guard: looking for copies of an image: %w", err)
	}
	if found {
		result.PValue, result.Alarm = math.SmallestNonzeroFloat64, true
		result.Reason = &vigie.Reason{Code: vigie.ReasonGuard, Detail: string(Replay), Text: vigie.Text{
			English: "Nearly the same image came before under another patient.",
			French:  "Presque la même image est déjà arrivée sous un autre patient."}}
	}
	return result, nil
}
