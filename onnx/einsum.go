package onnx

import (
	"slices"
	"strings"
)

// Einsum is an equation of operator Einsum with its ellipses written out. An
// index is a letter's code, or a negative number for an axis that an ellipsis
// covers, -1 being the last of them.
type Einsum struct {
	Terms  [][]int // the indices of each operand
	Result []int
}

// ParseEinsum reads an equation such as "bhid,bhjd->bhij" for operands of the
// given ranks (-1 for one not known). It returns nil without an error if an
// ellipsis stands for a number of axes that is not known.
func ParseEinsum(equation string, ranks []int) (*Einsum, error) {
	left, right, arrow := strings.Cut(strings.ReplaceAll(equation, " ", ""), "->")
	terms := strings.Split(left, ",")
	if len(terms) != len(ranks) {
		return nil, mistake("equation %q has %d terms for %d inputs", equation, len(terms), len(ranks))
	}
	e := &Einsum{}
	widest := 0
	for i, term := range terms {
		letters := strings.Replace(term, "...", "", 1)
		covered := 0
		if len(letters) < len(term) {
			if ranks[i] < 0 {
				return nil, nil
			}
			covered = ranks[i] - len(letters)
		}
		if covered < 0 || ranks[i] >= 0 && len(letters)+covered != ranks[i] {
			return nil, mistake("equation %q: term %q for %d dimensions", equation, term, ranks[i])
		}
		widest = max(widest, covered)
		indices, err := einsumIndices(equation, term, covered)
		if err != nil {
			return nil, err
		}
		e.Terms = append(e.Terms, indices)
	}
	if arrow {
		var err error
		e.Result, err = einsumIndices(equation, right, widest)
		if err != nil {
			return nil, err
		}
	} else { // the classical form: ellipses, then indices that occur once, in order of the alphabet
		uses := map[int]int{}
		for _, index := range slices.Concat(e.Terms...) {
			uses[index]++
		}
		for index, n := range uses {
			if n == 1 || index < 0 {
				e.Result = append(e.Result, index)
			}
		}
		slices.Sort(e.Result)
	}
	all := slices.Concat(e.Terms...)
	for i, index := range e.Result {
		if !slices.Contains(all, index) {
			return nil, mistake("equation %q: index %q of the result is in no term", equation, rune(max(index, '.')))
		}
		if slices.Contains(e.Result[:i], index) {
			return nil, mistake("equation %q: index %q is twice in the result", equation, rune(max(index, '.')))
		}
	}
	return e, nil
}

func einsumIndices(equation, term string, covered int) ([]int, error) {
	before, after, ellipsis := strings.Cut(term, "...")
	var out []int
	add := func(letters string) error {
		for _, letter := range letters {
			if (letter < 'a' || letter > 'z') && (letter < 'A' || letter > 'Z') {
				return mistake("equation %q: %q is no index", equation, letter)
			}
			out = append(out, int(letter))
		}
		return nil
	}
	if err := add(before); err != nil {
		return nil, err
	}
	if ellipsis {
		for i := range covered {
			out = append(out, i-covered)
		}
	}
	if err := add(after); err != nil {
		return nil, err
	}
	return out, nil
}
