package wire

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"
	"testing"
)

func TestOfWhatAHandlerIsSilentAboutNothingLeaves(t *testing.T) {
	st := newStage(t, nil)
	var asked atomic.Int64
	c, p := st.far("lyon")
	st.play(c, func(context.Context, Call) (Reply, error) {
		if asked.Add(1) == 1 {
			return Reply{}, fmt.Errorf("a secret: %w", ErrSilent)
		}
		return Reply{Body: json.RawMessage(`"said"`)}, nil
	})
	answer := make(chan error, 1)
	go func() {
		_, body, err := st.ask("lyon", Call{Body: json.RawMessage(`1`)})
		if err == nil && string(body) != `"said"` {
			err = fmt.Errorf("the answer is %s", body)
		}
		answer <- err
	}()
	until(t, "call", func() bool { return asked.Load() == 1 })
	if _, _, err := st.ask("lyon", Call{Body: json.RawMessage(`2`)}); err != nil { // by now a failure would have come
		t.Fatal(err)
	}
	select {
	case err := <-answer:
		t.Fatalf("it was answered: %v", err)
	default:
	}
	p.cut() // the call comes again, and is a new one
	if err := <-answer; err != nil {
		t.Error(err)
	}
}
