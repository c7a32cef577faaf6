package enclave

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attest"
	"github.com/vigie/vigie/demo/ports"
)

// enclaveVariable, if set, turns this test binary into an enclave that listens
// on the address it holds and reads cases by a script: a case "hold" never ends.
const enclaveVariable = "VIGIE_TEST_ENCLAVE"

func TestMain(m *testing.M) {
	if address := os.Getenv(enclaveVariable); address != "" {
		if err := actAsEnclave(address); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func actAsEnclave(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	script := &scripted{model: exampleModel, answer: func(ctx context.Context, _ vigie.PatientPseudonym, dicom []byte) vigie.Finding {
		switch {
		case bytes.Equal(dicom, []byte("hold")):
			fmt.Println("reading")
			<-ctx.Done()
		case bytes.Equal(dicom, []byte("slow")):
			fmt.Println("reading")
			time.Sleep(300 * time.Millisecond)
		}
		return positive()
	}}
	w, err := newWorker(script, attest.NewDevelopment(quiet()), Options{Logger: quiet(), MaxConcurrent: 4})
	if err != nil {
		return err
	}
	fmt.Println("listening", listener.Addr())
	return Serve(ctx, w, ServeOptions{Listener: listener})
}

// process is an enclave in another process.
type process struct {
	command *exec.Cmd
	lines   *bufio.Scanner
	address string
}

func startProcess(t *testing.T, address string) *process {
	t.Helper()
	p := &process{command: exec.Command(os.Args[0])}
	p.command.Env = append(os.Environ(), enclaveVariable+"="+address)
	p.command.Stderr = os.Stderr
	output, err := p.command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.command.Process.Kill(); p.command.Wait() })
	p.lines = bufio.NewScanner(output)
	p.address = strings.TrimPrefix(p.await(t, "listening "), "listening ")
	return p
}

// await returns the next line, which must begin with the prefix.
func (p *process) await(t *testing.T, prefix string) string {
	t.Helper()
	if !p.lines.Scan() || !strings.HasPrefix(p.lines.Text(), prefix) {
		t.Fatalf("the enclave process said %q, want %q", p.lines.Text(), prefix)
	}
	return p.lines.Text()
}

// reserve returns an address that an enclave can have again after it was killed.
func reserve(t *testing.T) string {
	t.Helper()
	addresses, err := ports.Reserve(1)
	if err != nil {
		t.Fatal(err)
	}
	return addresses[0]
}

func TestAnEnclaveKilledInTheMiddleOfACaseIsAnErrorToRetry(t *testing.T) {
	p := startProcess(t, reserve(t))
	r := remote(t, RemoteOptions{URL: "http://" + p.address, Development: true, Attempts: 2})
	client := NewClient(r, developmentVerifier(t, exampleModel), ClientOptions{})
	before, err := client.Diagnose(context.Background(), exampleRequest())
	if err != nil {
		t.Fatal(err)
	}
	held := exampleRequest()
	held.DICOM = []byte("hold")
	failed := make(chan error, 1)
	go func() {
		_, err := client.Diagnose(context.Background(), held)
		failed <- err
	}()
	p.await(t, "reading")
	p.command.Process.Kill()
	p.command.Wait()
	if err := <-failed; !errors.Is(err, ErrUnavailable) {
		t.Fatalf("got %v, want ErrUnavailable", err)
	}
	// The next process on that address has other keys; the same client and the
	// same case go on as if nothing had happened.
	startProcess(t, p.address)
	after, err := client.Diagnose(context.Background(), exampleRequest())
	if err != nil {
		t.Fatal(err)
	}
	if before.Evidence.Identity() == after.Evidence.Identity() || bytes.Equal(before.Signed.Key, after.Signed.Key) {
		t.Error("the restarted enclave has the keys of the killed one")
	}
}

func TestARestartDuringTheRetriesCostsNothing(t *testing.T) {
	p := startProcess(t, reserve(t))
	r := remote(t, RemoteOptions{URL: "http://" + p.address, Development: true, Attempts: 20, Backoff: 10 * time.Millisecond})
	client := NewClient(r, developmentVerifier(t, exampleModel), ClientOptions{})
	if _, err := client.Verified(context.Background()); err != nil {
		t.Fatal(err)
	}
	p.command.Process.Kill()
	p.command.Wait()
	answered := make(chan error, 1)
	go func() {
		_, err := client.Diagnose(context.Background(), exampleRequest())
		answered <- err
	}()
	startProcess(t, p.address)
	if err := <-answered; err != nil {
		t.Errorf("the case sealed to the killed enclave: %v", err)
	}
}

func TestATerminatedEnclaveFinishesItsCaseAndExitsCleanly(t *testing.T) {
	p := startProcess(t, "127.0.0.1:0")
	client := NewClient(remote(t, RemoteOptions{URL: "http://" + p.address, Development: true, Attempts: 1}), developmentVerifier(t, exampleModel), ClientOptions{})
	slow := exampleRequest()
	slow.DICOM = []byte("slow")
	answered := make(chan error, 1)
	go func() {
		_, err := client.Diagnose(context.Background(), slow)
		answered <- err
	}()
	p.await(t, "reading")
	if err := p.command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-answered; err != nil {
		t.Errorf("the running case: %v", err)
	}
	if err := p.command.Wait(); err != nil {
		t.Errorf("the process ended with %v", err)
	}
}
