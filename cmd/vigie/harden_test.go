package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie/train"
)

// Killed with SIGKILL wherever it is, in the training before or in the hardening,
// and started again, a job ends with the model of one that nobody disturbed.
func TestAKilledHardeningEndsBitForBitWhereAnUndisturbedOneDoes(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED, nothing was checked: kills processes for seconds")
	}
	data := brightness(t)
	arguments := func(out string) []string {
		return []string{"harden", "--recipe", "hard-28", "--data", data, "--out", out, "--epochs", "2", "--batch", "32", "--seed", "3", "--ramp", "1",
			"--method", "trades", "--steps", "1", "--awp", "0.005", "--mask-sizes", "5,9", "--between", "0.5", "--bounds", "none", "--checkpoint", "--checkpoint-every", "10ms"}
	}
	whole := filepath.Join(t.TempDir(), "whole")
	began := time.Now()
	if out, err := exec.Command("vigie", arguments(whole)...).CombinedOutput(); err != nil {
		if strings.Contains(string(out), "make runtime") {
			t.Skipf("SKIPPED, nothing was checked: %s", out)
		}
		t.Fatalf("%v\n%s", err, out)
	}
	took := time.Since(began)
	want, err := os.ReadFile(filepath.Join(whole, "model.onnx"))
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	killed := filepath.Join(t.TempDir(), "killed")
	kills, midway := 0, 0
	for attempt := range 3 {
		c := exec.Command("vigie", arguments(killed)...)
		var output bytes.Buffer
		c.Stdout, c.Stderr = &output, &output
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Hour // the last one may end
		if attempt < 2 {
			after = took*3/10 + time.Duration(rng.Int64N(int64(took)*3/10))
		}
		timer := time.AfterFunc(after, func() { c.Process.Kill() })
		err := c.Wait()
		if timer.Stop() {
			if err != nil {
				t.Fatalf("not killed: %v\n%s", err, &output)
			}
			break
		}
		kills++
		if _, err := os.Stat(filepath.Join(killed, train.CheckpointFile)); err == nil {
			midway++
		}
	}
	got, err := os.ReadFile(filepath.Join(killed, "model.onnx"))
	if err != nil {
		t.Fatalf("killed %d times, and it never ended: %v", kills, err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("killed %d times, it ends with another model", kills)
	}
	t.Logf("killed %d times, %d of them with a checkpoint of the hardening on disk", kills, midway)
}
