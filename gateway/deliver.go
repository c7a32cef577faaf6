package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/riverqueue/river"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/store"
)

const queueDeliver = "deliver"

// deliverArgs names the job that brings one case's results to every
// destination.
type deliverArgs struct {
	Case vigie.CaseID `json:"case"`
}

// Kind implements river.JobArgs.
func (deliverArgs) Kind() string { return "deliver" }

// deliverOptions never gives a delivery up: a destination may be down for days.
func deliverOptions() *river.InsertOpts {
	return &river.InsertOpts{Queue: queueDeliver, MaxAttempts: math.MaxInt16}
}

type deliverWorker struct {
	river.WorkerDefaults[deliverArgs]
	g *Gateway
}

// Work implements river.Worker.
func (w *deliverWorker) Work(ctx context.Context, job *river.Job[deliverArgs]) (err error) {
	defer w.g.contain("deliver", job.Args.Case, &err)
	err = w.g.deliver(ctx, job)
	wait := min(pause(job.CreatedAt, time.Now()), w.g.config.Limits.DeliveryRetry)
	if tried := time.Since(job.CreatedAt); tried > 10*time.Minute {
		wait = w.g.config.Limits.DeliveryRetry
	}
	if errors.Is(err, errResting) {
		return river.JobSnooze(w.g.config.Limits.DeliveryRetry) // it was told when the refusals came
	}
	return w.g.retryLater("deliver", job.Args.Case, err, wait)
}

// NextRetry implements river.Worker: when to try again after a crash.
func (w *deliverWorker) NextRetry(job *river.Job[deliverArgs]) time.Time {
	return afterCrash(job.Attempt)
}

// errUndelivered says that a destination does not have everything yet.
var errUndelivered = errors.New("gateway: not every destination has acknowledged")

// A destination that refuses an object for good is believed the third time:
// the first may be a restart. From then on the object is offered once an hour,
// because somebody may change the destination's mind, and the refusal is shown.
const (
	refusalsBelieved = 3
	refusedPause     = time.Hour
)

// errResting says that all that is left are refused objects whose next try is
// not due.
var errResting = errors.New("gateway: what is left was refused and is tried again later")

// errNotVouched says that a case's state is not what its sealed values say:
// somebody changed the database by hand.
var errNotVouched = errors.New("neither a sealed verdict nor a sealed decision says so: run vigie audit verify")

// vouchedFor reports whether the sealed values of a case agree with its state,
// which is stored in clear. Without the keys nobody can make them agree.
func vouchedFor(c *vigie.Case) bool {
	if c.State == vigie.Reviewed {
		return c.Decision != nil
	}
	return c.Verdict != nil && c.Verdict.Decision == vigie.Release
}

// deliver makes the results of a released or reviewed case, once, and sends
// them to every destination that has not acknowledged them.
//
// The results are stored, sealed, before the first is sent, so every try sends
// the same bytes under the same SOP Instance UIDs. The acknowledgement of a
// destination is committed right after it arrives. Killed in between, the next
// try sends that same object again, which a receiver recognises by its UID: it
// holds it once. Nothing more can be had over C-STORE, which has no
// transactions.
func (g *Gateway) deliver(ctx context.Context, job *river.Job[deliverArgs]) error {
	c, err := g.Case(ctx, job.Args.Case)
	if err != nil {
		return err
	}
	watch := &stopwatch{last: c.Updated}
	watch.lap("queue")
	if c.State != vigie.Released && c.State != vigie.Reviewed || !c.Erased.IsZero() {
		return nil // delivered before, or there is nothing left to deliver
	}
	if !vouchedFor(c) {
		return fmt.Errorf("gateway: delivering case %s: it is %s: %w", c.ID, c.State, errNotVouched)
	}
	if c.Decision == nil || c.Decision.Action != ActionReject {
		if err := g.makeResults(ctx, c); err != nil {
			return err
		}
		watch.lap("report")
		if err := g.sendResults(ctx, c); err != nil {
			return err
		}
		watch.lap("deliver")
	}
	err = g.store.Update(ctx, func(tx *store.Tx) error {
		delivered, err := tx.Advance(c.ID, c.State, vigie.Delivered, func(c *vigie.Case) error {
			c.Stages = append(c.Stages, watch.stages...)
			return nil
		})
		if err != nil {
			return err
		}
		if err := g.record(tx, delivered, audit.Record{Kind: audit.KindDelivered, Model: c.Model, From: c.State, To: vigie.Delivered}); err != nil {
			return err
		}
		return tx.CompleteJob(job.JobRow)
	})
	if errors.Is(err, vigie.ErrTransition) {
		return nil
	}
	if err == nil {
		for _, s := range watch.stages {
			g.metrics.stage(s)
		}
		g.logger.Info("case delivered", "case", c.ID)
	}
	return err
}

// makeResults builds and stores what is delivered for a case, and plans its
// deliveries, unless a former try did.
func (g *Gateway) makeResults(ctx context.Context, c *vigie.Case) error {
	made := false
	err := g.store.View(ctx, func(tx *store.Tx) error {
		objects, err := tx.Objects(store.ObjectFilter{Case: c.ID, Kind: kindReport, Limit: 1})
		made = len(objects) > 0
		return err
	})
	if err != nil || made {
		return err
	}
	results, err := g.buildResults(ctx, c)
	if err != nil {
		return fmt.Errorf("gateway: building the results of case %s: %w", c.ID, err)
	}
	var rows []store.Object
	kept := false
	defer func() {
		if !kept {
			for _, row := range rows {
				_ = g.store.Blobs().Remove(row.Blob) // or it is swept at the next start
			}
		}
	}()
	for _, r := range results {
		row, err := g.sealResult(ctx, c, r)
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	err = g.store.Update(ctx, func(tx *store.Tx) error {
		current, err := tx.Case(c.ID)
		if err != nil {
			return err
		}
		if current.State != c.State {
			return vigie.ErrTransition
		}
		if err := notErased(tx, c.ID); err != nil {
			return err
		}
		for i := range rows {
			if err := tx.CheckSealed(c.Patient, rows[i].Sealed); err != nil {
				return err
			}
			if err := tx.AddObject(&rows[i]); err != nil {
				return err
			}
			for _, d := range g.config.Destinations {
				if _, err := tx.AddDelivery(c.ID, d.Name, rows[i].Instance); err != nil {
					return err
				}
			}
			if err := g.record(tx, c, audit.Record{
				Kind: kindResult, Model: c.Model, Output: rows[i].Digest, Instance: rows[i].Instance, Decision: rows[i].Kind,
			}); err != nil {
				return err
			}
		}
		return nil
	})
	kept = err == nil || errors.Is(err, store.ErrUncertain)
	if errors.Is(err, keys.ErrErased) {
		g.ring.Forget(c.Patient) // the next try sees what another process erased
	}
	return err
}

// sendResults sends what is pending, all destinations at once.
func (g *Gateway) sendResults(ctx context.Context, c *vigie.Case) error {
	var pending []store.Delivery
	var now time.Time
	objects := map[vigie.InstanceUID]*store.Object{}
	err := g.store.View(ctx, func(tx *store.Tx) error {
		var err error
		now = tx.Now()
		if pending, err = tx.Deliveries(c.ID, store.DeliveryPending); err != nil {
			return err
		}
		refused, err := tx.Deliveries(c.ID, store.DeliveryRefused)
		if err != nil {
			return err
		}
		pending = append(pending, refused...)
		for _, kind := range []string{kindReport, kindOverlay} {
			found, err := tx.Objects(store.ObjectFilter{Case: c.ID, Kind: kind})
			if err != nil {
				return err
			}
			for i := range found {
				objects[found[i].Instance] = &found[i]
			}
		}
		return nil
	})
	planned := len(pending)
	if err != nil || planned == 0 {
		return err
	}
	due := slices.DeleteFunc(pending, func(d store.Delivery) bool {
		return d.State == store.DeliveryRefused && now.Sub(d.Updated) < refusedPause && g.destinations[d.Destination] != nil
	})
	if len(due) == 0 {
		return errResting
	}
	rest := len(due) < planned
	files := map[vigie.InstanceUID]Outgoing{}
	attempts := map[[2]string]int{} // by destination and instance
	byDestination := map[string][]vigie.InstanceUID{}
	for _, p := range due {
		attempts[[2]string{p.Destination, string(p.Instance)}] = p.Attempts
		byDestination[p.Destination] = append(byDestination[p.Destination], p.Instance)
		if _, read := files[p.Instance]; read {
			continue
		}
		object, ok := objects[p.Instance]
		if !ok {
			return fmt.Errorf("gateway: case %s plans a delivery of an object it does not have", c.ID)
		}
		data, err := g.readObject(ctx, c.Patient, object)
		if err != nil {
			return err
		}
		if files[p.Instance], err = NewOutgoing(data); err != nil {
			return err
		}
		if files[p.Instance].SOPInstance != string(p.Instance) {
			return fmt.Errorf("gateway: delivering case %s: %s is kept as another object: %w", c.ID, p.Instance, errNotVouched)
		}
	}
	var wait sync.WaitGroup
	names := slices.Sorted(maps.Keys(byDestination))
	failures := make([]error, len(names)) // told in this order, whoever fails first
	for i, name := range names {
		wait.Go(func() {
			failures[i] = g.sendTo(ctx, c, name, byDestination[name], files, attempts)
		})
	}
	wait.Wait()
	if err := errors.Join(failures...); err != nil || !rest {
		return err
	}
	return errResting
}

// sendTo sends objects to one destination and records each outcome.
func (g *Gateway) sendTo(ctx context.Context, c *vigie.Case, name string, instances []vigie.InstanceUID, files map[vigie.InstanceUID]Outgoing, attempts map[[2]string]int) error {
	receiver, ok := g.destinations[name]
	if !ok {
		// The destination left the configuration: there is nobody to wait for.
		return g.recordAttempts(ctx, c, name, instances, store.DeliveryGivenUp, "no longer configured")
	}
	outgoing := make([]Outgoing, len(instances))
	for i, uid := range instances {
		outgoing[i] = files[uid]
	}
	settled := make([]bool, len(instances))
	var failures []error
	refused := ""
	connection := receiver.send(ctx, outgoing, func(i int, err error) {
		settled[i] = true
		state, detail := store.DeliveryDone, ""
		if err != nil {
			state, detail = store.DeliveryPending, err.Error()
			failures = append(failures, err)
			if errors.Is(err, ErrRefused) && attempts[[2]string{name, string(instances[i])}]+1 >= refusalsBelieved {
				state, detail = store.DeliveryRefused, refusalOf(err)
				refused = detail
			}
		}
		g.metrics.deliveries.WithLabelValues(name, outcomeLabel(err)).Inc()
		// The acknowledgement counts even when the process is being stopped.
		if err := g.recordAttempts(context.WithoutCancel(ctx), c, name, instances[i:i+1], state, detail); err != nil {
			failures = append(failures, err)
		}
	})
	if connection != nil {
		var unsettled []vigie.InstanceUID
		for i, done := range settled {
			if !done {
				unsettled = append(unsettled, instances[i])
				g.metrics.deliveries.WithLabelValues(name, "failed").Inc()
			}
		}
		failures = append(failures, connection,
			g.recordAttempts(ctx, c, name, unsettled, store.DeliveryPending, connection.Error()))
	}
	if refused != "" {
		g.logger.Warn("a delivery is refused: the results are kept and offered again", "case", c.ID, "destination", name, "status", refused, "pause", refusedPause)
	}
	if err := errors.Join(failures...); err != nil {
		return fmt.Errorf("%w: destination %s: %w", errUndelivered, name, err)
	}
	return nil
}

// refusalOf is what a destination that refuses an object said.
func refusalOf(err error) string {
	return strings.TrimPrefix(err.Error(), ErrRefused.Error()+": ")
}

func outcomeLabel(err error) string {
	switch {
	case err == nil:
		return "acknowledged"
	case errors.Is(err, ErrRefused):
		return "refused"
	default:
		return "failed"
	}
}

// recordAttempts writes down what became of objects at a destination. An
// acknowledgement is a fact of the audit log, a failed try is not.
func (g *Gateway) recordAttempts(ctx context.Context, c *vigie.Case, name string, instances []vigie.InstanceUID, state store.DeliveryState, detail string) error {
	if len(instances) == 0 {
		return nil
	}
	return g.store.Update(ctx, func(tx *store.Tx) error {
		for _, uid := range instances {
			err := tx.RecordAttempt(c.ID, name, uid, state, detail)
			if errors.Is(err, store.ErrExists) {
				continue // acknowledged before
			}
			if errors.Is(err, store.ErrNotFound) && errors.Is(notErased(tx, c.ID), keys.ErrErased) {
				err = nil // erased meanwhile: that it left is a fact all the same
			}
			if err != nil {
				return err
			}
			if state == store.DeliveryPending || state == store.DeliveryRefused {
				continue
			}
			if err := g.record(tx, c, audit.Record{
				Kind: audit.KindDelivery, Destination: name, Model: c.Model, Instance: uid, Decision: string(state),
			}); err != nil {
				return err
			}
		}
		return nil
	})
}
