package dicom

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const (
	debianPython = "/usr/bin/python3"
	pydicomFiles = "/usr/lib/python3/dist-packages/pydicom/data/test_files"
)

// realFiles returns the DICOM files that python3-pydicom brings.
func realFiles(t testing.TB) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(filepath.Dir(pydicomFiles), func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() && (filepath.Ext(path) == ".dcm" || strings.Contains(path, "dicomdirtests")) {
			files = append(files, path)
		}
		return err
	})
	if err != nil || len(files) == 0 {
		t.Skipf("SKIPPED: no real DICOM files in %s: install python3-pydicom", pydicomFiles)
	}
	return files
}

func realFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(pydicomFiles, name))
	if err != nil {
		t.Skipf("SKIPPED: %s is not here: install python3-pydicom", name)
	}
	return data
}

func need(t testing.TB, tool string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		t.Skipf("SKIPPED: %s is not installed: apt-get install dcmtk dicom3tools python3-pydicom", tool)
	}
	return path
}

// python runs a script of testdata by Debian's Python, which has pydicom.
func python(t testing.TB, script string, arguments ...string) []byte {
	t.Helper()
	need(t, debianPython)
	command := exec.Command(debianPython, append([]string{filepath.Join("testdata", script)}, arguments...)...)
	var problem bytes.Buffer
	command.Stderr = &problem
	out, err := command.Output()
	if err != nil {
		if strings.Contains(problem.String(), "ModuleNotFoundError") {
			t.Skipf("SKIPPED: Debian's python3 lacks a module: %s", problem.String())
		}
		t.Fatalf("%s: %v\n%s", script, err, problem.String())
	}
	return out
}

// asPydicom writes an element as testdata/oracle.py does.
func asPydicom(d *DataSet, e *Element) []string {
	out := []string{string(e.VR)}
	switch {
	case e.VR == SQ:
		return append(out, strconv.Itoa(len(e.Items)))
	case e.Fragments != nil:
		// pydicom gives the items as bytes, tags and lengths included, without
		// the delimiter.
		var all []byte
		for _, fragment := range e.Fragments {
			all = append(all, 0xFE, 0xFF, 0x00, 0xE0, byte(len(fragment)), byte(len(fragment)>>8), byte(len(fragment)>>16), byte(len(fragment)>>24))
			all = append(all, fragment...)
		}
		return append(out, digest(all))
	case e.VR == OB || e.VR == OW || e.VR == UN || e.VR == OF || e.VR == OD || e.VR == OL || e.VR == OV:
		return append(out, digest(e.Value))
	case e.VR == FL || e.VR == FD:
		for _, f := range d.Floats(e.Tag) {
			out = append(out, fmt.Sprintf("%.9g", f))
		}
		return out
	}
	return append(out, d.Strings(e.Tag)...)
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return fmt.Sprintf("%d:%s", len(b), hex.EncodeToString(sum[:]))
}

type described struct {
	element *Element
	text    []string
}

func paths(d *DataSet) map[string]described {
	out := map[string]described{}
	var walk func(prefix string, d *DataSet)
	walk = func(prefix string, d *DataSet) {
		for e := range d.All() {
			key := prefix + e.Tag.Hex()
			out[key] = described{e, asPydicom(d, e)}
			for i, item := range e.Items {
				walk(fmt.Sprintf("%s[%d].", key, i), item)
			}
		}
	}
	walk("", d)
	return out
}

// refused names the files that pydicom, asked to force, reads and we rightly
// do not.
var refused = map[string]error{
	"no_meta.dcm":       ErrNotDICOM,  // its first byte is a stray blank
	"README":            ErrNotDICOM,  // is text
	"README.txt":        ErrNotDICOM,  // is text
	"DICOMDIR-nooffset": ErrMalformed, // an item longer than its sequence
}

// differentByDesign tells where we and pydicom rightly differ.
func differentByDesign(file *File, e *Element, ours, theirs []string) bool {
	syntax, _ := SyntaxOf(file.TransferSyntax)
	switch {
	case e.Fragments != nil: // compressed pixels are OB (PS3.5 A.4); some files say OW
		return ours[1] == theirs[1]
	case syntax.BigEndian && len(e.Value) > 0 && representations[e.VR].unit > 1:
		// pydicom leaves OW in the order of the file.
		swapped := bytes.Clone(e.Value)
		swap(swapped, representations[e.VR].unit)
		return digest(swapped) == theirs[1]
	case e.VR == UN && e.Tag.Private(): // pydicom has dictionaries of private attributes
		return true
	case len(ours) != len(theirs):
		return false
	}
	for i := range ours { // pydicom keeps blanks before a backslash, and drops empty component groups
		if strings.TrimRight(ours[i], "=") != strings.TrimRight(theirs[i], " ") {
			return false
		}
	}
	return true
}

func TestEveryValueOfRealFilesIsWhatPydicomReads(t *testing.T) {
	files := realFiles(t)
	scanner := bufio.NewScanner(bytes.NewReader(python(t, "oracle.py", files...)))
	scanner.Buffer(nil, 64<<20)
	compared := 0
	for scanner.Scan() {
		var theirs struct {
			File, Syntax, Error string
			Elements            map[string][]string
		}
		if err := json.Unmarshal(scanner.Bytes(), &theirs); err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(theirs.File)
		if theirs.Error != "" {
			t.Logf("%s: pydicom: %s", name, theirs.Error)
			continue
		}
		data, err := os.ReadFile(theirs.File)
		if err != nil {
			t.Fatal(err)
		}
		file, err := Parse(bytes.NewReader(data), Limits{})
		if kind := refused[name]; kind != nil {
			if !errors.Is(err, kind) {
				t.Errorf("%s: %v, not %v", name, err, kind)
			}
			continue
		}
		if err != nil && !errors.Is(err, ErrTruncated) {
			t.Errorf("%s: pydicom reads %d elements, we: %v", name, len(theirs.Elements), err)
			continue
		}
		ours := paths(file.DataSet)
		for path, want := range theirs.Elements {
			got, ok := ours[path]
			if !ok {
				if err == nil {
					t.Errorf("%s: %s %v: pydicom has it, we do not", name, path, want[0])
				}
				continue
			}
			compared++
			if strings.Join(got.text, "\\") != strings.Join(want, "\\") && !differentByDesign(file, got.element, got.text, want) {
				t.Errorf("%s: %s: we read %q, pydicom %q", name, path, got.text, want)
			}
		}
		for path := range ours {
			if _, ok := theirs.Elements[path]; !ok {
				t.Errorf("%s: %s: we have it, pydicom does not", name, path)
			}
		}
	}
	if compared < 4000 {
		t.Errorf("only %d values were compared", compared)
	}
	t.Logf("%d values agree with pydicom", compared)
}
