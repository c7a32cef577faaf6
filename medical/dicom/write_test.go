package dicom

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var nativeSyntaxes = []string{ImplicitLittleEndian, ExplicitLittleEndian, ExplicitBigEndian, DeflatedLittleEndian}

func encode(t testing.TB, f *File) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := f.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// complaints runs dcmdump on a file and returns its warnings and errors.
func complaints(t testing.TB, data []byte) string {
	t.Helper()
	dcmdump := need(t, "dcmdump")
	path := filepath.Join(t.TempDir(), "written.dcm")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	out, _ := exec.Command(dcmdump, path).CombinedOutput()
	var lines []string
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "E:") || strings.HasPrefix(line, "F:") || strings.HasPrefix(line, "W:") {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// same compares every value of two data sets.
func same(t *testing.T, what string, a, b *DataSet) {
	t.Helper()
	left, right := paths(a), paths(b)
	for path, want := range left {
		got, ok := right[path]
		if !ok {
			t.Errorf("%s: %s is gone", what, path)
		} else if strings.Join(got.text, "\\") != strings.Join(want.text, "\\") {
			t.Errorf("%s: %s was %.80q, is %.80q", what, path, want.text, got.text)
		}
	}
	if len(right) > len(left) {
		t.Errorf("%s: %d elements came out of %d", what, len(right), len(left))
	}
}

func TestRealFilesSurviveWritingInEverySyntax(t *testing.T) {
	dcmconv := need(t, "dcmconv")
	written := 0
	for _, name := range []string{"CT_small.dcm", "MR_small_implicit.dcm", "MR_small_expb.dcm", "liver_1frame.dcm", "rtplan.dcm", "rtstruct.dcm",
		"rtdose_1frame.dcm", "reportsi.dcm", "test-SR.dcm", "image_dfl.dcm", "SC_rgb_small_odd.dcm", "waveform_ecg.dcm"} {
		f := parseBytes(t, realFile(t, name))
		for _, syntax := range nativeSyntaxes {
			copied := f.Clone()
			copied.TransferSyntax = syntax
			data := encode(t, copied)
			what := name + " as " + syntax
			again := parseBytes(t, data)
			if again.TransferSyntax != syntax {
				t.Errorf("%s: read back as %s", what, again.TransferSyntax)
			}
			if syntax == ImplicitLittleEndian { // VRs are looked up again; the bytes must be the same
				sameBytes(t, what, f.DataSet, again.DataSet)
			} else {
				same(t, what, f.DataSet, again.DataSet)
			}
			if before, after := complaints(t, realFile(t, name)), complaints(t, data); after != "" && before == "" {
				t.Errorf("%s: dcmdump says: %s", what, after)
			}
			// dcmtk's own reading of it, converted to what we read best
			in, out := filepath.Join(t.TempDir(), "in.dcm"), filepath.Join(t.TempDir(), "out.dcm")
			if err := os.WriteFile(in, data, 0o600); err != nil {
				t.Fatal(err)
			}
			if problem, err := exec.Command(dcmconv, "+te", in, out).CombinedOutput(); err != nil {
				t.Errorf("%s: dcmconv: %s", what, problem)
				continue
			}
			converted, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			theirs := parseBytes(t, converted).DataSet
			if a, b := f.DataSet.Get(PixelData), theirs.Get(PixelData); a != nil && !bytes.Equal(a.Value, b.Value) {
				t.Errorf("%s: dcmtk reads other pixels", what)
			}
			sameBytes(t, what+" through dcmtk", f.DataSet, theirs)
			written++
		}
	}
	if written < 40 {
		t.Errorf("only %d files were compared", written)
	}
}

// sameBytes compares the values of text and pixel elements as they stand.
func sameBytes(t *testing.T, what string, a, b *DataSet) {
	t.Helper()
	values := func(d *DataSet) map[string]*Element {
		out := map[string]*Element{}
		for path, e := range paths(d) {
			out[path] = e.element
		}
		return out
	}
	right := values(b)
	for path, e := range values(a) {
		if e.VR == SQ || !e.VR.Text() && e.Tag != PixelData || len(e.Value) == 0 {
			continue
		}
		other, ok := right[path]
		if !ok {
			t.Errorf("%s: %s is gone", what, path)
		} else if strings.TrimRight(string(other.Value), " \x00") != strings.TrimRight(string(e.Value), " \x00") {
			t.Errorf("%s: %s was %.60q, is %.60q", what, path, e.Value, other.Value)
		}
	}
}

func TestCompressedFilesKeepTheirFragments(t *testing.T) {
	for _, name := range []string{"MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm", "JPEG2000.dcm", "SC_rgb_rle_2frame.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"} {
		f := parseBytes(t, realFile(t, name))
		data := encode(t, f)
		same(t, name, f.DataSet, parseBytes(t, data).DataSet)
		if problem := complaints(t, data); problem != "" && complaints(t, realFile(t, name)) == "" {
			t.Errorf("%s: dcmdump says: %s", name, problem)
		}
	}
}

func TestPixelsThatTheSyntaxCannotCarryAreRefused(t *testing.T) {
	d := new(DataSet)
	d.PutBytes(PixelData, OW, []byte{1, 2})
	for _, syntax := range []string{RLELossless, JPEGBaseline, ""} {
		if err := NewFile(d, syntax).Write(new(bytes.Buffer)); !errors.Is(err, ErrTransferSyntax) {
			t.Errorf("native pixels in %q: %v", syntax, err)
		}
	}
	d.Put(Encapsulate([][]byte{{1, 2}}))
	if err := NewFile(d, ExplicitLittleEndian).Write(new(bytes.Buffer)); !errors.Is(err, ErrTransferSyntax) {
		t.Errorf("fragments in a native syntax: %v", err)
	}
}

func TestWhatIsWrittenHasEvenLengthsAndTrueMeta(t *testing.T) {
	d := new(DataSet)
	d.PutString(SOPClassUID, "1.2.840.10008.5.1.4.1.1.7")
	d.PutString(SOPInstanceUID, "2.25.123")
	d.PutString(PatientName, "Odd")
	d.Put(&Element{Tag: PixelData, VR: OB, Value: []byte{1, 2, 3}})
	f := NewFile(d, ExplicitLittleEndian)
	f.Meta.PutString(SourceApplicationEntityTitle, "SENDER")
	f.Meta.PutString(MediaStorageSOPInstanceUID, "9.9.9")
	again := parseBytes(t, encode(t, f))
	for _, e := range again.DataSet.elements {
		if len(e.Value)%2 == 1 {
			t.Errorf("%s has %d bytes", e.Tag, len(e.Value))
		}
	}
	if got := again.Meta.UID(MediaStorageSOPInstanceUID); got != "2.25.123" {
		t.Errorf("the meta information names %s", got)
	}
	if got := again.Meta.String(SourceApplicationEntityTitle); got != "SENDER" {
		t.Errorf("the sender became %q", got)
	}
	if length, _ := again.Meta.Int(FileMetaInformationGroupLength); length <= 0 {
		t.Error("no group length in the meta information")
	}
	for _, syntax := range nativeSyntaxes {
		f.TransferSyntax = syntax
		data := encode(t, f)
		if len(data)%2 == 1 {
			t.Errorf("%s: the file has %d bytes", syntax, len(data))
		}
		if problem := complaints(t, data); problem != "" {
			t.Errorf("%s: dcmdump says %s", syntax, problem)
		}
	}
}

// failing fails after n bytes, as a full disk does.
type failing struct{ n int }

var errFull = errors.New("no space left")

func (f *failing) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestAFullDiskIsAnErrorWhereverItHappens(t *testing.T) {
	for _, syntax := range nativeSyntaxes {
		f := parseBytes(t, radiograph(t))
		f.TransferSyntax = syntax
		for _, room := range []int{0, 100, 400, 1 << 16, 1 << 20} {
			if err := f.Write(&failing{room}); !errors.Is(err, errFull) {
				t.Errorf("%s with room for %d bytes: %v", syntax, room, err)
			}
		}
	}
}
