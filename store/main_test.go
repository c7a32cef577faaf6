package store_test

import (
	"os"
	"testing"

	"github.com/vigie/vigie/store/storetest"
)

// TestMain is also the entry of the child processes that tests kill.
func TestMain(m *testing.M) {
	if url := os.Getenv(soakEnv); url != "" {
		os.Exit(soakChild(url))
	}
	os.Exit(storetest.Main(m))
}
