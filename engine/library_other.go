//go:build !linux

package engine

import (
	"errors"
	"os"
	"path/filepath"
)

// libraryFile returns a file in a folder that only this user can read; there
// is no portable way to load a library from memory outside Linux. The folder is
// removed as soon as the library is loaded.
func libraryFile() (*os.File, func() error, error) {
	folder, err := os.MkdirTemp("", "vigie-onnxruntime-")
	if err != nil {
		return nil, nil, err
	}
	file, err := os.OpenFile(filepath.Join(folder, "libonnxruntime"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(folder))
	}
	release := func() error {
		file.Close() // sealLibrary may have closed it already
		return os.RemoveAll(folder)
	}
	return file, release, nil
}

// sealLibrary flushes the file and returns the path to load it by.
func sealLibrary(file *os.File) (string, error) {
	if err := file.Close(); err != nil {
		return "", err
	}
	return file.Name(), nil
}
