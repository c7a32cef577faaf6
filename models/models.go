// Package models carries the demo model package inside the binary, so that
// `vigie demo` needs no file beside it.
package models

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Name is the folder of the demo package.
const Name = "chest-pneumonia-28"

//go:embed chest-pneumonia-28
var files embed.FS

// WriteDemo writes the demo package into dir/chest-pneumonia-28, which must
// not exist, and returns that folder.
func WriteDemo(dir string) (string, error) {
	folder := filepath.Join(dir, Name)
	if err := os.Mkdir(folder, 0o700); err != nil {
		return "", fmt.Errorf("models: writing the demo package: %w", err)
	}
	packaged, err := fs.Sub(files, Name)
	if err != nil {
		return "", fmt.Errorf("models: writing the demo package: %w", err)
	}
	if err := os.CopyFS(folder, packaged); err != nil {
		return "", fmt.Errorf("models: writing the demo package: %w", err)
	}
	return folder, nil
}
