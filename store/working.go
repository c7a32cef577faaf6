package store

import (
	"context"
	"sync"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
)

// working knows which jobs this process is really at. The database can think
// otherwise: when it goes away between giving a job out and our hearing of it, or
// before it hears how a job ended, the job stays in state running with nobody at
// it, and would until River's own rescuer notices how long.
type working struct {
	river.WorkerMiddlewareDefaults

	mu     sync.Mutex
	at     map[int64]bool
	absent map[runningJob]bool // what lost found nobody at when it last looked
}

var _ rivertype.WorkerMiddleware = (*working)(nil)

// Work implements rivertype.WorkerMiddleware.
func (w *working) Work(ctx context.Context, job *rivertype.JobRow, inner func(context.Context) error) error {
	w.set(job.ID, true)
	defer w.set(job.ID, false)
	return inner(ctx)
}

func (w *working) set(id int64, at bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.at == nil {
		w.at = map[int64]bool{}
	}
	if at {
		w.at[id] = true
	} else {
		delete(w.at, id)
	}
}

// lost returns those of the jobs which are this process's by the database that
// nobody was at, now and when it was last called: a job on its way to a worker,
// or whose end is being written, is not lost.
func (w *working) lost(running []runningJob) []runningJob {
	w.mu.Lock()
	defer w.mu.Unlock()
	var lost []runningJob
	absent := map[runningJob]bool{}
	for _, job := range running {
		switch {
		case w.at[job.id]:
		case w.absent[job]:
			lost = append(lost, job)
		default:
			absent[job] = true
		}
	}
	w.absent = absent
	return lost
}
