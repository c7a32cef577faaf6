package deidentify

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/medical/dicom"
)

const corpus = "/usr/lib/python3/dist-packages/pydicom/data/test_files"

// corpusFiles calls use with every file of pydicom's corpus that parses as an
// object.
func corpusFiles(t *testing.T, use func(t *testing.T, name string, raw []byte, f *dicom.File)) {
	t.Helper()
	var names []string
	err := filepath.WalkDir(corpus, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Skip("pydicom's test files are not installed: make setup-peers")
	}
	used := 0
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := dicom.Parse(bytes.NewReader(raw), dicom.Limits{})
		if err != nil || f == nil || f.DataSet.Empty(dicom.SOPInstanceUID) || f.DataSet.Empty(dicom.SOPClassUID) {
			continue
		}
		used++
		t.Run(filepath.Base(name), func(t *testing.T) { use(t, name, raw, f) })
	}
	if used < 60 {
		t.Errorf("only %d of %d files were used", used, len(names))
	}
}

// identifiers are the texts of a data set that the profile must not leave:
// those of the patient, of people, places and numbers, and every UID that
// names something.
func identifiers(d *dicom.DataSet) []string {
	var all []string
	d.Walk(func(_ []dicom.Tag, within *dicom.DataSet, e *dicom.Element) bool {
		a, _ := dicom.Lookup(e.Tag)
		vr := a.VR
		if vr == "" {
			vr = e.VR
		}
		switch vr {
		case dicom.PN, dicom.LO, dicom.SH, dicom.LT, dicom.ST, dicom.UT, dicom.UC, dicom.AE:
			if _, kept := keepers()[e.Tag]; kept || e.Tag == dicom.CodingSchemeDesignator {
				return true // vouched for elsewhere
			}
			if _, ok := meaningOf(within.String(dicom.CodingSchemeDesignator), within.String(dicom.CodeValue)); ok {
				return true
			}
		case dicom.UI:
			if e.Tag.Group() == 2 || classes()[within.UID(e.Tag)] {
				return true
			}
		default:
			return true
		}
		for _, text := range within.Strings(e.Tag) {
			for _, part := range strings.FieldsFunc(text, func(r rune) bool { return r == '^' || r == '=' }) {
				if part = strings.TrimSpace(part); len(part) >= 6 {
					all = append(all, part)
				}
			}
		}
		return true
	})
	slices.Sort(all)
	return slices.Compact(all)
}

func TestNoIdentifierOfTheCorpusSurvives(t *testing.T) {
	looked := 0
	vouched := make(map[string]bool)
	for _, list := range terms {
		for _, term := range strings.Split(list, "|") {
			vouched[term] = true
		}
	}
	corpusFiles(t, func(t *testing.T, name string, raw []byte, f *dicom.File) {
		original := written(t, &dicom.File{Meta: f.Meta, TransferSyntax: f.TransferSyntax, DataSet: f.DataSet.Clone()})
		result, err := profile(t).Apply(f)
		if err != nil {
			t.Fatal(err)
		}
		if after := written(t, f); !bytes.Equal(after, original) {
			t.Error("Apply changed the original")
		}
		// The pixels are not text: a short text could be in them by chance.
		copied := *result.File
		copied.DataSet = result.File.DataSet.Clone()
		copied.DataSet.Delete(dicom.PixelData)
		if ts, _ := dicom.SyntaxOf(copied.TransferSyntax); ts.Deflated || ts.Encapsulated {
			copied.TransferSyntax = dicom.ExplicitLittleEndian
		}
		out := written(t, &copied)
		for _, text := range identifiers(f.DataSet) {
			looked++
			if vouched[text] {
				continue // also a term of a coded attribute, and kept there
			}
			if strings.HasPrefix("Basic Application Confidentiality Profile", text) || text == "113100" {
				continue // already de-identified by somebody: our own words
			}
			if bytes.Contains(out, []byte(text)) {
				t.Errorf("%q survives", text)
			}
		}
	})
	if looked < 500 {
		t.Errorf("only %d identifiers were looked for", looked)
	}
}

func TestDcmtkReadsEveryCopyOfTheCorpus(t *testing.T) {
	dcmdump, err := exec.LookPath("dcmdump")
	if err != nil {
		t.Skip("dcmtk is not installed: make setup-peers")
	}
	corpusFiles(t, func(t *testing.T, name string, raw []byte, f *dicom.File) {
		result, err := profile(t).Apply(f)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "copy.dcm")
		if err := os.WriteFile(path, written(t, result.File), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(dcmdump, "-q", "--stop-on-error", path).CombinedOutput(); err != nil {
			t.Errorf("dcmdump: %v\n%s", err, out)
		}
	})
}

func TestThePixelsOfTheCorpusAreUnchanged(t *testing.T) {
	compared := 0
	corpusFiles(t, func(t *testing.T, name string, raw []byte, f *dicom.File) {
		want, err := f.Luminance(0)
		if err != nil {
			return // this build cannot decode it, or there is nothing to decode
		}
		result, err := profile(t).Apply(f)
		if err != nil {
			t.Fatal(err)
		}
		got, err := result.File.Luminance(0)
		if err != nil {
			t.Fatalf("the copy does not decode: %v", err)
		}
		if got.Rows != want.Rows || got.Columns != want.Columns || !slices.Equal(got.Values, want.Values) {
			t.Error("the copy shows other pixels")
		}
		compared++
	})
	if compared < 25 {
		t.Errorf("only %d files were compared", compared)
	}
}

// uids differ between a copy and its original by intent.
var uids = regexp.MustCompile(`<[0-9.]{10,}>`)

// images are the modalities whose objects the keep list knows in full. Of a
// report, a plan, a segmentation or a waveform it leaves only a shell.
var images = []string{"CR", "DX", "MG", "CT", "MR", "PT", "NM", "US", "XA", "RF", "OT"}

// errorsOf returns what dciodvfy (dicom3tools) calls an error in a file.
func errorsOf(t *testing.T, dciodvfy string, file []byte) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.dcm")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(dciodvfy, path).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "Error") {
			found = append(found, uids.ReplaceAllString(strings.TrimSpace(line), "<UID>"))
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func TestACopyIsAsConformingAsItsOriginal(t *testing.T) {
	dciodvfy, err := exec.LookPath("dciodvfy")
	if err != nil {
		t.Skip("dicom3tools are not installed: make setup-peers")
	}
	compared := 0
	corpusFiles(t, func(t *testing.T, name string, raw []byte, f *dicom.File) {
		if !slices.Contains(images, f.DataSet.String(dicom.Modality)) {
			return
		}
		compared++
		before := errorsOf(t, dciodvfy, raw)
		result, err := profile(t).Apply(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range errorsOf(t, dciodvfy, written(t, result.File)) {
			if !slices.Contains(before, e) {
				t.Errorf("%s: a new error: %s", result.File.DataSet.String(dicom.Modality), e)
			}
		}
	})
	if compared < 50 {
		t.Errorf("only %d images were compared", compared)
	}
}
