package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/gateway"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/store"
)

// Options says what Run shows.
type Options struct {
	Dir        string // folder of the site; it must be empty or absent
	Model      string // folder of the model package; empty means the demo package inside the binary
	Radiograph string // a real DICOM radiograph; empty sends phantoms only
	Serve      bool   // leave the gateway running until ctx ends
	Colour     bool   // the output is a terminal
}

// ErrUnexpected is returned when something did not go as it must.
var ErrUnexpected = errors.New("demo: not everything went as expected")

// patience is how long the demo waits for one study.
const patience = 3 * time.Minute

// Run sets up a site, sends it studies, prints what becomes of each, verifies
// the log and proves one case.
func Run(ctx context.Context, w io.Writer, options Options) (err error) {
	d := &show{out: w, style: newStyle(options.Colour), options: options}
	if err := d.setUp(ctx); err != nil {
		return err
	}
	// The gateway ends before the PACS, so that what is under way arrives.
	defer func() { err = errors.Join(err, d.tearDown()) }()
	d.introduce()
	if err := d.sendAll(ctx); err != nil {
		return err
	}
	if err := d.personDecides(ctx); err != nil {
		return err
	}
	if err := d.keepResults(ctx); err != nil {
		return err
	}
	if err := d.verify(ctx); err != nil {
		return err
	}
	d.farewell()
	if options.Serve {
		<-ctx.Done()
	}
	if d.failures > 0 {
		return fmt.Errorf("%w: %d problem(s), see above", ErrUnexpected, d.failures)
	}
	return nil
}

// show is one run of the demo.
type show struct {
	out      io.Writer
	style    style
	options  Options
	site     *Site
	pacs     *PACS
	gateway  *gateway.Gateway
	logFile  *os.File
	stop     context.CancelFunc
	ended    chan error
	rows     []row
	cases    []*vigie.Case
	failures int
	began    time.Time
}

func (d *show) printf(format string, args ...any) { fmt.Fprintf(d.out, format, args...) }

func (d *show) head(text string) {
	d.printf("\n%s%s%s\n", d.style.bold, text, d.style.reset)
}

func (d *show) fail(format string, args ...any) {
	d.failures++
	d.printf("%sNOT AS EXPECTED: %s%s\n", d.style.red, fmt.Sprintf(format, args...), d.style.reset)
}

func (d *show) setUp(ctx context.Context) error {
	d.began = time.Now()
	var err error
	if d.site, err = NewSite(d.options.Dir, SiteOptions{Model: d.options.Model}); err != nil {
		return err
	}
	if d.logFile, err = os.OpenFile(d.site.Path("gateway.log"), os.O_CREATE|os.O_WRONLY, 0o600); err != nil {
		return fmt.Errorf("demo: opening the log: %w", err)
	}
	logger := slog.New(slog.NewJSONHandler(d.logFile, nil))
	// Both outlive ctx, so that they can be stopped in order.
	if d.pacs, err = d.site.StartPACS(context.WithoutCancel(ctx), logger.With("who", "pacs")); err != nil {
		return err
	}
	config, origins, err := gateway.Load(gateway.Sources{File: d.site.Config})
	if err != nil {
		return err
	}
	if problems := config.Check(ctx, origins); len(problems) > 0 {
		return problems
	}
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	d.stop = stop
	if d.gateway, err = gateway.Open(running, config, logger, gateway.Options{}); err != nil {
		return errors.Join(err, d.pacs.Close())
	}
	d.ended = make(chan error, 1)
	go func() { d.ended <- d.gateway.Run(running) }()
	return d.waitReady(ctx)
}

// waitReady waits until the gateway accepts, and says hello with a C-ECHO.
func (d *show) waitReady(ctx context.Context) error {
	select {
	case <-d.gateway.Started():
	case err := <-d.ended:
		d.ended <- err
		return fmt.Errorf("demo: the gateway did not start: %w", err)
	case <-ctx.Done():
		return ctx.Err()
	}
	secure, err := d.site.TLS("modality")
	if err != nil {
		return err
	}
	association, err := dimse.Dial(ctx, d.site.DIMSE, dimse.ClientConfig{CallingAE: ModalityAE, CalledAE: GatewayAE, TLS: secure}, []dimse.Context{dimse.Verification})
	if err != nil {
		return fmt.Errorf("demo: asking the gateway for a sign of life: %w", err)
	}
	if _, err := association.Echo(ctx); err != nil {
		return fmt.Errorf("demo: asking the gateway for a sign of life: %w", err)
	}
	return association.Release(ctx)
}

func (d *show) tearDown() error {
	d.stop()
	return errors.Join(<-d.ended, d.gateway.Close(), d.pacs.Close(), d.logFile.Close())
}

func (d *show) introduce() {
	model := d.gateway.Model()
	d.head("Vigie demo: a throw-away hospital on this machine")
	line := func(name, format string, args ...any) {
		d.printf("  %-9s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("site", "%s", d.site.Dir)
	line("gateway", "DICOM %s (C-STORE, TLS 1.3, both sides certified) · DICOMweb https://%s", d.site.DIMSE, d.site.HTTP)
	line("PACS", "DICOM %s, receives what Vigie answers", d.site.PACS)
	line("model", "%s %s, %.19s…, in an enclave in this process", model.Manifest.Name, model.Manifest.Version, model.Digest)
	d.printf("  %s%-9s %s%s\n", d.style.yellow, "NOTE", "development evidence: the enclave proves nothing here. Production refuses it.", d.style.reset)
	d.printf("  %-9s %s\n\n", "", "Phantoms are drawings: answers on them show that the path works, no more.")
	printHead(d.out, d.style)
}

// sendAll sends one study after the other and prints what became of it.
func (d *show) sendAll(ctx context.Context) error {
	tls := gateway.ClientTLS{CA: d.site.Path("tls", "ca.pem"), Certificate: d.site.Path("tls", "modality.pem"), Key: d.site.Path("tls", "modality.key"), ServerName: "localhost"}
	byDIMSE := gateway.DestinationConfig{Name: "vigie", Kind: "dimse", Address: d.site.DIMSE, AETitle: GatewayAE, CallingAETitle: ModalityAE, TLS: tls}
	bySTOW := gateway.DestinationConfig{Name: "vigie", Kind: "stow", URL: "https://" + d.site.HTTP + "/dicom-web", TLS: tls}
	sent := d.site.Path("sent")
	if err := os.MkdirAll(sent, 0o700); err != nil {
		return fmt.Errorf("demo: keeping what is sent: %w", err)
	}
	list := studies(d.options.Radiograph)
	drawn := draw(ctx, list)
	for i, s := range list {
		var one drawing
		select {
		case one = <-drawn:
		case <-ctx.Done():
			return ctx.Err()
		}
		data, err := one.data, one.err
		if err != nil {
			return err
		}
		path := filepath.Join(sent, fmt.Sprintf("%02d-%s.dcm", i+1, strings.Join(strings.FieldsFunc(strings.ToLower(s.name), func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9')
		}), "-")))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return fmt.Errorf("demo: keeping what is sent: %w", err)
		}
		target := byDIMSE
		if s.stow {
			target = bySTOW
		}
		var outcome gateway.Sent
		if err := gateway.Send(ctx, target, []string{path}, func(o gateway.Sent) { outcome = o }); err != nil {
			return err
		}
		r := row{number: i + 1, study: s.name, by: s.by()}
		if outcome.Error != "" {
			r.failure = "not taken: " + outcome.Error
		} else {
			c, err := d.follow(ctx, outcome.SOPInstance)
			if err != nil {
				return err
			}
			r.case_, r.failure = c, s.judge(c)
			d.cases = append(d.cases, c)
		}
		if r.failure != "" {
			d.failures++
		}
		d.rows = append(d.rows, r)
		r.print(d.out, d.style, d.gateway.Model().Manifest.Output.Target)
	}
	return nil
}

type drawing struct {
	data []byte
	err  error
}

// draw makes the objects of studies ahead of their sending, in order.
func draw(ctx context.Context, list []study) <-chan drawing {
	out := make(chan drawing, 2)
	go func() {
		for _, s := range list {
			data, err := s.make()
			select {
			case out <- drawing{data, err}:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// follow waits until a case rests: delivered, or waiting for a person.
func (d *show) follow(ctx context.Context, sopInstance string, rest ...vigie.State) (*vigie.Case, error) {
	if len(rest) == 0 {
		rest = []vigie.State{vigie.Delivered, vigie.InReview, vigie.Quarantined}
	}
	for deadline := time.Now().Add(patience); ; {
		c, err := d.gateway.CaseOf(ctx, sopInstance)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		if err == nil && (slices.Contains(rest, c.State) || time.Now().After(deadline)) {
			return c, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("demo: an acknowledged object has no case: %w", err)
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// personDecides lets somebody decide one of the cases that wait.
func (d *show) personDecides(ctx context.Context) error {
	for i, r := range d.rows {
		c := r.case_
		if c == nil || c.State != vigie.InReview || c.Finding == nil {
			continue
		}
		d.head("A person decides")
		decision := vigie.HumanDecision{Action: gateway.ActionRelease, Actor: "dr.demo", Note: "read beside the image, agreed"}
		if _, err := d.gateway.Decide(ctx, c.ID, decision); err != nil {
			return err
		}
		for deadline := time.Now().Add(patience); ; {
			now, err := d.gateway.Case(ctx, c.ID)
			if err != nil {
				return err
			}
			if now.State == vigie.Delivered {
				d.rows[i].case_ = now
				break
			}
			if time.Now().After(deadline) {
				d.fail("the reviewed case is %s after %v", now.State, patience)
				return nil
			}
			time.Sleep(10 * time.Millisecond)
		}
		d.printf("  dr.demo released #%d (%s) from review; it is delivered, and logged\n", r.number, r.study)
		return nil
	}
	return nil
}

// keepResults saves an overlay and a structured report where people find them.
func (d *show) keepResults(ctx context.Context) error {
	chosen := -1
	for i, r := range d.rows {
		if r.case_ == nil || r.case_.State != vigie.Delivered || r.case_.Finding == nil || !r.case_.Finding.Explanation.Shown() {
			continue
		}
		// A real image says more than a phantom, a positive one more than a negative.
		if chosen < 0 || !d.rows[chosen].positive() && r.positive() && d.options.Radiograph == "" {
			chosen = i
		}
	}
	d.head("What came back")
	if chosen < 0 {
		d.fail("no case was delivered with a map of its answer")
		return nil
	}
	c := d.rows[chosen].case_
	overlay, err := d.gateway.Overlay(ctx, c.ID, "demo")
	if err != nil {
		return err
	}
	if err := os.WriteFile(d.site.Path("out", "overlay.png"), overlay, 0o600); err != nil {
		return fmt.Errorf("demo: saving the overlay: %w", err)
	}
	received := d.pacs.Objects()
	report := gateway.ResultUID(c.ID, c.Model, gateway.RoleReport)
	kept, ok := received[report]
	if !ok {
		d.fail("the PACS has no structured report of the delivered case")
		return nil
	}
	data, err := os.ReadFile(kept.Path)
	if err != nil {
		return fmt.Errorf("demo: reading the report at the PACS: %w", err)
	}
	if err := os.WriteFile(d.site.Path("out", "report.dcm"), data, 0o600); err != nil {
		return fmt.Errorf("demo: saving the report: %w", err)
	}
	twice := 0
	for _, k := range received {
		if k.Times > 1 || k.Conflict {
			twice++
		}
	}
	d.printf("  PACS      %d objects in %s, %d of them more than once\n", len(received), d.site.Path("pacs"), twice)
	d.printf("  overlay   %s: %s\n", d.site.Path("out", "overlay.png"), c.Finding.Explanation.Label().English)
	d.printf("  report    %s (DICOM SR, TID 1500)\n", d.site.Path("out", "report.dcm"))
	if twice > 0 {
		d.fail("the PACS received an object more than once")
	}
	return d.prove(ctx, c)
}

// prove writes a proof of one case and checks it as a third party would.
func (d *show) prove(ctx context.Context, c *vigie.Case) error {
	proof, err := d.gateway.Prove(ctx, c.ID)
	if err != nil {
		return err
	}
	paths := map[string][]byte{"case.proof": proof, "site.pub": []byte(d.gateway.VerifierKey() + "\n")}
	for _, name := range slices.Sorted(maps.Keys(paths)) {
		if err := os.WriteFile(d.site.Path("out", name), paths[name], 0o644); err != nil {
			return fmt.Errorf("demo: saving %s: %w", name, err)
		}
	}
	file, err := os.Open(d.site.Path("out", "case.proof"))
	if err != nil {
		return fmt.Errorf("demo: reading the proof back: %w", err)
	}
	defer file.Close()
	proven, err := audit.Check(file, d.gateway.VerifierKey())
	if err != nil {
		d.fail("the proof does not check: %v", err)
		return nil
	}
	d.printf("  proof     %s: %s%d records proven offline%s against site.pub\n", d.site.Path("out", "case.proof"), d.style.green, len(proven.Records), d.style.reset)
	return nil
}

// verify verifies the whole log.
func (d *show) verify(ctx context.Context) error {
	began := time.Now()
	report, err := d.gateway.VerifyLog(ctx, nil)
	if err != nil {
		return err
	}
	if !report.OK() {
		for _, p := range report.Problems {
			d.fail("the log: %v", p)
		}
		return nil
	}
	d.printf("  log       %sverified whole%s: %d records, %d cases, %d signed checkpoints, in %s ms\n",
		d.style.green, d.style.reset, report.Size, report.Cases, report.Checkpoints, milliseconds(time.Since(began)))
	return nil
}

func (d *show) farewell() {
	counts := map[string]int{}
	for _, r := range d.rows {
		counts[r.triageText()]++
	}
	d.head("Look further")
	for _, command := range []string{
		"vigie case list -c " + d.site.Config,
		"vigie audit verify -c " + d.site.Config,
		"vigie audit check " + d.site.Path("out", "case.proof") + " --key " + d.site.Path("out", "site.pub"),
	} {
		d.printf("  %s\n", command)
	}
	verdict := d.style.green + "everything as expected" + d.style.reset
	if d.failures > 0 {
		verdict = fmt.Sprintf("%s%d problem(s)%s", d.style.red, d.failures, d.style.reset)
	}
	d.printf("\n%d studies: %d released, %d in review, %d quarantined. %s, in %.1f s.\n",
		len(d.rows), counts["released"], counts["in review"], counts["quarantined"], verdict, time.Since(d.began).Seconds())
	if d.options.Serve {
		d.printf("\nThe gateway goes on serving; send it your own studies:\n  vigie send FILE --to %s --ca %s --certificate %s --key %s --server-name localhost\nCtrl-C ends it.\n",
			d.site.DIMSE, d.site.Path("tls", "ca.pem"), d.site.Path("tls", "modality.pem"), d.site.Path("tls", "modality.key"))
	}
}
