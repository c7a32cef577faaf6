package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// uses counts who is at work on something that may be taken away.
type uses struct {
	mu    sync.Mutex
	ended bool
	stops map[int]func() // by user: makes it stop soon
	next  int
	all   sync.WaitGroup
}

// begin says that there is one more; stop may be called until done was. It
// returns nil if there is nothing to use any more.
func (u *uses) begin(stop func()) (done func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended {
		return nil
	}
	if u.stops == nil {
		u.stops = map[int]func(){}
	}
	at := u.next
	u.next++
	u.stops[at] = stop
	u.all.Add(1)
	return func() {
		u.mu.Lock()
		delete(u.stops, at)
		u.mu.Unlock()
		u.all.Done()
	}
}

// end stops all, and waits until they have.
func (u *uses) end() {
	u.mu.Lock()
	u.ended = true
	for _, stop := range u.stops {
		stop()
	}
	u.mu.Unlock()
	u.all.Wait()
}

// deadlines are those of a request, moved on with every piece of a bulk part:
// whoever moves less than a piece in the time is slower than any link.
type deadlines struct {
	*http.ResponseController
	stall time.Duration
}

func (d deadlines) stop() {
	d.SetReadDeadline(time.Unix(1, 0))
	d.SetWriteDeadline(time.Unix(1, 0))
}

// parseRange reads the Range header of a download: none, or bytes=N-.
func parseRange(header string) (from int64, err error) {
	if header == "" {
		return 0, nil
	}
	number, is := strings.CutPrefix(header, "bytes=")
	number, open := strings.CutSuffix(number, "-")
	if !is || !open {
		return 0, fmt.Errorf("a range %q: want bytes=N-", header)
	}
	return parseCount(number)
}

// parseCount reads a number of bytes in the one way that it is written.
func parseCount(text string) (int64, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || strconv.FormatInt(n, 10) != text {
		return 0, fmt.Errorf("a number of bytes %q", text)
	}
	return n, nil
}

func parseDigest(text string) (digest [sha256.Size]byte, err error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != sha256.Size || hex.EncodeToString(b) != text {
		return digest, fmt.Errorf("a digest %q", text)
	}
	return [sha256.Size]byte(b), nil
}

// down serves the bulk part of a call that waits at the site that asks.
func (s *Server) down(w http.ResponseWriter, r *http.Request) {
	digest, err := parseDigest(r.PathValue("digest"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	from, err := parseRange(r.Header.Get("Range"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	limits := deadlines{http.NewResponseController(w), s.Limits.Stall}
	bulk, done := s.offered(callerOf(r.Context()).site, digest, limits.stop)
	if done == nil {
		http.Error(w, "no call with this bulk part waits for this site", http.StatusNotFound)
		return
	}
	defer done()
	if from > bulk.Length {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", bulk.Length))
		http.Error(w, "there are fewer bytes", http.StatusRequestedRangeNotSatisfiable)
		return
	}
	content, err := bulk.Open()
	if err != nil {
		s.Logger.Error("a bulk part cannot be read", "error", err)
		http.Error(w, "the bulk part cannot be read", http.StatusInternalServerError)
		return
	}
	defer content.Close()
	header := w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Content-Length", strconv.FormatInt(bulk.Length-from, 10))
	if from > 0 {
		header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, bulk.Length-1, bulk.Length))
		w.WriteHeader(http.StatusPartialContent)
	}
	buffer := pieces.Get().(*[]byte)
	defer pieces.Put(buffer)
	rest := io.NewSectionReader(content, from, bulk.Length-from)
	for {
		limits.SetWriteDeadline(time.Now().Add(limits.stall))
		n, err := io.ReadFull(rest, *buffer)
		if n > 0 {
			if _, err := w.Write((*buffer)[:n]); err != nil {
				return // the site will ask for the rest
			}
		}
		if err != nil {
			return
		}
	}
}

// offered finds the bulk part of any call that waits at the site, for use until
// done is called.
func (s *Server) offered(site string, digest [sha256.Size]byte, stop func()) (bulk Bulk, done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.sites[site]; p != nil {
		for _, c := range p.calls {
			if !c.Bulk.None() && c.Bulk.Digest == digest {
				if done = c.uses.begin(stop); done != nil {
					return c.Bulk, done
				}
			}
		}
	}
	return Bulk{}, nil
}

// upload is the bulk part of an answer on its way in.
type upload struct {
	path   string
	digest [sha256.Size]byte
	length int64

	turn   sync.Mutex // held by the request that is at work on it
	stopMu sync.Mutex
	stop   func() // stops that request

	file   *os.File // nil when it is whole
	hash   hash.Hash
	offset int64
	whole  bool
	handed bool // to whoever asked, who removes it
}

// begin opens what has arrived of an answer's bulk part, in this process or an
// earlier one.
func (s *Server) begin(c *call, digest [sha256.Size]byte, length int64) (*upload, error) {
	c.uploading.Lock()
	defer c.uploading.Unlock()
	if u := c.upload; u != nil {
		if u.digest == digest && u.length == length {
			return u, nil
		}
		u.interrupt()
		u.turn.Lock()
		u.end()
		u.turn.Unlock()
		c.upload = nil
	}
	dir := s.spool(c.site)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	u := &upload{path: filepath.Join(dir, c.ID+"."+hex.EncodeToString(digest[:])), digest: digest, length: length, hash: sha256.New()}
	var err error
	if u.file, err = os.OpenFile(u.path, os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, err
	}
	if u.offset, err = copyTo(u.hash, u.file); err != nil {
		u.file.Close()
		return nil, err
	}
	if u.offset > length {
		if err := u.restart(); err != nil {
			u.file.Close()
			return nil, err
		}
	}
	c.upload = u
	return u, nil
}

// restart forgets what has arrived.
func (u *upload) restart() error {
	u.hash.Reset()
	u.offset = 0
	if err := u.file.Truncate(0); err != nil {
		return err
	}
	_, err := u.file.Seek(0, io.SeekStart)
	return err
}

func (u *upload) interrupt() {
	u.stopMu.Lock()
	defer u.stopMu.Unlock()
	if u.stop != nil {
		u.stop()
	}
}

// enter takes the turn from a request that may hang on a dead link.
func (u *upload) enter(stop func()) (leave func()) {
	u.interrupt()
	u.turn.Lock()
	u.stopMu.Lock()
	u.stop = stop
	u.stopMu.Unlock()
	return func() {
		u.stopMu.Lock()
		u.stop = nil
		u.stopMu.Unlock()
		u.turn.Unlock()
	}
}

// end removes what has arrived, unless it was handed over.
func (u *upload) end() {
	if u.file != nil {
		u.file.Close()
		u.file = nil
	}
	if !u.handed {
		os.Remove(u.path)
	}
}

// arrived is the bulk part of the answer, whole.
func (c *call) arrived(digest [sha256.Size]byte, length uint64) (Bulk, *upload, error) {
	c.uploading.Lock()
	u := c.upload
	c.uploading.Unlock()
	if u == nil || u.digest != digest || uint64(u.length) != length {
		return Bulk{}, nil, errors.New("its bulk part was not sent")
	}
	u.turn.Lock()
	defer u.turn.Unlock()
	if !u.whole {
		return Bulk{}, nil, fmt.Errorf("%d of %d bytes of its bulk part have arrived", u.offset, u.length)
	}
	b := inFile(u.path, u.length)
	b.Digest = digest
	b.drop = once(func() error { return os.Remove(u.path) })
	return b, u, nil
}

var (
	errTooLong  = errors.New("more bytes than were announced")
	errMismatch = errors.New("the bytes do not have the digest that was announced")
)

// up takes the bulk part of an answer: HEAD asks how much is there, PATCH adds to
// it.
func (s *Server) up(w http.ResponseWriter, r *http.Request) {
	refuse := func(status int, format string, arguments ...any) {
		http.Error(w, fmt.Sprintf(format, arguments...), status)
	}
	if r.Method != http.MethodHead && r.Method != http.MethodPatch {
		w.Header().Set("Allow", "HEAD, PATCH")
		refuse(http.StatusMethodNotAllowed, "HEAD and PATCH are served here")
		return
	}
	digest, err := parseDigest(r.PathValue("digest"))
	if err != nil {
		refuse(http.StatusBadRequest, "%v", err)
		return
	}
	length, err := parseCount(r.Header.Get(lengthHeader))
	if err != nil {
		refuse(http.StatusBadRequest, "%s: %v", lengthHeader, err)
		return
	}
	c := s.waiting(callerOf(r.Context()).site, r.PathValue("call"))
	if c == nil {
		refuse(http.StatusNotFound, "no such call waits for this site")
		return
	}
	if c.Room == 0 {
		refuse(http.StatusRequestEntityTooLarge, "no bulk part was asked for")
		return
	}
	if length > c.Room {
		refuse(http.StatusRequestEntityTooLarge, "%d bytes, at most %d are allowed", length, c.Room)
		return
	}
	limits := deadlines{http.NewResponseController(w), s.Limits.Stall}
	done := c.uses.begin(limits.stop)
	if done == nil {
		refuse(http.StatusNotFound, "no such call waits for this site")
		return
	}
	defer done()
	u, err := s.begin(c, digest, length)
	if err != nil {
		s.Logger.Error("a bulk part cannot be spooled", "site", c.site, "error", err)
		refuse(http.StatusInsufficientStorage, "the bulk part cannot be spooled")
		return
	}
	defer u.enter(limits.stop)()
	if r.Method == http.MethodPatch {
		from, err := parseCount(r.Header.Get(offsetHeader))
		if err != nil {
			refuse(http.StatusBadRequest, "%s: %v", offsetHeader, err)
			return
		}
		if from != u.offset {
			w.Header().Set(offsetHeader, strconv.FormatInt(u.offset, 10))
			refuse(http.StatusConflict, "%d bytes are there", u.offset)
			return
		}
		switch err := u.take(r.Body, limits); {
		case errors.Is(err, errTooLong):
			refuse(http.StatusRequestEntityTooLarge, "%v", err)
			return
		case errors.Is(err, errMismatch):
			refuse(http.StatusUnprocessableEntity, "%v", err)
			return
		case errors.Is(err, errSpool):
			s.Logger.Error("a bulk part cannot be spooled", "site", c.site, "error", err)
			refuse(http.StatusInsufficientStorage, "the bulk part cannot be spooled")
			return
		}
	}
	w.Header().Set(offsetHeader, strconv.FormatInt(u.offset, 10))
	w.WriteHeader(http.StatusNoContent)
}

var errSpool = errors.New("spooling")

// take adds what a request brings. A link that breaks is no error: what came is
// there, and the site asks where to go on.
func (u *upload) take(body io.Reader, limits deadlines) error {
	if u.whole {
		return nil
	}
	if u.file == nil {
		return errSpool
	}
	buffer := pieces.Get().(*[]byte)
	defer pieces.Put(buffer)
	for {
		limits.SetReadDeadline(time.Now().Add(limits.stall))
		n, reading := io.ReadFull(body, *buffer)
		if u.offset+int64(n) > u.length {
			if err := u.restart(); err != nil {
				return fmt.Errorf("%w: %w", errSpool, err)
			}
			return errTooLong
		}
		if n > 0 {
			written, err := u.file.Write((*buffer)[:n])
			u.hash.Write((*buffer)[:written])
			u.offset += int64(written)
			if err != nil {
				return fmt.Errorf("%w: %w", errSpool, err)
			}
		}
		if reading != nil {
			break
		}
	}
	if u.offset < u.length {
		return nil
	}
	if [sha256.Size]byte(u.hash.Sum(nil)) != u.digest {
		if err := u.restart(); err != nil {
			return fmt.Errorf("%w: %w", errSpool, err)
		}
		return errMismatch
	}
	if err := u.file.Sync(); err != nil {
		return fmt.Errorf("%w: %w", errSpool, err)
	}
	u.whole = true
	err := u.file.Close()
	u.file = nil
	if err != nil {
		return fmt.Errorf("%w: %w", errSpool, err)
	}
	return nil
}
