package enclave

import (
	"time"

	"github.com/vigie/vigie"
)

// stopwatch measures the stages of one case. A stage that runs in several
// stretches is reported once, with their sum, where it first ended.
type stopwatch struct {
	now    func() time.Time
	stages []vigie.Stage
	last   time.Time
}

func newStopwatch(now func() time.Time) *stopwatch {
	return &stopwatch{now: now, last: now(), stages: []vigie.Stage{}}
}

// lap gives the time since the last lap to the named stage.
func (s *stopwatch) lap(name string) {
	now := s.now()
	passed := now.Sub(s.last)
	s.last = now
	for i := range s.stages {
		if s.stages[i].Name == name {
			s.stages[i].Duration += passed
			return
		}
	}
	s.stages = append(s.stages, vigie.Stage{Name: name, Duration: passed})
}
