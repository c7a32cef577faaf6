package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"image"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
)

// brightness writes a data set of 28×28 images, of which one class is brighter.
func brightness(t *testing.T) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	arrays := map[string]train.Array{}
	for split, n := range map[string]int{"train": 256, "val": 64} {
		pixels, labels := make([]uint8, n*28*28), make([]uint8, n)
		for i := range labels {
			labels[i] = uint8(i % 2)
			for j := range 28 * 28 {
				pixels[i*28*28+j] = uint8(60 + 30*int(labels[i]) + rng.IntN(100))
			}
		}
		arrays[split+"_images"] = train.Array{Shape: []int64{int64(n), 28, 28}, Data: pixels}
		arrays[split+"_labels"] = train.Array{Shape: []int64{int64(n), 1}, Data: labels}
	}
	path := filepath.Join(t.TempDir(), "set.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(train.WriteNPZ(f, arrays), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// A real process is killed with SIGKILL at random moments, again and again, and
// started again. It ends with the model of one that nobody disturbed.
func TestAKilledTrainingRunEndsBitForBitWhereAnUndisturbedOneDoes(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED, nothing was checked: kills processes for seconds")
	}
	data := brightness(t)
	for _, network := range []string{"demo", "tabular-mlp"} { // the latter has batch normalisation
		input, epochs := data, "4"
		if network == "tabular-mlp" {
			input, epochs = table(t), "100"
		}
		arguments := func(out string) []string {
			return []string{"train", network, "--data", input, "--out", out, "--epochs", epochs, "--batch", "16", "--seed", "3", "--mixup", "0.2", "--checkpoint", "--checkpoint-every", "10ms"}
		}
		whole := filepath.Join(t.TempDir(), "whole.onnx")
		began := time.Now()
		if out, err := exec.Command("vigie", arguments(whole)...).CombinedOutput(); err != nil {
			if strings.Contains(string(out), "make runtime") {
				t.Skipf("SKIPPED, nothing was checked: %s", out)
			}
			t.Fatalf("%v\n%s", err, out)
		}
		took := time.Since(began)
		want, err := os.ReadFile(whole)
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
		killed := filepath.Join(t.TempDir(), "killed.onnx")
		kills, midway := 0, 0
		for attempt := range 4 {
			c := exec.Command("vigie", arguments(killed)...)
			var output bytes.Buffer
			c.Stdout, c.Stderr = &output, &output
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			after := time.Hour // the last one may end
			if attempt < 3 {
				after = took*2/5 + time.Duration(rng.Int64N(int64(took)*2/5))
			}
			timer := time.AfterFunc(after, func() { c.Process.Kill() })
			err := c.Wait()
			if timer.Stop() {
				if err != nil {
					t.Fatalf("%s, not killed: %v\n%s", network, err, &output)
				}
				break
			}
			if kills++; len(checkpoints(t, filepath.Dir(killed))) > 0 {
				midway++
			}
		}
		got, err := os.ReadFile(killed)
		if err != nil {
			t.Fatalf("%s: killed %d times, and it never ended: %v", network, kills, err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: killed %d times, it ends with another model", network, kills)
		}
		if left, err := filepath.Glob(filepath.Join(filepath.Dir(killed), ".*")); err != nil || len(left) > 0 {
			t.Errorf("%s: %v is left of the killed runs, %v", network, left, err)
		}
		t.Logf("%s: killed %d times, %d of them with a checkpoint on disk", network, kills, midway)
	}
}

// Ctrl-C is no failure that says "context canceled": the run says how far it was,
// what is saved and how it goes on, and the command that it prints does go on.
func TestAnInterruptedTrainingRunPrintsTheCommandThatGoesOn(t *testing.T) {
	out := filepath.Join(t.TempDir(), "my model.onnx")
	c := exec.Command("vigie", "train", "tabular-mlp", "--data", table(t), "--out", out, "--epochs", "100000", "--batch", "16", "--checkpoint")
	errs, err := c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	lines := bufio.NewScanner(errs)
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		if strings.HasPrefix(lines.Text(), "epoch ") && strings.Count(said.String(), "epoch ") == 3 {
			if err := c.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		}
	}
	err = c.Wait()
	if strings.Contains(said.String(), "make runtime") {
		t.Skipf("SKIPPED, nothing was checked: %s", said.String())
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 130 {
		t.Errorf("%v, want exit status 130\n%s", err, said.String())
	}
	text := said.String()
	at := strings.Index(text, "go on from there with:\n  ")
	if at < 0 || !strings.Contains(text, "of 100000") || !strings.Contains(text, "all of it is saved in") || strings.Contains(text, "canceled") {
		t.Fatalf("it says\n%s", text)
	}
	command := strings.TrimSpace(text[at+len("go on from there with:"):])
	again := exec.Command("timeout", "--signal=INT", "60", "sh", "-c", command+" --epochs 3") // another recipe: refused, so it was read
	output, err := again.CombinedOutput()
	if err == nil || !strings.Contains(string(output), "of another recipe") {
		t.Errorf("%s: %v\n%s", command, err, output)
	}
}

func checkpoints(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*."+train.CheckpointFile))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// table writes a CSV file of two columns that decide and one that does not.
func table(t *testing.T) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(2, 2))
	var b strings.Builder
	b.WriteString("patient,age,pressure,smoker,outcome\n")
	for i := range 400 {
		age, pressure := rng.NormFloat64(), rng.NormFloat64()
		outcome := "alive"
		if age+pressure > 0.3 {
			outcome = "dead"
		}
		b.WriteString(strings.Join([]string{strconv.Itoa(i / 2), strconv.Itoa(60 + int(10*age)), strconv.Itoa(120 + int(20*pressure)), []string{"yes", "no", ""}[rng.IntN(3)], outcome}, ",") + "\n")
	}
	path := filepath.Join(t.TempDir(), "patients.csv")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// report runs vigie and reads the JSON that it prints.
func report(t *testing.T, into any, arguments ...string) {
	t.Helper()
	var out, errs bytes.Buffer
	c := exec.Command("vigie", arguments...)
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		if strings.Contains(errs.String(), "make runtime") {
			t.Skipf("SKIPPED, nothing was checked: %s", &errs)
		}
		t.Fatalf("vigie %v: %v\n%s", arguments, err, &errs)
	}
	if err := json.Unmarshal(out.Bytes(), into); err != nil {
		t.Fatalf("vigie %v: %v\n%s", arguments, err, &out)
	}
}

// What vigie train says of its test split, vigie eval finds from the model file
// and the data alone, whatever kind they are of.
func TestEvalFindsWhatTrainReports(t *testing.T) {
	dir := t.TempDir()
	for i := range 60 { // pictures: a folder for each class, brighter ones are "opaque"
		img := image.NewGray(image.Rect(0, 0, 20, 20))
		for p := range img.Pix {
			img.Pix[p] = uint8(60 + 60*(i%2) + (p*7+i*13)%60)
		}
		path := filepath.Join(dir, "pictures", []string{"clear", "opaque"}[i%2], strconv.Itoa(i)+".png")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(png.Encode(f, img), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for name, arguments := range map[string][]string{
		"table":    {"tabular-mlp", "--data", table(t)},
		"pictures": {"demo", "--data", filepath.Join(dir, "pictures"), "--size", "28", "--batch", "8"},
	} {
		out := filepath.Join(dir, name+".onnx")
		var trained train.Report
		report(t, &trained, append([]string{"train", "--out", out, "--epochs", "4", "--rate", "0.01", "--seed", "5", "--json"}, arguments...)...)
		data := arguments[2]
		var e probe.Evaluation
		if name == "table" {
			report(t, &e, "eval", out, "--data", data, "--split", "test", "--seed", "5", "--json", "--label-column", "outcome")
		} else {
			report(t, &e, "eval", out, "--data", data, "--split", "test", "--seed", "5", "--json")
		}
		if trained.Test == nil || e.AUC == nil || math.Abs(e.AUC.Value-trained.Test.AUC.Value) > 1e-9 || e.Images[1] != trained.Test.Images[1] || e.DataDigest != trained.DataDigest {
			t.Errorf("%s: eval says %+v, train said %+v", name, e, trained.Test)
		}
		if e.Classes[1] != trained.Classes[1] {
			t.Errorf("%s: classes %v, were %v", name, e.Classes, trained.Classes)
		}
		if trained.AUC.Value < 0.7 {
			t.Errorf("%s: validation AUC is %g", name, trained.AUC.Value)
		}
	}
}
