package consortium

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie/federate"
)

func TestHospitalsJoinDecideAndTrainAndTheResultSaysWhereItComesFrom(t *testing.T) {
	n := newNorth(t, nil)
	n.network()
	sites := n.sites("lyon", "nantes")
	careful := n.join("metz") // whose owner decides by hand
	for _, s := range append(sites, careful) {
		n.work(s, RunOptions{})
	}
	j := n.ask("first", 3, func(o *StartOptions) {
		o.Local.Evaluation.Data, o.Local.Split, o.Local.Every = n.examples("judge"), "val", 1
		o.Local.AtSites = 2
	})
	n.until("the job is at metz", func() bool {
		jobs, err := careful.Jobs()
		if err != nil {
			t.Fatal(err)
		}
		return len(jobs) == 1 && jobs[0].Verdict == Waiting && jobs[0].Purpose == "bright sides"
	})
	if s, _, _ := n.consortium.Status("first"); s.State != Gathering || s.Round != 0 {
		t.Errorf("the run is %s at round %d while a site has not decided", s.State, s.Round)
	}
	if _, err := careful.Decide("first", Approved, "Dr Owner", "reviewed"); err != nil {
		t.Fatal(err)
	}
	status := n.stands("first", Done)
	n.until("everybody has the result", func() bool {
		status, _, _ = n.consortium.Status("first")
		for _, s := range status.Sites {
			if !s.Received {
				return false
			}
		}
		return true
	})
	if status.AtSites == nil || status.AtSites.Value < 0.9 {
		t.Errorf("the sites judge the model at %+v", status.AtSites)
	}
	replayed, err := federate.ReplayRun(t.Context(), federate.ReplayOptions{Dir: n.consortium.runsDir("first", transcript), Coordinator: n.consortium.Key()})
	if err != nil {
		t.Errorf("the run's transcript: %v", err)
	} else if len(replayed.Attempts) != 5 { // and two questions
		t.Errorf("the transcript has %d attempts", len(replayed.Attempts))
	}
	for _, s := range status.Sites {
		if s.Sums != 3 || s.Lost != 0 {
			t.Errorf("%s was in %d sums and lost in %d: %s", s.Name, s.Sums, s.Lost, s.Failure)
		}
	}
	r, err := n.consortium.ReadResult("first")
	if err != nil {
		t.Fatal(err)
	}
	model, err := os.ReadFile(n.consortium.runsDir("first", "result", modelFile))
	if err != nil {
		t.Fatal(err)
	}
	if DigestOf(model) != r.Model || r.Rounds != 3 || len(r.Sites) != 3 || r.Initial != j.Model.SHA256 || r.AUC == nil {
		t.Errorf("the statement is %+v", r)
	}
	if r.Model == r.Initial || r.AUC.Value < 0.9 {
		t.Errorf("AUC %g: nothing was learnt", r.AUC.Value)
	}
	for _, s := range append(sites, careful) {
		got, err := os.ReadFile(s.path("jobs", "first", "result.onnx"))
		if err != nil || !bytes.Equal(got, model) {
			t.Errorf("%s has another model: %v", s.Name, err)
		}
		log, err := s.Left()
		if err != nil {
			t.Fatal(err)
		}
		vectors := 0
		for _, e := range log.Entries {
			if e.What.BulkSHA != nil {
				vectors++
			}
		}
		if vectors != 5 {
			t.Errorf("the log of %s has %d masked vectors, 3 left of training and 2 of evaluation", s.Name, vectors)
		}
		accounts, err := s.Ledger()
		if err != nil || len(accounts.Entries) != 5 {
			t.Errorf("the ledger of %s has %d entries, %v; it answered five times with a sum", s.Name, len(accounts.Entries), err)
		}
	}
	var out bytes.Buffer
	p, err := n.consortium.Progress("first")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.Write(&out), n.consortium.Watch(t.Context(), "first", Watcher{Out: &out})); err != nil || !strings.Contains(out.String(), "approved by Dr Owner") {
		t.Errorf("%v: %s", err, &out)
	}
}

func TestARunGoesOnAfterTheServerHasRestartedWithTheSameModel(t *testing.T) {
	n := newNorth(t, nil)
	n.network()
	for _, s := range n.sites("lyon", "metz", "nantes") {
		n.work(s, RunOptions{})
	}
	n.ask("calm", 6, nil)
	n.stands("calm", Done)
	n.ask("shaken", 6, nil)
	for round := range 3 {
		n.until("a round has ended", func() bool {
			s, _, err := n.consortium.Status("shaken")
			return err == nil && s.Round > round
		})
		n.end("server")
		n.serve()
	}
	n.stands("shaken", Done)
	a, err := n.consortium.ReadResult("calm")
	if err != nil {
		t.Fatal(err)
	}
	b, err := n.consortium.ReadResult("shaken")
	if err != nil {
		t.Fatal(err)
	}
	if a.Variables != b.Variables {
		t.Errorf("undisturbed %s, with restarts %s", a.Variables, b.Variables)
	}
}

func TestSitesComeAndGoBetweenRoundsWithoutARestartElsewhere(t *testing.T) {
	n := newNorth(t, nil)
	n.network()
	gate := make(chan struct{})
	for _, s := range n.sites("lyon", "metz", "nantes", "rouen") {
		o := RunOptions{}
		if s.Name == "lyon" { // holds the third round up until all has changed
			o = n.held(s, func(ctx context.Context, round int) {
				if round >= 2 {
					select {
					case <-gate:
					case <-ctx.Done():
					}
				}
			})
		}
		n.work(s, o)
	}
	n.ask("long", 8, nil)
	n.until("two rounds have ended", func() bool { s, _, err := n.consortium.Status("long"); return err == nil && s.Round == 2 })
	if _, err := n.consortium.Remove("rouen"); err != nil {
		t.Fatal(err)
	}
	brest := n.sites("brest")[0]
	n.work(brest, RunOptions{})
	n.until("brest is connected", func() bool { return n.connected() == 4 })
	close(gate)
	status := n.stands("long", Done)
	sums := map[string]int{}
	for _, s := range status.Sites {
		sums[s.Name] = s.Sums
	}
	if sums["lyon"] != 8 || sums["brest"] < 3 || sums["rouen"] < 2 || sums["rouen"] > 3 {
		t.Errorf("rounds by site: %v", sums)
	}
	lyon, err := OpenSite(n.siteDir("lyon"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := lyon.Roster()
	if err != nil {
		t.Fatal(err)
	}
	if _, there := r.Site("rouen"); there {
		t.Errorf("lyon still lists rouen, in version %d", r.Version)
	}
	if _, there := r.Site("brest"); !there {
		t.Errorf("lyon does not list brest, in version %d", r.Version)
	}
	rouen, err := OpenSite(n.siteDir("rouen"))
	if err != nil {
		t.Fatal(err)
	}
	if status := n.knock(rouen); status != http.StatusForbidden {
		t.Errorf("a removed site gets status %d", status)
	}
	if status := n.knock(lyon); status == http.StatusForbidden {
		t.Errorf("a listed site gets status %d", status)
	}
}

// held are options of a site that is told before it trains.
func (n *north) held(s *Site, before func(ctx context.Context, round int)) RunOptions {
	data := RunOptions{}
	data.Data.Data = n.examples(s.Name)
	o := data
	o.Trainer = func(ctx context.Context, j Job, model string) (federate.Trainer, func() error, error) {
		trainer, _, end, err := (&worker{Site: s, RunOptions: data}).trainer(ctx, signedJob{Job: j})
		return heldTrainer{trainer, before}, end, err
	}
	return o
}

type heldTrainer struct {
	federate.Trainer
	before func(context.Context, int)
}

func (h heldTrainer) Train(ctx context.Context, w federate.Work) (int, float64, error) {
	h.before(ctx, w.Round)
	if ctx.Err() != nil {
		return 0, 0, ctx.Err()
	}
	return h.Trainer.Train(ctx, w)
}

// connected is how many sites are, as a probe without a certificate hears.
func (n *north) connected() int {
	n.t.Helper()
	ca, err := n.consortium.keys.certificate(authorityFile)
	if err != nil {
		n.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	response, err := client.Get(n.consortium.URL + "/healthz")
	if err != nil {
		n.t.Fatal(err)
	}
	defer response.Body.Close()
	var health struct {
		Sites int `json:"sites_connected"`
	}
	if err := json.NewDecoder(response.Body).Decode(&health); err != nil {
		n.t.Fatal(err)
	}
	return health.Sites
}

func TestTheKillSwitchHoldsInTheMiddleOfARoundAndOverARestart(t *testing.T) {
	n := newNorth(t, nil)
	n.network()
	training, gate := make(chan struct{}, 10), make(chan struct{})
	all := n.sites("lyon", "metz", "nantes")
	lyon := all[0]
	held := n.held(lyon, func(ctx context.Context, round int) {
		if round == 1 {
			training <- struct{}{}
			select {
			case <-gate:
			case <-ctx.Done():
			}
		}
	})
	n.work(lyon, held)
	for _, s := range all[1:] {
		n.work(s, RunOptions{})
	}
	n.ask("held", 3, nil)
	<-training // lyon is in the middle of the second round
	if err := lyon.Stop(t.Context(), "Dr Owner", "ethics committee"); err != nil {
		t.Fatal(err)
	}
	before, err := lyon.Left()
	if err != nil {
		t.Fatal(err)
	}
	close(gate)
	n.end("lyon")
	n.work(lyon, RunOptions{})
	n.until("the server misses lyon", func() bool { return n.connected() == 2 })
	time.Sleep(5 * glance) // in which a site that is not stopped would connect
	if n.connected() != 2 {
		t.Error("a stopped site has connected after its restart")
	}
	after, err := lyon.Left()
	if err != nil {
		t.Fatal(err)
	}
	if after.Head != before.Head {
		t.Errorf("%d entries have left after the stop", after.Head.Entries-before.Head.Entries)
	}
	if s, _, _ := n.consortium.Status("held"); s.Round != 1 {
		t.Errorf("the run is at round %d", s.Round)
	}
	if err := lyon.Resume(); err != nil {
		t.Fatal(err)
	}
	if status := n.stands("held", Done); status.Sites[0].Sums != 3 { // it came back within the deadline
		t.Errorf("lyon was in %d sums", status.Sites[0].Sums)
	}
}

// knock asks the server for something as a site, and returns the HTTP status.
func (n *north) knock(s *Site) int {
	n.t.Helper()
	config, err := s.keys.files().Client("")
	if err != nil {
		n.t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	response, err := client.Get(s.URL + "/vigie.federate.wire.v1/down/00")
	if err != nil {
		n.t.Fatal(err)
	}
	response.Body.Close()
	return response.StatusCode
}

func TestAnInvitationIsGoodOnceForAWhileAndForOneSite(t *testing.T) {
	n := newNorth(t, nil)
	dir := func(name string) string { return filepath.Join(n.dir, "try", name) }
	invite := func(name string) []byte {
		t.Helper()
		document, err := n.consortium.Invite(name, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return document
	}
	apply := func(document []byte, name string) *Application {
		t.Helper()
		a, err := Apply(document, dir(name), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	first := invite("lyon")
	a := apply(first, "lyon")
	if _, _, err := n.consortium.Admit(a.Body()); err != nil {
		t.Fatal(err)
	}
	// the answer was lost: the same application gets another, and other keys none
	again := apply(first, "lyon")
	if !bytes.Equal(again.Body(), a.Body()) {
		t.Error("an application that is repeated has changed")
	}
	answer, _, err := n.consortium.Admit(again.Body())
	if err != nil {
		t.Errorf("the same application once more: %v", err)
	}
	if _, _, err := n.consortium.Admit(apply(first, "thief").Body()); !errors.Is(err, ErrInvitation) {
		t.Errorf("a used invitation with other keys: %v", err)
	}
	if _, err := again.Finish(answer); err != nil {
		t.Fatal(err)
	}
	if _, err := Apply(invite("metz"), dir("lyon"), time.Now()); !errors.Is(err, ErrFolder) {
		t.Errorf("a folder that is a site already: %v", err)
	}

	withdrawn := apply(invite("nantes"), "withdrawn")
	current := invite("nantes")
	if _, _, err := n.consortium.Admit(withdrawn.Body()); !errors.Is(err, ErrInvitation) {
		t.Errorf("a withdrawn invitation: %v", err)
	}
	forged := apply(current, "forged")
	var body application
	if err := json.Unmarshal(forged.Body(), &body); err != nil {
		t.Fatal(err)
	}
	body.Token[0] ^= 1
	if _, _, err := n.consortium.Admit(marshal(body)); !errors.Is(err, ErrInvitation) {
		t.Errorf("a wrong token: %v", err)
	}
	body.Token[0] ^= 1
	request, _, _, err := verify[Request](body.Request, RequestType, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Site = "brest" // an invitation of another site
	key, err := keyFolder(filepath.Join(dir("forged"), "keys")).key(signingFile)
	if err != nil {
		t.Fatal(err)
	}
	if body.Request, err = sign(key, RequestType, request); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.consortium.Admit(marshal(body)); !errors.Is(err, ErrInvitation) {
		t.Errorf("the invitation of another site: %v", err)
	}

	late, err := n.consortium.Invite("rouen", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	tardy := apply(late, "late")
	if _, err := Apply(late, dir("later"), time.Now().Add(2*time.Hour)); !errors.Is(err, ErrInvitation) {
		t.Errorf("an expired invitation at the hospital: %v", err)
	}
	n.consortium.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if _, _, err := n.consortium.Admit(tardy.Body()); !errors.Is(err, ErrInvitation) {
		t.Errorf("an expired invitation at the consortium: %v", err)
	}
	n.consortium.now = time.Now

	for at := range len(late) { // every byte of the file counts
		if at%7 != 0 {
			continue
		}
		changed := bytes.Clone(late)
		changed[at] ^= 0x11
		if i, err := ReadInvitation(changed); err == nil {
			if original, _ := ReadInvitation(late); fmt.Sprint(i) != fmt.Sprint(original) {
				t.Fatalf("byte %d was changed, and the invitation reads as %+v", at, i)
			}
		}
	}
	sites, err := n.consortium.Sites()
	if err != nil || len(sites.Roster.Sites) != 1 || len(sites.Invited) == 0 {
		t.Errorf("%+v, %v", sites, err)
	}
}

func TestJoiningNeedsTheServerThatTheInvitationNames(t *testing.T) {
	n := newNorth(t, nil)
	document, err := n.consortium.Invite("lyon", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	// another server at the same address, of another authority
	n.end("server")
	other, err := Create(filepath.Join(n.dir, "impostor"), Settings{Name: "north", URL: n.consortium.URL, Listen: n.address, Policy: DefaultPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	n.start("impostor", func(ctx context.Context) error { return other.Serve(ctx, ServeOptions{}) })
	n.until("the impostor listens", func() bool {
		c, err := net.Dial("tcp", n.address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	dir := filepath.Join(n.dir, "lyon")
	var unknown x509.UnknownAuthorityError
	var verification *tls.CertificateVerificationError
	if _, err := Join(t.Context(), document, dir); !errors.As(err, &unknown) && !errors.As(err, &verification) {
		t.Errorf("joining at an impostor: %v", err)
	}
	// what the impostor would answer is refused, too
	a, err := Apply(document, dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Invite("lyon", time.Hour); err != nil {
		t.Fatal(err)
	}
	ca, err := other.authority()
	if err != nil {
		t.Fatal(err)
	}
	var body application
	if err := json.Unmarshal(a.Body(), &body); err != nil {
		t.Fatal(err)
	}
	request, _, _, err := verify[Request](body.Request, RequestType, nil)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(request.TLS)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.site(csr.PublicKey, "lyon", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	roster, err := n.consortium.roster()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Finish(marshal(admission{der, roster.document})); !errors.Is(err, ErrDocument) {
		t.Errorf("a certificate of another authority: %v", err)
	}
	n.end("impostor")
	n.serve()
	n.until("the right server admits", func() bool { _, err = Join(t.Context(), document, dir); return err == nil })
}

func TestAListOfSitesDoesNotGoBackNorSplit(t *testing.T) {
	n := newNorth(t, nil)
	lyon := n.join("lyon")
	old, err := n.consortium.roster()
	if err != nil {
		t.Fatal(err)
	}
	n.join("metz")
	fresh, err := n.consortium.roster()
	if err != nil {
		t.Fatal(err)
	}
	if _, changes, err := lyon.take(fresh.document); err != nil || changes != "metz came" {
		t.Fatalf("%q, %v", changes, err)
	}
	if _, _, err := lyon.take(old.document); !errors.Is(err, ErrRoster) {
		t.Errorf("the list of before: %v", err)
	}
	for what, change := range map[string]func(*Roster){
		"another list of the same version":     func(r *Roster) { r.Sites = r.Sites[:1] },
		"a next version of another past":       func(r *Roster) { r.Version++; r.Previous = Digest{1} },
		"a list that goes with another policy": func(r *Roster) { r.Version += 2; r.Policy = Digest{1} },
		"a list of another consortium":         func(r *Roster) { r.Version += 2; r.Consortium = "south" },
	} {
		r := fresh.Roster
		change(&r)
		document, err := sign(n.consortium.signer, RosterType, r)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := lyon.take(document); !errors.Is(err, ErrRoster) {
			t.Errorf("%s: %v", what, err)
		}
	}
	forged, err := sign(lyon.signer, RosterType, Roster{Consortium: "north", Version: fresh.Version + 1, Previous: fresh.digest, Policy: fresh.Policy})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := lyon.take(forged); !errors.Is(err, ErrDocument) {
		t.Errorf("a list that a site has signed: %v", err)
	}
	if r, err := lyon.Roster(); err != nil || r.Version != fresh.Version || len(r.Sites) != 2 {
		t.Errorf("the site goes by version %d with %d sites, %v", r.Version, len(r.Sites), err)
	}
}

func TestJobsThatWereAlteredOrGoTooFarAreRefused(t *testing.T) {
	n := newNorth(t, func(p *Policy) { p.MaxRounds = 10 })
	lyon := n.join("lyon")
	n.rules(lyon, openRules)
	n.join("metz")
	n.join("nantes")
	base, err := n.consortium.roster()
	if err != nil {
		t.Fatal(err)
	}
	job := func(run string, change func(*Job)) []byte {
		t.Helper()
		j := Job{Version: 1, Run: run, Consortium: "north", Policy: base.Policy, Scientist: "Dr Example", Purpose: "bright sides", Time: time.Now().UTC(),
			Terms: federate.DefaultTerms(federation("north", run)), Model: Model{Bytes: 10, Example: []int64{4}, Outputs: 2}}
		j.Terms.Rounds = 5
		if change != nil {
			change(&j)
		}
		document, err := sign(n.consortium.signer, JobType, j)
		if err != nil {
			t.Fatal(err)
		}
		return document
	}
	none := func(string) error { return nil }
	for what, document := range map[string][]byte{
		"one byte is another":          bytes.Replace(job("a", nil), []byte(`"payload":"e`), []byte(`"payload":"f`), 1),
		"signed by somebody else":      func() []byte { d, _ := sign(lyon.signer, JobType, Job{}); return d }(),
		"with terms of another run":    job("a", func(j *Job) { j.Terms.Federation = "north.b" }),
		"with a purpose of two lines":  job("a", func(j *Job) { j.Purpose = "a\nb" }),
		"with a name that is a path":   job("..", nil),
		"of a version to come":         job("a", func(j *Job) { j.Version = 2 }),
		"that hides its direction":     job("a", func(j *Job) { j.Scientist = "Dr \u202eelpmaxE" }),
		"on examples of a wrong shape": job("a", func(j *Job) { j.Model.Example = []int64{0} }),
	} {
		if _, err := lyon.receive(document, none); !errors.Is(err, ErrDocument) {
			t.Errorf("a job %s: %v", what, err)
		}
	}
	for run, c := range map[string]struct {
		change  func(*Job)
		verdict Verdict
	}{
		"fits":        {nil, Approved},
		"too-long":    {func(j *Job) { j.Terms.Rounds = 11 }, Refused},     // the consortium's policy
		"other":       {func(j *Job) { j.Policy = Digest{7} }, Refused},    // than this site agreed to
		"two":         {func(j *Job) { j.Terms.Minimum = 2 }, Refused},     // sums of two sites
		"unknown":     {func(j *Job) { j.Scientist = "Dr Who" }, Waiting},  // a person decides
		"unpurposed":  {func(j *Job) { j.Purpose = "something" }, Waiting}, //
		"own-code":    {func(j *Job) { j.Trainer = &Code{About: "train.py"} }, Waiting},
		"questioning": {func(j *Job) { j.Terms.Tasks, j.Terms.Questions = []federate.Task{federate.TaskCalibrate}, 5 }, Waiting},
	} {
		j, err := lyon.receive(job(run, c.change), none)
		if err != nil {
			t.Fatalf("%s: %v", run, err)
		}
		d, _, err := lyon.standing(j)
		if err != nil {
			t.Fatalf("%s: %v", run, err)
		}
		got := Waiting
		if d != nil {
			got = d.Verdict
		}
		if got != c.verdict {
			t.Errorf("%s: %s, want %s: %+v", run, got, c.verdict, d)
		}
		if c.verdict == Refused {
			if _, err := lyon.Decide(run, Approved, "Dr Owner", ""); err == nil {
				t.Errorf("%s: a person could approve what the hospital did not agree to", run)
			}
		}
	}
	if _, err := lyon.receive(job("fits", func(j *Job) { j.Purpose = "bright sides, and more" }), none); !errors.Is(err, ErrDocument) {
		t.Errorf("another job of a known name: %v", err)
	}
	if jobs, err := lyon.Jobs(); err != nil || len(jobs) != 8 {
		t.Errorf("%d jobs, %v", len(jobs), err)
	}
	w := &worker{Site: lyon, runs: map[string]*siteRun{}}
	if _, err := w.approved("fits"); err != nil {
		t.Errorf("an approved job: %v", err)
	}
	for _, run := range []string{"unknown", "too-long", "never-arrived"} {
		if _, err := w.approved(run); !errors.Is(err, errNoDecision) {
			t.Errorf("%s is followed: %v", run, err)
		}
	}
	if _, err := lyon.Decide("fits", Refused, "Dr Owner", "we have changed our mind"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.approved("fits"); !errors.Is(err, errNoDecision) {
		t.Errorf("a job whose approval was taken back is followed: %v", err)
	}
}
