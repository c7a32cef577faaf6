package store_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

type countWorker struct {
	river.WorkerDefaults[benchArgs]
	store *store.Store
	done  chan time.Time
}

func (w *countWorker) Work(ctx context.Context, job *river.Job[benchArgs]) error {
	err := w.store.Update(ctx, func(tx *store.Tx) error { return tx.CompleteJob(job.JobRow) })
	w.done <- time.Now()
	return err
}

// BenchmarkJobs measures how many jobs a second 16 workers complete, each with
// a durable transaction of its own, when all of them wait (backlog), and the
// time from a job's commit to the end of its work when the queue is idle.
func BenchmarkJobs(b *testing.B) {
	for _, database := range storetest.Databases {
		open := func(b *testing.B) (*store.Store, *countWorker, func()) {
			s := storetest.Open(b, database)
			w := &countWorker{store: s, done: make(chan time.Time, 1)}
			start := func() {
				workers := river.NewWorkers()
				river.AddWorker(workers, w)
				if err := s.StartJobs(context.Background(), workers, map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 16}}); err != nil {
					b.Fatal(err)
				}
			}
			return s, w, start
		}
		add := func(b *testing.B, s *store.Store, n int) {
			err := s.Update(context.Background(), func(tx *store.Tx) error {
				for range n {
					if _, err := tx.Enqueue(benchArgs{"a"}, nil); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		b.Run(fmt.Sprintf("%s/backlog", database), func(b *testing.B) {
			s, w, start := open(b)
			add(b, s, b.N)
			b.ResetTimer()
			start()
			for range b.N {
				<-w.done
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "jobs/s")
		})
		b.Run(fmt.Sprintf("%s/latency", database), func(b *testing.B) {
			s, w, start := open(b)
			start()
			time.Sleep(200 * time.Millisecond)
			b.ResetTimer()
			for range b.N {
				add(b, s, 1)
				<-w.done
			}
		})
	}
}
