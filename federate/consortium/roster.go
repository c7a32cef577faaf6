package consortium

import (
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/vigie/vigie/federate/secagg"
)

// Roster is the list of a consortium's sites. Versions rise by one with every
// change, and each names the one before, so that nobody can be shown an older
// list, or two lists of one version, without noticing.
type Roster struct {
	Consortium string    `json:"consortium"`
	Version    uint64    `json:"version"`  // from 1
	Previous   Digest    `json:"previous"` // of the payload of the version before; zero for the first
	Policy     Digest    `json:"policy"`   // of the consortium's policy
	Time       time.Time `json:"time"`
	Sites      []Member  `json:"sites"` // in the order of their names
}

// Member is a site of a roster.
type Member struct {
	Name string            `json:"name"`
	Key  ed25519.PublicKey `json:"key"` // of its signatures
	TLS  Digest            `json:"tls"` // of its TLS key, as SubjectPublicKeyInfo
	Time time.Time         `json:"time"`
}

// maxSites is how many sites a roster may list.
const maxSites = secagg.MaxSites

func (r Roster) check() error {
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("consortium: checking the list of sites of %q, version %d: %w: %s", r.Consortium, r.Version, ErrRoster, fmt.Sprintf(format, arguments...))
	}
	if err := checkName("consortium", r.Consortium); err != nil {
		return fail("%v", err)
	}
	if r.Version < 1 || len(r.Sites) > maxSites {
		return fail("want a version from 1 and at most %d sites, it has %d", maxSites, len(r.Sites))
	}
	keys := map[string]bool{}
	for i, m := range r.Sites {
		if err := checkName("site", m.Name); err != nil {
			return fail("%v", err)
		}
		if i > 0 && r.Sites[i-1].Name >= m.Name {
			return fail("%q and %q are not in order, or the same", r.Sites[i-1].Name, m.Name)
		}
		if len(m.Key) != ed25519.PublicKeySize {
			return fail("the key of %q has %d bytes", m.Name, len(m.Key))
		}
		if keys[string(m.Key)] || keys[string(m.TLS[:])] {
			return fail("%q has a key of another site", m.Name)
		}
		keys[string(m.Key)], keys[string(m.TLS[:])] = true, true
	}
	return nil
}

// Site returns the site of that name.
func (r Roster) Site(name string) (Member, bool) {
	for _, m := range r.Sites {
		if m.Name == name {
			return m, true
		}
	}
	return Member{}, false
}

// Members are the sites as secure aggregation knows them.
func (r Roster) Members() []secagg.Member {
	var out []secagg.Member
	for _, m := range r.Sites {
		out = append(out, secagg.Member{Name: m.Name, Key: m.Key})
	}
	return out
}

// Admits says whether a verified certificate is the one of the site that it
// names.
func (r Roster) Admits(c *x509.Certificate) (name string, err error) {
	name = c.Subject.CommonName
	m, known := r.Site(name)
	if !known || m.TLS != tlsDigest(c) {
		return "", fmt.Errorf("consortium: admitting %q: %w: version %d does not list it with this certificate", name, ErrRoster, r.Version)
	}
	return name, nil
}

func tlsDigest(c *x509.Certificate) Digest { return DigestOf(c.RawSubjectPublicKeyInfo) }

// signedRoster is a roster with the document that it came in.
type signedRoster struct {
	Roster
	document []byte
	digest   Digest // of the payload
}

func signRoster(signer crypto.Signer, r Roster) (signedRoster, error) {
	if err := r.check(); err != nil {
		return signedRoster{}, err
	}
	document, err := sign(signer, RosterType, r)
	if err != nil {
		return signedRoster{}, err
	}
	return readRoster(document, signer.Public().(ed25519.PublicKey))
}

func readRoster(document []byte, key ed25519.PublicKey) (signedRoster, error) {
	r, body, _, err := verify[Roster](document, RosterType, key)
	if err != nil {
		return signedRoster{}, err
	}
	if err := r.check(); err != nil {
		return signedRoster{}, err
	}
	return signedRoster{r, document, DigestOf(body)}, nil
}

// follows says whether a site that goes by one roster may go on by the next.
// Versions may be skipped: a site that was away has not seen all of them.
func (r signedRoster) follows(known signedRoster) error {
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("consortium: taking version %d of the list of sites: %w: %s", r.Version, ErrRoster, fmt.Sprintf(format, arguments...))
	}
	switch {
	case r.Consortium != known.Consortium:
		return fail("it is of %q, this site is of %q", r.Consortium, known.Consortium)
	case r.Version < known.Version:
		return fail("version %d is known already: a list does not go back", known.Version)
	case r.Version == known.Version && r.digest != known.digest:
		return fail("another list of this version is known: the consortium shows different lists to different sites")
	case r.Version == known.Version+1 && r.Previous != known.digest:
		return fail("it does not follow the list that is known as version %d", known.Version)
	case r.Policy != known.Policy:
		return fail("it goes with another policy than the one that this site agreed to; join again with a new invitation")
	}
	return nil
}

// changes says in words what one roster has that another has not.
func (r Roster) changes(before Roster) string {
	var parts []string
	for _, m := range r.Sites {
		if old, known := before.Site(m.Name); !known {
			parts = append(parts, m.Name+" came")
		} else if !old.Key.Equal(m.Key) || old.TLS != m.TLS {
			parts = append(parts, m.Name+" has new keys")
		}
	}
	for _, m := range before.Sites {
		if _, still := r.Site(m.Name); !still {
			parts = append(parts, m.Name+" left")
		}
	}
	if parts == nil {
		return "no change"
	}
	return strings.Join(parts, ", ")
}
