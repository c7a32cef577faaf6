package gateway

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/store"
)

// Kinds of stored objects.
const (
	kindReceived = "received" // what a hospital system sent
	kindReport   = "report"   // a structured report of ours
	kindOverlay  = "overlay"  // a secondary capture of ours
)

// Names of sealed values of a case.
const (
	valueReferrals = "referrals" // reasons that intake found, JSON
	valueFinding   = "finding"   // the signed finding and its evidence, JSON
	valueVerdict   = "verdict"   // triage's verdict with its full sentences, JSON
	valueDecision  = "decision"  // what a person decided, JSON
	valueJoin      = "join"      // present on a case that further objects of its series join
)

// intakeOutcome is what became of a received object.
type intakeOutcome struct {
	Case      vigie.CaseID
	Duplicate bool // the same object was kept before; nothing was added
	Joined    bool // it became part of an existing case of its series
}

func (o intakeOutcome) label() string {
	switch {
	case o.Duplicate:
		return "duplicate"
	case o.Joined:
		return "joined"
	default:
		return "case"
	}
}

// errOtherStudy refuses an object that was stored to the resource of a study
// that it does not belong to (PS3.18 section 10.5).
var errOtherStudy = errors.New("gateway: the object belongs to another study than the one it was sent to")

// receive takes a complete object out of its spool. When it returns nil, the
// sealed bytes, the case, its audit record and its job are durable, and only
// then may the sender be told so. On an error nothing is left but what the
// caller's Discard removes.
func (g *Gateway) receive(ctx context.Context, source vigie.Source, s *spool, said announced) (intakeOutcome, error) {
	watch := &stopwatch{last: s.started}
	if err := s.finish(); err != nil {
		return intakeOutcome{}, err
	}
	watch.lap("receive")

	c, f, join, err := g.examine(ctx, source, s, said)
	if err != nil {
		return intakeOutcome{}, err
	}
	referrals := f.unreadable
	_, content := s.digest.sums(f.transferSyntax)
	watch.lap("read")

	// An erasure between sealing and committing destroys the key that was used;
	// the second try gets a new one.
	for attempt := 0; ; attempt++ {
		outcome, err := g.commit(ctx, c, f, s, content, referrals, join, watch)
		if errors.Is(err, keys.ErrErased) && attempt == 0 {
			g.ring.Forget(c.Patient)
			continue
		}
		if err != nil {
			// A row may refer to the blob: the next sweep knows.
			s.kept = errors.Is(err, store.ErrUncertain)
			return intakeOutcome{}, err
		}
		s.kept = !outcome.Duplicate
		g.metrics.received.WithLabelValues(source.Protocol, outcome.label()).Inc()
		g.metrics.bytes.WithLabelValues(source.Protocol).Add(float64(s.size))
		for _, stage := range watch.stages {
			g.metrics.stage(stage)
		}
		g.logger.Info("object received", "case", outcome.Case, "outcome", outcome.label(), "protocol", source.Protocol,
			"bytes", s.size, "took", time.Since(s.started).Round(time.Millisecond))
		return outcome, nil
	}
}

// examine reads who and what an object is about. join tells that it lies
// outside the manifest as a whole series does. A header can be large, and
// there may be many associations: only so many are in memory at once, and what
// is not kept of one is dropped before the next begins.
func (g *Gateway) examine(ctx context.Context, source vigie.Source, s *spool, said announced) (c vigie.Case, f *facts, join bool, err error) {
	select {
	case g.examining <- struct{}{}:
		defer func() { <-g.examining }()
	case <-ctx.Done():
		return c, nil, false, fmt.Errorf("gateway: reading a received object: %w", ctx.Err())
	}
	if f, err = g.readSpool(s, said); err != nil {
		return c, nil, false, err
	}
	// An object that names no study is kept like any other that is damaged.
	if said.target != "" && f.study != "" && f.study != said.target {
		return c, nil, false, errOtherStudy
	}
	input, _ := s.digest.sums(f.transferSyntax)
	c = vigie.Case{
		ID:       store.NewCaseID(),
		Patient:  g.patientOf(f, input),
		Study:    vigie.StudyUID(g.profile.UID(f.study)),
		Series:   vigie.SeriesUID(g.profile.UID(f.series)),
		Instance: vigie.InstanceUID(g.profile.UID(cmp.Or(f.sopInstance, string(input)))),
		State:    vigie.Received,
		Source:   source,
		Input:    input,
	}
	if len(f.unreadable) == 0 {
		for _, r := range g.model.Manifest.Check(f.header) {
			join = join || model.Blocking(r) && (r.Code == vigie.ReasonModality || r.Code == vigie.ReasonBodyPart)
		}
	}
	if f.header != nil {
		dropUnkept(f.header)
	}
	return c, f, join, nil
}

// readSpool reads the attributes back from the sealed blob.
func (g *Gateway) readSpool(s *spool, said announced) (*facts, error) {
	blob, err := g.store.Blobs().Open(s.file.Name())
	if err != nil {
		return nil, fmt.Errorf("gateway: reading back a received object: %w", err)
	}
	defer blob.Close()
	plain, err := keys.NewReader(blob, s.key, objectAAD(s.file.Name()))
	if err != nil {
		return nil, fmt.Errorf("gateway: reading back a received object: %w", err)
	}
	return readFacts(plain, said)
}

// patientOf is the pseudonym of the object's patient. An object that names
// nobody gets a pseudonym of its own, so that strangers are not taken for one
// and the same person.
func (g *Gateway) patientOf(f *facts, input vigie.Digest) vigie.PatientPseudonym {
	if f.header != nil && (f.patientID != "" || f.sopInstance != "" || f.study != "") {
		return g.profile.Patient(f.header)
	}
	return g.profile.Pseudonym("vigie: nothing is known of the patient of", string(input))
}

func (g *Gateway) commit(ctx context.Context, c vigie.Case, f *facts, s *spool, content vigie.Digest,
	referrals []vigie.Reason, join bool, watch *stopwatch) (outcome intakeOutcome, err error) {
	header, err := f.sealableHeader()
	if err != nil {
		return outcome, err
	}
	row, err := g.ring.Seal(ctx, c.Patient, objectSecret{key: s.key, header: header}.encode(), rowAAD(s.file.Name()))
	if err != nil {
		return outcome, fmt.Errorf("gateway: sealing the key of an object: %w", err)
	}
	object := store.Object{
		Kind: kindReceived, Study: c.Study, Series: c.Series, Instance: c.Instance, Digest: content,
		Blob: s.file.Name(), Size: s.size, SOPClass: f.sopClass, TransferSyntax: f.transferSyntax, Sealed: row,
	}
	watch.lap("seal")
	c.Stages = watch.stages

	err = g.store.Update(ctx, func(tx *store.Tx) error {
		outcome = intakeOutcome{Case: c.ID}
		object.Case = c.ID
		refer := referrals
		if err := tx.CheckSealed(c.Patient, row); err != nil {
			return err
		}
		switch known, err := tx.ObjectByInstance(c.Instance); {
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return err
		case known.Digest == content:
			outcome = intakeOutcome{Case: known.Case, Duplicate: true}
			resent := vigie.Case{ID: known.Case, Patient: c.Patient}
			return g.record(tx, &resent, audit.Record{Kind: audit.KindResent, Source: c.Source, Input: c.Input, Instance: c.Instance})
		default:
			refer = append(refer[:len(refer):len(refer)], reason(ReasonConflict, ""))
		}
		if join && len(refer) == 0 {
			first, err := g.joinable(tx, c.Patient, c.Series)
			if err != nil {
				return err
			}
			if first != nil {
				outcome = intakeOutcome{Case: first.ID, Joined: true}
				object.Case = first.ID
				if err := tx.AddObject(&object); err != nil {
					return err
				}
				return g.record(tx, first, audit.Record{Kind: kindJoined, Source: c.Source, Input: c.Input, Instance: c.Instance})
			}
		}
		if err := tx.CreateCase(c); err != nil {
			return err
		}
		switch err := tx.AddObject(&object); {
		case errors.Is(err, store.ErrExists):
			// The very same bytes came a third time after a conflict.
			return errSameAgain
		case err != nil:
			return err
		}
		if join {
			if err := tx.PutValue(c.ID, valueJoin, []byte{1}); err != nil {
				return err
			}
		}
		if len(refer) > 0 {
			if err := putReferrals(tx, c.ID, refer); err != nil {
				return err
			}
		}
		if err := g.record(tx, &c, audit.Record{
			Kind: audit.KindReceived, Source: c.Source, Input: c.Input, Instance: c.Instance, Reasons: reasonCodes(refer), To: vigie.Received,
		}); err != nil {
			return err
		}
		_, err := tx.Enqueue(diagnoseArgs{Case: c.ID}, diagnoseOptions())
		return err
	})
	if errors.Is(err, errSameAgain) {
		return g.duplicateOf(ctx, c.Instance, content)
	}
	return outcome, err
}

var errSameAgain = errors.New("the same object was received before")

// duplicateOf finds the case that already holds this content.
func (g *Gateway) duplicateOf(ctx context.Context, instance vigie.InstanceUID, content vigie.Digest) (outcome intakeOutcome, err error) {
	err = g.store.View(ctx, func(tx *store.Tx) error {
		objects, err := tx.Objects(store.ObjectFilter{Instance: instance})
		for _, o := range objects {
			if o.Digest == content {
				outcome = intakeOutcome{Case: o.Case, Duplicate: true}
				return nil
			}
		}
		return errors.Join(err, fmt.Errorf("gateway: looking for an object received before: %w", store.ErrNotFound))
	})
	return outcome, err
}

// joinable returns the case of the series that further objects outside the
// manifest join, so that a CT of 300 slices sent to a chest model is one
// review and not 300. A case that somebody has already decided takes no more,
// and a case of one patient takes nothing of another: it is sealed under one key.
func (g *Gateway) joinable(tx *store.Tx, patient vigie.PatientPseudonym, series vigie.SeriesUID) (*vigie.Case, error) {
	if series == "" {
		return nil, nil
	}
	cases, err := tx.Cases(store.Filter{
		Patient: patient, Series: series, States: []vigie.State{vigie.Received, vigie.Diagnosed, vigie.InReview}, OldestFirst: true, Limit: 10,
	})
	if err != nil {
		return nil, err
	}
	for i := range cases {
		switch _, err := tx.Value(cases[i].ID, valueJoin); {
		case err == nil:
			return &cases[i], nil
		case !errors.Is(err, store.ErrNotFound):
			return nil, err
		}
	}
	return nil, nil
}
