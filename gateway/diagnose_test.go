package gateway

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/enclave"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

func TestACaseWaitsForAnEnclaveThatComesBack(t *testing.T) {
	config := testConfig(t)
	var down atomic.Bool
	down.Store(true)
	remote := newStandIn(t, config.Model, func(enclaveRequest) (float64, error) {
		if down.Load() {
			return 0, fmt.Errorf("testing: %w", enclave.ErrUnavailable)
		}
		return 0.03, nil
	})
	g := start(t, config, Options{Diagnoser: remote})
	id := mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case
	eventually(t, "the enclave to be asked twice in vain", func() bool { return len(remote.requests()) >= 2 })
	settled(t, g.Casebook, id, vigie.Received)
	down.Store(false)
	settled(t, g.Casebook, id, vigie.Delivered)
	mustVerify(t, g.Casebook)
}

func TestACaseThatCannotBeAnalysedGoesToAPerson(t *testing.T) {
	for name, failure := range map[string]error{
		"unavailable": enclave.ErrUnavailable, "not trusted": enclave.ErrUntrusted, "forged reply": enclave.ErrReply, "too large": enclave.ErrTooLarge,
	} {
		t.Run(name, func(t *testing.T) {
			config := testConfig(t)
			config.Enclave.GiveUpAfter = 300 * time.Millisecond
			g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, func(enclaveRequest) (float64, error) { return 0, failure })})
			c := settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case, vigie.InReview)
			if codesOf(c) != string(vigie.ReasonEnclave) || c.Finding != nil || c.Model != "" {
				t.Errorf("reasons %q, finding %v, model %q", codesOf(c), c.Finding, c.Model)
			}
			mustVerify(t, g.Casebook)
		})
	}
}

func TestAPanicCostsOneTryAndThenTheCaseGoesToAPerson(t *testing.T) {
	if testing.Short() {
		t.Skip("the pauses between crashes add up to 15 seconds")
	}
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, func(enclaveRequest) (float64, error) {
		panic("testing: a poisonous case of PLANTED^NAME")
	})})
	id := mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case
	if c := settled(t, g.Casebook, id, vigie.InReview); !strings.Contains(codesOf(c), string(vigie.ReasonInternal)) {
		t.Errorf("reasons %q", codesOf(c))
	}
	if err := g.stop(); err != nil {
		t.Error(err)
	}
	if strings.Contains(g.log.String(), "PLANTED") {
		t.Error("the log quotes the panic")
	}
}

func TestTwoModelVersionsNeverReadOneStudy(t *testing.T) {
	config := testConfig(t)
	first := newStandIn(t, config.Model, always(0.03))
	g := start(t, config, Options{Diagnoser: first})
	settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 1, phantom.Options{})).Case, vigie.Delivered)
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	config.Model = otherModel(t, config.Model)
	second := newStandIn(t, config.Model, always(0.03))
	g = start(t, config, Options{Diagnoser: second})
	sibling := settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 1, phantom.Options{Instance: 1})).Case, vigie.InReview)
	if codesOf(sibling) != string(vigie.ReasonNoModel) || len(second.requests()) != 0 {
		t.Errorf("reasons %q after %d questions to the other model", codesOf(sibling), len(second.requests()))
	}
	stranger := settled(t, g.Casebook, mustGive(t, g.Gateway, chest(t, 2, phantom.Options{})).Case, vigie.Delivered)
	if stranger.Model != second.model {
		t.Errorf("a new study was read by %s, want %s", stranger.Model, second.model)
	}
}
