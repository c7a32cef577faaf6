package dicomweb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dimse"
)

func TestObjectsArriveByteForByte(t *testing.T) {
	s := open(t, nil)
	files := [][]byte{
		object(t, ctStorage, "1.1", "1.1.1", "1.1.1.1", 600_000),
		object(t, scStorage, "1.1", "1.1.2", "1.1.2.1", 4),
		// Just below, at and above what is read ahead to identify an object.
		object(t, ctStorage, "1.1", "1.1.3", "1.1.3.1", headLength-500), object(t, ctStorage, "1.1", "1.1.3", "1.1.3.2", headLength),
	}
	status, answer := s.post(t, "/studies", dicomParts(files...))
	if status != 200 || len(answer.Stored) != len(files) || len(answer.Failed) != 0 {
		t.Fatalf("%d, %+v", status, answer)
	}
	got := s.got()
	for i, file := range files {
		if !bytes.Equal(got[i].file, file) || got[i].Size != int64(len(file)) {
			t.Errorf("object %d changed on the way", i)
		}
		if answer.Stored[i] != (Reference{got[i].SOPClass, got[i].SOPInstance, dimse.Success}) {
			t.Errorf("answer %d is %+v", i, answer.Stored[i])
		}
	}
	if r := got[0].StoreRequest; r.SOPClass != ctStorage || r.SOPInstance != "1.1.1.1" || r.TransferSyntax != dicom.ExplicitLittleEndian || r.Study != "" || r.Peer.Name != "tester" {
		t.Errorf("request %+v", r)
	}
	for i, spool := range s.spools {
		if spool.discarded != 1 {
			t.Errorf("Discard of spool %d was called %d times", i, spool.discarded)
		}
	}
	if s.post(t, "/studies/1.1", dicomParts(files[0])); s.got()[len(files)].Study != "1.1" {
		t.Error("the study of the URL was lost")
	}
}

func TestTheStatusSaysWhatBecameOfTheObjects(t *testing.T) {
	verdicts := map[string]dimse.Status{
		"1.1": dimse.Success, "1.2": dimse.CoercedElements, "1.3": dimse.OutOfResources, "1.4": dimse.DataSetMismatch,
	}
	s := open(t, func(cfg *Config) {
		cfg.Store = func(_ context.Context, r StoreRequest) dimse.Status { return verdicts[r.SOPInstance] }
	})
	file := func(uid string) []byte { return object(t, ctStorage, "1", "1", uid, 100) }
	for name, step := range map[string]struct {
		parts  []part
		status int
		stored []dimse.Status
		failed []dimse.Status
	}{
		"all stored":         {dicomParts(file("1.1"), file("1.1")), 200, []dimse.Status{0, 0}, nil},
		"with a warning":     {dicomParts(file("1.1"), file("1.2")), 202, []dimse.Status{0, dimse.CoercedElements}, nil},
		"some failed":        {dicomParts(file("1.3"), file("1.1"), file("1.4")), 202, []dimse.Status{0}, []dimse.Status{dimse.OutOfResources, dimse.DataSetMismatch}},
		"none stored":        {dicomParts(file("1.3"), file("1.4")), 409, nil, []dimse.Status{dimse.OutOfResources, dimse.DataSetMismatch}},
		"no room for any":    {dicomParts(file("1.3")), 507, nil, []dimse.Status{dimse.OutOfResources}},
		"not DICOM":          {append(dicomParts(file("1.1")), part{"application/dicom", []byte("hello")}), 202, []dimse.Status{0}, []dimse.Status{dimse.CannotUnderstand}},
		"another type":       {[]part{{"image/jpeg", file("1.1")}}, 409, nil, []dimse.Status{dimse.CannotUnderstand}},
		"no type of its own": {[]part{{"", file("1.1")}}, 200, []dimse.Status{0}, nil},
		"empty part":         {[]part{{"application/dicom", nil}}, 409, nil, []dimse.Status{dimse.CannotUnderstand}},
		"no parts":           {nil, 400, nil, nil},
	} {
		status, answer := s.post(t, "/studies", step.parts)
		var stored, failed []dimse.Status
		for _, r := range answer.Stored {
			stored = append(stored, r.Status)
		}
		for _, r := range answer.Failed {
			failed = append(failed, r.Status)
		}
		if status != step.status || !reflect.DeepEqual(stored, step.stored) || !reflect.DeepEqual(failed, step.failed) {
			t.Errorf("%s: %d, stored %v, failed %v; want %+v", name, status, stored, failed, step)
		}
	}
}

func TestWhatIsNotOfferedIsRefusedClearly(t *testing.T) {
	s := open(t, func(cfg *Config) { cfg.Archive = &memoryArchive{} })
	contentType, body := multipartBody(t, dicomParts(object(t, ctStorage, "1", "1", "1.1", 10)))
	for name, step := range map[string]struct {
		headers map[string]string
		path    string
		want    int
	}{
		"XML answer":         {map[string]string{"Content-Type": contentType, "Accept": "application/dicom+xml"}, "/studies", 406},
		"XML or JSON answer": {map[string]string{"Content-Type": contentType, "Accept": "application/dicom+xml, application/dicom+json;q=0.5"}, "/studies", 200},
		"JSON metadata":      {map[string]string{"Content-Type": strings.Replace(contentType, "application/dicom", "application/dicom+json", 1)}, "/studies", 415},
		"XML metadata":       {map[string]string{"Content-Type": strings.Replace(contentType, "application/dicom", "application/dicom+xml", 1)}, "/studies", 415},
		"no multipart":       {map[string]string{"Content-Type": "application/dicom"}, "/studies", 415},
		"form data":          {map[string]string{"Content-Type": strings.Replace(contentType, "related", "form-data", 1)}, "/studies", 415},
		"no boundary":        {map[string]string{"Content-Type": `multipart/related; type="application/dicom"`}, "/studies", 400},
		"long boundary":      {map[string]string{"Content-Type": `multipart/related; boundary=` + strings.Repeat("x", maxBoundary+1)}, "/studies", 400},
		"compressed":         {map[string]string{"Content-Type": contentType, "Content-Encoding": "gzip"}, "/studies", 415},
		"study that is none": {map[string]string{"Content-Type": contentType}, "/studies/abc", 400},
	} {
		response, _ := do(t, "POST", s.URL+step.path, step.headers, bytes.NewReader(body))
		if response.StatusCode != step.want {
			t.Errorf("%s: %d, want %d", name, response.StatusCode, step.want)
		}
	}
	if response, _ := do(t, "DELETE", s.URL+"/studies/1.2", nil, nil); response.StatusCode != 405 {
		t.Errorf("DELETE: %d", response.StatusCode)
	}
}

func TestLimitsHold(t *testing.T) {
	small, large := object(t, ctStorage, "1", "1", "1.1", 100), object(t, ctStorage, "1", "1", "1.2", 200_000)
	s := open(t, func(cfg *Config) { cfg.MaxObject, cfg.MaxRequest, cfg.MaxParts = 100_000, 500_000, 5 })
	status, answer := s.post(t, "/studies", dicomParts(large, small))
	if got, _ := answer.Status("1.2"); status != 202 || got != dimse.OutOfResources || len(answer.Stored) != 1 {
		t.Errorf("an object too large: %d, %+v", status, answer)
	}
	if status, _ := s.post(t, "/studies", dicomParts(large, large, large)); status != 413 {
		t.Errorf("a request too large: %d", status)
	}
	// Without a length in advance, the answer still says what was stored.
	contentType, body := multipartBody(t, dicomParts(small, large, large, large))
	response, text := do(t, "POST", s.URL+"/studies", map[string]string{"Content-Type": contentType}, io.MultiReader(bytes.NewReader(body)))
	answer, err := parseAnswer(text)
	if response.StatusCode != 413 || err != nil || len(answer.Stored) != 1 {
		t.Errorf("a stream too large: %d, %v, %+v", response.StatusCode, err, answer)
	}
	if status, answer := s.post(t, "/studies", dicomParts(small, small, small, small, small, small)); status != 413 || len(answer.Stored) != 5 {
		t.Errorf("six parts of five: %d, %+v", status, answer)
	}
	header := map[string]string{"Content-Type": "multipart/related; boundary=b"}
	bloated := "--b\r\nContent-Type: application/dicom\r\nX-Filler: " + strings.Repeat("x", 100_000) + "\r\n\r\n"
	if response, _ := do(t, "POST", s.URL+"/studies", header, strings.NewReader(bloated)); response.StatusCode != 400 {
		t.Errorf("a part header of 100 kB: %d", response.StatusCode)
	}
}

func TestABodyThatBreaksOffIsABadRequestAndSaysWhatWasStored(t *testing.T) {
	s := open(t, nil)
	contentType, body := multipartBody(t, dicomParts(object(t, ctStorage, "1", "1", "1.1", 100), object(t, ctStorage, "1", "1", "1.2", 50_000)))
	// In the closing boundary, in the pixels and in the identifiers of the second.
	for _, cut := range []int{len(body) - 10, len(body) - 200, len(body) - 40_000, bytes.LastIndex(body, []byte("1.2\x00"))} {
		before := len(s.got())
		response, text := do(t, "POST", s.URL+"/studies", map[string]string{"Content-Type": contentType}, bytes.NewReader(body[:cut]))
		answer, err := parseAnswer(text)
		if response.StatusCode != 400 || err != nil {
			t.Errorf("cut at %d of %d: %d, %v", cut, len(body), response.StatusCode, err)
		}
		if got := len(s.got()) - before; got != 1 || len(answer.Stored) != 1 {
			t.Errorf("cut at %d of %d: %d stored, %d acknowledged", cut, len(body), got, len(answer.Stored))
		}
	}
	for i, spool := range s.spools {
		if spool.discarded != 1 {
			t.Errorf("Discard of spool %d was called %d times", i, spool.discarded)
		}
	}
}

func TestAFullDiskIsOutOfResourcesAndRecovers(t *testing.T) {
	refuse, fail := true, false
	var s *site
	s = open(t, func(cfg *Config) {
		newSpool := cfg.NewSpool
		cfg.NewSpool = func() (dimse.Spool, error) {
			if refuse {
				return nil, errFull
			}
			spool, err := newSpool()
			if fail {
				s.spools[len(s.spools)-1].fail = errFull
			}
			return spool, err
		}
	})
	file := object(t, ctStorage, "1", "1", "1.1", 100_000)
	for _, step := range []struct {
		refuse, fail bool
		status       int
		want         dimse.Status
	}{{true, false, 507, dimse.OutOfResources}, {false, true, 507, dimse.OutOfResources}, {false, false, 200, dimse.Success}} {
		refuse, fail = step.refuse, step.fail
		status, answer := s.post(t, "/studies", dicomParts(file))
		if got, found := answer.Status("1.1"); status != step.status || !found || got != step.want {
			t.Errorf("%+v: %d, %+v", step, status, answer)
		}
	}
}

func TestOnlyTheAuthorizedAreServed(t *testing.T) {
	s := open(t, func(cfg *Config) {
		cfg.Archive = &memoryArchive{}
		cfg.Authorize = func(r *http.Request) (Peer, error) {
			switch r.Header.Get("Authorization") {
			case "Bearer good":
				return Peer{Name: "good"}, nil
			case "":
				return Peer{}, ErrUnauthenticated
			}
			return Peer{}, errors.New("unknown token")
		}
	})
	contentType, body := multipartBody(t, dicomParts(object(t, ctStorage, "1", "1", "1.1", 10)))
	for _, path := range []string{"/studies", "/studies/1.2/series", "/studies/1.2", "/studies/1.2/metadata", "/studies/1/series/2/instances/3/rendered"} {
		method := "GET"
		for token, want := range map[string]int{"": 401, "Bearer bad": 403} {
			headers := map[string]string{"Content-Type": contentType}
			if token != "" {
				headers["Authorization"] = token
			}
			if response, _ := do(t, method, s.URL+path, headers, nil); response.StatusCode != want {
				t.Errorf("GET %s as %q: %d, want %d", path, token, response.StatusCode, want)
			}
			if response, _ := do(t, "POST", s.URL+"/studies", headers, bytes.NewReader(body)); response.StatusCode != want {
				t.Errorf("POST as %q: %d, want %d", token, response.StatusCode, want)
			}
		}
	}
	client := &Client{BaseURL: s.URL, Prepare: func(r *http.Request) error { r.Header.Set("Authorization", "Bearer good"); return nil }}
	if _, err := client.Store(context.Background(), "", bytes.NewReader(object(t, ctStorage, "1", "1", "1.1", 10))); err != nil {
		t.Error(err)
	}
	if got := s.got(); len(got) != 1 || got[0].Peer.Name != "good" {
		t.Errorf("got %+v", got)
	}
}

func TestAPanicInTheOwnersCodeTellsNothing(t *testing.T) {
	var log bytes.Buffer
	s := open(t, func(cfg *Config) {
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		cfg.Store = func(context.Context, StoreRequest) dimse.Status { panic("DOE^JOHN") }
	})
	s.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(&log, nil), slog.LevelError)
	client := &Client{BaseURL: s.URL}
	if _, err := client.Store(context.Background(), "", bytes.NewReader(object(t, ctStorage, "1", "1", "1.1", 10))); err == nil {
		t.Error("a panic was answered")
	}
	s.Close()
	if text := log.String(); !strings.Contains(text, "panicked") || strings.Contains(text, "DOE") {
		t.Errorf("the log says %s", text)
	}
	if s.spools[0].discarded != 1 {
		t.Error("the spool was not discarded")
	}
}

func TestTooManyAtOnceAreTurnedAway(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	free := sync.OnceFunc(func() { close(leave) })
	s := open(t, func(cfg *Config) {
		cfg.MaxStores = 1
		store := cfg.Store
		inside := sync.OnceFunc(func() { close(entered) })
		cfg.Store = func(ctx context.Context, r StoreRequest) dimse.Status {
			inside()
			<-leave
			return store(ctx, r)
		}
	})
	defer free()
	taken := make(chan error, 1)
	go func() {
		_, err := (&Client{BaseURL: s.URL}).Store(context.Background(), "", bytes.NewReader(object(t, ctStorage, "1", "1", "1.1", 10)))
		taken <- err
	}()
	<-entered
	if status, _ := s.post(t, "/studies", dicomParts(object(t, ctStorage, "1", "1", "1.2", 10))); status != 503 {
		t.Errorf("while the only place is taken: %d", status)
	}
	free()
	if err := <-taken; err != nil {
		t.Error(err)
	}
	if status, _ := s.post(t, "/studies", dicomParts(object(t, ctStorage, "1", "1", "1.2", 10))); status != 200 {
		t.Errorf("once it is free: %d", status)
	}
}

func TestASlowSenderIsCutOffAndGivesItsPlaceBack(t *testing.T) {
	s := open(t, func(cfg *Config) { cfg.MaxStores, cfg.IdleTimeout = 1, 2*time.Second })
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /dicom-web/studies HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/related; boundary=b\r\nContent-Length: 1000\r\n\r\n--b\r\n")
	conn.SetReadDeadline(time.Now().Add(time.Minute))
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 408") {
		t.Errorf("a silent sender was answered %.40q, %v", answer, err)
	}
	if status, _ := s.post(t, "/studies", dicomParts(object(t, ctStorage, "1", "1", "1.1", 10))); status != 200 {
		t.Errorf("after it: %d", status)
	}
}

func TestTheClientReportsWhatItKnows(t *testing.T) {
	s := open(t, func(cfg *Config) {
		store := cfg.Store
		cfg.Store = func(ctx context.Context, r StoreRequest) dimse.Status {
			if r.SOPInstance == "1.2" {
				return dimse.DataSetMismatch
			}
			return store(ctx, r)
		}
	})
	client := &Client{BaseURL: s.URL + "/"}
	one, two := object(t, ctStorage, "1", "1", "1.1", 300_000), object(t, scStorage, "1", "1", "1.2", 100)
	answer, err := client.Store(context.Background(), "1", bytes.NewReader(one), bytes.NewReader(two))
	if err != nil {
		t.Fatal(err)
	}
	want := Answer{Stored: []Reference{{ctStorage, "1.1", dimse.Success}}, Failed: []Reference{{scStorage, "1.2", dimse.DataSetMismatch}}}
	if !reflect.DeepEqual(answer, want) {
		t.Errorf("got %+v, want %+v", answer, want)
	}
	broken := errors.New("disk gone")
	if _, err := client.Store(context.Background(), "", io.MultiReader(bytes.NewReader(one[:200_000]), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("a source that fails: %v", err)
	}
	if n := len(s.got()); n != 1 {
		t.Errorf("%d objects were stored, half of one is not one", n)
	}
	var status *StatusError
	if _, err := (&Client{BaseURL: s.URL + "/nothing-here"}).Store(context.Background(), "", bytes.NewReader(two)); !errors.As(err, &status) || status.Code != 404 || status.Temporary() {
		t.Errorf("a wrong address: %v", err)
	}
}

func TestAConfigurationThatCannotWorkIsRefused(t *testing.T) {
	newSpool := func() (dimse.Spool, error) { return &spool{}, nil }
	for name, cfg := range map[string]Config{
		"no Authorize":      {},
		"NewSpool alone":    {Authorize: MutualTLS, NewSpool: newSpool},
		"relative BaseURL":  {Authorize: MutualTLS, BaseURL: "dicom-web"},
		"negative MaxParts": {Authorize: MutualTLS, MaxParts: -1},
	} {
		if _, err := NewHandler(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
