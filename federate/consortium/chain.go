package consortium

import (
	"bufio"
	"crypto"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Entry is a line of a ledger or log: signed by the site, numbered, and bound to
// the line before it. A line that is changed, left out or put in is found; that
// the last ones are missing only those who remember a later number can tell.
type Entry[T any] struct {
	Chain    string    `json:"chain"`    // which file it belongs to
	Site     string    `json:"site"`     //
	Number   uint64    `json:"number"`   // from 1
	Previous Digest    `json:"previous"` // of the payload before; zero for the first
	Time     time.Time `json:"time"`
	// Former is the key that has signed what is before, of the first entry that a site
	// signs which has joined again with new keys; it stands for nothing else.
	Former ed25519.PublicKey `json:"former_key,omitempty"`
	What   T                 `json:"what"`
}

// maxEntry is how many bytes a line may have.
const maxEntry = 64 << 10

// chain appends to such a file. Nothing is done that an entry stands for before
// the entry is on disk.
type chain[T any] struct {
	name, site string
	signer     crypto.Signer

	mu     sync.Mutex
	file   file
	whole  int64 // bytes that hold whole entries
	number uint64
	last   Digest
	broken error // why part of an entry is still there; nothing is added until it is opened again
}

// file is what chain needs of an os.File, whose disk may be full.
type file interface {
	io.WriteSeeker
	io.Closer
	Sync() error
	Truncate(size int64) error
}

// openChain opens or makes the file and hands every entry to each. A last line
// without an end is of something that did not come to pass; it is cut off.
func openChain[T any](path, name, site string, signer crypto.Signer, each func(Entry[T])) (*chain[T], error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("consortium: opening the %s: %w", name, err)
	}
	c := &chain[T]{name: name, site: site, signer: signer, file: f}
	c.whole, err = readChain(f, name, site, signer.Public().(ed25519.PublicKey), func(e Entry[T], digest Digest) {
		c.number, c.last = e.Number, digest
		if each != nil {
			each(e)
		}
	})
	if err == nil {
		err = c.cut()
	}
	if err == nil && c.whole == 0 {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("consortium: opening the %s %s: %w", name, path, err)
	}
	return c, nil
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// readChain verifies a file and returns how many bytes hold whole lines. The key is
// the one that the site has now: an entry under it vouches for all that is before,
// whose digest it holds, also under keys that the site had.
func readChain[T any](r io.Reader, name, site string, key ed25519.PublicKey, each func(Entry[T], Digest)) (whole int64, err error) {
	whole, signer, err := scanChain(r, name, site, each)
	if err == nil && signer != nil && !signer.Equal(key) {
		err = fmt.Errorf("%w: its last entry is signed by a key that is not this site's", ErrChain)
	}
	return whole, err
}

// scanChain is readChain for whoever knows which key the last entry should have.
func scanChain[T any](r io.Reader, name, site string, each func(Entry[T], Digest)) (whole int64, signer ed25519.PublicKey, err error) {
	lines := bufio.NewReaderSize(r, maxEntry)
	number, last := uint64(0), Digest{}
	for {
		line, err := lines.ReadSlice('\n')
		fail := func(format string, arguments ...any) (int64, ed25519.PublicKey, error) {
			return whole, signer, fmt.Errorf("line %d: %w: %s", number+1, ErrChain, fmt.Sprintf(format, arguments...))
		}
		switch {
		case errors.Is(err, io.EOF):
			return whole, signer, nil
		case errors.Is(err, bufio.ErrBufferFull):
			return fail("it is longer than %d bytes", maxEntry)
		case err != nil:
			return whole, signer, err
		}
		e, body, by, err := verify[Entry[T]](line, EntryType, nil)
		switch {
		case err != nil:
			return fail("%v", err)
		case number == 0 && e.Former != nil, number > 0 && e.Former == nil && !by.Equal(signer), number > 0 && e.Former != nil && (!e.Former.Equal(signer) || by.Equal(signer)):
			return fail("it is signed by another key than what is before")
		case e.Chain != name || e.Site != site:
			return fail("it is of the %s of %q", e.Chain, e.Site)
		case e.Number != number+1 || e.Previous != last:
			return fail("it is number %d and does not follow what is before it", e.Number)
		}
		whole += int64(len(line))
		number, last, signer = e.Number, DigestOf(body), by
		if each != nil {
			each(e, last)
		}
	}
}

// add writes an entry durably, or leaves the chain as it was.
func (c *chain[T]) add(what T) error { return c.enter(what, nil) }

// handOver makes a chain go on under a site's new key. One that is empty, or does
// so already, stays as it is.
func handOver[T any](path, name, site string, former ed25519.PublicKey, signer crypto.Signer) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("consortium: opening the %s: %w", name, err)
	}
	defer f.Close()
	c := &chain[T]{name: name, site: site, signer: signer, file: f}
	var by ed25519.PublicKey
	c.whole, by, err = scanChain(f, name, site, func(e Entry[T], digest Digest) { c.number, c.last = e.Number, digest })
	switch {
	case err != nil:
	case by == nil || by.Equal(signer.Public()):
		return nil
	case !by.Equal(former):
		err = fmt.Errorf("%w: its last entry is signed by a key that was not this site's", ErrChain)
	default:
		err = c.cut()
	}
	if err != nil {
		return fmt.Errorf("consortium: going on with the %s %s under a new key: %w", name, path, err)
	}
	var none T
	return c.enter(none, by)
}

func (c *chain[T]) enter(what T, former ed25519.PublicKey) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	fail := func(err error) error {
		return fmt.Errorf("consortium: writing to the %s of %q: %w", c.name, c.site, err)
	}
	if c.broken != nil { // perhaps there is room again
		if c.broken = c.cut(); c.broken != nil {
			return fail(fmt.Errorf("an entry was written in part, and cannot be cut off: %w", c.broken))
		}
	}
	e := Entry[T]{c.name, c.site, c.number + 1, c.last, time.Now().UTC().Truncate(time.Millisecond), former, what}
	body, err := json.Marshal(e)
	if err != nil {
		return fail(err)
	}
	line, err := sign(c.signer, EntryType, e)
	if err != nil {
		return fail(err)
	}
	if len(line) >= maxEntry {
		return fail(fmt.Errorf("an entry of %d bytes", len(line)))
	}
	_, err = c.file.Write(append(line, '\n'))
	if err == nil {
		err = c.file.Sync()
	}
	if err != nil {
		// What is there of the line stands for nothing. The next one must not be
		// written behind it, nor another with its number.
		c.broken = c.cut()
		return fail(err)
	}
	c.number, c.last, c.whole = e.Number, DigestOf(body), c.whole+int64(len(line))+1
	return nil
}

// cut takes off what is behind the last whole entry.
func (c *chain[T]) cut() error {
	err := c.file.Truncate(c.whole)
	if err == nil {
		_, err = c.file.Seek(c.whole, io.SeekStart)
	}
	if err == nil {
		err = c.file.Sync()
	}
	return err
}

func (c *chain[T]) close() error { return c.file.Close() }
