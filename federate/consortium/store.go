package consortium

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/wire"
)

// What a server can make a site store: so many jobs, and so many bytes of models and
// results together. A data owner makes room by removing folders of jobs/ that are
// over.
var (
	maxJobs         = 1000
	maxStored int64 = 32 << 30
)

// errBulk is returned for what travels with a call and was not asked for.
var errBulk = fmt.Errorf("%w: what travels with the call is not what belongs to it", ErrDocument)

// accepts returns an error for a call whose bulk part is not one that it can have.
// It is asked before anything of it is fetched.
func (s *Site) accepts(c wire.Call) error {
	fail := func(most int64) error {
		return fmt.Errorf("consortium: taking %d bytes for a call to %s at %q: %w: %d were expected at most", c.Bulk.Length, c.Kind, s.Name, errBulk, most)
	}
	switch c.Kind {
	case kindJob, kindDecide:
		j, err := readJob(c.Body, s.Key)
		if err != nil {
			return err
		}
		if c.Bulk.Length != j.Model.Bytes || Digest(c.Bulk.Digest) != j.Model.SHA256 {
			return fail(j.Model.Bytes)
		}
		if _, err := s.job(j.Run); errors.Is(err, fs.ErrNotExist) {
			return s.stores(j.Model.Bytes, true)
		} else if err != nil {
			return err
		}
		return nil
	case wire.OrderKind, kindResult:
		j, err := s.job(c.Run)
		if err != nil {
			return err
		}
		// Weights are the model's numbers, which may lie in it in 16 bits, and SCAFFOLD's.
		most := 4*j.Model.Bytes + 1<<10
		if c.Kind == kindResult {
			r, _, _, err := verify[Result](c.Body, ResultType, s.Key)
			if err != nil {
				return err
			}
			if r.Run != j.Run || r.Job != j.digest || Digest(c.Bulk.Digest) != r.Model {
				return fail(most)
			}
			if most = 2*j.Model.Bytes + 1<<20; c.Bulk.Length <= most {
				return s.stores(c.Bulk.Length, false)
			}
		} else {
			var o federate.Order
			if err := json.Unmarshal(c.Body, &o); err != nil || o.Step != federate.StepTrain {
				return fail(0)
			}
		}
		if c.Bulk.Length > most {
			return fail(most)
		}
		return nil
	}
	return fail(0)
}

// stores returns an error if there is no room for so many bytes more, of a job that
// is fresh or known.
func (s *Site) stores(more int64, fresh bool) error {
	jobs, err := os.ReadDir(s.path("jobs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("consortium: looking what is stored at %q: %w", s.Name, err)
	}
	stored := more
	for _, e := range jobs {
		files, err := os.ReadDir(filepath.Join(s.path("jobs"), e.Name()))
		if err != nil {
			continue // a file, or it is being removed
		}
		for _, f := range files {
			if about, err := f.Info(); err == nil && about.Mode().IsRegular() {
				stored += about.Size()
			}
		}
	}
	if fresh && len(jobs) >= maxJobs || stored > maxStored {
		return fmt.Errorf("consortium: storing %d bytes more at %q: %w: %d jobs and %d bytes would be there, of %d and %d; its data owner removes folders of jobs/ that are over", more, s.Name, ErrPolicy, len(jobs), stored, maxJobs, maxStored)
	}
	return nil
}
