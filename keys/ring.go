package keys

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/vigie/vigie"
)

// WrappedKey is one data key of a patient as a Keep holds it. A patient whose
// data was erased and who comes back gets a key of the next generation.
type WrappedKey struct {
	Generation uint32 // counts from 1
	Wrapped    []byte // as Provider.Wrap returned it; nil once erased
}

// Keep holds the wrapped data keys of patients. Package store implements it.
type Keep interface {
	// LatestKey returns the key of the highest generation, erased or not, or
	// ErrNoKey.
	LatestKey(ctx context.Context, patient vigie.PatientPseudonym) (WrappedKey, error)

	// Key returns the key of that generation, erased or not, or ErrNoKey.
	Key(ctx context.Context, patient vigie.PatientPseudonym, generation uint32) (WrappedKey, error)

	// AddKey stores key durably unless that generation exists, and returns
	// what is stored: key, or the one that another process added first.
	AddKey(ctx context.Context, patient vigie.PatientPseudonym, key WrappedKey) (WrappedKey, error)

	// EraseKeys destroys every wrapped key of the patient and remembers that
	// it did. Erasing twice, or a patient without keys, is no error.
	EraseKeys(ctx context.Context, patient vigie.PatientPseudonym) error
}

const (
	cacheSize = 256
	// cacheAge bounds how long a key that another process erased can still
	// be used by this one.
	cacheAge = time.Minute

	ringVersion = 1
	ringHeader  = 1 + 4 // version, generation (big endian)
	ringLabel   = "vigie patient data key v1\x00"
)

// Ring gives each patient a data key: made at first use, wrapped by the
// provider, stored by the keep, cached for a minute, zeroed when it leaves the
// cache. It is safe for concurrent use.
//
// A Ring calls its keep, which may commit a transaction: never call it from
// inside a store.Update.
type Ring struct {
	provider Provider
	keep     Keep
	now      func() time.Time

	mu     sync.Mutex
	cache  map[cacheKey]*cacheEntry
	latest map[vigie.PatientPseudonym]uint32 // generation to seal with, while it is cached
	tick   uint64                            // order of use, for eviction
	epoch  uint64                            // counts erasures, so that a load begun before one is not cached after it
}

type cacheKey struct {
	patient    vigie.PatientPseudonym
	generation uint32
}

type cacheEntry struct {
	key    []byte
	loaded time.Time
	used   uint64
}

// NewRing returns a ring over provider and keep.
func NewRing(provider Provider, keep Keep) *Ring {
	return &Ring{
		provider: provider, keep: keep, now: time.Now,
		cache:  make(map[cacheKey]*cacheEntry),
		latest: make(map[vigie.PatientPseudonym]uint32),
	}
}

// DataKey is the key that a patient's new data is sealed with.
type DataKey struct {
	Generation uint32
	Key        []byte // KeySize bytes, a copy: Zero it after use
}

// DataKey returns the patient's current data key, and makes one if the patient
// has none or was erased.
func (r *Ring) DataKey(ctx context.Context, patient vigie.PatientPseudonym) (DataKey, error) {
	if patient == "" {
		return DataKey{}, errors.New("keys: a data key was asked for without a patient pseudonym")
	}
	if generation, key, ok := r.cachedLatest(patient); ok {
		return DataKey{generation, key}, nil
	}
	epoch := r.currentEpoch()
	stored, err := r.keep.LatestKey(ctx, patient)
	switch {
	case errors.Is(err, ErrNoKey):
		stored, err = r.add(ctx, patient, 1)
	case err == nil && stored.Wrapped == nil:
		stored, err = r.add(ctx, patient, stored.Generation+1)
	}
	if err != nil {
		return DataKey{}, fmt.Errorf("keys: finding the data key of a patient: %w", err)
	}
	key, err := r.unwrap(ctx, patient, stored)
	if err != nil {
		return DataKey{}, err
	}
	r.put(patient, stored.Generation, key, epoch, true)
	return DataKey{stored.Generation, key}, nil
}

// Seal encrypts a small value under the patient's current data key, bound to
// aad. The result names the key's generation and opens with Ring.Open only.
func (r *Ring) Seal(ctx context.Context, patient vigie.PatientPseudonym, plaintext, aad []byte) ([]byte, error) {
	key, err := r.DataKey(ctx, patient)
	if err != nil {
		return nil, err
	}
	defer Zero(key.Key)
	sealed, err := Seal(key.Key, plaintext, aad)
	if err != nil {
		return nil, err
	}
	return append(header(key.Generation), sealed...), nil
}

// Open decrypts what Seal returned. It returns ErrErased when the patient's
// key was erased since, and ErrCorrupt when the bytes do not open.
func (r *Ring) Open(ctx context.Context, patient vigie.PatientPseudonym, sealed, aad []byte) ([]byte, error) {
	generation, err := parseHeader(sealed)
	if err != nil {
		return nil, err
	}
	key, err := r.generation(ctx, patient, generation)
	if err != nil {
		return nil, err
	}
	defer Zero(key)
	return Open(key, sealed[ringHeader:], aad)
}

// NewWriter is the package's NewWriter under the patient's current data key.
// What it writes opens with Ring.NewReader only.
func (r *Ring) NewWriter(ctx context.Context, w io.Writer, patient vigie.PatientPseudonym, aad []byte) (io.WriteCloser, error) {
	key, err := r.DataKey(ctx, patient)
	if err != nil {
		return nil, err
	}
	defer Zero(key.Key)
	if _, err := w.Write(header(key.Generation)); err != nil {
		return nil, fmt.Errorf("keys: writing the head of a sealed stream: %w", err)
	}
	return NewWriter(w, key.Key, aad)
}

// NewReader reads what a writer of Ring.NewWriter sealed. It returns ErrErased
// when the patient's key was erased since.
func (r *Ring) NewReader(ctx context.Context, from io.Reader, patient vigie.PatientPseudonym, aad []byte) (io.Reader, error) {
	head := make([]byte, ringHeader)
	if _, err := io.ReadFull(from, head); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = ErrCorrupt
		}
		return nil, fmt.Errorf("keys: reading the head of a sealed stream: %w", err)
	}
	generation, err := parseHeader(head)
	if err != nil {
		return nil, err
	}
	key, err := r.generation(ctx, patient, generation)
	if err != nil {
		return nil, err
	}
	defer Zero(key)
	return NewReader(from, key, aad)
}

// Erase destroys every data key of the patient. What they sealed can never be
// opened again. Other processes may use a cached key for a minute more.
func (r *Ring) Erase(ctx context.Context, patient vigie.PatientPseudonym) error {
	err := r.keep.EraseKeys(ctx, patient)
	r.Forget(patient)
	if err != nil {
		return fmt.Errorf("keys: erasing the data keys of a patient: %w", err)
	}
	return nil
}

// Forget drops the patient's keys from the cache, so that the next use asks
// the keep. For a caller that learns of an erasure by another process.
func (r *Ring) Forget(patient vigie.PatientPseudonym) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch++
	for k, entry := range r.cache {
		if k.patient == patient {
			clear(entry.key)
			delete(r.cache, k)
		}
	}
	delete(r.latest, patient)
}

// Close zeroes every cached key. The ring can still be used.
func (r *Ring) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch++
	for _, entry := range r.cache {
		clear(entry.key)
	}
	clear(r.cache)
	clear(r.latest)
}

func (r *Ring) add(ctx context.Context, patient vigie.PatientPseudonym, generation uint32) (WrappedKey, error) {
	key := NewKey()
	defer Zero(key)
	wrapped, err := r.provider.Wrap(ctx, key, ringAAD(patient, generation))
	if err != nil {
		return WrappedKey{}, err
	}
	return r.keep.AddKey(ctx, patient, WrappedKey{generation, wrapped})
}

// generation returns a copy of one key.
func (r *Ring) generation(ctx context.Context, patient vigie.PatientPseudonym, generation uint32) ([]byte, error) {
	if key, ok := r.cached(cacheKey{patient, generation}); ok {
		return key, nil
	}
	epoch := r.currentEpoch()
	stored, err := r.keep.Key(ctx, patient, generation)
	if err != nil {
		return nil, fmt.Errorf("keys: finding data key %d of a patient: %w", generation, err)
	}
	key, err := r.unwrap(ctx, patient, stored)
	if err != nil {
		return nil, err
	}
	r.put(patient, generation, key, epoch, false)
	return key, nil
}

func (r *Ring) unwrap(ctx context.Context, patient vigie.PatientPseudonym, stored WrappedKey) ([]byte, error) {
	if stored.Wrapped == nil {
		return nil, fmt.Errorf("keys: opening data key %d of a patient: %w", stored.Generation, ErrErased)
	}
	key, err := r.provider.Unwrap(ctx, stored.Wrapped, ringAAD(patient, stored.Generation))
	if err != nil {
		return nil, fmt.Errorf("keys: opening data key %d of a patient: %w", stored.Generation, err)
	}
	return key, nil
}

func (r *Ring) currentEpoch() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.epoch
}

func (r *Ring) cachedLatest(patient vigie.PatientPseudonym) (uint32, []byte, bool) {
	r.mu.Lock()
	generation, ok := r.latest[patient]
	r.mu.Unlock()
	if !ok {
		return 0, nil, false
	}
	key, ok := r.cached(cacheKey{patient, generation})
	return generation, key, ok
}

func (r *Ring) cached(k cacheKey) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	entry, ok := r.cache[k]
	if !ok {
		return nil, false
	}
	if r.now().Sub(entry.loaded) > cacheAge {
		r.drop(k, entry)
		return nil, false
	}
	r.tick++
	entry.used = r.tick
	return append([]byte(nil), entry.key...), true
}

// put caches a copy of key, unless an erasure happened since epoch was read.
func (r *Ring) put(patient vigie.PatientPseudonym, generation uint32, key []byte, epoch uint64, latest bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.epoch != epoch {
		return
	}
	k := cacheKey{patient, generation}
	if old, ok := r.cache[k]; ok {
		r.drop(k, old)
	}
	if len(r.cache) >= cacheSize {
		r.evict()
	}
	r.tick++
	r.cache[k] = &cacheEntry{key: append([]byte(nil), key...), loaded: r.now(), used: r.tick}
	if latest {
		r.latest[patient] = generation
	}
}

// evict drops the entry that was used least recently. A scan of 256 entries
// costs less than the AES-GCM that follows it.
func (r *Ring) evict() {
	var oldest cacheKey
	var entry *cacheEntry
	for k, e := range r.cache {
		if entry == nil || e.used < entry.used {
			oldest, entry = k, e
		}
	}
	if entry != nil {
		r.drop(oldest, entry)
	}
}

func (r *Ring) drop(k cacheKey, entry *cacheEntry) {
	clear(entry.key)
	delete(r.cache, k)
	if r.latest[k.patient] == k.generation {
		delete(r.latest, k.patient)
	}
}

// Generation tells which of the patient's data keys sealed the bytes.
func Generation(sealed []byte) (uint32, error) { return parseHeader(sealed) }

func header(generation uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{ringVersion}, generation)
}

func parseHeader(sealed []byte) (uint32, error) {
	if len(sealed) < ringHeader || sealed[0] != ringVersion {
		return 0, fmt.Errorf("keys: opening %d bytes that no ring sealed: %w", len(sealed), ErrCorrupt)
	}
	return binary.BigEndian.Uint32(sealed[1:]), nil
}

func ringAAD(patient vigie.PatientPseudonym, generation uint32) []byte {
	aad := binary.BigEndian.AppendUint32([]byte(ringLabel), generation)
	return append(aad, patient...)
}
