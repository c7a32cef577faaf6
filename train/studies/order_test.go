package studies_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vigie/vigie/train/studies"
)

// Files are read by as many goroutines as there are processors; which of two
// broken ones is named does not depend on who is faster.
func TestTheFirstOfSeveralBrokenFilesIsNamedInEveryRun(t *testing.T) {
	dir := t.TempDir()
	for i := range 12 {
		data := []byte("no picture")
		if i < 4 {
			data = pngOf(t, grey(4, 4, 9, uint8(i)))
		}
		write(t, dir, fmt.Sprintf("%d/%02d.png", i/6, i), data)
	}
	for range 20 {
		told := 0
		_, err := studies.Open(t.Context(), studies.Options{Data: dir, Progress: func(done, total int) {
			if told++; done != told || total != 12 {
				t.Errorf("told %d of %d after %d of 12", done, total, told-1)
			}
		}})
		if err == nil || !strings.Contains(err.Error(), "0/04.png") {
			t.Fatalf("error is %v, want the first broken file", err)
		}
	}
}
