package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/riverqueue/river"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/enclave"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/store"
)

const (
	queueDiagnose = "diagnose"

	// jobSlack is what a job may take beside its longest wait for an enclave.
	jobSlack = 2 * time.Minute

	// maxCrashes is how often a case may take the process, or its worker, down
	// with it before it goes to a person unanalysed.
	maxCrashes = 4

	firstPause = time.Second
	maxPause   = 30 * time.Second
)

// diagnoseArgs names the job that analyses one case.
type diagnoseArgs struct {
	Case vigie.CaseID `json:"case"`
}

// Kind implements river.JobArgs.
func (diagnoseArgs) Kind() string { return "diagnose" }

func diagnoseOptions() *river.InsertOpts { return &river.InsertOpts{Queue: queueDiagnose} }

type diagnoseWorker struct {
	river.WorkerDefaults[diagnoseArgs]
	g *Gateway
}

// Work implements river.Worker.
func (w *diagnoseWorker) Work(ctx context.Context, job *river.Job[diagnoseArgs]) (err error) {
	defer w.g.contain("diagnose", job.Args.Case, &err)
	err = w.g.diagnose(ctx, job)
	return w.g.retryLater("diagnose", job.Args.Case, err, pause(job.CreatedAt, time.Now()))
}

// NextRetry implements river.Worker: when to try again after a crash.
func (w *diagnoseWorker) NextRetry(job *river.Job[diagnoseArgs]) time.Time {
	return afterCrash(job.Attempt)
}

// afterCrash doubles the pause with every crash of a job.
func afterCrash(attempt int) time.Time {
	return time.Now().Add(min(firstPause<<min(max(attempt-1, 0), 10), maxPause))
}

// contain turns a panic into an error that counts as a crash of the job. Its
// value may quote an object, so only its type is kept.
func (g *Gateway) contain(kind string, id vigie.CaseID, err *error) {
	if cause := recover(); cause != nil {
		g.logger.Error("a panic was contained", "job", kind, "case", id, "type", fmt.Sprintf("%T", cause), "stack", string(debug.Stack()))
		*err = fmt.Errorf("gateway: job %s of case %s panicked", kind, id)
	}
}

// pause grows with the time that a job has been trying: a quarter of it,
// between firstPause and maxPause. It needs no count of tries, which crashes
// and restarts would distort.
func pause(since, now time.Time) time.Duration {
	return min(max(now.Sub(since)/4, firstPause), maxPause)
}

// retryLater turns an expected failure into a pause, so that only crashes and
// panics count as attempts of the job.
func (g *Gateway) retryLater(kind string, id vigie.CaseID, err error, pause time.Duration) error {
	if err == nil || errors.Is(err, store.ErrJobLost) {
		return err
	}
	g.metrics.retries.WithLabelValues(kind).Inc()
	g.logger.Warn("a job will be tried again", "job", kind, "case", id, "pause", pause, "error", err)
	return river.JobSnooze(pause)
}

// diagnosis is what the diagnose job found out before it commits anything.
type diagnosis struct {
	result  *enclave.Result // nil when the enclave was not asked or gave no answer
	reasons []vigie.Reason  // the gateway's own reasons against a release
}

// diagnose moves a case from received to diagnosed and on to triage's verdict.
// Everything before the one transaction at its end changes nothing, so that it
// may be interrupted and repeated at any point.
func (g *Gateway) diagnose(ctx context.Context, job *river.Job[diagnoseArgs]) error {
	c, object, reasons, err := g.loadReceived(ctx, job.Args.Case)
	if err != nil {
		return err
	}
	watch := &stopwatch{last: c.Updated}
	watch.lap("queue")
	if c.State != vigie.Received || !c.Erased.IsZero() {
		return nil // done before, the job's row outlived the transaction's outcome; or there is nothing left to do
	}
	d := diagnosis{reasons: reasons}
	switch {
	case job.Attempt > maxCrashes:
		d.reasons = append(d.reasons, reason(vigie.ReasonInternal, "analysing the case failed repeatedly"))
	case len(d.reasons) == 0 || onlyConflict(d.reasons):
		err := g.analyse(ctx, c, object, &d, watch)
		if err != nil {
			if ctx.Err() != nil && g.stopping() {
				return err
			}
			if time.Since(c.Received) < g.config.Enclave.GiveUpAfter {
				return err
			}
			g.logger.Error("a case goes to a person unanalysed", "case", c.ID, "error", err)
			d.reasons = append(d.reasons, reason(reasonCodeOf(err), "no answer within "+g.config.Enclave.GiveUpAfter.String()))
		}
	}
	err = g.conclude(ctx, job, c, d, watch)
	if d.result == nil || err == nil || store.OutOfResources(err) || errors.Is(err, store.ErrJobLost) || errors.Is(err, errOtherModel) ||
		ctx.Err() != nil || time.Since(c.Received) < g.config.Enclave.GiveUpAfter {
		return err
	}
	g.logger.Error("a case goes to a person without its answer", "case", c.ID, "error", err)
	d = diagnosis{reasons: append(d.reasons, reason(vigie.ReasonEnclave, "the answer cannot be recorded"))}
	return g.conclude(ctx, job, c, d, watch)
}

func onlyConflict(reasons []vigie.Reason) bool {
	for _, r := range reasons {
		if r.Code != ReasonConflict {
			return false
		}
	}
	return true
}

// errEnclave marks errors of the exchange with the enclave.
var errEnclave = errors.New("gateway: asking the enclave")

func reasonCodeOf(err error) vigie.ReasonCode {
	if errors.Is(err, errEnclave) {
		return vigie.ReasonEnclave
	}
	return vigie.ReasonInternal
}

// loadReceived reads a case, the object it is about, and what is already known
// against a release.
func (g *Gateway) loadReceived(ctx context.Context, id vigie.CaseID) (c *vigie.Case, object *store.Object, reasons []vigie.Reason, err error) {
	err = g.store.View(ctx, func(tx *store.Tx) error {
		if c, err = tx.Case(id); err != nil {
			return err
		}
		if c.Erased, err = erasedAt(tx, id); err != nil || !c.Erased.IsZero() {
			return err
		}
		objects, err := tx.Objects(store.ObjectFilter{Case: id, Kind: kindReceived, Limit: 1})
		if err != nil {
			return err
		}
		if len(objects) == 0 {
			return fmt.Errorf("gateway: case %s has no object: %w", id, store.ErrNotFound)
		}
		object = &objects[0]
		data, err := tx.Value(id, valueReferrals)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return nil
		case err != nil:
			return err
		}
		return json.Unmarshal(data, &reasons)
	})
	return c, object, reasons, err
}

// pinned reports whether the study was read before by another model version:
// two versions never mix within one study, or a change between two images
// could be the model's and not the patient's.
func (g *Gateway) pinned(tx *store.Tx, c *vigie.Case) (bool, error) {
	if c.Study == "" {
		return false, nil
	}
	siblings, err := tx.Cases(store.Filter{Study: c.Study, OldestFirst: true})
	if err != nil {
		return false, err
	}
	for _, s := range siblings {
		if s.Model != "" && s.Model != g.model.Digest {
			return true, nil
		}
	}
	return false, nil
}

// analyse asks the enclave about a case, unless there is a reason not to. An
// error means that asking again may help.
func (g *Gateway) analyse(ctx context.Context, c *vigie.Case, object *store.Object, d *diagnosis, watch *stopwatch) error {
	refer := func(r ...vigie.Reason) { d.reasons = append(d.reasons, r...) }
	var otherModel bool
	if err := g.store.View(ctx, func(tx *store.Tx) (err error) {
		otherModel, err = g.pinned(tx, c)
		return err
	}); err != nil {
		return err
	}
	if otherModel {
		refer(reason(vigie.ReasonNoModel, "the study was begun with another model version"))
		return nil
	}
	if object.Size > enclave.MaxDICOM {
		refer(reason(vigie.ReasonPixels, fmt.Sprintf("%d bytes are more than an enclave takes (%d)", object.Size, enclave.MaxDICOM)))
		return nil
	}
	data, err := g.readObject(ctx, c.Patient, object)
	if err != nil {
		return err
	}
	// A row of the same patient opens in the place of another: its seal does
	// not name the case.
	if vigie.DigestOf(data) != c.Input {
		refer(reason(vigie.ReasonUnreadable, "the stored object is not the one that was received"))
		return nil
	}
	watch.lap("open")
	original, err := dicom.Parse(bytes.NewReader(data), dicom.Limits{})
	if err != nil {
		refer(unreadableReason(err))
		return nil
	}
	watch.lap("parse")

	attributes := append(g.model.Manifest.Check(original.DataSet), g.model.Manifest.CheckPatient(original.DataSet)...)
	attributes = append(attributes, g.model.Manifest.CheckDevice(original.DataSet)...)
	refer(attributes...)
	if strings.TrimSpace(original.DataSet.String(dicom.PatientID)) == "" {
		refer(reason(ReasonNoPatient, ""))
	}
	if slices.ContainsFunc(attributes, model.Blocking) {
		return nil
	}
	if syntax, _ := dicom.SyntaxOf(original.TransferSyntax); !syntax.Decodable {
		refer(reason(vigie.ReasonTransferSyntax, syntax.Name))
		return nil
	}
	copied, err := g.profile.Apply(original)
	if err != nil {
		g.logger.Warn("de-identification refused a case", "case", c.ID, "error", err)
		refer(reason(vigie.ReasonDeidentify, "no copy could be made"))
		return nil
	}
	if len(copied.Refer) > 0 {
		// The copy may still show an identity: it stays on this side.
		refer(copied.Refer...)
		return nil
	}
	if copied.Patient != c.Patient {
		refer(reason(vigie.ReasonDeidentify, "the copy has another pseudonym than the case"))
		return nil
	}
	var out bytes.Buffer
	if err := copied.File.Write(&out); err != nil {
		g.logger.Warn("a de-identified copy cannot be written", "case", c.ID, "error", err)
		refer(reason(vigie.ReasonDeidentify, "the copy cannot be written"))
		return nil
	}
	watch.lap("de-identify")

	asking, cancel := context.WithTimeout(ctx, g.config.Enclave.Timeout)
	defer cancel()
	result, err := g.diagnoser.Diagnose(asking, enclave.Request{Case: c.ID, Patient: c.Patient, DICOM: out.Bytes()})
	if errors.Is(err, enclave.ErrTooLarge) {
		refer(reason(vigie.ReasonEnclave, "the case is too large for the enclave"))
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errEnclave, err)
	}
	watch.lap("enclave")
	if len(result.Finding.Predictions) > 0 && result.Finding.Instance != c.Instance {
		refer(reason(vigie.ReasonEnclave, "the answer is about another instance"))
		return nil
	}
	if g.model.Manifest.Certificate.Wanted() && len(result.Finding.Predictions) > 0 && result.Finding.Certificate == nil {
		refer(reason(vigie.ReasonCertificate, "the enclave gave none"))
	}
	// Rules about the patient need attributes that the copy no longer has.
	refer(g.model.Manifest.ReviewOriginal(result.Finding.Predictions, original.DataSet)...)
	contradictions, err := g.checkPriors(ctx, c, result.Finding.Predictions, original.DataSet)
	if err != nil {
		return err
	}
	refer(contradictions...)
	d.result = &result
	return nil
}

func (b *Casebook) readObject(ctx context.Context, patient vigie.PatientPseudonym, object *store.Object) ([]byte, error) {
	plain, err := b.openObject(ctx, patient, object)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	data := make([]byte, 0, object.Size+bytes.MinRead)
	buffer := bytes.NewBuffer(data)
	if _, err := io.Copy(buffer, plain); err != nil {
		return nil, fmt.Errorf("gateway: reading an object of case %s: %w", object.Case, err)
	}
	return buffer.Bytes(), nil
}

var errOtherModel = errors.New("gateway: another model version read an image of the same study meanwhile")

// conclude commits a diagnosis and triage's verdict on it: finding, both
// steps, their audit records and the next job, together with the end of this
// job.
func (g *Gateway) conclude(ctx context.Context, job *river.Job[diagnoseArgs], c *vigie.Case, d diagnosis, watch *stopwatch) error {
	var (
		finding *vigie.Finding
		sealed  []byte
		err     error
	)
	var read vigie.ModelDigest // the model that read the case, if one did
	proof := audit.Record{
		Kind: audit.KindDiagnosed, Source: c.Source, Input: c.Input, Reasons: reasonCodes(d.reasons),
		From: vigie.Received, To: vigie.Diagnosed,
	}
	if d.result != nil {
		finding, read = &d.result.Finding, d.result.Finding.Model
		// The enclave answers for the bytes it saw, under its configuration;
		// the record of kind received holds the digest of the original.
		proof.Model, proof.Configuration, proof.Input = read, finding.Configuration, finding.Input
		proof.Instance, proof.Output = finding.Instance, vigie.DigestOf(d.result.Signed.Payload)
		proof.Guards = guardsText(finding.Guards, setsWord(finding))
		proof.Decision = joined(", ", mapDecision(finding), certificateDecision(finding))
		if sealed, err = g.sealValue(ctx, c, valueFinding, keptFinding{d.result.Signed, d.result.Evidence}); err != nil {
			return err
		}
	}
	verdict := Triage(finding, d.reasons, g.policy)
	sealedVerdict, err := g.sealValue(ctx, c, valueVerdict, verdict)
	if err != nil {
		return err
	}
	watch.lap("triage")

	err = g.store.Update(ctx, func(tx *store.Tx) error {
		if c.Erased, err = erasedAt(tx, c.ID); err != nil {
			return err
		} else if !c.Erased.IsZero() {
			return tx.CompleteJob(job.JobRow)
		}
		keep := [][]byte{sealedVerdict}
		if sealed != nil {
			keep = append(keep, sealed)
		}
		if err := tx.CheckSealed(c.Patient, keep...); err != nil {
			return err
		}
		if read != "" {
			// Another gateway with another model may have read a sibling since
			// the look before the analysis. The next try sees it there.
			if other, err := g.pinned(tx, c); err != nil || other {
				return errors.Join(err, errOtherModel)
			}
		}
		diagnosed, err := tx.Advance(c.ID, vigie.Received, vigie.Diagnosed, func(c *vigie.Case) error {
			c.Model = read
			c.Stages = append(c.Stages, watch.stages...)
			return nil
		})
		if err != nil {
			return err
		}
		if sealed != nil {
			if err := tx.PutValue(c.ID, valueFinding, sealed); err != nil {
				return err
			}
		}
		if err := g.record(tx, diagnosed, proof); err != nil {
			return err
		}
		state := verdict.Decision.State()
		triaged, err := tx.Advance(c.ID, vigie.Diagnosed, state, func(c *vigie.Case) error {
			c.Verdict = publicVerdict(verdict)
			return nil
		})
		if err != nil {
			return err
		}
		if err := tx.PutValue(c.ID, valueVerdict, sealedVerdict); err != nil {
			return err
		}
		if err := g.record(tx, triaged, audit.Record{
			Kind: audit.KindTriaged, Model: read, Output: proof.Output, Decision: string(verdict.Decision),
			Reasons: reasonCodes(verdict.Reasons), From: vigie.Diagnosed, To: state,
		}); err != nil {
			return err
		}
		if state == vigie.Released {
			if _, err := tx.Enqueue(deliverArgs{Case: c.ID}, deliverOptions()); err != nil {
				return err
			}
		}
		return tx.CompleteJob(job.JobRow)
	})
	switch {
	case errors.Is(err, vigie.ErrTransition):
		return nil // another run of this job was first
	case errors.Is(err, keys.ErrErased):
		g.ring.Forget(c.Patient) // the next try sees what another process erased
		return err
	case err != nil || !c.Erased.IsZero():
		return err
	}
	for _, s := range watch.stages {
		g.metrics.stage(s)
	}
	if finding != nil {
		for _, s := range finding.Stages {
			g.metrics.enclaveStage(s)
		}
	}
	g.metrics.verdict(verdict)
	g.logger.Info("case triaged", "case", c.ID, "decision", verdict.Decision, "reasons", reasonCodes(verdict.Reasons))
	return nil
}

// reasonCodes lists the different codes, each once: a model of many labels can
// give one reason for each, and an audit record has room for few.
func reasonCodes(reasons []vigie.Reason) []vigie.ReasonCode {
	codes := []vigie.ReasonCode{}
	for _, r := range reasons {
		if !slices.Contains(codes, r.Code) {
			codes = append(codes, r.Code)
		}
	}
	return codes
}
