package consortium

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie/federate"
)

// Site is a hospital's folder.
//
//	site.json        which consortium, under which name, and the key that is pinned
//	policy.yaml      the consortium's policy, as agreed to
//	rules.yaml       what this hospital allows; edit it at any time
//	roster.json      the list of sites
//	known.json       the sites that the data owner has seen: on joining, or approving
//	keys/            of signatures and TLS, made here
//	jobs/RUN/        each job, with the decision on it and what came of it
//	ledger.jsonl     what was spent of the privacy budget
//	left.jsonl       everything that left
//	stop             is there while the site is stopped
type Site struct {
	siteSettings
	dir    string
	keys   keyFolder
	signer crypto.Signer
	policy Policy
}

type siteSettings struct {
	Consortium string            `json:"consortium"`
	Name       string            `json:"site"`
	URL        string            `json:"url"`
	Key        ed25519.PublicKey `json:"key"` // of the consortium
	Policy     Digest            `json:"policy"`
}

const (
	siteFile     = "site.json"
	rulesFile    = "rules.yaml"
	ledgerFile   = "ledger.jsonl"
	leftFile     = "left.jsonl"
	knownFile    = "known.json"
	stopFile     = "stop"
	stopSeenFile = "stop.seen"
	jobFile      = "job.json"
	modelFile    = "model.onnx"
	decideFile   = "decision.json"
	resultFile   = "provenance.json"
	weightsFile  = "weights.safetensors"
)

// settingsOf reads which site a folder is of.
func settingsOf(dir string) (*Site, error) {
	s := &Site{dir: dir, keys: keyFolder(filepath.Join(dir, "keys"))}
	fail := func(err error) (*Site, error) {
		return nil, fmt.Errorf("consortium: opening the site in %s: %w", dir, err)
	}
	data, err := readLimited(filepath.Join(dir, siteFile), maxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(fmt.Errorf("%w: it has no %s; make one with vigie site join", ErrFolder, siteFile))
	}
	if err != nil {
		return fail(err)
	}
	if err := strict(data, &s.siteSettings); err != nil {
		return fail(err)
	}
	return s, nil
}

// OpenSite opens a site's folder.
func OpenSite(dir string) (*Site, error) {
	s, err := settingsOf(dir)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Site, error) {
		return nil, fmt.Errorf("consortium: opening the site in %s: %w", dir, err)
	}
	text, err := readLimited(filepath.Join(dir, policyFile), maxPolicy)
	if err != nil {
		return fail(err)
	}
	if DigestOf(text) != s.Policy {
		return fail(fmt.Errorf("%w: %s is not the policy that this site agreed to; this hospital's own rules are in %s", ErrPolicy, policyFile, rulesFile))
	}
	if s.policy, err = ParsePolicy(text); err != nil {
		return nil, err
	}
	if s.signer, err = s.keys.key(signingFile); err != nil {
		return nil, err
	}
	return s, nil
}

// Dir is the folder.
func (s *Site) Dir() string { return s.dir }

func (s *Site) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// Rules are what the data owner allows now.
func (s *Site) Rules() (Rules, error) {
	data, err := readLimited(s.path(rulesFile), maxPolicy)
	if err != nil {
		return Rules{}, fmt.Errorf("consortium: reading the rules of %q: %w", s.Name, err)
	}
	return ParseRules(data)
}

func (s *Site) roster() (signedRoster, error) {
	document, err := readLimited(s.path(rosterFile), maxDocument)
	if err != nil {
		return signedRoster{}, fmt.Errorf("consortium: reading the list of sites at %q: %w", s.Name, err)
	}
	return readRoster(document, s.Key)
}

// Roster is the list of sites that this site goes by.
func (s *Site) Roster() (Roster, error) {
	r, err := s.roster()
	return r.Roster, err
}

// take goes on by another list of sites.
func (s *Site) take(document []byte) (signedRoster, string, error) {
	next, err := readRoster(document, s.Key)
	if err != nil {
		return signedRoster{}, "", err
	}
	known, err := s.roster()
	if err != nil {
		return signedRoster{}, "", err
	}
	if err := next.follows(known); err != nil {
		return signedRoster{}, "", err
	}
	if next.digest == known.digest {
		return known, "", nil
	}
	keeper, err := federate.Folder(s.dir)
	if err != nil {
		return signedRoster{}, "", err
	}
	return next, next.changes(known.Roster), keeper.Put(rosterFile, next.document)
}

// stopped says who stopped the site, and when; nil: it works.
func (s *Site) stopped() error {
	data, err := readLimited(s.path(stopFile), 4096)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil: // whatever is there stops
		return fmt.Errorf("consortium: %w: %w", ErrStopped, err)
	}
	return fmt.Errorf("consortium: %w: %s", ErrStopped, strings.TrimSpace(string(data)))
}

// Stop is the kill switch: when it returns nil, nothing leaves the site any more,
// also of a round that is under way, until Resume. If a process runs the site,
// Stop waits until it has cut the link; while it waits nothing new leaves. A file
// that is there by any other means does the same.
func (s *Site) Stop(ctx context.Context, by, reason string) error {
	keeper, err := federate.Folder(s.dir)
	if err != nil {
		return err
	}
	text := "stopped by " + by + " on " + time.Now().UTC().Format(time.RFC3339Nano)
	if reason != "" {
		text += ": " + reason
	}
	text += "\n"
	if err := keeper.Put(stopFile, []byte(text)); err != nil {
		return err
	}
	for {
		if lock, err := s.lock(); err == nil { // nobody runs the site
			return lock.Close()
		}
		if seen, err := keeper.Get(stopSeenFile); err != nil || string(seen) == text {
			return err
		}
		if err := pause(ctx, glance/4); err != nil {
			return fmt.Errorf("consortium: stopping %q: it is stopped, and the process that runs it has not confirmed yet: %w", s.Name, err)
		}
	}
}

// confirmStop says to whoever stops the site that the link is cut.
func (s *Site) confirmStop() error {
	keeper, err := federate.Folder(s.dir)
	if err != nil {
		return err
	}
	text, err := keeper.Get(stopFile)
	if err != nil || text == nil {
		return err
	}
	return keeper.Put(stopSeenFile, text)
}

// Resume ends Stop. It is no error if the site was not stopped.
func (s *Site) Resume() error {
	if err := os.Remove(s.path(stopFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("consortium: letting %q go on: %w", s.Name, err)
	}
	return syncFolder(s.dir)
}

// JobAt is a job as a site knows it.
type JobAt struct {
	Job
	Digest   Digest    `json:"digest"`
	Verdict  Verdict   `json:"verdict"`
	Decision *Decision `json:"decision,omitempty"`
	Why      string    `json:"why,omitempty"`  // it waits for a person, or cannot be approved
	Over     bool      `json:"over,omitempty"` // the result has arrived
	// Members are the sites that an approval would be of now, Strangers those that
	// have joined since it was approved.
	Members   []Peer   `json:"members"`
	Strangers []string `json:"strangers,omitempty"`
}

// Jobs lists all jobs that the site has received, the newest first.
func (s *Site) Jobs() (Jobs, error) {
	entries, err := os.ReadDir(s.path("jobs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("consortium: listing the jobs of %q: %w", s.Name, err)
	}
	jobs := Jobs{}
	for _, e := range entries {
		j, err := s.job(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is arriving
		}
		if err != nil {
			return nil, err
		}
		at, err := s.at(j)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, at)
	}
	slices.SortFunc(jobs, func(a, b JobAt) int {
		if c := b.Time.Compare(a.Time); c != 0 {
			return c
		}
		return strings.Compare(a.Run, b.Run)
	})
	return jobs, nil
}

// job reads a job that the site has received.
func (s *Site) job(run string) (signedJob, error) {
	if err := checkName("run", run); err != nil {
		return signedJob{}, err
	}
	document, err := readLimited(s.path("jobs", run, jobFile), maxDocument)
	if err != nil {
		return signedJob{}, fmt.Errorf("consortium: reading job %q at %q: %w", run, s.Name, err)
	}
	return readJob(document, s.Key)
}

func (s *Site) at(j signedJob) (JobAt, error) {
	at := JobAt{Job: j.Job, Digest: j.digest, Verdict: Waiting}
	rules, err := s.Rules()
	if err != nil {
		return at, err
	}
	d, _, err := s.decision(j)
	if err != nil {
		return at, err
	}
	switch {
	case d != nil:
		at.Verdict, at.Decision = d.Verdict, d
	case s.allows(j, rules) != nil:
		at.Why = s.allows(j, rules).Error()
	default:
		if at.Why = rules.Approves(j.Job); at.Why == "" {
			at.Why = s.unseen(rules)
		}
	}
	roster, err := s.roster()
	if err != nil {
		return at, err
	}
	at.Members = roster.peers()
	if d != nil && d.Verdict == Approved && rules.Joins != JoinsAccept {
		if at.Strangers = roster.strangers(d.Members); at.Strangers != nil {
			at.Why = joined(at.Strangers)
		}
	}
	if _, err := os.Stat(s.path("jobs", j.Run, resultFile)); err == nil {
		at.Over = true
	}
	return at, nil
}

// allows holds a job against all that no approval makes up for.
func (s *Site) allows(j signedJob, rules Rules) error {
	r, err := s.roster()
	if err != nil {
		return err
	}
	switch {
	case j.Consortium != s.Consortium || j.Policy != s.Policy:
		return fmt.Errorf("consortium: holding job %s against what this site agreed to: %w: it is of %q, or of another policy", j.Run, ErrPolicy, j.Consortium)
	case len(r.Sites) >= j.Terms.Minimum: // with fewer, no round begins
		if err := j.Terms.Check(len(r.Sites)); err != nil {
			return err
		}
	}
	if err := s.policy.Allows(j.Job); err != nil {
		return err
	}
	return rules.Allow(j.Job)
}

// affords returns an error that wraps ErrBudget for a job all of whose attempts
// together would cost more than what is left.
func (s *Site) affords(j signedJob, rules Rules) error {
	run, unit, stated := j.spends()
	if !stated {
		return nil
	}
	entries, _, err := readEntries[Charge](s, ledgerFile, ledgerName)
	if err != nil {
		return err
	}
	var b book
	for _, e := range entries {
		b.note(e.What)
	}
	return b.fits(unit, run, rules.Budget)
}

// decision is what was decided on a job; nil: nothing yet.
func (s *Site) decision(j signedJob) (*Decision, []byte, error) {
	document, err := readLimited(s.path("jobs", j.Run, decideFile), maxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("consortium: reading the decision on %q: %w", j.Run, err)
	}
	d, err := readDecision(document, Member{Name: s.Name, Key: s.signer.Public().(ed25519.PublicKey)}, j)
	return &d, document, err
}

// Decide approves or refuses a job, in the name of a person. A job that is
// under way and is refused gets nothing more.
func (s *Site) Decide(run string, v Verdict, by, reason string) (Decision, error) {
	j, err := s.job(run)
	if errors.Is(err, fs.ErrNotExist) {
		return Decision{}, fmt.Errorf("consortium: deciding on %q at %q: no such job has arrived; see vigie site jobs", run, s.Name)
	}
	if err != nil {
		return Decision{}, err
	}
	if err := checkText(by); err != nil {
		return Decision{}, fmt.Errorf("consortium: deciding on %q: the name of who decides %w", run, err)
	}
	if v == Approved {
		rules, err := s.Rules()
		if err != nil {
			return Decision{}, err
		}
		if err := errors.Join(s.allows(j, rules), s.affords(j, rules)); err != nil {
			return Decision{}, err
		}
	}
	d, _, err := s.decide(j, v, by, reason)
	if err == nil && v == Approved {
		err = s.see(d.Members)
	}
	return d, err
}

// see keeps which sites the data owner has seen.
func (s *Site) see(members []Peer) error {
	keeper, err := federate.Folder(s.dir)
	if err != nil {
		return err
	}
	return keeper.Put(knownFile, marshal(members))
}

// unseen says why the list of sites is for a person to look at before a standing
// approval covers a job; empty if it is not.
func (s *Site) unseen(rules Rules) string {
	if rules.Joins == JoinsAccept {
		return ""
	}
	roster, err := s.roster()
	if err != nil {
		return err.Error()
	}
	var seen []Peer
	if data, err := readLimited(s.path(knownFile), maxDocument); err == nil {
		if err := strict(data, &seen); err != nil {
			return fmt.Sprintf("%s is damaged: %v", knownFile, err)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err.Error()
	}
	if strangers := roster.strangers(seen); strangers != nil {
		return joined(strangers)
	}
	return ""
}

// joined says what to do about sites that have joined.
func joined(strangers []string) string {
	return fmt.Sprintf("%s joined, or got new keys, after the data owner last approved; approve again, or allow it by joins: %s in %s", strings.Join(strangers, ", "), JoinsAccept, rulesFile)
}

// shares returns an error that wraps ErrPolicy if a round's group names a site that
// the approval of its job is not of. The roster is the one that the round goes by.
func (s *Site) shares(d Decision, rules Rules, r Roster, group []string) error {
	if rules.Joins == JoinsAccept {
		return nil
	}
	var strangers []string
	for _, name := range group {
		if m, listed := r.Site(name); !listed || !knows(d.Members, m) {
			strangers = append(strangers, name)
		}
	}
	if strangers == nil {
		return nil
	}
	return fmt.Errorf("consortium: following run %q at %q: %w: %s", d.Run, s.Name, ErrPolicy, joined(strangers))
}

// renewed is a decision that is of the current list of sites, too, if it need not
// wait for a person.
func (s *Site) renewed(j signedJob, d *Decision, document []byte) (*Decision, []byte, error) {
	rules, err := s.Rules()
	if err != nil || d.Verdict != Approved {
		return d, document, err
	}
	roster, err := s.roster()
	switch {
	case err != nil:
		return nil, nil, err
	case rules.Joins == d.Joins && (d.Joins == JoinsAccept || roster.strangers(d.Members) == nil):
		return d, document, nil
	case rules.Joins == JoinsAccept || roster.strangers(d.Members) == nil:
		again, document, err := s.decide(j, Approved, d.By, d.Reason)
		return &again, document, err
	}
	return nil, nil, nil
}

func (s *Site) decide(j signedJob, v Verdict, by, reason string) (Decision, []byte, error) {
	r, err := s.roster()
	if err != nil {
		return Decision{}, nil, err
	}
	rules, err := s.Rules()
	if err != nil {
		return Decision{}, nil, err
	}
	d := Decision{s.Name, j.Run, j.digest, v, by, reason, r.Version, r.peers(), rules.Joins, time.Now().UTC().Truncate(time.Second)}
	document, err := sign(s.signer, DecisionType, d)
	if err != nil {
		return d, nil, err
	}
	keeper, err := federate.Folder(s.path("jobs", j.Run))
	if err != nil {
		return d, nil, err
	}
	return d, document, keeper.Put(decideFile, document)
}

// standing decides by the rules, if they cover the job.
func (s *Site) standing(j signedJob) (*Decision, []byte, error) {
	d, document, err := s.decision(j)
	if err != nil || d != nil {
		return d, document, err
	}
	rules, err := s.Rules()
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(s.allows(j, rules), s.affords(j, rules)); err != nil {
		d, document, err := s.decide(j, Refused, "rules", err.Error())
		return &d, document, err
	}
	if rules.Approves(j.Job) == "" && s.unseen(rules) == "" {
		d, document, err := s.decide(j, Approved, "rules", "")
		return &d, document, err
	}
	return nil, nil, nil
}

// receive keeps a job. One of a run that is known must be the same.
func (s *Site) receive(document []byte, model func(path string) error) (signedJob, error) {
	j, err := readJob(document, s.Key)
	if err != nil {
		return signedJob{}, err
	}
	if known, err := s.job(j.Run); err == nil {
		if known.digest != j.digest {
			return signedJob{}, fmt.Errorf("consortium: receiving job %q at %q: %w: another job of this name is known", j.Run, s.Name, ErrDocument)
		}
		return known, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return signedJob{}, err
	}
	if err := s.stores(j.Model.Bytes, true); err != nil {
		return signedJob{}, err
	}
	dir := s.path("jobs", j.Run)
	keeper, err := federate.Folder(dir)
	if err != nil {
		return signedJob{}, err
	}
	path := filepath.Join(dir, modelFile)
	if err := model(path); err != nil {
		return signedJob{}, err
	}
	return j, keeper.Put(jobFile, j.document) // last: a job that is there is whole
}

// Ledger reads what was spent, after it has verified the ledger.
func (s *Site) Ledger() (Accounts, error) {
	var a Accounts
	rules, err := s.Rules()
	if err != nil {
		return a, err
	}
	if a.Entries, a.Head, err = readEntries[Charge](s, ledgerFile, ledgerName); err != nil {
		return a, err
	}
	var b book
	for _, e := range a.Entries {
		b.note(e.What)
	}
	a.Spent, err = b.spent(rules.Budget)
	return a, err
}

// Left reads the log of what left, after it has verified it.
func (s *Site) Left() (Log, error) {
	var l Log
	var err error
	l.Entries, l.Head, err = readEntries[Left](s, leftFile, leftName)
	return l, err
}

func readEntries[T any](s *Site, file, name string) ([]Entry[T], Head, error) {
	entries, head := []Entry[T]{}, Head{Chain: name, Site: s.Name}
	f, err := os.Open(s.path(file))
	if errors.Is(err, fs.ErrNotExist) {
		return entries, head, nil
	}
	if err != nil {
		return nil, head, fmt.Errorf("consortium: reading the %s: %w", name, err)
	}
	defer f.Close()
	if _, err := readChain(f, name, s.Name, s.signer.Public().(ed25519.PublicKey), func(e Entry[T], digest Digest) {
		entries = append(entries, e)
		head.Entries, head.Last = e.Number, digest
	}); err != nil {
		return entries, head, fmt.Errorf("consortium: reading the %s of %q: %w", name, s.Name, err)
	}
	return entries, head, nil
}

// Certificate says until when the site's certificate is good.
func (s *Site) Certificate() (time.Time, error) {
	c, err := s.keys.certificate(tlsFile)
	if err != nil {
		return time.Time{}, err
	}
	return c.NotAfter, nil
}

func marshal(v any) json.RawMessage {
	data, err := json.Marshal(v)
	if err != nil {
		panic("consortium: " + err.Error()) // of our own types, which have no such values
	}
	return data
}
