package train

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// ErrLeak is returned when a patient is on both sides of a split: what a model
// learns of the patient would count as knowledge of the disease.
var ErrLeak = errors.New("patients are on both sides of the split")

// Split divides a set into parts of the given shares, such as 0.7, 0.15, 0.15.
//
// Every part gets its share of every class (iterative stratification; Sechidis
// et al. 2011). A patient's examples stay together, where patients are known,
// and so do copies of an image; rows of a table may well be equal. The same seed gives the same parts,
// whatever the order that the examples come in as long as their names are known.
func Split(s *Set, seed uint64, shares ...float64) ([]*Set, error) {
	parts, err := Partition(s, seed, shares...)
	if err != nil {
		return nil, err
	}
	out := make([]*Set, len(parts))
	for p, at := range parts {
		out[p] = s.Subset(at)
	}
	return out, nil
}

// Partition is Split, and returns the examples' positions in each part.
func Partition(s *Set, seed uint64, shares ...float64) ([][]int, error) {
	total := 0.0
	for _, share := range shares {
		if share <= 0 {
			return nil, fmt.Errorf("train: splitting set %q into shares %v; want positive shares", s.Name, shares)
		}
		total += share
	}
	groups := s.groups()
	if len(groups) < len(shares) {
		return nil, fmt.Errorf("train: splitting set %q: %d patients or different examples do not fill %d parts", s.Name, len(groups), len(shares))
	}
	rng := rand.New(rand.NewPCG(seed, 0x5b17))
	rng.Shuffle(len(groups), func(i, j int) { groups[i], groups[j] = groups[j], groups[i] })
	counts := s.Counts()
	// Groups with rare classes first, then large ones: what comes last evens out.
	rarity := make([]int, len(groups))
	order := make([]int, len(groups))
	for g, members := range groups {
		order[g], rarity[g] = g, s.Len()
		for _, i := range members {
			for c, n := range counts {
				if s.Has(i, c) {
					rarity[g] = min(rarity[g], n)
				}
			}
		}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		if rarity[a] != rarity[b] {
			return rarity[a] - rarity[b]
		}
		return len(groups[b]) - len(groups[a])
	})
	wanted := make([][]float64, len(shares)) // by part and class, and the number of examples last
	for p, share := range shares {
		for _, n := range append(slices.Clone(counts), s.Len()) {
			wanted[p] = append(wanted[p], float64(n)*share/total)
		}
	}
	parts := make([][]int, len(shares))
	for _, g := range order {
		has := make([]float64, len(counts)+1)
		for _, i := range groups[g] {
			for c := range counts {
				if s.Has(i, c) {
					has[c]++
				}
			}
			has[len(counts)]++
		}
		best, most := 0, 0.0
		for p := range parts {
			need := 1e-6 * wanted[p][len(counts)] // decides between parts that need the classes alike
			for c, n := range has[:len(counts)] {
				need += n * wanted[p][c] / float64(max(1, counts[c]))
			}
			if p == 0 || need > most {
				best, most = p, need
			}
		}
		parts[best] = append(parts[best], groups[g]...)
		for c, n := range has {
			wanted[best][c] -= n
		}
	}
	for _, at := range parts {
		slices.Sort(at)
	}
	return parts, nil
}

// groups lists the examples that must stay together, each group in order.
func (s *Set) groups() [][]int {
	parent := make([]int, s.Len())
	root := func(i int) int {
		for parent[i] != i {
			parent[i] = parent[parent[i]]
			i = parent[i]
		}
		return i
	}
	content, patient := map[[sha256.Size]byte]int{}, map[string]int{}
	order := make([]int, s.Len())
	for i := range parent {
		parent[i], order[i] = i, i
	}
	if s.Names != nil {
		slices.SortStableFunc(order, func(a, b int) int { return strings.Compare(s.Names[a], s.Names[b]) })
	}
	for _, i := range order {
		if s.Shape == nil {
			key := s.fingerprint(i)
			if j, ok := content[key]; ok {
				parent[root(i)] = root(j)
			} else {
				content[key] = i
			}
		}
		if s.Patients == nil || s.Patients[i] == "" {
			continue
		}
		if j, ok := patient[s.Patients[i]]; ok {
			parent[root(i)] = root(j)
		} else {
			patient[s.Patients[i]] = i
		}
	}
	at := map[int]int{}
	var groups [][]int
	for _, i := range order {
		r := root(i)
		if _, ok := at[r]; !ok {
			at[r] = len(groups)
			groups = append(groups, nil)
		}
		groups[at[r]] = append(groups[at[r]], i)
	}
	return groups
}

// CheckPatients makes sure that no patient is in two of the sets. ErrLeak names
// some who are.
func CheckPatients(sets ...*Set) error {
	seen := map[string]*Set{}
	var both []string
	for _, s := range sets {
		for _, p := range s.Patients {
			first, ok := seen[p]
			switch {
			case p == "":
			case !ok:
				seen[p] = s
			case first != s:
				text := fmt.Sprintf("%s (%s and %s)", p, first.Name, s.Name)
				if !slices.Contains(both, text) {
					both = append(both, text)
				}
			}
		}
	}
	if len(both) == 0 {
		return nil
	}
	some := both
	if len(some) > 5 {
		some = some[:5]
	}
	return fmt.Errorf("train: %d %w: %s; put each patient's examples into one part, or give no split and let one be made", len(both), ErrLeak, strings.Join(some, ", "))
}

// Duplicate is content that several examples share.
type Duplicate struct {
	Examples []string `json:"examples"` // "set/name" of each
	Conflict bool     `json:"conflict"` // their labels differ
}

// Duplicates finds examples of the same content in more than one of the sets, or
// with different labels. Neither is an error: public data sets have both, and a
// reader of the figures should know.
func Duplicates(sets ...*Set) []Duplicate {
	type place struct {
		set *Set
		at  int
	}
	same := map[[sha256.Size]byte][]place{}
	var order [][sha256.Size]byte
	for _, s := range sets {
		for i := range s.Len() {
			key := s.fingerprint(i)
			if same[key] == nil {
				order = append(order, key)
			}
			same[key] = append(same[key], place{s, i})
		}
	}
	var out []Duplicate
	for _, key := range order {
		places := same[key]
		var d Duplicate
		crosses := false
		for _, p := range places {
			first := places[0]
			crosses = crosses || p.set != first.set
			for c := range p.set.Classes {
				d.Conflict = d.Conflict || p.set.Has(p.at, c) != first.set.Has(first.at, c)
			}
			d.Examples = append(d.Examples, p.set.Name+"/"+p.set.name(p.at))
		}
		if crosses || d.Conflict {
			out = append(out, d)
		}
	}
	return out
}

// Join puts sets of the same kind of example together.
func Join(name string, sets ...*Set) *Set {
	out := *sets[0]
	out.Name = name
	for _, s := range sets[1:] {
		out.Pixels = slices.Concat(out.Pixels, s.Pixels)
		out.Values = slices.Concat(out.Values, s.Values)
		out.Labels = slices.Concat(out.Labels, s.Labels)
		out.Marks = slices.Concat(out.Marks, s.Marks)
		out.Names = slices.Concat(out.Names, s.Names)
		out.Patients = slices.Concat(out.Patients, s.Patients)
	}
	return &out
}
