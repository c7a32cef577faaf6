package store_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

type stepArgs struct {
	Name string `json:"name"`
}

func (stepArgs) Kind() string { return "step" }

type stepWorker struct {
	river.WorkerDefaults[stepArgs]
	work func(ctx context.Context, job *river.Job[stepArgs]) error
}

func (w *stepWorker) Work(ctx context.Context, job *river.Job[stepArgs]) error {
	return w.work(ctx, job)
}

func startSteps(t *testing.T, s *store.Store, work func(context.Context, *river.Job[stepArgs]) error) error {
	t.Helper()
	workers := river.NewWorkers()
	river.AddWorker(workers, &stepWorker{work: work})
	return s.StartJobs(context.Background(), workers, map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 4}})
}

func enqueue(name string) func(*store.Tx) error {
	return func(tx *store.Tx) error { _, err := tx.Enqueue(stepArgs{name}, nil); return err }
}

func receive(t *testing.T, from <-chan string) string {
	t.Helper()
	select {
	case s := <-from:
		return s
	case <-time.After(5 * time.Minute):
		t.Fatal("no job ran within five minutes")
		return ""
	}
}

func TestAJobExistsExactlyIfItsTransactionWasCommitted(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		ran := make(chan string, 10)
		if err := startSteps(t, s, func(_ context.Context, job *river.Job[stepArgs]) error { ran <- job.Args.Name; return nil }); err != nil {
			t.Fatal(err)
		}
		changed := errors.New("changed my mind")
		err := s.Update(ctx, func(tx *store.Tx) error {
			if err := enqueue("rolled back")(tx); err != nil {
				return err
			}
			return changed
		})
		if err != changed {
			t.Fatal(err)
		}
		if err := s.Update(ctx, enqueue("committed")); err != nil {
			t.Fatal(err)
		}
		if got := receive(t, ran); got != "committed" {
			t.Errorf("%q ran", got)
		}
		if err := s.StopJobs(ctx); err != nil {
			t.Fatal(err)
		}
		if counts := countJobs(t, s); counts["completed"] != 1 || len(counts) != 1 {
			t.Errorf("jobs: %v", counts)
		}
		if len(ran) > 0 {
			t.Errorf("%q ran too", <-ran)
		}
	})
}

func TestAJobTakenOverByAnotherWorkerCannotCompleteTwice(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		ctx := context.Background()
		results, taken := make(chan string, 2), make(chan struct{})
		var stolen atomic.Bool
		err := startSteps(t, s, func(ctx context.Context, job *river.Job[stepArgs]) error {
			if stolen.CompareAndSwap(false, true) {
				// As if this process had been taken for dead: the job runs
				// again elsewhere while this run goes on.
				err := s.Update(ctx, func(tx *store.Tx) error {
					_, err := tx.Exec("UPDATE river_job SET state = 'available' WHERE id = $1", job.ID)
					return err
				})
				if err != nil {
					t.Error(err)
				}
				<-taken
			}
			err := s.Update(ctx, func(tx *store.Tx) error {
				if err := tx.CompleteJob(job.JobRow); err != nil {
					return err
				}
				_, err := tx.Exec("INSERT INTO settings (name, value) VALUES ('effect', $1)", []byte{1})
				return err
			})
			switch {
			case err == nil:
				results <- "done"
				close(taken)
			case errors.Is(err, store.ErrJobLost):
				results <- "lost"
			default:
				results <- err.Error()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Update(ctx, enqueue("once")); err != nil {
			t.Fatal(err)
		}
		if first, second := receive(t, results), receive(t, results); first != "done" || second != "lost" {
			t.Errorf("the new run is %q and the old one %q, want done and lost", first, second)
		}
	})
}

func TestACompletedJobCannotBeCompletedAgain(t *testing.T) {
	storetest.Each(t, func(t *testing.T, s *store.Store) {
		results := make(chan string, 2)
		err := startSteps(t, s, func(ctx context.Context, job *river.Job[stepArgs]) error {
			for range 2 {
				err := s.Update(ctx, func(tx *store.Tx) error { return tx.CompleteJob(job.JobRow) })
				switch {
				case err == nil:
					results <- "done"
				case errors.Is(err, store.ErrJobLost):
					results <- "lost"
				default:
					results <- err.Error()
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Update(context.Background(), enqueue("twice")); err != nil {
			t.Fatal(err)
		}
		if first, second := receive(t, results), receive(t, results); first != "done" || second != "lost" {
			t.Errorf("%q, then %q; want done, then lost", first, second)
		}
	})
}

func TestAJobOfADeadProcessIsGivenOutWithinSeconds(t *testing.T) {
	storetest.EachConfig(t, func(t *testing.T, config store.Config) {
		ctx := context.Background()
		s := storetest.Reopen(t, config)
		// What a process leaves that was killed on its last attempt.
		err := s.Update(ctx, func(tx *store.Tx) error {
			result, err := tx.Enqueue(stepArgs{"orphan"}, &river.InsertOpts{MaxAttempts: 1})
			if err != nil {
				return err
			}
			by := `'{"a dead process"}'`
			if s.Database() == "sqlite" {
				by = `jsonb('["a dead process"]')`
			}
			_, err = tx.Exec("UPDATE river_job SET state = 'running', attempt = 1, attempted_at = CURRENT_TIMESTAMP, attempted_by = "+by+" WHERE id = $1", result.Job.ID)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		ran := make(chan string, 1)
		start := time.Now()
		err = startSteps(t, s, func(_ context.Context, job *river.Job[stepArgs]) error {
			if job.Attempt != 2 {
				t.Errorf("attempt %d", job.Attempt)
			}
			ran <- job.Args.Name
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		receive(t, ran)
		t.Logf("it ran %v after the start", time.Since(start).Round(time.Millisecond))
	})
}

func TestTheJobsOfALivingProcessAreLeftToIt(t *testing.T) {
	storetest.EachConfig(t, func(t *testing.T, config store.Config) {
		ctx := context.Background()
		first, second := storetest.Reopen(t, config), storetest.Reopen(t, config)
		started, release := make(chan string, 1), make(chan struct{})
		var runs atomic.Int64
		work := func(_ context.Context, job *river.Job[stepArgs]) error {
			runs.Add(1)
			started <- job.Args.Name
			<-release
			return nil
		}
		if err := startSteps(t, first, work); err != nil {
			t.Fatal(err)
		}
		if err := first.Update(ctx, enqueue("long")); err != nil {
			t.Fatal(err)
		}
		receive(t, started)
		err := startSteps(t, second, work)
		if config.URL[:6] == "sqlite" {
			if !errors.Is(err, store.ErrInUse) {
				t.Errorf("a second process on SQLite: %v, want ErrInUse", err)
			}
		} else {
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond)
		}
		close(release)
		if err := first.StopJobs(ctx); err != nil {
			t.Fatal(err)
		}
		if runs.Load() != 1 {
			t.Errorf("the job ran %d times", runs.Load())
		}
		// Once the first has let go, the second may work.
		if config.URL[:6] == "sqlite" {
			if err := startSteps(t, second, work); err != nil {
				t.Error(err)
			}
		}
	})
}

// As when the database went away after it gave a job out, and nobody heard.
func TestAJobThatNobodyIsAtIsGivenOutAgainAndOneThatIsWorkedOnIsNot(t *testing.T) {
	storetest.EachConfig(t, func(t *testing.T, config store.Config) {
		if config.URL[:6] == "sqlite" {
			t.Skip("SQLite does not go away")
		}
		ctx := context.Background()
		s := storetest.Reopen(t, config)
		ran, release := make(chan string, 8), make(chan struct{})
		var self atomic.Value
		var runs atomic.Int64
		err := startSteps(t, s, func(_ context.Context, job *river.Job[stepArgs]) error {
			self.Store(job.AttemptedBy[len(job.AttemptedBy)-1])
			ran <- job.Args.Name
			if job.Args.Name == "long" {
				runs.Add(1)
				<-release
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Update(ctx, enqueue("long")); err != nil {
			t.Fatal(err)
		}
		receive(t, ran)
		err = s.Update(ctx, func(tx *store.Tx) error {
			result, err := tx.Enqueue(stepArgs{"astray"}, &river.InsertOpts{MaxAttempts: 1, ScheduledAt: time.Now().Add(time.Hour)})
			if err != nil {
				return err
			}
			_, err = tx.Exec("UPDATE river_job SET state = 'running', attempt = 1, attempted_at = CURRENT_TIMESTAMP, scheduled_at = CURRENT_TIMESTAMP, attempted_by = ARRAY[$2] WHERE id = $1",
				result.Job.ID, self.Load())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if name := receive(t, ran); name != "astray" {
			t.Errorf("%q ran", name)
		}
		t.Logf("it ran %v after it went astray", time.Since(start).Round(time.Millisecond))
		if runs.Load() != 1 {
			t.Errorf("the job that was worked on all the time was given out %d times", runs.Load())
		}
		close(release)
	})
}
