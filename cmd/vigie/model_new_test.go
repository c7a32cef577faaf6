package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
)

func TestANewModelIsAFileOrAPackageThatNamesItsLabels(t *testing.T) {
	folder := t.TempDir()
	file, dir := filepath.Join(folder, "net.onnx"), filepath.Join(folder, "my-net")
	for _, out := range []string{file, dir} {
		text, err := command(t, "model", "new", "resnet18", "--input", "1x32x32", "--labels", "normal,pneumonia", "--norm", "group", "--seed", "7", "--out", out)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text, "11171266 parameters, seed 7") {
			t.Errorf("it says %s", text)
		}
	}
	m, err := onnx.Load(file)
	if err != nil || m.Metadata["labels"] != "normal,pneumonia" {
		t.Errorf("labels in the file: %v, %v", m.Metadata, err)
	}
	manifest, err := os.ReadFile(filepath.Join(dir, model.ManifestFile))
	if err != nil || !strings.Contains(string(manifest), "- name: pneumonia") || !strings.Contains(string(manifest), "rows: 32") {
		t.Errorf("the manifest: %v\n%s", err, manifest)
	}
	for want, args := range map[string][]string{
		"choose one of attention-mil": {"resnet", "--input", "1x32x32", "--labels", "a,b"},
		"such as 1x224x224":           {"resnet18", "--labels", "a,b", "--input", "32,32", "--out", filepath.Join(folder, "other.onnx")},
		"exists already":              {"resnet18", "--input", "1x32x32", "--labels", "a,b"},
		"an ONNX file holds":          {"vit-s16", "--input", "1x65536x65536", "--labels", "a,b", "--out", filepath.Join(folder, "big.onnx")},
		"normalisation":               {"resnet18", "--input", "1x32x32", "--labels", "a,b", "--norm", "layer", "--out", filepath.Join(folder, "other.onnx")},
	} {
		if _, err := command(t, append([]string{"model", "new", "--out", file}, args...)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q in it", args, err, want)
		}
	}
}

func TestANewModelNeedsNoNameForItsFile(t *testing.T) {
	t.Chdir(t.TempDir())
	text, err := command(t, "model", "new", "tabular-mlp", "--input", "30", "--labels", "benign,malignant", "--json")
	if err != nil || !strings.Contains(text, `"out":"tabular-mlp.onnx"`) || !strings.Contains(text, `"seed":1`) {
		t.Fatalf("%v: %s", err, text)
	}
	if _, err := onnx.Load("tabular-mlp.onnx"); err != nil {
		t.Error(err)
	}
}
