package keys

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

const (
	fileHeader  = "vigie master keys v1"
	maxFileSize = 64 << 10 // over 1,000 rotations

	wrapVersion = 1
	wrapHeader  = 1 + 4 // wrap version, master key version (big endian)
	wrapLabel   = "vigie wrapped key v1\x00"
)

// File is a Provider whose master keys lie in one file, readable by the owner
// alone. It suits one machine; a stolen disk with this file on it is a stolen
// vault, so keep the file on another volume than the data, or use a provider
// backed by hardware.
//
// The file is text: a heading, then one "version base64-key" line per master
// key, oldest first. Rotate adds a line, and the old ones stay, because they
// still open what they wrapped.
type File struct {
	path string

	mu   sync.RWMutex
	keys [][]byte // version i+1 at i; nil after Close
	id   string
}

var _ Provider = (*File)(nil)

// CreateFile makes a new master key and stores it at path, mode 0600. The file
// must not exist yet, so that no key is ever overwritten. A missing folder is
// made with mode 0700.
func CreateFile(path string) (*File, error) {
	folder := filepath.Dir(path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, fmt.Errorf("keys: creating the folder of %s: %w", path, err)
	}
	if err := checkFolder(folder); err != nil {
		return nil, err
	}
	keys := [][]byte{NewKey()}
	if err := writeNew(path, format(keys)); err != nil {
		return nil, fmt.Errorf("keys: creating %s: %w", path, err)
	}
	return newFile(path, keys), nil
}

// OpenFile reads the master keys at path. It returns ErrPermissions when the
// file can be read by group or others, belongs to another user, or lies in a
// folder where others can replace it.
func OpenFile(path string) (*File, error) {
	if err := checkFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("keys: opening the master key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("keys: inspecting %s: %w", path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("keys: opening %s: it is not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("keys: opening %s, mode %04o: run chmod 600 on it and consider its keys known to others: %w", path, mode, ErrPermissions)
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != os.Geteuid() && os.Geteuid() != 0 {
		return nil, fmt.Errorf("keys: opening %s: it belongs to user %d, not to %d: %w", path, stat.Uid, os.Geteuid(), ErrPermissions)
	}
	if info.Size() > maxFileSize {
		return nil, fmt.Errorf("keys: opening %s: %d bytes is too large for a key file (limit %d)", path, info.Size(), maxFileSize)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, fmt.Errorf("keys: reading %s: %w", path, err)
	}
	defer clear(data)
	keys, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("keys: reading %s: %w", path, err)
	}
	return newFile(path, keys), nil
}

func newFile(path string, keys [][]byte) *File {
	// The id is a digest of the first key under a label of its own, so it
	// tells master keys apart and nothing else.
	sum := sha256.Sum256(append([]byte("vigie master key id v1\x00"), keys[0]...))
	return &File{path: path, keys: keys, id: "file:" + hex.EncodeToString(sum[:8])}
}

// ID returns "file:" and 16 hexadecimal digits. Rotation does not change it.
func (f *File) ID() string { return f.id }

// Version returns the number of the newest master key, counting from 1.
func (f *File) Version() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.keys)
}

// Rotate adds a new master key. Later calls of Wrap use it; what older keys
// wrapped still opens. The file is replaced as a whole: a crash leaves the old
// one or the new one. Other processes use the new key after they open the file
// again, and can still unwrap nothing newer until then, so rotate with the
// gateway stopped or restart it after.
func (f *File) Rotate() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.keys == nil {
		return errClosed
	}
	keys := append(f.keys[:len(f.keys):len(f.keys)], NewKey())
	next := f.path + ".next"
	// A rotation that was interrupted before its rename left nothing in use.
	if err := os.Remove(next); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("keys: rotating %s: %w", f.path, err)
	}
	if err := writeNew(next, format(keys)); err != nil {
		return fmt.Errorf("keys: rotating %s: %w", f.path, err)
	}
	if err := os.Rename(next, f.path); err != nil {
		return fmt.Errorf("keys: rotating %s: %w", f.path, err)
	}
	if err := syncFolder(filepath.Dir(f.path)); err != nil {
		return fmt.Errorf("keys: rotating %s: %w", f.path, err)
	}
	f.keys = keys
	return nil
}

// Wrap encrypts key under the newest master key.
func (f *File) Wrap(_ context.Context, key, aad []byte) ([]byte, error) {
	if len(key) < 16 || len(key) > 64 {
		return nil, fmt.Errorf("keys: wrapping a key of %d bytes, 16 to 64 expected", len(key))
	}
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.keys == nil {
		return nil, errClosed
	}
	version := uint32(len(f.keys))
	sealed, err := Seal(f.keys[version-1], key, wrapAAD(version, aad))
	if err != nil {
		return nil, err
	}
	wrapped := make([]byte, 0, wrapHeader+len(sealed))
	wrapped = append(wrapped, wrapVersion)
	wrapped = binary.BigEndian.AppendUint32(wrapped, version)
	return append(wrapped, sealed...), nil
}

// Unwrap opens what Wrap returned.
func (f *File) Unwrap(_ context.Context, wrapped, aad []byte) ([]byte, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.keys == nil {
		return nil, errClosed
	}
	if len(wrapped) < wrapHeader+SealOverhead || wrapped[0] != wrapVersion {
		return nil, fmt.Errorf("keys: unwrapping %d bytes that are not a wrapped key: %w", len(wrapped), ErrCorrupt)
	}
	version := binary.BigEndian.Uint32(wrapped[1:])
	if version == 0 || uint64(version) > uint64(len(f.keys)) {
		return nil, fmt.Errorf("keys: unwrapping under master key version %d, %s has %d: restore the newer key file: %w", version, f.path, len(f.keys), ErrCorrupt)
	}
	key, err := Open(f.keys[version-1], wrapped[wrapHeader:], wrapAAD(version, aad))
	if err != nil {
		return nil, fmt.Errorf("keys: unwrapping under master key version %d: %w", version, ErrCorrupt)
	}
	return key, nil
}

// Close forgets the master keys. Every later call fails.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, key := range f.keys {
		clear(key)
	}
	f.keys = nil
	return nil
}

var errClosed = errors.New("keys: the key file is closed")

func wrapAAD(version uint32, aad []byte) []byte {
	full := binary.BigEndian.AppendUint32([]byte(wrapLabel), version)
	return append(full, aad...)
}

func format(keys [][]byte) []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, fileHeader)
	for i, key := range keys {
		fmt.Fprintf(&b, "%d %s\n", i+1, base64.StdEncoding.EncodeToString(key))
	}
	return b.Bytes()
}

// parse accepts exactly what format writes.
func parse(data []byte) ([][]byte, error) {
	scanner := bufio.NewScanner(bytes.NewReader(data))
	if !scanner.Scan() || scanner.Text() != fileHeader {
		return nil, fmt.Errorf("line 1 is not %q", fileHeader)
	}
	var keys [][]byte
	for scanner.Scan() {
		line := len(keys) + 2
		version, encoded, ok := strings.Cut(scanner.Text(), " ")
		if !ok || version != strconv.Itoa(len(keys)+1) {
			return nil, fmt.Errorf("line %d does not hold key version %d", line, len(keys)+1)
		}
		key, err := base64.StdEncoding.Strict().DecodeString(encoded)
		if err != nil || len(key) != KeySize {
			return nil, fmt.Errorf("line %d does not hold a base64 key of %d bytes", line, KeySize)
		}
		keys = append(keys, key)
	}
	if err := scanner.Err(); err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, errors.New("it holds no key")
	}
	if again := format(keys); !bytes.Equal(again, data) {
		return nil, errors.New("it holds something other than the heading and its keys")
	}
	return keys, nil
}

// checkFolder refuses a folder where another user could swap the key file.
func checkFolder(folder string) error {
	info, err := os.Stat(folder)
	if err != nil {
		return fmt.Errorf("keys: inspecting the folder of the key file: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("keys: %s, mode %04o, can be changed by other users: run chmod 700 on it: %w", folder, mode, ErrPermissions)
	}
	return nil
}

// writeNew writes a file that must not exist and makes it durable.
func writeNew(path string, data []byte) (err error) {
	defer clear(data)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(path)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

func syncFolder(folder string) error {
	d, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
