package store

import (
	"errors"
	"fmt"
	"time"

	"github.com/vigie/vigie"
)

// Delivery is one object that one destination must receive, once.
type Delivery struct {
	Case        vigie.CaseID
	Destination string            // the configuration's name for it
	Instance    vigie.InstanceUID // SOP Instance UID of what is sent, pseudonymised or Vigie's own
	State       DeliveryState
	Attempts    int    // how often it was tried
	Detail      string // what the last attempt said; no patient data
	Created     time.Time
	Updated     time.Time
}

// DeliveryState is where a delivery stands.
type DeliveryState string

// The states of a delivery.
const (
	DeliveryPending DeliveryState = "pending" // to be tried, again
	DeliveryRefused DeliveryState = "refused" // refused for good as it is; to be tried again, seldom
	DeliveryDone    DeliveryState = "done"    // the destination acknowledged it
	DeliveryGivenUp DeliveryState = "given up"
)

// AddDelivery plans a delivery. It reports false if it was planned before, in
// which case nothing changes.
func (tx *Tx) AddDelivery(id vigie.CaseID, destination string, instance vigie.InstanceUID) (bool, error) {
	if id == "" || destination == "" || instance == "" {
		return false, errors.New("store: planning a delivery without case, destination or instance")
	}
	now := micros(tx.Now())
	n, err := tx.Exec(`INSERT INTO deliveries (case_id, destination, instance, state, attempts, detail, created, updated)
		VALUES ($1, $2, $3, $4, 0, '', $5, $5) ON CONFLICT DO NOTHING`,
		string(id), destination, string(instance), string(DeliveryPending), now)
	if err != nil {
		return false, fmt.Errorf("store: planning delivery of %s to %s: %w", instance, destination, err)
	}
	return n == 1, nil
}

// RecordAttempt counts one attempt at a delivery and sets where it stands. It
// returns ErrExists, and changes nothing, if the delivery is done already.
func (tx *Tx) RecordAttempt(id vigie.CaseID, destination string, instance vigie.InstanceUID, state DeliveryState, detail string) error {
	n, err := tx.Exec(`UPDATE deliveries SET state = $1, detail = $2, updated = $3, attempts = attempts + 1
		WHERE case_id = $4 AND destination = $5 AND instance = $6 AND state <> $7`,
		string(state), detail, micros(tx.Now()), string(id), destination, string(instance), string(DeliveryDone))
	if err == nil && n == 0 {
		var found int
		err = tx.QueryRow([]any{&found}, "SELECT 1 FROM deliveries WHERE case_id = $1 AND destination = $2 AND instance = $3",
			string(id), destination, string(instance))
		if err == nil {
			err = ErrExists
		}
	}
	if err != nil {
		return fmt.Errorf("store: recording delivery of %s to %s: %w", instance, destination, err)
	}
	return nil
}

// CountDeliveries returns how many deliveries stand in a state at each
// destination that has any.
func (tx *Tx) CountDeliveries(state DeliveryState) (map[string]int64, error) {
	counts := map[string]int64{}
	err := tx.Query(func(scan func(...any) error) error {
		var name string
		var n int64
		err := scan(&name, &n)
		counts[name] = n
		return err
	}, "SELECT destination, COUNT(*) FROM deliveries WHERE state = $1 GROUP BY destination", string(state))
	if err != nil {
		return nil, fmt.Errorf("store: counting deliveries: %w", err)
	}
	return counts, nil
}

// Deliveries lists the deliveries of a case, or those in one state if id is
// empty (all if state is empty too), oldest first, at most 10000.
func (tx *Tx) Deliveries(id vigie.CaseID, state DeliveryState) ([]Delivery, error) {
	var w where
	w.equal("case_id", string(id))
	w.equal("state", string(state))
	var found []Delivery
	err := tx.Query(func(scan func(...any) error) error {
		var d Delivery
		var created, updated int64
		err := scan(&d.Case, &d.Destination, &d.Instance, &d.State, &d.Attempts, &d.Detail, &created, &updated)
		d.Created, d.Updated = fromMicros(created), fromMicros(updated)
		found = append(found, d)
		return err
	}, fmt.Sprintf(`SELECT case_id, destination, instance, state, attempts, detail, created, updated
		FROM deliveries%s ORDER BY created, case_id, destination, instance LIMIT 10000`, &w), w.args...)
	if err != nil {
		return nil, fmt.Errorf("store: listing deliveries: %w", err)
	}
	return found, nil
}
