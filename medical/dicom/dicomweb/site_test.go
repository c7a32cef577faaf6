package dicomweb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dimse"
)

const (
	ctStorage = "1.2.840.10008.5.1.4.1.1.2"
	scStorage = "1.2.840.10008.5.1.4.1.1.7"
	srStorage = "1.2.840.10008.5.1.4.1.1.88.33"
)

type spool struct {
	bytes.Buffer
	discarded int
	fail      error
}

func (s *spool) Write(p []byte) (int, error) {
	if s.fail != nil {
		return 0, s.fail
	}
	return s.Buffer.Write(p)
}

func (s *spool) Discard() { s.discarded++ }

type received struct {
	StoreRequest
	file []byte
}

// site is a running handler with its ledger.
type site struct {
	*httptest.Server
	mu      sync.Mutex
	objects []received
	spools  []*spool
}

func (s *site) got() []received {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.objects)
}

func open(t testing.TB, adjust func(*Config)) *site {
	t.Helper()
	s := &site{}
	cfg := Config{
		Authorize: func(r *http.Request) (Peer, error) { return Peer{Name: "tester", RemoteAddr: r.RemoteAddr}, nil },
		NewSpool: func() (dimse.Spool, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.spools = append(s.spools, &spool{})
			return s.spools[len(s.spools)-1], nil
		},
		Store: func(_ context.Context, r StoreRequest) dimse.Status {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.objects = append(s.objects, received{r, bytes.Clone(r.Spool.(*spool).Bytes())})
			return dimse.Success
		},
	}
	if adjust != nil {
		adjust(&cfg)
	}
	handler, err := NewHandler(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Server = httptest.NewServer(http.StripPrefix("/dicom-web", handler))
	t.Cleanup(s.Close)
	s.URL += "/dicom-web"
	return s
}

// object makes a file of a class with some pixels.
func object(t testing.TB, class, study, series, instance string, pixels int) []byte {
	t.Helper()
	file := dicom.NewFile(dataSet(class, study, series, instance), dicom.ExplicitLittleEndian)
	if pixels > 0 {
		file.DataSet.PutBytes(dicom.PixelData, dicom.OW, bytes.Repeat([]byte{1, 2, 3, 4}, pixels/4))
	}
	var out bytes.Buffer
	if err := file.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func dataSet(class, study, series, instance string) *dicom.DataSet {
	d := &dicom.DataSet{}
	d.PutString(dicom.SOPClassUID, class)
	d.PutString(dicom.SOPInstanceUID, instance)
	d.PutString(dicom.StudyInstanceUID, study)
	d.PutString(dicom.SeriesInstanceUID, series)
	return d
}

// part is one part of a request.
type part struct {
	contentType string
	body        []byte
}

func dicomParts(files ...[]byte) []part {
	out := make([]part, len(files))
	for i, f := range files {
		out[i] = part{"application/dicom", f}
	}
	return out
}

// multipartBody writes the parts by the standard library, the other
// implementation.
func multipartBody(t testing.TB, parts []part) (contentType string, body []byte) {
	t.Helper()
	var out bytes.Buffer
	w := multipart.NewWriter(&out)
	for _, p := range parts {
		header := textproto.MIMEHeader{}
		if p.contentType != "" {
			header.Set("Content-Type", p.contentType)
		}
		pw, err := w.CreatePart(header)
		if err != nil {
			t.Fatal(err)
		}
		pw.Write(p.body)
	}
	w.Close()
	return fmt.Sprintf(`multipart/related; type="application/dicom"; boundary=%s`, w.Boundary()), out.Bytes()
}

// do sends a request and returns the status and the body.
func do(t testing.TB, method, url string, headers map[string]string, body io.Reader) (*http.Response, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range headers {
		r.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, answer
}

// post stores parts and returns the HTTP status and the parsed answer.
func (s *site) post(t testing.TB, path string, parts []part) (int, Answer) {
	t.Helper()
	contentType, body := multipartBody(t, parts)
	response, answer := do(t, "POST", s.URL+path, map[string]string{"Content-Type": contentType}, bytes.NewReader(body))
	if response.Header.Get("Content-Type") != mediaJSON {
		return response.StatusCode, Answer{}
	}
	parsed, err := parseAnswer(answer)
	if err != nil {
		t.Fatalf("%v in %s", err, answer)
	}
	return response.StatusCode, parsed
}

// memoryArchive is an archive of files.
type memoryArchive struct {
	files [][]byte
	fail  error
	seen  []Scope
}

func (a *memoryArchive) Instances(_ context.Context, _ Peer, scope Scope) iter.Seq2[Instance, error] {
	a.seen = append(a.seen, scope)
	return func(yield func(Instance, error) bool) {
		for _, bytesOfFile := range a.files {
			file, err := dicom.Parse(bytes.NewReader(bytesOfFile), dicom.Limits{})
			if err != nil {
				yield(Instance{}, err)
				return
			}
			if !yield(Instance{
				Header: file.DataSet, TransferSyntax: file.TransferSyntax,
				Open: func(context.Context) (io.ReadCloser, error) {
					return io.NopCloser(bytes.NewReader(bytesOfFile)), a.fail
				},
			}, nil) {
				return
			}
		}
		if a.fail != nil && len(a.files) == 0 {
			yield(Instance{}, a.fail)
		}
	}
}

var errFull = errors.New("no space left on device")
