package job

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie/attack/privacy"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// Attribute asks what a model of a table adds to guessing a person's missing value
// from the others.
type Attribute struct {
	Common
	Members    string   // split that was trained on [train]
	NonMembers string   // split that was not [val]
	Attributes []string // columns; none: every column
	Bins       int      // of a column of many numbers [3]
}

// AttributeReport is what it found.
type AttributeReport struct {
	Head
	Attributes []AttributeOutcome `json:"attributes"`
}

// AttributeOutcome is one attribute. Shares of right guesses have Clopper-Pearson's
// intervals.
type AttributeOutcome struct {
	Name    string        `json:"name"`
	Values  []string      `json:"values"`
	Members AttributeWays `json:"members"`
	Others  AttributeWays `json:"nonmembers"`
	// Added is what the model adds to imputation on members, AddedOthers on others:
	// differences of shares, in pairs, with Student's interval. What it adds for
	// others too, it learnt of people in general.
	Added       train.Interval `json:"model_adds_members"`
	AddedOthers train.Interval `json:"model_adds_nonmembers"`
	// Leak is the difference of the two, which is about members alone.
	Leak train.Interval `json:"leak"`
	// Advantage is how much oftener the model alone is right of members than of
	// others (Yeom et al. 2018, definition 5).
	Advantage train.Interval `json:"advantage"`
}

// AttributeWays are the ways of guessing in one group.
type AttributeWays struct {
	People   int            `json:"people"`
	Majority train.Interval `json:"majority"`   // the most frequent value of those the attacker knows
	Imputed  train.Interval `json:"imputed"`    // from the other attributes and the label, without the model
	Model    train.Interval `json:"model"`      // by the model alone
	Both     train.Interval `json:"model_both"` // by both

	added []float64 // for each person: Both right less Imputed right
}

// Run asks.
func (o Attribute) Run(ctx context.Context) (*AttributeReport, error) {
	start := time.Now()
	if err := o.check(); err != nil {
		return nil, err
	}
	s, sets, err := o.open(ctx, false, o.Members, o.NonMembers)
	if err != nil {
		return nil, err
	}
	defer s.close()
	_, columns, err := train.Described(s.model.Graph)
	if err != nil {
		return nil, err
	}
	if columns == nil || sets[0].Shape == nil {
		return nil, fmt.Errorf("job: %s: %w: it does not say which columns of a table it reads; attribute inference is for models that vigie train made of a table", o.Model, ErrAsk)
	}
	names := o.Attributes
	if len(names) == 0 {
		for _, c := range columns.Columns {
			names = append(names, c.Name)
		}
	}
	var which []int
	for _, name := range names {
		at := slices.IndexFunc(columns.Columns, func(c train.Column) bool { return strings.EqualFold(c.Name, name) })
		if at < 0 {
			var known []string
			for _, c := range columns.Columns {
				known = append(known, c.Name)
			}
			return nil, fmt.Errorf("job: attribute %q: %w: the model reads %s", name, ErrAsk, strings.Join(known, ", "))
		}
		which = append(which, at)
	}
	r := &AttributeReport{Head: o.head("attribute", s, inversionTechnique)}
	for k, at := range which {
		a := newAttribute(columns, at, sets[0], sets[1], o.Bins)
		if a == nil {
			r.Notes = append(r.Notes, fmt.Sprintf("attribute %s is left out: it has one value, or too few people with it", columns.Columns[at].Name))
			continue
		}
		out, err := o.guess(ctx, s, a)
		if err != nil {
			return nil, err
		}
		r.Attributes = append(r.Attributes, *out)
		o.Progress("guessing attributes", float64(k+1)/float64(len(which)))
	}
	if len(r.Attributes) == 0 {
		return nil, fmt.Errorf("job: %s: %w: no attribute can be asked about", o.Data.Data, ErrAsk)
	}
	r.verdict()
	return r, o.finish(&r.Head, r, start)
}

func (o *Attribute) check() error {
	if err := o.begin(); err != nil {
		return err
	}
	if o.Members == "" {
		o.Members = studies.Train
	}
	if o.NonMembers == "" {
		o.NonMembers = studies.Validation
	}
	if o.Bins == 0 {
		o.Bins = 3
	}
	switch {
	case o.Model == "":
		return fmt.Errorf("job: %w: name a model", ErrAsk)
	case o.Members == o.NonMembers:
		return fmt.Errorf("job: %w: members and others are both split %s", ErrAsk, o.Members)
	case o.Bins < 2 || o.Bins > 20:
		return fmt.Errorf("job: %d bins: %w: want 2 to 20", o.Bins, ErrAsk)
	}
	return nil
}

// attribute is a column in the numbers that the model reads.
type attribute struct {
	name    string
	values  []string
	at      []int         // its numbers in an example
	stand   [][][]float32 // of each value, what the numbers may be
	members group
	others  group
	classes int
}

// group are the people whose value is known.
type group struct {
	rows     [][]float32
	labels   []int
	value    []int
	features [][]float64 // the other numbers, and the label
}

// newAttribute lays out a column: its values, as they occur among non-members. A
// column of more than ten numbers is cut into bins of equally many people. nil says
// that it cannot be asked about.
func newAttribute(columns *train.Columns, which int, members, others *train.Set, bins int) *attribute {
	c := columns.Columns[which]
	a := &attribute{name: c.Name, classes: max(members.Classes, others.Classes)}
	for i, of := range columns.Origins() {
		if of == which {
			a.at = append(a.at, i)
		}
	}
	missing := -1
	if c.Missing {
		missing = a.at[len(a.at)-1]
	}
	var edges []float32 // of numeric bins, upper ends but the last
	var distinct []float32
	if c.Values != nil {
		a.values = c.Values
		for v := range c.Values {
			numbers := make([]float32, len(a.at))
			numbers[v] = 1
			a.stand = append(a.stand, [][]float32{numbers})
		}
	} else {
		var seen []float32
		for _, row := range rows(others) {
			if missing < 0 || row[missing] == 0 {
				seen = append(seen, row[a.at[0]])
			}
		}
		slices.Sort(seen)
		if len(seen) < 10 {
			return nil
		}
		raw := func(v float32) string { return fmt.Sprintf("%.4g", float64(v)*c.Deviation+c.Mean) }
		number := func(v float32) []float32 {
			out := make([]float32, len(a.at))
			out[0] = v
			return out
		}
		if distinct = slices.Compact(slices.Clone(seen)); len(distinct) <= 10 {
			for _, v := range distinct {
				a.values, a.stand = append(a.values, raw(v)), append(a.stand, [][]float32{number(v)})
			}
		} else {
			distinct = nil
			for b := range bins {
				part := seen[b*len(seen)/bins : (b+1)*len(seen)/bins]
				if b+1 < bins {
					edges = append(edges, part[len(part)-1])
				}
				var stand [][]float32
				for q := range 5 { // five people of the bin stand for it
					stand = append(stand, number(part[(2*q+1)*len(part)/10]))
				}
				a.stand = append(a.stand, stand)
				a.values = append(a.values, raw(part[0])+" to "+raw(part[len(part)-1]))
			}
		}
	}
	if len(a.values) < 2 {
		return nil
	}
	value := func(row []float32) int {
		switch {
		case c.Values != nil:
			return slices.IndexFunc(a.at[:len(c.Values)], func(i int) bool { return row[i] == 1 })
		case missing >= 0 && row[missing] != 0:
			return -1
		case distinct != nil:
			return slices.Index(distinct, row[a.at[0]])
		}
		for b, edge := range edges {
			if row[a.at[0]] <= edge {
				return b
			}
		}
		return len(edges)
	}
	for _, g := range []struct {
		set *train.Set
		to  *group
	}{{members, &a.members}, {others, &a.others}} {
		for i, row := range rows(g.set) {
			v := value(row)
			if v < 0 {
				continue
			}
			var features []float64
			for j, x := range row {
				if !slices.Contains(a.at, j) {
					features = append(features, float64(x))
				}
			}
			for class := range a.classes {
				features = append(features, map[bool]float64{true: 1}[g.set.Labels[i] == class])
			}
			g.to.rows, g.to.labels, g.to.value, g.to.features = append(g.to.rows, row), append(g.to.labels, g.set.Labels[i]), append(g.to.value, v), append(g.to.features, features)
		}
	}
	if len(a.members.rows) < 10 || len(a.others.rows) < 10 || slices.Min(a.others.value) == slices.Max(a.others.value) {
		return nil
	}
	return a
}

const imputerFolds = 5

// guess guesses the attribute of everybody.
func (o Attribute) guess(ctx context.Context, s *subject, a *attribute) (*AttributeOutcome, error) {
	out := &AttributeOutcome{Name: a.name, Values: a.values}
	// The attacker knows other people: for members all non-members, for a
	// non-member those of the other folds.
	whole, err := privacy.FitImputer(a.others.features, a.others.value, len(a.values))
	if err != nil {
		return nil, err
	}
	fold := make([]int, len(a.others.rows))
	for k, i := range rand.New(rand.NewPCG(o.Seed, 0xa77)).Perm(len(fold)) {
		fold[i] = k % imputerFolds
	}
	parts := make([]*privacy.Imputer, imputerFolds)
	for f := range parts {
		var x [][]float64
		var y []int
		for i := range fold {
			if fold[i] != f {
				x, y = append(x, a.others.features[i]), append(y, a.others.value[i])
			}
		}
		if parts[f], err = privacy.FitImputer(x, y, len(a.values)); err != nil {
			return nil, err
		}
	}
	counts := make([]int, len(a.values))
	for _, v := range a.others.value {
		counts[v]++
	}
	majority := slices.Index(counts, slices.Max(counts))
	if out.Members, err = a.ways(ctx, s, a.members, majority, func(i int) *privacy.Imputer { return whole }); err != nil {
		return nil, err
	}
	if out.Others, err = a.ways(ctx, s, a.others, majority, func(i int) *privacy.Imputer { return parts[fold[i]] }); err != nil {
		return nil, err
	}
	out.Added, out.AddedOthers = student(out.Members.added), student(out.Others.added)
	out.Leak = less(out.Added, out.AddedOthers)
	out.Advantage = less(out.Members.Model, out.Others.Model)
	return out, nil
}

// less is the difference of estimates from two independent groups: each end is
// missed by as much as both together (Newcombe 1998, method 10).
func less(a, b train.Interval) train.Interval {
	d := a.Value - b.Value
	return train.Interval{Value: d, Low: d - math.Hypot(a.Value-a.Low, b.High-b.Value), High: d + math.Hypot(a.High-a.Value, b.Value-b.Low)}
}

// ways guesses the value of everybody in a group in each way.
func (a *attribute) ways(ctx context.Context, s *subject, g group, majority int, imputer func(i int) *privacy.Imputer) (AttributeWays, error) {
	// The model is asked about everybody with every value that could be theirs.
	var x []float32
	for _, row := range g.rows {
		for _, stand := range a.stand {
			for _, numbers := range stand {
				asked := slices.Clone(row)
				for k, i := range a.at {
					asked[i] = numbers[k]
				}
				x = append(x, asked...)
			}
		}
	}
	z, err := logits(ctx, s.target, x)
	if err != nil {
		return AttributeWays{}, err
	}
	p := privacy.Softmax(z)
	var hits [4]int
	w := AttributeWays{People: len(g.rows)}
	next := 0
	for i, truth := range g.value {
		likelihood := make([]float64, len(a.values))
		for v, stand := range a.stand {
			for range stand {
				likelihood[v] += p[next][g.labels[i]] / float64(len(stand))
				next++
			}
		}
		prior := imputer(i).Prior(g.features[i])
		right := [4]bool{majority == truth, privacy.GuessAttribute(prior, nil) == truth, privacy.GuessAttribute(nil, likelihood) == truth, privacy.GuessAttribute(prior, likelihood) == truth}
		for k, ok := range right {
			if ok {
				hits[k]++
			}
		}
		added := 0.0
		if right[3] {
			added++
		}
		if right[1] {
			added--
		}
		w.added = append(w.added, added)
	}
	for k, to := range []*train.Interval{&w.Majority, &w.Imputed, &w.Model, &w.Both} {
		*to = privacy.ClopperPearson(hits[k], w.People)
	}
	return w, nil
}

func (r *AttributeReport) verdict() {
	var known, leaks []string
	for _, a := range r.Attributes {
		if a.Advantage.Low > 0 {
			known = append(known, fmt.Sprintf("%s (%+.1f points, %+.1f to %+.1f)", a.Name, 100*a.Advantage.Value, 100*a.Advantage.Low, 100*a.Advantage.High))
		}
		if a.Leak.Low > 0 {
			leaks = append(leaks, a.Name)
		}
	}
	n := len(r.Attributes)
	if len(known) == 0 {
		r.Verdict = fmt.Sprintf("Of %d attributes, the model is right of none more often for its members than for others.", n)
	} else {
		r.Verdict = fmt.Sprintf("Of %d attributes, the model alone is right more often for its members than for others of %s.", n, strings.Join(known, ", "))
	}
	if len(leaks) == 0 {
		r.Verdict += " To somebody who imputes from the other attributes, it adds no more for members than for others."
	} else {
		r.Verdict += fmt.Sprintf(" To somebody who imputes from the other attributes, it adds more for members than for others of %s.", strings.Join(leaks, ", "))
	}
	r.Verdict += fmt.Sprintf(" By chance about %.1f of %d attributes would be named in each sentence.", 0.025*float64(n), n)
}

func (r *AttributeReport) page() page {
	p := page{Title: "What does the model add to guessing a person's missing value?", Lead: fmt.Sprintf("Somebody knows all but one attribute of a person of %s, the label, and the model.", r.Data),
		Fine: "Majority and imputation never saw the model; imputation is a logistic regression on the other attributes and the label of people who were not trained on, those guessed about left out. Shares have Clopper-Pearson's intervals, differences Student's."}
	for _, part := range []struct {
		title string
		of    func(AttributeOutcome) AttributeWays
	}{
		{"Members: guessed rightly, %", func(a AttributeOutcome) AttributeWays { return a.Members }},
		{"Others: guessed rightly, %", func(a AttributeOutcome) AttributeWays { return a.Others }},
	} {
		s := section{Title: part.title, Head: []string{"attribute", "values", "people", "majority", "imputed", "model alone", "both"}}
		for _, a := range r.Attributes {
			w := part.of(a)
			s.Rows = append(s.Rows, []string{a.Name, fmt.Sprint(len(a.Values)), fmt.Sprint(w.People), fmt.Sprintf("%.1f", 100*w.Majority.Value), percent(w.Imputed), percent(w.Model), percent(w.Both)})
		}
		p.Sections = append(p.Sections, s)
	}
	points := func(v train.Interval) string {
		return fmt.Sprintf("%+.1f (%+.1f to %+.1f)", 100*v.Value, 100*v.Low, 100*v.High)
	}
	s := section{Title: "What is about members, points", Head: []string{"attribute", "model alone: members less others", "added to imputation: members", "others", "members less others"}}
	for _, a := range r.Attributes {
		s.Rows = append(s.Rows, []string{a.Name, points(a.Advantage), points(a.Added), points(a.AddedOthers), points(a.Leak)})
	}
	s.Text = []string{"What the model tells of people whom it never saw is what it learnt of people in general. Only what is more for members is about them; members and others that differ by themselves make a difference too."}
	p.Sections = append(p.Sections, s)
	return p
}

// Write writes the report for people.
func (r *AttributeReport) Write(w io.Writer) error { return r.write(w, r.page()) }

// SaveHTML writes it as one page that needs nothing else.
func (r *AttributeReport) SaveHTML(path string) error { return r.save(path, r.page()) }
