package consortium

import (
	"crypto"
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/vigie/vigie/dp"
	"github.com/vigie/vigie/federate"
)

// Job is what a data scientist asks the sites for: one run of a federation. It is
// signed by the consortium, and a site consents to its digest.
type Job struct {
	Version    int       `json:"vigie_job"` // 1
	Run        string    `json:"run"`
	Consortium string    `json:"consortium"`
	Policy     Digest    `json:"policy"` // of the consortium's, that the job was held against
	Scientist  string    `json:"scientist"`
	Purpose    string    `json:"purpose"`
	Time       time.Time `json:"time"`

	Terms federate.Terms `json:"terms"`
	Model Model          `json:"model"`
	// Trainer is code of the scientist's that the sites run; nil: the built-in
	// trainer alone.
	Trainer *Code `json:"trainer,omitempty"`
	// Audit is the signed report of a privacy audit of the model under the terms, where
	// the consortium requires one.
	Audit []byte `json:"audit,omitempty"`
}

// Model is the network that a run begins with, an ONNX file that travels beside
// the job.
type Model struct {
	SHA256 Digest   `json:"sha256"`
	Bytes  int64    `json:"bytes"`
	Output string   `json:"output,omitempty"` // the logits; empty: the first output
	Freeze []string `json:"freeze,omitempty"` // initializers that are not trained
	// Example is the shape of one example, Image says that it is one of an image,
	// [channels, rows, columns].
	Example []int64  `json:"example"`
	Image   bool     `json:"image"`
	Classes []string `json:"classes,omitempty"` // names, if known
	Outputs int      `json:"outputs"`           // logits; 1 is that of the second of two classes
	Multi   bool     `json:"multi,omitempty"`   // labels do not exclude each other
}

// Code is a program that a site is asked to run.
type Code struct {
	SHA256 Digest `json:"sha256"`
	About  string `json:"about"`
}

const (
	maxModel   = 4 << 30 // bytes
	maxText    = 500     // bytes of a purpose or a name of a person
	maxClasses = 10000
)

// protects says whether the run promises differential privacy for a unit.
func (j Job) protects(unit federate.Unit) bool { return j.Terms.DP != nil && j.Terms.DP.Unit == unit }

// spends is what all attempts of the run give away, to add to what was given away
// before. (That its noise is in whole numbers costs a hair more, which the run's
// own account knows.)
func (j Job) spends() (run dp.Run, unit federate.Unit, stated bool) {
	d := j.Terms.DP
	if d == nil {
		return dp.Run{}, "", false
	}
	return dp.Run{Sigma: d.Noise, Rate: d.Rate, Steps: d.Attempts}, d.Unit, true
}

// federation is the name that the run's signatures are bound to.
func federation(consortium, run string) string { return consortium + "." + run }

// Check returns an error that wraps ErrDocument for a job that no site can
// follow.
func (j Job) Check() error {
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("consortium: checking job %q: %w: %s", j.Run, ErrDocument, fmt.Sprintf(format, arguments...))
	}
	if err := checkName("run", j.Run); err != nil {
		return fail("%v", err)
	}
	if err := checkName("consortium", j.Consortium); err != nil {
		return fail("%v", err)
	}
	for what, text := range map[string]string{"scientist": j.Scientist, "purpose": j.Purpose} {
		if err := checkText(text); err != nil {
			return fail("its %s %v", what, err)
		}
	}
	size := int64(1)
	for _, n := range j.Model.Example {
		if n < 1 || n > 1<<20 || size > 1<<30/n {
			return fail("examples of shape %v", j.Model.Example)
		}
		size *= n
	}
	switch {
	case j.Version != 1:
		return fail("version %d; this program knows version 1", j.Version)
	case j.Terms.Federation != federation(j.Consortium, j.Run):
		return fail("its terms are of %q", j.Terms.Federation)
	case j.Model.Bytes < 1 || j.Model.Bytes > maxModel:
		return fail("a model of %d bytes", j.Model.Bytes)
	case len(j.Model.Example) < 1 || len(j.Model.Example) > 8 || j.Model.Image && len(j.Model.Example) != 3:
		return fail("examples of shape %v", j.Model.Example)
	case j.Model.Outputs < 1 || j.Model.Outputs > maxClasses || len(j.Model.Classes) > 0 && len(j.Model.Classes) != j.Model.Outputs && j.Model.Outputs != 1:
		return fail("%d outputs for %d classes", j.Model.Outputs, len(j.Model.Classes))
	case j.Trainer != nil && checkText(j.Trainer.About) != nil:
		return fail("its code is not described")
	}
	return nil
}

// checkText says whether a person can read a line.
func checkText(text string) error {
	if strings.TrimSpace(text) == "" {
		return fmt.Errorf("is empty")
	}
	if len(text) > maxText || !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool {
		return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
	}) {
		return fmt.Errorf("is not one line of at most %d bytes", maxText)
	}
	return nil
}

// signedJob is a job with the document that it came in.
type signedJob struct {
	Job
	document []byte
	digest   Digest // of the payload
}

func signJob(signer crypto.Signer, j Job) (signedJob, error) {
	document, err := sign(signer, JobType, j)
	if err != nil {
		return signedJob{}, err
	}
	return readJob(document, signer.Public().(ed25519.PublicKey))
}

func readJob(document []byte, key ed25519.PublicKey) (signedJob, error) {
	j, body, _, err := verify[Job](document, JobType, key)
	if err != nil {
		return signedJob{}, err
	}
	if err := j.Check(); err != nil {
		return signedJob{}, err
	}
	return signedJob{j, document, DigestOf(body)}, nil
}

// Verdict is what a site says to a job.
type Verdict string

// The verdicts.
const (
	Waiting  Verdict = "waiting" // for a person
	Approved Verdict = "approved"
	Refused  Verdict = "refused"
)

// Decision is a site's signed word on a job.
type Decision struct {
	Site    string  `json:"site"`
	Run     string  `json:"run"`
	Job     Digest  `json:"job"`
	Verdict Verdict `json:"verdict"`
	By      string  `json:"by"` // a person, or "rules"
	Reason  string  `json:"reason,omitempty"`
	Roster  uint64  `json:"roster"` // version that the site knew
	// Members are the sites of that version: with others this site shares no round of
	// the job, unless Joins is accept.
	Members []Peer    `json:"members"`
	Joins   Joins     `json:"joins"`
	Time    time.Time `json:"time"`
}

// Peer is a site as another one's decision names it.
type Peer struct {
	Name string            `json:"name"`
	Key  ed25519.PublicKey `json:"key"`
}

// accepts says whether the site that decided shares a round with a member.
func (d Decision) accepts(m Member) bool {
	return d.Joins == JoinsAccept || knows(d.Members, m)
}

// knows says whether a site is among those of a decision, with the same key.
func knows(peers []Peer, m Member) bool {
	return slices.ContainsFunc(peers, func(p Peer) bool { return p.Name == m.Name && p.Key.Equal(m.Key) })
}

// strangers are the sites of a list that are not among those of a decision.
func (r Roster) strangers(peers []Peer) (names []string) {
	for _, m := range r.Sites {
		if !knows(peers, m) {
			names = append(names, m.Name)
		}
	}
	return names
}

func (r Roster) peers() []Peer {
	peers := []Peer{}
	for _, m := range r.Sites {
		peers = append(peers, Peer{m.Name, m.Key})
	}
	return peers
}

// readDecision reads the decision of a site on a job.
func readDecision(document []byte, m Member, j signedJob) (Decision, error) {
	d, _, _, err := verify[Decision](document, DecisionType, m.Key)
	if err != nil {
		return Decision{}, err
	}
	if d.Site != m.Name || d.Run != j.Run || d.Job != j.digest || d.Verdict != Approved && d.Verdict != Refused {
		return Decision{}, fmt.Errorf("consortium: reading the decision of %q: %w: it is of %q on job %s of run %q", m.Name, ErrDocument, d.Site, d.Job, d.Run)
	}
	return d, nil
}
