package studies

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vigie/vigie/train"
)

// leastOfClass is how many examples, or patients where they are known, of each
// class training needs if the classes are those that occur: with fewer, a slip of
// the pen in a label becomes a class of its own.
const leastOfClass = 2

// checkClasses refuses classes that nobody named and that too few examples have.
// The message names the examples, since one of them is likely mislabelled.
func (s *Studies) checkClasses(o Options) error {
	if o.Classes != nil || o.Part || o.Only != "" || s.Train == nil || s.Train.Multi() {
		return nil
	}
	for class := range s.Train.Classes {
		examples := s.holders(class)
		kinds := map[string]bool{} // patients or examples of the class in training
		for i := range s.Train.Len() {
			if s.Train.Has(i, class) {
				kinds[s.Train.Person(i)] = true
			}
		}
		lacking := ""
		for _, set := range s.sets()[1:] {
			if set.Counts()[class] == 0 && lacking == "" {
				lacking = set.Name
			}
		}
		why := ""
		switch {
		case len(kinds) < leastOfClass && s.Train.Patients != nil:
			why = fmt.Sprintf("is that of %d of the patients in training, and training needs %d", len(kinds), leastOfClass)
		case len(kinds) < leastOfClass:
			why = fmt.Sprintf("is that of %d of the examples in training, and training needs %d", len(kinds), leastOfClass)
		case lacking != "":
			why = fmt.Sprintf("has no example in split %s", lacking)
		default:
			continue
		}
		total := 0
		for _, set := range s.sets() {
			total += set.Counts()[class]
		}
		return fmt.Errorf("studies: reading %s: %w: class %q %s; it is the label of %s; correct a label that is a slip of the pen, add examples, or say with the classes' names (--classes) that it is meant",
			o.labelFile(), ErrData, s.Train.ClassName(class), why, some(examples, total))
	}
	return nil
}

// holders names examples of a class, a few.
func (s *Studies) holders(class int) []string {
	var names []string
	for _, set := range s.sets() {
		for i := range set.Len() {
			if len(names) == fewExamples {
				return names
			}
			if set.Has(i, class) {
				names = append(names, s.where(set, i))
			}
		}
	}
	return names
}

const fewExamples = 5

// where names an example so that a person finds it: by its row in the list of
// labels, if there is one.
func (s *Studies) where(set *train.Set, i int) string {
	if set.Names == nil {
		return fmt.Sprintf("example %d of split %s", i, set.Name)
	}
	name := set.Names[i]
	if row, listed := s.rows[name]; listed {
		return fmt.Sprintf(rowName+" (%s)", row, name)
	}
	return name
}

func some(names []string, total int) string {
	text := strings.Join(names, ", ")
	if left := total - len(names); left > 0 {
		text += fmt.Sprintf(" and %d more", left)
	}
	return text
}

// labelFile is where labels are to be corrected.
func (o Options) labelFile() string {
	if o.Labels != "" {
		return o.Labels
	}
	return o.Data
}

// named says in an error whose choice the classes are.
func (o Options) named(err error) error {
	if err == nil || o.Classes == nil {
		return err
	}
	by := o.ClassesBy
	if by == "" {
		by = "--classes"
	}
	return fmt.Errorf("%w (these are the classes by %s)", err, by)
}

// checkColumns compares classes that were named with label columns, whose names
// are the classes.
func (o Options) checkColumns(header []string) error {
	if o.Classes == nil || slices.Equal(o.Classes, header) {
		return nil
	}
	return fmt.Errorf("%w: the label columns are %s", ErrData, strings.Join(header, ", "))
}
