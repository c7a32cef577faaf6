package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivertype"
)

type riverDriver = riverdriver.Driver[*sql.Tx]

const (
	// fetchCooldown bounds how often the queue is asked for work. River's
	// default of 100 ms would dominate the latency of a case.
	fetchCooldown = 10 * time.Millisecond
	// fetchPoll is how long a missed notification can delay a job. Some are
	// missed: the queue sends at most one per notifyWindow.
	fetchPoll = 100 * time.Millisecond
	// notifyWindow is how long after one notification the next insertion
	// sends none. River takes it from the inserter's FetchCooldown; its
	// default of 100 ms left most jobs to the poll.
	notifyWindow = river.FetchCooldownMin
	// rescueEvery is how often the jobs of dead workers are looked for, and
	// so about how long a job waits after another process died with it.
	rescueEvery = 5 * time.Second
	// stuckMargin is how long after its timeout a job that still runs is
	// given to another worker. Its first run can then leave no effect:
	// CompleteJob gives ErrJobLost.
	stuckMargin = time.Minute
)

// jobs is the working side of the queue while it runs.
type jobs struct {
	mu      sync.Mutex
	client  *river.Client[*sql.Tx]
	release func()
	stop    context.CancelFunc
	rescuer sync.WaitGroup
}

// Enqueue adds a job that becomes visible to workers when the transaction
// commits. opts may be nil. The result says whether the job was skipped as a
// duplicate (river.InsertOpts.UniqueOpts).
func (tx *Tx) Enqueue(args river.JobArgs, opts *river.InsertOpts) (*rivertype.JobInsertResult, error) {
	if err := tx.usable(); err != nil {
		return nil, err
	}
	result, err := tx.store.inserter.InsertTx(tx.ctx, tx.sql, args, opts)
	if err != nil {
		return nil, fmt.Errorf("store: adding a job of kind %q: %w", args.Kind(), tx.failed(err))
	}
	return result, nil
}

// CompleteJob marks the worker's job as completed, as a part of the
// transaction: its effects and its end are committed together, so that a crash
// between them cannot repeat it. It returns ErrJobLost if the job is no longer
// this worker's; the transaction must then be given up.
//
// Call it inside an Update whose context is the one given to Work, with
// job.JobRow. Work should then return nil.
func (tx *Tx) CompleteJob(job *rivertype.JobRow) error {
	var state string
	var attempt int
	err := tx.QueryRow([]any{&state, &attempt}, "SELECT state, attempt FROM river_job WHERE id = $1"+tx.store.db.lockRow(), job.ID)
	if errors.Is(err, ErrNotFound) || err == nil && (state != string(rivertype.JobStateRunning) || attempt != job.Attempt) {
		err = ErrJobLost
	}
	if err == nil {
		mine := &river.Job[anyArgs]{JobRow: job}
		if tx.store.Database() == "sqlite" {
			_, err = river.JobCompleteTx[*riversqlite.Driver](tx.ctx, tx.sql, mine)
		} else {
			_, err = river.JobCompleteTx[*riverdatabasesql.Driver](tx.ctx, tx.sql, mine)
		}
		err = tx.failed(err)
	}
	if err != nil {
		return fmt.Errorf("store: completing job %d of kind %q: %w", job.ID, job.Kind, err)
	}
	return nil
}

// anyArgs stands for the arguments of any kind of job.
type anyArgs struct{ json.RawMessage }

func (anyArgs) Kind() string { return "any" }

// StartJobs works the jobs of queues with workers until StopJobs or Close, or
// until ctx ends. Jobs that a dead process left running are given out again:
// at once on SQLite, where only one process at a time may work jobs (ErrInUse
// otherwise), and within seconds on PostgreSQL.
//
// On PostgreSQL, so are jobs that went astray when the database did, after two
// looks that found nobody at them.
//
// A crash counts as an attempt, and no job is ever given up because of
// crashes: a worker whose job.Attempt grows should refer the case to a person.
func (s *Store) StartJobs(ctx context.Context, workers *river.Workers, queues map[string]river.QueueConfig) error {
	s.jobs.mu.Lock()
	defer s.jobs.mu.Unlock()
	if s.jobs.client != nil {
		return errors.New("store: starting jobs: they run already")
	}
	timeout := s.config.JobTimeout
	if timeout <= 0 {
		timeout = river.JobTimeoutDefault
	}
	at := new(working)
	client, err := river.NewClient(s.db.riverDriver(), &river.Config{
		Middleware: []rivertype.Middleware{at},
		Workers:    workers, Queues: queues, Logger: s.logger,
		FetchCooldown: fetchCooldown, FetchPollInterval: fetchPoll,
		JobTimeout: timeout, RescueStuckJobsAfter: timeout + stuckMargin,
	})
	if err != nil {
		return fmt.Errorf("store: starting jobs: %w", err)
	}
	release, err := s.db.claimJobs(ctx, client.ID())
	if err != nil {
		return fmt.Errorf("store: starting jobs: %w", mapped(err))
	}
	if err := s.rescue(ctx, client.ID(), at); err != nil {
		release()
		return fmt.Errorf("store: starting jobs: %w", err)
	}
	if err := client.Start(ctx); err != nil {
		release()
		return fmt.Errorf("store: starting jobs: %w", mapped(err))
	}
	rescueCtx, stop := context.WithCancel(ctx)
	s.jobs.client, s.jobs.release, s.jobs.stop = client, release, stop
	if s.Database() != "sqlite" {
		s.jobs.rescuer.Go(func() { s.rescueLoop(rescueCtx, client.ID(), at) })
	}
	return nil
}

// StopJobs lets running jobs end, and cancels their contexts when ctx ends
// before they do. It returns nil if no jobs run.
func (s *Store) StopJobs(ctx context.Context) error {
	s.jobs.mu.Lock()
	defer s.jobs.mu.Unlock()
	if s.jobs.client == nil {
		return nil
	}
	s.jobs.stop()
	err := s.jobs.client.Stop(ctx)
	if err != nil {
		hard, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		err = s.jobs.client.StopAndCancel(hard)
	}
	s.jobs.rescuer.Wait()
	s.jobs.release()
	s.jobs.client = nil
	if err != nil {
		return fmt.Errorf("store: stopping jobs: %w", err)
	}
	return nil
}

func (s *Store) rescueLoop(ctx context.Context, self string, at *working) {
	tick := time.NewTicker(rescueEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.rescue(ctx, self, at); err != nil && ctx.Err() == nil {
				s.logger.Warn("looking for the jobs of dead workers failed", "error", err)
			}
		}
	}
}

// rescue gives out again the jobs that dead workers left running, and those that
// a database which went away left running with nobody at them. River's own
// rescuer only looks at how long a job has run (an hour by default).
func (s *Store) rescue(ctx context.Context, self string, at *working) error {
	running, err := s.runningJobs(ctx)
	if err != nil {
		return err
	}
	lost := at.lost(running[self])
	delete(running, self)
	workers := make([]string, 0, len(running))
	for worker := range running {
		workers = append(workers, worker)
	}
	dead, err := s.db.deadWorkers(ctx, workers)
	if err != nil {
		return fmt.Errorf("store: asking which workers are alive: %w", mapped(err))
	}
	for _, worker := range dead {
		lost = append(lost, running[worker]...)
	}
	if len(lost) == 0 {
		return nil
	}
	return s.Update(ctx, func(tx *Tx) error {
		for _, job := range lost {
			// max_attempts grows so that a crash never discards a job.
			if _, err := tx.Exec(`UPDATE river_job SET state = 'available',
				max_attempts = CASE WHEN attempt >= max_attempts THEN attempt + 1 ELSE max_attempts END
				WHERE id = $1 AND state = 'running' AND attempt = $2`, job.id, job.attempt); err != nil {
				return fmt.Errorf("store: giving out job %d again: %w", job.id, err)
			}
		}
		return nil
	})
}

type runningJob struct {
	id      int64
	attempt int
}

// runningJobs returns the jobs in state running by the worker that has them.
func (s *Store) runningJobs(ctx context.Context) (map[string][]runningJob, error) {
	running := make(map[string][]runningJob)
	query := "SELECT id, attempt, array_to_json(attempted_by)::text FROM river_job WHERE state = 'running'"
	if s.Database() == "sqlite" {
		query = "SELECT id, attempt, json(attempted_by) FROM river_job WHERE state = 'running'"
	}
	err := s.View(ctx, func(tx *Tx) error {
		return tx.Query(func(scan func(...any) error) error {
			var job runningJob
			var attemptedBy sql.NullString
			if err := scan(&job.id, &job.attempt, &attemptedBy); err != nil {
				return err
			}
			var workers []string
			if attemptedBy.Valid {
				if err := json.Unmarshal([]byte(attemptedBy.String), &workers); err != nil {
					return fmt.Errorf("reading who attempted job %d: %w", job.id, err)
				}
			}
			worker := ""
			if len(workers) > 0 {
				worker = workers[len(workers)-1]
			}
			running[worker] = append(running[worker], job)
			return nil
		}, query)
	})
	if err != nil {
		return nil, fmt.Errorf("store: listing running jobs: %w", err)
	}
	return running, nil
}

// JobCounts returns how many jobs are in each state, by River's name of it.
func (tx *Tx) JobCounts() (map[string]int64, error) {
	counts := make(map[string]int64)
	err := tx.Query(func(scan func(...any) error) error {
		var state string
		var n int64
		err := scan(&state, &n)
		counts[state] = n
		return err
	}, "SELECT state, COUNT(*) FROM river_job GROUP BY state")
	if err != nil {
		return nil, fmt.Errorf("store: counting jobs: %w", err)
	}
	return counts, nil
}
