package store_test

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"
	"testing"

	"github.com/riverqueue/river"
	"github.com/vigie/vigie"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

type benchArgs struct {
	Case vigie.CaseID `json:"case"`
}

func (benchArgs) Kind() string { return "bench" }

// BenchmarkUpdate measures durable transactions per second with 16 writers
// (ns/op is the time per transaction): a row alone, a new case, and a new case
// with its job, which is what intake commits less the audit record.
func BenchmarkUpdate(b *testing.B) {
	work := []struct {
		name string
		do   func(tx *store.Tx, n int64) error
	}{
		{"setting", func(tx *store.Tx, n int64) error { return tx.PutSetting(fmt.Sprint(n%1000), []byte(fmt.Sprint(n))) }},
		{"case", func(tx *store.Tx, _ int64) error { return tx.CreateCase(newCase()) }},
		{"case+job", func(tx *store.Tx, _ int64) error {
			c := newCase()
			if err := tx.CreateCase(c); err != nil {
				return err
			}
			_, err := tx.Enqueue(benchArgs{c.ID}, nil)
			return err
		}},
	}
	for _, database := range storetest.Databases {
		for _, w := range work {
			for _, writers := range []int{1, 16} {
				b.Run(fmt.Sprintf("%s/%s/writers=%d", database, w.name, writers), func(b *testing.B) {
					s := storetest.Open(b, database)
					var n atomic.Int64
					concurrently(b, writers, func() error {
						return s.Update(context.Background(), func(tx *store.Tx) error { return w.do(tx, n.Add(1)) })
					})
					b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tx/s")
				})
			}
		}
	}
}

// concurrently spreads b.N calls over writers goroutines.
func concurrently(b *testing.B, writers int, do func() error) {
	var left atomic.Int64
	left.Store(int64(b.N))
	done := make(chan error, writers)
	b.ResetTimer()
	for range writers {
		go func() {
			for left.Add(-1) >= 0 {
				if err := do(); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
}

// BenchmarkBlob measures durable objects of the two sizes that matter: a
// 512×512 CT and a 2140×1760 CR.
func BenchmarkBlob(b *testing.B) {
	for _, size := range []int{512 << 10, 7532800} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			blobs := storetest.Open(b, "sqlite").Blobs()
			data := make([]byte, size)
			b.SetBytes(int64(size))
			concurrently(b, 4, func() error {
				w, err := blobs.Create()
				if err != nil {
					return err
				}
				defer w.Abort()
				if _, err := w.Write(data); err != nil {
					return err
				}
				return w.Commit()
			})
		})
	}
}

var _ io.Writer = (*store.BlobWriter)(nil)
var _ river.JobArgs = benchArgs{}
