package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/store"
)

// Query selects cases by what a person types.
type Query struct {
	States         []string
	Patient, Study string
	Limit          int
}

// Find lists the cases that a query selects, newest first, with their findings
// but without the maps of their explanations. The log records for whom, and how
// many findings were shown.
func (b *Casebook) Find(ctx context.Context, q Query, actor string) ([]vigie.Case, error) {
	filter := store.Filter{Patient: vigie.PatientPseudonym(q.Patient), Study: vigie.StudyUID(q.Study), Limit: q.Limit}
	for _, text := range q.States {
		state := vigie.State(strings.ReplaceAll(text, "-", " "))
		if !slices.Contains(vigie.States, state) {
			return nil, fmt.Errorf("gateway: listing cases: %q is no state: want one of %v", text, vigie.States)
		}
		filter.States = append(filter.States, state)
	}
	var cases []vigie.Case
	sealed := map[vigie.CaseID][]byte{}
	err := b.store.View(ctx, func(tx *store.Tx) (err error) {
		if cases, err = tx.Cases(filter); err != nil {
			return err
		}
		for _, c := range cases {
			switch value, err := tx.Value(c.ID, valueFinding); {
			case err == nil:
				sealed[c.ID] = value
			case !errors.Is(err, store.ErrNotFound):
				return err
			}
		}
		refused, err := tx.Deliveries("", store.DeliveryRefused)
		of := refusals(refused)
		for i := range cases {
			cases[i].Refusals = of[cases[i].ID]
			if err == nil {
				cases[i].Erased, err = erasedAt(tx, cases[i].ID)
			}
		}
		return err
	})
	if err != nil || len(sealed) == 0 {
		return cases, err
	}
	for i := range cases {
		value, found := sealed[cases[i].ID]
		if !found {
			continue
		}
		shown := cases[i] // openValues also drops what the row says in clear
		switch err := b.openValues(ctx, &shown, map[string][]byte{valueFinding: value}); {
		case errors.Is(err, keys.ErrErased):
			continue // between the two looks
		case err != nil:
			return nil, err
		}
		shown.Finding.Explanation = nil
		cases[i].Finding = shown.Finding
	}
	return cases, b.store.Update(ctx, func(tx *store.Tx) error {
		return b.record(tx, nil, audit.Record{Kind: audit.KindViewed, Actor: actor, Decision: fmt.Sprintf("list: %d", len(sealed))})
	})
}

// FindingText is what the model says first of a case, for a list: the most
// probable label of those found present, or else of all.
func FindingText(c *vigie.Case) string {
	if c.Finding == nil || len(c.Finding.Predictions) == 0 {
		return "–"
	}
	leading := slices.MaxFunc(c.Finding.Predictions, func(a, b vigie.Prediction) int {
		if a.Positive != b.Positive {
			return map[bool]int{true: 1, false: -1}[a.Positive]
		}
		return cmp.Compare(a.Probability, b.Probability)
	})
	return fmt.Sprintf("%s %.3f", leading.Label, leading.Probability)
}

// refusals gathers, by case, what destinations answered: once where they
// answered the same about several objects.
func refusals(refused []store.Delivery) map[vigie.CaseID][]vigie.Refusal {
	of := map[vigie.CaseID][]vigie.Refusal{}
	for _, d := range refused {
		if r := (vigie.Refusal{Destination: d.Destination, Status: d.Detail}); !slices.Contains(of[d.Case], r) {
			of[d.Case] = append(of[d.Case], r)
		}
	}
	return of
}

// StateText is the state of a case for a person.
func StateText(c *vigie.Case) string {
	if !c.Erased.IsZero() {
		return string(c.State) + ", erased"
	}
	return string(c.State)
}

// RefusalText says for a person which destination refuses a case's results.
func RefusalText(r vigie.Refusal) string {
	return fmt.Sprintf("delivery refused by %s: %s", r.Destination, r.Status)
}

// View returns a case with its finding for a person to read, and records that
// the person did.
func (b *Casebook) View(ctx context.Context, id vigie.CaseID, actor string) (*vigie.Case, error) {
	c, err := b.Case(ctx, id)
	if err != nil {
		return nil, err
	}
	err = b.store.Update(ctx, func(tx *store.Tx) error {
		return b.record(tx, c, audit.Record{Kind: audit.KindViewed, Actor: actor, Decision: "show"})
	})
	return c, err
}

// Identity is what a reviewer needs to find a case's study in the PACS. It
// names the patient: it is shown to a person and never logged or stored in clear.
type Identity struct {
	Case             vigie.CaseID `json:"case"`
	PatientName      string       `json:"patient_name"`
	PatientID        string       `json:"patient_id"`
	Issuer           string       `json:"issuer,omitempty"`
	BirthDate        string       `json:"birth_date,omitempty"` // DA
	AccessionNumber  string       `json:"accession_number,omitempty"`
	StudyDate        string       `json:"study_date,omitempty"` // DA
	StudyInstanceUID string       `json:"study_instance_uid"`
	SOPInstanceUID   string       `json:"sop_instance_uid"`
}

// Identify opens the identity behind a case's pseudonym, for the person who
// must find the study. The log records who asked before anything is returned.
func (b *Casebook) Identify(ctx context.Context, id vigie.CaseID, actor string) (*Identity, error) {
	if strings.TrimSpace(actor) == "" {
		return nil, fmt.Errorf("gateway: identifying case %s: nobody is named who asks", id)
	}
	c, err := b.Case(ctx, id)
	if err != nil {
		return nil, err
	}
	source, err := b.sourceOf(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := b.store.Update(ctx, func(tx *store.Tx) error {
		return b.record(tx, c, audit.Record{Kind: audit.KindViewed, Actor: actor, Decision: "identify"})
	}); err != nil {
		return nil, err
	}
	return &Identity{
		Case: id, PatientName: source.String(dicom.PatientName), PatientID: source.String(dicom.PatientID),
		Issuer: source.String(dicom.IssuerOfPatientID), BirthDate: source.String(dicom.PatientBirthDate),
		AccessionNumber: source.String(dicom.AccessionNumber), StudyDate: source.String(dicom.StudyDate),
		StudyInstanceUID: source.UID(dicom.StudyInstanceUID), SOPInstanceUID: source.UID(dicom.SOPInstanceUID),
	}, nil
}

// Describe writes a case for a person at a terminal.
func Describe(c *vigie.Case) string {
	var s strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&s, "%-10s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("case", "%s", c.ID)
	line("state", "%s", StateText(c))
	line("patient", "%s (pseudonym)", c.Patient)
	line("study", "%s (pseudonym)", c.Study)
	line("received", "%s by %s %s", c.Received.Local().Format(time.DateTime), c.Source.Protocol, c.Source.AETitle)
	if c.Source.Subject != "" {
		line("sender", "%s", c.Source.Subject)
	}
	line("input", "%s", c.Input)
	if f := c.Finding; f != nil {
		line("model", "%s %s %s", f.ModelName, f.ModelVersion, f.Model)
		for _, p := range f.Predictions {
			sign := "negative"
			if p.Positive {
				sign = "positive"
			}
			line("finding", "%-20s %.3f  %s (operating point %.3f)", p.Label, p.Probability, sign, p.Threshold)
		}
		for _, set := range f.Sets {
			line("set", "%s", setText(set))
		}
		if e := f.Explanation; e != nil {
			line("map", "%s", MapText(f))
			for _, text := range []string{e.Label().English, e.Text.English, e.Label().French, e.Text.French} {
				if text != "" {
					line("", "%s", text)
				}
			}
			if t := e.Tests; t != nil {
				for _, scores := range testLines(t) {
					line("", "%s", scores)
				}
			}
			if len(e.Rejected) > 0 {
				line("", "passed over, as they explain nothing of this model: %s", strings.Join(e.Rejected, ", "))
			}
		}
		for i, text := range certificateLines(f) {
			line(map[bool]string{true: "certificate"}[i == 0], "%s", text)
		}
		for _, g := range f.Guards {
			line("guard", "%-20s p = %.3g%s", g.Guard, g.PValue, map[bool]string{true: "  ALARM"}[g.Alarm])
			if g.Reason != nil && !g.Alarm {
				line("", "%s", g.Reason.Text.English)
			}
		}
	}
	if v := c.Verdict; v != nil {
		line("triage", "%s", v.Decision)
		for _, r := range v.Reasons {
			detail := ""
			if r.Detail != "" {
				detail = " (" + r.Detail + ")"
			}
			line("", "%s: %s%s", r.Code, r.Text.English, detail)
		}
	}
	if d := c.Decision; d != nil {
		line("decision", "%s by %s at %s", d.Action, d.Actor, d.Time.Local().Format(time.DateTime))
		if len(d.Labels) > 0 {
			line("", "labels: %s", strings.Join(d.Labels, ", "))
		}
		if d.Note != "" {
			line("", "note: %s", d.Note)
		}
	}
	for _, r := range c.Refusals {
		line("delivery", "%s", RefusalText(r))
	}
	var stages []string
	for _, st := range c.Stages {
		stages = append(stages, fmt.Sprintf("%s %v", st.Name, st.Duration.Round(10*time.Microsecond)))
	}
	if len(stages) > 0 {
		line("times", "%s", strings.Join(stages, " · "))
	}
	return s.String()
}

// testLines writes the scores behind the verdict on a map.
func testLines(t *vigie.MapTests) (lines []string) {
	if t.Insertion != nil && t.Deletion != nil && t.RandomMean != nil {
		lines = append(lines, fmt.Sprintf("insertion %.3f, deletion %.3f, difference %+.3f; of random maps %+.3f (compared with: %s)",
			*t.Insertion, *t.Deletion, *t.Insertion-*t.Deletion, *t.RandomMean, t.Background))
	}
	if t.Similarity != nil {
		lines = append(lines, fmt.Sprintf("on this model: rank correlation with maps of randomised weights %+.2f ± %.2f over %d images", *t.Similarity, t.SimilarityError, t.ModelImages))
	}
	if t.ModelExplained != nil {
		lines = append(lines, fmt.Sprintf("on this model: better than random maps on %d of %d images", *t.ModelExplained, t.ModelImages))
	}
	return lines
}
