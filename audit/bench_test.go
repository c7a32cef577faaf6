package audit_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

// BenchmarkTake measures durable intake transactions with 16 senders: a case
// and its audit record.
func BenchmarkTake(b *testing.B) {
	for _, database := range storetest.Databases {
		b.Run(database, func(b *testing.B) {
			s := storetest.Open(b, database)
			l := newLog(b, s)
			var left atomic.Int64
			left.Store(int64(b.N))
			done := make(chan bool)
			b.ResetTimer()
			for range 16 {
				go func() {
					for left.Add(-1) >= 0 {
						take(b, s, l)
					}
					done <- true
				}()
			}
			for range 16 {
				<-done
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tx/s")
		})
	}
}

// BenchmarkVerify measures the verification of a log of 20,000 records.
func BenchmarkVerify(b *testing.B) {
	const records = 20000
	for _, database := range storetest.Databases {
		b.Run(database, func(b *testing.B) {
			s := storetest.Open(b, database)
			l := newLog(b, s)
			for range records / 1000 {
				err := s.Update(context.Background(), func(tx *store.Tx) error {
					for range 1000 {
						if _, err := l.Append(tx, audit.Record{Kind: audit.KindViewed, Actor: "a", Input: vigie.DigestOf(nil)}); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					b.Fatal(err)
				}
			}
			publish(b, l)
			b.ResetTimer()
			for b.Loop() {
				if report := verify(b, s, l); !report.OK() {
					b.Fatal(report.First())
				}
			}
			b.ReportMetric(records*float64(b.N)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
