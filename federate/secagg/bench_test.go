package secagg

import (
	"fmt"
	"testing"
)

// BenchmarkRound is a whole round of 15 sites, all of them and the coordinator in
// this process, three of which are lost after all have masked for them.
func BenchmarkRound(b *testing.B) {
	for _, length := range []int{1_000_000, 10_000_000} {
		b.Run(fmt.Sprintf("15x%dM", length/1_000_000), func(b *testing.B) {
			lost := map[string]step{"site-003": stepMasked, "site-007": stepMasked, "site-011": stepMasked}
			for b.Loop() {
				b.StopTimer()
				c := newCast(b, 15, length, 1)
				b.StartTimer()
				if _, survivors, _, err := c.play(b, lost, nil); err != nil || len(survivors) != 12 {
					b.Fatal(survivors, err)
				}
			}
		})
	}
}
