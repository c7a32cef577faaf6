package federate

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/onnx"
)

// ReplayOptions says which transcript is replayed, and whom the auditor trusts
// to be whom. Nothing in the transcript is believed but for these keys.
type ReplayOptions struct {
	Dir         string
	Coordinator ed25519.PublicKey // that signed the records
	// Members are all sites that the federation has had, with the keys that their
	// hospitals own up to; a site may be there twice, with a former key. Nil: those
	// that the transcript names, whose coordinator could have invented them.
	Members []secagg.Member
	// Progress, if not nil, is told of each attempt once it is verified.
	Progress func(Attempt)
}

// Replayed is what a run was, recomputed from its transcript.
type Replayed struct {
	Header   Header          `json:"header"`
	Attempts []Attempt       `json:"attempts"`
	Sites    []Participation `json:"sites"` // in the order of their names
	// Missing is how many attempts have no record: the coordinator's process was killed
	// in the middle of them, or they were left out. What they have spent of privacy is
	// counted for every site.
	Missing int `json:"missing"`
	// Privacy is the promise that the terms make of what was sent, by the vectors
	// that have arrived: a site whose vector was lost on the way has spent more. Nil:
	// none.
	Privacy *Statement `json:"privacy,omitempty"`
	// Model is the digest (Weights.Digest) of the weights that the run led to.
	Model   string   `json:"model"`
	Weights *Weights `json:"-"`
	// Published are the variables that a model of the run has: the moving average,
	// where the terms have one.
	Published []float32 `json:"-"`
}

// Attempt is one attempt at a round.
type Attempt struct {
	Outcome
	// Counted says whether the model moved by it; one with a result that does not
	// count was lost with the coordinator's process before it could be kept.
	Counted bool `json:"counted"`
	// Question is what was asked instead of training; the model stays as it was.
	Question *Question `json:"question,omitempty"`
	Failure  string    `json:"failure,omitempty"`
	Model    string    `json:"model"` // digest of the weights after it

	sent    []string // sites whose vectors arrived
	members []secagg.Member
}

// Participation is a site's part in a run.
type Participation struct {
	Name    string              `json:"name"`
	Rounds  []int               `json:"rounds"`    // from 0, whose counted sums hold its update
	Asked   int                 `json:"questions"` // whose sums hold its answer
	Lost    int                 `json:"lost"`      // attempts that it was asked in, without it in the sum
	Sent    int                 `json:"sent"`      // attempts at rounds that it has signed a vector in, which spends privacy
	Accused []secagg.Accusation `json:"accused"`   // in all attempts
}

// ReplayRun verifies a transcript from its first byte to its last: every signature
// of the coordinator and of the sites, that records follow one another and are
// all there but for ones at the end, that groups are those the terms draw, that
// each masked sum is the sum of vectors that the sites signed, and opens to what
// the model moved by, under the terms' rule and algorithm. What does not hold is
// an error that wraps ErrTranscript and says what and where.
func ReplayRun(ctx context.Context, o ReplayOptions) (*Replayed, error) {
	fail := func(err error) (*Replayed, error) {
		return nil, fmt.Errorf("federate: replaying %s: %w", o.Dir, err)
	}
	t := &Transcript{dir: o.Dir}
	envelope, err := readEnvelope(filepath.Join(o.Dir, headerName), false, maxHeader)
	if err != nil {
		return fail(err)
	}
	header, err := openPayload[Header](envelope, HeaderType, o.Coordinator)
	if err != nil {
		return fail(err)
	}
	if header.Variables < 0 || header.Variables > secagg.MaxLength {
		return fail(fmt.Errorf("%w: a model of %d variables", ErrTranscript, header.Variables))
	}
	path := filepath.Join(o.Dir, initialName)
	if info, err := os.Stat(path); err != nil || info.Size() != 4*int64(header.Variables) {
		return fail(fmt.Errorf("%w: %s does not hold %d variables", ErrTranscript, initialName, header.Variables))
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return fail(err)
	}
	initial, err := decodeFloats(raw, header.Variables)
	if err != nil {
		return fail(err)
	}
	if header.Trained < 0 || header.Trained > header.Variables {
		return fail(fmt.Errorf("%w: %d of %d variables are trained", ErrTranscript, header.Trained, header.Variables))
	}
	c := newCoordinator(CoordinatorOptions{Terms: header.Terms, Variables: initial, Trained: header.Trained})
	if digest := c.Weights().Digest(); !bytes.Equal(digest[:], header.Initial) {
		return fail(fmt.Errorf("%w: %s is not what the run began with", ErrTranscript, initialName))
	}
	numbers, err := t.numbers()
	if err != nil {
		return fail(err)
	}
	r := &Replayed{Header: header}
	previous := digestOf(envelope.Payload)
	var before *Coordinator // the last attempt that counts
	due := uint64(1)
	for i, number := range numbers {
		r.Missing += int(number - due)
		due = number + 1
		envelope, err := readEnvelope(filepath.Join(o.Dir, recordName(number)), true, maxRecord)
		if err != nil {
			return fail(err)
		}
		record, err := openPayload[Record](envelope, RecordType, o.Coordinator)
		if err != nil {
			return fail(fmt.Errorf("attempt %d: %w", number, err))
		}
		if record.Number != number || !bytes.Equal(record.Previous, previous) {
			return fail(fmt.Errorf("attempt %d: %w: it does not follow the record before it", number, ErrTranscript))
		}
		previous = digestOf(envelope.Payload)
		if before != nil && record.Index == c.state.Index-1 { // begun again: the last result was lost
			c, before = before, nil
			r.Attempts[i-1].Counted = false
		}
		if c.Done() && record.Question == nil || record.Index != c.state.Index {
			return fail(fmt.Errorf("attempt %d: %w: it is of round %d, and round %d is due", number, ErrTranscript, record.Index+1, c.state.Index+1))
		}
		if err := o.know(record.Members); err != nil {
			return fail(fmt.Errorf("attempt %d: %w", number, err))
		}
		if err := header.Terms.Check(len(record.Members)); err != nil {
			return fail(fmt.Errorf("attempt %d: %w: %w", number, ErrTranscript, err))
		}
		next := c.copy()
		next.Members = record.Members
		attempt, err := next.replay(ctx, t, record)
		if err != nil {
			return fail(fmt.Errorf("attempt %d: %w", number, err))
		}
		if before = nil; attempt.Skipped || attempt.Counted && attempt.Question == nil {
			before, c = c, next
		}
		r.Attempts = append(r.Attempts, attempt)
		if o.Progress != nil {
			o.Progress(attempt)
		}
	}
	digest := c.Weights().Digest()
	r.Model, r.Weights, r.Published = hexOf(digest[:]), c.Weights(), c.Published()
	if err := r.participation(); err != nil {
		return fail(err)
	}
	return r, nil
}

// know says whether all members are those that are trusted.
func (o ReplayOptions) know(members []secagg.Member) error {
	if o.Members == nil {
		return nil
	}
	for _, m := range members {
		if !slices.ContainsFunc(o.Members, func(known secagg.Member) bool { return known.Name == m.Name && known.Key.Equal(m.Key) }) {
			return fmt.Errorf("%w: %q with the key %x is none of the sites that are trusted", ErrTranscript, m.Name, []byte(m.Key))
		}
	}
	return nil
}

// copy is a coordinator in the same state, without a keeper.
func (c *Coordinator) copy() *Coordinator {
	d := &Coordinator{CoordinatorOptions: c.CoordinatorOptions, state: c.state, server: c.server}
	for _, part := range d.numbers() {
		*part = slices.Clone(*part)
	}
	return d
}

// present is a site that took part, as far as dividing goes.
type present string

func (p present) Name() string                               { return string(p) }
func (p present) Ask(context.Context, Order) (Answer, error) { return Answer{}, errors.ErrUnsupported }

// replay recomputes one attempt, and moves the model if it had a result.
func (c *Coordinator) replay(ctx context.Context, t *Transcript, record Record) (Attempt, error) {
	fail := func(format string, arguments ...any) (Attempt, error) {
		return Attempt{}, fmt.Errorf("%w: %s", ErrTranscript, fmt.Sprintf(format, arguments...))
	}
	offered := c.Weights()
	if record.Question == nil {
		var err error
		if offered, err = c.offered(); err != nil {
			return fail("%v", err)
		}
	}
	digest := offered.Sum()
	if !bytes.Equal(record.Model, digest[:]) {
		return fail("it begins with other weights than the rounds before lead to")
	}
	c.state.Number = record.Number
	var links []Link
	for _, g := range record.Groups {
		for _, name := range g.Members {
			if !slices.ContainsFunc(record.Members, func(m secagg.Member) bool { return m.Name == name }) {
				return fail("%q is in a group, and no member", name)
			}
			links = append(links, present(name))
		}
	}
	slices.SortFunc(links, func(a, b Link) int { return bytes.Compare([]byte(a.Name()), []byte(b.Name())) })
	divided := c.gather(links, record.Question)
	if len(divided) != len(record.Groups) && !record.Interrupted {
		return fail("%d groups, the terms make %d", len(record.Groups), len(divided))
	}
	a := Attempt{Outcome: Outcome{Index: record.Index, Number: record.Number, Lost: []string{}, Scores: record.Scores, Named: record.Named}, Question: record.Question, Failure: record.Failure, members: record.Members}
	var sums []groupSum
	for i, g := range record.Groups {
		if !record.Interrupted && !slices.EqualFunc(divided[i], g.Members, func(l Link, name string) bool { return l.Name() == name }) {
			return fail("group %d is not the one that the terms draw", i+1)
		}
		outcome := GroupOutcome{Members: g.Members, Lapses: g.Lapses}
		for _, m := range g.Vectors {
			if record.Question == nil && !slices.Contains(a.sent, m.From) {
				a.sent = append(a.sent, m.From)
			}
		}
		order := Order{Step: StepKeys, Round: record.Number, Index: record.Index, Group: g.Members, Model: record.Model, Question: record.Question}
		sum, aggregation, err := c.reopen(ctx, t, i, order, g, &outcome)
		if aggregation != nil {
			outcome.Accused = aggregation.Accusations
		}
		if err == nil && record.Question == nil {
			var s groupSum
			if s, err = c.meanOf(&outcome, sum); err == nil {
				sums = c.add(sums, s)
			}
		}
		switch {
		case ctx.Err() != nil:
			return Attempt{}, ctx.Err()
		case errors.Is(err, ErrTranscript) || errors.Is(err, fs.ErrNotExist):
			return Attempt{}, err
		case (err == nil) != (g.Failure == "") && !record.Interrupted:
			return fail("group %d is said to have %s, and has %s", i+1, came(g.Failure), came(text(err)))
		case err != nil:
			outcome.Survivors, outcome.Failure = nil, g.Failure
		}
		a.count(outcome)
	}
	if record.Interrupted {
		if record.Failure == "" || record.Result != nil || record.Skipped {
			return fail("it was interrupted, and has a result")
		}
		digest = c.Weights().Digest()
		a.Model = hexOf(digest[:])
		return a, nil
	}
	var err error
	switch {
	case record.Question == nil:
		err = c.finish(&a.Outcome, sums)
	case a.Sites == 0:
		err = errors.New(a.failures())
	}
	if (err == nil) != (record.Failure == "") {
		return fail("the attempt is said to have %s, and has %s", came(record.Failure), came(text(err)))
	}
	if record.Skipped {
		if err == nil || !record.opening() || record.Question != nil {
			return fail("it is said to end its round without a result, and nothing was to be opened")
		}
		a.Skipped = true
		c.skip()
	}
	digest = c.Weights().Digest()
	if err == nil && record.Question == nil && !bytes.Equal(record.Result, digest[:]) {
		return fail("it is said to lead to weights with digest %x, and leads to %x", record.Result, digest[:])
	}
	a.Counted, a.Model = err == nil, hexOf(digest[:])
	return a, nil
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func came(failure string) string {
	if failure == "" {
		return "a result"
	}
	return "none (" + failure + ")"
}

// reopen takes a group through the steps of a round by what it said, and opens its
// sum.
func (c *Coordinator) reopen(ctx context.Context, t *Transcript, at int, order Order, g GroupRecord, out *GroupOutcome) ([]uint32, *secagg.Coordinator, error) {
	length := c.Terms.length(order, len(c.Variables), c.Trained)
	round, err := c.Terms.round(order, c.Members, length)
	if err != nil {
		return nil, nil, err
	}
	a, err := secagg.NewCoordinator(round)
	if err != nil {
		return nil, nil, err
	}
	// Messages that were no good cost their senders the round then and do now.
	for _, m := range g.Keys {
		a.AddKeys(m)
	}
	if _, err := a.CloseKeys(); err != nil {
		return nil, a, err
	}
	for _, parcels := range g.Parcels {
		if len(parcels) > 0 {
			a.AddShares(parcels[0].From, parcels)
		}
	}
	if _, err := a.CloseShares(); err != nil {
		return nil, a, err
	}
	for _, m := range g.Acceptances {
		a.AddAcceptance(m)
	}
	if _, err := a.CloseAcceptances(); err != nil {
		return nil, a, err
	}
	for _, m := range g.Vectors {
		a.ArrivedElsewhere(m)
	}
	survivors, err := a.CloseMasked()
	if err != nil {
		return nil, a, err
	}
	out.Survivors = survivors
	if g.Sum == nil && g.Failure != "" { // it ended before the sum was kept
		return nil, a, errors.New(g.Failure)
	}
	sum, err := t.readSum(order.Round, at, length)
	if errors.Is(err, fs.ErrNotExist) && g.Failure != "" {
		return nil, a, errors.New(g.Failure)
	}
	if err != nil {
		return nil, a, err
	}
	if err := a.Commit(sum.Digest()); err != nil {
		return nil, a, err
	}
	for _, m := range g.Confirmations {
		a.AddConfirmation(m)
	}
	unvouched, err := a.Audit(ctx, sum, func(name string) ([]uint32, error) {
		if !slices.Contains(g.Unvouched, name) {
			return nil, nil
		}
		return t.readVector(order.Round, at, name, length)
	})
	if err != nil {
		return nil, a, fmt.Errorf("group %d: %w: %w", at+1, ErrTranscript, err)
	}
	if !slices.Equal(unvouched, g.Unvouched) {
		return nil, a, fmt.Errorf("group %d: %w: %q have not vouched for their vectors, and %q are said not to have", at+1, ErrTranscript, unvouched, g.Unvouched)
	}
	if _, err := a.CloseConfirmations(); err != nil {
		return nil, a, err
	}
	for _, m := range g.Reveals {
		a.AddReveal(m)
	}
	return sum.Low, a, a.Open(ctx, sum.Low)
}

// CheckModel says whether a published model holds the very weights that the run led
// to, bit by bit, in the tensors that the transcript's layout names. The rest of
// the model is not the run's.
func (r *Replayed) CheckModel(m *onnx.Model) error {
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("federate: holding a model against a run: %w: %s", ErrTranscript, fmt.Sprintf(format, arguments...))
	}
	if len(r.Header.Layout) == 0 {
		return fail("the transcript does not say which tensors were trained")
	}
	at := 0
	for _, span := range r.Header.Layout {
		tensor := m.Graph.Initializer(span.Name)
		if tensor == nil {
			return fail("the model has no tensor %s", span.Name)
		}
		values, err := tensor.Floats()
		if err != nil {
			return fail("tensor %s: %v", span.Name, err)
		}
		if span.Length < 0 || len(values) != span.Length || span.Length > len(r.Published)-at {
			return fail("tensor %s has %d numbers, and %d were trained", span.Name, len(values), span.Length)
		}
		for j, v := range values {
			if math.Float32bits(float32(v)) != math.Float32bits(r.Published[at+j]) {
				return fail("number %d of tensor %s is %g, the run led to %g", j, span.Name, v, r.Published[at+j])
			}
		}
		at += span.Length
	}
	if at != len(r.Published) {
		return fail("its layout is of %d variables, the run is of %d", at, len(r.Published))
	}
	return nil
}

// Write writes the replay for a person.
func (r *Replayed) Write(w io.Writer) error {
	var b strings.Builder
	counted, void, questions, lost := 0, 0, 0, 0
	for _, a := range r.Attempts {
		switch {
		case a.Question != nil:
			questions++
		case a.Counted:
			counted++
		case a.Failure == "":
			lost++
		default:
			void++
		}
	}
	t := r.Header.Terms
	fmt.Fprintf(&b, "%s: %s, %d of %d rounds, %d sites, %d variables\n", t.Federation, t.Algorithm, counted, t.Rounds, len(r.Sites), r.Header.Variables)
	fmt.Fprintf(&b, "every record, signature, masked sum and step of the weights verifies\n")
	if void+lost+questions+r.Missing > 0 {
		fmt.Fprintf(&b, "besides: %d attempts without a result, %d whose result was lost with the coordinator's process, %d without a record, %d questions\n", void, lost, r.Missing, questions)
	}
	width := 4
	for _, s := range r.Sites {
		width = max(width, len(s.Name))
	}
	fmt.Fprintf(&b, "\n%-*s  %7s  %10s  %8s  %s\n", width, "site", "in sums", "not in one", "answered", "accused of")
	for _, s := range r.Sites {
		var accused []string
		for _, a := range s.Accused {
			accused = append(accused, a.Reason)
		}
		fmt.Fprintf(&b, "%-*s  %7d  %10d  %8d  %s\n", width, s.Name, len(s.Rounds), s.Lost, s.Asked, cmp.Or(strings.Join(accused, "; "), "-"))
	}
	if r.Privacy != nil {
		fmt.Fprintln(&b)
		for _, s := range r.Privacy.Sites {
			fmt.Fprintf(&b, "%-*s  %d attempts, ε = %.3f per %s\n", width, s.Site, s.Attempts, s.Epsilon, s.Unit)
		}
	}
	fmt.Fprintf(&b, "\nweights   %s\n", r.Model)
	if p := r.Privacy; p != nil {
		fmt.Fprintf(&b, "privacy   per %s: epsilon %.3f of %g at delta %g spent by the site that has spent most\n", p.Unit, p.Epsilon, p.Budget, p.Delta)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// participation lists every site's part, and what was spent of its patients' or
// its own privacy.
func (r *Replayed) participation() error {
	parts := map[string]*Participation{}
	spent, most := map[string]int{}, 0
	for _, a := range r.Attempts {
		most = max(most, len(a.members))
		for _, m := range a.members {
			if parts[m.Name] == nil {
				parts[m.Name] = &Participation{Name: m.Name, Rounds: []int{}, Accused: []secagg.Accusation{}}
				spent[m.Name] = 0
			}
		}
		for _, name := range a.sent {
			if parts[name] != nil { // a record can hold any name
				parts[name].Sent++
				spent[name]++
			}
		}
		for _, g := range a.Groups {
			for _, name := range g.Members {
				p := parts[name]
				switch {
				case !slices.Contains(g.Survivors, name):
					p.Lost++
				case a.Question != nil:
					p.Asked++
				case a.Counted:
					p.Rounds = append(p.Rounds, a.Index)
				}
			}
			for _, accusation := range g.Accused {
				parts[accusation.Site].Accused = append(parts[accusation.Site].Accused, accusation)
			}
		}
	}
	r.Sites = []Participation{}
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		r.Sites = append(r.Sites, *parts[name])
	}
	if len(r.Attempts) == 0 {
		return nil
	}
	for name := range spent {
		spent[name] += r.Missing
	}
	var err error
	r.Privacy, err = r.Header.Terms.Statement(spent, most, r.Header.Variables)
	return err
}

// ReadHeader reads the header of a transcript without verifying anything:
// for showing what it claims to be.
func ReadHeader(dir string) (Header, ed25519.PublicKey, error) {
	var h Header
	envelope, err := readEnvelope(filepath.Join(dir, headerName), false, maxHeader)
	if err == nil {
		if err = json.Unmarshal(envelope.Payload, &h); err != nil {
			err = fmt.Errorf("federate: reading %s: %w: %w", headerName, ErrTranscript, err)
		}
	}
	return h, envelope.Key, err
}
