package phantom

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie/medical/dicom"
)

func write(t testing.TB, f *dicom.File) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := f.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func chest(t testing.TB, seed uint64, o Options) *dicom.File {
	t.Helper()
	f, err := Chest(seed, o)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

var syntaxes = []string{dicom.ImplicitLittleEndian, dicom.ExplicitLittleEndian, dicom.ExplicitBigEndian,
	dicom.DeflatedLittleEndian, dicom.RLELossless, dicom.JPEGBaseline}

// verify runs dciodvfy and returns its error lines.
func verify(t testing.TB, data []byte) []string {
	t.Helper()
	tool, err := exec.LookPath("dciodvfy")
	if err != nil {
		t.Skip("SKIPPED: dciodvfy is not installed: apt-get install dicom3tools")
	}
	path := filepath.Join(t.TempDir(), "phantom.dcm")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := exec.Command(tool, path).CombinedOutput() // its exit status is 1 for warnings too
	var problems []string
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "Error") {
			problems = append(problems, strings.TrimSpace(line))
		}
	}
	if !bytes.Contains(out, []byte("Image")) {
		t.Fatalf("dciodvfy did not recognise the object: %s", out)
	}
	return problems
}

func TestPhantomsAreConformingObjectsInEverySyntax(t *testing.T) {
	for _, syntax := range syntaxes {
		if syntax == dicom.DeflatedLittleEndian {
			continue // dciodvfy does not inflate
		}
		o := Options{Rows: 256, Columns: 288, TransferSyntax: syntax}
		if problems := verify(t, write(t, chest(t, 3, o))); len(problems) > 0 {
			t.Errorf("chest in %s: %s", syntax, strings.Join(problems, "\n"))
		}
		if syntax == dicom.JPEGBaseline {
			continue
		}
		ct, err := AbdomenCT(3, Options{TransferSyntax: syntax})
		if err != nil {
			t.Fatal(err)
		}
		if problems := verify(t, write(t, ct)); len(problems) > 0 {
			t.Errorf("CT in %s: %s", syntax, strings.Join(problems, "\n"))
		}
	}
}

// TestEverySyntaxCarriesTheSameImage leaves a margin for JPEG, which stores
// eight bits and loses some.
func TestEverySyntaxCarriesTheSameImage(t *testing.T) {
	for _, photometric := range []string{"MONOCHROME2", "MONOCHROME1"} {
		o := Options{Rows: 192, Columns: 216, Photometric: photometric, Opacity: 0.7}
		want, err := chest(t, 5, o).Luminance(0)
		if err != nil {
			t.Fatal(err)
		}
		for _, syntax := range syntaxes {
			o.TransferSyntax = syntax
			parsed, err := dicom.Parse(bytes.NewReader(write(t, chest(t, 5, o))), dicom.Limits{})
			if err != nil {
				t.Fatalf("%s: %v", syntax, err)
			}
			got, err := parsed.Luminance(0)
			if err != nil {
				t.Fatalf("%s: %v", syntax, err)
			}
			margin := float32(1e-6)
			if syntax == dicom.JPEGBaseline {
				margin = 0.06
			}
			for i, v := range want.Values {
				if d := got.Values[i] - v; d > margin || d < -margin {
					t.Errorf("%s, %s: pixel %d is %.4f, drawn %.4f", photometric, syntax, i, got.Values[i], v)
					break
				}
			}
		}
	}
}

func TestTheSameSeedGivesTheSameBytesAndAnotherSeedAnotherChild(t *testing.T) {
	o := Options{Rows: 128, Columns: 144}
	a, b, c := write(t, chest(t, 1, o)), write(t, chest(t, 1, o)), chest(t, 2, o)
	if !bytes.Equal(a, b) {
		t.Error("seed 1 gave two different files")
	}
	first := chest(t, 1, o).DataSet
	for _, tag := range []dicom.Tag{dicom.SOPInstanceUID, dicom.StudyInstanceUID, dicom.PatientID} {
		if first.String(tag) == c.DataSet.String(tag) {
			t.Errorf("seeds 1 and 2 share %s", tag)
		}
	}
	o.Instance = 1
	second := chest(t, 1, o).DataSet
	if first.UID(dicom.StudyInstanceUID) != second.UID(dicom.StudyInstanceUID) || first.UID(dicom.SOPInstanceUID) == second.UID(dicom.SOPInstanceUID) {
		t.Error("the second image of a series has another study, or the same instance UID")
	}
}

// mean returns the mean luminance of a rectangle in fractions of the image.
func mean(l *dicom.Luminance, x0, y0, x1, y1 float64) float64 {
	sum, n := 0.0, 0
	for r := int(y0 * float64(l.Rows)); r < int(y1*float64(l.Rows)); r++ {
		for c := int(x0 * float64(l.Columns)); c < int(x1*float64(l.Columns)); c++ {
			sum += float64(l.At(r, c))
			n++
		}
	}
	return sum / float64(n)
}

func TestAnOpacityBrightensTheLungMostWhereItLies(t *testing.T) {
	for seed := range uint64(6) {
		o := Options{Rows: 256, Columns: 288}
		clear, err := chest(t, seed, o).Luminance(0)
		if err != nil {
			t.Fatal(err)
		}
		o.Opacity, o.OpacityX, o.OpacityY = 0.9, 0.25, 0.55
		filled, err := chest(t, seed, o).Luminance(0)
		if err != nil {
			t.Fatal(err)
		}
		there := mean(filled, .22, .5, .28, .6) - mean(clear, .22, .5, .28, .6)
		haze := mean(filled, .72, .3, .8, .5) - mean(clear, .72, .3, .8, .5)
		outside := mean(filled, .4, .9, .6, 1) - mean(clear, .4, .9, .6, 1)
		if there < 0.15 || there < 1.5*haze || outside > 0.005 || outside < -0.005 {
			t.Errorf("seed %d: the opacity adds %.3f where it lies, %.3f in the other lung and %.3f below", seed, there, haze, outside)
		}
		if lung, heart := mean(clear, .22, .5, .28, .6), mean(clear, .47, .5, .53, .6); lung > 0.5 || heart < 0.65 {
			t.Errorf("seed %d: lung %.2f and heart %.2f do not look like a chest", seed, lung, heart)
		}
	}
}

func TestBurnedInAnnotationIsInThePixelsAndDeclared(t *testing.T) {
	o := Options{Rows: 256, Columns: 512, Noise: -1}
	plain, err := chest(t, 1, o).Luminance(0)
	if err != nil {
		t.Fatal(err)
	}
	o.BurnedIn = true
	f := chest(t, 1, o)
	burned, err := f.Luminance(0)
	if err != nil {
		t.Fatal(err)
	}
	if mean(burned, 0, 0, .4, .08) < mean(plain, 0, 0, .4, .08)+0.05 {
		t.Error("the corner shows no writing")
	}
	if f.DataSet.String(dicom.BurnedInAnnotation) != "YES" {
		t.Error("BurnedInAnnotation does not say YES")
	}
}

func TestTheSlicesOfACTAreOneSeriesOfAdults(t *testing.T) {
	a, err := AbdomenCT(9, Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := AbdomenCT(9, Options{Instance: 1})
	if err != nil {
		t.Fatal(err)
	}
	if a.DataSet.UID(dicom.SeriesInstanceUID) != b.DataSet.UID(dicom.SeriesInstanceUID) || a.DataSet.UID(dicom.SOPInstanceUID) == b.DataSet.UID(dicom.SOPInstanceUID) {
		t.Error("two slices are not two instances of one series")
	}
	frame, err := a.Frame(0, dicom.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if air := frame.Values()[0] - 1024; air > -900 {
		t.Errorf("the corner is %d HU, air is -1000", air)
	}
	if modality, age := a.DataSet.String(dicom.Modality), a.DataSet.String(dicom.PatientAge); modality != "CT" || age != "051Y" {
		t.Errorf("modality %s, age %s", modality, age)
	}
}

func TestWhatCannotBeDrawnIsRefused(t *testing.T) {
	for _, o := range []Options{{Rows: 8}, {Columns: 100000}, {Photometric: "RGB"}, {TransferSyntax: "1.2.840.10008.1.2.4.90"}} {
		if _, err := Chest(1, o); err == nil {
			t.Errorf("%+v was drawn", o)
		}
	}
	if _, err := AbdomenCT(1, Options{TransferSyntax: dicom.JPEGBaseline}); err == nil {
		t.Error("signed CT was drawn as baseline JPEG")
	}
}

func ExampleChest() {
	file, err := Chest(7, Options{Opacity: 0.8})
	if err != nil {
		panic(err)
	}
	fmt.Println(file.DataSet.String(dicom.Modality), file.DataSet.String(dicom.ViewPosition), file.DataSet.String(dicom.PatientAge))
	// Output: CR AP 004Y
}

func BenchmarkChest(b *testing.B) {
	for b.Loop() {
		chest(b, 1, Options{Rows: 2140, Columns: 1760})
	}
}
