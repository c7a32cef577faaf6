package store

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
)

// BlobName names a blob: 32 lower-case hexadecimal digits, random.
type BlobName string

// partSuffix marks a file that is being written.
const partSuffix = ".part"

// Blobs is a folder of encrypted objects, each one file, spread over 256
// subfolders by the first two digits of its name. It never sees plaintext:
// callers give it what keys.NewWriter writes. It is safe for concurrent use.
type Blobs struct {
	dir   string
	files FileSystem
}

// OpenBlobs opens the folder dir and makes it and its subfolders if missing.
func OpenBlobs(dir string, files FileSystem) (*Blobs, error) {
	b := &Blobs{dir: dir, files: files}
	present := make(map[string]bool)
	entries, err := files.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("store: opening the folder of objects %s: %w", dir, mapped(err))
	}
	for _, entry := range entries {
		present[entry.Name()] = true
	}
	made := false
	for _, shard := range shards() {
		if present[shard] {
			continue
		}
		if err := files.MkdirAll(filepath.Join(dir, shard), 0o700); err != nil {
			return nil, fmt.Errorf("store: creating the folder of objects %s: %w", dir, mapped(err))
		}
		made = true
	}
	if made {
		for _, folder := range []string{dir, filepath.Dir(dir)} {
			if err := files.SyncDir(folder); err != nil {
				return nil, fmt.Errorf("store: creating the folder of objects %s: %w", dir, mapped(err))
			}
		}
	}
	return b, nil
}

func shards() []string {
	names := make([]string, 256)
	for i := range names {
		names[i] = hex.EncodeToString([]byte{byte(i)})
	}
	return names
}

// path returns where a blob lies, or an error for a name that Create never
// made, so that no name leads out of the folder.
func (b *Blobs) path(name BlobName) (string, error) {
	decoded, err := hex.DecodeString(string(name))
	if err != nil || len(decoded) != 16 || strings.ToLower(string(name)) != string(name) {
		return "", fmt.Errorf("store: %q is not the name of a blob", string(name))
	}
	return filepath.Join(b.dir, string(name[:2]), string(name)), nil
}

// BlobWriter is a blob being written. End it with Commit or Abort.
type BlobWriter struct {
	blobs *Blobs
	name  BlobName
	path  string
	file  File
	size  int64
	err   error // sticky
	ended bool
}

// Create begins a blob. Nothing of it can be opened before Commit.
func (b *Blobs) Create() (*BlobWriter, error) {
	var random [16]byte
	rand.Read(random[:])
	name := BlobName(hex.EncodeToString(random[:]))
	path, err := b.path(name)
	if err != nil {
		return nil, err
	}
	file, err := b.files.Create(path + partSuffix)
	if err != nil {
		return nil, fmt.Errorf("store: creating blob %s: %w", name, mapped(err))
	}
	return &BlobWriter{blobs: b, name: name, path: path, file: file}, nil
}

// Name returns the name that the blob will have.
func (w *BlobWriter) Name() BlobName { return w.name }

// Size returns how many bytes were written.
func (w *BlobWriter) Size() int64 { return w.size }

// Write appends ciphertext. After an error every call returns it.
func (w *BlobWriter) Write(p []byte) (int, error) {
	if w.err == nil && w.ended {
		w.err = fmt.Errorf("store: writing blob %s: it was committed or aborted", w.name)
	}
	if w.err != nil {
		return 0, w.err
	}
	n, err := w.file.Write(p)
	w.size += int64(n)
	if err != nil {
		w.err = fmt.Errorf("store: writing blob %s: %w", w.name, mapped(err))
	}
	return n, w.err
}

// Commit makes the blob durable under its name: its bytes, then its directory
// entry, are on the disk when Commit returns nil. On an error nothing is left.
func (w *BlobWriter) Commit() error {
	if w.err == nil && w.ended {
		w.err = fmt.Errorf("store: committing blob %s: it was committed or aborted", w.name)
	}
	if w.err != nil {
		w.Abort()
		return w.err
	}
	w.ended = true
	// After a failed fsync the kernel may have dropped the pages and would
	// report success next time, so the file is given up, never synced again.
	err := w.file.Sync()
	if closeErr := w.file.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = w.blobs.files.Rename(w.path+partSuffix, w.path)
	}
	if err != nil {
		w.blobs.files.Remove(w.path + partSuffix)
	} else if err = w.blobs.files.SyncDir(filepath.Dir(w.path)); err != nil {
		w.blobs.files.Remove(w.path)
	}
	if err != nil {
		w.err = fmt.Errorf("store: committing blob %s: %w", w.name, mapped(err))
	}
	return w.err
}

// Abort gives the blob up. After Commit it does nothing, so it can be deferred.
func (w *BlobWriter) Abort() {
	if w.ended {
		return
	}
	w.ended = true
	w.file.Close()
	w.blobs.files.Remove(w.path + partSuffix) // what cannot be removed is swept later
}

// Open reads a blob, or returns ErrNotFound.
func (b *Blobs) Open(name BlobName) (io.ReadCloser, error) {
	path, err := b.path(name)
	if err != nil {
		return nil, err
	}
	f, err := b.files.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("store: opening blob %s: %w", name, mapped(err))
	}
	return f, nil
}

// Remove deletes a blob. A blob that does not exist is no error.
func (b *Blobs) Remove(name BlobName) error {
	path, err := b.path(name)
	if err != nil {
		return err
	}
	if err := b.files.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("store: removing blob %s: %w", name, mapped(err))
	}
	return nil
}
