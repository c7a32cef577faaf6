package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
)

// Try asks what a package's guards say of images: clean ones, or ones that an
// attack saved.
type Try struct {
	Package string
	Data    probe.Test
	Threads int
	Each    bool    // also return what was said of each image
	Margin  float64 // the gateway's review.margin, for what goes to people
}

// Tried says how often the guards raised an alarm.
type Tried struct {
	Package string         `json:"package"`
	Digest  string         `json:"digest"`
	Data    string         `json:"data"`
	Split   string         `json:"split"`
	Images  int            `json:"images"`
	Alarms  int            `json:"alarms"`
	Rate    train.Interval `json:"rate"`    // of alarms, with Wilson's interval
	Seconds int            `json:"seconds"` // images that got a second look
	// ByGuard counts which guard's reason an alarm had; Suspicious how many
	// images have a p-value of a guard at or below the promise.
	ByGuard    map[string]int `json:"by_guard"`
	Suspicious map[string]int `json:"suspicious"`
	// Bare and Guarded are the medians of the time that an image took, without
	// and with guards, in seconds.
	Bare    float64    `json:"bare_seconds"`
	Guarded float64    `json:"guarded_seconds"`
	Ratio   float64    `json:"ratio"` // of the sums, so that second looks count
	Each    []TriedOne `json:"each,omitempty"`
	// Answers is what the verifiers say of the answers; nil if there are none.
	Answers *TriedAnswers `json:"answers,omitempty"`
}

// TriedOne is what was said of one image.
type TriedOne struct {
	Image  int                 `json:"image"`
	Label  int                 `json:"label"`
	Output []float32           `json:"output"`
	Alarm  bool                `json:"alarm"`
	Guards []vigie.GuardResult `json:"guards"`
}

// Run runs every image through the guarded model, and once through the bare one
// to compare the time.
func (t Try) Run(ctx context.Context) (*Tried, error) {
	p, err := model.Open(t.Package)
	if err != nil {
		return nil, err
	}
	verifiers, err := verifiersOf(p)
	if err != nil {
		return nil, err
	}
	data, subject, err := p.Guards()
	if errors.Is(err, model.ErrNoGuards) && verifiers != nil {
		return t.answersOnly(ctx, p, verifiers)
	}
	if err != nil {
		return nil, err
	}
	statistics, err := guard.Parse(data)
	if err != nil {
		return nil, err
	}
	g, err := guard.Open(p.Graph, statistics, guard.Options{Subject: subject, Threads: t.Threads})
	if err != nil {
		return nil, err
	}
	defer g.Close()
	bare, err := engine.Open(p.Graph, engine.Options{Threads: t.Threads, Outputs: []string{p.Manifest.Output.Name}})
	if err != nil {
		return nil, err
	}
	defer bare.Close()
	set, digest, err := read(ctx, p, t.Data)
	if err != nil {
		return nil, err
	}
	images, err := prepare(p, set)
	if err != nil {
		return nil, err
	}
	out := &Tried{Package: t.Package, Digest: string(p.Digest), Data: digest, Split: t.Data.Split, Images: len(images),
		ByGuard: map[string]int{}, Suspicious: map[string]int{}}
	var plain, guarded []float64
	alarmed := make([]bool, len(images))
	var sums [2]float64
	for i, values := range images {
		input := engine.Float32(p.Manifest.Input.Shape(1), values)
		start := time.Now()
		if _, err := bare.Run(ctx, map[string]engine.Tensor{p.Manifest.Input.Name: input}); err != nil {
			return nil, err
		}
		middle := time.Now()
		look, err := g.Run(ctx, input)
		if err != nil {
			return nil, fmt.Errorf("job: image %d: %w", i, err)
		}
		results, err := g.Judge(ctx, look)
		if err != nil {
			return nil, fmt.Errorf("job: image %d: %w", i, err)
		}
		end := time.Now()
		plain, guarded = append(plain, middle.Sub(start).Seconds()), append(guarded, end.Sub(middle).Seconds())
		sums[0] += middle.Sub(start).Seconds()
		sums[1] += end.Sub(middle).Seconds()
		last := results[len(results)-1]
		second := false
		for _, r := range results {
			second = second || r.Guard == string(guard.Squeezing)
			if r.PValue <= statistics.FalseAlarms {
				out.Suspicious[r.Guard]++
			}
		}
		if second {
			out.Seconds++
		}
		if last.Alarm {
			out.Alarms++
			alarmed[i] = true
			out.ByGuard[last.Reason.Detail]++
		}
		if t.Each {
			one := TriedOne{Image: i, Output: look.Output, Alarm: last.Alarm, Guards: results, Label: -1}
			if !set.Multi() {
				one.Label = set.Labels[i]
			}
			out.Each = append(out.Each, one)
		}
	}
	out.Rate = train.Wilson(out.Alarms, out.Images)
	out.Bare, out.Guarded = median(plain), median(guarded)
	out.Ratio = sums[1] / sums[0]
	if verifiers != nil {
		out.Answers, err = t.tryAnswers(ctx, p, verifiers, images, set, alarmed)
	}
	return out, err
}

// answersOnly is Run for a package without input guards.
func (t Try) answersOnly(ctx context.Context, p *model.Package, v *guard.Verifiers) (*Tried, error) {
	set, digest, err := read(ctx, p, t.Data)
	if err != nil {
		return nil, err
	}
	images, err := prepare(p, set)
	if err != nil {
		return nil, err
	}
	out := &Tried{Package: t.Package, Digest: string(p.Digest), Data: digest, Split: t.Data.Split, Images: len(images)}
	out.Answers, err = t.tryAnswers(ctx, p, v, images, set, nil)
	return out, err
}

// verifiersOf are the verifiers of a package; nil if it has none.
func verifiersOf(p *model.Package) (*guard.Verifiers, error) {
	data, subject, err := p.Verifiers()
	if errors.Is(err, model.ErrNoVerifiers) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := guard.ParseVerifiers(data)
	if err == nil {
		err = v.Fits(subject, labelsOf(p))
	}
	return v, err
}

// Verifiers are the output verifiers of a package, for people to see; nil if it
// has none.
func Verifiers(p *model.Package) (*guard.Verifiers, error) { return verifiersOf(p) }

func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	sorted := append([]float64{}, v...)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}

// Write writes it for people.
func (t *Tried) Write(w io.Writer) error {
	var s strings.Builder
	fmt.Fprintf(&s, "%s on %d images of split %s\n", t.Package, t.Images, t.Split)
	if t.ByGuard == nil { // no input guards
		t.Answers.write(&s)
		_, err := io.WriteString(w, s.String())
		return err
	}
	fmt.Fprintf(&s, "alarms             %d, %.2f %% (95 %% %.2f to %.2f)\n", t.Alarms, 100*t.Rate.Value, 100*t.Rate.Low, 100*t.Rate.High)
	fmt.Fprintf(&s, "second look        %d images\n", t.Seconds)
	for _, k := range guard.Guards() {
		fmt.Fprintf(&s, "  %-16s led to %d alarms, p at or below the promise in %d images\n", k.Name, t.ByGuard[string(k.Name)], t.Suspicious[string(k.Name)])
	}
	fmt.Fprintf(&s, "time               %.3f ms an image bare, %.3f ms guarded (medians); %.2f times in all\n", 1000*t.Bare, 1000*t.Guarded, t.Ratio)
	if t.Answers != nil {
		t.Answers.write(&s)
	}
	_, err := io.WriteString(w, s.String())
	return err
}
