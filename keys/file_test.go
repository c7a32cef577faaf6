package keys

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func newTestFile(t *testing.T) (*File, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys", "master.key")
	f, err := CreateFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return f, path
}

func TestAKeyFileIsForItsOwnerAlone(t *testing.T) {
	_, path := newTestFile(t)
	for name, want := range map[string]fs.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", name, info.Mode().Perm(), want)
		}
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o660, 0o620, 0o601} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenFile(path); !errors.Is(err, ErrPermissions) {
			t.Errorf("mode %04o: %v, want ErrPermissions", mode, err)
		}
	}
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFile(path); !errors.Is(err, ErrPermissions) {
		t.Errorf("in a folder that anyone can write: %v, want ErrPermissions", err)
	}
}

func TestAKeyFileIsNeverOverwritten(t *testing.T) {
	_, path := newTestFile(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := CreateFile(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("creating it again: %v", err)
	}
	after, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file changed (%v)", err)
	}
}

func TestRotationKeepsWhatOlderKeysWrappedReadable(t *testing.T) {
	ctx := context.Background()
	f, path := newTestFile(t)
	id := f.ID()
	key := NewKey()
	var wrapped [][]byte
	for version := 1; version <= 4; version++ {
		w, err := f.Wrap(ctx, key, []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		wrapped = append(wrapped, w)
		if f.Version() != version {
			t.Fatalf("version %d, want %d", f.Version(), version)
		}
		if err := f.Rotate(); err != nil {
			t.Fatal(err)
		}
	}
	reopened, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, w := range wrapped {
		for _, provider := range []*File{f, reopened} {
			got, err := provider.Unwrap(ctx, w, []byte("aad"))
			if err != nil || !bytes.Equal(got, key) {
				t.Errorf("wrapped under version %d: %v", i+1, err)
			}
		}
		if _, err := f.Unwrap(ctx, w, []byte("other")); !errors.Is(err, ErrCorrupt) {
			t.Errorf("with other additional data: %v", err)
		}
	}
	if f.ID() != id || reopened.ID() != id {
		t.Error("rotation changed the id")
	}
	// A wrapped key that claims another master key does not open.
	claimed := bytes.Clone(wrapped[0])
	claimed[4] = 2
	if _, err := f.Unwrap(ctx, claimed, []byte("aad")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("claiming another version: %v", err)
	}
	claimed[4] = 200
	if _, err := f.Unwrap(ctx, claimed, []byte("aad")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("claiming a version that does not exist: %v", err)
	}
}

func TestAnInterruptedRotationLeavesTheOldKeys(t *testing.T) {
	f, path := newTestFile(t)
	if err := os.WriteFile(path+".next", []byte("half a f"), 0o600); err != nil {
		t.Fatal(err)
	}
	if reopened, err := OpenFile(path); err != nil || reopened.ID() != f.ID() {
		t.Fatal(err)
	}
	if err := f.Rotate(); err != nil {
		t.Fatal(err)
	}
	if reopened, err := OpenFile(path); err != nil || reopened.Version() != 2 {
		t.Fatal(err)
	}
}

func TestADamagedKeyFileIsRefusedAndSaysWhere(t *testing.T) {
	_, path := newTestFile(t)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.SplitAfter(string(good), "\n")[1]
	for name, content := range map[string]string{
		"empty":               "",
		"no key":              fileHeader + "\n",
		"another heading":     strings.Replace(string(good), "v1", "v9", 1),
		"version 2 first":     fileHeader + "\n" + "2" + line[1:],
		"the same key twice":  string(good) + line,
		"a short key":         fileHeader + "\n1 AAAA\n",
		"not base64":          fileHeader + "\n1 " + strings.Repeat("!", 44) + "\n",
		"no final line break": strings.TrimSuffix(string(good), "\n"),
		"blank line":          string(good) + "\n",
		"carriage returns":    strings.ReplaceAll(string(good), "\n", "\r\n"),
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenFile(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(path, make([]byte, maxFileSize+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenFile(path); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("a huge file: %v", err)
	}
}

func TestAClosedKeyFileWrapsNothing(t *testing.T) {
	f, _ := newTestFile(t)
	wrapped, err := f.Wrap(context.Background(), NewKey(), nil)
	if err != nil {
		t.Fatal(err)
	}
	master := f.keys[0]
	f.Close()
	if !bytes.Equal(master, make([]byte, KeySize)) {
		t.Error("the master key was left in memory")
	}
	if _, err := f.Wrap(context.Background(), NewKey(), nil); err == nil {
		t.Error("it still wraps")
	}
	if _, err := f.Unwrap(context.Background(), wrapped, nil); err == nil {
		t.Error("it still unwraps")
	}
	if err := f.Rotate(); err == nil {
		t.Error("it still rotates")
	}
}

func FuzzKeyFile(f *testing.F) {
	f.Add(format([][]byte{testKey}))
	f.Add(format([][]byte{testKey, testKey}))
	f.Add([]byte(fileHeader + "\n1 \n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := parse(data)
		if err == nil && !bytes.Equal(format(keys), data) {
			t.Fatal("two files hold the same keys")
		}
	})
}
