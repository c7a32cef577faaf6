package federate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/vigie/vigie/federate/secagg"
)

// Keeper keeps a party's memory: Put replaces what is kept under a name, whole
// and durably, or leaves what was there; Get returns it, or nil if there is
// nothing.
type Keeper interface {
	Put(name string, data []byte) error
	Get(name string) ([]byte, error)
}

// Folder keeps in files of a folder that only their owner may read. It makes the
// folder.
func Folder(dir string) (Keeper, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("federate: making a folder to keep in: %w", err)
	}
	return folder(dir), nil
}

type folder string

func (f folder) Put(name string, data []byte) error {
	return f.write(name, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// write is Put for what is written piece by piece.
func (f folder) write(name string, pieces func(io.Writer) error) (err error) {
	path := filepath.Join(string(f), name)
	file, err := os.CreateTemp(string(f), name+".*.tmp")
	if err != nil {
		return fmt.Errorf("federate: keeping %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			os.Remove(file.Name())
		}
	}()
	if err = pieces(file); err == nil {
		err = file.Sync()
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err == nil {
		err = syncFolder(string(f))
	}
	if err != nil {
		return fmt.Errorf("federate: keeping %s: %w", name, err)
	}
	return nil
}

// syncFolder makes a rename durable.
func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (f folder) Get(name string) ([]byte, error) {
	data, err := os.ReadFile(filepath.Join(string(f), name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("federate: reading what was kept as %s: %w", name, err)
	}
	return data, nil
}

// putNumbers is Put for what has a header and numbers, without a copy of them where
// the keeper takes pieces.
func putNumbers[T uint32 | float32](k Keeper, name string, header []byte, parts ...[]T) error {
	write := func(w io.Writer) error {
		if _, err := w.Write(header); err != nil {
			return err
		}
		buffer := make([]byte, 1<<18)
		for _, part := range parts {
			for len(part) > 0 {
				n := min(len(part), len(buffer)/4)
				putWords(buffer[:4*n], part)
				if _, err := w.Write(buffer[:4*n]); err != nil {
					return err
				}
				part = part[n:]
			}
		}
		return nil
	}
	if f, is := k.(folder); is {
		return f.write(name, write)
	}
	var whole bytes.Buffer
	if err := write(&whole); err != nil {
		return err
	}
	return k.Put(name, whole.Bytes())
}

// memory is what a site must not forget.
type memory struct {
	Terms   []byte    `json:"terms"` // their digest
	Round   uint64    `json:"round"` // the last that was entered
	Order   Order     `json:"order"` // that it was entered with
	Session []byte    `json:"session,omitempty"`
	Entered []byte    `json:"entered,omitempty"` // digest of what Session is of
	Pinned  *pin      `json:"pinned,omitempty"`
	Control []float32 `json:"control,omitempty"`
	// Own are the site's own variables, and OwnNext what they become.
	Own     []float32 `json:"own,omitempty"`
	OwnNext []float32 `json:"own_next,omitempty"`
	// Asked counts the questions that were answered, and Answered says among which
	// sites, by the task and the model's digest.
	Asked    int               `json:"asked,omitempty"`
	Answered map[string]string `json:"answered,omitempty"`
	Pending  []float32         `json:"pending,omitempty"` // what Control becomes if the round counts
}

const siteMemory = "site.json"

// save keeps the site's memory. The masked vector is kept before the memory that
// says that there is one: see secagg.Site.Mask.
func (s *Site) save() error {
	if s.Keeper == nil {
		return nil
	}
	if s.vector == nil {
		s.kept = nil
	}
	if len(s.vector) > 0 && s.kept != &s.vector[0] { // once, not at every step after
		if err := putNumbers(s.Keeper, vectorName, nil, s.vector); err != nil {
			return err
		}
		s.kept = &s.vector[0]
	}
	session, err := s.session.MarshalBinary()
	if err != nil {
		return fmt.Errorf("federate: keeping round %d at %q: %w", s.round.Number, s.name, err)
	}
	terms := s.Terms.Digest()
	entered := s.round.Digest()
	s.keep.Entered = entered[:]
	s.keep.Terms, s.keep.Session, s.keep.Control, s.keep.Pending = terms[:], session, s.control, s.pending
	s.keep.Own, s.keep.OwnNext = s.own.now, s.own.next
	data, err := json.Marshal(s.keep)
	if err != nil {
		return fmt.Errorf("federate: keeping round %d at %q: %w", s.round.Number, s.name, err)
	}
	if err := s.Keeper.Put(siteMemory, data); err != nil {
		return err
	}
	if s.session.Erased() { // after the memory that no longer needs it
		return s.Keeper.Put(vectorName, nil)
	}
	return nil
}

func (s *Site) restore() error {
	if s.Keeper == nil {
		return nil
	}
	data, err := s.Keeper.Get(siteMemory)
	if err != nil || data == nil {
		return err
	}
	fail := func(err error) error {
		return fmt.Errorf("federate: going on at %q: %w: %w", s.name, ErrKept, err)
	}
	if err := json.Unmarshal(data, &s.keep); err != nil {
		return fail(err)
	}
	terms := s.Terms.Digest()
	if string(terms[:]) != string(s.keep.Terms) {
		// agreed anew since: the numbers of rounds go on, what was under way is over
		s.keep = memory{Round: s.keep.Round}
		return nil
	}
	if len(s.keep.Control) == len(s.control) && s.control != nil {
		s.control = s.keep.Control
	}
	if len(s.keep.Own) == len(s.own.now) && s.own.now != nil {
		s.own.now = s.keep.Own
	}
	if s.keep.Session == nil {
		return nil
	}
	variables, trained := s.size()
	round, err := s.Terms.round(s.keep.Order, s.Members, s.Terms.length(s.keep.Order, variables, trained))
	if err != nil {
		return nil // the members have changed: that round is over
	}
	if digest := round.Digest(); !bytes.Equal(digest[:], s.keep.Entered) {
		return nil // likewise, though those of the group are still there
	}
	session, err := secagg.RestoreSite(round, s.name, s.Signer, s.keep.Session)
	if err != nil {
		return fail(err)
	}
	s.round, s.session, s.pending, s.own.next = round, session, s.keep.Pending, s.keep.OwnNext
	if session.Masked() && !session.Erased() {
		raw, err := s.Keeper.Get(vectorName)
		if err != nil {
			return fail(err)
		}
		if s.vector, err = decodeVector(raw, round.Length); err != nil {
			return fail(err)
		}
		s.kept = &s.vector[0]
	}
	return nil
}
