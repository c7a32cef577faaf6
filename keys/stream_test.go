package keys

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write the golden files anew")

var testKey = bytes.Repeat([]byte{7}, KeySize)

func sealStream(t interface{ Fatal(...any) }, plaintext, aad []byte) []byte {
	var sealed bytes.Buffer
	w, err := NewWriter(&sealed, testKey, aad)
	if err == nil {
		_, err = w.Write(plaintext)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return sealed.Bytes()
}

func openStream(sealed, key, aad []byte) ([]byte, error) {
	r, err := NewReader(bytes.NewReader(sealed), key, aad)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i * 31 >> 3)
	}
	return p
}

// edges are the sizes where the last chunk changes its shape.
var edges = []int{0, 1, chunkSize - 1, chunkSize, chunkSize + 1, 2 * chunkSize, 2*chunkSize + 1, 3*chunkSize + 17}

func TestASealedStreamOpensToWhatWasWritten(t *testing.T) {
	for _, size := range edges {
		plaintext := pattern(size)
		sealed := sealStream(t, plaintext, []byte("aad"))
		if int64(len(sealed)) != SealedSize(int64(size)) {
			t.Errorf("%d bytes sealed to %d, SealedSize says %d", size, len(sealed), SealedSize(int64(size)))
		}
		opened, err := openStream(sealed, testKey, []byte("aad"))
		if err != nil || !bytes.Equal(opened, plaintext) {
			t.Errorf("%d bytes: %v", size, err)
		}
		r, err := NewReader(iotest.OneByteReader(bytes.NewReader(sealed)), testKey, []byte("aad"))
		if err != nil {
			t.Fatal(err)
		}
		if err := iotest.TestReader(r, plaintext); err != nil {
			t.Errorf("%d bytes read one by one: %v", size, err)
		}
	}
}

func TestHowAStreamIsWrittenDoesNotChangeWhatItHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		plaintext := pattern(rapid.SampledFrom(edges).Draw(t, "size"))
		var sealed bytes.Buffer
		w, err := NewWriter(&sealed, testKey, nil)
		if err != nil {
			t.Fatal(err)
		}
		for rest := plaintext; len(rest) > 0; {
			n := rapid.IntRange(1, min(len(rest), 100_000)).Draw(t, "write")
			if written, err := w.Write(rest[:n]); err != nil || written != n {
				t.Fatal(written, err)
			}
			rest = rest[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		opened, err := openStream(sealed.Bytes(), testKey, nil)
		if err != nil || !bytes.Equal(opened, plaintext) {
			t.Fatalf("%d bytes: %v", len(plaintext), err)
		}
	})
}

func TestNoAlterationOfASealedStreamGoesUnnoticed(t *testing.T) {
	plaintext := pattern(3*chunkSize + 1000)
	sealed := sealStream(t, plaintext, []byte("aad"))
	cut := func(i int) int { return headerSize + i*(chunkSize+tagSize) } // where chunk i begins
	swapped := bytes.Clone(sealed)
	copy(swapped[cut(0):], sealed[cut(1):cut(2)])
	copy(swapped[cut(1):], sealed[cut(0):cut(1)])
	other := sealStream(t, plaintext, []byte("aad"))
	spliced := append(bytes.Clone(sealed[:cut(1)]), other[cut(1):]...)
	for name, altered := range map[string][]byte{
		"nothing is left":                  {},
		"half a header":                    sealed[:headerSize/2],
		"only the header":                  sealed[:headerSize],
		"cut after one chunk":              sealed[:cut(1)],
		"cut after three chunks":           sealed[:cut(3)],
		"cut inside a chunk":               sealed[:cut(2)+100],
		"cut by one byte":                  sealed[:len(sealed)-1],
		"cut inside the last tag":          sealed[:cut(3)+8],
		"extended by one byte":             append(bytes.Clone(sealed), 0),
		"the last chunk repeated":          append(bytes.Clone(sealed), sealed[cut(3):]...),
		"another stream appended":          append(bytes.Clone(sealed), other...),
		"two chunks swapped":               swapped,
		"the first chunk left out":         append(bytes.Clone(sealed[:cut(0)]), sealed[cut(1):]...),
		"a middle chunk left out":          append(bytes.Clone(sealed[:cut(1)]), sealed[cut(2):]...),
		"chunks of a stream with one more": spliced,
		"an empty last chunk":              append(bytes.Clone(sealed[:cut(3)]), make([]byte, tagSize)...),
	} {
		opened, err := openStream(altered, testKey, []byte("aad"))
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error %v, want ErrCorrupt", name, err)
		}
		if !bytes.HasPrefix(plaintext, opened) {
			t.Errorf("%s: bytes that were never written came out", name)
		}
	}
	if _, err := openStream(sealed, NewKey(), []byte("aad")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another key: %v", err)
	}
	if _, err := openStream(sealed, testKey, []byte("other")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("other additional data: %v", err)
	}
}

func TestEveryFlippedBitOfASealedStreamIsNoticed(t *testing.T) {
	sealed := sealStream(t, pattern(90), nil)
	for i := range len(sealed) * 8 {
		altered := bytes.Clone(sealed)
		altered[i/8] ^= 1 << (i % 8)
		if opened, err := openStream(altered, testKey, nil); !errors.Is(err, ErrCorrupt) || len(opened) > 0 {
			t.Fatalf("bit %d: %d bytes, %v", i, len(opened), err)
		}
	}
}

func TestAStreamThatWasNotClosedDoesNotOpen(t *testing.T) {
	for _, size := range edges[1:] {
		var sealed bytes.Buffer
		w, err := NewWriter(&sealed, testKey, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(pattern(size)); err != nil {
			t.Fatal(err)
		}
		if _, err := openStream(sealed.Bytes(), testKey, nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

func TestAWriterThatFailedStaysFailed(t *testing.T) {
	full := errors.New("disk full")
	w, err := NewWriter(&failAfter{n: 50_000, err: full}, testKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(pattern(3 * chunkSize)); !errors.Is(err, full) {
		t.Errorf("Write: %v", err)
	}
	if _, err := w.Write([]byte{1}); !errors.Is(err, full) {
		t.Errorf("second Write: %v", err)
	}
	if err := w.Close(); !errors.Is(err, full) {
		t.Errorf("Close: %v", err)
	}
	if err := w.Close(); !errors.Is(err, full) {
		t.Errorf("second Close: %v", err)
	}
}

type failAfter struct {
	n   int
	err error
}

func (f *failAfter) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, f.err
	}
	return len(p), nil
}

func TestAReadErrorIsNotMistakenForTheEnd(t *testing.T) {
	sealed := sealStream(t, pattern(2*chunkSize), nil)
	broken := errors.New("broken disk")
	for _, n := range []int{0, headerSize, headerSize + 10, headerSize + chunkSize + tagSize, len(sealed)} {
		r, err := NewReader(io.MultiReader(bytes.NewReader(sealed[:n]), iotest.ErrReader(broken)), testKey, nil)
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if !errors.Is(err, broken) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

// The golden file keeps the format from changing unnoticed: old vaults must
// stay readable.
func TestTheSealedFormatsAreStable(t *testing.T) {
	path := filepath.Join("testdata", "sealed.golden")
	if *update {
		var stream bytes.Buffer
		header := append([]byte(streamMagic), bytes.Repeat([]byte{3}, saltSize)...)
		w, err := newWriter(&stream, testKey, []byte("golden"), header)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("a sealed stream")); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		value, err := Seal(testKey, []byte("a sealed value"), []byte("golden"))
		if err != nil {
			t.Fatal(err)
		}
		lines := hex.EncodeToString(stream.Bytes()) + "\n" + hex.EncodeToString(value) + "\n"
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(lines), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Fields(data)
	if len(lines) != 2 {
		t.Fatalf("%d lines", len(lines))
	}
	decode := func(line []byte) []byte {
		decoded, err := hex.DecodeString(string(line))
		if err != nil {
			t.Fatal(err)
		}
		return decoded
	}
	if opened, err := openStream(decode(lines[0]), testKey, []byte("golden")); err != nil || string(opened) != "a sealed stream" {
		t.Errorf("stream: %q, %v", opened, err)
	}
	if opened, err := Open(testKey, decode(lines[1]), []byte("golden")); err != nil || string(opened) != "a sealed value" {
		t.Errorf("value: %q, %v", opened, err)
	}
}

func FuzzReader(f *testing.F) {
	for _, size := range []int{0, 100, chunkSize, chunkSize + 1} {
		f.Add(sealStream(f, pattern(size), nil))
	}
	f.Add([]byte(streamMagic))
	f.Fuzz(func(t *testing.T, sealed []byte) {
		opened, err := openStream(sealed, testKey, nil)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatalf("an error that is not ErrCorrupt: %v", err)
		}
		// Nobody can make a stream that opens without the key, except by
		// handing in one that was sealed here.
		if err == nil && SealedSize(int64(len(opened))) != int64(len(sealed)) {
			t.Fatalf("%d bytes opened to %d", len(sealed), len(opened))
		}
	})
}

func BenchmarkStream(b *testing.B) {
	plaintext := pattern(7532800) // a 2140×1760 CR
	b.Run("seal", func(b *testing.B) {
		b.SetBytes(int64(len(plaintext)))
		for b.Loop() {
			w, _ := NewWriter(io.Discard, testKey, nil)
			w.Write(plaintext)
			w.Close()
		}
	})
	sealed := sealStream(b, plaintext, nil)
	b.Run("open", func(b *testing.B) {
		b.SetBytes(int64(len(plaintext)))
		for b.Loop() {
			r, _ := NewReader(bytes.NewReader(sealed), testKey, nil)
			io.Copy(io.Discard, r)
		}
	})
}
