package model

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/onnx"
)

// demoManifest is a manifest like that of the demo package.
func demoManifest(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile("testdata/manifest.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// graph is a small convolutional classifier in the shape that the demo
// manifest describes.
func graph(t testing.TB, labels int64) *onnx.Model {
	t.Helper()
	b := onnx.NewBuilder(17)
	batch := onnx.Dim{Value: -1, Param: "batch"}
	x := b.Input("image", onnx.Float, batch, onnx.Dim{Value: 1}, onnx.Dim{Value: 28}, onnx.Dim{Value: 28})
	kernel := b.Weight("kernel", []int64{2, 1, 3, 3}, make([]float32, 18))
	features := b.Node(&onnx.Node{OpType: "Conv", Inputs: []string{x, kernel}, Outputs: []string{"features"}}, 1)[0]
	flat := b.Op("Flatten", []string{b.Op("GlobalAveragePool", []string{features})}, onnx.IntAttribute("axis", 1))
	weights := b.Weight("weights", []int64{2, labels}, make([]float32, 2*labels))
	b.Node(&onnx.Node{OpType: "MatMul", Inputs: []string{flat, weights}, Outputs: []string{"logits"}}, 1)
	b.Output("logits", onnx.Float, batch, onnx.Dim{Value: labels})
	m, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// folder writes an unsealed package.
func folder(t testing.TB, manifest string, g *onnx.Model) string {
	t.Helper()
	dir := t.TempDir()
	data, err := g.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		ManifestFile: manifest, GraphFile: string(data), CardFile: "# Card\n",
		CalibrationFile: `{"method": "temperature", "temperature": 2}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func sealed(t testing.TB) string {
	t.Helper()
	dir := folder(t, demoManifest(t), graph(t, 2))
	if _, err := Seal(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestASealedPackageOpensAndItsDigestIsThatOfSha256sum(t *testing.T) {
	dir := sealed(t)
	p, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	listed, err := os.ReadFile(filepath.Join(dir, DigestFile))
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("sha256:%x", sha256.Sum256(listed)); string(p.Digest) != want {
		t.Errorf("digest %s, want %s", p.Digest, want)
	}
	if p.Layer() != "features" {
		t.Errorf("explanation layer %q, want the last convolution", p.Layer())
	}
	command := exec.Command("sha256sum", "--check", "--strict", DigestFile)
	command.Dir = dir
	if _, err := exec.LookPath("sha256sum"); err != nil {
		t.Skip("sha256sum is not installed")
	}
	if out, err := command.CombinedOutput(); err != nil {
		t.Errorf("sha256sum --check: %v\n%s", err, out)
	}
}

func TestAPackageWithAnyOtherFileIsRefused(t *testing.T) {
	change := func(name string, f func(path string) error) {
		t.Run(name, func(t *testing.T) {
			dir := sealed(t)
			if err := f(dir); err != nil {
				t.Fatal(err)
			}
			_, err := Open(dir)
			if !errors.Is(err, ErrDigest) && !errors.Is(err, ErrFile) {
				t.Fatalf("Open: %v", err)
			}
			t.Log(err)
		})
	}
	for _, file := range append(required, DigestFile) {
		change("altered "+file, func(dir string) error {
			data, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				return err
			}
			data[len(data)/2] ^= 1
			return os.WriteFile(filepath.Join(dir, file), data, 0o644)
		})
		change("missing "+file, func(dir string) error { return os.Remove(filepath.Join(dir, file)) })
		change("linked "+file, func(dir string) error {
			outside := filepath.Join(t.TempDir(), file)
			if err := os.Rename(filepath.Join(dir, file), outside); err != nil {
				return err
			}
			return os.Symlink(outside, filepath.Join(dir, file))
		})
		change("linked inside "+file, func(dir string) error {
			if err := os.Rename(filepath.Join(dir, file), filepath.Join(dir, "other")); err != nil {
				return err
			}
			return os.Symlink("other", filepath.Join(dir, file))
		})
	}
	change("an extra file", func(dir string) error { return os.WriteFile(filepath.Join(dir, "extra.md"), nil, 0o644) })
	change("a hidden file", func(dir string) error { return os.WriteFile(filepath.Join(dir, ".hidden"), nil, 0o644) })
	change("a folder", func(dir string) error { return os.Mkdir(filepath.Join(dir, "weights"), 0o755) })
	change("a list that climbs out", func(dir string) error {
		return appendTo(dir, strings.Repeat("0", 64)+"  ../../etc/passwd\n")
	})
	change("a list that names a file again", func(dir string) error {
		listed, err := os.ReadFile(filepath.Join(dir, DigestFile))
		if err != nil {
			return err
		}
		line, _, _ := strings.Cut(string(listed), "\n")
		return appendTo(dir, line+"\n")
	})
	change("a list in another order", func(dir string) error {
		listed, err := os.ReadFile(filepath.Join(dir, DigestFile))
		if err != nil {
			return err
		}
		lines := strings.SplitAfter(string(listed), "\n")
		return os.WriteFile(filepath.Join(dir, DigestFile), []byte(lines[1]+lines[0]+strings.Join(lines[2:], "")), 0o644)
	})
	change("too many files", func(dir string) error {
		for i := range maxFiles {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i)), nil, 0o644); err != nil {
				return err
			}
		}
		return nil
	})
}

func appendTo(dir, text string) error {
	f, err := os.OpenFile(filepath.Join(dir, DigestFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}

func TestAManifestThatDoesNotMatchTheGraphIsRefusedWithEveryDifference(t *testing.T) {
	manifest := demoManifest(t)
	for _, replacement := range [][2]string{
		{"  name: image\n", "  name: picture\n"},
		{"  name: logits\n", "  name: scores\n"},
		{"  method: grad-cam\n", "  method: grad-cam\n  layer: nowhere\n"},
	} {
		if !strings.Contains(manifest, replacement[0]) {
			t.Fatalf("the demo manifest has no %q", replacement[0])
		}
		manifest = strings.Replace(manifest, replacement[0], replacement[1], 1)
	}
	_, err := Seal(folder(t, manifest, graph(t, 2)))
	if !errors.Is(err, ErrMismatch) {
		t.Fatalf("Seal: %v", err)
	}
	for _, want := range []string{`"picture"`, `"image"`, `"scores"`, `"logits"`, `"nowhere"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not name %s:\n%v", want, err)
		}
	}

	for name, c := range map[string]struct {
		old, new string
		labels   int64
		want     string
	}{
		"rows":                       {"  rows: 28", "  rows: 32", 2, "dimension 3 of NCHW: the manifest says 32, the graph 28"},
		"channels":                   {"  channels: 1", "  channels: 3", 2, "the manifest says 3, the graph 1"},
		"labels":                     {"", "", 3, "the manifest has 2 labels, the graph gives 3"},
		"layer":                      {"method: grad-cam", "method: grad-cam\n  layer: logits", 2, "2 dimensions, not the 4"},
		"temperature without logits": {"activation: softmax", "activation: none", 2, "temperature on logits"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Seal(folder(t, strings.Replace(demoManifest(t), c.old, c.new, 1), graph(t, c.labels)))
			if !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Seal: %v, want %q", err, c.want)
			}
		})
	}
	if _, err := Seal(folder(t, demoManifest(t), graph(t, 2))); err != nil {
		t.Errorf("the unchanged package: %v", err)
	}
}

func TestAGraphThatNeedsAnotherInputIsRefused(t *testing.T) {
	g := graph(t, 2)
	g.Graph.Inputs = append(g.Graph.Inputs, onnx.Value{Name: "age", Type: onnx.Float, Shape: onnx.Fixed(1)})
	_, err := Seal(folder(t, demoManifest(t), g))
	if !errors.Is(err, ErrMismatch) || !strings.Contains(err.Error(), `"age"`) {
		t.Errorf("Seal: %v", err)
	}
}

func TestACalibrationThatMakesNoSenseIsRefused(t *testing.T) {
	for _, text := range []string{
		``, `{}`, `{"method":"temperature"}`, `{"method":"temperature","temperature":0}`, `{"method":"temperature","temperature":-1}`,
		`{"method":"temperature","temperature":1e9}`, `{"method":"none","temperature":2}`, `{"method":"platt"}`,
		`{"method":"none","extra":1}`, `{"method":"none"}{}`,
	} {
		if _, err := ParseCalibration([]byte(text)); !errors.Is(err, ErrCalibration) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if c, err := ParseCalibration([]byte(`{"method":"temperature","temperature":1.5,"fitted_on":"validation","examples":524}`)); err != nil || c.apply(3) != 2 {
		t.Errorf("%+v, %v", c, err)
	}
}
