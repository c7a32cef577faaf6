package gateway

import (
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/store"
)

// maxPriors bounds how many earlier cases of a patient are opened for one case:
// the latest are what counts.
const maxPriors = 64

// checkPriors compares an answer with what earlier studies of the same pseudonym
// said, where the manifest has a rule for it. The enclave holds no state, so that
// only the gateway can. about is the original's data set.
func (g *Gateway) checkPriors(ctx context.Context, c *vigie.Case, predictions []vigie.Prediction, about *dicom.DataSet) ([]vigie.Reason, error) {
	days := g.model.Manifest.PriorDays()
	if days == 0 || len(predictions) == 0 {
		return nil, nil
	}
	priors, unreadable, err := g.priors(ctx, c, about, days)
	if err != nil {
		return nil, err
	}
	reasons := g.model.Manifest.CheckPriors(predictions, priors)
	if unreadable {
		reasons = append(reasons, vigie.Reason{Code: vigie.ReasonPrior, Detail: "an earlier study cannot be opened", Text: vigie.Text{
			English: "The answer could not be compared with an earlier study of this patient.",
			French:  "La réponse n’a pas pu être comparée à un examen antérieur de ce patient."}})
	}
	return reasons, nil
}

// priors gathers what other studies of a case's patient said of the same part of
// the body and the same side, up to so many days before. unreadable: one of them
// cannot be opened, which trying again would not change.
func (g *Gateway) priors(ctx context.Context, c *vigie.Case, about *dicom.DataSet, days int) (priors []model.Prior, unreadable bool, err error) {
	type opened struct {
		vigie.Case
		object *store.Object
		sealed map[string][]byte
	}
	var cases []opened
	err = g.store.View(ctx, func(tx *store.Tx) error {
		cases = nil
		// An earlier study may have been sent later, so the time of arrival only
		// bounds how many are looked at.
		all, err := tx.Cases(store.Filter{Patient: c.Patient, Limit: maxPriors, States: []vigie.State{
			vigie.Released, vigie.InReview, vigie.Reviewed, vigie.Delivered}})
		if err != nil {
			return err
		}
		for _, other := range all {
			if other.ID == c.ID || other.Study == c.Study {
				continue
			}
			if erased, err := erasedAt(tx, other.ID); err != nil {
				return err
			} else if !erased.IsZero() {
				continue
			}
			o := opened{Case: other, sealed: map[string][]byte{}}
			for _, name := range []string{valueFinding, valueDecision} {
				switch value, err := tx.Value(other.ID, name); {
				case err == nil:
					o.sealed[name] = value
				case !errors.Is(err, store.ErrNotFound):
					return err
				}
			}
			if len(o.sealed) == 0 {
				continue
			}
			objects, err := tx.Objects(store.ObjectFilter{Case: other.ID, Kind: kindReceived, Limit: 1})
			if err != nil {
				return err
			}
			if len(objects) > 0 {
				o.object = &objects[0]
				cases = append(cases, o)
			}
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	for i := range cases {
		o := &cases[i]
		header, err := g.openHeader(ctx, o.Patient, o.object)
		if err == nil {
			err = g.openValues(ctx, &o.Case, o.sealed)
		}
		if errors.Is(err, keys.ErrErased) {
			continue // between the two looks
		}
		if ctx.Err() != nil {
			return nil, false, ctx.Err()
		}
		if err != nil {
			g.logger.Error("an earlier study of a patient cannot be opened", "case", o.ID, "error", err)
			unreadable = true
			continue
		}
		before := dayOf(about, c.Received).Sub(dayOf(header, o.Received)).Hours() / 24
		answers := answersOf(&o.Case, g.model.Digest)
		if len(answers) == 0 || before < 0 || before > float64(days) || !samePlace(about, header) {
			continue
		}
		priors = append(priors, model.Prior{Days: before, Answers: answers})
	}
	return priors, unreadable, nil
}

// dayOf is the day of a study, or, where the image does not say, of its arrival.
func dayOf(d *dicom.DataSet, received time.Time) time.Time {
	if day, known := d.Date(dicom.StudyDate); known {
		return day
	}
	return received.UTC().Truncate(24 * time.Hour)
}

// samePlace reports whether two images may show the same place: a finding on
// the left says nothing about the right.
func samePlace(a, b *dicom.DataSet) bool {
	differ := func(x, y string) bool { return x != "" && y != "" && x != y }
	return !differ(model.Side(a), model.Side(b)) && !differ(a.String(dicom.BodyPartExamined), b.String(dicom.BodyPartExamined))
}

// answersOf is what a case said in the end: what a person decided, or else the
// model. A rejected case said nothing.
func answersOf(c *vigie.Case, current vigie.ModelDigest) (answers []model.PriorAnswer) {
	if c.Decision != nil && c.Decision.Action == ActionReject {
		return nil
	}
	if c.Decision != nil && c.Decision.Action == ActionOverride {
		for _, label := range c.Decision.Choices {
			answers = append(answers, model.PriorAnswer{Label: label.Name, Code: label.Code, Probability: math.NaN(), Positive: slices.Contains(c.Decision.Labels, label.Name)})
		}
		return answers
	}
	if c.Finding == nil {
		return nil
	}
	for _, p := range c.Finding.Predictions {
		a := model.PriorAnswer{Label: p.Label, Code: p.Code, Positive: p.Positive, Probability: p.Probability}
		if c.Finding.Model != current {
			a.Probability = math.NaN()
		}
		answers = append(answers, a)
	}
	return answers
}
