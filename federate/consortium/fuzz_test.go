package consortium

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"testing"
	"time"

	"github.com/vigie/vigie/federate"
)

// fuzzKey signs what the fuzzers make, so that they get behind the signature.
var fuzzKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))

func FuzzReadInvitation(f *testing.F) {
	ca, der, err := newAuthority("north", time.Now())
	if err != nil || ca == nil {
		f.Fatal(err)
	}
	i := Invitation{Version: 1, Consortium: "north", Site: "lyon", URL: "https://fed.example:8443", Key: fuzzKey.Public().(ed25519.PublicKey), Authority: der,
		Policy: DefaultPolicy().Text("north"), Token: make([]byte, tokenSize), Expires: time.Unix(2e9, 0)}
	f.Add([]byte(marshal(i)))
	f.Add([]byte(`{"vigie_invitation":1}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		ReadInvitation(payload)
		document, err := sign(fuzzKey, InvitationType, json.RawMessage(payload))
		if err != nil {
			return
		}
		if i, err := ReadInvitation(document); err == nil {
			if err := i.check(); err != nil {
				t.Fatal(err)
			}
			if i.Fingerprint() == "" || checkName("site", i.Site) != nil {
				t.Fatalf("%+v", i)
			}
		}
	})
}

func FuzzReadRoster(f *testing.F) {
	f.Add([]byte(marshal(Roster{Consortium: "north", Version: 1, Sites: []Member{{Name: "lyon", Key: fuzzKey.Public().(ed25519.PublicKey)}}})))
	f.Fuzz(func(t *testing.T, payload []byte) {
		document, err := sign(fuzzKey, RosterType, json.RawMessage(payload))
		if err != nil {
			return
		}
		r, err := readRoster(document, fuzzKey.Public().(ed25519.PublicKey))
		if err != nil {
			return
		}
		if len(r.Members()) != len(r.Sites) || r.changes(r.Roster) != "no change" || r.follows(r) != nil {
			t.Fatalf("%+v", r.Roster)
		}
	})
}

func FuzzReadJob(f *testing.F) {
	f.Add([]byte(marshal(Job{Version: 1, Run: "r", Consortium: "north", Scientist: "a", Purpose: "b", Terms: federate.DefaultTerms("north.r"), Model: Model{Bytes: 1, Example: []int64{1, 8, 8}, Image: true, Outputs: 2}})))
	policy, rules := DefaultPolicy(), Rules{Approve: &Approval{}}
	f.Fuzz(func(t *testing.T, payload []byte) {
		document, err := sign(fuzzKey, JobType, json.RawMessage(payload))
		if err != nil {
			return
		}
		j, err := readJob(document, fuzzKey.Public().(ed25519.PublicKey))
		if err != nil {
			return
		}
		policy.Allows(j.Job)
		rules.Allow(j.Job)
		if rules.Approves(j.Job) == "" {
			t.Fatal("an approval that lists nothing covers a job")
		}
		if err := j.Terms.Check(5); err == nil {
			j.Model.like()
		}
	})
}

func FuzzAdmit(f *testing.F) {
	c, err := Create(f.TempDir()+"/c", Settings{Name: "north", URL: "https://localhost:1", Policy: DefaultPolicy()})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(marshal(application{make([]byte, tokenSize), json.RawMessage(`{}`)})))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, _, err := c.Admit(data); err == nil {
			t.Fatal("somebody was admitted who has no invitation")
		}
	})
}

func FuzzReadChain(f *testing.F) {
	line, err := sign(fuzzKey, EntryType, Entry[Charge]{Chain: ledgerName, Site: "lyon", Number: 1, What: Charge{Federation: "north.r", Round: 1}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(line, '\n'))
	f.Fuzz(func(t *testing.T, data []byte) {
		whole, err := readChain(bytes.NewReader(data), ledgerName, "lyon", fuzzKey.Public().(ed25519.PublicKey), func(Entry[Charge], Digest) {})
		if whole > int64(len(data)) || err == nil && whole > 0 && data[whole-1] != '\n' {
			t.Fatalf("%d of %d bytes", whole, len(data))
		}
	})
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(DefaultPolicy().Text("north")))
	f.Add([]byte(rulesText))
	f.Add([]byte("approve: {scientists: [a], max_rounds: 3}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := ParsePolicy(data); err == nil {
			again, err := ParsePolicy([]byte(p.Text("north")))
			if err != nil || again.Text("north") != p.Text("north") {
				t.Fatalf("%v: what was read is written as\n%s", err, p.Text("north"))
			}
		}
		ParseRules(data)
	})
}
