package train

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestAnOutputIsHeldByOneRunAtATimeWhateverItsName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "out")
	first, err := HoldOutput(dir)
	if err != nil {
		t.Fatal(err)
	}
	// A folder and the model within it are one place.
	for _, same := range []string{dir, filepath.Join(dir, ModelFile), filepath.Join(dir, "..", "out")} {
		if _, err := HoldOutput(same); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
			t.Errorf("%s is held already: %v", same, err)
		}
	}
	other, err := HoldOutput(filepath.Join(dir, "other.onnx"))
	if err != nil {
		t.Errorf("another model in the folder: %v", err)
	}
	if err := errors.Join(other.Release(), first.Release()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder that was made for the hold alone stayed")
	}
	again, err := HoldOutput(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Release(); err != nil {
		t.Error(err)
	}
}

// The hold is the process's: it ends with it, and what it was writing is cleared
// away by the next.
func TestAKilledProcessHoldsNothing(t *testing.T) {
	dir := t.TempDir()
	if out := os.Getenv("VIGIE_TEST_HOLD"); out != "" {
		if _, err := HoldOutput(out); err != nil {
			t.Fatal(err)
		}
		WriteWhole(filepath.Join(out, CheckpointFile), func(w io.Writer) error {
			fmt.Fprintln(os.Stdout, "half-way")
			select {} // until it is killed
		})
	}
	c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	c.Env = append(os.Environ(), "VIGIE_TEST_HOLD="+dir)
	said, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(said, make([]byte, len("half-way"))); err != nil {
		t.Fatal(err)
	}
	if _, err := HoldOutput(dir); !errors.Is(err, ErrBusy) {
		t.Errorf("while the other process lives: %v", err)
	}
	if left := listing(t, dir); len(left) != 2 {
		t.Errorf("half-way there are %v", left)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	h, err := HoldOutput(dir)
	if err != nil {
		t.Fatal(err)
	}
	if left := listing(t, dir); len(left) != 1 {
		t.Errorf("left by the killed process: %v", left)
	}
	if err := h.Release(); err != nil {
		t.Error(err)
	}
	if left := listing(t, dir); len(left) != 0 {
		t.Errorf("left at the end: %v", left)
	}
}

func listing(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func TestAFileIsReplacedWholeOrNotAtAll(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	text := func(s string) func(io.Writer) error {
		return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
	}
	if err := WriteWhole(path, text("first")); err != nil {
		t.Fatal(err)
	}
	full := errors.New("the disk is full")
	if err := WriteWhole(path, func(w io.Writer) error { return errors.Join(text("seco")(w), full) }); !errors.Is(err, full) {
		t.Errorf("error is %v", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "first" || len(listing(t, dir)) != 1 {
		t.Errorf("%q, %v, beside %v", got, err, listing(t, dir))
	}
}
