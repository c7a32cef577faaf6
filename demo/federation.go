package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"crypto/tls"

	"github.com/vigie/vigie/demo/ports"
	"github.com/vigie/vigie/federate/consortium"
	"github.com/vigie/vigie/keys/certificates"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

// FederationOptions says what Federation shows.
type FederationOptions struct {
	Dir       string // for everything; it must be empty or absent
	Program   string // the vigie program, whose subcommands are started
	Hospitals int    // at least 10
	Rounds    int    // at least 8
	Images    int    // of a hospital, about
	Seed      uint64
	Colour    bool // the output is a terminal
}

// FederationStory is what came of it.
type FederationStory struct {
	Consortium string              `json:"consortium"` // folder
	Hospitals  []FederatedHospital `json:"hospitals"`
	Curve      []CurvePoint        `json:"curve"`
	Run        consortium.Status   `json:"run"`
	Killed     string              `json:"killed"`
	Malicious  string              `json:"malicious"`
	Named      []string            `json:"named"`    // whom the evidence of the rounds is against
	Replayed   bool                `json:"replayed"` // the transcript verifies, and the model is what it led to
	Logs       int                 `json:"logs"`     // hospitals whose log and ledger verify
	Seconds    float64             `json:"seconds"`
	Problems   []string            `json:"problems"`
}

// FederatedHospital is what a hospital was.
type FederatedHospital struct {
	Name      string `json:"name"`
	Normal    int    `json:"normal"`
	Pneumonia int    `json:"pneumonia"`
	Process   int    `json:"process"` // number of the last one
}

// CurvePoint is the model after a round.
type CurvePoint struct {
	Round int     `json:"round"`
	AUC   float64 `json:"auc"`
}

// federation is one run of Federation.
type federation struct {
	FederationOptions
	out       io.Writer
	url       string
	north     string // folder of the consortium
	story     FederationStory
	processes map[string]*process
}

// process is a subcommand that runs.
type process struct {
	command *exec.Cmd
	log     *os.File
	ended   chan error
}

// Federation sets a consortium and its hospitals up, each a process of its own
// over mutual TLS on loopback, and lets them train a model on phantoms. One is
// killed in the middle and started again, one works against the others.
func Federation(ctx context.Context, w io.Writer, o FederationOptions) (story *FederationStory, err error) {
	if o.Hospitals < 10 || o.Hospitals > 100 || o.Rounds < 8 || o.Images < 10 {
		return nil, fmt.Errorf("demo: a federation of %d hospitals with %d images each, for %d rounds: want 10 to 100, at least 10, and at least 8", o.Hospitals, o.Images, o.Rounds)
	}
	if entries, err := os.ReadDir(o.Dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("demo: %s is not empty, and nothing is overwritten", o.Dir)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("demo: making a folder: %w", err)
	}
	f := &federation{FederationOptions: o, out: w, north: filepath.Join(o.Dir, "consortium"), processes: map[string]*process{}}
	defer func() { err = errors.Join(err, f.endAll()) }()
	began := time.Now()
	for _, step := range []func(context.Context) error{f.draw, f.found, f.gather, f.train, f.check} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	f.story.Seconds = time.Since(began).Seconds()
	f.say("%.0f seconds; everything is in %s", f.story.Seconds, o.Dir)
	if len(f.story.Problems) > 0 {
		return &f.story, fmt.Errorf("%w: %s", ErrUnexpected, strings.Join(f.story.Problems, "; "))
	}
	f.say("everything as expected")
	return &f.story, nil
}

func (f *federation) say(format string, arguments ...any) {
	fmt.Fprintf(f.out, format+"\n", arguments...)
}

func (f *federation) problem(format string, arguments ...any) {
	text := fmt.Sprintf(format, arguments...)
	f.story.Problems = append(f.story.Problems, text)
	f.say("NOT AS EXPECTED: %s", text)
}

func (f *federation) siteDir(name string) string { return filepath.Join(f.Dir, "hospitals", name) }
func (f *federation) images(name string) string  { return filepath.Join(f.Dir, "images", name) }

// run runs a subcommand to its end and returns what it printed.
func (f *federation) run(ctx context.Context, arguments ...string) (string, error) {
	command := exec.CommandContext(ctx, f.Program, arguments...)
	var out, failure bytes.Buffer
	command.Stdout, command.Stderr = &out, &failure
	if err := command.Run(); err != nil {
		return out.String(), fmt.Errorf("demo: vigie %s: %w: %s", strings.Join(arguments, " "), err, bytes.TrimSpace(failure.Bytes()))
	}
	return out.String(), nil
}

// begin starts a subcommand that runs until end.
func (f *federation) begin(name string, arguments ...string) error {
	log, err := os.OpenFile(filepath.Join(f.Dir, name+".log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("demo: starting %s: %w", name, err)
	}
	p := &process{command: exec.Command(f.Program, arguments...), log: log, ended: make(chan error, 1)}
	p.command.Stdout, p.command.Stderr = log, log
	dieWithParent(p.command)
	if err := p.command.Start(); err != nil {
		log.Close()
		return fmt.Errorf("demo: starting %s: %w", name, err)
	}
	go func() { p.ended <- p.command.Wait() }()
	f.processes[name] = p
	return nil
}

// end sends a process a signal and waits for its end.
func (f *federation) end(name string, signal os.Signal) error {
	p := f.processes[name]
	if p == nil {
		return nil
	}
	delete(f.processes, name)
	defer p.log.Close()
	p.command.Process.Signal(signal)
	select {
	case err := <-p.ended:
		if signal == syscall.SIGKILL || err == nil {
			return nil
		}
		return fmt.Errorf("demo: %s ended: %w; see %s", name, err, p.log.Name())
	case <-time.After(time.Minute):
		p.command.Process.Kill()
		<-p.ended
		return fmt.Errorf("demo: %s did not end; see %s", name, p.log.Name())
	}
}

func (f *federation) endAll() error {
	var names []string
	for name := range f.processes {
		names = append(names, name)
	}
	slices.Sort(names)
	slices.Reverse(names) // hospitals before the server
	var all []error
	for _, name := range names {
		f.processes[name].command.Process.Signal(syscall.SIGTERM) // all at once
	}
	for _, name := range names {
		all = append(all, f.end(name, syscall.SIGTERM))
	}
	return errors.Join(all...)
}

// alive says whether a process that should run does.
func (f *federation) alive() error {
	for name, p := range f.processes {
		select {
		case err := <-p.ended:
			p.ended <- err
			return fmt.Errorf("demo: %s has ended: %v; see %s", name, err, p.log.Name())
		default:
		}
	}
	return nil
}

// draw makes each hospital's radiographs, and those that the consortium judges
// the model on. Hospitals differ in how many they have, and of what.
func (f *federation) draw(ctx context.Context) error {
	rng := rand.New(rand.NewPCG(f.Seed, 0xfeded))
	for i := range f.Hospitals {
		count := f.Images/2 + rng.IntN(f.Images)
		share := 0.2 + 0.6*rng.Float64()
		h := FederatedHospital{Name: fmt.Sprintf("hospital-%02d", i+1)}
		h.Pneumonia = max(2, int(share*float64(count)))
		h.Normal = max(2, count-h.Pneumonia)
		f.story.Hospitals = append(f.story.Hospitals, h)
	}
	f.story.Killed, f.story.Malicious = f.story.Hospitals[2].Name, f.story.Hospitals[6].Name
	total := 0
	for i, h := range f.story.Hospitals {
		total += h.Normal + h.Pneumonia
		if err := f.phantoms(ctx, h.Name, h.Normal, h.Pneumonia, f.Seed<<32+uint64(i)<<16); err != nil {
			return err
		}
	}
	if err := f.phantoms(ctx, "judge", 60, 60, f.Seed<<32+1<<31); err != nil {
		return err
	}
	f.say("drew %d chest phantoms as DICOM for %d hospitals, and 120 for the consortium to judge by", total, f.Hospitals)
	return nil
}

func (f *federation) phantoms(ctx context.Context, name string, normal, pneumonia int, seed uint64) error {
	for i := range normal + pneumonia {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		class, o := "normal", phantom.Options{Rows: 64, Columns: 64}
		if i >= normal {
			class, o.Opacity = "pneumonia", 0.1+0.35*rand.New(rand.NewPCG(seed, uint64(i))).Float64()
		}
		image, err := phantom.Chest(seed+uint64(i), o)
		if err != nil {
			return err
		}
		dir := filepath.Join(f.images(name), class)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("demo: drawing for %s: %w", name, err)
		}
		file, err := os.Create(filepath.Join(dir, fmt.Sprintf("%04d.dcm", i)))
		if err != nil {
			return fmt.Errorf("demo: drawing for %s: %w", name, err)
		}
		if err := errors.Join(image.Write(file), file.Close()); err != nil {
			return fmt.Errorf("demo: drawing for %s: %w", name, err)
		}
	}
	return nil
}

// found makes the consortium and starts its server.
func (f *federation) found(ctx context.Context) error {
	addresses, err := ports.Reserve(1)
	if err != nil {
		return err
	}
	f.url = "https://" + addresses[0]
	f.story.Consortium = f.north
	out, err := f.run(ctx, "consortium", "init", f.north, "--name", "demo", "--url", f.url, "--listen", addresses[0])
	if err != nil {
		return err
	}
	f.say("\n$ vigie consortium init %s --name demo --url %s\n%s", f.north, f.url, strings.TrimSpace(out))
	if err := f.begin("consortium", "consortium", "serve", "--dir", f.north, "--log-format", "json"); err != nil {
		return err
	}
	return f.until(ctx, "the server listens", func() (bool, error) {
		_, err := f.connected(ctx)
		return err == nil, nil
	})
}

// connected asks the server's probe how many hospitals are there.
func (f *federation) connected(ctx context.Context) (int, error) {
	pool, err := certificates.LoadPool(filepath.Join(f.north, "keys", "ca.pem"))
	if err != nil {
		return 0, err
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}}}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.url+"/healthz", nil)
	if err != nil {
		return 0, err
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, 4096))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(data), `"sites_connected":`)
	n := 0
	_, err = fmt.Sscanf(rest, "%d", &n)
	return n, err
}

// until waits, as long as all processes live.
func (f *federation) until(ctx context.Context, what string, holds func() (bool, error)) error {
	for began := time.Now(); ; {
		if ok, err := holds(); ok || err != nil {
			return err
		}
		if err := f.alive(); err != nil {
			return err
		}
		if time.Since(began) > patience {
			return fmt.Errorf("demo: it has not come in %v: %s", patience, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// approving are the rules of most hospitals here.
const approving = `approve:
  scientists: [Dr Demo]
  purposes: [opacities on phantoms of the chest]
  algorithms: [fedavg]
  max_rounds: 500
  without_privacy: true   # phantoms have no patients
joins: accept             # hospitals join one after the other here
`

// gather invites the hospitals, lets them join, and starts them.
func (f *federation) gather(ctx context.Context) error {
	for i, h := range f.story.Hospitals {
		file := filepath.Join(f.Dir, h.Name+".invitation")
		if _, err := f.run(ctx, "consortium", "invite", h.Name, "--dir", f.north, "--out", file); err != nil {
			return err
		}
		out, err := f.run(ctx, "site", "join", file, "--dir", f.siteDir(h.Name))
		if err != nil {
			return err
		}
		if i == 0 {
			f.say("\n$ vigie consortium invite %s --dir %s --out %s\n$ vigie site join %s --dir %s\n%s", h.Name, f.north, file, file, f.siteDir(h.Name), strings.TrimSpace(out))
		}
		if i > 0 { // the first one's owner decides by hand
			if err := os.WriteFile(filepath.Join(f.siteDir(h.Name), "rules.yaml"), []byte(approving), 0o600); err != nil {
				return fmt.Errorf("demo: writing the rules of %s: %w", h.Name, err)
			}
		}
		if err := f.open(h.Name); err != nil {
			return err
		}
	}
	f.say("… and %d more; %s works against the others: it turns its updates round, five times as long", f.Hospitals-1, f.story.Malicious)
	return f.until(ctx, "all hospitals are connected", func() (bool, error) {
		n, err := f.connected(ctx)
		return n == f.Hospitals, err
	})
}

// open starts a hospital's process.
func (f *federation) open(name string) error {
	arguments := []string{"site", "run", "--dir", f.siteDir(name), "--data", f.images(name), "--log-format", "json"}
	if name == f.story.Malicious {
		arguments = append(arguments, "--tamper", "sign-flip:5")
	}
	if err := f.begin(name, arguments...); err != nil {
		return err
	}
	for i := range f.story.Hospitals {
		if f.story.Hospitals[i].Name == name {
			f.story.Hospitals[i].Process = f.processes[name].command.Process.Pid
		}
	}
	return nil
}

// demoRun is the name of the run.
const demoRun = "phantoms"

// train starts the run, kills a hospital and starts it again, and follows until
// the run is over.
func (f *federation) train(ctx context.Context) error {
	start := []string{"fed", "start", "--dir", f.north, "--run", demoRun, "--scientist", "Dr Demo", "--purpose", "opacities on phantoms of the chest",
		"--recipe", "plain-28", "--shape", "1x28x28", "--classes", "normal,pneumonia", "--rounds", fmt.Sprint(f.Rounds), "--epochs", "2", "--batch", "16",
		"--group-size", "3", "--rule", "median", "--bad-groups", "1", "--naming", "report", "--trusted", "--rate", "0.02", "--deadline", "20s", "--eval", f.images("judge"), "--eval-split", "all", "--eval-every", "1", "--seed", fmt.Sprint(f.Seed)}
	if _, err := f.run(ctx, start...); err != nil {
		return err
	}
	f.say("\n$ vigie %s", strings.Join(quote(start), " "))
	first := f.story.Hospitals[0].Name
	if err := f.until(ctx, "the job has arrived at "+first, func() (bool, error) {
		out, err := f.run(ctx, "site", "jobs", demoRun, "--dir", f.siteDir(first))
		if err != nil {
			return false, nil
		}
		f.say("\n$ vigie site jobs %s --dir %s\n%s", demoRun, f.siteDir(first), strings.TrimSpace(out))
		return true, nil
	}); err != nil {
		return err
	}
	out, err := f.run(ctx, "site", "approve", demoRun, "--dir", f.siteDir(first), "--by", "Dr Owner")
	if err != nil {
		return err
	}
	f.say("$ vigie site approve %s --dir %s --by 'Dr Owner'\n%s\n\n$ vigie fed status %s --dir %s --watch", demoRun, f.siteDir(first), strings.TrimSpace(out), demoRun, f.north)
	c, err := consortium.Open(f.north)
	if err != nil {
		return err
	}
	killed, back := false, false
	watcher := consortium.Watcher{Out: f.out, Terminal: f.Colour, Each: func(p consortium.Progress) (string, error) {
		if err := f.alive(); err != nil {
			return "", err
		}
		switch {
		case !killed && p.Round >= f.Rounds/4:
			killed = true
			return fmt.Sprintf("        %s is killed (SIGKILL)", f.story.Killed), f.end(f.story.Killed, syscall.SIGKILL)
		case killed && !back && p.Round >= f.Rounds/4+2:
			back = true
			return fmt.Sprintf("        %s is started again", f.story.Killed), f.open(f.story.Killed)
		}
		return "", nil
	}}
	return c.Watch(ctx, demoRun, watcher)
}

func quote(words []string) []string {
	var out []string
	for _, w := range words {
		if strings.ContainsAny(w, " ") {
			w = "'" + w + "'"
		}
		out = append(out, w)
	}
	return out
}

// check holds what came of the run against what must have.
func (f *federation) check(ctx context.Context) error {
	c, err := consortium.Open(f.north)
	if err != nil {
		return err
	}
	p, err := c.Progress(demoRun)
	if err != nil {
		return err
	}
	f.story.Run = p.Status
	for _, a := range p.Attempts {
		if a.AUC != nil && a.Failed == "" {
			f.story.Curve = append(f.story.Curve, CurvePoint{a.Index + 1, a.AUC.Value})
		}
	}
	f.say("\nAUC on the consortium's phantoms, by round\n%s", curve(f.story.Curve))
	if p.AUC == nil || p.AUC.Low <= 0.5 {
		f.problem("the model has learnt nothing beyond chance: %+v", p.AUC)
	}
	status := map[string]consortium.SiteStatus{}
	worst := ""
	for _, s := range p.Sites {
		status[s.Name] = s
		if worst == "" || s.Held > status[worst].Held {
			worst = s.Name
		}
	}
	if s := status[f.story.Killed]; s.Sums == 0 || s.Sums >= f.Rounds {
		f.problem("%s, which was killed, is in %d of %d rounds", f.story.Killed, s.Sums, f.Rounds)
	} else {
		f.say("%s was killed and came back: it is in %d of %d rounds", f.story.Killed, s.Sums, f.Rounds)
	}
	for _, s := range p.Sites {
		if s.Named != "" {
			f.story.Named = append(f.story.Named, s.Name)
			f.say("%s is named: %s", s.Name, s.Named)
		}
	}
	f.say("the rule holds most against the groups of %s (%.2f of 1, mean over its rounds); %s is malicious", worst, status[worst].Held, f.story.Malicious)
	key := fmt.Sprintf("%x", []byte(c.Key()))
	transcript := filepath.Join(f.north, "runs", demoRun, "transcript")
	if _, err := f.run(ctx, "fed", "replay", transcript, "--key", key, "--model", filepath.Join(f.north, "runs", demoRun, "result", "model.onnx")); err != nil {
		f.problem("%v", err)
	} else {
		f.story.Replayed = true
		f.say("$ vigie fed replay %s --key … --model …\nevery signature, masked sum and step of the weights verifies, and the published model is what they led to", transcript)
	}
	for _, h := range f.story.Hospitals {
		s, err := consortium.OpenSite(f.siteDir(h.Name))
		if err != nil {
			return err
		}
		_, err = s.Left()
		if _, accounts := s.Ledger(); err != nil || accounts != nil {
			f.problem("the records of %s: %v", h.Name, errors.Join(err, accounts))
			continue
		}
		f.story.Logs++
	}
	out, err := f.run(ctx, "site", "log", "--dir", f.siteDir(f.story.Hospitals[0].Name), "--verify")
	if err != nil {
		return err
	}
	f.say("$ vigie site log --dir %s --verify\n%s", f.siteDir(f.story.Hospitals[0].Name), strings.TrimSpace(out))
	return nil
}

// curve draws figures from 0.4 to 1 by round.
func curve(points []CurvePoint) string {
	const rows, low, high = 8, 0.4, 1.0
	var b strings.Builder
	for r := range rows {
		top := high - (high-low)*float64(r)/rows
		bottom := top - (high-low)/rows
		fmt.Fprintf(&b, "%5.2f ┤", top)
		for _, p := range points {
			mark := "  "
			if v := max(low+1e-9, min(high, p.AUC)); v > bottom && v <= top {
				mark = " ●"
			}
			b.WriteString(mark)
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "%5.2f ┼%s\n", low, strings.Repeat("──", len(points)))
	return b.String()
}
