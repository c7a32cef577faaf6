package train

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// cohort has patients of one to six images, classes of 60, 30 and 10 %, and a
// few images that are there twice.
func cohort(seed uint64) *Set {
	rng := rand.New(rand.NewPCG(seed, 7))
	s := &Set{Name: "cohort", Channels: 1, Rows: 2, Columns: 2, Classes: 3}
	for p := range 200 {
		class := []int{0, 0, 0, 0, 0, 0, 1, 1, 1, 2}[rng.IntN(10)]
		for range 1 + rng.IntN(6) {
			image := []uint8{uint8(rng.Uint32()), uint8(rng.Uint32()), uint8(rng.Uint32()), uint8(p)}
			if rng.IntN(40) == 0 && s.Len() > 0 {
				copy(image, s.Image(rng.IntN(s.Len())))
			}
			s.Pixels = append(s.Pixels, image...)
			s.Labels = append(s.Labels, class)
			s.Patients = append(s.Patients, fmt.Sprintf("P%03d", p))
			s.Names = append(s.Names, fmt.Sprintf("image%04d", s.Len()-1))
		}
	}
	return s
}

func TestASplitKeepsPatientsAndCopiesTogetherAndClassesAlike(t *testing.T) {
	for seed := range uint64(20) {
		s := cohort(seed)
		parts, err := Split(s, seed, 0.7, 0.15, 0.15)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range parts {
			p.Name = fmt.Sprint(i)
		}
		if err := CheckPatients(parts...); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		for _, d := range Duplicates(parts...) {
			if !d.Conflict {
				t.Errorf("seed %d: %v is in two parts", seed, d.Examples)
			}
		}
		total := 0
		counts := s.Counts()
		for p, share := range []float64{0.7, 0.15, 0.15} {
			total += parts[p].Len()
			for c, n := range parts[p].Counts() {
				// A patient's images cannot be divided: off by at most one large one.
				if off := math.Abs(float64(n) - share*float64(counts[c])); off > 7 {
					t.Errorf("seed %d: part %d has %d of class %d, want %.1f", seed, p, n, c, share*float64(counts[c]))
				}
			}
		}
		if total != s.Len() {
			t.Errorf("seed %d: %d examples became %d", seed, s.Len(), total)
		}
	}
}

func TestASplitWithoutPatientsIsExactToAnExample(t *testing.T) {
	s := noise(200, 4, 4, 1)
	parts, err := Split(s, 1, 0.6, 0.2, 0.2)
	if err != nil {
		t.Fatal(err)
	}
	for p, want := range []int{30, 10, 10} {
		for c, n := range parts[p].Counts() {
			if n < want-1 || n > want+1 {
				t.Errorf("part %d has %d of class %d, want %d", p, n, c, want)
			}
		}
	}
}

func TestASplitDependsOnTheSeedAndNotOnTheOrder(t *testing.T) {
	s := cohort(1)
	rng := rand.New(rand.NewPCG(9, 9))
	names := func(s *Set, seed uint64) []string {
		parts, err := Split(s, seed, 0.8, 0.2)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Sorted(slices.Values(parts[1].Names))
	}
	first := names(s, 5)
	if !slices.Equal(first, names(s.Subset(rng.Perm(s.Len())), 5)) {
		t.Error("the order of the examples changes the split")
	}
	if slices.Equal(first, names(s, 6)) {
		t.Error("the seed does not change the split")
	}
}

func TestLabelsThatDoNotExcludeEachOtherAreDividedAlikeToo(t *testing.T) {
	s := noise(300, 3, 2, 4)
	s.Labels, s.Classes = nil, 3
	rng := rand.New(rand.NewPCG(3, 3))
	for range 300 {
		for _, p := range []float64{0.5, 0.2, 0.05} {
			mark := uint8(0)
			if rng.Float64() < p {
				mark = 1
			}
			s.Marks = append(s.Marks, mark)
		}
	}
	parts, err := Split(s, 1, 0.7, 0.3)
	if err != nil {
		t.Fatal(err)
	}
	for c, n := range s.Counts() {
		if got := float64(parts[1].Counts()[c]); math.Abs(got-0.3*float64(n)) > 2 {
			t.Errorf("label %d: %g of %d are in the part of 30 %%", c, got, n)
		}
	}
}

func TestTooFewForThePartsIsAnError(t *testing.T) {
	s := noise(4, 2, 2, 1)
	s.Patients = []string{"a", "a", "a", "a"}
	if _, err := Split(s, 1, 0.5, 0.5); err == nil || !strings.Contains(err.Error(), "1 patients") {
		t.Errorf("error is %v", err)
	}
	if _, err := Split(s, 1, 0.5, 0); err == nil || !strings.Contains(err.Error(), "positive shares") {
		t.Errorf("error is %v", err)
	}
}

func TestConflictingCopiesWithinASetAreFound(t *testing.T) {
	s := noise(4, 2, 2, 1)
	copy(s.Image(3), s.Image(0))
	s.Labels = []int{0, 1, 0, 1}
	d := Duplicates(s)
	if len(d) != 1 || !d[0].Conflict || !slices.Equal(d[0].Examples, []string{"noise/example 0", "noise/example 3"}) {
		t.Errorf("duplicates: %+v", d)
	}
	s.Labels[3] = 0
	if d := Duplicates(s); len(d) != 0 {
		t.Errorf("copies of one label in one set are harmless: %+v", d)
	}
}

func TestTables(t *testing.T) {
	table, err := ReadTable(strings.NewReader("\ufeffage, sex ,grade,constant,empty,class\n50,f,1,7,,b\n60,m,2,7,?,a\nNA,f,1,7,,b\n"), TableLimits{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := LearnColumns(table, []int{0, 1, 2}, []string{"Class"}, []string{"grade"})
	if err != nil {
		t.Fatal(err)
	}
	// age and whether it is missing; sex f, m; grade 1, 2
	if c.Width() != 6 || len(c.Columns) != 3 {
		t.Fatalf("columns are %+v", c.Columns)
	}
	v, err := c.Encode(table, []int{2, 1})
	if err != nil {
		t.Fatal(err)
	}
	if want := []float32{0, 1, 1, 0, 1, 0, 1, 0, 0, 1, 0, 1}; !slices.Equal(v, want) {
		t.Errorf("rows became %v, want %v", v, want)
	}
	labels, names, err := table.LabelsOf(5, nil)
	if err != nil || !slices.Equal(labels, []int{1, 0, 1}) || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("labels %v of %v, %v", labels, names, err)
	}
	later, err := ReadTable(strings.NewReader("sex,age,grade\nm,old,1\n"), TableLimits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Encode(later, []int{0}); !errors.Is(err, ErrTable) || !strings.Contains(err.Error(), `row 1`) || !strings.Contains(err.Error(), `"old"`) {
		t.Errorf("error is %v", err)
	}
	numbers, err := ReadTable(strings.NewReader("1,2\n3,?\n"), TableLimits{})
	if err != nil || !slices.Equal(numbers.Header, []string{"c1", "c2"}) || len(numbers.Rows) != 2 {
		t.Errorf("a table without a header is %+v, %v", numbers, err)
	}
	if _, names, _ := (&Table{Header: []string{"l"}, Rows: [][]string{{"10"}, {"9"}}}).LabelsOf(0, nil); !slices.Equal(names, []string{"9", "10"}) {
		t.Errorf("numbers are sorted as %v", names)
	}
}

func TestTablesThatTeachNothingAreRefused(t *testing.T) {
	for text, says := range map[string]string{
		"":                 "no rows",
		"a,b\n":            "no rows",
		"a,b\n1\n":         "wrong number of fields",
		"a,a\n1,2\n":       "twice",
		"a,\"b\n1,2\n":     "quote",
		"a,,x\n1,2,3\n":    "is empty",
		"a,b,c,d\n1,2,3,4": "limit",
	} {
		if _, err := ReadTable(strings.NewReader(text), TableLimits{Columns: 3}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: want an error with %q, got %v", text, says, err)
		}
	}
	if _, err := ReadTable(strings.NewReader("a,b\n1,2\n3,4\n"), TableLimits{Cells: 3}); !errors.Is(err, ErrLimit) {
		t.Errorf("error is %v", err)
	}
	table := &Table{Header: []string{"id", "label"}}
	for i := range 300 {
		table.Rows = append(table.Rows, []string{fmt.Sprintf("MRN%d", i), fmt.Sprint(i % 2)})
	}
	rows := make([]int, 300)
	for i := range rows {
		rows[i] = i
	}
	if _, err := LearnColumns(table, rows, []string{"label"}, nil); err == nil || !strings.Contains(err.Error(), "patient column") {
		t.Errorf("identifiers are learnt: %v", err)
	}
	if _, err := LearnColumns(table, rows, []string{"label", "id"}, nil); !errors.Is(err, ErrTable) {
		t.Errorf("error is %v", err)
	}
	slip := &Table{Header: []string{"age", "sex"}, Rows: [][]string{{"50", "f"}, {"5O", "m"}, {"60", "f"}}}
	if _, err := LearnColumns(slip, []int{0, 1, 2}, nil, nil); !errors.Is(err, ErrTable) || !strings.Contains(err.Error(), `column "age" holds 2 numbers, and "5O" in row 2`) {
		t.Errorf("a slip in a column of numbers: error is %v", err)
	}
	if c, err := LearnColumns(slip, []int{0, 1, 2}, nil, []string{"age"}); err != nil || c.Width() != 5 {
		t.Errorf("numbers and texts named as categorical are %+v, %v", c, err)
	}
	if _, err := LearnColumns(table, rows, []string{"lable"}, nil); err == nil || !strings.Contains(err.Error(), "there are id, label") {
		t.Errorf("error is %v", err)
	}
	if _, _, err := table.LabelsOf(1, []string{"0"}); err == nil || !strings.Contains(err.Error(), `row 2 has the label "1"`) {
		t.Errorf("error is %v", err)
	}
}

func FuzzTable(f *testing.F) {
	f.Add("a,b,label\n1,x,0\n2,?,1\n")
	f.Add("1,2\n3,4\n")
	f.Add("\ufeffa;b\n")
	f.Add("a,b\n\"1\n2\",3\n")
	f.Fuzz(func(t *testing.T, text string) {
		table, err := ReadTable(strings.NewReader(text), TableLimits{Cells: 1 << 12, Columns: 64})
		if err != nil {
			return
		}
		rows := make([]int, len(table.Rows))
		for i := range rows {
			rows[i] = i
		}
		c, err := LearnColumns(table, rows, nil, nil)
		if err != nil {
			return
		}
		v, err := c.Encode(table, rows)
		if err != nil || len(v) != len(rows)*c.Width() {
			t.Fatalf("a table that was learnt from encodes to %d numbers for %d rows of %d: %v", len(v), len(rows), c.Width(), err)
		}
		for _, x := range v {
			if math.IsNaN(float64(x)) {
				t.Fatalf("%q encodes to %v", text, v)
			}
		}
	})
}
