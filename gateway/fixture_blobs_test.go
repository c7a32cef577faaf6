package gateway

import (
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/vigie/vigie/enclave"
)

// enclaveRequest is what a stand-in is asked.
type enclaveRequest = enclave.Request

// blobFiles counts the files under the folder of objects, finished or not.
func blobFiles(t testing.TB, config *Config) int {
	t.Helper()
	n := 0
	err := filepath.WalkDir(config.StateFile("objects"), func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
