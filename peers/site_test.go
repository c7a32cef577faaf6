package peers

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/demo"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/gateway"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dicomweb"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
)

const modelDir = "../models/chest-pneumonia-28"

// vigieBinary is the vigie that every site runs, built once.
var vigieBinary string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "vigie-peers-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	vigieBinary = filepath.Join(dir, "vigie")
	if out, err := exec.Command("go", "build", "-o", vigieBinary, "../cmd/vigie").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building vigie: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// site is a throw-away hospital whose gateway is a process of its own.
type site struct {
	*demo.Site
	t       testing.TB
	book    *gateway.Casebook // the vault, read beside the running gateway as `vigie case` does
	process *exec.Cmd
	exited  chan struct{}
	web     *http.Client // the modality's
}

// newSite makes a site without starting its gateway.
func newSite(t testing.TB, options demo.SiteOptions) *site {
	t.Helper()
	pkg, err := model.Open(modelDir)
	if err != nil {
		t.Fatal(err)
	}
	session, err := engine.Open(pkg.Graph, engine.Options{Threads: 1})
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("PEERS NOT TESTED: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Close(); err != nil {
		t.Fatal(err)
	}
	options.Model = modelDir
	made, err := demo.NewSite(filepath.Join(t.TempDir(), "site"), options)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{Site: made, t: t}
	secure := s.tls("modality")
	s.web = &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: secure, ForceAttemptHTTP2: true}}
	t.Cleanup(s.web.CloseIdleConnections)
	return s
}

// startSite makes a site and starts its gateway.
func startSite(t testing.TB, options demo.SiteOptions) *site {
	t.Helper()
	s := newSite(t, options)
	s.start()
	return s
}

// startPACS starts the site's own PACS, ended with the test.
func (s *site) startPACS() *demo.PACS {
	s.t.Helper()
	pacs, err := s.StartPACS(context.Background(), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { pacs.Close() })
	return pacs
}

func (s *site) tls(member string) *tls.Config {
	s.t.Helper()
	secure, err := s.TLS(member)
	if err != nil {
		s.t.Fatal(err)
	}
	return secure
}

// spawn starts the gateway's process, ended with the test.
func (s *site) spawn() {
	s.t.Helper()
	log, err := os.OpenFile(s.Path("gateway.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.process = exec.Command(vigieBinary, "gateway", "run", "-c", s.Config, "--log-level", "debug", "--log-format", "json")
	s.process.Stdout, s.process.Stderr = log, log
	s.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.process.Start(); err != nil {
		s.t.Fatal(err)
	}
	process, exited := s.process, make(chan struct{})
	s.exited = exited
	go func() { process.Wait(); close(exited) }()
	s.t.Cleanup(func() {
		process.Process.Kill()
		<-exited
		if s.t.Failed() {
			s.t.Logf("the gateway's last lines:\n%s", s.logTail())
		}
	})
}

// start starts the gateway, waits until it is ready, and opens its vault.
func (s *site) start() {
	s.t.Helper()
	s.spawn()
	s.eventually("the gateway to be ready", func() bool {
		select {
		case <-s.exited:
			s.t.Fatalf("the gateway ended:\n%s", s.logTail())
		default:
		}
		ready, _ := s.ready()
		return ready
	})
	if s.book == nil {
		config, _, err := gateway.Load(gateway.Sources{File: s.Config})
		if err != nil {
			s.t.Fatal(err)
		}
		if s.book, err = gateway.OpenCasebook(context.Background(), config, slog.New(slog.DiscardHandler)); err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(s.closeBook)
	}
}

func (s *site) closeBook() {
	if s.book == nil {
		return
	}
	if err := s.book.Close(); err != nil {
		s.t.Error(err)
	}
	s.book = nil
}

// stop ends the gateway by SIGTERM and expects a clean end.
func (s *site) stop() {
	s.t.Helper()
	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	select {
	case <-s.exited:
	case <-time.After(patience):
		s.t.Fatalf("the gateway did not end within %v of SIGTERM\n%s", patience, s.logTail())
	}
	if code := s.process.ProcessState.ExitCode(); code != 0 {
		s.t.Errorf("the gateway ended with status %d\n%s", code, s.logTail())
	}
}

func (s *site) logTail() string {
	data, _ := os.ReadFile(s.Path("gateway.log"))
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}

// ready asks /readyz; checks are its answers by probe.
func (s *site) ready() (ready bool, checks map[string]string) {
	response, err := s.web.Get("https://" + s.HTTP + "/readyz")
	if err != nil {
		return false, nil
	}
	defer response.Body.Close()
	var answer gateway.Readiness
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
		return false, nil
	}
	if answer.Ready != (response.StatusCode == http.StatusOK) {
		s.t.Errorf("/readyz answers %d and says ready: %v", response.StatusCode, answer.Ready)
	}
	return answer.Ready, answer.Checks
}

// eventually waits for a condition.
func (s *site) eventually(what string, holds func() bool) {
	s.t.Helper()
	waitFor(s.t, what, holds)
}

// patience is how long a test waits for what must come: enough for a slow and
// busy machine.
const patience = 5 * time.Minute

func waitFor(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

// resting reports whether a case waits for nobody but a person.
func resting(state vigie.State) bool {
	return state == vigie.Delivered || state == vigie.InReview || state == vigie.Quarantined
}

// rest waits until the case of an object that was received under a SOP Instance
// UID rests.
func (s *site) rest(sopInstance string) *vigie.Case {
	s.t.Helper()
	c, err := s.book.CaseOf(context.Background(), sopInstance)
	if err != nil {
		s.t.Fatalf("an acknowledged object is unknown: %v", err)
	}
	return s.restCase(c.ID)
}

func (s *site) restCase(id vigie.CaseID) (c *vigie.Case) {
	s.t.Helper()
	s.eventually("case "+string(id)+" to rest", func() bool {
		var err error
		if c, err = s.book.Case(context.Background(), id); err != nil {
			s.t.Fatal(err)
		}
		return resting(c.State)
	})
	return c
}

// delivered brings a case to delivery, as a person does when triage sent it to
// review: on phantoms the model's answer may be borderline.
func (s *site) delivered(c *vigie.Case) *vigie.Case {
	s.t.Helper()
	if c.State == vigie.InReview {
		if _, err := s.book.Decide(context.Background(), c.ID, vigie.HumanDecision{Action: gateway.ActionRelease, Actor: "dr.test"}); err != nil {
			s.t.Fatal(err)
		}
	}
	s.eventually("case "+string(c.ID)+" to be delivered", func() bool {
		var err error
		if c, err = s.book.Case(context.Background(), c.ID); err != nil {
			s.t.Fatal(err)
		}
		return c.State == vigie.Delivered
	})
	return c
}

func (s *site) verifyLog() {
	s.t.Helper()
	if _, err := s.book.VerifyLog(context.Background(), nil); err != nil {
		s.t.Errorf("the audit log does not verify: %v", err)
	}
}

// reasons joins the codes of a verdict, and their details where asked.
func reasons(c *vigie.Case, details bool) string {
	if c.Verdict == nil {
		return ""
	}
	var out []string
	for _, r := range c.Verdict.Reasons {
		text := string(r.Code)
		if details && r.Detail != "" {
			text += " (" + r.Detail + ")"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

// chest draws a chest radiograph small enough to be quick.
func chest(t testing.TB, seed uint64, o phantom.Options) *dicom.File {
	t.Helper()
	if o.Rows == 0 {
		o.Rows, o.Columns = 256, 256
	}
	file, err := phantom.Chest(seed, o)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func encode(t testing.TB, file *dicom.File) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := file.Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func write(t testing.TB, dir, name string, file *dicom.File) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, encode(t, file), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func parse(t testing.TB, data []byte) *dicom.File {
	t.Helper()
	file, err := dicom.Parse(bytes.NewReader(data), dicom.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func instanceOf(file *dicom.File) string { return file.DataSet.UID(dicom.SOPInstanceUID) }

// cstore sends one data set as it is, on an association of its own.
func (s *site) cstore(class, instance, syntax string, dataSet []byte) (dimse.Status, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, err := dimse.Dial(ctx, s.DIMSE, dimse.ClientConfig{CallingAE: demo.ModalityAE, CalledAE: demo.GatewayAE, TLS: s.tls("modality")},
		dimse.Contexts(class, syntax))
	if err != nil {
		return 0, err
	}
	status, err := a.Store(ctx, class, instance, syntax, bytes.NewReader(dataSet))
	if err != nil {
		a.Abort()
		return 0, err
	}
	return status, a.Release(ctx)
}

// cstoreFile sends a file that we made.
func (s *site) cstoreFile(file *dicom.File) (dimse.Status, error) {
	s.t.Helper()
	var data bytes.Buffer
	if err := file.DataSet.Write(&data, file.TransferSyntax); err != nil {
		s.t.Fatal(err)
	}
	return s.cstore(file.DataSet.UID(dicom.SOPClassUID), instanceOf(file), file.TransferSyntax, data.Bytes())
}

// stow sends one file by STOW-RS and returns what is said about it.
func (s *site) stow(file []byte) (int, dicomweb.Answer, error) {
	client := &dicomweb.Client{BaseURL: "https://" + s.HTTP + "/dicom-web"}
	var code int
	client.HTTP = &http.Client{Timeout: patience, Transport: spy(func(r *http.Request) (*http.Response, error) {
		response, err := s.web.Transport.RoundTrip(r)
		if err == nil {
			code = response.StatusCode
		}
		return response, err
	})}
	answer, err := client.Store(context.Background(), "", bytes.NewReader(file))
	return code, answer, err
}

type spy func(*http.Request) (*http.Response, error)

func (f spy) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// get asks the gateway as the modality.
func (s *site) get(path, accept string) (status int, header http.Header, body []byte) {
	s.t.Helper()
	request, err := http.NewRequest("GET", "https://"+s.HTTP+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	request.Header.Set("Accept", accept)
	response, err := s.web.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err = io.ReadAll(response.Body); err != nil {
		s.t.Fatal(err)
	}
	return response.StatusCode, response.Header, body
}
