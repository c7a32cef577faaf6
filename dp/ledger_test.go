package dp

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestALedgerKeepsWhatWasChargedAndWhatBroke(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.jsonl")
	l, err := OpenLedger(path, "sha256:a", 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range []Run{{1.1, 0.1, 1}, {1.1, 0.1, 1}, {2, 0.1, 3}} {
		if err := l.Charge(run); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenLedger(path, "sha256:a", 100); !errors.Is(err, ErrLedgerInUse) {
		t.Errorf("two runs had the ledger at once: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenLedger(path, "sha256:b", 100); err == nil || !strings.Contains(err.Error(), "ledger of its own") {
		t.Errorf("another data set's ledger was opened: %v", err)
	}
	// The power went while the next charge was being written: no noise was drawn.
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(whole, `{"noise_multiplier":2,"ra`...), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l, err = OpenLedger(path, "sha256:a", 100)
		if err != nil {
			t.Fatal(err)
		}
		want := []Run{{1.1, 0.1, 2}, {2, 0.1, 3}}
		if !reflect.DeepEqual(l.Runs(), want) || l.Steps() != 5 {
			t.Errorf("the ledger holds %+v, want %+v", l.Runs(), want)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	l, err = OpenLedger(path, "sha256:a", 100)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := l.Charge(Run{2, 0.1, 1}); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, runs, _, err := ReadLedger(f); err != nil || runs[1].Steps != 4 {
		t.Errorf("after the torn line the file holds %+v (%v)", runs, err)
	}
	if err := l.Charge(Run{0, 0.1, 1}); !errors.Is(err, ErrRun) {
		t.Errorf("a charge without noise was written: %v", err)
	}
}

func TestAChargeThatCannotBeWrittenStopsTheStep(t *testing.T) {
	l, err := OpenLedger(filepath.Join(t.TempDir(), "ledger"), "d", 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil { // as if the disk were gone
		t.Fatal(err)
	}
	if err := l.Charge(Run{1, 0.1, 1}); err == nil || l.Steps() != 0 {
		t.Errorf("a step ran without its record: %v, %d steps", err, l.Steps())
	}
}

func TestWhatIsNoLedgerIsRefused(t *testing.T) {
	header := `{"vigie_privacy_ledger":1,"data":"d","records":10}` + "\n"
	for name, text := range map[string]string{
		"empty":             "",
		"no header":         `{"noise_multiplier":1,"sampling_rate":0.1,"steps":1}` + "\n",
		"other version":     `{"vigie_privacy_ledger":2,"data":"d","records":10}` + "\n",
		"a broken line":     header + "{\n" + `{"noise_multiplier":1,"sampling_rate":0.1,"steps":1}` + "\n",
		"a negative charge": header + `{"noise_multiplier":1,"sampling_rate":0.1,"steps":-5}` + "\n",
		"a charge of none":  header + `{"noise_multiplier":1,"sampling_rate":0.1,"steps":0}` + "\n",
		"no noise":          header + `{"noise_multiplier":0,"sampling_rate":0.1,"steps":5}` + "\n",
		"an endless line":   header + strings.Repeat(" ", maxLedgerLine+1) + "\n",
	} {
		if _, _, _, err := ReadLedger(strings.NewReader(text)); !errors.Is(err, ErrLedger) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReadLedger(f *testing.F) {
	header := `{"vigie_privacy_ledger":1,"data":"d","records":10}` + "\n"
	for _, seed := range []string{"", header, header + `{"noise_multiplier":1,"sampling_rate":0.1,"steps":1}` + "\n", header + `{"noise_multiplier":1e400}` + "\n", header + "{", "\n\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, runs, whole, err := ReadLedger(bytes.NewReader(data))
		if err != nil {
			return
		}
		if whole > int64(len(data)) || whole > 0 && data[whole-1] != '\n' {
			t.Fatalf("%d of %d bytes are whole lines", whole, len(data))
		}
		for _, r := range runs {
			if r.check() != nil || r.Steps < 1 {
				t.Fatalf("accepted %+v", r)
			}
		}
	})
}

// Composition of equal parts is the whole, and of different ones lies between
// what the quieter and the louder would cost alone.
func TestLossesOnTheSameRecordsAddUp(t *testing.T) {
	for name, a := range map[string]Accountant{"RDP": RDP{}, "PLD": PLD{Interval: 1e-3}} {
		epsilon := func(runs ...Run) float64 {
			e, err := a.Compose(runs, 1e-5)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		quiet, loud := Run{2, 0.05, 100}, Run{1, 0.05, 50}
		if whole, parts := epsilon(Run{2, 0.05, 100}), epsilon(Run{2, 0.05, 30}, Run{2, 0.05, 70}); math.Abs(whole-parts) > 1e-3 {
			t.Errorf("%s: 100 steps cost %v, 30 and 70 cost %v", name, whole, parts)
		}
		both := epsilon(quiet, loud)
		if both <= epsilon(quiet) || both <= epsilon(loud) || both > epsilon(Run{1, 0.05, 150}) || both < epsilon(Run{2, 0.05, 150}) {
			t.Errorf("%s: together %v, alone %v and %v", name, both, epsilon(quiet), epsilon(loud))
		}
		if e := epsilon(); e != 0 {
			t.Errorf("%s: nothing costs %v", name, e)
		}
		// Without sampling the composition is one Gaussian: Σ 1/σ².
		if one, two := epsilon(Run{1 / math.Sqrt(1/4.0+1/9.0), 1, 1}), epsilon(Run{2, 1, 1}, Run{3, 1, 1}); math.Abs(one-two) > 2e-3 {
			t.Errorf("%s: as one step %v, as two %v", name, one, two)
		}
	}
}

func TestAPlanLeavesRoomForWhatWasSpentBefore(t *testing.T) {
	before := []Run{{1.2, 0.05, 100}}
	plan, err := Plan{Epsilon: 4, Delta: 1e-5, Run: Run{Rate: 0.05, Steps: 100}, Before: before}.Solve(RDP{})
	if err != nil {
		t.Fatal(err)
	}
	alone, err := Plan{Epsilon: 4, Delta: 1e-5, Run: Run{Rate: 0.05, Steps: 100}}.Solve(RDP{})
	if err != nil {
		t.Fatal(err)
	}
	total, err := RDP{}.Compose(append(before, plan.Run), 1e-5)
	if err != nil {
		t.Fatal(err)
	}
	if plan.Run.Sigma <= alone.Run.Sigma || total > 4 || total < 3.9 || math.Abs(total-plan.Epsilon) > 1e-9 {
		t.Errorf("after spending, noise %v (alone %v) and %v in all", plan.Run.Sigma, alone.Run.Sigma, total)
	}
	if _, err := (Plan{Epsilon: 0.5, Delta: 1e-5, Run: Run{Rate: 0.05, Steps: 100}, Before: before}).Solve(RDP{}); !errors.Is(err, ErrRun) {
		t.Errorf("a spent budget was planned: %v", err)
	}
}
