package federate

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/keys/dsse"
)

// wicked is a site that changes its answers to one step.
type wicked struct {
	Link
	at     Step
	change func(*Answer)
}

func (w wicked) Ask(ctx context.Context, o Order) (Answer, error) {
	answer, err := w.Link.Ask(ctx, o)
	if err == nil && o.Step == w.at {
		// as it comes over a network, so that the honest site's memory stays its own
		data, _ := json.Marshal(answer)
		again := Answer{Vector: slices.Clone(answer.Vector)}
		json.Unmarshal(data, &again)
		w.change(&again)
		return again, nil
	}
	return answer, err
}

func TestAMaliciousSiteCostsTheRoundNothingAndIsNamed(t *testing.T) {
	resign := func(s *school, kind string, change func([]byte) []byte) func(*Answer) {
		return func(a *Answer) {
			for i, m := range a.Messages {
				signed, err := dsse.Sign(s.signers[2], kind, change(m.Envelope.Payload))
				if err != nil {
					t.Fatal(err)
				}
				a.Messages[i].Envelope = signed
			}
		}
	}
	kinds := map[Step]string{StepKeys: secagg.KeysType, StepShares: secagg.ParcelType, StepAccept: secagg.AcceptanceType, StepTrain: secagg.VectorType, StepConfirm: secagg.ConfirmType, StepReveal: secagg.RevealType}
	before := map[Step]*Answer{} // what was sent in the round before
	type trick struct {
		name string
		do   func(s *school, step Step) func(*Answer)
	}
	tricks := []trick{
		{"nothing at all", func(*school, Step) func(*Answer) { return func(a *Answer) { *a = Answer{} } }},
		{"too many messages", func(*school, Step) func(*Answer) {
			return func(a *Answer) { a.Messages = slices.Repeat(a.Messages, 1000) }
		}},
		{"garbage that is signed", func(s *school, step Step) func(*Answer) {
			return resign(s, kinds[step], func([]byte) []byte { return []byte("\x00\xff not JSON") })
		}},
		{"nested for ever", func(s *school, step Step) func(*Answer) {
			return resign(s, kinds[step], func([]byte) []byte { return bytes.Repeat([]byte(`{"round":[`), 50_000) })
		}},
		{"an oversized message", func(s *school, step Step) func(*Answer) {
			return resign(s, kinds[step], func(p []byte) []byte {
				return append(p[:len(p)-1], `,"more":"`+strings.Repeat("x", secagg.MaxMessage)+`"}`...)
			})
		}},
		{"another signature", func(s *school, step Step) func(*Answer) {
			return func(a *Answer) {
				for i := range a.Messages {
					a.Messages[i].Envelope.Signature = make([]byte, 64)
				}
			}
		}},
		{"another's name", func(s *school, step Step) func(*Answer) {
			return func(a *Answer) {
				for i := range a.Messages {
					a.Messages[i].From = "site-01"
				}
			}
		}},
		{"the round before", func(_ *school, step Step) func(*Answer) {
			return func(a *Answer) {
				if before[step] != nil {
					*a = *before[step]
				}
				copied := *a
				before[step] = &copied
			}
		}},
	}
	vectors := []trick{
		{"a vector too short", func(*school, Step) func(*Answer) { return func(a *Answer) { a.Vector = a.Vector[1:] } }},
		{"a vector too long", func(*school, Step) func(*Answer) { return func(a *Answer) { a.Vector = append(a.Vector, 1) } }},
		{"no vector", func(*school, Step) func(*Answer) { return func(a *Answer) { a.Vector = nil } }},
		{"another vector than it signed", func(*school, Step) func(*Answer) { return func(a *Answer) { a.Vector[0]++ } }},
	}
	check := func(name string, step Step, do func(*school, Step) func(*Answer), second bool) {
		t.Run(string(step)+": "+name, func(t *testing.T) {
			s := newSchool(t, 5, 3, nil)
			c := s.coordinator(t, nil)
			links := s.links()
			links[2] = wicked{links[2], step, do(s, step)}
			out, err := c.Round(t.Context(), links)
			if second {
				if err != nil || len(out.Groups[0].Lapses) != 0 {
					t.Fatalf("the round that was honest: %v, %v", out.Groups[0].Lapses, err)
				}
				out, err = c.Round(t.Context(), links)
			}
			if err != nil {
				t.Fatal(err)
			}
			g := out.Groups[0]
			named := slices.ContainsFunc(g.Lapses, func(l Lapse) bool { return l.Site == "site-02" && l.Step == step && l.Reason != "" }) ||
				slices.ContainsFunc(g.Accused, func(a secagg.Accusation) bool { return a.Site == "site-02" })
			if !named {
				t.Errorf("it is not named: %v %v", g.Lapses, g.Accused)
			}
			for _, l := range g.Lapses {
				if l.Site != "site-02" {
					t.Errorf("%s is named: %s", l.Site, l.Reason)
				}
			}
			if len(g.Survivors) < 4 {
				t.Errorf("only %v are in the sum", g.Survivors)
			}
		})
	}
	for _, step := range []Step{StepKeys, StepShares, StepAccept, StepTrain, StepConfirm, StepReveal} {
		for _, trick := range tricks {
			if testing.Short() && step != StepKeys && step != StepConfirm {
				continue
			}
			check(trick.name, step, trick.do, trick.name == "the round before")
		}
	}
	for _, trick := range vectors {
		check(trick.name, StepTrain, trick.do, false)
	}
}

func TestASiteThatIsSilentAtAnyStepCostsTheDeadlineAndIsNamed(t *testing.T) {
	for _, step := range []Step{StepKeys, StepShares, StepAccept, StepTrain, StepConfirm, StepReveal} {
		synctest.Test(t, func(t *testing.T) { // whose clock stands still while anybody works
			s := newSchool(t, 5, 3, func(terms *Terms) { terms.Deadline = time.Hour })
			c := s.coordinator(t, nil)
			links := s.links()
			silence := silent{links[1], step, make(chan struct{})}
			links[1] = silence
			began := time.Now()
			out, err := c.Round(t.Context(), links)
			took := time.Since(began)
			close(silence.until)
			if err != nil {
				t.Fatalf("silent at %s: %v", step, err)
			}
			if took != time.Hour {
				t.Errorf("silent at %s: the round took %v", step, took)
			}
			lapses := out.Groups[0].Lapses
			if len(lapses) != 1 || lapses[0].Site != "site-01" || lapses[0].Step != step || !lapses[0].Late {
				t.Errorf("silent at %s: %v", step, lapses)
			}
			c.Settle()
		})
	}
}

type silent struct {
	Link
	at    Step
	until chan struct{}
}

// Ask does not even hear that its time is up.
func (l silent) Ask(ctx context.Context, o Order) (Answer, error) {
	if o.Step == l.at {
		<-l.until
	}
	return l.Link.Ask(ctx, o)
}

func TestASiteWhoseTrainingDivergesAddsNothing(t *testing.T) {
	s := newSchool(t, 4, 3, nil)
	s.pupils[1].target[0] = float32(math.NaN())
	s.pupils[2].target[1] = float32(math.Inf(1))
	c := s.coordinator(t, nil)
	if _, err := c.Round(t.Context(), s.links()); err != nil {
		t.Fatal(err)
	}
	for j, v := range c.Weights().Variables {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			t.Errorf("variable %d is %v", j, v)
		}
	}
}
