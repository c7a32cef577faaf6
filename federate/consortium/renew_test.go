package consortium

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vigie/vigie/dp"
	"github.com/vigie/vigie/federate"
)

func TestASiteThatJoinsAgainKeepsWhatItHasSpentSaidAndEntered(t *testing.T) {
	n := newNorth(t, nil)
	n.network()
	for _, s := range n.sites("lyon", "metz", "nantes") {
		n.work(s, RunOptions{})
	}
	n.ask("before", 2, nil)
	n.stands("before", Done)
	n.until("lyon has the result", func() bool { s, _, _ := n.consortium.Status("before"); return s.Sites[0].Received })
	n.end("lyon")
	lyon, err := OpenSite(n.siteDir("lyon"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := lyon.openLedger()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.enter(Charge{Federation: "north.old", Round: 7, Unit: federate.Patient, Run: &dp.Run{Sigma: 1, Rate: 0.1, Steps: 1}}); err != nil {
		t.Fatal(err)
	}
	l.close()
	accounts, err := lyon.Ledger()
	if err != nil {
		t.Fatal(err)
	}
	said, err := lyon.Left()
	if err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile(lyon.path(rulesFile))
	if err != nil {
		t.Fatal(err)
	}
	entered, err := os.ReadFile(lyon.path("jobs", "before", "rounds", siteFile))
	if err != nil {
		t.Fatal(err)
	}

	if _, err := n.consortium.Remove("lyon"); err != nil {
		t.Fatal(err)
	}
	again := n.join("lyon") // the same folder
	if again.signer.Public().(ed25519.PublicKey).Equal(lyon.signer.Public()) {
		t.Fatal("it has its former key")
	}
	for range 2 { // as well after another renewal
		a, err := again.Ledger()
		if err != nil || a.Spent[0].Epsilon != accounts.Spent[0].Epsilon || a.Spent[0].Epsilon == 0 {
			t.Fatalf("it has spent %+v, and before %+v: %v", a.Spent, accounts.Spent, err)
		}
		log, err := again.Left()
		if err != nil || len(log.Entries) <= len(said.Entries) || !slices.EqualFunc(log.Entries[:len(said.Entries)], said.Entries, func(a, b Entry[Left]) bool { return a.What.SHA == b.What.SHA && a.Number == b.Number }) {
			t.Fatalf("the log has %d entries, and had %d: %v", len(log.Entries), len(said.Entries), err)
		}
		var out bytes.Buffer
		if err := errors.Join(a.Write(&out), log.Write(&out)); err != nil || bytes.Count(out.Bytes(), []byte("new keys")) < 2 {
			t.Errorf("%v: %s", err, &out)
		}
		if now, err := os.ReadFile(again.path(rulesFile)); err != nil || !bytes.Equal(now, rules) {
			t.Errorf("its rules are %s, %v", now, err)
		}
		jobs, err := again.Jobs()
		if err != nil || len(jobs) != 1 || jobs[0].Verdict != Approved || !jobs[0].Over {
			t.Errorf("its jobs are %+v, %v", jobs, err)
		}
		if _, err := n.consortium.Remove("lyon"); err != nil {
			t.Fatal(err)
		}
		again = n.join("lyon")
	}
	if now, err := os.ReadFile(again.path("jobs", "before", "rounds", siteFile)); err != nil || !bytes.Contains(now, []byte(`"round":`)) || len(now) >= len(entered) {
		t.Errorf("what it keeps of its rounds: %.60s, %v", now, err)
	}
	n.work(again, RunOptions{})
	n.ask("after", 2, nil)
	if s := n.stands("after", Done); s.Sites[0].Sums != 2 {
		t.Errorf("lyon was in %d sums: %s", s.Sites[0].Sums, s.Sites[0].Failure)
	}
	if a, err := again.Ledger(); err != nil || a.Head.Entries <= accounts.Head.Entries+3 {
		t.Errorf("%d entries, %v", a.Head.Entries, err)
	}
}

func TestAChainGoesOnUnderANewKeyAndUnderNoOther(t *testing.T) {
	n := newNorth(t, nil)
	s := n.join("lyon")
	c, err := openChain[Left](s.path(leftFile), leftName, s.Name, s.signer, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := c.add(Left{Kind: "order"}); err != nil {
			t.Fatal(err)
		}
	}
	c.close()
	before, err := os.ReadFile(s.path(leftFile))
	if err != nil {
		t.Fatal(err)
	}
	former := s.signer.Public().(ed25519.PublicKey)
	thief, err := newSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := handOver[Left](s.path(leftFile), leftName, s.Name, thief.Public().(ed25519.PublicKey), thief); !errors.Is(err, ErrChain) {
		t.Errorf("over from a key that it was not under: %v", err)
	}
	fresh, err := newSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // an interruption is gone over again
		if err := handOver[Left](s.path(leftFile), leftName, s.Name, former, fresh); err != nil {
			t.Fatal(err)
		}
	}
	after, err := os.ReadFile(s.path(leftFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.reads(t, after); !errors.Is(err, ErrChain) {
		t.Errorf("under the former key: %v", err)
	}
	old := s.signer
	s.signer = fresh
	if log, err := s.Left(); err != nil || log.Head.Entries != 4 {
		t.Errorf("%d entries, %v", log.Head.Entries, err)
	}
	// whoever has the former key cannot go on, take the change off or change what was before
	if err := s.reads(t, before); !errors.Is(err, ErrChain) {
		t.Errorf("the change is cut off: %v", err)
	}
	forge := func(key crypto.Signer, lines int) []byte {
		t.Helper()
		if err := os.WriteFile(s.path(leftFile), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := openChain[Left](s.path(leftFile), leftName, s.Name, key, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		for range lines {
			if err := c.add(Left{Kind: "forged"}); err != nil {
				t.Fatal(err)
			}
		}
		data, err := os.ReadFile(s.path(leftFile))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	lines := bytes.SplitAfter(after, []byte("\n"))
	for what, data := range map[string][]byte{
		"another past under the former key":  append(forge(old, 3), lines[3]...),
		"another past under another key":     append(forge(thief, 3), lines[3]...),
		"all of it under another key":        forge(thief, 3),
		"the change first":                   lines[3],
		"an entry under the former key more": append(bytes.Clone(after), lines[0]...),
	} {
		if err := s.reads(t, data); !errors.Is(err, ErrChain) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestARenewalThatWasInterruptedIsGoneOverAgain(t *testing.T) {
	n := newNorth(t, nil)
	s := n.join("lyon")
	l, err := s.openLedger()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.enter(Charge{Federation: "north.old", Round: 1}); err != nil {
		t.Fatal(err)
	}
	l.close()
	if _, err := n.consortium.Remove("lyon"); err != nil {
		t.Fatal(err)
	}
	invite := func(name string) []byte {
		t.Helper()
		document, err := n.consortium.Invite(name, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return document
	}
	if _, err := Apply(invite("lyon"), s.dir, time.Now()); err != nil { // it comes to nothing
		t.Fatal(err)
	}
	document := invite("lyon")
	a, err := Apply(document, s.dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	answer, _, err := n.consortium.Admit(a.Body())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := OpenSite(s.dir); err != nil || !again.signer.Public().(ed25519.PublicKey).Equal(s.signer.Public()) {
		t.Fatalf("an application alone has changed the site: %v", err)
	}
	if err := os.Chmod(s.path("keys"), 0o500); err != nil { // the new keys cannot take their place
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		if _, err := a.Finish(answer); err == nil {
			t.Fatal("it finished")
		}
	} else { // whom no mode stops: what is done up to there
		signer, err := keyFolder(s.path("renewal", "keys")).key(signingFile)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(s.path("renewal", finishingFile), nil, 0o600), handOver[Charge](s.path(ledgerFile), ledgerName, s.Name, s.signer.Public().(ed25519.PublicKey), signer)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(s.path("keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ledger(); !errors.Is(err, ErrChain) {
		t.Errorf("half of it: %v", err)
	}
	if _, err := Apply(invite("metz"), s.dir, time.Now()); !errors.Is(err, ErrFolder) {
		t.Errorf("another site's invitation: %v", err)
	}
	if a, err = Apply(document, s.dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	if answer, _, err = n.consortium.Admit(a.Body()); err != nil {
		t.Fatal(err)
	}
	again, err := a.Finish(answer)
	if err != nil {
		t.Fatal(err)
	}
	if accounts, err := again.Ledger(); err != nil || accounts.Head.Entries != 2 {
		t.Errorf("%d entries, %v", accounts.Head.Entries, err)
	}
	if _, err := os.Stat(s.path("renewal")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of the renewal: %v", err)
	}
}
