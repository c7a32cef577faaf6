package store

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/keys"
)

// NewCaseID returns a case id from 128 random bits.
func NewCaseID() vigie.CaseID {
	var random [16]byte
	rand.Read(random[:])
	return vigie.CaseID(strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(random[:])))
}

// A case's finding and a person's decision say something about a patient, so
// they are stored only as sealed values.
var errClear = errors.New("a finding or a decision would be stored in clear: seal it and use PutValue, and leave the field nil")

// CreateCase adds a case in state received. It returns ErrExists if the id is
// taken, and keys.ErrErased if the patient's data key was erased since it was
// used: forget it (keys.Ring.Forget), seal again, and retry.
//
// Finding and Decision must be nil: see PutValue.
func (tx *Tx) CreateCase(c vigie.Case) error {
	if err := checkCase(&c); err != nil {
		return fmt.Errorf("store: creating case %s: %w", c.ID, err)
	}
	if c.State != vigie.Received {
		return fmt.Errorf("store: creating case %s in state %q: a case begins as %q", c.ID, c.State, vigie.Received)
	}
	if err := tx.checkPatientKey(c.Patient); err != nil {
		return fmt.Errorf("store: creating case %s: %w", c.ID, err)
	}
	now := tx.Now()
	if c.Received.IsZero() {
		c.Received = now
	}
	source, err := json.Marshal(c.Source)
	if err != nil {
		return fmt.Errorf("store: creating case %s: %w", c.ID, err)
	}
	verdict, stages, err := caseJSON(&c)
	if err != nil {
		return fmt.Errorf("store: creating case %s: %w", c.ID, err)
	}
	n, err := tx.Exec(`INSERT INTO cases
		(id, patient, study, series, instance, state, source, model, input, received, updated, verdict, stages)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT DO NOTHING`,
		string(c.ID), string(c.Patient), string(c.Study), string(c.Series), string(c.Instance), string(c.State),
		string(source), string(c.Model), string(c.Input), micros(c.Received), micros(now), verdict, stages)
	if err != nil {
		return fmt.Errorf("store: creating case %s: %w", c.ID, err)
	}
	if n == 0 {
		return fmt.Errorf("store: creating case %s: %w", c.ID, ErrExists)
	}
	return nil
}

const caseColumns = "id, patient, study, series, instance, state, source, model, input, received, updated, verdict, stages"

func scanCase(scan func(...any) error) (vigie.Case, error) {
	var (
		c                 vigie.Case
		source            []byte
		verdict, stages   []byte
		received, updated int64
	)
	err := scan(&c.ID, &c.Patient, &c.Study, &c.Series, &c.Instance, &c.State,
		&source, &c.Model, &c.Input, &received, &updated, &verdict, &stages)
	if err != nil {
		return c, err
	}
	c.Received, c.Updated = fromMicros(received), fromMicros(updated)
	if err := json.Unmarshal(source, &c.Source); err != nil {
		return c, fmt.Errorf("reading the source of case %s: %w", c.ID, err)
	}
	if verdict != nil {
		if err := json.Unmarshal(verdict, &c.Verdict); err != nil {
			return c, fmt.Errorf("reading the verdict of case %s: %w", c.ID, err)
		}
	}
	if stages != nil {
		if err := json.Unmarshal(stages, &c.Stages); err != nil {
			return c, fmt.Errorf("reading the stages of case %s: %w", c.ID, err)
		}
	}
	return c, nil
}

// Case returns one case, without its sealed values, or ErrNotFound.
func (tx *Tx) Case(id vigie.CaseID) (*vigie.Case, error) { return tx.readCase(id, "") }

func (tx *Tx) readCase(id vigie.CaseID, lock string) (*vigie.Case, error) {
	var found *vigie.Case
	err := tx.Query(func(scan func(...any) error) error {
		c, err := scanCase(scan)
		found = &c
		return err
	}, "SELECT "+caseColumns+" FROM cases WHERE id = $1"+lock, string(id))
	if err == nil && found == nil {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("store: reading case %s: %w", id, err)
	}
	return found, nil
}

// Filter selects cases. Empty fields select everything.
type Filter struct {
	States   []vigie.State
	Patient  vigie.PatientPseudonym
	Study    vigie.StudyUID
	Series   vigie.SeriesUID
	Instance vigie.InstanceUID
	Since    time.Time // received at or after
	Before   time.Time // received before

	// After continues a listing: cases that follow this one in its order.
	After *vigie.Case

	// OldestFirst lists in the order of arrival; otherwise newest first.
	OldestFirst bool

	// Limit bounds the answer. Zero: 1000.
	Limit int
}

// Cases lists the cases that filter selects, without their sealed values.
func (tx *Tx) Cases(filter Filter) ([]vigie.Case, error) {
	where := filter.where()
	order, limit := "DESC", filter.Limit
	if filter.OldestFirst {
		order = "ASC"
	}
	if limit <= 0 {
		limit = 1000
	}
	var found []vigie.Case
	err := tx.Query(func(scan func(...any) error) error {
		c, err := scanCase(scan)
		found = append(found, c)
		return err
	}, fmt.Sprintf("SELECT %s FROM cases%s ORDER BY received %s, id %s LIMIT %d", caseColumns, where, order, order, limit), where.args...)
	if err != nil {
		return nil, fmt.Errorf("store: listing cases: %w", err)
	}
	return found, nil
}

func (f *Filter) where() *where {
	var w where
	if len(f.States) > 0 {
		states := make([]any, len(f.States))
		for i, state := range f.States {
			states[i] = string(state)
		}
		marks := strings.TrimSuffix(strings.Repeat("?, ", len(states)), ", ")
		w.add("state IN ("+marks+")", states...)
	}
	w.equal("patient", string(f.Patient))
	w.equal("study", string(f.Study))
	w.equal("series", string(f.Series))
	w.equal("instance", string(f.Instance))
	if !f.Since.IsZero() {
		w.add("received >= ?", micros(f.Since))
	}
	if !f.Before.IsZero() {
		w.add("received < ?", micros(f.Before))
	}
	if f.After != nil {
		comparison := "(received, id) < (?, ?)"
		if f.OldestFirst {
			comparison = "(received, id) > (?, ?)"
		}
		w.add(comparison, micros(f.After.Received), string(f.After.ID))
	}
	return &w
}

// CountCases returns how many cases stand in each state; states without a
// case are absent.
func (tx *Tx) CountCases() (map[vigie.State]int64, error) {
	counts := make(map[vigie.State]int64)
	err := tx.Query(func(scan func(...any) error) error {
		var state vigie.State
		var n int64
		err := scan(&state, &n)
		counts[state] = n
		return err
	}, "SELECT state, COUNT(*) FROM cases GROUP BY state")
	if err != nil {
		return nil, fmt.Errorf("store: counting cases: %w", err)
	}
	return counts, nil
}

// Advance moves a case from one state to the next and returns it as it now
// stands. change, if not nil, alters the case's model, verdict and stages
// before; what else it alters is refused. It returns vigie.ErrTransition if
// the case is no longer in state from, or may not go from there to to, and
// ErrNotFound if there is no such case.
func (tx *Tx) Advance(id vigie.CaseID, from, to vigie.State, change func(*vigie.Case) error) (*vigie.Case, error) {
	if !from.CanBecome(to) {
		return nil, fmt.Errorf("store: moving case %s from %q to %q: %w", id, from, to, vigie.ErrTransition)
	}
	c, err := tx.readCase(id, tx.store.db.lockRow())
	if err != nil {
		return nil, err
	}
	if c.State != from {
		return nil, fmt.Errorf("store: moving case %s from %q to %q: it is %q: %w", id, from, to, c.State, vigie.ErrTransition)
	}
	if err := tx.change(c, to, change); err != nil {
		return nil, fmt.Errorf("store: moving case %s from %q to %q: %w", id, from, to, err)
	}
	return c, nil
}

// Amend alters a case's model, verdict or stages without moving it, and
// returns it as it now stands.
func (tx *Tx) Amend(id vigie.CaseID, change func(*vigie.Case) error) (*vigie.Case, error) {
	c, err := tx.readCase(id, tx.store.db.lockRow())
	if err != nil {
		return nil, err
	}
	if err := tx.change(c, c.State, change); err != nil {
		return nil, fmt.Errorf("store: amending case %s: %w", id, err)
	}
	return c, nil
}

func (tx *Tx) change(c *vigie.Case, to vigie.State, change func(*vigie.Case) error) error {
	before := *c
	if change != nil {
		if err := change(c); err != nil {
			return err
		}
	}
	if c.ID != before.ID || c.Patient != before.Patient || c.Study != before.Study || c.Series != before.Series ||
		c.Instance != before.Instance || c.Input != before.Input || c.Source != before.Source ||
		c.State != before.State || !c.Received.Equal(before.Received) {
		return errors.New("only the model, the verdict and the stages of a case may change")
	}
	if c.Finding != nil || c.Decision != nil {
		return errClear
	}
	verdict, stages, err := caseJSON(c)
	if err != nil {
		return err
	}
	c.State, c.Updated = to, tx.Now()
	n, err := tx.Exec("UPDATE cases SET state = $1, updated = $2, model = $3, verdict = $4, stages = $5 WHERE id = $6 AND state = $7",
		string(c.State), micros(c.Updated), string(c.Model), verdict, stages, string(c.ID), string(before.State))
	if err != nil {
		return err
	}
	if n != 1 {
		return vigie.ErrTransition
	}
	return nil
}

func checkCase(c *vigie.Case) error {
	switch {
	case c.ID == "":
		return errors.New("it has no id: use NewCaseID")
	case c.Patient == "":
		return errors.New("it has no patient pseudonym")
	case c.Finding != nil || c.Decision != nil:
		return errClear
	}
	return nil
}

func caseJSON(c *vigie.Case) (verdict, stages any, err error) {
	if c.Verdict != nil {
		data, err := json.Marshal(c.Verdict)
		if err != nil {
			return nil, nil, err
		}
		verdict = string(data)
	}
	if c.Stages != nil {
		data, err := json.Marshal(c.Stages)
		if err != nil {
			return nil, nil, err
		}
		stages = string(data)
	}
	return verdict, stages, nil
}

// PutValue stores a sealed value of a case under a name ("identity",
// "finding", "decision", …), replacing an earlier one. The caller has
// encrypted it (keys.Ring.Seal).
func (tx *Tx) PutValue(id vigie.CaseID, name string, sealed []byte) error {
	if name == "" || sealed == nil {
		return fmt.Errorf("store: storing a value of case %s: it has no name or no bytes", id)
	}
	_, err := tx.Exec(`INSERT INTO case_values (case_id, name, value) VALUES ($1, $2, $3)
		ON CONFLICT (case_id, name) DO UPDATE SET value = excluded.value`, string(id), name, sealed)
	if err != nil {
		return fmt.Errorf("store: storing value %q of case %s: %w", name, id, err)
	}
	return nil
}

// Value returns a sealed value of a case, or ErrNotFound.
func (tx *Tx) Value(id vigie.CaseID, name string) ([]byte, error) {
	var sealed []byte
	err := tx.QueryRow([]any{&sealed}, "SELECT value FROM case_values WHERE case_id = $1 AND name = $2", string(id), name)
	if err != nil {
		return nil, fmt.Errorf("store: reading value %q of case %s: %w", name, id, err)
	}
	return sealed, nil
}

// checkPatientKey refuses new data for a patient whose newest data key was
// erased: it would have been sealed with a key that nobody has.
func (tx *Tx) checkPatientKey(patient vigie.PatientPseudonym) error {
	latest, err := tx.patientKey(patient, 0)
	if errors.Is(err, keys.ErrNoKey) {
		return nil
	}
	if err != nil {
		return err
	}
	if latest.Wrapped == nil {
		return keys.ErrErased
	}
	return nil
}
