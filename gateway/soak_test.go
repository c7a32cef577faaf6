package gateway

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/demo/ports"
	"github.com/vigie/vigie/enclave"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

// soakEnv names the configuration of a gateway that a test runs in a process
// of its own, to kill it.
const soakEnv = "VIGIE_TEST_SOAK_CONFIG"

// TestMain is also the entry of that process.
func TestMain(m *testing.M) {
	if path := os.Getenv(soakEnv); path != "" {
		if err := soakChild(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(storetest.Main(m))
}

func soakChild(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var config Config
	if err := json.Unmarshal(data, &config); err != nil {
		return err
	}
	// The answer depends on the case alone, but now and then there is none.
	diagnoser, err := makeStandIn(config.Model, func(r enclave.Request) (float64, error) {
		if rand.IntN(20) == 0 {
			return 0, fmt.Errorf("testing: %w", enclave.ErrUnavailable)
		}
		return []float64{0.03, 0.97, 0.5, 0.02}[int(r.Case[0])%4], nil
	})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	g, err := Open(ctx, &config, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), Options{Diagnoser: diagnoser})
	if err != nil {
		return err
	}
	return errors.Join(g.Run(ctx), g.Close())
}

const (
	soakSenders = 8
	soakStudies = 25 // a sender
	soakKills   = 15
)

func TestNoAcknowledgedStudyIsLostOrDeliveredTwiceWhileTheGatewayIsKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("kills a gateway 15 times while 200 studies arrive; takes a minute")
	}
	for _, database := range storetest.Databases {
		t.Run(database, func(t *testing.T) { soak(t, database) })
	}
}

func soak(t *testing.T, database string) {
	config := testConfig(t)
	if database == "postgres" {
		config.Store = storetest.Config(t, database).URL
	}
	peer := startPACS(t)
	config.Destinations = []DestinationConfig{peer.destination("pacs")}
	config.Limits.DeliveryRetry = time.Second
	addresses, err := ports.Reserve(1)
	if err != nil {
		t.Fatal(err)
	}
	config.DIMSE.Listen, config.HTTP.Listen = addresses[0], ""
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}

	stderr := new(lockedBuffer)
	spawn := func() *exec.Cmd {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), soakEnv+"="+path)
		child.Stderr = stderr
		child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		return child
	}

	var studies []Outgoing
	for i := range soakSenders * soakStudies {
		object := chest(t, uint64(i+1), phantom.Options{Rows: 64, Columns: 64})
		if i%20 == 7 {
			object = object[:len(object)-500]
		}
		o, err := NewOutgoing(object)
		if err != nil {
			t.Fatal(err)
		}
		studies = append(studies, o)
	}
	var acknowledged atomic.Int64
	var senders sync.WaitGroup
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	for s := range soakSenders {
		senders.Go(func() {
			for _, o := range studies[s*soakStudies : (s+1)*soakStudies] {
				for !sendOnce(ctx, config.DIMSE.Listen, o) {
					if ctx.Err() != nil {
						return
					}
					time.Sleep(50 * time.Millisecond)
				}
				acknowledged.Add(1)
				// Slow enough that the kills fall among the studies.
				time.Sleep(time.Duration(rand.IntN(1600)) * time.Millisecond)
			}
		})
	}
	kills := 0
	during := 0
	for kills < soakKills || acknowledged.Load() < int64(len(studies)) && kills < 40 {
		before, child := acknowledged.Load(), spawn()
		// Every other gateway may be killed while it starts; between them one
		// lives to take a study at least, however slow the machine.
		for kills%2 == 1 && acknowledged.Load() == before && before < int64(len(studies)) && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Duration(300+rand.IntN(1500)) * time.Millisecond)
		if n := acknowledged.Load(); n > 0 && n < int64(len(studies)) {
			during++
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait() // it was killed
		kills++
	}
	child := spawn()
	senders.Wait()
	if n := acknowledged.Load(); n != int64(len(studies)) {
		t.Fatalf("only %d of %d studies were acknowledged\n%s", n, len(studies), stderr)
	}

	book, err := OpenCasebook(context.Background(), config, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer book.Close()
	states := map[vigie.State]int{}
	expected := map[string]bool{}
	for _, o := range studies {
		c := restOf(t, book, o, stderr)
		states[c.State]++
		if c.State == vigie.Delivered {
			expected[ResultUID(c.ID, c.Model, RoleReport)] = true
			expected[ResultUID(c.ID, c.Model, RoleOverlay)] = true
		}
	}
	if err := child.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); err != nil {
		t.Errorf("the last gateway did not end cleanly: %v\n%s", err, stderr)
	}

	again := 0
	received := peer.received()
	for uid, times := range received {
		if !expected[uid] {
			t.Errorf("the PACS has %s, which no delivered case explains", uid)
		}
		for _, other := range times[1:] {
			again++
			if !bytes.Equal(other, times[0]) {
				t.Errorf("%s arrived with other bytes", uid)
			}
		}
		delete(expected, uid)
	}
	for uid := range expected {
		t.Errorf("the PACS lacks %s", uid)
	}
	var cases []vigie.Case
	if cases, err = book.Cases(context.Background(), store.Filter{Limit: 10000}); err != nil || len(cases) != len(studies) {
		t.Errorf("%d cases for %d studies, %v", len(cases), len(studies), err)
	}
	mustVerify(t, book)
	t.Logf("%d kills (%d of them while studies arrived), %d studies: %v; %d objects at the PACS, %d of them resent with the same UID and bytes",
		kills, during, len(studies), states, len(received), again)
	if during < 10 {
		t.Errorf("only %d kills fell among the studies", during)
	}
}

// sendOnce reports whether the gateway acknowledged an object.
func sendOnce(ctx context.Context, address string, o Outgoing) bool {
	a, err := dimse.Dial(ctx, address, dimse.ClientConfig{CallingAE: "MODALITY", CalledAE: "VIGIE", Plain: true, Timeout: 20 * time.Second},
		dimse.Contexts(o.SOPClass, o.TransferSyntax))
	if err != nil {
		return false
	}
	defer a.Abort()
	status, err := a.Store(ctx, o.SOPClass, o.SOPInstance, o.TransferSyntax, bytes.NewReader(o.File[o.dataSet:]))
	return err == nil && status == dimse.Success
}

// restOf waits until the case of an acknowledged object rests.
func restOf(t *testing.T, book *Casebook, o Outgoing, stderr *lockedBuffer) *vigie.Case {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		c, err := book.CaseOf(context.Background(), o.SOPInstance)
		if err != nil {
			t.Fatalf("an acknowledged study is lost: %v", err)
		}
		switch c.State {
		case vigie.Delivered, vigie.InReview, vigie.Quarantined:
			return c
		}
		if time.Now().After(deadline) {
			t.Fatalf("case %s is still %s\n%s", c.ID, c.State, tail(stderr))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func tail(w *lockedBuffer) string {
	lines := strings.Split(w.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}
