package wire

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"github.com/vigie/vigie/federate/wire/protocol"
)

// lone is a server with one call that waits at lyon, as its handlers see it.
func lone(t *testing.T, c Call) (*Server, *call, context.Context) {
	t.Helper()
	s, err := NewServer(Options{Federation: "north", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	c.ID, c.Run, c.Kind, c.Body = "call-1", "1", "test", json.RawMessage(`{}`)
	waiting := &call{Call: c, site: "lyon", answer: make(chan Reply, 1), failed: make(chan error, 1)}
	if err := s.enqueue(waiting); err != nil {
		t.Fatal(err)
	}
	return s, waiting, context.WithValue(t.Context(), callerKey{}, caller{site: "lyon"})
}

// However an upload is cut into requests, what is there is a beginning of what was
// sent in order, and it is whole only with its digest.
func FuzzUpload(f *testing.F) {
	f.Add("0", "10", []byte("0123456789"), "0", []byte("x"))
	f.Add("0", "10", []byte("01234"), "5", []byte("56789"))
	f.Add("5", "10", []byte("01234"), "0", []byte("0123456789abc"))
	f.Add("-1", "1e3", []byte(nil), "00", []byte("\x00"))
	f.Fuzz(func(t *testing.T, first, length string, one []byte, second string, two []byte) {
		whole := []byte("0123456789")
		digest := sha256.Sum256(whole)
		s, c, ctx := lone(t, Call{Room: 64})
		send := func(offset string, body []byte) int {
			r := httptest.NewRequestWithContext(ctx, http.MethodPatch, upPath+"call-1/"+hex.EncodeToString(digest[:]), bytes.NewReader(body))
			r.SetPathValue("call", "call-1")
			r.SetPathValue("digest", hex.EncodeToString(digest[:]))
			r.Header[offsetHeader], r.Header[lengthHeader] = []string{offset}, []string{length}
			w := httptest.NewRecorder()
			s.up(w, r)
			return w.Code
		}
		codes := []int{send(first, one), send(second, two)}
		n, err := strconv.ParseInt(length, 10, 64)
		if err != nil || n < 0 || n > 64 {
			if c.upload != nil {
				t.Fatalf("a length of %q began an upload: %v", length, codes)
			}
			return
		}
		if c.upload == nil {
			return // it was written in another way
		}
		data, err := os.ReadFile(c.upload.path)
		if err != nil || int64(len(data)) > n || int64(len(data)) != c.upload.offset {
			t.Fatalf("%d bytes of %d are there, and %d are counted: %v", len(data), n, c.upload.offset, err)
		}
		if c.upload.whole != (bytes.Equal(data, whole) && n == 10) && c.upload.whole {
			t.Fatalf("%q is taken for whole", data)
		}
		s.dequeue(c)
		if left, _ := filepath.Glob(filepath.Join(s.Dir, "*", "*")); len(left) > 0 {
			t.Fatalf("left are %v", left)
		}
	})
}

func FuzzDownload(f *testing.F) {
	whole := []byte("0123456789")
	for _, header := range []string{"", "bytes=0-", "bytes=3-", "bytes=10-", "bytes=11-", "bytes=-3", "bytes=0-1", "bytes=1-,2-", "bytes=+1-", "items=1-"} {
		f.Add(header, hex.EncodeToString(sha256.New().Sum(nil)))
	}
	digest := sha256.Sum256(whole)
	f.Add("bytes=2-", hex.EncodeToString(digest[:]))
	f.Fuzz(func(t *testing.T, header, name string) {
		s, _, ctx := lone(t, Call{Bulk: Bytes(whole)})
		for _, at := range []string{name, hex.EncodeToString(digest[:])} {
			r := httptest.NewRequestWithContext(ctx, http.MethodGet, downPath, nil)
			r.SetPathValue("digest", at)
			if header != "" {
				r.Header["Range"] = []string{header}
			}
			w := httptest.NewRecorder()
			s.down(w, r)
			if w.Code == http.StatusOK && !bytes.Equal(w.Body.Bytes(), whole) || w.Code == http.StatusPartialContent && !bytes.HasSuffix(whole, w.Body.Bytes()) {
				t.Fatalf("range %q: %d %q", header, w.Code, w.Body)
			}
		}
	})
}

// A call is settled by a message that is an answer and by nothing else.
func FuzzAnswer(f *testing.F) {
	for _, m := range []*protocol.AnswerRequest{{Id: "call-1", Body: []byte(`{}`)}, {Id: "call-1", Failure: &protocol.Failure{Text: "\x00"}}, {Id: "call-2"},
		{Id: "call-1", Body: []byte(`{}`), Bulk: &protocol.Bulk{Sha256: make([]byte, 32), Length: 1 << 63}}} {
		data, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &protocol.AnswerRequest{}
		if proto.Unmarshal(data, m) != nil {
			return
		}
		s, c, ctx := lone(t, Call{})
		_, err := federation{s}.Answer(ctx, connect.NewRequest(m))
		good := m.Id == "call-1" && (m.Failure != nil || json.Valid(m.Body) && m.Bulk == nil)
		if c.over != good || (err == nil) != good {
			t.Fatalf("%v: settled %v, %v", m, c.over, err)
		}
	})
}

func FuzzSiteName(f *testing.F) {
	for _, uri := range []string{"spiffe://north/site/lyon", "spiffe://north/site/", "spiffe://north/site/a/b", "spiffe://north:1/site/a", "spiffe://u@north/site/a",
		"spiffe://north/site/a?b", "spiffe://north/site/a#b", "spiffe://north/site/%61", "SPIFFE://north/site/a", "spiffe://north/site/.."} {
		f.Add(uri)
	}
	f.Fuzz(func(t *testing.T, uri string) {
		id, err := url.Parse(uri)
		if err != nil {
			return
		}
		name, err := SiteName("north", &x509.Certificate{URIs: []*url.URL{id}})
		if err == nil && (!validSite(name) || !strings.EqualFold(uri, "spiffe://north/site/"+name)) {
			t.Fatalf("%q is %q", uri, name)
		}
	})
}

func FuzzOrder(f *testing.F) {
	f.Add([]byte(`{"step":"keys","round":1,"group":["a","b","c"],"model":"AA=="}`))
	f.Add([]byte(`{"step":"keys","round":1} {}`))
	f.Add([]byte(`{"round":-1}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		o, err := readOrder(body)
		if err != nil {
			return
		}
		again, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := readOrder(again); err != nil {
			t.Fatalf("%s is read and %s is not: %v", body, again, err)
		}
		if o.Weights != nil {
			t.Fatal("weights came with the order")
		}
	})
}
