package tabular

import (
	"crypto/ed25519"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/train"
)

const clinic = `{
  "label": {"column": "sick", "classes": [["0"], ["1", "2"]], "names": ["no", "yes"]},
  "patient": "who",
  "columns": [
    {"name": "age", "low": 0, "high": 120},
    {"name": "dose", "low": 0, "high": 1e-3, "missing": true},
    {"name": "pain", "values": ["1", "2", "3"]},
    {"name": "ward", "values": ["North", "South"], "missing": true},
    {"name": "never", "low": 0, "high": 1}
  ]
}`

func parse(t testing.TB, text string) *Schema {
	t.Helper()
	s, err := ParseSchema([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// table draws a hospital's table, with cells that are missing, beyond the limits
// or of no category, and columns in an order of its own.
func table(rows int, seed uint64) string {
	rng := rand.New(rand.NewPCG(seed, 5))
	var b strings.Builder
	fmt.Fprintln(&b, "who,extra,pain,Age,dose,sick,WARD,never")
	for i := range rows {
		pick := func(list ...string) string { return list[rng.IntN(len(list))] }
		age := fmt.Sprintf("%.1f", 50+15*rng.NormFloat64()+float64(seed))
		if rng.IntN(10) == 0 {
			age = pick("?", "", "999", "-1")
		}
		fmt.Fprintf(&b, "p%d,x,%s,%s,%s,%s,%s,?\n", i/2, pick("1", "2.0", "3", "9", "NA"), age,
			pick(fmt.Sprintf("%.7f", 1e-3*rng.Float64()), "?"), pick("0", "1.0", "2"), pick("north", "South", "west", ""))
	}
	return b.String()
}

// federation is hospitals as sites that answer, and their coordinator.
func federation(t testing.TB, s *Schema, hospitals []*Hospital) (*federate.Coordinator, []federate.Link) {
	t.Helper()
	terms := federate.DefaultTerms("clinics")
	terms.Tasks, terms.Questions = []federate.Task{federate.TaskStandardise}, 4
	var members []secagg.Member
	var keys []ed25519.PrivateKey
	for i, h := range hospitals {
		key := ed25519.NewKeyFromSeed(slices.Repeat([]byte{byte(i + 1)}, 32))
		keys = append(keys, key)
		members = append(members, secagg.Member{Name: h.Name, Key: key.Public().(ed25519.PublicKey)})
	}
	var links []federate.Link
	for i, h := range hospitals {
		site, err := federate.NewSite(federate.SiteOptions{Name: h.Name, Terms: terms, Members: members, Signer: keys[i], Answers: federate.Answerers{federate.TaskStandardise: h}})
		if err != nil {
			t.Fatal(err)
		}
		links = append(links, federate.Direct(site))
	}
	c, err := federate.NewCoordinator(federate.CoordinatorOptions{Terms: terms, Members: members})
	if err != nil {
		t.Fatal(err)
	}
	return c, links
}

func read(t testing.TB, s *Schema, sizes ...int) []*Hospital {
	t.Helper()
	var out []*Hospital
	for i, n := range sizes {
		h, err := s.Read(fmt.Sprintf("clinic-%d", i), strings.NewReader(table(n, uint64(i))))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h)
	}
	return out
}

func TestHospitalsStandardiseAsIfTheirRowsWereInOnePlace(t *testing.T) {
	s := parse(t, clinic)
	hospitals := read(t, s, 40, 90, 300)
	c, links := federation(t, s, hospitals)
	got, err := s.Standardise(t.Context(), c, links, 0)
	if err != nil {
		t.Fatal(err)
	}
	// in float64, from the cells themselves
	var ages, doses []float64
	pain, ward := map[string]int{}, map[string]int{}
	rows := 0
	for i, n := range []int{40, 90, 300} {
		records, err := csv.NewReader(strings.NewReader(table(n, uint64(i)))).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records[1:] {
			rows++
			if v, err := strconv.ParseFloat(r[3], 64); err == nil && v >= 0 && v <= 120 {
				ages = append(ages, v)
			}
			if v, err := strconv.ParseFloat(r[4], 64); err == nil {
				doses = append(doses, v)
			}
			pain[strings.TrimSuffix(r[2], ".0")]++
			ward[strings.ToLower(r[6])]++
		}
	}
	for j, values := range [][]float64{ages, doses} {
		mean, square := 0.0, 0.0
		for _, v := range values {
			mean += v / float64(len(values))
		}
		for _, v := range values {
			square += (v - mean) * (v - mean) / float64(len(values))
		}
		one := got.Columns[j]
		if one.Present != len(values) || math.Abs(one.Mean-mean) > 1e-9*math.Abs(mean) || math.Abs(one.Deviation-math.Sqrt(square)) > 1e-6*math.Sqrt(square) {
			t.Errorf("%+v, want %d values of mean %v and deviation %v", one, len(values), mean, math.Sqrt(square))
		}
	}
	if got.Rows != rows || got.Sites != 3 || !slices.Equal(got.Columns[2].Counts, []int{pain["1"], pain["2"], pain["3"]}) || !slices.Equal(got.Columns[3].Counts, []int{ward["north"], ward["south"]}) {
		t.Errorf("%+v, want %d rows, %v, %v", got, rows, pain, ward)
	}
	names := got.Learned.Numbers()
	if want := []string{"age", "dose", "dose missing", "pain=1", "pain=2", "pain=3", "ward=North", "ward=South", "ward missing"}; !slices.Equal(names, want) {
		t.Errorf("rows become %q, want %q", names, want)
	}
	pooled, err := s.Pool(hospitals...)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range pooled.Learned.Columns {
		if g := got.Learned.Columns[i]; math.Abs(g.Mean-c.Mean) > 1e-9*math.Abs(c.Mean) || math.Abs(g.Deviation-c.Deviation) > 1e-6*c.Deviation || g.Missing != c.Missing {
			t.Errorf("column %+v, pooled %+v", g, c)
		}
	}
	set, err := hospitals[2].Set(got.Learned)
	if err != nil {
		t.Fatal(err)
	}
	if err := set.Check(); err != nil || set.Len() != 300 || set.Patients[1] != set.Patients[0] || hospitals[2].Outside == 0 {
		t.Errorf("%d examples, %d cells outside, %v", set.Len(), hospitals[2].Outside, err)
	}
}

func TestAHospitalWithFewRowsIsNotCountedAndOneWithAnotherSchemaDoesNotAnswer(t *testing.T) {
	s := parse(t, clinic)
	hospitals := read(t, s, 10, 90, 100, 300)
	c, links := federation(t, s, hospitals)
	got, err := s.Standardise(t.Context(), c, links, 50)
	if err != nil || got.Rows != 490 || got.Sites != 4 {
		t.Errorf("%+v, %v", got, err)
	}
	other := parse(t, strings.Replace(clinic, `"high": 120`, `"high": 130`, 1))
	if got, err := other.Standardise(t.Context(), c, links, 0); !errors.Is(err, federate.ErrRound) {
		t.Errorf("a question of another schema: %+v, %v", got, err)
	}
}

func TestSchemasThatSayNothingAreRefused(t *testing.T) {
	for what, change := range map[string][2]string{
		"an unknown field":        {`"patient"`, `"patients"`},
		"a class of no text":      {`[["0"], ["1", "2"]]`, `[["0"], []]`},
		"a text of two classes":   {`["1", "2"]`, `["1", "0.0"]`},
		"limits the wrong way":    {`"low": 0, "high": 120`, `"low": 120, "high": 0`},
		"no limits":               {`"low": 0, "high": 120`, `"low": 0`},
		"limits and values":       {`"values": ["1", "2", "3"]`, `"values": ["1", "2"], "high": 3`},
		"one value":               {`["1", "2", "3"]`, `["1"]`},
		"a value twice":           {`["1", "2", "3"]`, `["1", "1.0"]`},
		"a value that is missing": {`["1", "2", "3"]`, `["1", "?"]`},
		"the label as a column":   {`"age"`, `"Sick"`},
		"the patient as a column": {`"age"`, `"who"`},
		"a column twice":          {`"age"`, `"dose"`},
		"more names than classes": {`["no", "yes"]`, `["no", "yes", "maybe"]`},
		"something behind it":     {"\n}", "\n}{}"},
	} {
		text := strings.Replace(clinic, change[0], change[1], 1)
		if text == clinic {
			t.Fatalf("%s: nothing was changed", what)
		}
		if _, err := ParseSchema([]byte(text)); !errors.Is(err, ErrSchema) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestTablesThatDoNotFitTheirSchemaAreRefused(t *testing.T) {
	s := parse(t, clinic)
	good := table(5, 1)
	for what, change := range map[string][2]string{
		"a column less":        {"dose", "dosis"},
		"a label of no class":  {"who,", "who,"},
		"a row without person": {"p0,", ","},
		"a text for a number":  {"p0,x,", "p0,x,"},
	} {
		text := strings.Replace(good, change[0], change[1], 1)
		lines := strings.Split(text, "\n")
		cells := strings.Split(lines[1], ",")
		switch what {
		case "a label of no class":
			cells[5] = "3"
		case "a text for a number":
			cells[3] = "old"
		}
		lines[1] = strings.Join(cells, ",")
		if _, err := s.Read("x", strings.NewReader(strings.Join(lines, "\n"))); !errors.Is(err, ErrRows) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := s.Read("x", strings.NewReader("")); !errors.Is(err, train.ErrTable) {
		t.Errorf("nothing: %v", err)
	}
	bare := parse(t, `{"header": ["a", "b"], "label": {"column": "b", "classes": [["0"], ["1"]], "names": ["no", "yes"]}, "columns": [{"name": "a", "low": 0, "high": 9}]}`)
	h, err := bare.Read("x", strings.NewReader("1,0\n2,1\n"))
	if err != nil || h.Rows() != 2 {
		t.Errorf("a table without a header: %v", err)
	}
	if _, err := bare.Read("x", strings.NewReader("1,0,1\n")); !errors.Is(err, ErrRows) {
		t.Errorf("a table without a header and a column more: %v", err)
	}
}

func TestADraftIsASchemaThatItsTablesFit(t *testing.T) {
	var tables []*train.Table
	for i, n := range []int{60, 80} {
		one, err := train.ReadTable(strings.NewReader(table(n, uint64(i))), train.TableLimits{})
		if err != nil {
			t.Fatal(err)
		}
		tables = append(tables, one)
	}
	o := DraftOptions{Label: "sick", Patient: "who"}
	if _, err := Draft(tables, o); !errors.Is(err, ErrSchema) || !strings.Contains(err.Error(), "--negative") {
		t.Errorf("a label of three texts: %v", err)
	}
	o.Negative = []string{"0.0"}
	s, err := Draft(tables, o)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, c := range s.Columns {
		kinds = append(kinds, fmt.Sprintf("%s %d", c.Name, len(c.Values)))
	}
	if want := []string{"pain 4", "Age 0", "dose 0", "WARD 3"}; !slices.Equal(kinds, want) || len(s.Label.Classes[1]) != 2 {
		t.Errorf("%q, want %q; classes %q", kinds, want, s.Label.Classes)
	}
	again, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	read := parse(t, string(again))
	if read.Digest() != s.Digest() {
		t.Error("a draft that is written and read is another one")
	}
	if h, err := read.Read("x", strings.NewReader(table(60, 0))); err != nil || h.Outside != 0 {
		t.Errorf("a table does not fit what was drafted from it: %v", err)
	}
}

func TestTheSchemaOfTheFourHospitalsReadsThem(t *testing.T) {
	data, err := os.ReadFile("testdata/heart4.json")
	if err != nil {
		t.Fatal(err)
	}
	s := parse(t, string(data))
	folder := os.Getenv("VIGIE_DATA")
	if folder == "" {
		folder = "../../../shared/data"
	}
	for name, want := range map[string][2]int{"cleveland": {164, 139}, "hungarian": {188, 106}, "switzerland": {8, 115}, "va": {51, 149}} {
		f, err := os.Open(filepath.Join(folder, "heart4", "processed."+name+".data"))
		if err != nil {
			t.Skipf("SKIPPED, nothing was checked: %v (set VIGIE_DATA)", err)
		}
		defer f.Close()
		h, err := s.Read(name, f)
		if err != nil {
			t.Fatal(err)
		}
		var counts [2]int
		for _, l := range h.Labels() {
			counts[l]++
		}
		if counts != want {
			t.Errorf("%s: %v rows by class, want %v", name, counts, want)
		}
	}
}

func FuzzSchemas(f *testing.F) {
	f.Add(clinic)
	f.Add(`{"label":{}}`)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSchema([]byte(text))
		if err != nil {
			if !errors.Is(err, ErrSchema) {
				t.Errorf("another error: %v", err)
			}
			return
		}
		written, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseSchema(written)
		if err != nil || again.Digest() != s.Digest() {
			t.Errorf("%s is not read as it was written: %v", written, err)
		}
	})
}

func FuzzTables(f *testing.F) {
	f.Add(table(3, 1))
	f.Add("who,pain,age,dose,sick,ward,never\na,1,NaN,inf,1,north,1e999\n")
	s := parse(f, clinic)
	f.Fuzz(func(t *testing.T, text string) {
		h, err := s.Read("x", strings.NewReader(text))
		if err != nil {
			return
		}
		pooled, err := s.Pool(h)
		if err != nil {
			return
		}
		set, err := h.Set(pooled.Learned)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range set.Values {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				t.Fatalf("value %d is %v", i, v)
			}
		}
	})
}
