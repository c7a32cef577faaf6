package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/vigie/vigie/store"
	"github.com/vigie/vigie/store/storetest"
)

// The queue's SQLite driver calls itself early, so it is soaked: a child
// process works jobs and is killed with SIGKILL at random moments, again and
// again, while this process adds jobs to the same database. In the end every
// job must have had its effect, exactly once.

const (
	soakKills = 25
	soakJobs  = 400
	soakEnv   = "VIGIE_SOAK_URL"
)

// soakArgs is a job whose effect is one row under its number. Half of the jobs
// complete in the transaction of their effect; the others rely on the queue to
// mark them completed afterwards, which a kill prevents, and on their effect
// being idempotent.
type soakArgs struct {
	Number int `json:"number"`
}

func (soakArgs) Kind() string { return "soak" }

type soakWorker struct {
	river.WorkerDefaults[soakArgs]
	store *store.Store
}

func (w *soakWorker) Work(ctx context.Context, job *river.Job[soakArgs]) error {
	time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
	return w.store.Update(ctx, func(tx *store.Tx) error {
		if job.Args.Number%2 == 0 {
			// A second effect would be a primary key violation: not hidden.
			if _, err := tx.Exec("INSERT INTO soak (number, attempt) VALUES ($1, $2)", job.Args.Number, job.Attempt); err != nil {
				return err
			}
			return tx.CompleteJob(job.JobRow)
		}
		_, err := tx.Exec("INSERT INTO soak (number, attempt) VALUES ($1, $2) ON CONFLICT DO NOTHING", job.Args.Number, job.Attempt)
		return err
	})
}

func soakQueues() map[string]river.QueueConfig {
	return map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 8}}
}

func startSoak(ctx context.Context, s *store.Store) error {
	workers := river.NewWorkers()
	river.AddWorker(workers, &soakWorker{store: s})
	return s.StartJobs(ctx, workers, soakQueues())
}

// soakChild is the whole life of the child process.
func soakChild(url string) int {
	ctx := context.Background()
	s, err := store.Open(ctx, store.Config{URL: url, Logger: slog.New(slog.DiscardHandler)})
	if err == nil {
		err = startSoak(ctx, s)
	}
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	fmt.Println("working")
	time.Sleep(10 * time.Minute) // the parent kills it long before
	return 1
}

func TestEveryJobHasItsEffectExactlyOnceThoughItsWorkerIsKilled(t *testing.T) {
	if testing.Short() {
		t.Skip("the soak takes half a minute")
	}
	storetest.EachConfig(t, func(t *testing.T, config store.Config) {
		ctx := context.Background()
		s := storetest.Reopen(t, config)
		err := s.Update(ctx, func(tx *store.Tx) error {
			_, err := tx.Exec("CREATE TABLE soak (number BIGINT PRIMARY KEY, attempt BIGINT NOT NULL)")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		added := make(chan error, 1)
		go func() { added <- addSoakJobs(ctx, s) }()
		for kill, late := 0, 0; kill < soakKills; kill++ {
			err := runAndKill(config.URL, time.Duration(20+rand.IntN(300))*time.Millisecond)
			if err != nil && strings.Contains(err.Error(), "timed out after") && late < soakKills {
				// The queue gives a start ten seconds, which a starved machine
				// misses: the child is started again, as a supervisor would.
				late++
				kill--
				continue
			}
			if err != nil {
				t.Fatalf("child %d: %v", kill, err)
			}
		}
		if err := <-added; err != nil {
			t.Fatal(err)
		}
		orphans := countJobs(t, s)
		start := time.Now()
		if err := startSoak(ctx, s); err != nil {
			t.Fatal(err)
		}
		for {
			counts := countJobs(t, s)
			if counts["completed"] == soakJobs {
				break
			}
			if time.Since(start) > 10*time.Minute {
				t.Fatalf("after ten minutes the jobs are %v", counts)
			}
			time.Sleep(20 * time.Millisecond)
		}
		t.Logf("%d kills; after the last one %v; all done %v after the restart", soakKills, orphans, time.Since(start).Round(time.Millisecond))
		var rows, retried int
		err = s.View(ctx, func(tx *store.Tx) error {
			return tx.QueryRow([]any{&rows, &retried}, "SELECT COUNT(*), COALESCE(SUM(CASE WHEN attempt > 1 THEN 1 ELSE 0 END), 0) FROM soak")
		})
		if err != nil {
			t.Fatal(err)
		}
		if rows != soakJobs {
			t.Errorf("%d effects of %d jobs", rows, soakJobs)
		}
		t.Logf("%d jobs had their effect only after a crash", retried)
	})
}

func addSoakJobs(ctx context.Context, s *store.Store) error {
	for number := range soakJobs {
		err := s.Update(ctx, func(tx *store.Tx) error {
			_, err := tx.Enqueue(soakArgs{number}, nil)
			return err
		})
		if err != nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil
}

func countJobs(t *testing.T, s *store.Store) (counts map[string]int64) {
	t.Helper()
	err := s.View(context.Background(), func(tx *store.Tx) (err error) {
		counts, err = tx.JobCounts()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return counts
}

// runAndKill starts a child, waits until it works, and kills it after a while.
func runAndKill(url string, after time.Duration) error {
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), soakEnv+"="+url)
	child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := child.StdoutPipe()
	if err != nil {
		return err
	}
	if err := child.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil && strings.TrimSpace(line) != "working" {
		err = errors.New(line)
	}
	time.Sleep(after)
	child.Process.Kill()
	child.Wait()
	return err
}
