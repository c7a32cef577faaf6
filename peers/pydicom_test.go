package peers

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/demo"
	"github.com/vigie/vigie/gateway"
	"github.com/vigie/vigie/store"
)

var update = flag.Bool("update", false, "write the golden table anew")

const (
	pydicomData = "/usr/lib/python3/dist-packages/pydicom/data"
	golden      = "testdata/pydicom.golden"
)

// pydicomFiles lists pydicom's test files, except texts.
func pydicomFiles(t *testing.T) (names []string) {
	t.Helper()
	for _, folder := range []string{"test_files", "charset_files"} {
		err := filepath.WalkDir(filepath.Join(pydicomData, folder), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && !slices.Contains([]string{".txt", ".dump", ".json"}, filepath.Ext(path)) {
				names = append(names, strings.TrimPrefix(path, pydicomData+"/"))
			}
			return err
		})
		if err != nil {
			t.Skipf("SKIPPED: pydicom's test files are absent (Debian package python3-pydicom): odd objects are NOT tested here: %v", err)
		}
	}
	slices.Sort(names)
	return names
}

// outcome is what became of a file.
type outcome struct {
	answer string
	id     vigie.CaseID // empty when it was not taken
	joined bool         // into a case that was there before
}

// brief shortens what nearly every line says.
var brief = strings.NewReplacer("SOP class 1.2.840.10008.5.1.4.1.1.", "class …")

func (s *site) describe(o outcome) string {
	if o.id == "" {
		return o.answer
	}
	c := s.restCase(o.id)
	text := o.answer + ", " + string(c.State)
	if why := reasons(c, true); why != "" {
		text += ": " + brief.Replace(why)
	}
	if o.joined {
		text += "; joined"
	}
	return text
}

// caseAfter finds the case of an object that was just taken: a new one, or that
// of the object or series which was known before.
func (s *site) caseAfter(known map[vigie.CaseID]bool, sopInstance string) (id vigie.CaseID, joined bool) {
	s.t.Helper()
	newest, err := s.book.Cases(context.Background(), store.Filter{Limit: 1})
	if err != nil || len(newest) != 1 {
		s.t.Fatalf("%d cases, %v", len(newest), err)
	}
	if id := newest[0].ID; !known[id] {
		known[id] = true
		return id, false
	}
	c, err := s.book.CaseOf(context.Background(), sopInstance)
	if err != nil {
		s.t.Fatalf("an acknowledged object has no case: %v", err)
	}
	return c.ID, true
}

func TestEveryFileOfPydicomGetsAClearAnswerAndTheRightReasonAndLeavesNoIdentity(t *testing.T) {
	if testing.Short() {
		t.Skip("sends 350 objects")
	}
	names := pydicomFiles(t)
	needles := identities(t)
	for name, want := range map[string]int{"test_files/CT_small.dcm": 5, "charset_files/chrH31.dcm": 2, "test_files/rtplan.dcm": 2} {
		data, err := os.ReadFile(filepath.Join(pydicomData, name))
		if err != nil {
			t.Fatal(err)
		}
		if found := needles.find(data); len(found) < want {
			t.Errorf("of the identities in %s only %q are known", name, found)
		}
	}
	protocols := []string{"C-STORE", "STOW"}
	sites := map[string]*site{}
	outcomes := map[string][]outcome{}
	for _, protocol := range protocols {
		s := startSite(t, demo.SiteOptions{})
		s.startPACS()
		sites[protocol] = s
		known := map[vigie.CaseID]bool{}
		for _, name := range names {
			data, err := os.ReadFile(filepath.Join(pydicomData, name))
			if err != nil {
				t.Fatal(err)
			}
			o := s.sendAsIs(protocol, data)
			if strings.HasPrefix(o.answer, "taken") {
				out, _ := gateway.NewOutgoing(data)
				o.id, o.joined = s.caseAfter(known, out.SOPInstance)
			}
			outcomes[name] = append(outcomes[name], o)
		}
	}

	var table strings.Builder
	table.WriteString("# What becomes of pydicom's test files. Made by: go test ./peers -run Pydicom -update\n")
	entry := func(name string) string {
		texts := make([]string, len(protocols))
		for i, protocol := range protocols {
			texts[i] = sites[protocol].describe(outcomes[name][i])
		}
		if texts[0] == texts[1] {
			return fmt.Sprintf("\tboth     %s\n", texts[0])
		}
		return fmt.Sprintf("\t%-8s %s\n\t%-8s %s\n", protocols[0], texts[0], protocols[1], texts[1])
	}
	for i := 0; i < len(names); {
		// Neighbours that fare alike share an entry.
		n, text := 1, entry(names[i])
		for i+n < len(names) && filepath.Dir(names[i+n]) == filepath.Dir(names[i]) && entry(names[i+n]) == text {
			n++
		}
		for _, name := range names[i : i+n] {
			if n > 9 && name != names[i] && name != names[i+n-1] {
				continue
			}
			table.WriteString(name + "\n")
		}
		table.WriteString(text)
		i += n
	}
	compareGolden(t, table.String())

	searched := 0
	for _, protocol := range protocols {
		s := sites[protocol]
		s.verifyLog()
		searched += needles.searchFolder(t, s.Path("state")) // while the gateway runs
		s.stop()
		s.closeBook()
		searched += needles.searchFolder(t, s.Path("state"))
		log, err := os.ReadFile(s.Path("gateway.log"))
		if err != nil {
			t.Fatal(err)
		}
		needles.search(t, "the log", log)
		for _, alarm := range []string{"panic", "internal error"} {
			if bytes.Contains(log, []byte(alarm)) {
				t.Errorf("%s: the log speaks of a %s", protocol, alarm)
			}
		}
	}
	t.Logf("%d files of pydicom, %d identities searched for in %d files", len(names), needles.count, searched)
	if needles.count < 300 || searched < 2*len(names) {
		t.Error("the search was too small to prove anything")
	}
}

// sendAsIs sends the bytes of a file without touching them.
func (s *site) sendAsIs(protocol string, data []byte) outcome {
	s.t.Helper()
	if protocol == "STOW" {
		code, answer, err := s.stow(data)
		switch {
		case err != nil:
			return outcome{answer: fmt.Sprintf("refused: %v", err)}
		case len(answer.Stored) == 1 && len(answer.Failed) == 0:
			return outcome{answer: "taken"}
		case len(answer.Failed) == 1 && len(answer.Stored) == 0:
			return outcome{answer: fmt.Sprintf("refused: %d, %v", code, answer.Failed[0].Status)}
		}
		s.t.Errorf("an unclear answer: %d, %+v", code, answer)
		return outcome{}
	}
	o, err := gateway.NewOutgoing(data)
	if err != nil {
		return outcome{answer: "cannot be sent: " + err.Error()}
	}
	status, err := s.cstore(o.SOPClass, o.SOPInstance, o.TransferSyntax, dataSetOf(s.t, data))
	switch {
	case err != nil:
		return outcome{answer: "cannot be sent: " + err.Error()}
	case status.Stored():
		return outcome{answer: "taken"}
	default:
		return outcome{answer: "refused: " + status.String()}
	}
}

// dataSetOf cuts a file before its data set: after the meta information, whose
// elements are all of group 2, explicit little endian (PS3.10 7.1).
func dataSetOf(t testing.TB, data []byte) []byte {
	t.Helper()
	if len(data) < 132 || string(data[128:132]) != "DICM" {
		return data
	}
	rest := data[132:]
	for len(rest) >= 8 && rest[0] == 2 && rest[1] == 0 {
		head, n := 8, int(rest[6])|int(rest[7])<<8
		if vr := string(rest[4:6]); vr == "OB" || vr == "UN" {
			head, n = 12, int(rest[8])|int(rest[9])<<8|int(rest[10])<<16|int(rest[11])<<24
		}
		if head+n > len(rest) {
			t.Fatalf("an element of the meta information has %d bytes", n)
		}
		rest = rest[head+n:]
	}
	return rest
}

func compareGolden(t *testing.T, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	gotLines, wantLines := strings.Split(got, "\n"), strings.Split(string(want), "\n")
	for i := range max(len(gotLines), len(wantLines)) {
		line := func(lines []string) string {
			if i < len(lines) {
				return lines[i]
			}
			return "(nothing)"
		}
		if g, w := line(gotLines), line(wantLines); g != w {
			t.Errorf("%s:%d:\n got %s\nwant %s", golden, i+1, g, w)
		}
	}
}

// listIdentities prints, with pydicom's own reader, every value of a patient's
// name or id and every UID that is not of the standard itself: the bytes as
// they are in the file and as UTF-8, in hexadecimal.
const listIdentities = `
import json, sys, warnings
from pathlib import Path
import pydicom
from pydicom.charset import encode_string
warnings.simplefilter("ignore")
found = set()
def add(value):
    for v in (value if isinstance(value, (list, pydicom.multival.MultiValue)) else [value]):
        for raw in {getattr(v, "original_string", None), str(v).encode("utf-8", "replace")}:
            if isinstance(raw, str):
                raw = raw.encode("utf-8", "replace")
            raw = (raw or b"").strip(b" \0")
            if len(raw) >= 6 and not raw.startswith(b"1.2.840.10008."):
                found.add(raw)
def walk(ds):
    for tag in ds.keys():
        try:
            e = ds[tag]
        except Exception:
            continue
        if e.VR == "SQ":
            for item in e.value:
                walk(item)
        elif e.VR == "PN" or e.VR == "UI" or e.tag in (0x00100020, 0x00101000):
            if e.value:
                add(e.value)
for path in sys.stdin.read().split("\n"):
    try:
        ds = pydicom.dcmread(path, force=True)
        walk(ds)
    except Exception:
        continue
print(json.dumps([f.hex() for f in sorted(found)]))
`

// needles are byte strings to look for, by their first six bytes.
type needles struct {
	count int
	first [1 << 16]bool
	byKey map[[6]byte][]string
}

func identities(t *testing.T) *needles {
	t.Helper()
	cmd := exec.Command("/usr/bin/python3", "-c", listIdentities)
	var paths []string
	for _, name := range pydicomFiles(t) {
		paths = append(paths, filepath.Join(pydicomData, name))
	}
	cmd.Stdin = strings.NewReader(strings.Join(paths, "\n"))
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("SKIPPED: pydicom does not run (Debian package python3-pydicom): %v", err)
	}
	var values []string
	if err := json.Unmarshal(out, &values); err != nil {
		t.Fatal(err)
	}
	n := &needles{byKey: map[[6]byte][]string{}}
	for _, value := range values {
		raw, err := hex.DecodeString(value)
		if err != nil {
			t.Fatal(err)
		}
		n.add(string(raw))
		for _, part := range strings.FieldsFunc(string(raw), func(r rune) bool { return r == '^' || r == '=' }) {
			if len(part) >= 6 && part != string(raw) {
				n.add(part)
			}
		}
	}
	return n
}

func (n *needles) add(text string) {
	n.count++
	n.first[int(text[0])<<8|int(text[1])] = true
	key := [6]byte([]byte(text[:6]))
	n.byKey[key] = append(n.byKey[key], text)
}

// find returns the needles in data, each with the bytes around it.
func (n *needles) find(data []byte) map[string][]byte {
	found := map[string][]byte{}
	for i := 0; i+6 <= len(data); i++ {
		if !n.first[int(data[i])<<8|int(data[i+1])] {
			continue
		}
		for _, text := range n.byKey[[6]byte(data[i:])] {
			if bytes.HasPrefix(data[i:], []byte(text)) {
				found[text] = data[max(0, i-40):min(len(data), i+len(text)+20)]
			}
		}
	}
	return found
}

func (n *needles) search(t *testing.T, where string, data []byte) {
	t.Helper()
	for text, around := range n.find(data) {
		t.Errorf("%s holds %q in clear: %q", where, text, around)
	}
}

// searchFolder searches the names and the contents of all files.
func (n *needles) searchFolder(t *testing.T, dir string) (files int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n.search(t, "a name", []byte(strings.TrimPrefix(path, dir)))
		if !d.Type().IsRegular() {
			return nil
		}
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil // SQLite's files come and go
		}
		files++
		n.search(t, path, data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
