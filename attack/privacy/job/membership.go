package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie/attack/privacy"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// The membership attacks.
const (
	LiRAOnline  = "lira-online"
	LiRAOffline = "lira-offline"
	RMIA        = "rmia"
	Calibrated  = "calibrated"
	Loss        = "loss"
)

// membershipAttacks is the table of them; the first is the one that the verdict
// rests on, whatever the others find.
var membershipAttacks = []struct {
	Name, About string
	shadows     bool
	score       func(target []float64, s privacy.Shadows) ([]float64, error)
}{
	{LiRAOnline, "likelihood ratio of shadow models with and without the person (Carlini et al. 2022)", true,
		func(t []float64, s privacy.Shadows) ([]float64, error) {
			return privacy.LiRAOnline(t, s, privacy.AutoVariance)
		}},
	{LiRAOffline, "the same from models without the person alone", true,
		func(t []float64, s privacy.Shadows) ([]float64, error) {
			return privacy.LiRAOffline(t, s, privacy.AutoVariance)
		}},
	{RMIA, "ratio to reference models, against other people's (Zarifzadeh et al. 2024, offline)", true,
		func(t []float64, s privacy.Shadows) ([]float64, error) {
			return privacy.RMIA(t, s, privacy.RMIAOptions{})
		}},
	{Calibrated, "signal less the reference models' mean (Watson et al. 2022)", true, privacy.Calibrated},
	{Loss, "a threshold on the loss, no shadow models (Yeom et al. 2018)", false,
		func(t []float64, s privacy.Shadows) ([]float64, error) { return privacy.Loss(t, s.Queries), nil }},
}

// Membership asks who was in a model's training set. Without a model it asks how
// much a recipe gives away: each of its shadow models is the target in turn.
type Membership struct {
	Common
	Members    string // split of those that were trained on [train]
	NonMembers string // split of those that were not [val]
	List       string // CSV file that says it of each example instead; see ReadMembership
	Shadows    int    // models to train; 0: only what needs none
	Share      float64
	Looks      int // at an image: 1, with 2 also mirrored, with 6 moved by a pixel too
	Training   Training
	Folder     string // where shadow models stay and are found again
}

// MembershipReport is what it found.
type MembershipReport struct {
	Head
	Members    int `json:"members"`
	NonMembers int `json:"nonmembers"`
	// Attacks are those on the model, the first being the one that the verdict
	// rests on; none without a model.
	Attacks []MembershipAttack `json:"attacks,omitempty"`
	// Blind never saw the model.
	Blind *privacy.ROC `json:"blind"`
	// Control is the first attack on models of the same recipe whose training sets
	// have nothing to do with who is said to be a member.
	Control *privacy.ROC `json:"control,omitempty"`
	// Recipe are the attacks on every shadow model, whose members are a random part
	// of all examples: nothing but the model can tell them from the others.
	Recipe  []MembershipAttack `json:"recipe,omitempty"`
	Shadows *ShadowModels      `json:"shadows,omitempty"`
	// Limits compare what was reached with what differential privacy allows.
	Limits []DPLimit `json:"dp_limits,omitempty"`
	Shared int       `json:"examples_in_both"` // equal in content among members and others
}

// MembershipAttack is an attack and its figures.
type MembershipAttack struct {
	Name  string `json:"name"`
	About string `json:"about"`
	*privacy.ROC
}

// ShadowModels say what the shadow models are.
type ShadowModels struct {
	Count  int       `json:"count"`
	Reused int       `json:"reused"` // taken from the folder
	Share  float64   `json:"share"`  // of the examples, in each
	Looks  int       `json:"looks"`
	Folder string    `json:"folder,omitempty"`
	How    *training `json:"training"`
}

// DPLimit is what a promise of differential privacy allows at a false-positive
// rate, and what was measured.
type DPLimit struct {
	Of       string         `json:"of"` // "model" or "recipe"
	Promise  string         `json:"promise"`
	FPR      float64        `json:"fpr"`
	Allowed  float64        `json:"allowed_tpr"`        // by (ε, δ) as promised
	Tight    float64        `json:"allowed_tpr_ledger"` // by the ledger's runs at many δ
	Measured train.Interval `json:"measured_tpr"`
	Attack   string         `json:"attack"`
	Holds    bool           `json:"holds"` // the measured interval does not lie above the limit
}

// Run asks.
func (o Membership) Run(ctx context.Context) (*MembershipReport, error) {
	start := time.Now()
	if err := o.check(); err != nil {
		return nil, err
	}
	q, err := o.question(ctx)
	if err != nil {
		return nil, err
	}
	defer q.subject.close()
	r := &MembershipReport{Head: o.head("membership", q.subject, membershipTechnique)}
	for _, m := range q.member {
		if m {
			r.Members++
		} else {
			r.NonMembers++
		}
	}
	var recipe *training
	if o.Shadows > 0 {
		if recipe, err = o.Training.training(q.subject.record, q.pool); err != nil {
			return nil, err
		}
		if each, of := int(o.Share*float64(q.pool.Len())), q.subject.record; of != nil && (each < of.History.Images*9/10 || each > of.History.Images*11/10) {
			r.Notes = append(r.Notes, fmt.Sprintf("shadow models are trained on about %d examples each, the model on %d: with fewer, a model knows each of them better", each, of.History.Images))
		}
		if o.Model != "" && o.List == "" && o.NonMembers == studies.Validation && q.subject.record != nil {
			r.Notes = append(r.Notes, "the others are the validation split, by which the model's epoch was chosen; its shadow models' epochs are chosen by those who are not in them, likewise")
		}
		if recipe.Recipe.Private != nil {
			r.Notes = append(r.Notes, "private training draws batches and noise from the operating system: shadow models differ from run to run, unless they are kept in a folder")
		}
	}
	if o.Model != "" {
		if r.Blind, err = privacy.Blind(privacy.Features(q.pool), q.member, 5, o.Seed); err != nil {
			return nil, err
		}
		r.Shared = shared(q.pool, q.member)
		if r.Shared > 0 {
			r.Notes = append(r.Notes, fmt.Sprintf("%d examples are, in content, both among the members and among the others", r.Shared))
		}
	}
	var s *shadows
	if recipe != nil {
		if s, err = recipe.shadows(ctx, q.pool, o.Shadows, o.Share, o.Looks, o.Seed, o.Folder, o.Progress); err != nil {
			return nil, err
		}
		r.Shadows = &ShadowModels{o.Shadows, s.reused, o.Share, o.Looks, o.Folder, recipe}
	}
	if o.Model != "" {
		if err := o.attackModel(ctx, r, q, s); err != nil {
			return nil, err
		}
	}
	if s != nil {
		if err := o.attackRecipe(r, q, s); err != nil {
			return nil, err
		}
	}
	r.verdict()
	return r, o.finish(&r.Head, r, start)
}

func (o *Membership) check() error {
	if err := o.begin(); err != nil {
		return err
	}
	if o.Members == "" {
		o.Members = studies.Train
	}
	if o.NonMembers == "" {
		o.NonMembers = studies.Validation
	}
	if o.Share == 0 {
		o.Share = 0.5
	}
	if o.Looks == 0 {
		o.Looks = 1
	}
	switch {
	case o.Shadows < 0 || o.Shadows > 1<<12 || o.Shadows > 0 && o.Shadows < 6:
		return fmt.Errorf("job: %d shadow models: %w: want 0, or 6 to %d", o.Shadows, ErrAsk, 1<<12)
	case o.Model == "" && o.Shadows == 0:
		return fmt.Errorf("job: %w: without a model a recipe is asked, which takes shadow models", ErrAsk)
	case !(o.Share > 0 && o.Share < 1):
		return fmt.Errorf("job: a share of %v: %w: want more than 0 and less than 1", o.Share, ErrAsk)
	case o.Shadows > 0 && (modelsWith(o.Shadows, o.Share) < 3 || o.Shadows-modelsWith(o.Shadows, o.Share) < 3):
		return fmt.Errorf("job: a share of %v of %d shadow models: %w: want three with and three without each person, at least", o.Share, o.Shadows, ErrAsk)
	case o.Looks != 1 && o.Looks != 2 && o.Looks != mostLooks:
		return fmt.Errorf("job: %d looks: %w: want 1, 2 (mirrored) or %d (moved by a pixel, too)", o.Looks, ErrAsk, mostLooks)
	case o.Model != "" && o.List == "" && o.Members == o.NonMembers:
		return fmt.Errorf("job: %w: members and others are both split %s", ErrAsk, o.Members)
	case o.Model == "" && o.List != "":
		return fmt.Errorf("job: %w: a list of memberships is of a model, and none is named", ErrAsk)
	}
	if o.List != "" {
		if _, err := os.Stat(o.List); err != nil {
			return fmt.Errorf("job: the list of memberships: %w", err)
		}
	}
	return nil
}

// question is whom the attack is asked about.
type question struct {
	subject *subject
	pool    *train.Set
	member  []bool // as it is said
}

func (o *Membership) question(ctx context.Context) (*question, error) {
	q := &question{}
	var sets []*train.Set
	var err error
	switch {
	case o.Model == "":
		q.subject = &subject{}
		o.splitSeed(nil)
		options := o.Data
		options.Only = o.Members
		data, err := studies.Open(ctx, options)
		if err != nil {
			return nil, err
		}
		if q.pool, err = data.Set(o.Members); err != nil {
			return nil, fmt.Errorf("job: reading %s: %w", o.Data.Data, err)
		}
		if q.pool.Multi() {
			return nil, fmt.Errorf("job: %s: %w: its labels do not exclude each other; name one of them as the label column", o.Data.Data, ErrAsk)
		}
		q.subject.dataDigest = data.Digest
	case o.List != "":
		if q.subject, sets, err = o.open(ctx, false, studies.All); err != nil {
			return nil, err
		}
		f, err := os.Open(o.List)
		if err != nil {
			return nil, fmt.Errorf("job: the list of memberships: %w", err)
		}
		defer f.Close()
		members, others, err := ReadMembership(io.LimitReader(f, 1<<28), sets[0].Len())
		if err != nil {
			return nil, errors.Join(err, q.subject.close())
		}
		q.pool = sets[0].Subset(slices.Concat(members, others))
		q.member = firstAre(len(members), q.pool.Len())
	default:
		if q.subject, sets, err = o.open(ctx, false, o.Members, o.NonMembers); err != nil {
			return nil, err
		}
		q.pool = train.Join("members and others", sets...)
		q.member = firstAre(sets[0].Len(), q.pool.Len())
	}
	q.pool.Name = "pool"
	if o.Looks > 1 && q.pool.Shape != nil {
		return nil, errors.Join(fmt.Errorf("job: %d looks: %w: they are for images", o.Looks, ErrAsk), q.subject.close())
	}
	if err := q.pool.Check(); err != nil {
		return nil, errors.Join(err, q.subject.close())
	}
	return q, nil
}

func firstAre(n, of int) []bool {
	member := make([]bool, of)
	for i := range n {
		member[i] = true
	}
	return member
}

// shared counts the examples that are equal in content to one of the other kind.
func shared(pool *train.Set, member []bool) int {
	size := int(product(pool.Example()))
	row := make([]float32, size)
	kinds := map[string][2]int{}
	for i := range pool.Len() {
		pool.Fill(row, i)
		key := fmt.Sprint(row)
		n := kinds[key]
		if member[i] {
			n[0]++
		} else {
			n[1]++
		}
		kinds[key] = n
	}
	count := 0
	for _, n := range kinds {
		if n[0] > 0 && n[1] > 0 {
			count += n[0] + n[1]
		}
	}
	return count
}

// attackModel attacks the model that was named.
func (o Membership) attackModel(ctx context.Context, r *MembershipReport, q *question, s *shadows) error {
	whole := pixels(q.pool)
	size := len(whole) / q.pool.Len()
	signals := make([]float64, q.pool.Len()*o.Looks)
	for k := range o.Looks {
		all := make([]float32, 0, len(whole))
		for i := range q.pool.Len() {
			all = append(all, look(q.pool, whole[i*size:(i+1)*size], k)...)
		}
		z, err := logits(ctx, q.subject.target, all)
		if err != nil {
			return err
		}
		signal, err := privacy.Signal(z, q.pool.Labels)
		if err != nil {
			return err
		}
		for i, v := range signal {
			signals[i*o.Looks+k] = v
		}
	}
	of := persons(q.pool)
	if distinct(of) == len(of) {
		of = nil
	}
	known := privacy.Shadows{Queries: o.Looks}
	if s != nil {
		known = s.Shadows
	}
	for _, a := range membershipAttacks {
		if a.shadows && s == nil {
			continue
		}
		scores, err := a.score(signals, known)
		if err != nil {
			return err
		}
		roc, err := privacy.Compare(scores, q.member, of, o.Seed)
		if err != nil {
			return err
		}
		r.Attacks = append(r.Attacks, MembershipAttack{a.Name, a.About, roc})
	}
	if s != nil {
		var scores []float64
		var member []bool
		var who []int
		of := persons(q.pool)
		for k := range o.Shadows {
			target, _, rest := s.LeaveOut(k)
			each, err := membershipAttacks[0].score(target, rest)
			if err != nil {
				return err
			}
			scores, member, who = append(scores, each...), append(member, q.member...), append(who, of...)
		}
		var err error
		if r.Control, err = privacy.Compare(scores, member, who, o.Seed); err != nil {
			return err
		}
	}
	if q.subject.record != nil && q.subject.record.Privacy != nil {
		return r.limits("model", q.subject.record.Privacy, r.Attacks)
	}
	return nil
}

func distinct(of []int) int {
	seen := map[int]bool{}
	for _, v := range of {
		seen[v] = true
	}
	return len(seen)
}

// attackRecipe takes each shadow model for the target in turn.
func (o Membership) attackRecipe(r *MembershipReport, q *question, s *shadows) error {
	of := persons(q.pool)
	for n, a := range membershipAttacks {
		var scores []float64
		var member []bool
		var who []int
		for k := range o.Shadows {
			target, in, rest := s.LeaveOut(k)
			each, err := a.score(target, rest)
			if err != nil {
				return err
			}
			scores, member, who = append(scores, each...), append(member, in...), append(who, of...)
			o.Progress("attacking every shadow model", (float64(n)+float64(k+1)/float64(o.Shadows))/float64(len(membershipAttacks)))
		}
		roc, err := privacy.Compare(scores, member, who, o.Seed)
		if err != nil {
			return err
		}
		r.Recipe = append(r.Recipe, MembershipAttack{a.Name, a.About, roc})
	}
	if r.Blind == nil { // of the recipe alone: its first model's training set
		var err error
		if r.Blind, err = privacy.Blind(privacy.Features(q.pool), s.In[0], 5, o.Seed); err != nil {
			return err
		}
		for _, member := range s.In[0] {
			if member {
				r.Members++
			} else {
				r.NonMembers++
			}
		}
	}
	var loosest *train.Statement
	for _, p := range s.statements {
		if p != nil && (loosest == nil || p.Epsilon > loosest.Epsilon) {
			loosest = p
		}
	}
	if loosest != nil {
		return r.limits("recipe", loosest, r.Recipe)
	}
	return nil
}

// limits holds what was measured against what a statement promises.
func (r *MembershipReport) limits(of string, p *train.Statement, attacks []MembershipAttack) error {
	many, err := promises(p.Composition, p.Delta)
	if err != nil {
		return err
	}
	promised := privacy.Promise{Epsilon: p.Epsilon, Delta: p.Delta}
	for _, a := range attacks {
		for _, rate := range a.Rates {
			l := DPLimit{Of: of, Promise: fmt.Sprintf("ε = %.3f, δ = %g, %s", p.Epsilon, p.Delta, p.Unit), FPR: rate.FPR, Attack: a.Name, Measured: rate.TPR}
			// At the false-positive rate that the few non-members allow to be claimed,
			// which is the end of its interval.
			l.Allowed = privacy.Limit([]privacy.Promise{promised}, rate.FPR)
			l.Tight = privacy.Limit(append(many, promised), rate.FPR)
			l.Holds = rate.TPR.Low <= privacy.Limit(append(many, promised), max(rate.FPR, rate.Achieved.High))
			r.Limits = append(r.Limits, l)
		}
	}
	return nil
}

// verdict is what the figures support. The attack that it rests on was chosen
// before.
func (r *MembershipReport) verdict() {
	var parts []string
	if len(r.Attacks) > 0 {
		a := r.Attacks[0]
		text := fmt.Sprintf("%s tells members from others with an AUC of %s", a.Name, figure(a.AUC))
		floor := 0.5
		against := "chance"
		if r.Control != nil {
			floor, against = max(0.5, r.Control.AUC.High), "models that were trained on others"
		} else if r.Blind.AUC.High > 0.5 {
			floor, against = max(0.5, r.Blind.AUC.High), "a classifier that never saw the model"
		}
		switch {
		case a.AUC.Low > floor:
			text += fmt.Sprintf(": more than %s can (up to %.3f). The model gives away whom it was trained on.", against, floor)
		case a.AUC.Low > 0.5:
			text += fmt.Sprintf(", which %s may reach too (up to %.3f): it may be a difference between the groups, and proves nothing of the model.", against, floor)
		default:
			text += ": not shown to differ from chance."
		}
		parts = append(parts, text)
	}
	if len(r.Recipe) > 0 {
		a := r.Recipe[0]
		text := fmt.Sprintf("On models of the recipe, %s has an AUC of %s", a.Name, figure(a.AUC))
		if rate := a.Rates[1]; a.AUC.Low > 0.5 {
			text += fmt.Sprintf(" and names %.1f %% of the members at 1 %% false alarms.", 100*rate.TPR.Value)
		} else {
			text += ": not shown to differ from chance."
		}
		parts = append(parts, text)
	}
	if r.Blind.AUC.Low > 0.5 {
		parts = append(parts, fmt.Sprintf("The groups differ by themselves: a classifier that never saw the model reaches %s.", figure(r.Blind.AUC)))
	}
	broken := 0
	for _, l := range r.Limits {
		if !l.Holds {
			broken++
		}
	}
	if len(r.Limits) > 0 && broken == 0 {
		parts = append(parts, "Nothing measured exceeds what differential privacy allows.")
	} else if broken > 0 {
		parts = append(parts, fmt.Sprintf("%d figures EXCEED what the privacy statement allows: the statement, or the claim of who was trained on, is wrong.", broken))
	}
	r.Verdict = strings.Join(parts, " ")
}

func (r *MembershipReport) page() page {
	p := page{Title: "Who was in the training set?", Lead: fmt.Sprintf("%d members and %d others of %s.", r.Members, r.NonMembers, r.Data),
		Fine: "A true-positive rate is the share of members that an attacker names who wrongly names at most the given share of the others. Its interval is the wider of Clopper-Pearson's and the bootstrap's over persons."}
	if r.Model == "" && r.Shadows != nil {
		p.Lead = fmt.Sprintf("The recipe is asked: each of %d models trained on a random part of %s is attacked with the others' help.", r.Shadows.Count, r.Data)
	}
	head := []string{"attack", "AUC (95 %)", "TPR at 0.1 % FPR, %", "at 1 %", "at 10 %"}
	row := func(name string, roc *privacy.ROC) []string {
		out := []string{name, figure(roc.AUC)}
		for _, rate := range roc.Rates {
			cell := fmt.Sprintf("%.1f (%.1f to %.1f)", 100*rate.TPR.Value, 100*rate.TPR.Low, 100*rate.TPR.High)
			if !rate.Resolved {
				cell += " *"
			}
			out = append(out, cell)
		}
		return out
	}
	const star = "* so few others cannot show this rate: what is named before the first false alarm."
	starred := func(s *section) {
		for _, row := range s.Rows {
			if slices.ContainsFunc(row, func(cell string) bool { return strings.HasSuffix(cell, " *") }) {
				s.Text = append([]string{star}, s.Text...)
				return
			}
		}
	}
	if len(r.Attacks) > 0 {
		s := section{Title: "The model", Head: head}
		var lines []line
		for _, a := range r.Attacks {
			s.Rows = append(s.Rows, row(a.Name, a.ROC))
			lines = append(lines, rocLine(a.Name, a.ROC, false))
		}
		if r.Control != nil {
			s.Rows = append(s.Rows, row("control: models that were trained on others", r.Control))
			lines = append(lines, rocLine("control", r.Control, true))
		}
		s.Rows = append(s.Rows, row("blind: never saw the model", r.Blind))
		lines = append(lines, rocLine("blind", r.Blind, true))
		s.Chart = chart(rocAxes, lines)
		starred(&s)
		p.Sections = append(p.Sections, s)
		p.Tiles = append(p.Tiles,
			tile{r.Attacks[0].Name + ", AUC", fmt.Sprintf("%.3f", r.Attacks[0].AUC.Value), fmt.Sprintf("95 %% %.3f to %.3f", r.Attacks[0].AUC.Low, r.Attacks[0].AUC.High), mood(r.Attacks[0])},
			tile{"Members named at 1 % false alarms", fmt.Sprintf("%.1f %%", 100*r.Attacks[0].Rates[1].TPR.Value), "95 % " + percent(r.Attacks[0].Rates[1].TPR), mood(r.Attacks[0])},
			tile{"AUC without the model", fmt.Sprintf("%.3f", r.Blind.AUC.Value), fmt.Sprintf("95 %% %.3f to %.3f", r.Blind.AUC.Low, r.Blind.AUC.High), ""})
	}
	if len(r.Recipe) > 0 {
		a := r.Recipe[0]
		s := section{Title: "Models of the recipe, each attacked in turn", Head: head}
		var lines []line
		for _, a := range r.Recipe {
			s.Rows = append(s.Rows, row(a.Name, a.ROC))
			lines = append(lines, rocLine(a.Name, a.ROC, false))
		}
		if len(r.Attacks) == 0 {
			s.Rows = append(s.Rows, row("blind: never saw the model", r.Blind))
			lines = append(lines, rocLine("blind", r.Blind, true))
			p.Tiles = []tile{
				{a.Name + ", AUC", fmt.Sprintf("%.3f", a.AUC.Value), fmt.Sprintf("95 %% %.3f to %.3f", a.AUC.Low, a.AUC.High), mood(a)},
				{"Members named at 1 % false alarms", fmt.Sprintf("%.1f %%", 100*a.Rates[1].TPR.Value), "95 % " + percent(a.Rates[1].TPR), mood(a)},
				{"AUC without the model", fmt.Sprintf("%.3f", r.Blind.AUC.Value), fmt.Sprintf("95 %% %.3f to %.3f", r.Blind.AUC.Low, r.Blind.AUC.High), ""}}
		}
		s.Text = append(s.Text, fmt.Sprintf("%d models (%d from an earlier run), each trained on a random %.0f %% of the examples like %s; scores of all of them together, %d of members and %d of others.",
			r.Shadows.Count, r.Shadows.Reused, 100*r.Shadows.Share, r.Shadows.How.Name, a.Members, a.NonMembers))
		s.Chart = chart(rocAxes, lines)
		starred(&s)
		p.Sections = append(p.Sections, s)
	}
	if len(r.Limits) > 0 {
		s := section{Title: "What differential privacy allows", Head: []string{"of, attack", "FPR", "TPR measured, %", "allowed by ε, δ", "allowed by the ledger", "holds"}}
		for _, l := range r.Limits {
			s.Rows = append(s.Rows, []string{l.Of + ", " + l.Attack, fmt.Sprintf("%g %%", 100*l.FPR), fmt.Sprintf("%.1f (%.1f to %.1f)", 100*l.Measured.Value, 100*l.Measured.Low, 100*l.Measured.High),
				fmt.Sprintf("%.1f %%", 100*l.Allowed), fmt.Sprintf("%.1f %%", 100*l.Tight), map[bool]string{true: "yes", false: "NO"}[l.Holds]})
		}
		s.Text = []string{"Promise: " + r.Limits[0].Promise + ". Allowed is the least of e^ε·FPR + δ and 1 - e^-ε·(1 - δ - FPR); by the ledger, at many δ of the same runs. It holds where the measured interval does not lie above the limit at the highest false-positive rate that the number of others leaves possible."}
		p.Sections = append(p.Sections, s)
	}
	s := section{Title: "The attacks", Head: []string{"attack", "what it does"}}
	for _, a := range membershipAttacks {
		if slices.ContainsFunc(slices.Concat(r.Attacks, r.Recipe), func(m MembershipAttack) bool { return m.Name == a.Name }) {
			s.Rows = append(s.Rows, []string{a.Name, a.About})
		}
	}
	p.Sections = append(p.Sections, s)
	return p
}

// mood is the colour of an attack's figures.
func mood(a MembershipAttack) string {
	if a.AUC.Low > 0.5 {
		return "bad"
	}
	return "good"
}

var rocAxes = axes{X: "false-positive rate", Y: "true-positive rate", Logarithmic: [2]bool{true, true}, LowX: 1e-3, HighX: 1, LowY: 1e-3, Top: 1, Diagonal: true}

func rocLine(name string, r *privacy.ROC, dashed bool) line {
	l := line{Name: name, Dashed: dashed}
	for _, p := range r.Points {
		l.X, l.Y = append(l.X, p[0]), append(l.Y, p[1])
	}
	l.X, l.Y = append(l.X, 1), append(l.Y, 1)
	return l
}

// Write writes the report for people.
func (r *MembershipReport) Write(w io.Writer) error { return r.write(w, r.page()) }

// SaveHTML writes it as one page that needs nothing else.
func (r *MembershipReport) SaveHTML(path string) error { return r.save(path, r.page()) }
