package audit_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

func prove(t testing.TB, s *store.Store, l *audit.Log, id vigie.CaseID) []byte {
	t.Helper()
	file, err := audit.Prove(context.Background(), s, l.VerifierKey(), id)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestAProofConvincesAThirdPartyWithNothingButTheKey(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		l := newLog(t, s)
		ids, checkpoints := populate(t, s, l)
		for i, id := range ids {
			proven, err := audit.Check(bytes.NewReader(prove(t, s, l, id)), l.VerifierKey())
			if err != nil {
				t.Fatal(err)
			}
			if proven.Case != id || len(proven.Records) != 4 || proven.Size != 28 || proven.Root != checkpoints[6].Root || proven.Origin != origin {
				t.Errorf("%+v", proven)
			}
			for j, index := range proven.Indexes {
				if index != int64(4*i+j) {
					t.Errorf("record %d of case %d is at %d", j, i, index)
				}
			}
			if proven.Records[3].To != vigie.Delivered || proven.Records[0].Source.AETitle != "MODALITY" {
				t.Errorf("%+v", proven.Records)
			}
		}
		if _, err := audit.Prove(context.Background(), s, l.VerifierKey(), "nobody"); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("an unknown case: %v", err)
		}
		fresh := take(t, s, l)
		if _, err := audit.Prove(context.Background(), s, l.VerifierKey(), fresh); err == nil {
			t.Error("a record that nobody signed was proven")
		}
	})
}

// TestAnAlteredProofIsRefused alters a proof file in every way that its format
// offers.
func TestAnAlteredProofIsRefused(t *testing.T) {
	s := storetest.Open(t, "sqlite")
	l := newLog(t, s)
	ids, checkpoints := populate(t, s, l)
	file := prove(t, s, l, ids[2])
	otherFile := prove(t, s, l, ids[3])
	_, strangerKey := testKeys(t, "other", 1)
	_, otherKey := testKeys(t, origin, 2)

	type anyFile = map[string]any
	parse := func(data []byte) anyFile {
		var f anyFile
		if err := json.Unmarshal(data, &f); err != nil {
			t.Fatal(err)
		}
		return f
	}
	records := func(f anyFile) []any { return f["records"].([]any) }
	record := func(f anyFile, i int) anyFile { return records(f)[i].(anyFile) }
	for name, alter := range map[string]func(f anyFile){
		"nothing":                  func(anyFile) {},
		"another format":           func(f anyFile) { f["format"] = "vigie-audit-proof/2" },
		"another origin":           func(f anyFile) { f["origin"] = "other" },
		"another case":             func(f anyFile) { f["case"] = string(ids[0]) },
		"no case":                  func(f anyFile) { f["case"] = "" },
		"no record":                func(f anyFile) { f["records"] = []any{} },
		"no checkpoint":            func(f anyFile) { f["checkpoint"] = "" },
		"an older checkpoint":      func(f anyFile) { f["checkpoint"] = string(checkpoints[1].Note) },
		"a checkpoint that covers": func(f anyFile) { f["checkpoint"] = string(checkpoints[5].Note) },
		"an altered checkpoint":    func(f anyFile) { f["checkpoint"] = strings.Replace(f["checkpoint"].(string), "28", "29", 1) },
		"an altered record": func(f anyFile) {
			record(f, 0)["record"] = strings.Replace(record(f, 0)["record"].(string), "MODALITY", "M", 1)
		},
		"a record spelled anew":     func(f anyFile) { record(f, 0)["record"] = " " + record(f, 0)["record"].(string) },
		"another index":             func(f anyFile) { record(f, 1)["index"] = 8.0 },
		"a negative index":          func(f anyFile) { record(f, 1)["index"] = -1.0 },
		"an index beyond the log":   func(f anyFile) { record(f, 1)["index"] = 28.0 },
		"another inclusion proof":   func(f anyFile) { record(f, 0)["inclusion"] = record(f, 1)["inclusion"] },
		"a cut inclusion proof":     func(f anyFile) { record(f, 0)["inclusion"] = record(f, 0)["inclusion"].([]any)[1:] },
		"no inclusion proof":        func(f anyFile) { record(f, 0)["inclusion"] = nil },
		"a record left out":         func(f anyFile) { f["records"] = append(records(f)[:1:1], records(f)[2:]...) },
		"the first record left out": func(f anyFile) { f["records"] = records(f)[1:] },
		"a record twice":            func(f anyFile) { f["records"] = append(records(f), records(f)[3]) },
		"records in another order":  func(f anyFile) { r := records(f); r[0], r[1] = r[1], r[0] },
		"another case's record":     func(f anyFile) { records(f)[1] = records(parse(otherFile))[1] },
		"something unknown":         func(f anyFile) { f["note"] = "trust me" },
		"a huge inclusion proof": func(f anyFile) {
			path := record(f, 0)["inclusion"].([]any)
			for len(path) < 100 {
				path = append(path, path[0])
			}
			record(f, 0)["inclusion"] = path
		},
	} {
		f := parse(file)
		alter(f)
		data, err := json.Marshal(f)
		if err != nil {
			t.Fatal(err)
		}
		_, err = audit.Check(bytes.NewReader(data), l.VerifierKey())
		if name == "nothing" {
			if err != nil {
				t.Errorf("an unaltered proof: %v", err)
			}
			continue
		}
		if !errors.Is(err, audit.ErrProof) {
			t.Errorf("%s: %v, want ErrProof", name, err)
		}
	}
	for name, key := range map[string]string{"the key of another log": strangerKey, "another key of this name": otherKey} {
		if _, err := audit.Check(bytes.NewReader(file), key); !errors.Is(err, audit.ErrProof) {
			t.Errorf("%s: %v, want ErrProof", name, err)
		}
	}
	if _, err := audit.Check(bytes.NewReader(append(file, file...)), l.VerifierKey()); !errors.Is(err, audit.ErrProof) {
		t.Errorf("two files in one: %v", err)
	}
	if _, err := audit.Check(bytes.NewReader(file), "no key"); err == nil {
		t.Error("something that is no key was accepted")
	}
}

var update = flag.Bool("update", false, "write the golden files anew")

// goldenProof is a proof file made once: files handed out must stay checkable,
// and every process of a fuzzing run starts from the same one.
func goldenProof(t testing.TB) (file []byte, verifierKey string) {
	t.Helper()
	path := filepath.Join("testdata", "proof.golden.json")
	_, verifierKey = testKeys(t, origin, 1)
	if *update {
		s := storetest.Open(t, "sqlite")
		l := newLog(t, s)
		populate(t, s, l)
		id := take(t, s, l)
		walk(t, s, l, id, vigie.Received, vigie.Diagnosed, vigie.InReview)
		publish(t, l)
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, prove(t, s, l, id), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return file, verifierKey
}

func TestAProofHandedOutLongAgoStillChecks(t *testing.T) {
	file, key := goldenProof(t)
	proven, err := audit.Check(bytes.NewReader(file), key)
	if err != nil || proven.Size != 31 || len(proven.Records) != 3 || proven.Records[2].To != vigie.InReview {
		t.Errorf("%+v, %v", proven, err)
	}
}

func FuzzCheck(f *testing.F) {
	honest, key := goldenProof(f)
	f.Add(honest)
	f.Add([]byte(`{"format":"vigie-audit-proof/1","origin":"` + origin + `","case":"c","checkpoint":"","records":[]}`))
	f.Add([]byte(`{`))
	want, err := audit.Check(bytes.NewReader(honest), key)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		proven, err := audit.Check(bytes.NewReader(data), key)
		if err != nil {
			if !errors.Is(err, audit.ErrProof) {
				t.Fatalf("an error that is not ErrProof: %v", err)
			}
			return
		}
		// Whatever is accepted says no more than the log does. (The last
		// records may be missing: nothing can show that without the log.)
		if proven.Case != want.Case || proven.Root != want.Root || len(proven.Records) > len(want.Records) {
			t.Fatalf("a made-up proof was accepted: %+v", proven)
		}
		for i := range proven.Records {
			if fmt.Sprint(proven.Records[i]) != fmt.Sprint(want.Records[i]) {
				t.Fatalf("a made-up record was accepted: %+v", proven.Records[i])
			}
		}
	})
}
