package train

import (
	"errors"
	"fmt"
	"strings"
)

// Interrupted is the error of a run whose context ended: how far it was and what
// is kept of it. It unwraps to the context's error.
type Interrupted struct {
	Epochs     int    // that are finished
	Of         int    // epochs that the recipe wants
	Step       int    // steps done of the epoch under way
	Steps      int    // steps of an epoch
	Checkpoint string // file that holds all of that; empty: nothing is saved
	Charged    int    // of a private run: steps in its ledger, which count whatever comes
	Cause      error
}

func (e *Interrupted) Unwrap() error { return e.Cause }

func (e *Interrupted) Error() string {
	var b strings.Builder
	b.WriteString("train: stopped ")
	switch {
	case e.Epochs == 0 && e.Step == 0:
		b.WriteString("before the first step was done")
	case e.Epochs >= e.Of:
		fmt.Fprintf(&b, "after the last of %d epochs, before the results were written", e.Of)
	case e.Step == 0:
		fmt.Fprintf(&b, "after epoch %d of %d", e.Epochs, e.Of)
	default:
		fmt.Fprintf(&b, "in epoch %d of %d, after step %d of %d", e.Epochs+1, e.Of, e.Step, e.Steps)
	}
	if e.Checkpoint != "" {
		fmt.Fprintf(&b, "; all of it is saved in %s", e.Checkpoint)
	} else {
		b.WriteString("; nothing is saved")
	}
	if e.Charged > 0 {
		fmt.Fprintf(&b, "; the privacy ledger keeps the %d steps that were charged", e.Charged)
	}
	return b.String()
}

// interrupted saves what a stopped run has done, and says so. The state is that
// after the last whole step, from which a run goes on as if nothing had happened.
func (t *trainer) interrupted(cause error) error {
	e := &Interrupted{
		Epochs: len(t.state.History.Epochs), Of: t.config.Epochs,
		Step: t.state.Step, Steps: t.config.Train.Len() / t.config.Batch, Cause: cause,
	}
	if t.private != nil {
		e.Charged = t.private.ledger.Steps()
	}
	if t.config.Checkpoint == "" || e.Epochs == 0 && e.Step == 0 {
		return e
	}
	if err := t.save(); err != nil {
		return errors.Join(e, err)
	}
	e.Checkpoint = t.config.Checkpoint
	return e
}
