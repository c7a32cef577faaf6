package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attack"
	attacking "github.com/vigie/vigie/attack/job"
	"github.com/vigie/vigie/gateway"
	guarding "github.com/vigie/vigie/guard/job"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/models"
	"github.com/vigie/vigie/probe"
	labelled "github.com/vigie/vigie/train/studies"
)

// InsiderOptions says what Insider shows.
type InsiderOptions struct {
	Dir    string // folder for everything; it must be empty or absent
	Days   int    // of the story
	PerDay int    // suspicious cases that each practitioner has a day
	Eps    string // bound of the perturbation, units of the window
	Fit    int    // clean images that the guards are fitted on
	Seed   uint64
}

// The demo package's classes, as the phantoms are labelled.
const clearChest, opacity = "normal", "pneumonia"

// unsuspicious is the probability of the finding that the insider wants to stay
// below: clear of the borderline, whose cases a person sees anyway.
const unsuspicious = 0.02

// Story is what came of it.
type Story struct {
	Seed     uint64         `json:"seed"`
	Eps      string         `json:"eps"`
	Package  string         `json:"package_digest"`
	Guarded  string         `json:"guarded_package_digest"`
	Fitted   int            `json:"fitted_on"`
	Turned   int            `json:"turned"` // perturbed images that the model answers as clear
	Seconds  float64        `json:"seconds"`
	Hospital []StoryPerSite `json:"hospitals"`
}

// StoryPerSite is one hospital's view.
type StoryPerSite struct {
	Name string     `json:"name"`
	Days []StoryDay `json:"days"`
}

// StoryDay is what became of a day's cases, of the insider and of the others.
type StoryDay struct {
	Day     int     `json:"day"`
	Insider Outcome `json:"insider"` // all suspicious, all perturbed
	Others  Outcome `json:"others"`  // half suspicious, none perturbed
}

// Outcome counts what became of cases.
type Outcome struct {
	Sent       int `json:"sent"`
	Suspicious int `json:"suspicious"` // in truth
	Reported   int `json:"reported"`   // released as suspicious
	Silent     int `json:"silent"`     // suspicious in truth, released as clear
	Person     int `json:"person"`     // sent to a person
	ByGuards   int `json:"by_guards"`  // of those, for what an input guard says
}

func (o *Outcome) add(p Outcome) {
	o.Sent += p.Sent
	o.Suspicious += p.Suspicious
	o.Reported += p.Reported
	o.Silent += p.Silent
	o.Person += p.Person
	o.ByGuards += p.ByGuards
}

// Insider tells the story of a practitioner whose images carry perturbations
// that nobody sees and that turn suspicious into clear: day by day, at a
// hospital without input guards and at one with them. Images are phantoms;
// attack, guards, gateway and enclave are real.
func Insider(ctx context.Context, w io.Writer, o InsiderOptions) (*Story, error) {
	if o.Days < 1 || o.PerDay < 1 || o.Fit < 1 {
		return nil, fmt.Errorf("demo: a story of %d days with %d cases, guards fitted on %d images: want at least one of each", o.Days, o.PerDay, o.Fit)
	}
	eps, err := attacking.ParseEps(o.Eps)
	if err != nil {
		return nil, err
	}
	if len(eps) != 1 {
		return nil, fmt.Errorf("demo: the insider has one bound, not %d: %s", len(eps), o.Eps)
	}
	i := &insider{InsiderOptions: o, out: w, eps: eps, began: time.Now(), story: &Story{Seed: o.Seed, Eps: o.Eps, Fitted: o.Fit}}
	if err := i.prepare(ctx); err != nil {
		return nil, err
	}
	for _, hospital := range []struct{ name, model string }{{"without input guards", i.plain}, {"with input guards", i.guarded}} {
		if err := i.live(ctx, hospital.name, hospital.model); err != nil {
			return nil, err
		}
	}
	i.story.Seconds = time.Since(i.began).Seconds()
	i.compare()
	return i.story, nil
}

type insider struct {
	InsiderOptions
	out            io.Writer
	eps            []attacking.Eps
	began          time.Time
	plain, guarded string // packages
	story          *Story
}

func (i *insider) say(format string, arguments ...any) { fmt.Fprintf(i.out, format, arguments...) }

func (i *insider) path(names ...string) string {
	return filepath.Join(append([]string{i.Dir}, names...)...)
}

// draw writes phantoms and their labels into a folder. Seeds start at from, so
// that no two folders share an image.
func (i *insider) draw(ctx context.Context, folder string, n int, from uint64, suspicious func(k int) bool) error {
	if err := os.MkdirAll(i.path(folder), 0o700); err != nil {
		return fmt.Errorf("demo: drawing phantoms: %w", err)
	}
	var labels bytes.Buffer
	labels.WriteString("file,label,patient\n")
	for k := range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		seed := i.Seed<<32 + from + uint64(k)
		rng := rand.New(rand.NewPCG(seed, 0x1a51de))
		who := fmt.Sprintf("%s-%03d", folder, k)
		// an eighth of the usual side: what the model reads of it is smaller still
		options := phantom.Options{Rows: 128, Columns: 144, Age: fmt.Sprintf("%03dY", 1+rng.IntN(5)),
			Identity: phantom.Identity{ID: who, Name: "PHANTOM^" + strings.ToUpper(who), Physician: "PRACTITIONER^" + strings.ToUpper(folder)}}
		label := clearChest
		if suspicious(k) {
			label = opacity
			options.Opacity, options.OpacityRadius = 0.7+0.3*rng.Float64(), 0.2+0.1*rng.Float64()
		}
		data, err := encode(phantom.Chest(seed, options))
		if err != nil {
			return err
		}
		if err := os.WriteFile(i.path(folder, who+".dcm"), data, 0o600); err != nil {
			return fmt.Errorf("demo: drawing phantoms: %w", err)
		}
		fmt.Fprintf(&labels, "%s.dcm,%s,%s\n", who, label, who)
	}
	if err := os.WriteFile(i.path(folder+".csv"), labels.Bytes(), 0o600); err != nil {
		return fmt.Errorf("demo: drawing phantoms: %w", err)
	}
	return nil
}

func (i *insider) data(folder string) probe.Test {
	return probe.Test{Options: labelled.Options{Data: i.path(folder), Labels: i.path(folder + ".csv"), PatientColumn: "patient", Seed: i.Seed}, Split: labelled.All}
}

// prepare draws everybody's images, fits the guards and perturbs the insider's.
func (i *insider) prepare(ctx context.Context) error {
	if entries, err := os.ReadDir(i.Dir); err == nil && len(entries) > 0 {
		return fmt.Errorf("demo: telling a story in %s: the folder is not empty: remove it or name another", i.Dir)
	}
	each := i.Days * i.PerDay
	half := func(k int) bool { return k%2 == 1 }
	i.say("drawing %d phantoms to fit guards on, %d of the insider, %d of everybody else\n", i.Fit, 2*each, 2*each)
	for _, part := range []struct {
		folder     string
		n          int
		from       uint64
		suspicious func(int) bool
	}{{"validation", i.Fit, 0, half}, {"insider", 2 * each, 1 << 20, half}, {"others", 2 * each, 1 << 21, half}} {
		if err := i.draw(ctx, part.folder, part.n, part.from, part.suspicious); err != nil {
			return err
		}
	}
	for _, p := range []struct {
		folder string
		to     *string
	}{{"plain", &i.plain}, {"guarded", &i.guarded}} {
		if err := os.MkdirAll(i.path(p.folder), 0o700); err != nil {
			return fmt.Errorf("demo: telling a story: %w", err)
		}
		var err error
		if *p.to, err = models.WriteDemo(i.path(p.folder)); err != nil {
			return err
		}
	}
	i.say("fitting guards on clean images that the model never saw\n")
	fit := guarding.Fit{Package: i.guarded, Data: i.data("validation")}
	fit.Options.Seed = i.Seed
	fitted, err := fit.Run(ctx)
	if err != nil {
		return err
	}
	i.story.Guarded, i.story.Package = string(fitted.Digest), string(fitted.Replaced)
	i.say("the insider turns suspicious into clear: %s, at most %s of the window, in stored values\n", attack.PGD, i.Eps)
	report, err := attacking.Options{
		Model: i.plain, Data: i.data("insider"), Attack: attack.PGD, Class: clearChest, Eps: i.eps, OperatingPoint: true, Threshold: unsuspicious, Save: i.path("perturbed"),
		Attacking: attack.Options{Norm: attack.Linf, Seed: i.Seed, Steps: 100, Restarts: 1},
	}.Run(ctx)
	if err != nil {
		return err
	}
	i.story.Turned = report.Fooled
	i.say("the model answers %d of the %d perturbed images as clear\n", i.story.Turned, each)
	return nil
}

// live lets a hospital work through the days.
func (i *insider) live(ctx context.Context, name, model string) (err error) {
	s := &show{out: io.Discard, style: newStyle(false), options: Options{Dir: i.path("hospital " + name), Model: model}}
	if err := s.setUp(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.tearDown()) }()
	i.say("\nA hospital %s\n", name)
	i.say("        the insider                              everybody else\n")
	i.say("  day   suspicious  reported  unseen  person     suspicious  reported  unseen  person  of all\n")
	site := StoryPerSite{Name: name}
	for day := range i.Days {
		today := StoryDay{Day: day + 1}
		for k := range i.PerDay {
			at := day*i.PerDay + k
			if err := i.send(ctx, s, i.path("perturbed", fmt.Sprintf("insider-%03d.dcm", 2*at+1)), true, &today.Insider); err != nil {
				return err
			}
			for other := range 2 {
				at := 2*at + other
				if err := i.send(ctx, s, i.path("others", fmt.Sprintf("others-%03d.dcm", at)), at%2 == 1, &today.Others); err != nil {
					return err
				}
			}
		}
		site.Days = append(site.Days, today)
		i.line(fmt.Sprintf("%3d", today.Day), today.Insider, today.Others)
	}
	total := site.total()
	i.line("all", total.Insider, total.Others)
	i.story.Hospital = append(i.story.Hospital, site)
	return nil
}

func (s StoryPerSite) total() StoryDay {
	var out StoryDay
	for _, d := range s.Days {
		out.Insider.add(d.Insider)
		out.Others.add(d.Others)
	}
	return out
}

func (i *insider) line(day string, a, b Outcome) {
	i.say("  %s  %11d  %8d  %6d  %6d  %13d  %8d  %6d  %6d  %6d\n", day,
		a.Suspicious, a.Reported, a.Silent, a.Person, b.Suspicious, b.Reported, b.Silent, b.Person, b.Sent)
}

// send sends one object as a modality does and counts what becomes of it.
func (i *insider) send(ctx context.Context, s *show, path string, suspicious bool, out *Outcome) error {
	target := gateway.DestinationConfig{Name: "vigie", Kind: "dimse", Address: s.site.DIMSE, AETitle: GatewayAE, CallingAETitle: ModalityAE,
		TLS: gateway.ClientTLS{CA: s.site.Path("tls", "ca.pem"), Certificate: s.site.Path("tls", "modality.pem"), Key: s.site.Path("tls", "modality.key"), ServerName: "localhost"}}
	var sent gateway.Sent
	if err := gateway.Send(ctx, target, []string{path}, func(o gateway.Sent) { sent = o }); err != nil {
		return err
	}
	if sent.Error != "" {
		return fmt.Errorf("demo: sending %s: %s", path, sent.Error)
	}
	c, err := s.follow(ctx, sent.SOPInstance)
	if err != nil {
		return err
	}
	out.Sent++
	if suspicious {
		out.Suspicious++
	}
	if c.Verdict == nil {
		return fmt.Errorf("demo: %s has no verdict: the case is %s: %w", path, c.State, ErrUnexpected)
	}
	p := row{case_: c}.target(s.gateway.Model().Manifest.Output.Target)
	switch {
	case c.Verdict.Decision != vigie.Release || p == nil:
		out.Person++
		for _, r := range c.Verdict.Reasons {
			if r.Code == vigie.ReasonGuard {
				out.ByGuards++
				break
			}
		}
	case p.Positive:
		out.Reported++
	case suspicious:
		out.Silent++
	}
	return nil
}

func (i *insider) compare() {
	i.say("\nunseen: suspicious in truth, and released as clear; person: a person looks before anything is released\n")
	without, with := i.story.Hospital[0].total(), i.story.Hospital[1].total()
	i.say("Of the insider's %d suspicious cases, %d went out as clear and unseen by anybody without guards, %d with them.\n", without.Insider.Suspicious, without.Insider.Silent, with.Insider.Silent)
	i.say("Of everybody else's %d cases, a person saw %d without guards and %d with them.\n", with.Others.Sent, without.Others.Person, with.Others.Person)
	i.say("Phantoms are drawings, and this insider knows nothing of the guards: the table shows what happens on the path, not a rate for a clinic.\nWhat an attacker who knows the guards gets past them is measured in docs/guards.md.\n")
}
