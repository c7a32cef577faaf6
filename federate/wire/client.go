package wire

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/vigie/vigie/federate/wire/protocol"
)

// Client is a site's end of its link to the server.
type Client struct {
	URL    string      // https://HOST:PORT of the server
	TLS    *tls.Config // with the site's certificate and the authority of the server's; TLS 1.3
	Dir    string      // where what arrives is spooled; made if it is not there, and this client's alone
	Limits Limits
	// Backoff is how long the client waits before it tries again, after the first
	// failure; it doubles from one to the next, up to 64 times. 0: 250 ms.
	Backoff  time.Duration
	Compress bool // messages by gzip
	// Accepts says whether the bulk part of a call is fetched, by its length, its
	// digest and the call's body; nil fetches all within Limits. The handler is shown
	// one that is not fetched as None.
	Accepts func(Call) bool
	// Connected is told when the link is made and when it is lost; may be nil.
	Connected func(bool)
	Logger    *slog.Logger // nil discards
}

// session is a client that runs.
type session struct {
	*Client
	handler Handler
	http    *http.Client
	rpc     protocol.FederationClient

	mu sync.Mutex
	// refusing says that the server is told of a call beyond the limit.
	refusing bool
	calls    map[string]*work
	order    []string      // of calls, oldest first
	linked   chan struct{} // closed when the link is made again

	fetching sync.Mutex
	verified map[[sha256.Size]byte]bool // files of this folder
	recent   [][sha256.Size]byte        // fetched, latest last
}

// work is a call at the site.
type work struct {
	cancel context.CancelFunc
	done   bool // the server has the answer, or does not want it
	small  bool // the answer may be kept
	reply  Reply
	err    error
	ready  bool // the handler has returned
}

// tries is how often bytes that are not those that were announced are tried
// again: a file may have been left behind by another try.
const tries = 3

// keptAnswers is how many answers are kept for calls that come again.
const keptAnswers = 256

// Run keeps the link until the context ends, and answers calls by the handler. It
// connects again whenever the link breaks. It returns the context's error, or one
// that wraps ErrReplaced or ErrVersion.
func (c *Client) Run(ctx context.Context, h Handler) error {
	s, err := c.start(h)
	if err != nil {
		return err
	}
	defer s.http.CloseIdleConnections()
	ctx, stop := context.WithCancel(ctx)
	var works sync.WaitGroup
	defer works.Wait()
	defer stop()
	failures := 0
	for {
		met, err := s.listen(ctx, &works)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if met {
			failures = 0
		}
		switch connect.CodeOf(err) {
		case connect.CodeAborted:
			return fmt.Errorf("wire: listening to %s: %w", s.URL, ErrReplaced)
		case connect.CodeFailedPrecondition:
			return fmt.Errorf("wire: listening to %s: %w: %w", s.URL, ErrVersion, err)
		}
		s.Logger.Warn("the link to the server is down", "url", s.URL, "error", err)
		if err := s.wait(ctx, failures, nil); err != nil {
			return err
		}
		failures++
	}
}

func (c *Client) start(h Handler) (*session, error) {
	fail := func(err error) (*session, error) { return nil, fmt.Errorf("wire: starting a client: %w", err) }
	at, err := url.Parse(c.URL)
	if err != nil {
		return fail(err)
	}
	if at.Scheme != "https" || at.Host == "" || strings.Trim(at.Path, "/") != "" || at.RawQuery != "" {
		return fail(fmt.Errorf("the server's address is %q: want https://HOST:PORT", c.URL))
	}
	if c.TLS == nil || c.Dir == "" || h == nil {
		return fail(errors.New("it needs a TLS configuration, a folder and a handler"))
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return fail(err)
	}
	copied := *c
	s := &session{Client: &copied, handler: h, calls: map[string]*work{}, linked: make(chan struct{}), verified: map[[sha256.Size]byte]bool{}}
	s.URL = "https://" + at.Host
	s.Limits = c.Limits.filled()
	if s.Backoff <= 0 {
		s.Backoff = 250 * time.Millisecond
	}
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	config := c.TLS.Clone()
	config.MinVersion = tls.VersionTLS13
	verify := config.VerifyConnection
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if err := notASite(state); err != nil {
			return err
		}
		if verify != nil {
			return verify(state)
		}
		return nil
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	settings := http2Config(s.Limits)
	settings.MaxReceiveBufferPerConnection, settings.MaxReceiveBufferPerStream = 8<<20, 4<<20
	s.http = &http.Client{
		Transport: &http.Transport{
			TLSClientConfig: config, Protocols: protocols, HTTP2: settings, TLSHandshakeTimeout: s.Limits.Stall,
			ResponseHeaderTimeout: 0, WriteBufferSize: 64 << 10, ReadBufferSize: 64 << 10,
			Proxy: http.ProxyFromEnvironment,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	options := []connect.ClientOption{connect.WithReadMaxBytes(s.Limits.Message)}
	if s.Compress {
		options = append(options, connect.WithSendGzip(), connect.WithCompressMinBytes(1<<10))
	}
	s.rpc = protocol.NewFederationClient(s.http, s.URL, options...)
	return s, nil
}

// wait pauses after so many failures in a row, or until the channel is closed.
func (s *session) wait(ctx context.Context, failures int, until <-chan struct{}) error {
	pause := s.Backoff << min(failures, 6)
	pause = pause/2 + rand.N(pause/2+1) // so that a hundred sites do not come back at the same moment
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-until:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// listen holds one connection. met says that the server has spoken.
func (s *session) listen(ctx context.Context, works *sync.WaitGroup) (met bool, err error) {
	link, cut := context.WithCancel(ctx)
	defer cut()
	silence := time.AfterFunc(4*s.Limits.Alive, cut)
	defer silence.Stop()
	stream, err := s.rpc.Events(link, connect.NewRequest(&protocol.Hello{Version: version}))
	if err != nil {
		return false, err
	}
	defer stream.Close()
	for stream.Receive() {
		if !met {
			met = true
			s.link(true)
			defer s.link(false)
		}
		silence.Reset(4 * s.Limits.Alive)
		switch e := stream.Msg().Event.(type) {
		case *protocol.Event_Call:
			if err := s.accept(ctx, works, e.Call); err != nil {
				return met, err
			}
		case *protocol.Event_Cancel:
			s.cancel(e.Cancel)
		}
	}
	return met, stream.Err()
}

func (s *session) link(up bool) {
	s.mu.Lock()
	if up {
		close(s.linked)
		s.linked = make(chan struct{})
	}
	s.mu.Unlock()
	if s.Connected != nil {
		s.Connected(up)
	}
}

// again is closed when the link is made once more.
func (s *session) again() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.linked
}

// errFlood ends a connection on which more calls come than this site takes.
var errFlood = errors.New("the server sends more calls than this site takes at a time")

// accept starts work on a call, unless it is at work already. An error ends the
// connection.
func (s *session) accept(ctx context.Context, works *sync.WaitGroup, m *protocol.Call) error {
	c := Call{ID: m.Id, Run: m.Run, Kind: m.Kind, Body: m.Body, Room: int64(m.Room)}
	if m.Bulk != nil {
		if len(m.Bulk.Sha256) != sha256.Size || m.Bulk.Length > uint64(s.Limits.Bulk) {
			c.Bulk.Length = -1 // check refuses it
		} else {
			c.Bulk = Bulk{Length: int64(m.Bulk.Length), Digest: [sha256.Size]byte(m.Bulk.Sha256)}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.calls[c.ID]
	if old != nil && !old.done {
		return nil
	}
	running := 0 // or on its way back
	for _, w := range s.calls {
		if !w.done {
			running++
		}
	}
	if running >= s.Limits.Calls { // of which nothing is kept but who it was
		if s.refusing {
			return errFlood
		}
		s.refusing = true
		refused, many := Call{ID: c.ID, Kind: c.Kind}, running
		works.Go(func() {
			err := s.send(ctx, refused, &work{err: fmt.Errorf("%w: %d calls are at work here", ErrRefused, many)})
			if err != nil {
				s.Logger.Warn("a call too many was not answered", "call", refused.ID, "error", err)
			}
			s.mu.Lock()
			s.refusing = false
			s.mu.Unlock()
		})
		return nil
	}
	if old != nil && old.small { // the server has lost the answer
		old.done = false
		c.Body = nil
		works.Go(func() { s.deliver(ctx, c, old) })
		return nil
	}
	working, cancel := context.WithCancel(ctx)
	w := &work{cancel: cancel}
	s.calls[c.ID] = w
	s.order = append(slices.DeleteFunc(s.order, func(id string) bool { return id == c.ID }), c.ID)
	s.forget()
	bulk := m.Bulk != nil
	works.Go(func() {
		defer cancel()
		w.reply, w.err = s.work(working, c, bulk)
		c.Body = nil // which may be long, and the answer may wait
		s.mu.Lock()
		w.ready = true
		silent := errors.Is(w.err, ErrSilent)
		if silent { // if it comes again, it is a new one
			delete(s.calls, c.ID)
			s.order = slices.DeleteFunc(s.order, func(id string) bool { return id == c.ID })
		}
		s.mu.Unlock()
		if !silent {
			s.deliver(ctx, c, w)
		}
	})
	return nil
}

// forget drops the oldest answers. s.mu is held.
func (s *session) forget() {
	for i := 0; len(s.order) > keptAnswers && i < len(s.order); {
		if w := s.calls[s.order[i]]; !w.done {
			i++
			continue
		}
		delete(s.calls, s.order[i])
		s.order = slices.Delete(s.order, i, i+1)
	}
}

// cancel ends the work on a call that nobody waits for any more.
func (s *session) cancel(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w := s.calls[id]; w != nil && !w.done {
		w.cancel()
	}
}

// work fetches the bulk part and calls the handler.
func (s *session) work(ctx context.Context, c Call, bulk bool) (Reply, error) {
	if c.Bulk.Length < 0 || c.Room < 0 {
		return Reply{}, fmt.Errorf("%w: a bulk part beyond %d bytes, or without a digest", ErrRefused, s.Limits.Bulk)
	}
	if err := c.check(s.Limits); err != nil {
		return Reply{}, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if bulk && (s.Accepts == nil || s.Accepts(c)) {
		var err error
		if c.Bulk, err = s.fetch(ctx, c.Bulk); err != nil {
			return Reply{}, err
		}
	}
	return s.handler(ctx, c)
}

// giveUp is how often it is tried to bring an answer to the server: for more than
// twenty minutes, with the pauses between. If the call comes again, so does the
// answer.
const giveUp = 100

// deliver brings the answer to the server, however often the link breaks, until
// the server has it or does not want it, or has not taken it for long.
func (s *session) deliver(ctx context.Context, c Call, w *work) {
	defer func() {
		w.reply.Bulk.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		w.done, w.small = true, w.reply.Bulk.None() && len(w.reply.Body) <= 64<<10
		if !w.small {
			w.reply = Reply{}
		}
	}()
	for failures := 0; ; failures++ {
		again := s.again()
		err := s.send(ctx, c, w)
		if err == nil || errors.Is(err, errUnwanted) {
			return
		}
		if errors.Is(err, errNever) {
			w.reply.Bulk.Close()
			w.reply, w.err = Reply{}, err
			continue
		}
		s.Logger.Warn("an answer is not delivered yet", "call", c.ID, "kind", c.Kind, "error", err)
		if failures == giveUp || s.wait(ctx, failures, again) != nil {
			return
		}
	}
}

var (
	errUnwanted = errors.New("nobody waits for this answer any more")
	errNever    = errors.New("the server will not take this answer")
)

// send tries once to bring an answer to the server.
func (s *session) send(ctx context.Context, c Call, w *work) error {
	m := &protocol.AnswerRequest{Id: c.ID}
	switch b := w.reply.Bulk; {
	case w.err != nil:
		m.Failure = &protocol.Failure{Refused: errors.Is(w.err, ErrRefused), Text: shorten(strings.TrimPrefix(w.err.Error(), ErrRefused.Error()+": "))}
	case !json.Valid(w.reply.Body):
		return fmt.Errorf("%w: its body is not JSON", errNever)
	case len(w.reply.Body) > s.Limits.Message-1024:
		return fmt.Errorf("%w: a body of %d bytes", errNever, len(w.reply.Body))
	default:
		m.Body = w.reply.Body
		if !b.None() {
			if b.Length > c.Room {
				return fmt.Errorf("%w: %d bytes, and there is room for %d", errNever, b.Length, c.Room)
			}
			if err := s.push(ctx, c.ID, b); err != nil {
				return err
			}
			m.Bulk = &protocol.Bulk{Sha256: b.Digest[:], Length: uint64(b.Length)}
		}
	}
	limited, cancel := context.WithTimeout(ctx, 4*s.Limits.Stall)
	defer cancel()
	request := connect.NewRequest(m)
	request.Header().Set(callHeader, c.ID)
	_, err := s.rpc.Answer(limited, request)
	switch connect.CodeOf(err) {
	case connect.CodeNotFound:
		return errUnwanted
	case connect.CodeInvalidArgument, connect.CodeResourceExhausted:
		if m.Failure == nil {
			return fmt.Errorf("%w: %w", errNever, err)
		}
		return errUnwanted
	}
	return err
}

// moving is the context of a transfer: it ends when nothing has moved for the
// limit of stalls.
func (s *session) moving(ctx context.Context) (context.Context, *mover, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	m := &mover{limit: s.Limits.Stall}
	m.timer = time.AfterFunc(m.limit, cancel)
	return ctx, m, func() { m.timer.Stop(); cancel() }
}

type mover struct {
	io.Reader
	timer *time.Timer
	limit time.Duration
}

func (m *mover) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	if n > 0 {
		m.timer.Reset(m.limit)
	}
	return n, err
}

// push sends what the server does not have yet of an answer's bulk part.
func (s *session) push(ctx context.Context, id string, b Bulk) error {
	at := s.URL + upPath + id + "/" + hex.EncodeToString(b.Digest[:])
	content, err := b.Open()
	if err != nil {
		return fmt.Errorf("%w: %w", errNever, err)
	}
	defer content.Close()
	mismatches := 0
	try := func(method string, from int64) (there int64, err error) {
		ctx, move, stop := s.moving(ctx)
		defer stop()
		var body io.Reader
		if method == http.MethodPatch {
			move.Reader = io.NewSectionReader(content, from, b.Length-from)
			body = move
		}
		r, err := http.NewRequestWithContext(ctx, method, at, body)
		if err != nil {
			return 0, err
		}
		r.Header.Set(lengthHeader, strconv.FormatInt(b.Length, 10))
		if method == http.MethodPatch {
			r.Header.Set(offsetHeader, strconv.FormatInt(from, 10))
			r.ContentLength = b.Length - from
			if r.ContentLength == 0 {
				r.Body = http.NoBody
			}
		}
		answer, err := s.http.Do(r)
		if err != nil {
			return 0, err
		}
		defer answer.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
		switch answer.StatusCode {
		case http.StatusNoContent, http.StatusConflict:
			there, err := parseCount(answer.Header.Get(offsetHeader))
			if err != nil || there > b.Length {
				return 0, fmt.Errorf("%w: it says that %q bytes are there", errNever, answer.Header.Get(offsetHeader))
			}
			return there, nil
		case http.StatusNotFound:
			return 0, errUnwanted
		case http.StatusUnprocessableEntity:
			if mismatches++; mismatches < tries { // bytes of an earlier try may have been bad
				return 0, nil
			}
			fallthrough
		case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusMethodNotAllowed:
			return 0, fmt.Errorf("%w: %s: %s", errNever, answer.Status, strings.TrimSpace(string(text)))
		}
		return 0, fmt.Errorf("the server answers %s", answer.Status)
	}
	there, err := try(http.MethodHead, 0)
	if err != nil {
		return err
	}
	for {
		next, err := try(http.MethodPatch, there)
		if err != nil {
			return err
		}
		if next == b.Length && next >= there {
			return nil
		}
		there = next
	}
}

// fetch brings a bulk part here, or finds it here.
func (s *session) fetch(ctx context.Context, want Bulk) (Bulk, error) {
	s.fetching.Lock()
	defer s.fetching.Unlock()
	name := hex.EncodeToString(want.Digest[:])
	path := filepath.Join(s.Dir, name)
	b := inFile(path, want.Length)
	b.Digest = want.Digest
	if !s.verified[want.Digest] {
		have, err := File(path)
		s.verified[want.Digest] = err == nil && have.Digest == want.Digest && have.Length == want.Length
	}
	s.recent = append(slices.DeleteFunc(s.recent, func(d [sha256.Size]byte) bool { return d == want.Digest }), want.Digest)
	s.prune()
	if s.verified[want.Digest] {
		return b, nil
	}
	mismatches := 0
	for failures := 0; ; failures++ {
		again := s.again()
		err := s.pull(ctx, name, path, want)
		if err == nil {
			s.verified[want.Digest] = true
			return b, nil
		}
		if errors.Is(err, errMismatch) || errors.Is(err, errBarren) {
			mismatches++
		}
		if errors.Is(err, errUnwanted) || ctx.Err() != nil || mismatches == tries {
			return Bulk{}, fmt.Errorf("wire: fetching a bulk part: %w", err)
		}
		s.Logger.Warn("a bulk part is not here yet", "digest", name, "error", err)
		if err := s.wait(ctx, failures, again); err != nil {
			return Bulk{}, err
		}
	}
}

// keptBulks is how many bulk parts stay here.
const keptBulks = 2

// prune removes all bulk parts but the latest.
func (s *session) prune() {
	if len(s.recent) > keptBulks {
		s.recent = slices.Delete(s.recent, 0, len(s.recent)-keptBulks)
	}
	entries, err := os.ReadDir(s.Dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		digest, err := parseDigest(strings.TrimSuffix(e.Name(), partSuffix))
		if err == nil && !slices.Contains(s.recent, digest) {
			os.Remove(filepath.Join(s.Dir, e.Name()))
			delete(s.verified, digest)
		}
	}
}

const partSuffix = ".part"

// errBarren is an answer that ends without a byte of what it announced.
var errBarren = errors.New("the server announces more than it has")

// pull fetches what is missing of a bulk part, and names the file when it is
// whole and has its digest.
func (s *session) pull(ctx context.Context, name, path string, want Bulk) error {
	file, err := os.OpenFile(path+partSuffix, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	hash := sha256.New()
	have, err := copyTo(hash, file)
	if err != nil {
		return err
	}
	if have < want.Length {
		ctx, move, stop := s.moving(ctx)
		defer stop()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+downPath+name, nil)
		if err != nil {
			return err
		}
		if have > 0 {
			r.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
		}
		answer, err := s.http.Do(r)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		switch {
		case answer.StatusCode == http.StatusNotFound:
			return errUnwanted
		case have > 0 && answer.StatusCode == http.StatusPartialContent && strings.HasPrefix(answer.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", have)):
		case have == 0 && answer.StatusCode == http.StatusOK:
		default:
			return fmt.Errorf("the server answers %s", answer.Status)
		}
		move.Reader = io.LimitReader(answer.Body, want.Length-have+1)
		n, err := copyTo(io.MultiWriter(file, hash), move)
		if err != nil && n == 0 {
			return fmt.Errorf("%w: %w", errBarren, err)
		}
		if err != nil {
			return err // what came is there
		}
		have += n
	}
	if have != want.Length || [sha256.Size]byte(hash.Sum(nil)) != want.Digest {
		os.Remove(path + partSuffix)
		return errMismatch
	}
	return os.Rename(path+partSuffix, path)
}
