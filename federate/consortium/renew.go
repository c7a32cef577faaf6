package consortium

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vigie/vigie/federate"
)

// A site that joins again, because its certificate has ended or its keys were lost,
// is the same hospital with the same patients: what they have spent, what has left
// and which rounds were entered goes on under the new keys.

const finishingFile = "finishing" // is there while the new keys take their place

// renewal is the folder in which a site's new keys wait for the consortium's answer.
func (s *Site) renewal(i Invitation, application string) (string, error) {
	dir := s.path("renewal")
	before, err := readLimited(filepath.Join(dir, application), maxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return dir, os.RemoveAll(dir) // its keys may be there without it
	}
	if err != nil {
		return "", err
	}
	if a, err := readApplication(before); err == nil && bytes.Equal(a.Token, i.Token) {
		return dir, nil
	}
	if _, err := os.Stat(filepath.Join(dir, finishingFile)); err == nil {
		return "", fmt.Errorf("%w: joining with another invitation was interrupted there; repeat it first", ErrFolder)
	}
	return dir, os.RemoveAll(dir) // of an invitation that came to nothing
}

func readApplication(data []byte) (a application, err error) {
	err = strict(data, &a)
	return a, err
}

// renew puts new keys in the place of those that the site had. It can be repeated
// if it was interrupted.
func (a *Application) renew(certificate []byte, signer, key crypto.Signer, r signedRoster) (*Site, error) {
	i, s := a.Invitation, a.renews
	lock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	former, err := s.formerKey()
	if err != nil {
		return nil, err
	}
	renewal, err := federate.Folder(a.dir)
	if err != nil {
		return nil, err
	}
	keeper, err := federate.Folder(s.dir)
	if err != nil {
		return nil, err
	}
	// One after the other: what comes later counts on what is on the disk.
	for _, step := range []func() error{
		func() error { return renewal.Put(finishingFile, nil) },
		func() error { return handOver[Charge](s.path(ledgerFile), ledgerName, s.Name, former, signer) },
		func() error { return handOver[Left](s.path(leftFile), leftName, s.Name, former, signer) },
		func() error { return s.carryOver(former, signer) },
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	settings, err := json.MarshalIndent(siteSettings{i.Consortium, i.Site, i.URL, i.Key, DigestOf([]byte(i.Policy))}, "", "  ")
	if err != nil {
		return nil, err
	}
	for _, step := range []func() error{
		func() error { return s.keys.putKey(signingFile, signer) },
		func() error { return s.keys.putKey(tlsKeyFile, key) },
		func() error { return s.keys.putCertificate(tlsFile, certificate) },
		func() error { return s.keys.putCertificate(authorityFile, i.Authority) },
		func() error { return keeper.Put(policyFile, []byte(i.Policy)) },
		func() error { return keeper.Put(rosterFile, r.document) },
		func() error { return keeper.Put(siteFile, append(settings, '\n')) },
		func() error { return os.RemoveAll(a.dir) }, // the only other copy of the keys
	} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("consortium: joining %q again as %q: %w", i.Consortium, i.Site, err)
		}
	}
	return OpenSite(s.dir)
}

// formerKey is the key that the site has signed with. Where it is lost, the list of
// sites still says which one it was.
func (s *Site) formerKey() (ed25519.PublicKey, error) {
	if signer, err := s.keys.key(signingFile); err == nil {
		return signer.Public().(ed25519.PublicKey), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	r, err := s.roster()
	if err != nil {
		return nil, err
	}
	m, listed := r.Site(s.Name)
	if !listed {
		return nil, fmt.Errorf("consortium: joining %q again as %q: %w: neither its former key nor a list of sites that names it is there", s.Consortium, s.Name, ErrFolder)
	}
	return m.Key, nil
}

// carryOver signs what was decided with the new key, and ends the rounds that were
// under way: the numbers of those that were entered stay.
func (s *Site) carryOver(former ed25519.PublicKey, signer crypto.Signer) error {
	fail := func(what string, err error) error {
		return fmt.Errorf("consortium: going on with %s at %q under new keys: %w", what, s.Name, err)
	}
	public := signer.Public().(ed25519.PublicKey)
	own := func(peers []Peer) {
		for k := range peers {
			if peers[k].Name == s.Name {
				peers[k].Key = public
			}
		}
	}
	if data, err := readLimited(s.path(knownFile), maxDocument); err == nil {
		var seen []Peer
		if err := strict(data, &seen); err != nil {
			return fail(knownFile, err)
		}
		own(seen)
		if err := s.see(seen); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fail(knownFile, err)
	}
	jobs, err := os.ReadDir(s.path("jobs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail("its jobs", err)
	}
	for _, e := range jobs {
		run := e.Name()
		j, err := s.job(run)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		keeper, err := federate.Folder(s.path("jobs", run))
		if err != nil {
			return err
		}
		if document, err := readLimited(s.path("jobs", run, decideFile), maxDocument); err == nil {
			if d, err := readDecision(document, Member{Name: s.Name, Key: former}, j); err == nil {
				own(d.Members)
				again, err := sign(signer, DecisionType, d)
				if err == nil {
					err = keeper.Put(decideFile, again)
				}
				if err != nil {
					return err
				}
			} else if _, err := readDecision(document, Member{Name: s.Name, Key: public}, j); err != nil {
				return fail("the decision on "+run, err)
			}
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fail("the decision on "+run, err)
		}
		if err := endRound(s.path("jobs", run, "rounds")); err != nil {
			return fail("the rounds of "+run, err)
		}
	}
	return nil
}

// endRound forgets the round that a federate.Site was in, which is bound to its
// key, and nothing else that it keeps.
func endRound(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	keeper, err := federate.Folder(dir)
	if err != nil {
		return err
	}
	data, err := keeper.Get(siteFile)
	if err != nil || data == nil {
		return err
	}
	kept := map[string]json.RawMessage{}
	if err := json.Unmarshal(data, &kept); err != nil {
		return err
	}
	delete(kept, "session")
	if data, err = json.Marshal(kept); err != nil {
		return err
	}
	return keeper.Put(siteFile, data)
}
