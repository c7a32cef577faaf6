package consortium

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/wire"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// State says where a run is.
type State string

// The states.
const (
	Gathering State = "gathering" // sites decide, or are not connected
	Running   State = "running"
	Stopped   State = "stopped" // by a person; see Consortium.ResumeRun
	Failed    State = "failed"  // by itself; ResumeRun tries again
	Done      State = "done"
)

// Status is how a run stands.
type Status struct {
	Run       string             `json:"run"`
	Job       Digest             `json:"job"`
	State     State              `json:"state"`
	Why       string             `json:"why,omitempty"`
	Scientist string             `json:"scientist"`
	Purpose   string             `json:"purpose"`
	Algorithm federate.Algorithm `json:"algorithm"`
	Round     int                `json:"round"` // that have a result
	Rounds    int                `json:"rounds"`
	Loss      *float64           `json:"loss,omitempty"`         // of the last round, mean over the sites' examples
	AUC       *train.Interval    `json:"auc,omitempty"`          // on the consortium's own examples
	AtSites   *train.Interval    `json:"auc_at_sites,omitempty"` // on those of all sites together
	Roster    uint64             `json:"roster"`
	Updated   time.Time          `json:"updated"`
	Sites     []SiteStatus       `json:"sites"`
	Model     *Digest            `json:"model,omitempty"` // of the result
}

// SiteStatus is how a site stands in a run.
type SiteStatus struct {
	Name      string  `json:"name"`
	Verdict   Verdict `json:"verdict"`
	By        string  `json:"by,omitempty"`
	Reason    string  `json:"reason,omitempty"`
	Connected bool    `json:"connected"`
	Sums      int     `json:"sums"` // rounds that it was in
	Lost      int     `json:"lost"` // rounds that it was asked for, and not in
	// Held is what the rule has held against the groups that it was in, mean over
	// those rounds; 0 to 1.
	Held     float64         `json:"held"`
	Failure  string          `json:"failure,omitempty"` // that it answered last
	Named    federate.Charge `json:"named,omitempty"`   // what it is named for, where the terms name sites
	Received bool            `json:"received"`          // the result
	// LeftOut names a site that has approved the run without this one, which joined
	// later: it takes part when that one approves again.
	LeftOut string `json:"left_out_by,omitempty"`
}

// RoundLine is the record of an attempt at a round.
type RoundLine struct {
	federate.Outcome
	Roster  uint64               `json:"roster"`
	AUC     *train.Interval      `json:"auc,omitempty"`
	AtSites *federate.Evaluation `json:"at_sites,omitempty"`
	Failed  string               `json:"failed,omitempty"`
	Elapsed time.Duration        `json:"ns"`
	Time    time.Time            `json:"time"`
}

// Local is what a run needs at the consortium and the sites do not hear of.
type Local struct {
	Evaluation Labelled `json:"evaluation"` // Data is empty: none
	Split      string   `json:"split"`
	Every      int      `json:"every"` // rounds from one evaluation to the next
	// AtSites is how many rounds lie between two evaluations on the sites' own
	// examples, of which the sums alone are opened; 0: none.
	AtSites int `json:"at_sites"`
	// Trusted holds what sites add against what the examples of Evaluation teach;
	// for terms that name sites.
	Trusted bool `json:"trusted"`
	// Sites is how many must have approved and be connected before the first
	// round; 0 is all of the list that have not refused. After Patience the terms'
	// minimum will do.
	Sites    int    `json:"sites"`
	Patience Period `json:"patience"`
}

// Labelled are studies.Options without what a file cannot hold.
type Labelled struct {
	studies.Options
}

// MarshalJSON leaves out whom to tell of progress.
func (l Labelled) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]any{"data": l.Data, "labels": l.Labels, "file_column": l.FileColumn, "label_columns": l.LabelColumns, "patient_column": l.PatientColumn,
		"split_column": l.SplitColumn, "classes": l.Classes, "aspect": l.Aspect, "shares": l.Shares, "seed": l.Seed})
}

// UnmarshalJSON reads what MarshalJSON writes.
func (l *Labelled) UnmarshalJSON(data []byte) error {
	var o struct {
		Data          string    `json:"data"`
		Labels        string    `json:"labels"`
		FileColumn    string    `json:"file_column"`
		LabelColumns  []string  `json:"label_columns"`
		PatientColumn string    `json:"patient_column"`
		SplitColumn   string    `json:"split_column"`
		Classes       []string  `json:"classes"`
		Aspect        string    `json:"aspect"`
		Shares        []float64 `json:"shares"`
		Seed          uint64    `json:"seed"`
	}
	if err := strict(data, &o); err != nil {
		return err
	}
	l.Options = studies.Options{Data: o.Data, Labels: o.Labels, FileColumn: o.FileColumn, LabelColumns: o.LabelColumns, PatientColumn: o.PatientColumn,
		SplitColumn: o.SplitColumn, Classes: o.Classes, Aspect: o.Aspect, Shares: o.Shares, Seed: o.Seed}
	return nil
}

const (
	statusFile = "status.json"
	roundsFile = "rounds.jsonl"
	localFile  = "local.json"
	consents   = "consents"
	transcript = "transcript" // folder; see federate.Transcript
	maxRetries = 10           // attempts at one round without a result, after which a run has failed
)

func (c *Consortium) runsDir(parts ...string) string {
	return filepath.Join(append([]string{c.dir, "runs"}, parts...)...)
}

// runs lists the runs that are there, whole.
func (c *Consortium) runs() ([]string, error) {
	entries, err := os.ReadDir(c.runsDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if checkName("run", e.Name()) == nil {
			if _, err := os.Stat(c.runsDir(e.Name(), jobFile)); err == nil {
				names = append(names, e.Name())
			}
		}
	}
	return names, nil
}

// wanted says whether a run is to be led.
func (c *Consortium) wanted(name string) bool {
	if _, err := os.Stat(c.runsDir(name, stopFile)); err == nil {
		return false
	}
	s, err := c.status(name)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	switch s.State {
	case Failed:
		return false
	case Done:
		return slices.ContainsFunc(s.Sites, func(s SiteStatus) bool { return s.Verdict == Approved && !s.Received })
	}
	return true
}

func (c *Consortium) status(name string) (Status, error) {
	var s Status
	data, err := readLimited(c.runsDir(name, statusFile), 16<<20)
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return s, fmt.Errorf("consortium: reading how run %q stands: %w", name, err)
	}
	return s, nil
}

func (c *Consortium) job(name string) (signedJob, error) {
	if err := checkName("run", name); err != nil {
		return signedJob{}, err
	}
	document, err := readLimited(c.runsDir(name, jobFile), maxDocument)
	if err != nil {
		return signedJob{}, fmt.Errorf("consortium: reading job %q: %w", name, err)
	}
	return readJob(document, c.Key())
}

// Status says how a run stands, and what came of each attempt at a round.
func (c *Consortium) Status(name string) (Status, []RoundLine, error) {
	j, err := c.job(name)
	if errors.Is(err, fs.ErrNotExist) {
		return Status{}, nil, fmt.Errorf("consortium: reading how run %q stands: there is no such run; see vigie fed status", name)
	}
	if err != nil {
		return Status{}, nil, err
	}
	s, err := c.status(name)
	if errors.Is(err, fs.ErrNotExist) {
		s, err = newStatus(j), nil
		s.Why = "no server has begun with it: vigie consortium serve"
	}
	if err != nil {
		return s, nil, err
	}
	if _, err := os.Stat(c.runsDir(name, stopFile)); err == nil && s.State != Done {
		s.State = Stopped
	}
	lines, err := readRounds(c.runsDir(name, roundsFile))
	return s, lines, err
}

// Runs says how all runs stand, in the order of their names.
func (c *Consortium) Runs() (Runs, error) {
	names, err := c.runs()
	if err != nil {
		return nil, fmt.Errorf("consortium: listing the runs: %w", err)
	}
	all := Runs{}
	for _, name := range names {
		s, _, err := c.Status(name)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// StopRun makes a run pause until ResumeRun: a round that is under way is given
// up, and begins again.
func (c *Consortium) StopRun(name string) error {
	if _, err := c.job(name); err != nil {
		return err
	}
	keeper, err := federate.Folder(c.runsDir(name))
	if err != nil {
		return err
	}
	return keeper.Put(stopFile, []byte("stopped on "+c.now().UTC().Format(time.RFC3339)+"\n"))
}

// ResumeRun lets a run go on that was stopped or has failed.
func (c *Consortium) ResumeRun(name string) error {
	if _, err := c.job(name); err != nil {
		return err
	}
	s, err := c.status(name)
	if err == nil && s.State == Failed {
		s.State, s.Why = Gathering, ""
		if err := c.putStatus(s); err != nil {
			return err
		}
	}
	if err := os.Remove(c.runsDir(name, stopFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("consortium: letting run %q go on: %w", name, err)
	}
	return nil
}

func (c *Consortium) putStatus(s Status) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	keeper, err := federate.Folder(c.runsDir(s.Run))
	if err != nil {
		return err
	}
	return keeper.Put(statusFile, data)
}

func newStatus(j signedJob) Status {
	return Status{Run: j.Run, Job: j.digest, State: Gathering, Scientist: j.Scientist, Purpose: j.Purpose, Algorithm: j.Terms.Algorithm, Rounds: j.Terms.Rounds, Sites: []SiteStatus{}}
}

// leader leads one run.
type leader struct {
	*server
	job   signedJob
	local Local
	dir   string

	mu      sync.Mutex
	status  Status
	written []byte          // status as it was kept last, without its time
	known   map[string]bool // sites that have the current list
	asking  map[string]bool // sites that are asked for their decision
	again   map[string]bool // those that are asked to approve with sites that have joined since
	decided map[string]Decision
	failed  map[string]string

	coordinator *federate.Coordinator
	roster      signedRoster // that coordinator was made with
	changed     time.Time    // when
	variables   []float32    // that the run began with
	trained     int
	layout      []federate.Span
	judge       *judge
}

// lead leads a run until it is over, or the context ends.
func (s *server) lead(ctx context.Context, name string) {
	l := &leader{server: s, dir: s.runsDir(name), known: map[string]bool{}, asking: map[string]bool{}, again: map[string]bool{}, decided: map[string]Decision{}, failed: map[string]string{}}
	var asking sync.WaitGroup
	leading, end := context.WithCancel(ctx)
	err := l.run(leading, name, &asking)
	end() // whoever has not decided need not any more
	asking.Wait()
	if l.judge != nil {
		l.judge.close()
	}
	if err != nil && ctx.Err() == nil {
		s.Logger.Error("a run has failed", "run", name, "error", err)
		if l.status.Run == "" {
			l.status = Status{Run: name, Sites: []SiteStatus{}}
		}
		l.status.State, l.status.Why = Failed, err.Error()
		if err := l.save(); err != nil {
			s.Logger.Error("keeping how a run stands", "run", name, "error", err)
		}
	}
}

func (l *leader) run(ctx context.Context, name string, asking *sync.WaitGroup) error {
	var err error
	if l.job, err = l.Consortium.job(name); err != nil {
		return err
	}
	if l.status, err = l.Consortium.status(name); errors.Is(err, fs.ErrNotExist) {
		l.status, err = newStatus(l.job), nil
	}
	if err != nil {
		return err
	}
	data, err := readLimited(filepath.Join(l.dir, localFile), maxDocument)
	if err == nil {
		err = strict(data, &l.local)
	}
	if err != nil {
		return fmt.Errorf("consortium: reading how run %q is led: %w", name, err)
	}
	if l.status.State == Done {
		return l.deliver(ctx)
	}
	if err := l.prepare(ctx); err != nil {
		return err
	}
	began, failures := l.now(), 0
	for l.coordinator == nil || !l.coordinator.Done() {
		ready, why, err := l.gather(ctx, asking, began)
		if err != nil {
			return err
		}
		if !ready {
			l.mu.Lock()
			l.status.State, l.status.Why = Gathering, why
			l.mu.Unlock()
			if err := l.save(); err != nil {
				return err
			}
			if err := pause(ctx, glance); err != nil {
				return err
			}
			continue
		}
		line, err := l.round(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, federate.ErrRound) {
			return err
		}
		if err != nil {
			if failures++; failures >= maxRetries {
				return fmt.Errorf("consortium: leading run %q: %d attempts at round %d in a row had no result: %w", l.job.Run, failures, line.Index+1, err)
			}
			if err := pause(ctx, time.Duration(failures)*5*glance); err != nil {
				return err
			}
			continue
		}
		failures = 0
	}
	if l.coordinator.Rounds() == 0 {
		return fmt.Errorf("consortium: leading run %q: none of its %d rounds has a result", l.job.Run, l.job.Terms.Rounds)
	}
	if err := l.finish(ctx); err != nil {
		return err
	}
	return l.deliver(ctx)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// prepare makes the coordinator, or goes on with the one that was kept.
func (l *leader) prepare(ctx context.Context) error {
	network, err := l.job.Model.network(filepath.Join(l.dir, modelFile))
	if err != nil {
		return err
	}
	engine, err := federate.NewEngine(network, l.job.Terms, l.job.Model.like(), l.Kernels)
	if err != nil {
		return err
	}
	l.variables, l.trained = engine.Variables()
	l.layout = engine.Layout()
	if l.local.Evaluation.Data == "" {
		if err := engine.Close(); err != nil { // what it holds is needed again at the end alone
			return err
		}
	} else if l.judge, err = newJudge(ctx, engine, l.job.Model, l.local); err != nil {
		return err
	}
	if l.roster, err = l.current(); err != nil {
		return err
	}
	if err := cutTorn(filepath.Join(l.dir, roundsFile)); err != nil {
		return err
	}
	return l.remake()
}

// remake goes on with the current list of sites, if it is long enough.
func (l *leader) remake() error {
	l.changed = l.now()
	if l.coordinator = nil; len(l.roster.Sites) < l.job.Terms.Minimum {
		return nil
	}
	keeper, err := federate.Folder(filepath.Join(l.dir, "rounds"))
	if err != nil {
		return err
	}
	o := federate.CoordinatorOptions{Terms: l.job.Terms, Members: l.roster.Members(), Variables: l.variables, Trained: l.trained, Layout: l.layout, Keeper: keeper}
	if o.Transcript, err = o.Record(filepath.Join(l.dir, transcript), l.signer); err != nil {
		return err
	}
	if l.coordinator, err = federate.NewCoordinator(o); err != nil {
		return err
	}
	return l.fillGap()
}

// gather looks who is there, tells them what they need, and says whether a round
// may begin.
func (l *leader) gather(ctx context.Context, asking *sync.WaitGroup, began time.Time) (ready bool, why string, err error) {
	now, err := l.current()
	if err != nil {
		return false, "", err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.digest != l.roster.digest {
		if err := l.keeps(now.Roster); err != nil {
			return false, "", err
		}
		l.Logger.Info("the list of sites has changed", "run", l.job.Run, "version", now.Version, "changes", now.changes(l.roster.Roster))
		l.roster, l.known, l.decided = now, map[string]bool{}, map[string]Decision{}
		if err := l.remake(); err != nil {
			return false, "", err
		}
	}
	l.status.Roster = now.Version
	connected := l.wire.Connected()
	here, undecided, refused, leftOut := 0, 0, 0, 0
	for _, m := range now.Sites {
		s := l.site(m.Name)
		s.Connected = slices.Contains(connected, m.Name)
		if _, have := l.decided[m.Name]; !have {
			l.recall(m, s)
		}
	}
	l.leaveOut(ctx, asking)
	for _, m := range now.Sites {
		s := l.site(m.Name)
		switch {
		case s.Verdict == Refused:
			refused++
		case s.Verdict == Waiting:
			undecided++
		case s.LeftOut != "":
			leftOut++
		case s.Connected:
			here++
		}
		if s.Connected && !l.asking[m.Name] && (!l.known[m.Name] || s.Verdict == Waiting) {
			l.asking[m.Name] = true
			asking.Go(func() { l.tell(ctx, m, now) })
		}
	}
	want := l.local.Sites
	if want == 0 {
		want = len(now.Sites) - refused
	}
	if l.status.Round > 0 || l.status.State == Running || l.now().Sub(began) > time.Duration(l.local.Patience) {
		want = 0
	}
	want = max(want, l.job.Terms.Minimum, l.job.Terms.Least(len(now.Sites)))
	if len(now.Sites) < l.job.Terms.Minimum {
		return false, fmt.Sprintf("%d sites on the list, %d are needed", len(now.Sites), l.job.Terms.Minimum), nil
	}
	if least := max(l.job.Terms.Minimum, l.job.Terms.Least(len(now.Sites))); len(now.Sites)-refused < least {
		return false, fmt.Sprintf("too few sites are left: %d of %d have refused, and a round needs %d", refused, len(now.Sites), least), nil
	}
	informed := 0
	for _, name := range l.present() {
		if l.known[name] {
			informed++
		}
	}
	if here < want {
		why := fmt.Sprintf("%d of %d sites are there; %d have not decided, %d have refused", here, want, undecided, refused)
		if leftOut > 0 {
			why += fmt.Sprintf("; %d joined after others had approved, who have to approve again", leftOut)
		}
		return false, why, nil
	}
	// A site that was not told of a change in time sits a round out.
	return informed == here || informed >= want && l.now().Sub(l.changed) > 50*glance, "sites take the list", nil
}

// keeps refuses a list that lacks a site which a run that names sites has evidence
// about: the evidence of rounds is of all who were in them.
func (l *leader) keeps(next Roster) error {
	if l.job.Terms.Naming == federate.NamingOff {
		return nil
	}
	for _, m := range l.roster.Sites {
		if _, listed := next.Site(m.Name); !listed {
			return fmt.Errorf("consortium: leading run %q: %w: %q has left, and a run that names sites cannot go on without one that it has evidence about; start another", l.job.Run, ErrRoster, m.Name)
		}
	}
	return nil
}

// site finds or makes a site's status. mu is held.
func (l *leader) site(name string) *SiteStatus {
	at, found := slices.BinarySearchFunc(l.status.Sites, name, func(s SiteStatus, name string) int { return strings.Compare(s.Name, name) })
	if !found {
		l.status.Sites = slices.Insert(l.status.Sites, at, SiteStatus{Name: name, Verdict: Waiting})
	}
	return &l.status.Sites[at]
}

// present are the sites of the list that approved and are connected. mu is held.
func (l *leader) present() []string {
	var names []string
	for _, s := range l.status.Sites {
		if _, listed := l.roster.Site(s.Name); listed && s.Connected && s.Verdict == Approved && s.LeftOut == "" {
			names = append(names, s.Name)
		}
	}
	return names
}

// recall takes up a decision that was kept. One of other keys than the site's is
// none. mu is held.
func (l *leader) recall(m Member, s *SiteStatus) {
	document, err := readLimited(filepath.Join(l.dir, consents, m.Name+".json"), maxDocument)
	if err == nil {
		var d Decision
		if d, err = readDecision(document, m, l.job); err == nil {
			s.Verdict, s.By, s.Reason, l.decided[m.Name] = d.Verdict, d.By, d.Reason, d
		}
	}
	if err != nil {
		s.Verdict, s.By, s.Reason = Waiting, "", ""
	}
}

// leaveOut says which sites take no part for now: those that joined after one that
// joined before had approved, unless that one accepts joins. They would make it
// refuse its orders. It is asked to approve again meanwhile. mu is held.
func (l *leader) leaveOut(ctx context.Context, asking *sync.WaitGroup) {
	var in []Member
	sites := slices.Clone(l.roster.Sites)
	// Who takes part already comes before who has joined, times being of a second.
	slices.SortStableFunc(sites, func(a, b Member) int {
		new := func(m Member) int {
			if l.site(m.Name).Sums > 0 {
				return 0
			}
			return 1
		}
		return cmp.Or(cmp.Compare(new(a), new(b)), a.Time.Compare(b.Time))
	})
	for _, m := range sites {
		s := l.site(m.Name)
		s.LeftOut = ""
		d, have := l.decided[m.Name]
		if !have || d.Verdict != Approved {
			continue
		}
		for _, other := range in {
			blocking := other
			switch {
			case !l.decided[other.Name].accepts(m):
			case !d.accepts(other):
				blocking = m
			default:
				continue
			}
			if s.LeftOut == "" {
				s.LeftOut = blocking.Name
			}
			if l.site(blocking.Name).Connected && l.known[blocking.Name] && !l.again[blocking.Name] {
				l.again[blocking.Name] = true
				asking.Go(func() { l.renew(ctx, blocking) })
			}
		}
		if s.LeftOut == "" && s.Connected { // who is away keeps nobody out
			in = append(in, m)
		}
	}
}

// renew waits until a site has approved with all sites that it knows of.
func (l *leader) renew(ctx context.Context, m Member) {
	defer func() {
		l.mu.Lock()
		delete(l.again, m.Name)
		l.mu.Unlock()
	}()
	reply, err := l.wire.Ask(ctx, m.Name, wire.Call{Run: l.job.Run, Kind: kindAgain, Body: l.job.document})
	if err == nil {
		err = l.consent(m, reply)
	}
	if err != nil && ctx.Err() == nil {
		l.Logger.Warn("a site could not be asked to approve again", "run", l.job.Run, "site", m.Name, "error", err)
	}
	pause(ctx, 10*glance)
}

// consent keeps a site's decision.
func (l *leader) consent(m Member, reply wire.Reply) error {
	reply.Bulk.Close()
	var o offer
	if err := strict(reply.Body, &o); err != nil {
		return err
	}
	d, err := readDecision(o.Decision, m, l.job)
	if err != nil {
		return err
	}
	keeper, err := federate.Folder(filepath.Join(l.dir, consents))
	if err == nil {
		err = keeper.Put(m.Name+".json", o.Decision)
	}
	if err != nil {
		return err
	}
	l.Logger.Info("a site has decided", "run", l.job.Run, "site", m.Name, "verdict", d.Verdict, "by", d.By, "reason", d.Reason, "sites", len(d.Members), "joins", d.Joins)
	l.mu.Lock()
	defer l.mu.Unlock()
	if now, listed := l.roster.Site(m.Name); listed && now.Key.Equal(m.Key) {
		s := l.site(m.Name)
		s.Verdict, s.By, s.Reason, s.Failure = d.Verdict, d.By, d.Reason, ""
		l.decided[m.Name] = d
	}
	return nil
}

// tell brings a site the list and the job, and waits for its decision.
func (l *leader) tell(ctx context.Context, m Member, r signedRoster) {
	defer func() {
		l.mu.Lock()
		delete(l.asking, m.Name)
		l.mu.Unlock()
	}()
	fail := func(err error) {
		if ctx.Err() != nil {
			return
		}
		l.mu.Lock()
		l.site(m.Name).Failure = brief(err)
		l.mu.Unlock()
		l.Logger.Warn("a site could not be told", "run", l.job.Run, "site", m.Name, "error", err)
		pause(ctx, 10*glance)
	}
	if _, err := l.wire.Ask(ctx, m.Name, wire.Call{Run: l.job.Run, Kind: kindRoster, Body: r.document}); err != nil {
		fail(err)
		return
	}
	l.mu.Lock()
	if l.roster.digest == r.digest {
		l.known[m.Name] = true
	}
	waiting := l.site(m.Name).Verdict == Waiting
	l.mu.Unlock()
	if !waiting {
		return
	}
	model, err := wire.File(filepath.Join(l.dir, modelFile))
	if err != nil {
		fail(err)
		return
	}
	// The answer comes when a person has decided, which may take days and any
	// number of connections.
	reply, err := l.wire.Ask(ctx, m.Name, wire.Call{Run: l.job.Run, Kind: kindDecide, Body: l.job.document, Bulk: model})
	if err != nil {
		fail(err)
		return
	}
	if err := l.consent(m, reply); err != nil {
		fail(err)
	}
}

// listening is a link that remembers why an order was not followed. It does not
// wait for a site that is not on the list any more, nor, until the deadline, for one
// whose link is down.
type listening struct {
	federate.Link
	leader *leader
}

func (w listening) Ask(ctx context.Context, o federate.Order) (federate.Answer, error) {
	asking, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go w.watch(asking, cancel)
	answer, err := w.Link.Ask(asking, o)
	if cause := context.Cause(asking); err != nil && ctx.Err() == nil && cause != nil {
		err = cause
	}
	if err != nil && o.Step != federate.StepEnd {
		w.leader.mu.Lock()
		w.leader.failed[w.Name()] = brief(err)
		w.leader.mu.Unlock()
	}
	return answer, err
}

// watch ends an order to a site that has gone.
func (w listening) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	patience := max(w.leader.job.Terms.Deadline/10, 10*time.Second)
	seen := time.Now()
	for pause(ctx, glance) == nil {
		if r, err := w.leader.current(); err == nil {
			if _, listed := r.Site(w.Name()); !listed {
				cancel(errors.New("the site was removed"))
				return
			}
		}
		if slices.Contains(w.leader.wire.Connected(), w.Name()) {
			seen = time.Now()
		} else if time.Since(seen) > patience {
			cancel(fmt.Errorf("the link is down for %v", patience))
			return
		}
	}
}

// brief is what a site said itself, without the way that it went.
func brief(err error) string {
	text := err.Error()
	for _, mark := range []string{wire.ErrRefused.Error() + ": ", wire.ErrFailed.Error() + ": "} {
		if at := strings.LastIndex(text, mark); at >= 0 {
			text = text[at+len(mark):]
		}
	}
	return text
}

// round runs an attempt at a round and records it.
func (l *leader) round(ctx context.Context) (RoundLine, error) {
	l.mu.Lock()
	l.status.State, l.status.Why = Running, ""
	l.failed = map[string]string{}
	var links []federate.Link
	for _, name := range l.present() {
		if l.known[name] {
			links = append(links, listening{wire.Link(l.wire, l.job.Run, name), l})
		}
	}
	version := l.roster.Version
	l.mu.Unlock()
	if err := l.save(); err != nil {
		return RoundLine{}, err
	}
	began := time.Now()
	out, err := l.coordinator.Round(ctx, links)
	if ctx.Err() != nil {
		return RoundLine{}, ctx.Err()
	}
	line := RoundLine{Outcome: out, Roster: version, Time: l.now().UTC().Truncate(time.Millisecond)}
	if err != nil {
		line.Failed = err.Error()
		l.Logger.Warn("an attempt at a round has no result", "run", l.job.Run, "round", out.Index+1, "error", err)
	} else if l.judge != nil && (l.coordinator.Rounds()%max(1, l.local.Every) == 0 || l.coordinator.Done()) {
		if line.AUC, err = l.judge.auc(ctx, l.coordinator.Published()); err != nil {
			return line, err
		}
	}
	if every := l.local.AtSites; err == nil && every > 0 && (l.coordinator.Rounds()%every == 0 || l.coordinator.Done()) {
		m := l.job.Model
		e, asking := l.coordinator.Evaluate(ctx, links, federate.EvaluationOptions{Classes: m.like().Classes, Labels: m.Multi})
		if ctx.Err() != nil {
			return line, ctx.Err()
		}
		if asking != nil { // the round counts all the same
			l.Logger.Warn("the sites could not judge the model", "run", l.job.Run, "error", asking)
		} else {
			line.AtSites = &e
		}
	}
	line.Elapsed = time.Since(began)
	if recording := appendLine(filepath.Join(l.dir, roundsFile), line); recording != nil {
		return line, recording
	}
	l.note(line)
	if saving := l.save(); saving != nil {
		return line, saving
	}
	if err == nil {
		l.Logger.Info("round", "run", l.job.Run, "round", out.Index+1, "of", l.job.Terms.Rounds, "sites", out.Sites, "lost", len(out.Lost), "loss", out.Loss, "took", line.Elapsed.Round(time.Millisecond))
	}
	return line, err
}

// note brings the status up to date after an attempt.
func (l *leader) note(line RoundLine) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.Round = l.coordinator.Rounds()
	if line.AUC != nil {
		l.status.AUC = line.AUC
	}
	if line.AtSites != nil {
		l.status.AtSites = &line.AtSites.AUC
	}
	if line.Failed != "" {
		l.status.Why = line.Failed
	} else if l.job.Terms.DP == nil {
		l.status.Loss = &line.Loss
	}
	for _, g := range line.Groups {
		for _, name := range g.Survivors {
			s := l.site(name)
			s.Held = (s.Held*float64(s.Sums) + g.Held) / float64(s.Sums+1)
			s.Sums++
			s.Failure = ""
		}
	}
	for _, score := range l.coordinator.Scores() {
		l.site(score.Site).Named = score.Named
	}
	for _, name := range line.Lost {
		s := l.site(name)
		s.Lost++
		if s.Failure = l.failed[name]; s.Failure == "" {
			s.Failure = "no answer within the deadline"
		}
	}
}

// save keeps the status, if it has changed.
func (l *leader) save() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.Updated = time.Time{}
	data, err := json.Marshal(l.status)
	if err != nil {
		return fmt.Errorf("consortium: keeping how run %q stands: %w", l.status.Run, err)
	}
	l.status.Updated = l.now().UTC().Truncate(time.Millisecond)
	if string(data) == string(l.written) {
		return nil
	}
	l.written = data
	return l.putStatus(l.status)
}

// fillGap records a round whose result was kept and whose record was not,
// because the process ended in between.
func (l *leader) fillGap() error {
	lines, err := readRounds(filepath.Join(l.dir, roundsFile))
	if err != nil {
		return err
	}
	recorded := 0
	for _, line := range lines {
		if line.Failed == "" {
			recorded++
		}
	}
	l.status.Round = l.coordinator.Rounds()
	if recorded >= l.coordinator.Rounds() {
		return nil
	}
	line := RoundLine{Roster: l.roster.Version, Time: l.now().UTC().Truncate(time.Millisecond)}
	line.Index, line.Lost = l.coordinator.Index()-1, []string{}
	line.Groups = []federate.GroupOutcome{}
	return appendLine(filepath.Join(l.dir, roundsFile), line)
}

// cutTorn removes a last line whose writing was cut off.
func cutTorn(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("consortium: opening the rounds: %w", err)
	}
	defer f.Close()
	whole, reader := int64(0), bufio.NewReader(f)
	for {
		line, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return f.Truncate(whole)
		}
		if err != nil {
			return fmt.Errorf("consortium: reading the rounds: %w", err)
		}
		whole += int64(len(line))
	}
}

func appendLine(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("consortium: recording a round: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("consortium: recording a round: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// readRounds reads what appendLine wrote; a last line that was cut off is left
// out.
func readRounds(path string) ([]RoundLine, error) {
	lines := []RoundLine{}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return lines, nil
	}
	if err != nil {
		return nil, fmt.Errorf("consortium: reading the rounds: %w", err)
	}
	defer f.Close()
	reader := bufio.NewReaderSize(f, 1<<20)
	for {
		data, err := reader.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return lines, nil
		}
		if err != nil {
			return lines, fmt.Errorf("consortium: reading the rounds: %w", err)
		}
		var line RoundLine
		if err := json.Unmarshal(data, &line); err != nil {
			return lines, fmt.Errorf("consortium: reading the rounds: line %d: %w", len(lines)+1, err)
		}
		lines = append(lines, line)
	}
}
