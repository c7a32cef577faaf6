package job_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/vigie/vigie/train/job"
)

func TestTheSameOfSeveralWrongSettingsIsNamedInEveryRun(t *testing.T) {
	path := filepath.Join(t.TempDir(), "train.yaml")
	if err := os.WriteFile(path, []byte("rate: {a: 1}\nbatch: {a: 1}\nclasses:\nepochs: {b: 2}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := job.Settings(pflag.NewFlagSet("train", pflag.ContinueOnError), path, nil); err == nil || !strings.Contains(err.Error(), ": batch: ") {
			t.Fatalf("error is %v, want the first by name", err)
		}
	}
}
