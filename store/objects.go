package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/vigie/vigie"
)

// Object is one stored DICOM object: a row here, its encrypted bytes in a blob.
type Object struct {
	ID             int64             // set by AddObject
	Case           vigie.CaseID      // the case it belongs to
	Kind           string            // "received", "report", …: the caller's
	Study          vigie.StudyUID    // pseudonymised UIDs, the keys to find it by
	Series         vigie.SeriesUID   //
	Instance       vigie.InstanceUID //
	Digest         vigie.Digest      // of the bytes before encryption
	Blob           BlobName          // where the encrypted bytes lie
	Size           int64             // bytes before encryption
	SOPClass       string            //
	TransferSyntax string            //
	Sealed         []byte            // what identifies the patient and the blob's key, encrypted by the caller
	Added          time.Time         // set by AddObject
}

// AddObject records an object. It returns ErrExists if this instance was
// recorded with the same digest: it was sent again, and the caller removes the
// new blob. The same instance with another digest is kept beside the first.
func (tx *Tx) AddObject(o *Object) error {
	if o.Case == "" || o.Instance == "" || o.Kind == "" || o.Digest == "" {
		return errors.New("store: adding an object without case, kind, instance or digest")
	}
	sealed := o.Sealed
	if sealed == nil {
		sealed = []byte{}
	}
	o.Added = tx.Now()
	err := tx.QueryRow([]any{&o.ID}, `INSERT INTO objects
		(case_id, kind, study, series, instance, digest, blob, size, sop_class, transfer_syntax, sealed, added)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING RETURNING id`,
		string(o.Case), o.Kind, string(o.Study), string(o.Series), string(o.Instance), string(o.Digest),
		string(o.Blob), o.Size, o.SOPClass, o.TransferSyntax, sealed, micros(o.Added))
	if errors.Is(err, ErrNotFound) {
		err = ErrExists
	}
	if err != nil {
		return fmt.Errorf("store: adding instance %s to case %s: %w", o.Instance, o.Case, err)
	}
	return nil
}

// ObjectFilter selects objects. Empty fields select everything.
type ObjectFilter struct {
	Case     vigie.CaseID
	Kind     string
	Study    vigie.StudyUID
	Series   vigie.SeriesUID
	Instance vigie.InstanceUID
	Limit    int // zero: 10000

	NewestFirst bool // what was added last comes first, and is within the limit
}

// Objects lists the objects that filter selects, in the order they were added
// or the opposite one.
func (tx *Tx) Objects(filter ObjectFilter) ([]Object, error) {
	var w where
	w.equal("case_id", string(filter.Case))
	w.equal("kind", filter.Kind)
	w.equal("study", string(filter.Study))
	w.equal("series", string(filter.Series))
	w.equal("instance", string(filter.Instance))
	order := ""
	if filter.NewestFirst {
		order = " DESC"
	}
	limit := filter.Limit
	if limit <= 0 {
		limit = 10000
	}
	var found []Object
	err := tx.Query(func(scan func(...any) error) error {
		var o Object
		var added int64
		err := scan(&o.ID, &o.Case, &o.Kind, &o.Study, &o.Series, &o.Instance, &o.Digest, &o.Blob, &o.Size,
			&o.SOPClass, &o.TransferSyntax, &o.Sealed, &added)
		o.Added = fromMicros(added)
		found = append(found, o)
		return err
	}, fmt.Sprintf(`SELECT id, case_id, kind, study, series, instance, digest, blob, size, sop_class, transfer_syntax, sealed, added
		FROM objects%s ORDER BY id%s LIMIT %d`, &w, order, limit), w.args...)
	if err != nil {
		return nil, fmt.Errorf("store: listing objects: %w", err)
	}
	return found, nil
}

// ObjectByInstance returns the first object recorded under an instance UID, or
// ErrNotFound. Compare its digest to know whether the same bytes came again.
func (tx *Tx) ObjectByInstance(instance vigie.InstanceUID) (*Object, error) {
	found, err := tx.Objects(ObjectFilter{Instance: instance, Limit: 1})
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("store: finding instance %s: %w", instance, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return &found[0], nil
}
