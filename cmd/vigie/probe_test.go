package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/probe"
)

const demoPackage = "../../models/chest-pneumonia-28"

// command runs a command line in this process and returns its standard output.
func command(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRootCommand()
	root.SetArgs(args)
	root.SetOut(&out)
	root.SetErr(&bytes.Buffer{})
	err := root.ExecuteContext(t.Context())
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, NOTHING PROVED: %v", err)
	}
	return out.String(), err
}

func TestAPackageIsRunAndDifferentiatedFromTheCommandLine(t *testing.T) {
	folder := t.TempDir()
	x, y, out := filepath.Join(folder, "x.npy"), filepath.Join(folder, "y.npy"), filepath.Join(folder, "out.safetensors")
	for path, tensor := range map[string]engine.Tensor{
		x: engine.Float32([]int64{3, 1, 28, 28}, make([]float32, 3*28*28)),
		y: engine.Int64([]int64{3, 1}, []int64{0, 1, 1}),
	} {
		if err := probe.Save(path, map[string]engine.Tensor{"": tensor}, nil); err != nil {
			t.Fatal(err)
		}
	}
	text, err := command(t, "run", demoPackage, "--input", "image="+x, "--out", filepath.Join(folder, "z.npy"), "--json")
	if err != nil {
		t.Fatal(err)
	}
	var answer probe.Answer
	if err := json.Unmarshal([]byte(text), &answer); err != nil || len(answer.Outputs) != 1 || answer.Outputs[0].Name != "logits" || len(answer.Warnings) != 0 {
		t.Errorf("vigie run: %v, %+v", err, answer)
	}
	if z, err := probe.ReadArray(filepath.Join(folder, "z.npy")); err != nil || z.Len() != 6 {
		t.Errorf("logits in the file: %v, %v", z, err)
	}
	text, err = command(t, "grad", demoPackage, "--input", x, "--label", y, "--loss", "cross-entropy", "--wrt", "weights", "--per-example", "--out", out)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text, "over 3 examples") || !strings.Contains(text, "head.bias float[3 2]") {
		t.Errorf("vigie grad prints %s", text)
	}
	if _, err := os.Stat(out); err != nil {
		t.Error(err)
	}
}

func TestAProbeWithoutWhatItNeedsSaysSo(t *testing.T) {
	for want, args := range map[string][]string{
		`"input"`:                            {"run", demoPackage},
		"name it .npy, .npz or .safetensors": {"run", demoPackage, "--input", "x.txt"},
		"nosuch.onnx":                        {"grad", "nosuch.onnx", "--input", "x.npy"},
	} {
		if _, err := command(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("vigie %q: %v, want %q in it", args, err, want)
		}
	}
}
