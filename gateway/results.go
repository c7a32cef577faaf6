package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/png"
	"slices"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/report"
	"github.com/vigie/vigie/store"
)

const (
	manufacturer = "Vigie"
	reportSeries = 9901 // series numbers of what Vigie adds to a study
	imageSeries  = 9902
)

// buildResults makes what is delivered for a case: a structured report, and
// where the model's answer stands, the image with what the model looked at.
// UIDs and times come from the case, so that the same case gives the same
// objects.
func (g *Gateway) buildResults(ctx context.Context, c *vigie.Case) ([]result, error) {
	source, err := g.sourceOf(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := checkChoices(c); err != nil {
		return nil, err
	}
	sr, err := report.StructuredReport(source, g.reportOf(c))
	if errors.Is(err, report.ErrSource) {
		g.logger.Warn("a case has no study to report into", "case", c.ID)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	results := []result{{kindReport, sr}}
	overridden := c.Decision != nil && c.Decision.Action == ActionOverride
	if c.Finding == nil || len(c.Finding.Predictions) == 0 || overridden {
		return results, nil
	}
	picture, err := g.drawOverlay(ctx, c)
	if errors.Is(err, errNoPicture) {
		// Trying again would keep the report back for ever.
		g.logger.Error("a case is reported without its overlay", "case", c.ID, "error", err)
		return results, nil
	}
	if err != nil {
		return nil, err
	}
	shown := mapRemarks(c.Finding)
	capture, err := report.SecondaryCapture(source, picture, report.Capture{
		SeriesUID: ResultUID(c.ID, c.Model, RoleOverlaySeries), InstanceUID: ResultUID(c.ID, c.Model, RoleOverlay),
		SeriesNumber: imageSeries, InstanceNumber: 1, Time: contentTime(c), Model: g.reportedModel(c),
		SeriesDescription: shown.series, Derivation: shown.derivation,
		Comment: report.Text{
			English: "AI result – not for diagnosis without review by a physician" + shown.comment.English,
			French:  "Résultat d’IA – pas de diagnostic sans vérification par un médecin" + shown.comment.French},
	})
	if err != nil {
		return nil, err
	}
	return append(results, result{kindOverlay, capture}), nil
}

// sourceOf returns the original attributes of the image a case is about.
func (b *Casebook) sourceOf(ctx context.Context, c *vigie.Case) (*dicom.DataSet, error) {
	object, err := b.firstObject(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	return b.openHeader(ctx, c.Patient, object)
}

// firstObject returns the object that a case was made for.
func (b *Casebook) firstObject(ctx context.Context, id vigie.CaseID) (object *store.Object, err error) {
	err = b.store.View(ctx, func(tx *store.Tx) error {
		objects, err := tx.Objects(store.ObjectFilter{Case: id, Kind: kindReceived, Limit: 1})
		if err == nil && len(objects) == 0 {
			if err := notErased(tx, id); err != nil {
				return err
			}
			err = fmt.Errorf("gateway: case %s has no object: %w", id, store.ErrNotFound)
		}
		if err == nil {
			object = &objects[0]
		}
		return err
	})
	return object, err
}

// contentTime is when the content of a result came about: when a person
// decided, or else when the model answered. It never changes afterwards.
func contentTime(c *vigie.Case) time.Time {
	switch {
	case c.Decision != nil:
		return c.Decision.Time
	case c.Finding != nil:
		return c.Finding.Time
	default:
		return c.Received
	}
}

func (b *Casebook) reportedModel(c *vigie.Case) report.Model {
	m := report.Model{Manufacturer: manufacturer, DeviceUID: b.profile.UID("vigie gateway of this site")}
	switch {
	case c.Finding != nil:
		m.Name, m.Version, m.Digest = c.Finding.ModelName, c.Finding.ModelVersion, string(c.Finding.Model)
	case b.model != nil:
		m.Name, m.Version, m.Digest = b.model.Manifest.Name, b.model.Manifest.Version, string(b.model.Digest)
	}
	return m
}

// reportOf says what the structured report of a case says.
func (g *Gateway) reportOf(c *vigie.Case) report.Result {
	r := report.Result{
		SeriesUID: ResultUID(c.ID, c.Model, RoleReportSeries), InstanceUID: ResultUID(c.ID, c.Model, RoleReport),
		SeriesNumber: reportSeries, InstanceNumber: 1, Time: contentTime(c), Model: g.reportedModel(c),
		Remarks: []report.Text{{
			English: "AI result – for review by a physician. Not for diagnosis without review.",
			French:  "Résultat d’IA – à vérifier par un médecin. Pas de diagnostic sans vérification."}},
	}
	if d := c.Decision; d != nil {
		r.Reviewer = &report.Reviewer{Name: d.Actor, Organization: g.config.Site}
	}
	if c.Decision != nil && c.Decision.Action == ActionOverride {
		for _, label := range c.Decision.Choices {
			r.Findings = append(r.Findings, report.Finding{
				Code: reportCode(label.Code), French: label.Code.French,
				TrackingUID: ResultUID(c.ID, c.Model, "finding "+label.Name),
				Positive:    slices.Contains(c.Decision.Labels, label.Name), ByPerson: true,
			})
		}
		r.Remarks = append(r.Remarks, report.Text{
			English: "A physician replaced the model's answer.",
			French:  "Un médecin a remplacé la réponse du modèle."})
	} else if c.Finding != nil {
		for _, p := range c.Finding.Predictions {
			r.Findings = append(r.Findings, report.Finding{
				Code: reportCode(p.Code), French: p.Code.French, TrackingUID: ResultUID(c.ID, c.Model, "finding "+p.Label),
				Probability: p.Probability, Threshold: p.Threshold, Positive: p.Positive,
			})
		}
		r.Remarks = append(append(r.Remarks, setRemarks(c.Finding)...), mapRemarks(c.Finding).report...)
		r.Remarks = append(r.Remarks, certificateRemarks(c.Finding)...)
	}
	if c.Verdict != nil {
		for _, reason := range c.Verdict.Reasons {
			r.Remarks = append(r.Remarks, report.Text{English: reason.Text.English, French: reason.Text.French})
		}
	}
	return r
}

// checkChoices holds a report back that would leave out what a person found.
func checkChoices(c *vigie.Case) error {
	if c.Decision == nil {
		return nil
	}
	for _, label := range c.Decision.Labels {
		if !slices.ContainsFunc(c.Decision.Choices, func(l vigie.Label) bool { return l.Name == label }) {
			return fmt.Errorf("gateway: reporting case %s: the decision names label %q without its code: it was sealed by an earlier version, report the case by hand", c.ID, label)
		}
	}
	return nil
}

func reportCode(c vigie.Code) report.Code {
	return report.Code{Value: c.Value, Scheme: c.Scheme, Meaning: c.Meaning}
}

// errNoPicture marks an image that no try can draw.
var errNoPicture = errors.New("the image cannot be drawn")

// drawOverlay draws the image of a case with the model's relevance map.
func (b *Casebook) drawOverlay(ctx context.Context, c *vigie.Case) (image.Image, error) {
	object, err := b.firstObject(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	data, err := b.readObject(ctx, c.Patient, object)
	if err != nil {
		return nil, err
	}
	file, err := dicom.Parse(bytes.NewReader(data), dicom.Limits{})
	if err != nil {
		return nil, fmt.Errorf("gateway: drawing the overlay of case %s: %w: %w", c.ID, errNoPicture, err)
	}
	luminance, err := file.Luminance(0)
	if err != nil {
		return nil, fmt.Errorf("gateway: drawing the overlay of case %s: %w: %w", c.ID, errNoPicture, err)
	}
	f := c.Finding
	caption := report.Caption{Model: f.ModelName + " " + f.ModelVersion}
	var heat *report.Heat
	target := ""
	if e := f.Explanation; e != nil {
		target = e.Target
		if e.Shown() {
			heat = &report.Heat{Rows: e.Rows, Columns: e.Columns, Values: e.Map}
		}
	}
	shown := mapRemarks(f)
	caption.Warning, caption.Remarks = shown.warning, shown.caption
	for i, p := range f.Predictions {
		if p.Label == target || target == "" && i == len(f.Predictions)-1 {
			caption.Label = report.Text{English: p.Code.Meaning, French: p.Code.French}
			caption.Probability, caption.Threshold, caption.Positive = p.Probability, p.Threshold, p.Positive
		}
	}
	picture, err := report.Overlay(luminance, heat, caption)
	if err != nil {
		return nil, fmt.Errorf("gateway: drawing the overlay of case %s: %w: %w", c.ID, errNoPicture, err)
	}
	return picture, nil
}

// ErrNotAnalysed is returned for what only a case with a model's answer has.
var ErrNotAnalysed = errors.New("the model did not analyse it")

// notAnalysed says why a case has no answer and what a person can do.
func notAnalysed(c *vigie.Case) error {
	if c.State == vigie.Received {
		return fmt.Errorf("%w yet: try again when vigie case show %s says otherwise", ErrNotAnalysed, c.ID)
	}
	why := ""
	if c.Verdict != nil {
		for _, r := range c.Verdict.Reasons {
			why += " (" + string(r.Code) + ")"
		}
	}
	return fmt.Errorf("%w%s, so there is no relevance map to draw: vigie case identify %s says where the image lies in the PACS, and override or reject decides the case", ErrNotAnalysed, why, c.ID)
}

// Overlay returns the image of a case with the model's relevance map as a PNG,
// for the named person, and records that it was shown.
func (b *Casebook) Overlay(ctx context.Context, id vigie.CaseID, actor string) ([]byte, error) {
	c, err := b.Case(ctx, id)
	if err != nil {
		return nil, err
	}
	if !c.Erased.IsZero() {
		return nil, errErased(id)
	}
	if c.Finding == nil || len(c.Finding.Predictions) == 0 {
		return nil, fmt.Errorf("gateway: drawing the overlay of case %s: %w", id, notAnalysed(c))
	}
	picture, err := b.drawOverlay(ctx, c)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := png.Encode(&out, picture); err != nil {
		return nil, fmt.Errorf("gateway: writing the overlay of case %s: %w", id, err)
	}
	err = b.store.Update(ctx, func(tx *store.Tx) error {
		return b.record(tx, c, audit.Record{Kind: audit.KindViewed, Actor: actor, Decision: "export-overlay", Output: vigie.DigestOf(out.Bytes())})
	})
	return out.Bytes(), err
}
