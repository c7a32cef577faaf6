package gateway

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dicomweb"
	"github.com/vigie/vigie/store"
)

// archive shows over DICOMweb what Vigie produced: reports and overlays, with
// the identity of the study they belong to. What was received is not served:
// the PACS has it.
type archive struct{ book *Casebook }

var _ dicomweb.Archive = (*archive)(nil)

// Instances implements dicomweb.Archive. Studies are found by their keyed
// pseudonym; our own series and instance UIDs are kept as they are.
func (a *archive) Instances(ctx context.Context, peer dicomweb.Peer, scope dicomweb.Scope) iter.Seq2[dicomweb.Instance, error] {
	return func(yield func(dicomweb.Instance, error) bool) {
		objects, patients, err := a.list(ctx, scope)
		if err != nil {
			yield(dicomweb.Instance{}, err)
			return
		}
		for i := range objects {
			instance, err := a.instance(ctx, peer, patients[objects[i].Case], &objects[i])
			if errors.Is(err, keys.ErrErased) {
				continue // one patient's erasure hides nobody else
			}
			if !yield(instance, err) || err != nil {
				return
			}
		}
	}
}

// list finds the objects of a scope, those of a series side by side.
func (a *archive) list(ctx context.Context, scope dicomweb.Scope) (objects []store.Object, patients map[vigie.CaseID]vigie.PatientPseudonym, err error) {
	patients = map[vigie.CaseID]vigie.PatientPseudonym{}
	err = a.book.store.View(ctx, func(tx *store.Tx) error {
		for _, kind := range []string{kindReport, kindOverlay} {
			found, err := tx.Objects(store.ObjectFilter{
				Kind: kind, Study: vigie.StudyUID(a.book.profile.UID(scope.Study)),
				Series: vigie.SeriesUID(scope.Series), Instance: vigie.InstanceUID(scope.Instance),
				NewestFirst: true, // a search of everything looks at so many, and people look for today's
			})
			if err != nil {
				return err
			}
			objects = append(objects, found...)
		}
		for _, o := range objects {
			if _, known := patients[o.Case]; known {
				continue
			}
			c, err := tx.Case(o.Case)
			if err != nil {
				return err
			}
			patients[o.Case] = c.Patient
		}
		return nil
	})
	slices.SortFunc(objects, func(a, b store.Object) int {
		return cmp.Or(cmp.Compare(a.Study, b.Study), cmp.Compare(a.Series, b.Series), cmp.Compare(a.ID, b.ID))
	})
	return objects, patients, err
}

func (a *archive) instance(ctx context.Context, peer dicomweb.Peer, patient vigie.PatientPseudonym, o *store.Object) (dicomweb.Instance, error) {
	header, err := a.book.openHeader(ctx, patient, o)
	if err != nil {
		return dicomweb.Instance{}, err
	}
	return dicomweb.Instance{
		Header: header, TransferSyntax: o.TransferSyntax,
		Open: func(ctx context.Context) (io.ReadCloser, error) {
			if err := a.viewed(ctx, peer, patient, o); err != nil {
				return nil, err
			}
			return a.book.openObject(ctx, patient, o)
		},
	}, nil
}

// viewed records, before a result leaves with an identity, to whom it goes.
func (a *archive) viewed(ctx context.Context, peer dicomweb.Peer, patient vigie.PatientPseudonym, o *store.Object) error {
	return a.book.store.Update(ctx, func(tx *store.Tx) error {
		return a.book.record(tx, &vigie.Case{ID: o.Case, Patient: patient}, audit.Record{
			Kind: audit.KindViewed, Source: webSource(peer), Instance: o.Instance, Output: o.Digest, Decision: "retrieve",
		})
	})
}

// disclosed records, before identities leave in the answer to a query, to whom
// they go and how many: neither what was asked nor what was answered.
func (a *archive) disclosed(ctx context.Context, peer dicomweb.Peer, d dicomweb.Disclosure) error {
	return a.book.store.Update(ctx, func(tx *store.Tx) error {
		return a.book.record(tx, nil, audit.Record{
			Kind: audit.KindViewed, Source: webSource(peer), Decision: fmt.Sprintf("%s: %d", d.Kind, d.Count),
		})
	})
}

// webSource is a peer of DICOMweb as the log names it.
func webSource(peer dicomweb.Peer) vigie.Source {
	source := vigie.Source{Protocol: "dicomweb"}
	if c := peer.Certificate; c != nil {
		source.Certificate, source.Subject = certificateDigest(c), certificateSubject(c)
	}
	return source
}

// result is one object that Vigie made for a case, ready to be kept.
type result struct {
	kind string
	file *dicom.File
}

// sealResult seals a result and makes its blob durable. The row is not
// recorded yet: that is the caller's transaction.
func (b *Casebook) sealResult(ctx context.Context, c *vigie.Case, r result) (_ store.Object, err error) {
	fail := func(err error) (store.Object, error) {
		return store.Object{}, fmt.Errorf("gateway: keeping the %s of case %s: %w", r.kind, c.ID, err)
	}
	var plain bytes.Buffer
	if err := r.file.Write(&plain); err != nil {
		return fail(err)
	}
	d := r.file.DataSet
	header, err := (&facts{
		announced: announced{sopClass: d.UID(dicom.SOPClassUID), sopInstance: d.UID(dicom.SOPInstanceUID)}, header: d,
	}).sealableHeader()
	if err != nil {
		return fail(err)
	}
	blob, err := b.store.Blobs().Create()
	if err != nil {
		return fail(err)
	}
	defer blob.Abort() // does nothing after Commit
	key := keys.NewKey()
	defer keys.Zero(key)
	row, err := b.ring.Seal(ctx, c.Patient, objectSecret{key: key, header: header}.encode(), rowAAD(blob.Name()))
	if err != nil {
		return fail(err)
	}
	sealed, err := keys.NewWriter(blob, key, objectAAD(blob.Name()))
	if err != nil {
		return fail(err)
	}
	if _, err := sealed.Write(plain.Bytes()); err != nil {
		return fail(err)
	}
	if err := sealed.Close(); err != nil {
		return fail(err)
	}
	if err := blob.Commit(); err != nil {
		return fail(err)
	}
	return store.Object{
		Case: c.ID, Kind: r.kind, Study: c.Study,
		Series: vigie.SeriesUID(d.UID(dicom.SeriesInstanceUID)), Instance: vigie.InstanceUID(d.UID(dicom.SOPInstanceUID)),
		Digest: vigie.DigestOf(plain.Bytes()), Blob: blob.Name(), Size: int64(plain.Len()),
		SOPClass: d.UID(dicom.SOPClassUID), TransferSyntax: r.file.TransferSyntax, Sealed: row,
	}, nil
}
