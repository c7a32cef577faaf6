package job

import (
	"fmt"
	"io"
	"os"
	"time"
)

// Terminal rewrites a line that says how far each stage is and what is left of
// it, for work of more than a second. Where w is no terminal, a file for one, it
// writes a line every half minute instead.
func Terminal(w io.Writer) func(stage string, done float64) {
	begin, end, every := "", "\n", 30*time.Second
	if file, is := w.(*os.File); is {
		if info, err := file.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			begin, end, every = "\r", "  ", time.Second
		}
	}
	var start, last time.Time
	var current string
	shown := false
	return func(stage string, done float64) {
		now := time.Now()
		if stage != current {
			current, start, last, shown = stage, now, time.Time{}, false
		}
		if now.Sub(start) < time.Second || done < 1 && now.Sub(last) < max(every, now.Sub(start)/20) || done >= 1 && !shown {
			return
		}
		last, shown = now, done < 1
		if done >= 1 {
			fmt.Fprintf(w, "%s%s: done in %s%20s\n", begin, stage, now.Sub(start).Round(time.Second), "")
			return
		}
		left := "unknown time"
		if done > 0 {
			left = time.Duration(float64(now.Sub(start)) * (1 - done) / done).Round(time.Second).String()
		}
		fmt.Fprintf(w, "%s%s: %3.0f %%, about %s left%s", begin, stage, 100*done, left, end)
	}
}
