package train

import (
	"fmt"
	"math"
	"slices"
	"strconv"
)

// Set is a set of labelled examples: images held as bytes (pixel values 0..255
// stand for 0..1) or as floats, or anything else that has one shape, such as the
// columns of a table.
type Set struct {
	Name     string
	Channels int       // of images
	Rows     int       // of images
	Columns  int       // of images
	Shape    []int64   // of one example that is not an image; nil for images
	Pixels   []uint8   // [N, Channels, Rows, Columns]; nil if Values is not
	Values   []float32 // [N, shape of one example], images 0..1; nil if Pixels is not
	Labels   []int     // class of each example, 0..Classes-1; nil if Marks is not
	Marks    []uint8   // [N, Classes]: 1 where a label holds, for labels that do not exclude each other
	Classes  int

	ClassNames []string // of the classes or labels, if known
	Names      []string // of the examples, such as their files, if known
	Patients   []string // of each example, if known
}

// Multi says that an example may have any number of the labels.
func (s *Set) Multi() bool { return s.Marks != nil }

// Len is the number of examples.
func (s *Set) Len() int {
	if s.Multi() && s.Classes > 0 {
		return len(s.Marks) / s.Classes
	}
	return len(s.Labels)
}

// Example is the shape of one example.
func (s *Set) Example() []int64 {
	if s.Shape != nil {
		return s.Shape
	}
	return []int64{int64(s.Channels), int64(s.Rows), int64(s.Columns)}
}

// Image returns the pixels of image i, [Channels, Rows, Columns], in place. The
// set must hold bytes.
func (s *Set) Image(i int) []uint8 {
	n := s.Channels * s.Rows * s.Columns
	return s.Pixels[i*n : (i+1)*n : (i+1)*n]
}

// values returns the floats of example i, in place. The set must hold floats.
func (s *Set) values(i int) []float32 {
	n := int(product(s.Example()))
	return s.Values[i*n : (i+1)*n : (i+1)*n]
}

// Fill writes example i as floats. dst may hold it several times over: a grey
// image fills every channel of a network that wants three.
func (s *Set) Fill(dst []float32, i int) {
	if s.Pixels != nil {
		image := s.Image(i)
		plain(dst[:len(image)], image)
		repeat(dst, len(image))
		return
	}
	v := s.values(i)
	copy(dst, v)
	repeat(dst, len(v))
}

// repeat fills dst with copies of its first n elements.
func repeat(dst []float32, n int) {
	for from := n; from < len(dst); from += n {
		copy(dst[from:], dst[:n])
	}
}

// Has says whether example i has a label or is of a class.
func (s *Set) Has(i, class int) bool {
	if s.Multi() {
		return s.Marks[i*s.Classes+class] != 0
	}
	return s.Labels[i] == class
}

// Counts returns how many examples each class or label has.
func (s *Set) Counts() []int {
	counts := make([]int, s.Classes)
	for i := range s.Len() {
		for c := range counts {
			if s.Has(i, c) {
				counts[c]++
			}
		}
	}
	return counts
}

// Subset returns the examples at the given positions, in that order.
func (s *Set) Subset(at []int) *Set {
	out := *s
	out.Pixels, out.Values, out.Labels, out.Marks, out.Names, out.Patients = nil, nil, nil, nil, nil, nil
	for _, i := range at {
		if s.Pixels != nil {
			out.Pixels = append(out.Pixels, s.Image(i)...)
		} else {
			out.Values = append(out.Values, s.values(i)...)
		}
		if s.Multi() {
			out.Marks = append(out.Marks, s.Marks[i*s.Classes:(i+1)*s.Classes]...)
		} else {
			out.Labels = append(out.Labels, s.Labels[i])
		}
		if s.Names != nil {
			out.Names = append(out.Names, s.Names[i])
		}
		if s.Patients != nil {
			out.Patients = append(out.Patients, s.Patients[i])
		}
	}
	return &out
}

// ClassName is the name of a class, or its number.
func (s *Set) ClassName(c int) string {
	if c < len(s.ClassNames) {
		return s.ClassNames[c]
	}
	return fmt.Sprint(c)
}

// Spoken is the name of a class as people read it: "class 1" where it is a number.
func Spoken(class string) string {
	if _, err := strconv.Atoi(class); err == nil {
		return "class " + class
	}
	return class
}

// Person is the patient that an example is of or, where patients are not known,
// the example itself.
func (s *Set) Person(i int) string {
	if s.Patients != nil && s.Patients[i] != "" {
		return s.Patients[i]
	}
	return s.name(i)
}

// name is an example's name for messages.
func (s *Set) name(i int) string {
	if i < len(s.Names) {
		return s.Names[i]
	}
	return fmt.Sprintf("example %d", i)
}

// Check finds what training would stumble over: sizes that disagree, values that
// are not numbers, labels outside the classes, classes without an example.
func (s *Set) Check() error {
	if err := s.CheckPart(); err != nil {
		return err
	}
	counts := s.Counts()
	if empty := slices.Index(counts, 0); empty >= 0 {
		if !s.Multi() && s.ClassNames == nil && s.Len() > 0 { // labels are numbers, of which one may be too large
			if at := slices.Index(s.Labels, slices.Max(s.Labels)); s.Labels[at] > empty {
				return fmt.Errorf("train: checking set %q: class %d has no example, and %s has label %d; correct the label, add examples, or leave the class out", s.Name, empty, s.name(at), s.Labels[at])
			}
		}
		return fmt.Errorf("train: checking set %q: class %s has no example; add some, or leave the class out", s.Name, s.ClassName(empty))
	}
	if s.Multi() {
		if full := slices.Index(counts, s.Len()); full >= 0 {
			return fmt.Errorf("train: checking set %q: every example has label %s; add some without it, or leave the label out", s.Name, s.ClassName(full))
		}
	}
	return nil
}

// CheckPart is Check of a part of what is trained on, such as one hospital's: a
// class may be missing, because others have it.
func (s *Set) CheckPart() error {
	if err := s.checkSizes(); err != nil {
		return err
	}
	for i, v := range s.Values {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			per := int(product(s.Example()))
			return fmt.Errorf("train: checking set %q: value %d of %s is %v; leave it out or correct it", s.Name, i%per, s.name(i/per), v)
		}
	}
	for i, l := range s.Labels {
		if l < 0 || l >= s.Classes {
			return fmt.Errorf("train: checking set %q: %s has label %d, want 0 to %d", s.Name, s.name(i), l, s.Classes-1)
		}
	}
	for i, v := range s.Marks {
		if v > 1 {
			return fmt.Errorf("train: checking set %q: label %q of %s is %d, want 0 or 1", s.Name, s.ClassName(i%s.Classes), s.name(i/s.Classes), v)
		}
	}
	return nil
}

func (s *Set) checkSizes() error {
	least := 2
	if s.Multi() {
		least = 1
	}
	per := int64(1)
	for _, d := range s.Example() {
		if d <= 0 || per > math.MaxInt32/d {
			return fmt.Errorf("train: checking set %q: examples of shape %v; want positive sizes", s.Name, s.Example())
		}
		per *= d
	}
	if s.Classes < least {
		return fmt.Errorf("train: checking set %q: %d classes; want at least two classes, or one label", s.Name, s.Classes)
	}
	if s.Multi() && (s.Labels != nil || len(s.Marks)%s.Classes != 0) {
		return fmt.Errorf("train: checking set %q: %d marks and %d labels for %d classes; want one mark for each label of an example, or one class", s.Name, len(s.Marks), len(s.Labels), s.Classes)
	}
	elements := len(s.Pixels)
	if s.Values != nil {
		elements = len(s.Values)
	}
	if s.Pixels != nil && (s.Values != nil || s.Shape != nil) || int64(elements) != int64(s.Len())*per {
		return fmt.Errorf("train: checking set %q: %d bytes and %d floats for %d examples of shape %v", s.Name, len(s.Pixels), len(s.Values), s.Len(), s.Example())
	}
	for _, column := range []struct {
		what string
		list []string
	}{{"names", s.Names}, {"patients", s.Patients}} {
		if column.list != nil && len(column.list) != s.Len() {
			return fmt.Errorf("train: checking set %q: %d %s for %d examples", s.Name, len(column.list), column.what, s.Len())
		}
	}
	if s.ClassNames != nil && len(s.ClassNames) != s.Classes {
		return fmt.Errorf("train: checking set %q: %d names of %d classes", s.Name, len(s.ClassNames), s.Classes)
	}
	return nil
}
