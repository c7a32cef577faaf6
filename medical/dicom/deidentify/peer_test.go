package deidentify

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

// radiographs are CR objects with an identity: phantoms, and the real chest
// radiograph of the module github.com/suyashkumar/dicom where it is downloaded.
func radiographs(t testing.TB) map[string]*dicom.File {
	t.Helper()
	files := make(map[string]*dicom.File)
	for name, syntax := range map[string]string{"phantom": dicom.ExplicitLittleEndian, "implicit": dicom.ImplicitLittleEndian,
		"deflated": dicom.DeflatedLittleEndian, "big endian": dicom.ExplicitBigEndian, "JPEG": dicom.JPEGBaseline, "RLE": dicom.RLELossless} {
		f, err := phantom.Chest(1, phantom.Options{TransferSyntax: syntax, Rows: 160, Columns: 128})
		if err != nil {
			t.Fatal(err)
		}
		files[name] = f
	}
	if out, err := exec.Command("go", "env", "GOMODCACHE").Output(); err == nil {
		path := filepath.Join(strings.TrimSpace(string(out)), "github.com/suyashkumar/dicom@v1.1.0/testdata/4.dcm")
		if raw, err := os.ReadFile(path); err == nil {
			f, err := dicom.Parse(bytes.NewReader(raw), dicom.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			files["real"] = f
		}
	}
	return files
}

func TestARadiographStaysConformingAndReadableAndLosesEveryIdentifier(t *testing.T) {
	dciodvfy, missing := exec.LookPath("dciodvfy")
	for name, f := range radiographs(t) {
		t.Run(name, func(t *testing.T) {
			result := apply(t, f)
			if len(result.Refer) > 0 {
				t.Errorf("referred: %v", result.Refer)
			}
			plain := &dicom.File{Meta: result.File.Meta, TransferSyntax: dicom.ExplicitLittleEndian, DataSet: result.File.DataSet.Clone()}
			plain.DataSet.Delete(dicom.PixelData)
			out := written(t, plain)
			texts := identifiers(f.DataSet)
			if len(texts) < 4 {
				t.Fatalf("only %d identifiers to look for", len(texts))
			}
			for _, text := range texts {
				if bytes.Contains(out, []byte(text)) && text != "Basic Application Confidentiality Profile" && text != "113100" {
					t.Errorf("%q survives", text)
				}
			}
			want, err := f.Luminance(0)
			if err != nil {
				t.Fatal(err)
			}
			got, err := result.File.Luminance(0)
			if err != nil || !slices.Equal(got.Values, want.Values) {
				t.Errorf("the copy shows other pixels: %v", err)
			}
			if missing != nil {
				t.Skip("dicom3tools are not installed: make setup-peers")
			}
			before := errorsOf(t, dciodvfy, written(t, f))
			for _, e := range errorsOf(t, dciodvfy, written(t, result.File)) {
				if !slices.Contains(before, e) {
					t.Errorf("a new error: %s", e)
				}
			}
		})
	}
}

func BenchmarkApply(b *testing.B) {
	f, err := phantom.Chest(1, phantom.Options{Rows: 2140, Columns: 1760})
	if err != nil {
		b.Fatal(err)
	}
	p := profile(b)
	b.SetBytes(2140 * 1760 * 2)
	for b.Loop() {
		if _, err := p.Apply(f); err != nil {
			b.Fatal(err)
		}
	}
}
