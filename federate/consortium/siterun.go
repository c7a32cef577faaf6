package consortium

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/wire"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// RunOptions say how a site works.
type RunOptions struct {
	Data  studies.Options
	Split string // part of the data that is trained on; empty: all of them, or train if they came divided
	// Judge is the part that the model is judged on where a job asks for it; empty:
	// val, if the data came divided, and otherwise none.
	Judge   string
	Kernels int // train.Recipe.Kernels
	Logger  *slog.Logger
	// Command is a program of this site's that trains instead of the built-in
	// engine; see federate.CommandTrainer. Data.Data is told to it, and need not be
	// readable here; Examples says how many there are.
	Command  string
	Examples int
	// Trainer makes what trains for a job; nil: Command, or the built-in engine on
	// Data.
	Trainer func(ctx context.Context, j Job, model string) (federate.Trainer, func() error, error)
	// Tamper is federate.SiteOptions.Tamper, of a site that plays a malicious one.
	Tamper Tampering
}

// The kinds of calls that the server makes besides a round's orders.
const (
	kindRoster = "roster" // here is the list of sites
	kindJob    = "job"    // here is a job
	kindDecide = "decide" // say when it is decided
	kindAgain  = "again"  // say when the approval is of all sites that are on the list by now
	kindResult = "result" // here is what came of a run
)

// offer is the answer to kindJob, kindDecide and kindAgain.
type offer struct {
	Verdict  Verdict         `json:"verdict"`
	Decision json.RawMessage `json:"decision,omitempty"` // signed
}

// glance is how often the folder is looked at for what people do there.
const glance = 100 * time.Millisecond

// Run connects to the consortium and works until the context ends. While the
// site is stopped it is not connected.
func (s *Site) Run(ctx context.Context, o RunOptions) error {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	lock, err := s.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	w := &worker{Site: s, RunOptions: o, runs: map[string]*siteRun{}}
	if w.ledger, err = s.openLedger(); err != nil {
		return err
	}
	defer w.ledger.close()
	if w.left, err = openChain[Left](s.path(leftFile), leftName, s.Name, s.signer, nil); err != nil {
		return err
	}
	defer w.left.close()
	defer w.close()
	switch {
	case o.Command != "" && o.Examples < 1:
		return fmt.Errorf("consortium: starting %q: %w: say how many examples the program trains on", s.Name, federate.ErrProgram)
	case o.Trainer == nil && o.Command == "":
		if _, err := os.Stat(o.Data.Data); err != nil {
			return fmt.Errorf("consortium: opening the data of %q: %w", s.Name, err)
		}
	}
	if _, err := s.Rules(); err != nil {
		return err
	}
	files := s.keys.files()
	files.Logger = o.Logger
	config, err := files.Client("")
	if err != nil {
		return err
	}
	if end, err := s.Certificate(); err == nil && time.Until(end) < siteLife/6 {
		o.Logger.Warn("the site's certificate ends soon: ask the consortium for a new invitation", "end", end, "next", "vigie site join FILE --dir "+s.dir)
	}
	client := &wire.Client{URL: s.URL, TLS: config, Dir: s.path("spool"), Logger: o.Logger}
	client.Accepts = func(c wire.Call) bool { return w.accepts(c) == nil }
	client.Connected = func(up bool) {
		if up {
			o.Logger.Info("connected to the consortium", "url", s.URL)
		}
	}
	for {
		if s.stopped() != nil {
			if err := s.confirmStop(); err != nil {
				return err
			}
		}
		if err := w.waitUntil(ctx, func() bool { return s.stopped() == nil }); err != nil {
			return nil // the context has ended
		}
		running, cancel := context.WithCancelCause(ctx)
		go func() {
			if w.waitUntil(running, func() bool { return s.stopped() != nil }) == nil {
				o.Logger.Warn("stopped: nothing leaves this site", "why", s.stopped())
				cancel(ErrStopped)
			}
		}()
		err := client.Run(running, w.handle)
		cancel(nil)
		if ctx.Err() != nil {
			return nil
		}
		if !errors.Is(context.Cause(running), ErrStopped) {
			return err
		}
	}
}

// lock keeps a second process out of the folder.
func (s *Site) lock() (*os.File, error) {
	f, err := os.OpenFile(s.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("consortium: starting %q: %w", s.Name, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("consortium: starting %q: %w: another process runs this site", s.Name, ErrFolder)
	}
	return f, nil
}

// worker is a site at work.
type worker struct {
	*Site
	RunOptions
	ledger *ledger
	left   *chain[Left]

	taking sync.Mutex // of the list of sites and of jobs

	mu   sync.Mutex
	runs map[string]*siteRun
}

// siteRun is a job that the site follows.
type siteRun struct {
	mu      sync.Mutex
	job     signedJob
	trainer federate.Trainer
	answers federate.Answerer
	end     func() error
	site    *federate.Site
	roster  uint64 // version that site was made with
}

// waitUntil looks again and again until the condition holds.
func (w *worker) waitUntil(ctx context.Context, holds func() bool) error {
	tick := time.NewTicker(glance)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return ctx.Err()
}

func (w *worker) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.runs {
		r.close(w.Logger)
	}
}

func (r *siteRun) close(logger *slog.Logger) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.site, r.trainer = nil, nil
	if r.end != nil {
		if err := r.end(); err != nil {
			logger.Error("ending a run", "run", r.job.Run, "error", err)
		}
		r.end = nil
	}
}

// handle answers a call. What leaves, if only the text of a refusal, is in the
// log before; while the site is stopped, nothing does.
func (w *worker) handle(ctx context.Context, c wire.Call) (wire.Reply, error) {
	reply, err := w.answer(ctx, c)
	entry := Left{Kind: c.Kind, Run: c.Run}
	if c.Kind == wire.OrderKind {
		var o federate.Order
		if json.Unmarshal(c.Body, &o) == nil {
			entry.Round, entry.Step = o.Round, string(o.Step)
		}
	}
	// While the site is stopped nothing is said; the link is cut in a moment.
	if waiting := w.waitUntil(ctx, func() bool { return w.stopped() == nil }); waiting != nil {
		reply.Bulk.Close()
		return wire.Reply{}, wire.ErrSilent
	}
	if err != nil {
		w.Logger.Warn("a call was not followed", "kind", c.Kind, "run", c.Run, "step", entry.Step, "round", entry.Round, "error", err)
		err = outward(err)
		entry.Failure = err.Error()
	} else {
		entry.Bytes, entry.SHA = int64(len(reply.Body)), DigestOf(reply.Body)
		if !reply.Bulk.None() {
			digest := Digest(reply.Bulk.Digest)
			entry.Bulk, entry.BulkSHA = reply.Bulk.Length, &digest
		}
	}
	// Nothing leaves without an entry, not even a word about that: the answer waits
	// until there is room on the disk, or nobody waits for it.
	for {
		failed := w.left.add(entry)
		if failed == nil {
			return reply, err
		}
		w.Logger.Error("nothing leaves without an entry in the log", "kind", c.Kind, "run", c.Run, "error", failed)
		if pause(ctx, 10*glance) != nil {
			reply.Bulk.Close()
			return wire.Reply{}, wire.ErrSilent
		}
	}
}

// outward is what others may hear of an error: refusals, whose words are made
// of what they sent; of everything else, which may speak of patients' files,
// that there is one.
func outward(err error) error {
	for _, refusal := range []error{wire.ErrRefused, federate.ErrOrder, federate.ErrTerms, ErrPolicy, ErrBudget, ErrRoster, ErrDocument, errNoDecision} {
		if errors.Is(err, refusal) {
			if errors.Is(err, wire.ErrRefused) {
				return err
			}
			return fmt.Errorf("%w: %w", wire.ErrRefused, err)
		}
	}
	return errors.New("consortium: the site could not do this; its own log says why")
}

var errNoDecision = errors.New("the job is not approved here")

func (w *worker) answer(ctx context.Context, c wire.Call) (wire.Reply, error) {
	if c.Bulk.Length > 0 {
		if err := w.accepts(c); err != nil {
			return wire.Reply{}, err
		}
	}
	switch c.Kind {
	case kindRoster:
		w.taking.Lock()
		defer w.taking.Unlock()
		r, changes, err := w.take(c.Body)
		if err != nil {
			return wire.Reply{}, err
		}
		if changes != "" {
			w.Logger.Info("the list of sites has changed", "version", r.Version, "changes", changes, "sites", len(r.Sites))
		}
		return wire.Reply{Body: marshal(struct {
			Version uint64 `json:"version"`
		}{r.Version})}, nil
	case kindJob, kindDecide, kindAgain:
		return w.offered(ctx, c)
	case kindResult:
		return w.over(c)
	case wire.OrderKind:
		return w.order(ctx, c)
	}
	return wire.Reply{}, fmt.Errorf("consortium: answering a call at %q: %w: there is no %q; a newer program may know it", w.Name, wire.ErrRefused, c.Kind)
}

// offered keeps a job, and says what is decided, or waits until it is.
func (w *worker) offered(ctx context.Context, c wire.Call) (wire.Reply, error) {
	w.taking.Lock()
	j, err := w.receive(c.Body, func(path string) error { return keepBulk(c.Bulk, path) })
	if err == nil && j.Run != c.Run {
		err = fmt.Errorf("consortium: receiving a job: %w: it is of run %q, the call of %q", ErrDocument, j.Run, c.Run)
	}
	w.taking.Unlock()
	if err != nil {
		return wire.Reply{}, err
	}
	told := false
	var d *Decision
	var document []byte
	err = w.waitUntil(ctx, func() bool {
		w.taking.Lock()
		if d, document, err = w.standing(j); err == nil && d != nil && c.Kind == kindAgain {
			d, document, err = w.renewed(j, d, document)
		}
		w.taking.Unlock()
		if err != nil || d != nil || c.Kind == kindJob {
			return true
		}
		if !told {
			told = true
			w.Logger.Info("a job waits for a person", "again", c.Kind == kindAgain, "run", j.Run, "scientist", j.Scientist, "purpose", j.Purpose, "next", "vigie site jobs --dir "+w.dir)
		}
		return false
	})
	switch {
	case err != nil:
		return wire.Reply{}, err
	case d == nil:
		return wire.Reply{Body: marshal(offer{Verdict: Waiting})}, nil
	}
	return wire.Reply{Body: marshal(offer{d.Verdict, document})}, nil
}

// keepBulk writes what travelled beside a call to a file; wire has held it
// against its digest.
func keepBulk(b wire.Bulk, path string) (err error) {
	if b.None() {
		return fmt.Errorf("consortium: keeping %s: %w: nothing travelled with the call", filepath.Base(path), ErrDocument)
	}
	in, err := b.Open()
	if err != nil {
		return err
	}
	defer in.Close()
	if err := train.WriteWhole(path, func(out io.Writer) error {
		_, err := io.Copy(out, io.NewSectionReader(in, 0, b.Length))
		return err
	}); err != nil {
		return fmt.Errorf("consortium: keeping %s: %w", filepath.Base(path), err)
	}
	return nil
}

// approved returns a run that the site follows now.
func (w *worker) approved(name string) (*siteRun, error) {
	j, err := w.job(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("consortium: following run %q at %q: %w: no such job has arrived", name, w.Name, errNoDecision)
	}
	if err != nil {
		return nil, err
	}
	d, _, err := w.decision(j)
	if err != nil {
		return nil, err
	}
	if d == nil || d.Verdict != Approved {
		return nil, fmt.Errorf("consortium: following run %q at %q: %w", name, w.Name, errNoDecision)
	}
	rules, err := w.Rules()
	if err != nil {
		return nil, err
	}
	if err := w.allows(j, rules); err != nil { // the rules may have changed since
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	r := w.runs[name]
	if r == nil {
		r = &siteRun{job: j}
		w.runs[name] = r
	}
	return r, nil
}

// order follows an order of a round.
func (w *worker) order(ctx context.Context, c wire.Call) (wire.Reply, error) {
	r, err := w.approved(c.Run)
	if err != nil {
		return wire.Reply{}, err
	}
	var o federate.Order
	if err := json.Unmarshal(c.Body, &o); err != nil {
		return wire.Reply{}, fmt.Errorf("consortium: reading an order: %w: %w", federate.ErrOrder, err)
	}
	site, err := w.ready(ctx, r, o)
	if err != nil {
		return wire.Reply{}, err
	}
	switch {
	case o.Step == federate.StepKeys && o.Question == nil: // before anybody counts on this site
		rules, err := w.Rules()
		if err != nil {
			return wire.Reply{}, err
		}
		if err := w.ledger.fits(r.job, rules.Budget); err != nil {
			return wire.Reply{}, err
		}
	case o.Step == federate.StepTrain && r.job.Terms.DP == nil: // else the site charges what it spends
		if err := w.ledger.enter(Charge{Federation: r.job.Terms.Federation, Round: o.Round, Job: r.job.digest}); err != nil {
			return wire.Reply{}, err
		}
	}
	return wire.Orders(site)(ctx, c)
}

// ready is the site's half of the protocol for a run. A round begins with the
// list of sites that is known then.
func (w *worker) ready(ctx context.Context, r *siteRun, o federate.Order) (*federate.Site, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	roster, err := w.roster()
	if err != nil {
		return nil, err
	}
	if o.Step == federate.StepKeys {
		if err := w.knows(r.job, roster.Roster, o.Group); err != nil {
			return nil, err
		}
	}
	if r.site != nil && (r.roster == roster.Version || o.Step != federate.StepKeys) {
		return r.site, nil
	}
	if r.trainer == nil {
		began := time.Now()
		if r.trainer, r.answers, r.end, err = w.trainer(ctx, r.job); err != nil {
			return nil, err
		}
		w.Logger.Info("ready to train", "run", r.job.Run, "examples", r.trainer.Examples(), "after", time.Since(began).Round(time.Millisecond))
	}
	if err := enough(r.job.Job, r.trainer); err != nil {
		return nil, err
	}
	keeper, err := federate.Folder(w.path("jobs", r.job.Run, "rounds"))
	if err != nil {
		return nil, err
	}
	options := federate.SiteOptions{Name: w.Name, Terms: r.job.Terms, Members: roster.Members(), Signer: w.signer, Trainer: r.trainer, Answers: r.answers, Ledger: ledgerOf{w.ledger, r.job}, Keeper: keeper, Seed: w.seed(r.job)}
	if w.Tamper != nil {
		options.Tamper = w.Tamper(r.job.Job)
	}
	site, err := federate.NewSite(options)
	if err != nil {
		return nil, err
	}
	r.site, r.roster = site, roster.Version
	return site, nil
}

// enough returns an error that wraps ErrPolicy for a job whose privacy counts on
// fewer patients in all than this site has alone: its sums would be divided, and its
// δ chosen, for another federation than this one.
func enough(j Job, t federate.Trainer) error {
	d := j.Terms.DP
	if d == nil || d.Unit != federate.Patient {
		return nil
	}
	patients := 0
	if p, is := t.(federate.PatientTrainer); is {
		patients = p.Patients()
	}
	if counted := d.Lot / d.Rate; counted < float64(patients)*(1-1e-9) {
		return fmt.Errorf("consortium: following run %q: %w: its privacy counts on %.4g patients in all, and this site has more", j.Run, ErrPolicy, counted)
	}
	return nil
}

// knows returns an error if a job that was approved is not approved with all of a
// group.
func (w *worker) knows(j signedJob, r Roster, group []string) error {
	d, _, err := w.decision(j)
	if err != nil {
		return err
	}
	rules, err := w.Rules()
	if err != nil {
		return err
	}
	if d == nil {
		return fmt.Errorf("consortium: following run %q at %q: %w", j.Run, w.Name, errNoDecision)
	}
	// A quorum is of the sites that the approval is of: a list that has shrunk does not
	// make a few of them one.
	if least := j.Terms.Least(len(d.Members)); j.Terms.GroupSize == 0 && len(group) < least {
		return fmt.Errorf("consortium: following run %q at %q: %w: a round of %d sites; %d were known when the job was approved, of which %d must be asked; approve again if they have left", j.Run, w.Name, ErrPolicy, len(group), len(d.Members), least)
	}
	return w.shares(*d, rules, r, group)
}

// seed orders the site's examples: another at every site, the same after a
// restart, and in another run with the same seed.
func (w *worker) seed(j signedJob) uint64 {
	sum := sha256.Sum256([]byte("vigie consortium seed v1\x00" + w.Name))
	seed := j.Terms.Seed
	for _, b := range sum[:8] {
		seed = seed*257 + uint64(b)
	}
	return seed
}

// trainer makes what trains for a job, and what answers its questions.
func (w *worker) trainer(ctx context.Context, j signedJob) (federate.Trainer, federate.Answerer, func() error, error) {
	path := w.path("jobs", j.Run, modelFile)
	none := func() error { return nil }
	if w.RunOptions.Trainer != nil {
		trainer, end, err := w.RunOptions.Trainer(ctx, j.Job, path)
		return trainer, nil, end, err
	}
	fail := func(err error) (federate.Trainer, federate.Answerer, func() error, error) {
		return nil, nil, nil, fmt.Errorf("consortium: preparing run %q at %q: %w", j.Run, w.Name, err)
	}
	network, err := j.Model.network(path)
	if err != nil {
		return fail(err)
	}
	if w.Command != "" {
		form, err := federate.FormOf(network, j.Terms, j.Model.like())
		if err != nil {
			return fail(err)
		}
		trainer, err := federate.NewCommandTrainer(federate.CommandOptions{Command: w.Command, Form: form, Data: w.Data.Data, Examples: w.Examples})
		if err != nil {
			return fail(err)
		}
		if err := runs(trainer, j.Trainer); err != nil {
			return fail(err)
		}
		return trainer, nil, none, nil
	}
	if j.Trainer != nil {
		return fail(fmt.Errorf("%w: it wants the scientist's own code, %s, which this site does not run (vigie site run --trainer)", errNoDecision, j.Trainer.About))
	}
	set, data, err := j.Model.examples(ctx, w.Data, w.Split)
	if err != nil {
		return fail(err)
	}
	engine, err := federate.NewEngine(network, j.Terms, set, w.Kernels)
	if err != nil {
		return fail(err)
	}
	var answers federate.Answerer
	if judged, err := w.judged(data, j.Model); err != nil {
		return fail(errors.Join(err, engine.Close()))
	} else if judged != nil {
		answers = engine.Answers(judged)
	}
	return engine.Trainer(set), answers, engine.Close, nil
}

// runs says whether a site's program is the code that a job names.
func runs(t federate.Trainer, code *Code) error {
	if code == nil {
		return nil
	}
	if p, is := t.(interface{ Program() federate.Program }); is {
		for _, f := range p.Program().Files {
			if f.SHA256 == code.SHA256.String() {
				return nil
			}
		}
	}
	return fmt.Errorf("%w: none of the files of this site's program is the code that the job names, %s", errNoDecision, code.SHA256)
}

// judged are the examples that the model is judged on.
func (w *worker) judged(data *studies.Studies, m Model) (*train.Set, error) {
	part := w.Judge
	if part == "" {
		if !data.Given || data.Validation == nil || data.Validation.Len() == 0 {
			return nil, nil
		}
		part = studies.Validation
	}
	set, err := data.Set(part)
	if err != nil {
		return nil, err
	}
	return set, m.fits(set, w.Data.Data)
}

// examples reads labelled data in the form that the model wants; split says which
// part, empty all, or train if they came divided.
func (m Model) examples(ctx context.Context, o studies.Options, split string) (*train.Set, *studies.Studies, error) {
	numbered := strings.EqualFold(filepath.Ext(o.Data), ".npz") // labels are numbers of classes
	if m.Image {
		o.Channels, o.Rows, o.Columns = int(m.Example[0]), int(m.Example[1]), int(m.Example[2])
	}
	if o.Part = true; o.Classes == nil {
		o.Classes, o.ClassesBy = m.Classes, "the job"
	}
	if o.Classes == nil && numbered && !m.Multi {
		for c := range m.like().Classes {
			o.Classes = append(o.Classes, fmt.Sprint(c))
		}
	}
	data, err := studies.Open(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	if split == "" {
		split = studies.All
		if data.Given {
			split = studies.Train
		}
	}
	set, err := data.Set(split)
	if err != nil {
		return nil, nil, err
	}
	return set, data, m.fits(set, o.Data)
}

// fits says whether examples are as the model wants them. Classes that do not
// occur at one site occur elsewhere.
func (m Model) fits(set *train.Set, from string) error {
	like := m.like()
	if !set.Multi() && set.Classes < like.Classes {
		set.Classes = like.Classes
	}
	if !slices.Equal(set.Example(), like.Example()) || set.Classes != like.Classes || set.Multi() != like.Multi() {
		return fmt.Errorf("consortium: reading %s: %w: examples of shape %v with %d classes, and the model wants %v with %d", from, studies.ErrData, set.Example(), set.Classes, like.Example(), like.Classes)
	}
	return nil
}

// over keeps what came of a run, and frees what it held.
func (w *worker) over(c wire.Call) (wire.Reply, error) {
	j, err := w.job(c.Run)
	if err != nil {
		return wire.Reply{}, err
	}
	r, _, _, err := verify[Result](c.Body, ResultType, w.Key)
	if err != nil {
		return wire.Reply{}, err
	}
	if r.Run != j.Run || r.Job != j.digest || c.Bulk.Digest != r.Model {
		return wire.Reply{}, fmt.Errorf("consortium: keeping the result of %q: %w: it is of another job, or of another model than came with it", j.Run, ErrDocument)
	}
	w.taking.Lock()
	defer w.taking.Unlock()
	if err := keepBulk(c.Bulk, w.path("jobs", j.Run, "result.onnx")); err != nil {
		return wire.Reply{}, err
	}
	keeper, err := federate.Folder(w.path("jobs", j.Run))
	if err != nil {
		return wire.Reply{}, err
	}
	if err := keeper.Put(resultFile, c.Body); err != nil {
		return wire.Reply{}, err
	}
	w.mu.Lock()
	run := w.runs[j.Run]
	delete(w.runs, j.Run)
	w.mu.Unlock()
	if run != nil {
		run.close(w.Logger)
	}
	w.Logger.Info("a run is over", "run", j.Run, "model", r.Model, "file", w.path("jobs", j.Run, "result.onnx"))
	return wire.Reply{Body: marshal(struct {
		Model Digest `json:"model"`
	}{r.Model})}, nil
}
