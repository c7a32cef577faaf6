package consortium

import (
	"crypto/ed25519"
	"crypto/x509"
	"fmt"
	"net/url"
	"time"
)

// Invitation is what a hospital gets to join with: one file, signed by the
// consortium. Its only secret is a token that is good once; whoever holds the
// file before the hospital uses it could join in its name, so it goes by a way
// that both sides trust, and both compare Fingerprint.
type Invitation struct {
	Version    int               `json:"vigie_invitation"` // 1
	Consortium string            `json:"consortium"`
	Site       string            `json:"site"`
	URL        string            `json:"url"`
	Key        ed25519.PublicKey `json:"key"`       // of the consortium's signatures, which the site pins
	Authority  []byte            `json:"authority"` // its certificate, DER, which the site pins
	Policy     string            `json:"policy"`    // the text, whose digest every roster names
	Token      []byte            `json:"token"`
	Expires    time.Time         `json:"expires"`
}

const tokenSize = 32

// ReadInvitation reads an invitation and verifies that it is whole. Whether it
// came from the right consortium only Fingerprint can tell.
func ReadInvitation(document []byte) (Invitation, error) {
	i, _, signer, err := verify[Invitation](document, InvitationType, nil)
	if err != nil {
		return Invitation{}, err
	}
	if !signer.Equal(i.Key) {
		return Invitation{}, fmt.Errorf("consortium: reading an invitation: %w: it is not signed by the key that it names", ErrDocument)
	}
	return i, i.check()
}

func (i Invitation) check() error {
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("consortium: checking an invitation: %w: %s", ErrDocument, fmt.Sprintf(format, arguments...))
	}
	if i.Version != 1 {
		return fail("version %d; this program knows version 1", i.Version)
	}
	if err := checkName("consortium", i.Consortium); err != nil {
		return fail("%v", err)
	}
	if err := checkName("site", i.Site); err != nil {
		return fail("%v", err)
	}
	if _, err := checkURL(i.URL); err != nil {
		return fail("%v", err)
	}
	if c, err := x509.ParseCertificate(i.Authority); err != nil || !c.IsCA {
		return fail("it holds no certificate of an authority")
	}
	if len(i.Key) != ed25519.PublicKeySize || len(i.Token) != tokenSize {
		return fail("a key of %d and a token of %d bytes", len(i.Key), len(i.Token))
	}
	if _, err := ParsePolicy([]byte(i.Policy)); err != nil {
		return fail("%v", err)
	}
	return nil
}

// Fingerprint stands for the keys that a site will trust from now on. Both sides
// compare it by a way that is not the one the file came by.
func (i Invitation) Fingerprint() string {
	return fingerprint(DigestOf(append(append([]byte(nil), i.Key...), i.Authority...)))
}

func checkURL(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/" {
		return nil, fmt.Errorf("address %q: want https://host:port and nothing behind it", text)
	}
	return u, nil
}
