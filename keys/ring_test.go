package keys

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/vigie/vigie"
)

// memoryKeep is a Keep that counts its calls.
type memoryKeep struct {
	mu    sync.Mutex
	keys  map[vigie.PatientPseudonym][]WrappedKey
	loads int
}

func (m *memoryKeep) LatestKey(_ context.Context, p vigie.PatientPseudonym) (WrappedKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loads++
	if n := len(m.keys[p]); n > 0 {
		return m.keys[p][n-1], nil
	}
	return WrappedKey{}, ErrNoKey
}

func (m *memoryKeep) Key(_ context.Context, p vigie.PatientPseudonym, generation uint32) (WrappedKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loads++
	if generation == 0 || int(generation) > len(m.keys[p]) {
		return WrappedKey{}, ErrNoKey
	}
	return m.keys[p][generation-1], nil
}

func (m *memoryKeep) AddKey(_ context.Context, p vigie.PatientPseudonym, key WrappedKey) (WrappedKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.keys == nil {
		m.keys = make(map[vigie.PatientPseudonym][]WrappedKey)
	}
	if int(key.Generation) <= len(m.keys[p]) {
		return m.keys[p][key.Generation-1], nil
	}
	m.keys[p] = append(m.keys[p], key)
	return key, nil
}

func (m *memoryKeep) EraseKeys(_ context.Context, p vigie.PatientPseudonym) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.keys[p] {
		m.keys[p][i].Wrapped = nil
	}
	return nil
}

func newTestRing(t *testing.T) (*Ring, *memoryKeep, *File) {
	f, _ := newTestFile(t)
	keep := &memoryKeep{}
	return NewRing(f, keep), keep, f
}

func TestErasingAPatientMakesTheirDataUnreadableAndNobodyElses(t *testing.T) {
	ctx := context.Background()
	ring, keep, provider := newTestRing(t)
	sealed := make(map[vigie.PatientPseudonym][]byte)
	for _, patient := range []vigie.PatientPseudonym{"a", "b"} {
		var err error
		if sealed[patient], err = ring.Seal(ctx, patient, []byte("finding of "+patient), []byte("aad")); err != nil {
			t.Fatal(err)
		}
	}
	if err := ring.Erase(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	fresh := NewRing(provider, keep)
	for name, ring := range map[string]*Ring{"the ring that erased": ring, "a ring opened after": fresh} {
		if _, err := ring.Open(ctx, "a", sealed["a"], []byte("aad")); !errors.Is(err, ErrErased) {
			t.Errorf("%s: %v, want ErrErased", name, err)
		}
		if opened, err := ring.Open(ctx, "b", sealed["b"], []byte("aad")); err != nil || string(opened) != "finding of b" {
			t.Errorf("%s: the other patient: %q, %v", name, opened, err)
		}
	}
}

func TestAPatientWhoComesBackAfterErasureGetsANewKey(t *testing.T) {
	ctx := context.Background()
	ring, _, _ := newTestRing(t)
	before, err := ring.Seal(ctx, "a", []byte("old"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ring.Erase(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	after, err := ring.Seal(ctx, "a", []byte("new"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := ring.Open(ctx, "a", after, nil); err != nil || string(opened) != "new" {
		t.Errorf("new data: %q, %v", opened, err)
	}
	if _, err := ring.Open(ctx, "a", before, nil); !errors.Is(err, ErrErased) {
		t.Errorf("old data: %v, want ErrErased", err)
	}
}

func TestOnePatientsDataDoesNotOpenAsAnothers(t *testing.T) {
	ctx := context.Background()
	ring, keep, provider := newTestRing(t)
	sealed, err := ring.Seal(ctx, "a", []byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ring.DataKey(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := ring.Open(ctx, "b", sealed, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("opened as another patient's: %v", err)
	}
	if _, err := ring.Open(ctx, "nobody", sealed, nil); !errors.Is(err, ErrNoKey) {
		t.Errorf("opened as an unknown patient's: %v", err)
	}
	// Someone who can write the database swaps the wrapped keys.
	keep.keys["a"], keep.keys["b"] = keep.keys["b"], keep.keys["a"]
	if _, err := NewRing(provider, keep).Open(ctx, "b", sealed, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("opened with a wrapped key moved to another patient: %v", err)
	}
}

func TestARingsStreamsEndWithTheirPatientsKey(t *testing.T) {
	ctx := context.Background()
	ring, _, _ := newTestRing(t)
	var sealed bytes.Buffer
	w, err := ring.NewWriter(ctx, &sealed, "a", []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(pattern(100_000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := ring.NewReader(ctx, bytes.NewReader(sealed.Bytes()), "a", []byte("aad"))
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := io.ReadAll(r); err != nil || !bytes.Equal(opened, pattern(100_000)) {
		t.Fatal(err)
	}
	if err := ring.Erase(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := ring.NewReader(ctx, bytes.NewReader(sealed.Bytes()), "a", []byte("aad")); !errors.Is(err, ErrErased) {
		t.Errorf("after erasure: %v", err)
	}
	for _, cut := range []int{0, 1, ringHeader - 1} {
		if _, err := ring.NewReader(ctx, bytes.NewReader(sealed.Bytes()[:cut]), "a", nil); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d: %v", cut, err)
		}
	}
}

func TestTheCacheIsBoundedZeroedAndForgets(t *testing.T) {
	ctx := context.Background()
	ring, keep, _ := newTestRing(t)
	now := time.Now()
	ring.now = func() time.Time { return now }
	if _, err := ring.DataKey(ctx, "first"); err != nil {
		t.Fatal(err)
	}
	cached := ring.cache[cacheKey{"first", 1}].key
	loads := keep.loads
	if _, err := ring.DataKey(ctx, "first"); err != nil || keep.loads != loads {
		t.Errorf("a cached key was loaded again (%v)", err)
	}
	for i := range cacheSize {
		if _, err := ring.DataKey(ctx, vigie.PatientPseudonym(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if len(ring.cache) != cacheSize || len(ring.latest) != cacheSize {
		t.Errorf("%d keys and %d generations are cached, the limit is %d", len(ring.cache), len(ring.latest), cacheSize)
	}
	if !bytes.Equal(cached, make([]byte, KeySize)) {
		t.Error("an evicted key was left in memory")
	}
	now = now.Add(cacheAge + time.Second)
	loads = keep.loads
	if _, err := ring.DataKey(ctx, "0"); err != nil || keep.loads == loads {
		t.Errorf("a key older than %v was used without asking the keep (%v)", cacheAge, err)
	}
	ring.Close()
	if len(ring.cache) != 0 {
		t.Error("Close left keys")
	}
}

func TestManyCallersAgreeOnOneKey(t *testing.T) {
	ctx := context.Background()
	f, _ := newTestFile(t)
	keep := &memoryKeep{}
	var wait sync.WaitGroup
	results := make(chan DataKey, 32)
	for range cap(results) {
		ring := NewRing(f, keep) // as many processes
		wait.Go(func() {
			key, err := ring.DataKey(ctx, "a")
			if err != nil {
				t.Error(err)
			}
			results <- key
		})
	}
	wait.Wait()
	close(results)
	first := <-results
	for key := range results {
		if !bytes.Equal(key.Key, first.Key) {
			t.Fatal("two callers seal with different keys")
		}
	}
}

// slowKeep erases while a load is under way.
type slowKeep struct {
	memoryKeep
	during func()
}

func (s *slowKeep) Key(ctx context.Context, p vigie.PatientPseudonym, generation uint32) (WrappedKey, error) {
	key, err := s.memoryKeep.Key(ctx, p, generation)
	if s.during != nil {
		s.during()
	}
	return key, err
}

func TestAKeyLoadedWhileItIsErasedIsNotCached(t *testing.T) {
	ctx := context.Background()
	f, _ := newTestFile(t)
	keep := &slowKeep{}
	ring := NewRing(f, keep)
	sealed, err := ring.Seal(ctx, "a", []byte("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	ring.Close()
	keep.during = func() {
		keep.during = nil
		if err := ring.Erase(ctx, "a"); err != nil {
			t.Error(err)
		}
	}
	ring.Open(ctx, "a", sealed, nil) // may still succeed: it began before the erasure
	if _, err := ring.Open(ctx, "a", sealed, nil); !errors.Is(err, ErrErased) {
		t.Errorf("after the erasure: %v, want ErrErased", err)
	}
}
