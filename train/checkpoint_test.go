package train

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vigie/vigie/engine"
)

// countdown is a context that is cancelled when it has been asked n times. The
// parts of a batch ask at once.
type countdown struct {
	context.Context
	left atomic.Int64
}

func countdownOf(t *testing.T, n int) *countdown {
	c := &countdown{Context: t.Context()}
	c.left.Store(int64(n))
	return c
}

func (c *countdown) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// Killed within epochs, at any step, and gone on from what was saved: the end is
// the same, for weights, running statistics and the average of both.
func TestARunTakenUpWithinAnEpochEndsBitForBitTheSame(t *testing.T) {
	built := normalised(t)
	set := noise(96, 6, 2, 1)
	recipe := Recipe{Epochs: 3, Batch: 16, Rate: 1e-2, Warmup: 0.5, Average: 0.9, Mixup: 0.3, Clip: 0.5, Seed: 3, Augmentation: Augmentation{Shift: 1, Noise: 0.05}}
	whole := train(t, Config{Network: built, Train: set, Validation: set, Recipe: recipe})
	want := bytesOf(t, whole.Model)
	for _, asked := range []int{8, 13, 20} { // a step asks more than once
		c := Config{Network: normalised(t), Train: set, Validation: set, Recipe: recipe, Checkpoint: filepath.Join(t.TempDir(), "checkpoint"), CheckpointEvery: 1}
		if asked == 13 { // what is saved is only what the interrupted run saves at its end
			c.CheckpointEvery = 0
		}
		kills := 0
		var result *Result
		for {
			var err error
			result, err = Run(countdownOf(t, asked), c, nil)
			if err == nil {
				break
			}
			if !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			if kills++; kills > 100 {
				t.Fatal("no progress over 100 kills")
			}
		}
		if bytesOf(t, result.Model) != want {
			t.Errorf("killed %d times: another model", kills)
		}
		if kills < 2 {
			t.Errorf("killed %d times only", kills)
		}
		for i, e := range result.History.Epochs {
			if e.Loss != whole.History.Epochs[i].Loss {
				t.Errorf("epoch %d: loss %v, was %v", i+1, e.Loss, whole.History.Epochs[i].Loss)
			}
		}
	}
}

func TestAStoppedRunSaysHowFarItWasAndWhatIsSaved(t *testing.T) {
	stopped := func(c Config, asked int) *Interrupted {
		t.Helper()
		_, err := Run(countdownOf(t, asked), c, nil)
		if errors.Is(err, engine.ErrNoRuntime) {
			skipWithoutRuntime(t, err)
		}
		var s *Interrupted
		if !errors.As(err, &s) || !errors.Is(err, context.Canceled) {
			t.Fatalf("error is %v", err)
		}
		return s
	}
	path := filepath.Join(t.TempDir(), "checkpoint")
	c := Config{Network: tiny(t, 1), Train: corners(64, 1), Validation: corners(32, 2), Recipe: quick, Checkpoint: path}
	if s := stopped(c, 0); s.Step != 0 || s.Checkpoint != "" || !strings.Contains(s.Error(), "before the first step was done; nothing is saved") {
		t.Errorf("at once: %v", s)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a run that did nothing left a checkpoint")
	}
	last, kills := -1, 0
	for {
		_, err := Run(countdownOf(t, 9), c, nil)
		if err == nil {
			break
		}
		var s *Interrupted
		if !errors.As(err, &s) {
			t.Fatal(err)
		}
		kills++
		done := s.Epochs*s.Steps + s.Step
		if done <= last || s.Of != 3 || s.Steps != 4 || s.Checkpoint != path || !strings.Contains(s.Error(), path) {
			t.Errorf("after %d steps: %+v: %v", last, s, s)
		}
		last = done
	}
	if kills < 2 {
		t.Errorf("stopped %d times only", kills)
	}
	c.Checkpoint = ""
	if s := stopped(c, 9); !strings.Contains(s.Error(), "in epoch 1 of 3, after step ") || !strings.Contains(s.Error(), "nothing is saved") {
		t.Errorf("without a checkpoint: %v", s)
	}
	private := secretConfig(t)
	if s := stopped(private, 12); s.Charged < 1 || !strings.Contains(s.Error(), "ledger keeps the ") {
		t.Errorf("a private run: %v", s)
	}
}

func TestATornOrForeignCheckpointIsRefusedWithTheNextMove(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "checkpoint")
	c := Config{Network: tiny(t, 1), Train: corners(64, 1), Validation: corners(32, 2), Recipe: quick, Checkpoint: path}
	c.Epochs = 1
	train(t, c)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(says string, c Config) {
		t.Helper()
		_, err := Run(t.Context(), c, nil)
		if !errors.Is(err, ErrCheckpoint) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "remove it") {
			t.Errorf("want a refusal with %q, got %v", says, err)
		}
	}
	for _, n := range []int{0, 5, len(checkpointMagic) + 3, len(checkpointMagic) + 32, len(good) / 2, len(good) - 1} {
		if err := os.WriteFile(path, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		refused("torn", c)
	}
	for _, at := range []int{len(checkpointMagic), len(good) / 3, len(good) - 1} {
		bad := append([]byte{}, good...)
		bad[at] ^= 1
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		refused("torn", c)
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	other := c
	other.Network = tiny(t, 2)
	refused("another network or data set", other)
	other = c
	other.Train = corners(64, 9)
	refused("another network or data set", other)
	other = c
	other.Rate = 0.5
	refused("another recipe", other)
	if _, err := Run(t.Context(), c, nil); err != nil {
		t.Errorf("the whole checkpoint is not taken up: %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("%d files are left beside the checkpoint: %v", len(left)-1, err)
	}
}
