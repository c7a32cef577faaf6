package consortium

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vigie/vigie/federate"
)

// Settings are what a consortium is made with.
type Settings struct {
	Name   string `json:"name"`
	URL    string `json:"url"`    // that sites dial: https://host:port
	Listen string `json:"listen"` // host:port that the server listens at; empty: the URL's port on all interfaces
	Policy Policy `json:"-"`
}

// Consortium is a consortium's folder.
//
//	consortium.json   name and address
//	policy.yaml       what every run is held to
//	keys/             authority, signing key, the server's certificate
//	state/            list of sites, invitations
//	runs/NAME/        a run: its signed job, model, consents, progress, result
type Consortium struct {
	Settings
	dir    string
	keys   keyFolder
	signer crypto.Signer
	policy []byte // the text
	now    func() time.Time
}

const (
	settingsFile    = "consortium.json"
	policyFile      = "policy.yaml"
	rosterFile      = "roster.json"
	invitationsFile = "invitations.json"
)

// Create makes a consortium in a folder that is absent or empty.
func Create(dir string, s Settings) (*Consortium, error) {
	fail := func(err error) (*Consortium, error) {
		return nil, fmt.Errorf("consortium: making a consortium in %s: %w", dir, err)
	}
	if err := checkName("consortium", s.Name); err != nil {
		return nil, err
	}
	at, err := checkURL(s.URL)
	if err != nil {
		return fail(err)
	}
	s.URL = strings.TrimSuffix(s.URL, "/")
	if err := s.Policy.Check(); err != nil {
		return nil, err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return fail(fmt.Errorf("%w: it is not empty, and nothing is overwritten", ErrFolder))
	}
	c := &Consortium{Settings: s, dir: dir, keys: keyFolder(filepath.Join(dir, "keys")), now: time.Now}
	if s.Listen == "" {
		port := at.Port()
		if port == "" {
			port = "443"
		}
		c.Listen = ":" + port
	}
	keeper, err := federate.Folder(dir)
	if err != nil {
		return nil, err
	}
	ca, der, err := newAuthority(s.Name, c.now())
	if err != nil {
		return nil, err
	}
	if c.signer, err = newSigningKey(); err != nil {
		return nil, err
	}
	for _, err := range []error{
		c.keys.putCertificate(authorityFile, der), c.keys.putKey(authorityKeyFile, ca.key), c.keys.putKey(signingFile, c.signer),
		c.renewServer(), keeper.Put(policyFile, []byte(s.Policy.Text(s.Name))),
	} {
		if err != nil {
			return nil, err
		}
	}
	data, err := json.MarshalIndent(c.Settings, "", "  ")
	if err != nil {
		return fail(err)
	}
	if err := keeper.Put(settingsFile, append(data, '\n')); err != nil { // last: a folder that has it is whole
		return nil, err
	}
	return Open(dir)
}

// Open opens a consortium's folder.
func Open(dir string) (*Consortium, error) {
	c := &Consortium{dir: dir, keys: keyFolder(filepath.Join(dir, "keys")), now: time.Now}
	fail := func(err error) (*Consortium, error) {
		return nil, fmt.Errorf("consortium: opening the consortium in %s: %w", dir, err)
	}
	data, err := readLimited(filepath.Join(dir, settingsFile), maxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return fail(fmt.Errorf("%w: it has no %s; make one with vigie consortium init", ErrFolder, settingsFile))
	}
	if err != nil {
		return fail(err)
	}
	if err := strict(data, &c.Settings); err != nil {
		return fail(err)
	}
	if c.policy, err = readLimited(filepath.Join(dir, policyFile), maxPolicy); err != nil {
		return fail(err)
	}
	if c.Policy, err = ParsePolicy(c.policy); err != nil {
		return nil, err
	}
	if c.signer, err = c.keys.key(signingFile); err != nil {
		return nil, err
	}
	return c, nil
}

// Key verifies everything that the consortium signs.
func (c *Consortium) Key() ed25519.PublicKey { return c.signer.Public().(ed25519.PublicKey) }

// Dir is the folder.
func (c *Consortium) Dir() string { return c.dir }

func (c *Consortium) state() string { return filepath.Join(c.dir, "state") }

// locked runs a change of the folder while no other process makes one.
func (c *Consortium) locked(change func(federate.Keeper) error) error {
	keeper, err := federate.Folder(c.state())
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(c.state(), "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("consortium: locking %s: %w", c.dir, err)
	}
	defer f.Close() // unlocks
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("consortium: locking %s: %w", c.dir, err)
	}
	return change(keeper)
}

func (c *Consortium) authority() (*authority, error) {
	certificate, err := c.keys.certificate(authorityFile)
	if err != nil {
		return nil, err
	}
	key, err := c.keys.key(authorityKeyFile)
	if err != nil {
		return nil, err
	}
	return &authority{certificate, key}, nil
}

// renewServer makes the server's certificate where there is none, or where less
// than a third of its life is left.
func (c *Consortium) renewServer() error {
	if has, err := c.keys.certificate(tlsFile); err == nil && has.NotAfter.Sub(c.now()) > serverLife/3 {
		return nil
	}
	ca, err := c.authority()
	if err != nil {
		return err
	}
	at, err := checkURL(c.URL)
	if err != nil {
		return err
	}
	key, err := c.keys.keyOrNew(tlsKeyFile, func() (crypto.Signer, error) { return newTLSKey() })
	if err != nil {
		return err
	}
	der, err := ca.server(key.Public(), at, c.now())
	if err != nil {
		return err
	}
	return c.keys.putCertificate(tlsFile, der)
}

// roster is the current list of sites. Version 1 is that of a consortium which
// nobody has joined.
func (c *Consortium) roster() (signedRoster, error) {
	document, err := readLimited(filepath.Join(c.state(), rosterFile), maxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return signRoster(c.signer, Roster{Consortium: c.Name, Version: 1, Policy: DigestOf(c.policy), Time: c.now().UTC().Truncate(time.Second), Sites: []Member{}})
	}
	if err != nil {
		return signedRoster{}, fmt.Errorf("consortium: reading the list of sites: %w", err)
	}
	r, err := readRoster(document, c.Key())
	if err != nil {
		return signedRoster{}, err
	}
	if len(r.Sites) > 0 && r.Policy != DigestOf(c.policy) {
		return signedRoster{}, fmt.Errorf("consortium: reading the list of sites: %w: %s is not what the sites have agreed to; put it back, or make another consortium", ErrPolicy, filepath.Join(c.dir, policyFile))
	}
	return r, nil
}

// Roster is the current list of sites.
func (c *Consortium) Roster() (Roster, error) {
	r, err := c.roster()
	return r.Roster, err
}

// change writes the next version of the list of sites.
func (c *Consortium) change(keeper federate.Keeper, sites []Member) (signedRoster, error) {
	now, err := c.roster()
	if err != nil {
		return signedRoster{}, err
	}
	slices.SortFunc(sites, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	next, err := signRoster(c.signer, Roster{Consortium: c.Name, Version: now.Version + 1, Previous: now.digest, Policy: DigestOf(c.policy), Time: c.now().UTC().Truncate(time.Second), Sites: sites})
	if err != nil {
		return signedRoster{}, err
	}
	return next, keeper.Put(rosterFile, next.document)
}

// Remove takes a site off the list. A server that runs goes by the new list at
// once; the other sites get it before the next round.
func (c *Consortium) Remove(name string) (Roster, error) {
	var after signedRoster
	err := c.locked(func(keeper federate.Keeper) error {
		now, err := c.roster()
		if err != nil {
			return err
		}
		if _, known := now.Site(name); !known {
			return fmt.Errorf("consortium: removing %q: %w: it is not on the list", name, ErrRoster)
		}
		after, err = c.change(keeper, slices.DeleteFunc(slices.Clone(now.Sites), func(m Member) bool { return m.Name == name }))
		return err
	})
	return after.Roster, err
}

// invited is what the consortium remembers of an invitation: not the token.
type invited struct {
	Site    string    `json:"site"`
	Token   Digest    `json:"token_sha256"`
	Expires time.Time `json:"expires"`
	Used    *Digest   `json:"used_by,omitempty"` // request that it was used by
}

func (c *Consortium) invitations() ([]invited, error) {
	data, err := readLimited(filepath.Join(c.state(), invitationsFile), 64<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var all []invited
	if err == nil {
		err = strict(data, &all)
	}
	if err != nil {
		return nil, fmt.Errorf("consortium: reading the invitations: %w", err)
	}
	return all, nil
}

// Invite writes an invitation for a site that is good once and for so long. One
// that is open for the same site is withdrawn.
func (c *Consortium) Invite(name string, life time.Duration) (document []byte, err error) {
	if err := checkName("site", name); err != nil {
		return nil, err
	}
	if life <= 0 {
		return nil, fmt.Errorf("consortium: inviting %q: %w: it would be good for %v", name, ErrInvitation, life)
	}
	ca, err := c.keys.certificate(authorityFile)
	if err != nil {
		return nil, err
	}
	i := Invitation{Version: 1, Consortium: c.Name, Site: name, URL: c.URL, Key: c.Key(), Authority: ca.Raw, Policy: string(c.policy),
		Token: make([]byte, tokenSize), Expires: c.now().Add(life).UTC().Truncate(time.Second)}
	rand.Read(i.Token) // never fails since Go 1.24
	err = c.locked(func(keeper federate.Keeper) error {
		now, err := c.roster()
		if err != nil {
			return err
		}
		if _, known := now.Site(name); known {
			return fmt.Errorf("consortium: inviting %q: %w: it has joined already; remove it first if it lost its keys", name, ErrInvitation)
		}
		all, err := c.invitations()
		if err != nil {
			return err
		}
		all = slices.DeleteFunc(all, func(o invited) bool { return o.Site == name || c.now().After(o.Expires) })
		data, err := json.MarshalIndent(append(all, invited{Site: name, Token: DigestOf(i.Token), Expires: i.Expires}), "", "  ")
		if err != nil {
			return err
		}
		return keeper.Put(invitationsFile, data)
	})
	if err != nil {
		return nil, err
	}
	return sign(c.signer, InvitationType, i)
}
