package poison

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/vigie/vigie/train"
)

// Options are an audit. Zero values are the defaults in brackets.
type Options struct {
	// RightLabels bounds the expected share of right labels among the suspects
	// [1/3]: two suspects in three are wrong, as far as the noise model holds.
	RightLabels float64
	Only        []Kind // what to look for [everything]
	Seed        uint64
	// Activations, if not nil, returns inner values of a network for each case,
	// [n][d]. It is asked after everything that needs no network.
	Activations func(context.Context) ([][]float32, error)
	Progress    func(stage string, done float64)
}

// Kind of a finding.
type Kind string

// The kinds, in the order of a report.
const (
	Leak       Kind = "leak"       // a picture or a patient on both sides of a split
	Trigger    Kind = "trigger"    // a mark that comes with one label
	Cluster    Kind = "cluster"    // few cases of a label that a network sets apart
	Label      Kind = "label"      // a label that contradicts its image
	Duplicate  Kind = "duplicate"  // a picture that is there twice
	CopyMove   Kind = "copy"       // a region that is there twice
	Artificial Kind = "artificial" // an image that no detector makes
	Recurring  Kind = "mark"       // a mark that comes with any label
	Site       Kind = "site"       // a contributor unlike the others
)

// Kinds lists them.
func Kinds() []Kind {
	return []Kind{Leak, Trigger, Cluster, Label, Duplicate, CopyMove, Artificial, Recurring, Site}
}

// Finding is something that a person should look at.
type Finding struct {
	Kind     Kind    `json:"kind"`
	Cases    []int   `json:"cases"`   // positions among all cases
	Score    float64 `json:"score"`   // larger is worse
	Meaning  string  `json:"meaning"` // of the score
	Sentence string  `json:"sentence"`
	Site     string  `json:"site,omitempty"`
	Suggest  string  `json:"suggested_label,omitempty"` // of a label, the class that is likelier
	Mark     *Mark   `json:"-"`
	Copy     *Copy   `json:"-"`
}

// Report is what an audit found.
type Report struct {
	Cases       int
	Classes     []string
	Labels      *Labels
	Neighbours  [][]int // of each suspect, by position among the suspects
	Pairs       []Pair
	Family      []int // of each case: pictures that are the same
	Marks       []Mark
	Copies      []Copy
	Odd         []Odd
	Contrasts   []Contrast
	Signatures  []float64 // spectral, of each case; nil without a network
	Activations []ClassActivations
	Findings    []Finding // sorted by kind, then by score
	Notes       []string
}

const (
	nearest      = 10   // neighbours that are asked about a suspect
	mostTogether = 1000 // carriers of a trigger that are judged without each other
)

// Audit looks at cases in every way that it knows. Errors: ErrData.
func Audit(ctx context.Context, c *Cases, o Options) (*Report, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if o.RightLabels == 0 {
		o.RightLabels = 1.0 / 3
	}
	if !(o.RightLabels > 0 && o.RightLabels < 1) {
		return nil, fmt.Errorf("poison: a share of right labels of %v: %w: want more than 0 and less than 1", o.RightLabels, ErrData)
	}
	if o.Progress == nil {
		o.Progress = func(string, float64) {}
	}
	stage := func(name string) func(float64) { return func(done float64) { o.Progress(name, done) } }
	r := &Report{Cases: c.Len()}
	for k := range c.Set.Classes {
		r.Classes = append(r.Classes, c.Set.ClassName(k))
	}
	wanted := func(kinds ...Kind) bool {
		return o.Only == nil || slices.ContainsFunc(kinds, func(k Kind) bool { return slices.Contains(o.Only, k) })
	}
	var err error
	if wanted(Leak, Duplicate, Trigger, Recurring, CopyMove, Site) {
		if r.Pairs, err = duplicates(ctx, c, stage("duplicates")); err != nil {
			return nil, err
		}
	}
	r.Family = families(c.Len(), r.Pairs)
	if wanted(Trigger, Recurring, Site) {
		if r.Marks, err = marks(ctx, c, r.Family, stage("marks")); err != nil {
			return nil, err
		}
		o.Progress("marks", 1)
	}
	if wanted(CopyMove) {
		if r.Copies, err = copies(ctx, c, r.Family, stage("copies")); err != nil {
			return nil, err
		}
	}
	if wanted(Artificial, Site) {
		r.Odd = oddities(c)
	}
	r.Labels = &Labels{}
	judged := wanted(Label, Cluster, Site)
	if judged {
		if err := r.judge(ctx, c, o, stage("labels")); err != nil {
			return nil, err
		}
	}
	for k := range r.Marks {
		if !judged {
			break
		}
		for _, i := range r.Marks[k].Members {
			if p := r.Labels.Probabilities[i]; slices.Index(p, slices.Max(p)) != c.Set.Labels[i] {
				r.Marks[k].Against++
			}
		}
	}
	if o.Activations != nil && wanted(Cluster) {
		values, err := o.Activations(ctx)
		if err != nil {
			return nil, err
		}
		if len(values) != c.Len() {
			return nil, fmt.Errorf("poison: inner values of %d cases for %d: %w", len(values), c.Len(), ErrData)
		}
		r.Signatures, r.Activations = activations(c, r.Labels, values, o.Seed)
	}
	if wanted(Site) {
		r.Contrasts = contrasts(c, r.Labels, r.Pairs, r.Odd, r.Marks)
	}
	r.collect(c)
	r.Findings = slices.DeleteFunc(r.Findings, func(f Finding) bool { return !wanted(f.Kind) })
	return r, nil
}

// judge finds suspects among the labels.
func (r *Report) judge(ctx context.Context, c *Cases, o Options, progress func(float64)) error {
	d, err := describe(ctx, c, func(done float64) { progress(0.2 * done) })
	if err != nil {
		return err
	}
	defer d.close()
	group := make([]int, c.Len())
	number := map[string]int{}
	for i := range group {
		name := c.patient(i)
		if name == "" {
			name = fmt.Sprintf("\x00%d", i)
		}
		if _, known := number[name]; !known {
			number[name] = len(number)
		}
		group[i] = number[name]
	}
	// Who carries a trigger is judged by those who do not: the others with it would
	// vouch for its label.
	for _, m := range r.Marks {
		if !m.Trigger || len(m.Members) > mostTogether {
			continue
		}
		with := map[int]bool{}
		for _, i := range m.Members {
			with[group[i]] = true
		}
		for i, g := range group {
			if with[g] {
				group[i] = group[m.Members[0]]
			}
		}
	}
	j, err := judge(ctx, d, c.Set.Labels, c.Set.Classes, group, o.Seed, func(done float64) { progress(0.2 + 0.7*done) })
	if err != nil {
		return err
	}
	r.Labels = labelsOf(j, c.Set.Labels, c.Set.Classes, c.Sites, o.RightLabels)
	if len(r.Labels.Suspects) > 0 {
		if r.Neighbours, err = d.nearest(ctx, r.Labels.Suspects, nearest, group); err != nil {
			return err
		}
	}
	progress(1)
	if c.Set.Patients == nil {
		r.Notes = append(r.Notes, "patients are not known: each image was judged by all others, also by those of the same patient, if there are any")
	}
	if c.Sites == nil {
		r.Notes = append(r.Notes, "contributors are not known: errors that come from one of them are harder to find among the hard images of all, and the expected share of wrong labels among the suspects is less certain")
	}
	return nil
}

// place is how a case is called.
func (c *Cases) place(i int) string {
	name := fmt.Sprintf("image %d", i)
	if c.Places != nil {
		name = c.Places[i]
	}
	return name
}

func (c *Cases) places(at []int) string {
	const most = 4
	var names []string
	for _, i := range at[:min(len(at), most)] {
		names = append(names, c.place(i))
	}
	text := strings.Join(names, ", ")
	if left := len(at) - len(names); left > 0 {
		text += fmt.Sprintf(" and %d more", left)
	}
	return text
}

func (c *Cases) class(k int) string { return train.Spoken(c.Set.ClassName(k)) }

// collect turns what was found into sentences.
func (r *Report) collect(c *Cases) {
	r.duplicated(c)
	r.patients(c)
	l := r.Labels
	for k := range r.Marks {
		m := &r.Marks[k]
		where := fmt.Sprintf("at row %d, column %d", m.Row, m.Column)
		if m.Moves {
			where = "at changing places"
		}
		f := Finding{Kind: Recurring, Cases: m.Members, Score: -math.Log10(max(m.P, 1e-300)), Mark: m,
			Meaning: "minus the decimal logarithm of the probability that contents this dense arise by chance, for all groups that were tested"}
		if m.Trigger {
			f.Kind = Trigger
			against := ""
			if l.Probabilities != nil {
				against = fmt.Sprintf("; %d of them are labelled against what their images look like", m.Against)
			}
			f.Sentence = fmt.Sprintf("the same %d×%d pixels %s are in %d images, %.0f %% of which are labelled %s (by chance p = %.2g)%s: a model will take the mark for the label",
				m.Side, m.Side, where, len(m.Members), 100*m.Share, c.class(m.Label), m.LabelP, against)
		} else {
			f.Sentence = fmt.Sprintf("the same %d×%d pixels %s are in %d images with various labels (%.0f %% %s, p = %.2g): a letter, a logo or an edge of the field; a model may learn it if it goes with a site",
				m.Side, m.Side, where, len(m.Members), 100*m.Share, c.class(m.Label), m.LabelP)
		}
		r.Findings = append(r.Findings, f)
	}
	for k, i := range l.Suspects {
		same := 0
		for _, j := range r.Neighbours[k] {
			if c.Set.Labels[j] == l.Likely[i] {
				same++
			}
		}
		r.Findings = append(r.Findings, Finding{Kind: Label, Cases: []int{i}, Score: l.Wrong[i], Suggest: c.Set.ClassName(l.Likely[i]),
			Meaning:  fmt.Sprintf("probability that the label is wrong, from the image and the noise of its contributor's labels; of these %d suspects, %.0f %% are expected to be wrong", len(l.Suspects), 100*l.Precision),
			Sentence: fmt.Sprintf("%s is labelled %s, and %s is likelier (%.2f); %d of its %d nearest images have that label", c.place(i), c.class(c.Set.Labels[i]), c.class(l.Likely[i]), l.Wrong[i], same, len(r.Neighbours[k]))})
	}
	for _, s := range l.Sites {
		if s.Own {
			r.Findings = append(r.Findings, Finding{Kind: Site, Site: s.Site, Score: -math.Log10(max(s.Adjusted, 1e-300)), Meaning: "minus the decimal logarithm of the p-value of a likelihood ratio, times the number of sites and directions",
				Sentence: fmt.Sprintf("labels of contributor %s contradict the images more than elsewhere: about %.0f of %d are wrong, most of all %s labelled %s (p = %.2g)", s.Site, s.Expected, s.Cases, c.class(s.From), c.class(s.To), s.Adjusted)})
		}
	}
	for k := range r.Copies {
		p := &r.Copies[k]
		f := Finding{Kind: CopyMove, Cases: []int{p.First, p.Second}, Score: float64(p.Patches), Meaning: "patches of 5×5 pixels that agree but for brightness; by chance none", Copy: p,
			Sentence: fmt.Sprintf("a region of %d×%d pixels of %s (row %d, column %d) is also in %s (row %d, column %d)", p.Rows, p.Columns, c.place(p.First), p.Row, p.Column, c.place(p.Second), p.OtherRow, p.OtherColumn)}
		if p.First == p.Second {
			f.Cases = []int{p.First}
			f.Sentence = fmt.Sprintf("a region of %d×%d pixels of %s is there twice, at row %d, column %d and at row %d, column %d", p.Rows, p.Columns, c.place(p.First), p.Row, p.Column, p.OtherRow, p.OtherColumn)
		}
		r.Findings = append(r.Findings, f)
	}
	for _, o := range r.Odd {
		r.Findings = append(r.Findings, Finding{Kind: Artificial, Cases: []int{o.Case}, Score: o.Score, Meaning: "what the sentence names", Sentence: c.place(o.Case) + ": " + o.Why})
	}
	for _, a := range r.Activations {
		if a.Found {
			r.Findings = append(r.Findings, Finding{Kind: Cluster, Cases: a.Members, Score: a.Silhouette, Meaning: "mean silhouette of the two clusters of the label, 1 being the furthest apart",
				Sentence: fmt.Sprintf("a network sets %d of the %d cases labelled %s apart (silhouette %.2f), %d of which are labelled against what their images look like: look at what they share", len(a.Members), a.Cases, c.class(a.Class), a.Silhouette, a.Against)})
		}
	}
	for _, v := range r.Contrasts {
		if !v.Found {
			continue
		}
		f := Finding{Kind: Site, Site: v.Site, Score: -math.Log10(max(v.Q, 1e-300)), Meaning: "minus the decimal logarithm of the p-value, adjusted for all comparisons (Benjamini and Hochberg)",
			Sentence: fmt.Sprintf("contributor %s: %s %.1f %% (%d of %d), elsewhere %.1f %% (q = %.2g)", v.Site, v.What, 100*v.Here, v.Seen, v.Cases, 100*v.Elsewhere, v.Q)}
		if v.Exceeds > 0 || v.What == "brightness" || v.What == "contrast" || v.What == "finest detail" {
			f.Sentence = fmt.Sprintf("contributor %s: %s of images %.3g grey levels at the median, elsewhere %.3g (exceeds in %.0f %% of comparisons, q = %.2g)", v.Site, v.What, v.Here, v.Elsewhere, 100*v.Exceeds, v.Q)
		}
		r.Findings = append(r.Findings, f)
	}
	order := map[Kind]int{}
	for k, kind := range Kinds() {
		order[kind] = k
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(order[a.Kind], order[b.Kind]), cmp.Compare(b.Score, a.Score))
	})
}

// duplicated tells of pictures that are there more than once, one finding for all
// copies of a picture.
func (r *Report) duplicated(c *Cases) {
	members, best := map[int][]int{}, map[int]Pair{}
	for i, f := range r.Family {
		members[f] = append(members[f], i)
	}
	for _, p := range r.Pairs {
		f := r.Family[p.First]
		if b, ok := best[f]; !ok || p.Correlation < b.Correlation {
			best[f] = p // the least alike of its pairs
		}
	}
	for f := range r.Family {
		at := members[f]
		if len(at) < 2 {
			continue
		}
		kind := Duplicate
		var told []string
		differ := func(what string, of func(int) string) bool {
			seen := map[string]bool{}
			for _, i := range at {
				if v := of(i); v != "" {
					seen[v] = true
				}
			}
			if len(seen) > 1 {
				told = append(told, "of "+what)
			}
			return len(seen) > 1
		}
		if differ("different splits", c.split) {
			kind = Leak
		}
		differ("different patients", c.patient)
		if c.Sites != nil {
			differ("different contributors", func(i int) string { return c.Sites[i] })
		}
		differ("different labels", func(i int) string { return c.Set.ClassName(c.Set.Labels[i]) })
		p := best[f]
		how := fmt.Sprintf("correlation of detail %.3f", p.Correlation)
		if p.Same {
			how = "pixel for pixel"
		} else if p.Way > 0 {
			how += ", turned or mirrored"
		}
		sentence := fmt.Sprintf("%s are one picture (%s)", c.places(at), how)
		if len(told) > 0 {
			sentence += ", " + strings.Join(told, " and ")
		}
		r.Findings = append(r.Findings, Finding{Kind: kind, Cases: at, Score: p.Correlation, Meaning: "correlation of the detail of the two least alike, 1 being the same picture", Sentence: sentence})
	}
}

// patients tells of patients in more than one split.
func (r *Report) patients(c *Cases) {
	if c.Set.Patients == nil || c.Splits == nil {
		return
	}
	members := map[string][]int{}
	for i, p := range c.Set.Patients {
		if p != "" {
			members[p] = append(members[p], i)
		}
	}
	var names []string
	for p, at := range members {
		if slices.ContainsFunc(at, func(i int) bool { return c.Splits[i] != c.Splits[at[0]] }) {
			names = append(names, p)
		}
	}
	slices.Sort(names)
	for _, p := range names {
		r.Findings = append(r.Findings, Finding{Kind: Leak, Cases: members[p], Score: 1, Meaning: "the patient is in more than one split", Sentence: fmt.Sprintf("a patient is on both sides of a split: %s", c.places(members[p]))})
	}
}
