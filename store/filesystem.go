package store

import (
	"io"
	"io/fs"
	"os"
)

// FileSystem is what blobs need of a file system. Tests give one that fails.
type FileSystem interface {
	MkdirAll(path string, mode fs.FileMode) error
	// Create makes a file that must not exist, mode 0600.
	Create(path string) (File, error)
	Open(path string) (io.ReadCloser, error)
	Rename(from, to string) error
	Remove(path string) error
	// SyncDir makes the entries of a folder durable.
	SyncDir(path string) error
	ReadDir(path string) ([]fs.DirEntry, error)
}

// File is a file being written.
type File interface {
	io.WriteCloser
	Sync() error
}

// OS is the operating system's file system.
type OS struct{}

var _ FileSystem = OS{}

func (OS) MkdirAll(path string, mode fs.FileMode) error { return os.MkdirAll(path, mode) }
func (OS) Create(path string) (File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}
func (OS) Open(path string) (io.ReadCloser, error)    { return os.Open(path) }
func (OS) Rename(from, to string) error               { return os.Rename(from, to) }
func (OS) Remove(path string) error                   { return os.Remove(path) }
func (OS) ReadDir(path string) ([]fs.DirEntry, error) { return os.ReadDir(path) }

func (OS) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
