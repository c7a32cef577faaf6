package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/demo/ports"
	"github.com/vigie/vigie/enclave"
	"github.com/vigie/vigie/medical/dicom/deidentify"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
)

// enclaveError runs `vigie enclave` with arguments that must be refused.
func enclaveError(args ...string) error {
	root := newRootCommand()
	root.SetArgs(append([]string{"enclave"}, args...))
	root.SetErr(&bytes.Buffer{})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return root.ExecuteContext(ctx)
}

func TestTheEnclaveStartsOnlyWithAnHonestChoiceOfEvidence(t *testing.T) {
	if err := enclaveError("--model", "x", "--production"); !errors.Is(err, attest.ErrDevelopmentEvidence) {
		t.Errorf("--production: got %v, want ErrDevelopmentEvidence", err)
	}
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"neither": {[]string{"--model", "x"}, "--development"},
		"both":    {[]string{"--model", "x", "--development", "--production"}, "none of the others"},
		"nothing": {nil, "--model"},
	} {
		if err := enclaveError(test.args...); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q in it", name, err, test.want)
		}
	}
	t.Setenv("VIGIE_ENCLAVE_PRODUCTION", "true")
	if err := enclaveError("--model", "x", "--development"); err == nil || !strings.Contains(err.Error(), "none of the others") {
		t.Errorf("production by variable, development by flag: got %v, want a refusal", err)
	}
	t.Setenv("VIGIE_ENCLAVE_PRODUCTION", "perhaps")
	if err := enclaveError("--model", "x"); err == nil || !strings.Contains(err.Error(), "VIGIE_ENCLAVE_PRODUCTION") {
		t.Errorf("a variable that makes no sense: got %v, want its name", err)
	}
}

func TestAGatewayCanUseTheEnclaveCommand(t *testing.T) {
	const folder = "../../models/chest-pneumonia-28"
	pkg, err := model.Open(folder)
	if err != nil {
		t.Skipf("the demo package cannot be opened: %v", err)
	}
	reserved, err := ports.Reserve(1)
	if err != nil {
		t.Fatal(err)
	}
	address := reserved[0]

	t.Setenv("VIGIE_ENCLAVE_MODEL", folder)
	root := newRootCommand()
	var log bytes.Buffer
	root.SetErr(&log)
	root.SetArgs([]string{"enclave", "--development", "--listen", address})
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- root.ExecuteContext(ctx) }()

	quiet := slog.New(slog.DiscardHandler)
	place, err := enclave.NewRemote(enclave.RemoteOptions{URL: "http://" + address, Development: true, Attempts: 20})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := attest.NewVerifier(attest.Policy{Providers: []string{attest.DevelopmentName}, Model: pkg.Digest}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	image, err := phantom.Chest(3, phantom.Options{})
	if err != nil {
		t.Fatal(err)
	}
	profile, err := deidentify.New(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	copied, err := profile.Apply(image)
	if err != nil {
		t.Fatal(err)
	}
	var encoded bytes.Buffer
	if err := copied.File.Write(&encoded); err != nil {
		t.Fatal(err)
	}
	result, err := enclave.NewClient(place, verifier, enclave.ClientOptions{}).Diagnose(ctx,
		enclave.Request{Case: "abcdefghijklmnopqrstuvwxyz", Patient: copied.Patient, DICOM: encoded.Bytes()})
	if err != nil {
		t.Fatal(err)
	}
	if len(result.Finding.Predictions) == 0 {
		t.Errorf("no prediction: %v", result.Finding.Referrals)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("the command ended with %v", err)
	}
	if !strings.Contains(log.String(), "NOT PROTECTED BY HARDWARE") {
		t.Error("development evidence was used without the warning")
	}
	if strings.Contains(log.String(), string(copied.Patient)) {
		t.Error("the log names the pseudonym")
	}
}
