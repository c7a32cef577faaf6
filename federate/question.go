package federate

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Task names what a round is for besides training.
type Task string

// The tasks.
const (
	TaskEvaluate    Task = "evaluate"
	TaskCalibrate   Task = "calibrate"
	TaskGuards      Task = "guard-statistics"
	TaskStandardise Task = "standardise"
)

// TaskRow is a row of the table of tasks.
type TaskRow struct {
	Name  Task
	About string
}

// Tasks lists what may be asked besides training.
func Tasks() []TaskRow {
	return []TaskRow{
		{TaskEvaluate, "how good the model is on the sites' examples: histograms of scores by label, and counts"},
		{TaskCalibrate, "gradients and curvatures of the likelihood by a temperature, or by Platt's two numbers"},
		{TaskGuards, "counts, sums and products of what the model's inner layers make of the examples, and histograms"},
		{TaskStandardise, "counts, sums and squares of a table's columns"},
	}
}

// Question asks for sums over the sites' examples instead of training: a round of
// it has the steps of training, in which a site answers with a vector of Numbers
// statistics, masked like an update. What the other fields mean is up to the task.
type Question struct {
	Task    Task `json:"task"`
	Numbers int  `json:"numbers"` // of the answer, 1 to MaxNumbers

	// Least is how many examples a site has at least whose answer is not zero.
	Least int `json:"least,omitempty"`
	// Bins is how many intervals a score is divided into.
	Bins int `json:"bins,omitempty"`
	// Threshold is the probability from which on an example counts as positive.
	Threshold float64 `json:"threshold,omitempty"`
	// Kind says which of a task's questions it is.
	Kind string `json:"kind,omitempty"`
	// About names what the question is about: a tensor, columns.
	About []string `json:"about,omitempty"`
	// Parameters are where the statistics are taken.
	Parameters []float64 `json:"parameters,omitempty"`
}

// MaxNumbers bounds the answer to a question.
const MaxNumbers = 1 << 20

// Subject is what a question is asked about.
type Subject struct {
	Variables []float32 // the global model's
	Own       []float32 // the site's own, of Terms.Personal
}

// Answerer answers questions from a site's own examples.
type Answerer interface {
	// Answer returns q.Numbers statistics: sums over the site's examples, each of
	// a size below 2³⁰. The same question leads to the same answer.
	Answer(ctx context.Context, q Question, about Subject) ([]float64, error)
}

// Answerers answers by the question's task.
type Answerers map[Task]Answerer

// Answer implements Answerer.
func (a Answerers) Answer(ctx context.Context, q Question, about Subject) ([]float64, error) {
	if a[q.Task] == nil {
		return nil, fmt.Errorf("federate: answering %s: %w: the site has nothing to answer it with", q.Task, ErrOrder)
	}
	return a[q.Task].Answer(ctx, q, about)
}

func (q Question) digest() [sha256.Size]byte {
	data, err := json.Marshal(q)
	if err != nil {
		panic("federate: " + err.Error()) // only for numbers that check refuses
	}
	return sha256.Sum256(append([]byte("vigie federate question v1\x00"), data...))
}

func (q *Question) same(other *Question) bool {
	if q == nil || other == nil {
		return q == other
	}
	return q.check() == nil && other.check() == nil && q.digest() == other.digest()
}

// check says whether a question can be asked at all.
func (q Question) check() error {
	if !slices.ContainsFunc(Tasks(), func(r TaskRow) bool { return r.Name == q.Task }) {
		return fmt.Errorf("task %q: there is none", q.Task)
	}
	if q.Numbers < 1 || q.Numbers > MaxNumbers || q.Least < 0 || q.Bins < 0 || q.Bins > MaxNumbers || len(q.Parameters) > MaxNumbers || len(q.About) > 1<<12 {
		return fmt.Errorf("a question of %d numbers, for at least %d examples, with %d bins and %d parameters: want 1 to %d, 0 or more, and at most %d", q.Numbers, q.Least, q.Bins, len(q.Parameters), MaxNumbers, MaxNumbers)
	}
	for _, v := range append([]float64{q.Threshold}, q.Parameters...) {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return errors.New("a question with a parameter that is not finite")
		}
	}
	return nil
}

// checkTasks says what is wrong with the terms' tasks.
func (t Terms) checkTasks(sites int) error {
	for i, task := range t.Tasks {
		if !slices.ContainsFunc(Tasks(), func(r TaskRow) bool { return r.Name == task }) || slices.Contains(t.Tasks[:i], task) {
			return fmt.Errorf("task %q: there is none, or it is there twice", task)
		}
	}
	switch {
	case (len(t.Tasks) > 0) != (t.Questions > 0) || t.Questions < 0:
		return fmt.Errorf("%d tasks besides training, %d questions at most: want both or neither", len(t.Tasks), t.Questions)
	case len(t.Tasks) > 0 && sites > wideSites:
		return fmt.Errorf("%d sites: questions are answered by at most %d", sites, wideSites)
	}
	return nil
}

// allows says whether the site's terms let it answer a question.
func (s *Site) allows(q Question) error {
	switch {
	case !slices.Contains(s.Terms.Tasks, q.Task):
		return fmt.Errorf("the terms do not allow %q", q.Task)
	case s.Answers == nil:
		return fmt.Errorf("the site answers no questions")
	case s.keep.Asked >= s.Terms.Questions:
		return fmt.Errorf("%d questions were answered, the most that the terms allow", s.keep.Asked)
	}
	return q.check()
}

// answer answers the question that the round began with, and masks it.
func (s *Site) answer(ctx context.Context, o Order) ([]uint32, error) {
	q := *s.keep.Order.Question
	values, err := s.Answers.Answer(ctx, q, Subject{Variables: o.Weights.Variables, Own: s.own.begin()})
	if err != nil {
		return nil, err
	}
	if len(values) != q.Numbers {
		return nil, fmt.Errorf("%w: a question of %d numbers, of which there are %d", ErrOrder, q.Numbers, len(values))
	}
	vector, err := encodeWide(values)
	if err != nil {
		return nil, err
	}
	if _, err := s.session.Mask(ctx, o.Names, vector); err != nil {
		return nil, err
	}
	s.keep.Asked++
	s.vector = vector
	return vector, nil
}

// tells refuses to open a sum whose difference to an earlier one would be another
// site's answer: what is asked for a task about one model is opened for one set of
// sites, because a question that differs in a threshold has nearly the same answer.
func (s *Site) tells(survivors []string) error {
	q := s.keep.Order.Question
	if q == nil {
		return nil
	}
	key := string(q.Task) + " " + hex.EncodeToString(s.keep.Order.Model)
	names := slices.Sorted(slices.Values(survivors))
	set := sha256.Sum256([]byte(strings.Join(names, "\x00")))
	now := hex.EncodeToString(set[:])
	if before, asked := s.keep.Answered[key]; asked && before != now {
		return fmt.Errorf("%w: %s was answered about this model among other sites; the difference of the sums would be one site's answer", ErrOrder, q.Task)
	}
	if s.keep.Answered == nil {
		s.keep.Answered = map[string]string{}
	}
	s.keep.Answered[key] = now
	return nil
}

// Sums are what came of a question.
type Sums struct {
	Values []float64      `json:"-"` // over all sites in the sums
	Number uint64         `json:"number"`
	Sites  int            `json:"sites"` // in the sums
	Lost   []string       `json:"lost"`  // asked, but in no sum
	Groups []GroupOutcome `json:"groups"`
	Bytes  Traffic        `json:"traffic"`
}

// together is up to how many sites a question is asked in one group of all,
// whatever the terms' groups: there is no rule that needs their sums one by one.
const together = 100

// Ask asks the sites a question and returns the sums of their answers. Errors are
// as those of Round; the model stays as it is.
func (c *Coordinator) Ask(ctx context.Context, links []Link, q Question) (Sums, error) {
	fail := func(err error) (Sums, error) {
		return Sums{}, fmt.Errorf("federate: asking %s: %w", q.Task, err)
	}
	if err := q.check(); err != nil {
		return fail(fmt.Errorf("%w: %w", ErrRound, err))
	}
	if !slices.Contains(c.Terms.Tasks, q.Task) {
		return fail(fmt.Errorf("%w: the terms do not allow it", ErrRound))
	}
	c.state.Number++
	if err := c.save(); err != nil {
		return Sums{}, err
	}
	out := Sums{Number: c.state.Number, Lost: []string{}, Values: make([]float64, q.Numbers)}
	links = slices.Clone(links)
	slices.SortFunc(links, func(a, b Link) int { return strings.Compare(a.Name(), b.Name()) })
	weights := c.Weights()
	digest := weights.Digest()
	weights.sum = &digest
	record := Record{Number: c.state.Number, Index: c.state.Index, Model: digest[:], Members: c.Members, Question: &q}
	var failures []string
	for i, group := range c.gather(links, &q) {
		g := &groupRound{coordinator: c, links: group, weights: weights, order: Order{Round: c.state.Number, Index: c.state.Index, Model: digest[:], Question: &q}, at: i}
		sum, outcome, err := g.open(ctx)
		record.Groups = append(record.Groups, g.record)
		out.Groups = append(out.Groups, outcome)
		out.Bytes.Down += g.traffic.Down
		out.Bytes.Up += g.traffic.Up
		if ctx.Err() != nil {
			record.Failure, record.Interrupted = ctx.Err().Error(), true
			return out, errors.Join(ctx.Err(), c.Transcript.write(record))
		}
		if err != nil {
			failures = append(failures, outcome.Failure)
		} else {
			for i, v := range decodeWide(sum) {
				out.Values[i] += v
			}
			out.Sites += len(outcome.Survivors)
		}
		for _, name := range outcome.Members {
			if !slices.Contains(outcome.Survivors, name) {
				out.Lost = append(out.Lost, name)
			}
		}
	}
	if out.Sites == 0 {
		record.Failure = strings.Join(failures, "; ")
		return fail(errors.Join(fmt.Errorf("%w: %s", ErrRound, record.Failure), c.Transcript.write(record)))
	}
	return out, c.Transcript.write(record)
}

// gather makes the groups of an attempt. A question is asked in one group of all, if
// they are few; if they are many, in the same groups as long as the model is the
// same, because a site answers about a model in one group alone (Site.tells).
func (c *Coordinator) gather(links []Link, q *Question) [][]Link {
	switch {
	case q == nil: // the same lot for every attempt at a round: see Site.pin
		return c.divide(links, uint64(c.state.Index))
	case len(links) <= together:
		return [][]Link{links}
	}
	return c.divide(links, 1<<63|uint64(c.state.Index))
}
