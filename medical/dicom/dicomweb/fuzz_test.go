package dicomweb

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/vigie/vigie/medical/dicom/dimse"
)

// FuzzSTOW posts any body with any content type. Whatever it is: no panic, one
// discard for every spool, an answer that names every stored object, and no
// more spooled than was sent.
func FuzzSTOW(f *testing.F) {
	contentType, body := multipartBody(f, dicomParts(object(f, ctStorage, "1", "1", "1.1", 100), object(f, scStorage, "1", "1", "1.2", 9000)))
	f.Add(contentType, body)
	f.Add("multipart/related; boundary=b", []byte("--b\r\n\r\nhello\r\n--b--"))
	f.Add("multipart/related; boundary=b", []byte("--b\nContent-Type: application/dicom\n\n--b\n\n--b--\n"))
	f.Add(`multipart/related; type="application/dicom"; boundary="a b"`, []byte("preamble\r\n--a b\r\n"))
	f.Add("application/dicom", []byte{})
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		var spools []*spool
		accepted, size := 0, 0
		handler, err := NewHandler(Config{
			Authorize: func(*http.Request) (Peer, error) { return Peer{}, nil },
			NewSpool: func() (dimse.Spool, error) {
				spools = append(spools, &spool{})
				return spools[len(spools)-1], nil
			},
			Store: func(_ context.Context, r StoreRequest) dimse.Status {
				accepted++
				size += r.Spool.(*spool).Len()
				if r.Size != int64(r.Spool.(*spool).Len()) || !validUID(r.SOPInstance) || !validUID(r.SOPClass) {
					panic(fmt.Sprintf("%+v", r))
				}
				return dimse.Success
			},
			MaxObject: 1 << 20, MaxParts: 50,
		})
		if err != nil {
			t.Fatal(err)
		}
		request := httptest.NewRequest("POST", "/studies", bytes.NewReader(body))
		request.Header.Set("Content-Type", contentType)
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, request)
		if size > len(body) {
			t.Fatalf("%d bytes spooled of %d", size, len(body))
		}
		for _, s := range spools {
			if s.discarded != 1 {
				t.Fatalf("Discard was called %d times", s.discarded)
			}
		}
		if recorder.Header().Get("Content-Type") == mediaJSON {
			answer, err := parseAnswer(recorder.Body.Bytes())
			if err != nil || len(answer.Stored) != accepted {
				t.Fatalf("%d stored, %d acknowledged, %v: %s", accepted, len(answer.Stored), err, recorder.Body)
			}
		} else if accepted > 0 {
			t.Fatal("objects were stored and not acknowledged")
		}
	})
}
