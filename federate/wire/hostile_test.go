package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vigie/vigie/federate/wire/protocol"
)

// raw is a client that says what it likes.
type raw struct {
	st   *stage
	http *http.Client
	rpc  protocol.FederationClient
}

func (st *stage) raw(config *tls.Config, http2 bool) raw {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(http2)
	protocols.SetHTTP1(!http2)
	config = config.Clone()
	config.NextProtos = nil
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: config, Protocols: protocols}}
	st.t.Cleanup(c.CloseIdleConnections)
	return raw{st, c, protocol.NewFederationClient(c, "https://"+st.address)}
}

func (r raw) do(method, path string, header map[string]string, body io.Reader) (status int, answer http.Header, err error) {
	request, err := http.NewRequestWithContext(r.st.t.Context(), method, "https://"+r.st.address+path, body)
	if err != nil {
		return 0, nil, err
	}
	for k, v := range header {
		request.Header.Set(k, v)
	}
	response, err := r.http.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, response.Header, err
}

func (r raw) status(method, path string, header map[string]string, body io.Reader) int {
	r.st.t.Helper()
	status, _, err := r.do(method, path, header, body)
	if err != nil {
		r.st.t.Fatal(err)
	}
	return status
}

// pending asks a site that nobody plays.
func (st *stage) pending(site string, c Call) (answer chan error, cancel context.CancelFunc) {
	ctx, cancel := context.WithCancel(st.t.Context())
	answer = make(chan error, 1)
	c.Run, c.Kind, c.Body = "1", "test", json.RawMessage(`{}`)
	if c.Room == 0 {
		c.Room = 64 << 20
	}
	go func() {
		reply, err := st.Ask(ctx, site, c)
		reply.Bulk.Close()
		answer <- err
	}()
	until(st.t, "call that waits", func() bool { return st.waiting(site, c.ID) != nil })
	st.t.Cleanup(cancel)
	return answer, cancel
}

func TestOnlySitesOfTheFederationAreAdmitted(t *testing.T) {
	st := newStage(t, nil)
	other := newAuthority(t)
	good := st.authority.issue(t, SiteID("north", "lyon"))
	for what, config := range map[string]*tls.Config{
		"another authority":  other.issue(t, SiteID("north", "lyon")),
		"another federation": st.authority.issue(t, SiteID("south", "lyon")),
		"no name":            st.authority.issue(t),
		"two names":          st.authority.issue(t, SiteID("north", "lyon"), SiteID("north", "oslo")),
		"no site":            st.authority.issue(t, &url.URL{Scheme: "spiffe", Host: "north", Path: "/consortium"}),
		"a name with a path": st.authority.issue(t, SiteID("north", "lyon/x")),
		"a name that climbs": st.authority.issue(t, SiteID("north", "..")),
		"another scheme":     st.authority.issue(t, &url.URL{Scheme: "https", Host: "north", Path: "/site/lyon"}),
		"a query":            st.authority.issue(t, &url.URL{Scheme: "spiffe", Host: "north", Path: "/site/lyon", RawQuery: "a"}),
		"no certificate":     {RootCAs: good.RootCAs},
		"a certificate of TLS 1.2": func() *tls.Config {
			c := good.Clone()
			c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return c
		}(),
		"a certificate of its own": func() *tls.Config { c := other.issue(t, SiteID("north", "lyon")); c.RootCAs = good.RootCAs; return c }(),
	} {
		config = config.Clone()
		config.RootCAs = good.RootCAs
		r := st.raw(config, true)
		if status, _, err := r.do("GET", downPath+strings.Repeat("0", 64), nil, nil); err == nil && status != http.StatusForbidden {
			t.Errorf("%s: status %d", what, status)
		}
		stream, err := r.rpc.Events(t.Context(), connect.NewRequest(&protocol.Hello{Version: version}))
		if err == nil && stream.Receive() {
			t.Errorf("%s: it is admitted", what)
		}
	}
	if names := st.Connected(); len(names) > 0 {
		t.Errorf("connected are %v", names)
	}
	r := st.raw(good, false)
	if status, _, err := r.do("GET", downPath+strings.Repeat("0", 64), nil, nil); err == nil && status < 400 {
		t.Errorf("HTTP/1.1: status %d", status)
	}
	// nor is a site served by somebody with the certificate of a site
	config := st.authority.issue(t, SiteID("north", "mole"))
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	impostor := st.HTTP(config)
	go impostor.Serve(listener)
	defer impostor.Close()
	c := st.client("lyon")
	c.URL = "https://" + listener.Addr().String()
	session, err := c.start(echo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := session.listen(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "certificate of the site") {
		t.Errorf("the server is a site: %v", err)
	}
}

func TestASiteIsAdmittedAndSentAwayWithoutARestart(t *testing.T) {
	var gone atomic.Bool
	st := newStage(t, func(o *Options) {
		o.Limits.Alive = 50 * time.Millisecond
		o.Allowed = func(site string, certificate *x509.Certificate) error {
			if gone.Load() && site == "lyon" && certificate != nil {
				return errors.New("it has left the federation")
			}
			return nil
		}
	})
	st.play(st.client("lyon"), echo)
	st.play(st.client("oslo"), echo)
	st.connected("lyon", "oslo")
	gone.Store(true)
	st.connected("oslo")
	if status := st.raw(st.authority.issue(t, SiteID("north", "lyon")), true).status("GET", downPath+strings.Repeat("0", 64), nil, nil); status != http.StatusForbidden {
		t.Errorf("status %d", status)
	}
	gone.Store(false)
	st.connected("lyon", "oslo")
	if _, _, err := st.ask("lyon", Call{Body: json.RawMessage(`{}`)}); err != nil {
		t.Error(err)
	}
}

func TestASiteCannotSpeakForAnother(t *testing.T) {
	st := newStage(t, nil)
	secret := Bytes([]byte("weights for lyon"))
	answer, cancel := st.pending("lyon", Call{ID: "call-1", Bulk: secret})
	oslo := st.raw(st.authority.issue(t, SiteID("north", "oslo")), true)
	digest := hex.EncodeToString(secret.Digest[:])
	if status := oslo.status("GET", downPath+digest, nil, nil); status != http.StatusNotFound {
		t.Errorf("it fetches what is for another: %d", status)
	}
	if status := oslo.status("PATCH", upPath+"call-1/"+digest, map[string]string{lengthHeader: "1", offsetHeader: "0"}, strings.NewReader("x")); status != http.StatusNotFound {
		t.Errorf("it sends for another: %d", status)
	}
	if _, err := oslo.rpc.Answer(t.Context(), connect.NewRequest(&protocol.AnswerRequest{Id: "call-1", Body: []byte("{}")})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("it answers for another: %v", err)
	}
	lyon := st.raw(st.authority.issue(t, SiteID("north", "lyon")), true)
	if status := lyon.status("GET", downPath+digest, nil, nil); status != http.StatusOK {
		t.Errorf("it cannot fetch its own: %d", status)
	}
	if _, err := lyon.rpc.Answer(t.Context(), connect.NewRequest(&protocol.AnswerRequest{Id: "call-1", Body: []byte("{}")})); err != nil {
		t.Error(err)
	}
	if err := <-answer; err != nil {
		t.Error(err)
	}
	// what was answered is over: neither again, nor the weights
	if _, err := lyon.rpc.Answer(t.Context(), connect.NewRequest(&protocol.AnswerRequest{Id: "call-1", Body: []byte("{}")})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("the same answer again: %v", err)
	}
	if status := lyon.status("GET", downPath+digest, nil, nil); status != http.StatusNotFound {
		t.Errorf("the weights of a call that is over: %d", status)
	}
	cancel()
}

func TestABulkPartIsTakenAsItWasAnnouncedOrNotAtAll(t *testing.T) {
	st := newStage(t, nil)
	want := noise(300_000)
	digest := Bytes(want).Digest
	at := upPath + "call-1/" + hex.EncodeToString(digest[:])
	answer, cancel := st.pending("lyon", Call{ID: "call-1", Room: int64(len(want))})
	defer cancel()
	lyon := st.raw(st.authority.issue(t, SiteID("north", "lyon")), true)
	length := strconv.Itoa(len(want))
	head := func() string {
		status, header, err := lyon.do("HEAD", at, map[string]string{lengthHeader: length}, nil)
		if err != nil || status != http.StatusNoContent {
			t.Fatal(status, err)
		}
		return header.Get(offsetHeader)
	}
	patch := func(offset string, body []byte) int {
		return lyon.status("PATCH", at, map[string]string{lengthHeader: length, offsetHeader: offset}, bytes.NewReader(body))
	}
	tell := func(d []byte, n int) error {
		_, err := lyon.rpc.Answer(t.Context(), connect.NewRequest(&protocol.AnswerRequest{Id: "call-1", Body: []byte("{}"), Bulk: &protocol.Bulk{Sha256: d, Length: uint64(n)}}))
		return err
	}
	for what, c := range map[string]struct {
		method, path string
		header       map[string]string
		status       int
	}{
		"a length beyond the room": {"PATCH", at, map[string]string{lengthHeader: "300001", offsetHeader: "0"}, 413},
		"no length":                {"PATCH", at, map[string]string{offsetHeader: "0"}, 400},
		"a length below zero":      {"HEAD", at, map[string]string{lengthHeader: "-1"}, 400},
		"a length written oddly":   {"HEAD", at, map[string]string{lengthHeader: "+1"}, 400},
		"a length of many digits":  {"HEAD", at, map[string]string{lengthHeader: "99999999999999999999"}, 400},
		"no offset":                {"PATCH", at, map[string]string{lengthHeader: length}, 400},
		"no digest":                {"HEAD", upPath + "call-1/abc", map[string]string{lengthHeader: length}, 400},
		"a digest in capitals":     {"HEAD", strings.ToUpper(at[len(upPath)+7:]), map[string]string{lengthHeader: length}, 404},
		"another call":             {"HEAD", upPath + "call-2/" + hex.EncodeToString(digest[:]), map[string]string{lengthHeader: length}, 404},
		"a path that climbs":       {"HEAD", upPath + "..%2f..%2fx/" + hex.EncodeToString(digest[:]), map[string]string{lengthHeader: length}, 404},
		"another method":           {"POST", at, map[string]string{lengthHeader: length, offsetHeader: "0"}, 405},
		"a range of two":           {"GET", downPath + hex.EncodeToString(digest[:]), map[string]string{"Range": "bytes=0-1,5-"}, 400},
		"a call without bulk":      {"GET", downPath + hex.EncodeToString(digest[:]), nil, 404},
	} {
		path := c.path
		if !strings.HasPrefix(path, "/") {
			path = "/" + path
		}
		if status := lyon.status(c.method, path, c.header, nil); status != c.status {
			t.Errorf("%s: status %d, want %d", what, status, c.status)
		}
	}
	if err := tell(digest[:], len(want)); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("answered without what belongs to it: %v", err)
	}
	if status := patch("0", want[:1000]); status != 204 || head() != "1000" {
		t.Errorf("a part: %d, %s are there", status, head())
	}
	for _, offset := range []string{"0", "999", "1001", "300000"} {
		if status := patch(offset, want[1000:2000]); status != 409 || head() != "1000" {
			t.Errorf("from %s on: %d, %s are there", offset, status, head())
		}
	}
	if err := tell(digest[:], len(want)); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("answered with a part: %v", err)
	}
	if status := patch("1000", append(slices.Clone(want[1000:]), 0)); status != 413 || head() != "0" {
		t.Errorf("a byte too many: %d, %s are there", status, head())
	}
	bad := slices.Clone(want)
	bad[7]++
	if status := patch("0", bad); status != 422 || head() != "0" {
		t.Errorf("other bytes: %d, %s are there", status, head())
	}
	if status := patch("0", want); status != 204 || head() != length {
		t.Errorf("all: %d, %s are there", status, head())
	}
	for _, d := range [][]byte{nil, digest[:31], make([]byte, 32)} {
		if err := tell(d, len(want)); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("answered with a digest of %x: %v", d, err)
		}
	}
	if err := tell(digest[:], len(want)-1); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("answered with another length: %v", err)
	}
	if err := tell(digest[:], len(want)); err != nil {
		t.Error(err)
	}
	if err := <-answer; err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(st.Dir, "*", "*")); len(left) > 0 {
		t.Errorf("left in the spool: %v", left)
	}
}

func TestAnAnswerThatIsNoneIsNotOne(t *testing.T) {
	st := newStage(t, func(o *Options) { o.Limits.Message = 64 << 10 })
	answer, cancel := st.pending("lyon", Call{ID: "call-1"})
	lyon := st.raw(st.authority.issue(t, SiteID("north", "lyon")), true)
	for what, body := range map[string][]byte{"no JSON": []byte("{"), "nothing": nil, "too much": bytes.Repeat([]byte("1"), 70<<10)} {
		if _, err := lyon.rpc.Answer(t.Context(), connect.NewRequest(&protocol.AnswerRequest{Id: "call-1", Body: body})); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	for _, body := range []string{"", "garbage", strings.Repeat("\xff", 100_000)} {
		status := lyon.status("POST", protocol.FederationAnswerProcedure, map[string]string{"Content-Type": "application/proto"}, strings.NewReader(body))
		if status < 400 {
			t.Errorf("%d bytes of garbage: status %d", len(body), status)
		}
	}
	cancel()
	if err := <-answer; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	// and a site says so when it cannot answer within the limits
	st.play(st.client("lyon"), func(context.Context, Call) (Reply, error) {
		return Reply{Body: append(append([]byte(`"`), bytes.Repeat([]byte("1"), 70<<10)...), '"')}, nil
	})
	if _, _, err := st.ask("lyon", Call{Body: json.RawMessage(`{}`)}); !errors.Is(err, ErrFailed) {
		t.Error(err)
	}
	if _, _, err := st.ask("lyon", Call{Body: bytes.Repeat([]byte("1"), 70<<10)}); !errors.Is(err, ErrCall) {
		t.Errorf("a call beyond the limits: %v", err)
	}
	for _, c := range []Call{{Run: "a/b", Kind: "c", Body: json.RawMessage(`1`)}, {Run: "a", Kind: "c", Body: json.RawMessage(`{`)}, {Run: "a", Kind: "c", ID: "..", Body: json.RawMessage(`1`)}} {
		if _, err := st.Ask(t.Context(), "lyon", c); !errors.Is(err, ErrCall) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestWhoIsSlowerThanAnyLinkIsNotWaitedFor(t *testing.T) {
	st := newStage(t, func(o *Options) { o.Limits.Stall = 200 * time.Millisecond })
	silent, err := net.Dial("tcp", st.address)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, io.EOF) { // within the test's time
		t.Errorf("somebody who says nothing: %v", err)
	}
	want := noise(100)
	digest := Bytes(want).Digest
	at := upPath + "call-1/" + hex.EncodeToString(digest[:])
	answer, cancel := st.pending("lyon", Call{ID: "call-1"})
	lyon := st.raw(st.authority.issue(t, SiteID("north", "lyon")), true)
	slow, drip := io.Pipe()
	defer drip.Close()
	go drip.Write(want[:10]) // and no more
	status, header, err := lyon.do("PATCH", at, map[string]string{lengthHeader: "100", offsetHeader: "0"}, slow)
	if err != nil || status != 204 || header.Get(offsetHeader) != "10" {
		t.Errorf("ten bytes of a hundred: status %d, %s are there, %v", status, header.Get(offsetHeader), err)
	}
	// one that hangs gives way to one that goes on
	hung, drop := io.Pipe()
	defer drop.Close()
	go lyon.do("PATCH", at, map[string]string{lengthHeader: "100", offsetHeader: "10"}, hung)
	drop.Write(want[10:20])
	until(t, "rest of it", func() bool {
		_, header, err := lyon.do("HEAD", at, map[string]string{lengthHeader: "100"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		from, err := strconv.Atoi(header.Get(offsetHeader))
		if err != nil || from < 10 {
			t.Fatal(from, err)
		}
		status, _, err := lyon.do("PATCH", at, map[string]string{lengthHeader: "100", offsetHeader: header.Get(offsetHeader)}, bytes.NewReader(want[from:]))
		return err == nil && status == 204
	})
	if _, err := lyon.rpc.Answer(t.Context(), connect.NewRequest(&protocol.AnswerRequest{Id: "call-1", Body: []byte("{}"), Bulk: &protocol.Bulk{Sha256: digest[:], Length: 100}})); err != nil {
		t.Error(err)
	}
	if err := <-answer; err != nil {
		t.Error(err)
	}
	cancel()
}

func TestAServerThatLiesAboutABulkPartIsNotBelieved(t *testing.T) {
	st := newStage(t, nil)
	st.play(st.client("lyon"), func(_ context.Context, c Call) (Reply, error) {
		if !c.Bulk.None() {
			t.Error("the handler was shown bytes that do not have their digest")
		}
		return Reply{Body: c.Body}, nil
	})
	lie := Bytes(noise(5000))
	lie.Digest[3]++
	if _, _, err := st.ask("lyon", Call{Body: json.RawMessage(`{}`), Bulk: lie}); !errors.Is(err, ErrFailed) {
		t.Error(err)
	}
	short := Bytes(noise(5000))
	short.Length = 6000
	if _, _, err := st.ask("lyon", Call{Body: json.RawMessage(`{}`), Bulk: short}); !errors.Is(err, ErrFailed) {
		t.Error(err)
	}
	large := Bytes(noise(10))
	large.Length = 5 << 30
	if _, _, err := st.ask("lyon", Call{Body: json.RawMessage(`{}`), Bulk: large}); !errors.Is(err, ErrCall) {
		t.Error(err)
	}
}

func TestASiteLimitsWhatAServerAsksOfIt(t *testing.T) {
	st := newStage(t, nil)
	c := st.client("lyon")
	c.Limits.Bulk, c.Limits.Calls = 1000, 2
	block := make(chan struct{})
	st.play(c, func(_ context.Context, c Call) (Reply, error) {
		if c.Kind == "block" {
			<-block
		}
		return Reply{Body: c.Body}, nil
	})
	if _, _, err := st.ask("lyon", Call{Body: json.RawMessage(`{}`), Bulk: Bytes(noise(1001)), Room: 10}); !errors.Is(err, ErrRefused) {
		t.Errorf("a bulk part beyond the site's limit: %v", err)
	}
	answers := make(chan error, 3)
	for range 3 {
		go func() {
			_, _, err := st.ask("lyon", Call{Run: "1", Kind: "block", Body: json.RawMessage(`{}`), Room: 10})
			answers <- err
		}()
	}
	if err := <-answers; !errors.Is(err, ErrRefused) {
		t.Errorf("a third call at a time: %v", err)
	}
	close(block)
	for range 2 {
		if err := <-answers; err != nil {
			t.Error(err)
		}
	}
}

func TestAnotherVersionEndsTheClient(t *testing.T) {
	st := newStage(t, nil)
	lyon := st.raw(st.authority.issue(t, SiteID("north", "lyon")), true)
	stream, err := lyon.rpc.Events(t.Context(), connect.NewRequest(&protocol.Hello{Version: version + 1}))
	if err != nil {
		t.Fatal(err)
	}
	if stream.Receive() || connect.CodeOf(stream.Err()) != connect.CodeFailedPrecondition {
		t.Error(stream.Err())
	}
}

func TestABadAddressOrFolderIsSaidAtOnce(t *testing.T) {
	st := newStage(t, nil)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*Client){
		"no encryption": func(c *Client) { c.URL = "http://" + st.address },
		"a path":        func(c *Client) { c.URL += "/api" },
		"no host":       func(c *Client) { c.URL = "https://" },
		"no TLS":        func(c *Client) { c.TLS = nil },
		"no folder":     func(c *Client) { c.Dir = "" },
		"a file":        func(c *Client) { c.Dir = file },
	} {
		c := st.client("lyon")
		change(c)
		if err := c.Run(t.Context(), echo); err == nil {
			t.Errorf("%s: the client ran", what)
		}
	}
	for _, o := range []Options{{Dir: t.TempDir()}, {Federation: "north"}, {Federation: "north", Dir: file}} {
		if _, err := NewServer(o); err == nil {
			t.Errorf("%+v is a server", o)
		}
	}
}
