package federate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/engine/safetensors"
)

// The program that these tests train by is the test itself, started again.
const programMode = "VIGIE_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if mode := os.Getenv(programMode); mode != "" {
		if err := playProgram(mode, os.Args[len(os.Args)-1]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// playProgram moves every trained number by 1 and every other by 2, or does what
// the mode says.
func playProgram(mode, dir string) error {
	var a Assignment
	text, err := os.ReadFile(filepath.Join(dir, RoundFile))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return err
	}
	read := func(name string) (map[string]engine.Tensor, error) {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		file, err := safetensors.Read(f, info.Size(), safetensors.Limits{})
		if err != nil {
			return nil, err
		}
		return file.Tensors, nil
	}
	global, err := read(GlobalFile)
	if err != nil {
		return err
	}
	out, name, metrics := map[string]engine.Tensor{}, WeightsFile, fmt.Sprintf(`{"steps": 2, "loss": 0.5, "accuracy": 1, "examples": %d}`, 7*btoi(mode == "count"))
	for k, t := range global {
		values := slices.Clone(t.Data.([]float32))
		for i := range values {
			if mode == "update" {
				values[i] = 0
			}
			values[i] += 1
			if slices.Contains(a.Statistics, k) {
				values[i]++
			}
		}
		out[k] = engine.Float32(t.Shape, values)
	}
	first := slices.Min(a.Trained)
	switch mode {
	case "good", "count":
	case "update":
		name = UpdateFile
	case "correction":
		correction, err := read(CorrectionFile)
		if err != nil {
			return err
		}
		for k, c := range correction {
			for i, v := range c.Data.([]float32) {
				out[k].Data.([]float32)[i] += v
			}
		}
	case "fail":
		fmt.Fprintln(os.Stderr, "cannot open the scans of /mnt/pacs")
		os.Exit(9)
	case "shout":
		for range 3000 {
			fmt.Fprintln(os.Stderr, "again and again and again")
		}
		return errors.New("the last word")
	case "hang":
		select {}
	case "orphan": // it ends, and leaves a process behind that holds its output
		command := exec.Command("sleep", "1000")
		command.Stdout, command.Stderr = os.Stdout, os.Stderr
		if err := command.Start(); err != nil {
			return err
		}
	case "nan":
		out[first].Data.([]float32)[0] = float32(math.NaN())
	case "shape":
		out[first] = engine.Float32([]int64{1, int64(len(out[first].Data.([]float32)))}, out[first].Data.([]float32))
	case "type":
		out[first] = engine.Float64(out[first].Shape, make([]float64, len(out[first].Data.([]float32))))
	case "missing":
		delete(out, first)
	case "strange":
		out["extra"] = engine.Float32([]int64{1}, []float32{1})
	case "swapped":
		delete(out, first)
		out["extra"] = engine.Float32(nil, []float32{1})
	case "large":
		out["extra"] = engine.Float32([]int64{16 << 20}, make([]float32, 16<<20))
	case "nothing":
		name = "elsewhere.safetensors"
	case "metrics":
		metrics = ""
	case "steps":
		metrics = `{"steps": 0, "loss": 1}`
	case "loss":
		metrics = `{"steps": 1, "loss": "low"}`
	case "link":
		if err := os.Symlink("/etc/hostname", filepath.Join(dir, MetricsFile)); err != nil {
			return err
		}
		metrics = ""
	case "environment":
		return errors.New(strings.Join(os.Environ(), " "))
	}
	if metrics != "" {
		if err := os.WriteFile(filepath.Join(dir, MetricsFile), []byte(metrics), 0o600); err != nil {
			return err
		}
	}
	return writeTensors(filepath.Join(dir, name), out)
}

func btoi(yes bool) int {
	if yes {
		return 1
	}
	return 0
}

// byProgram is a trainer by this test, with a model of a matrix, a bias that is
// the site's own, and a running statistic.
func byProgram(t *testing.T, mode string, change func(*CommandOptions)) Trainer {
	t.Helper()
	t.Setenv(programMode, mode)
	o := CommandOptions{
		Command: fmt.Sprintf("'%s' -test.run=xxx", os.Args[0]), Data: "/data/scans", Examples: 40, Timeout: time.Minute,
		Environment: []string{programMode}, Dir: t.TempDir(),
		Form: Form{Variables: []Variable{
			{Name: "layer/weight", Dims: []int64{2, 3}, Trained: true},
			{Name: "bias", Dims: []int64{2}, Trained: true, Own: true},
			{Name: "norm.mean", Dims: []int64{3}},
		}, Start: []float32{5, 6}},
	}
	if change != nil {
		change(&o)
	}
	trainer, err := NewCommandTrainer(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left, err := os.ReadDir(o.Dir); err != nil || len(left) > 0 {
			t.Errorf("after training the folder holds %v, %v", left, err)
		}
	})
	return trainer
}

func assigned() Work {
	w := Work{Terms: DefaultTerms("north"), Round: 3, Rate: 0.1, Variables: []float32{1, 2, 3, 4, 5, 6, 10, 20, 30}, Own: []float32{5, 6}, Seed: 4}
	w.Terms.Deadline = time.Minute
	return w
}

func TestASitesOwnProgramTrains(t *testing.T) {
	for _, mode := range []string{"good", "update", "count", "orphan"} {
		trainer := byProgram(t, mode, nil)
		if variables, trained := trainer.Size(); variables != 9 || trained != 6 || len(trainer.(PersonalTrainer).Personal()) != 2 {
			t.Errorf("%d variables, %d trained", variables, trained)
		}
		w := assigned()
		steps, loss, err := trainer.Train(t.Context(), w)
		if err != nil {
			t.Fatal(err)
		}
		if steps != 2 || loss != 0.5 || !slices.Equal(w.Variables, []float32{2, 3, 4, 5, 6, 7, 12, 22, 32}) || !slices.Equal(w.Own, []float32{6, 7}) {
			t.Errorf("%s: %d steps, loss %v, %v, %v", mode, steps, loss, w.Variables, w.Own)
		}
		if want := 40 - 33*btoi(mode == "count"); trainer.Examples() != want {
			t.Errorf("%s: %d examples, want %d", mode, trainer.Examples(), want)
		}
	}
	trainer := byProgram(t, "correction", nil)
	w := assigned()
	w.Correction = []float32{0.5, 0, 0, 0, 0, -1}
	if _, _, err := trainer.Train(t.Context(), w); err != nil || w.Variables[0] != 2.5 || w.Variables[5] != 6 {
		t.Errorf("with a correction: %v, %v", w.Variables, err)
	}
}

func TestAProgramThatDoesNotTrainIsNamedWithWhatItSaid(t *testing.T) {
	for mode, want := range map[string]string{
		"fail": "cannot open the scans of /mnt/pacs", "shout": "the last word", "nan": "diverged", "shape": "want float32 of shape [2]",
		"type": "want float32", "missing": `has no "bias"`, "strange": `"extra"`, "swapped": `has no "bias"`, "large": "want at most", "nothing": "neither",
		"metrics": "no metrics.json", "steps": "0 steps", "loss": "metrics.json", "link": "no plain file", "hang": "stopped after",
	} {
		trainer := byProgram(t, mode, func(o *CommandOptions) {
			if mode == "hang" {
				o.Timeout = 300 * time.Millisecond
			}
		})
		w := assigned()
		_, _, err := trainer.Train(t.Context(), w)
		if !errors.Is(err, ErrProgram) || !strings.Contains(err.Error(), want) || len(err.Error()) > 2*tailOfText {
			t.Errorf("%s: %v, want %q", mode, err, want)
		}
	}
	// whoever asked has gone away
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := byProgram(t, "hang", nil).Train(ctx, assigned()); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestAProgramSeesNoSecretsOfItsSite(t *testing.T) {
	t.Setenv("SITE_SECRET", "hunter2")
	t.Setenv("OMP_NUM_THREADS", "1")
	_, _, err := byProgram(t, "environment", nil).Train(t.Context(), assigned())
	if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "OMP_NUM_THREADS=1") || !strings.Contains(err.Error(), "PATH=") {
		t.Errorf("the program sees %v", err)
	}
}

func TestAProgramThatHasChangedDoesNotTrain(t *testing.T) {
	script := filepath.Join(t.TempDir(), "train.sh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexit 1\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	trainer := byProgram(t, "good", func(o *CommandOptions) { o.Command += " " + script })
	p := trainer.(interface{ Program() Program }).Program()
	if len(p.Files) != 2 || p.Files[1].Path != script || len(p.SHA256) != 64 {
		t.Errorf("%+v", p)
	}
	if _, _, err := trainer.Train(t.Context(), assigned()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexit 0\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := trainer.Train(t.Context(), assigned()); !errors.Is(err, ErrProgram) {
		t.Errorf("after a change: %v", err)
	}
}

func TestCommandsAreDividedAsAShellWould(t *testing.T) {
	for command, want := range map[string][]string{
		`python3 train.py`:                    {"python3", "train.py"},
		` a  "b c" 'd "e"' f\ g h"i"'j' ''  `: {"a", "b c", `d "e"`, "f g", "hij", ""},
		`"a\"b" 'c\d'`:                        {`a"b`, `c\d`},
	} {
		if got, err := splitCommand(command); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q is %q, want %q (%v)", command, got, want, err)
		}
	}
	for _, command := range []string{"", "  ", `"`, `a 'b`, `a \`, "''", "a\x00b"} {
		if got, err := splitCommand(command); err == nil {
			t.Errorf("%q is %q", command, got)
		}
	}
	for what, o := range map[string]CommandOptions{
		"no model":             {Command: "true", Examples: 1},
		"no examples":          {Command: "true", Form: Form{Variables: []Variable{{Name: "w", Dims: []int64{1}, Trained: true}}}},
		"a program that isn't": {Command: "no-such-program-anywhere", Examples: 1, Form: Form{Variables: []Variable{{Name: "w", Dims: []int64{1}, Trained: true}}}},
	} {
		if _, err := NewCommandTrainer(o); !errors.Is(err, ErrProgram) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzMetrics(f *testing.F) {
	f.Add([]byte(`{"steps": 2, "loss": 0.5}`))
	f.Add([]byte(`{"steps": 1e99}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := parseMetrics(data); err == nil && (m.Steps < 1 || m.Examples < 0 || math.IsNaN(m.Loss) || math.IsInf(m.Loss, 0)) {
			t.Errorf("%q is read as %+v", data, m)
		}
	})
}

func FuzzCommands(f *testing.F) {
	f.Add(`python3 "train.py" 'x y'`)
	f.Fuzz(func(t *testing.T, command string) {
		words, err := splitCommand(command)
		if err == nil && (len(words) == 0 || words[0] == "") {
			t.Errorf("%q is %q", command, words)
		}
	})
}
