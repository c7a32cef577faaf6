package dicom

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestTheJSONModelIsWhatDcmtkWrites(t *testing.T) {
	dcm2json := need(t, "dcm2json")
	compared := 0
	for _, name := range []string{"CT_small.dcm", "MR_small_implicit.dcm", "rtplan.dcm", "rtstruct.dcm", "reportsi.dcm", "test-SR.dcm", "liver_1frame.dcm", "MR_small_expb.dcm"} {
		f := parseBytes(t, realFile(t, name))
		out, err := exec.Command(dcm2json, filepath.Join(pydicomFiles, name)).Output()
		if err != nil {
			t.Logf("%s: dcm2json: %v", name, err)
			continue
		}
		var theirs map[string]any
		if err := json.Unmarshal(out, &theirs); err != nil {
			t.Fatalf("%s: dcm2json's output: %v", name, err)
		}
		text, err := json.Marshal(f.DataSet)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var ours map[string]any
		if err := json.Unmarshal(text, &ours); err != nil {
			t.Fatalf("%s: our JSON: %v", name, err)
		}
		compared += compareJSON(t, name, "", ours, theirs)
	}
	if compared < 500 {
		t.Errorf("only %d attributes were compared", compared)
	}
}

func compareJSON(t *testing.T, name, path string, ours, theirs map[string]any) int {
	t.Helper()
	n := 0
	for tag, want := range theirs {
		if strings.HasSuffix(tag, "0000") || strings.HasPrefix(tag, "0002") || tag == "00080005" {
			continue
		}
		got, ok := ours[tag].(map[string]any)
		if !ok {
			t.Errorf("%s: %s%s is missing", name, path, tag)
			continue
		}
		w := want.(map[string]any)
		if got["vr"] == "SQ" && w["vr"] == "SQ" {
			a, _ := got["Value"].([]any)
			b, _ := w["Value"].([]any)
			if len(a) != len(b) {
				t.Errorf("%s: %s%s has %d items, dcmtk's %d", name, path, tag, len(a), len(b))
				continue
			}
			for i := range a {
				n += compareJSON(t, name, fmt.Sprintf("%s%s[%d].", path, tag, i), a[i].(map[string]any), b[i].(map[string]any))
			}
			continue
		}
		n++
		if got["vr"] == "FL" { // the shortest text of a 32-bit number, or nine digits of it
			single(got)
			single(w)
		}
		if !reflect.DeepEqual(got, w) {
			t.Errorf("%s: %s%s is %.200v, dcmtk's %.200v", name, path, tag, fmt.Sprint(got), fmt.Sprint(w))
		}
	}
	return n
}

func single(attribute map[string]any) {
	values, _ := attribute["Value"].([]any)
	for i, v := range values {
		if f, ok := v.(float64); ok {
			values[i] = float32(f)
		}
	}
}

func TestBulkDataAreNamedNotInlined(t *testing.T) {
	d := new(DataSet)
	d.PutString(PatientName, "Doe^Jane=山田^花子=やまだ^はなこ")
	d.PutInt(Rows, 2)
	d.PutString(ImageType, "DERIVED", "", "X")
	d.PutFloat(WindowCenter, 40.5)
	d.PutBytes(PixelData, OW, []byte{1, 2, 3, 4})
	d.PutItems(ReferencedImageSequence, new(DataSet))
	text, err := d.JSON(func(path []Tag, e *Element) string { return "https://pacs.example/" + e.Tag.Hex() })
	if err != nil {
		t.Fatal(err)
	}
	want := `{"00080005":{"vr":"CS","Value":["ISO_IR 192"]},` +
		`"00080008":{"vr":"CS","Value":["DERIVED",null,"X"]},` +
		`"00081140":{"vr":"SQ","Value":[{}]},` +
		`"00100010":{"vr":"PN","Value":[{"Alphabetic":"Doe^Jane","Ideographic":"山田^花子","Phonetic":"やまだ^はなこ"}]},` +
		`"00280010":{"vr":"US","Value":[2]},` +
		`"00281050":{"vr":"DS","Value":[40.5]},` +
		`"7FE00010":{"vr":"OW","BulkDataURI":"https://pacs.example/7FE00010"}}`
	if string(text) != want {
		t.Errorf("got  %s\nwant %s", text, want)
	}
}
