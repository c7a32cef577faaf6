package consortium

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vigie/vigie/federate"
)

// Request is what a hospital signs to join, with the key that it will sign with
// from then on.
type Request struct {
	Consortium string            `json:"consortium"`
	Site       string            `json:"site"`
	Policy     Digest            `json:"policy"` // that the hospital agrees to
	Key        ed25519.PublicKey `json:"key"`
	TLS        []byte            `json:"tls"` // PKCS #10 certificate request, DER, which proves the TLS key
}

// application carries a request to the consortium.
type application struct {
	Token   []byte          `json:"token"`
	Request json.RawMessage `json:"request"`
}

// admission is the consortium's answer.
type admission struct {
	Certificate []byte          `json:"certificate"` // DER
	Roster      json.RawMessage `json:"roster"`
}

const joinPath = "/v1/join"

// Admit takes a site up that applies with its invitation. The same application
// gets the same answer again, so that one whose answer was lost can be repeated.
func (c *Consortium) Admit(data []byte) (answer []byte, name string, err error) {
	fail := func(format string, arguments ...any) ([]byte, string, error) {
		return nil, name, fmt.Errorf("consortium: admitting a site: %w: %s", ErrInvitation, fmt.Sprintf(format, arguments...))
	}
	var a application
	if len(data) > maxDocument {
		return fail("%d bytes, at most %d are allowed", len(data), maxDocument)
	}
	if err := strict(data, &a); err != nil {
		return fail("%v", err)
	}
	r, body, signer, err := verify[Request](a.Request, RequestType, nil)
	if err != nil {
		return nil, "", err
	}
	if checkName("site", r.Site) != nil || r.Consortium != c.Name || !signer.Equal(r.Key) {
		return fail("the request is for %q at %q, or signed by another key than it names", r.Site, r.Consortium)
	}
	name = r.Site
	csr, err := x509.ParseCertificateRequest(r.TLS)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return fail("the request for a certificate of %q: %v", name, err)
	}
	if r.Policy != DigestOf(c.policy) {
		return fail("%q has agreed to another policy than this consortium's", name)
	}
	request := DigestOf(body)
	ca, err := c.authority()
	if err != nil {
		return nil, name, err
	}
	err = c.locked(func(keeper federate.Keeper) error {
		all, err := c.invitations()
		if err != nil {
			return err
		}
		token := DigestOf(a.Token)
		at := slices.IndexFunc(all, func(i invited) bool { return subtle.ConstantTimeCompare(i.Token[:], token[:]) == 1 })
		refuse := func(format string, arguments ...any) error {
			return fmt.Errorf("consortium: admitting %q: %w: %s", name, ErrInvitation, fmt.Sprintf(format, arguments...))
		}
		switch {
		case at < 0 || all[at].Site != name:
			return refuse("there is no such invitation; it may have been withdrawn")
		case all[at].Used != nil && *all[at].Used != request:
			return refuse("it was used already, with other keys; if that was not this hospital, tell the consortium")
		case all[at].Used == nil && c.now().After(all[at].Expires):
			return refuse("it expired on %s", all[at].Expires.Format(time.DateOnly))
		}
		now, err := c.roster()
		if err != nil {
			return err
		}
		m := Member{Name: name, Key: r.Key, TLS: DigestOf(csr.RawSubjectPublicKeyInfo), Time: c.now().UTC().Truncate(time.Second)}
		if known, there := now.Site(name); !there {
			if all[at].Used != nil {
				return refuse("it was used already, and the site was removed since")
			}
			if now, err = c.change(keeper, append(slices.Clone(now.Sites), m)); err != nil {
				return err
			}
		} else if !known.Key.Equal(m.Key) || known.TLS != m.TLS {
			return refuse("a site of this name has joined with other keys")
		}
		all[at].Used = &request
		data, err := json.MarshalIndent(all, "", "  ")
		if err != nil {
			return err
		}
		if err := keeper.Put(invitationsFile, data); err != nil {
			return err
		}
		der, err := ca.site(csr.PublicKey, name, c.now())
		if err != nil {
			return err
		}
		answer, err = json.Marshal(admission{der, now.document})
		return err
	})
	return answer, name, err
}

// Application is a hospital's wish to join, ready to be sent.
type Application struct {
	Invitation Invitation
	dir        string // where its keys are
	body       []byte
	renews     *Site // whose folder it is of; nil: a new one's
}

// Apply makes a site's folder with fresh keys, or goes on with one whose
// application was not answered, and writes the application. Keys stay in the
// folder. In the folder of the same site of the same consortium the new keys wait
// until Finish.
func Apply(document []byte, dir string, now time.Time) (*Application, error) {
	i, err := ReadInvitation(document)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Application, error) {
		return nil, fmt.Errorf("consortium: joining %q as %q: %w", i.Consortium, i.Site, err)
	}
	if now.After(i.Expires) {
		return fail(fmt.Errorf("%w: it expired on %s", ErrInvitation, i.Expires.Format(time.DateOnly)))
	}
	const open = "application.json"
	var renews *Site
	if _, err := os.Stat(filepath.Join(dir, siteFile)); err == nil {
		if renews, err = settingsOf(dir); err != nil {
			return nil, err
		}
		if renews.Consortium != i.Consortium || renews.Name != i.Site || !renews.Key.Equal(i.Key) {
			return fail(fmt.Errorf("%w: %s is the site %q of %q, or of a consortium with another key", ErrFolder, dir, renews.Name, renews.Consortium))
		}
		if dir, err = renews.renewal(i, open); err != nil {
			return fail(err)
		}
	}
	keys := keyFolder(filepath.Join(dir, "keys"))
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		// what an application that was not answered has left, and nothing else
		before, err := readLimited(filepath.Join(dir, open), maxDocument)
		if err != nil {
			return fail(fmt.Errorf("%w: %s is not empty, and nothing is overwritten", ErrFolder, dir))
		}
		var a application
		if err := strict(before, &a); err != nil || !bytes.Equal(a.Token, i.Token) {
			return fail(fmt.Errorf("%w: %s holds an application with another invitation", ErrFolder, dir))
		}
		return &Application{i, dir, before, renews}, nil
	}
	keeper, err := federate.Folder(dir)
	if err != nil {
		return nil, err
	}
	signer, err := keys.keyOrNew(signingFile, newSigningKey)
	if err != nil {
		return nil, err
	}
	key, err := keys.keyOrNew(tlsKeyFile, func() (crypto.Signer, error) { return newTLSKey() })
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: i.Site}}, key)
	if err != nil {
		return fail(err)
	}
	request, err := sign(signer, RequestType, Request{i.Consortium, i.Site, DigestOf([]byte(i.Policy)), signer.Public().(ed25519.PublicKey), csr})
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(application{i.Token, request})
	if err != nil {
		return fail(err)
	}
	return &Application{i, dir, body, renews}, keeper.Put(open, body)
}

// Body is what the consortium admits the site by; see Consortium.Admit. It holds
// the invitation's token and no key but public ones.
func (a *Application) Body() []byte { return a.body }

// Finish takes the consortium's answer and makes the folder a site's.
func (a *Application) Finish(answer []byte) (*Site, error) {
	i := a.Invitation
	fail := func(format string, arguments ...any) (*Site, error) {
		return nil, fmt.Errorf("consortium: joining %q as %q: %w: %s", i.Consortium, i.Site, ErrDocument, fmt.Sprintf(format, arguments...))
	}
	var in admission
	if len(answer) > 2*maxDocument {
		return fail("an answer of %d bytes", len(answer))
	}
	if err := strict(answer, &in); err != nil {
		return fail("%v", err)
	}
	certificate, err := x509.ParseCertificate(in.Certificate)
	if err != nil {
		return fail("%v", err)
	}
	ca, err := x509.ParseCertificate(i.Authority)
	if err != nil {
		return fail("%v", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	if _, err := certificate.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fail("the certificate is not of the consortium's authority: %v", err)
	}
	keys := keyFolder(filepath.Join(a.dir, "keys"))
	key, err := keys.key(tlsKeyFile)
	if err != nil {
		return nil, err
	}
	signer, err := keys.key(signingFile)
	if err != nil {
		return nil, err
	}
	r, err := readRoster(in.Roster, i.Key)
	if err != nil {
		return nil, err
	}
	own, listed := r.Site(i.Site)
	switch public, ok := certificate.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); {
	case !ok || !public.Equal(key.Public()) || certificate.Subject.CommonName != i.Site:
		return fail("the certificate is of %q, or of another key", certificate.Subject.CommonName)
	case r.Consortium != i.Consortium || r.Policy != DigestOf([]byte(i.Policy)):
		return fail("the list of sites is of %q, or of another policy", r.Consortium)
	case !listed || !own.Key.Equal(signer.Public()) || own.TLS != tlsDigest(certificate):
		return fail("the list of sites does not hold this one")
	}
	if a.renews != nil {
		return a.renew(in.Certificate, signer, key, r)
	}
	keeper, err := federate.Folder(a.dir)
	if err != nil {
		return nil, err
	}
	settings, err := json.MarshalIndent(siteSettings{i.Consortium, i.Site, i.URL, i.Key, DigestOf([]byte(i.Policy))}, "", "  ")
	if err != nil {
		return nil, err
	}
	for _, err := range []error{
		keys.putCertificate(tlsFile, in.Certificate), keys.putCertificate(authorityFile, i.Authority),
		keeper.Put(policyFile, []byte(i.Policy)), keeper.Put(rulesFile, []byte(rulesText)), keeper.Put(rosterFile, r.document),
		keeper.Put(knownFile, marshal(r.peers())),
		keeper.Put(siteFile, append(settings, '\n')),
	} {
		if err != nil {
			return nil, err
		}
	}
	if err := os.Remove(filepath.Join(a.dir, "application.json")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("consortium: joining %q: %w", i.Consortium, err)
	}
	return OpenSite(a.dir)
}

// Join joins over the network: TLS 1.3 to a server that the invitation's
// authority certified.
func Join(ctx context.Context, document []byte, dir string) (*Site, error) {
	a, err := Apply(document, dir, time.Now())
	if err != nil {
		return nil, err
	}
	i := a.Invitation
	ca, err := x509.ParseCertificate(i.Authority)
	if err != nil {
		return nil, fmt.Errorf("consortium: joining %q: %w", i.Consortium, err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}, Proxy: http.ProxyFromEnvironment}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, i.URL+joinPath, bytes.NewReader(a.body))
	if err != nil {
		return nil, fmt.Errorf("consortium: joining %q: %w", i.Consortium, err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(request)
	if err != nil {
		return nil, fmt.Errorf("consortium: joining %q: %w", i.Consortium, err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 2*maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("consortium: joining %q: %w", i.Consortium, err)
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("consortium: joining %q: %w: the consortium says: %s", i.Consortium, ErrInvitation, bytes.TrimSpace(answer[:min(len(answer), maxText)]))
	}
	return a.Finish(answer)
}
