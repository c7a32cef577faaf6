package job

import (
	"fmt"
	"io"
	"time"
)

// Terminal rewrites a line that says how far each stage is and what is left of
// it, for work of more than a second.
func Terminal(w io.Writer) func(stage string, done float64) {
	var start, last time.Time
	var current string
	shown := false
	return func(stage string, done float64) {
		now := time.Now()
		if stage != current {
			current, start, last, shown = stage, now, time.Time{}, false
		}
		if now.Sub(start) < time.Second || done < 1 && now.Sub(last) < max(time.Second, now.Sub(start)/20) || done >= 1 && !shown {
			return
		}
		last, shown = now, done < 1
		if done >= 1 {
			fmt.Fprintf(w, "\r%s: done in %s%20s\n", stage, now.Sub(start).Round(time.Second), "")
			return
		}
		left := "unknown time"
		if done > 0 {
			left = time.Duration(float64(now.Sub(start)) * (1 - done) / done).Round(time.Second).String()
		}
		fmt.Fprintf(w, "\r%s: %3.0f %%, about %s left  ", stage, 100*done, left)
	}
}
