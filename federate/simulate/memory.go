package simulate

import "golang.org/x/sys/unix"

// peakMemory is the most that the process has held, in bytes, or 0 where the
// system does not say.
func peakMemory() int64 {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Maxrss << 10 // Linux counts in KiB
}
