package job

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/guard/certificate"
	guards_job "github.com/vigie/vigie/guard/job"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// guardedPackage is a copy of the demo package with guards fitted to blobs, and a
// file of other blobs with the answers that it gives as labels.
func guardedPackage(t *testing.T, count int, certify string) (dir, data string) {
	t.Helper()
	const side = 28
	dir = filepath.Join(t.TempDir(), "package")
	if err := os.CopyFS(dir, os.DirFS("../../models/chest-pneumonia-28")); err != nil {
		t.Fatal(err)
	}
	if certify != "" {
		path := filepath.Join(dir, "manifest.yaml")
		text, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, append(text, certify...), 0o644)
		}
		if err == nil {
			_, err = model.Seal(dir)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	pkg, err := model.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	session, err := engine.Open(pkg.Graph, engine.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	rng := rand.New(rand.NewPCG(3, 5))
	write := func(name, split string, count int) string {
		type blob struct {
			image  []uint8
			label  int64
			margin float64
		}
		var blobs []blob
		candidates := count
		if split == "test" { // those that it is least sure of: none is out of reach
			candidates = 20 * count
		}
		for range candidates {
			image := make([]uint8, side*side)
			values := make([]float32, side*side)
			cx, cy, width, height := 8+12*rng.Float64(), 8+12*rng.Float64(), 4+8*rng.Float64(), 0.2+0.5*rng.Float64()
			tilt := rng.Float64() * 3
			for i := range image {
				y, x := float64(i/side)-cy, float64(i%side)-cx
				v := 0.15 + height*math.Exp(-(x*x+y*y)/(2*width*width)) + 0.1*math.Sin(tilt+0.4*x) + 0.008*rng.NormFloat64()
				image[i] = uint8(255 * min(max(v, 0), 1))
				values[i] = float32(image[i]) / 255
			}
			out, err := session.Run(context.Background(), map[string]engine.Tensor{pkg.Manifest.Input.Name: engine.Float32(pkg.Manifest.Input.Shape(1), values)})
			if err != nil {
				t.Fatal(err)
			}
			z := out[pkg.Manifest.Output.Name].Data.([]float32)
			b := blob{image, 0, math.Abs(float64(z[1] - z[0]))}
			if z[1] > z[0] {
				b.label = 1
			}
			blobs = append(blobs, b)
		}
		if split == "test" {
			slices.SortFunc(blobs, func(a, b blob) int { return cmp.Compare(a.margin, b.margin) })
		}
		var pixels []uint8
		var labels []int64
		for i, b := range blobs[:count] {
			if i == count-1 && !slices.Contains(labels, 1-b.label) { // a data set has both
				b.label = 1 - b.label
			}
			pixels, labels = append(pixels, b.image...), append(labels, b.label)
		}
		path := filepath.Join(t.TempDir(), name)
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n := int64(count)
		if err := train.WriteNPZ(f, map[string]train.Array{
			split + "_images": {Shape: []int64{n, side, side}, Data: pixels}, split + "_labels": {Shape: []int64{n, 1}, Data: labels}}); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fit := guards_job.Fit{Package: dir, Data: probe.Test{Options: studies.Options{Data: write("fit.npz", "val", 84), Seed: 1}, Split: "val"},
		Options: guard.FitOptions{Seed: 1, FalseAlarms: 0.05, Threads: 1}}
	if _, err := fit.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	return dir, write("attacked.npz", "test", count)
}

func TestTheColumnsOfTheGuardsAreWhatTheGuardsSayOfTheSavedImages(t *testing.T) {
	dir, data := guardedPackage(t, 6, "")
	out := t.TempDir()
	o := Options{Model: dir, Data: probe.Test{Options: studies.Options{Data: data, Seed: 1}, Split: "test"}, Attack: attack.PGD,
		Attacking: attack.Options{Seed: 1, Steps: 15}, Guards: Both, GuardsAlone: true, Save: filepath.Join(out, "after.npz"), Report: filepath.Join(out, "report.html")}
	var err error
	if o.Eps, err = ParseEps("6/255,16/255"); err != nil {
		t.Fatal(err)
	}
	r, err := o.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	last := 0
	for _, p := range r.Curve {
		blind, knowing := p.Guarded.Oblivious, p.Guarded.Adaptive
		for _, c := range p.Guarded.columns() {
			if c.Noticed+c.Reviewed+c.Released != c.Fooled || c.Fooled > c.Attacked || c.Reviewed != 0 {
				t.Errorf("%s, %s: %+v does not add up", p.EpsText, c.Attacker, *c.Passing)
			}
			if in := c.Intervals.ReleasedRate; !(in.Low <= c.ReleasedRate && c.ReleasedRate <= in.High) {
				t.Errorf("%s, %s: released %v, interval %+v", p.EpsText, c.Attacker, c.ReleasedRate, in)
			}
		}
		if blind.Fooled != p.Fooled || knowing.Released < blind.Released || knowing.Released < last || knowing.Fooled < blind.Fooled {
			t.Errorf("%s: fooled %d, oblivious %+v, adaptive %+v", p.EpsText, p.Fooled, *blind, *knowing)
		}
		last = knowing.Released
	}
	if p := r.Curve[1]; p.Fooled < 2 || p.Guarded.Adaptive.Released <= p.Guarded.Oblivious.Released {
		t.Errorf("fooled %d, released %d and %d: the test says nothing", p.Fooled, p.Guarded.Oblivious.Released, p.Guarded.Adaptive.Released)
	}
	// The guards, asked about the saved file as the gateway would, agree.
	tried, err := guards_job.Try{Package: dir, Data: probe.Test{Options: studies.Options{Data: o.Save, Seed: 1}, Split: "test"}, Each: true}.Run(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	passed := 0
	for i, one := range tried.Each {
		answer := 0
		if one.Output[1] > one.Output[0] {
			answer = 1
		}
		if answer != one.Label && !one.Alarm && r.subject.labels[i] == r.result.Cases[i].Answer {
			passed++
			if !r.subject.guards.passed[i] {
				t.Errorf("image %d passes and is not said to", i)
			}
		}
	}
	if passed != last {
		t.Errorf("of the saved images %d are answered wrongly without an alarm, the report says %d", passed, last)
	}
	var text bytes.Buffer
	if err := r.Write(&text); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(o.Report)
	if err != nil {
		t.Fatal(err)
	}
	file, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, said := range []string{text.String(), string(page), string(file)} {
		for _, want := range []string{"is a guarantee", "oblivious", "adaptive"} {
			if !strings.Contains(said, want) {
				t.Errorf("%q is not said in %.200s…", want, said)
			}
		}
	}
}

func TestGuardsThatAreNotThereOrOfAnotherModelAreRefused(t *testing.T) {
	dir := t.TempDir()
	bare := options(meanModel(t, dir), flat(t, dir, []uint8{97, 157}, []int64{0, 1}))
	bare.Eps, _ = ParseEps("8/255")
	bare.Guards = Both
	if _, err := bare.Run(context.Background()); !errors.Is(err, ErrAsk) || !strings.Contains(err.Error(), "bare ONNX file") {
		t.Errorf("of a bare file: got %v", err)
	}
	with, data := guardedPackage(t, 4, "")
	o := Options{Model: "../../models/chest-pneumonia-28", Data: probe.Test{Options: studies.Options{Data: data, Seed: 1}, Split: "test"}, Attack: attack.PGD, Eps: bare.Eps, Guards: Oblivious}
	if _, err := o.Run(context.Background()); !errors.Is(err, model.ErrNoGuards) {
		t.Errorf("of a package without guards: got %v", err)
	}
	// The statistics name the very package without them: they fit the original.
	o.GuardsFile = filepath.Join(with, model.GuardsFile)
	if r, err := o.Run(context.Background()); err != nil || r.Curve[0].Guarded.Adaptive != nil || r.Curve[0].Guarded.Oblivious == nil {
		t.Errorf("with statistics from elsewhere: %v", err)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := os.CopyFS(other, os.DirFS("../../models/chest-pneumonia-28")); err != nil {
		t.Fatal(err)
	}
	card := filepath.Join(other, "card.md")
	text, err := os.ReadFile(card)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(card, append(text, "\nAnother.\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := model.Seal(other); err != nil {
		t.Fatal(err)
	}
	o.Model = other
	if _, err := o.Run(context.Background()); !errors.Is(err, guard.ErrOtherModel) {
		t.Errorf("of another package: got %v", err)
	}
}

// Where the package certifies against patches, an answer that masks turn is held
// as the gateway holds it.
func TestMasksThatDisagreeHoldAnAnswer(t *testing.T) {
	dir, data := guardedPackage(t, 6, "\ncertificate:\n  when: on\n  patch: {size: 9, masks: 2, rounds: 1}\n")
	ctx := context.Background()
	o := Options{Model: dir, Data: probe.Test{Options: studies.Options{Data: data, Seed: 1}, Split: "test"}, Attack: attack.PGD, Guards: Oblivious,
		Attacking: attack.Options{Norm: attack.Linf}}
	s, err := o.open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	p := s.model.Package
	// Images that have just been turned lie near the boundary.
	r, err := attack.Run(ctx, s.target, attack.PGD, s.pixels, s.labels, attack.Options{Eps: 16.0 / 255, Steps: 15, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	agreed, disagreed := 0, 0
	for i := range s.labels {
		input, err := s.replay.prepare(r.Pixels[i*28*28 : (i+1)*28*28])
		if err != nil {
			t.Fatal(err)
		}
		look, err := s.guards.guard.Run(ctx, input)
		if err != nil {
			t.Fatal(err)
		}
		predictions, err := p.Predictions(look.Output)
		if err != nil {
			t.Fatal(err)
		}
		squares, err := s.guards.proofs.Squares(ctx, input, model.AnswerOf(predictions), certificate.Size{Rows: 9, Columns: 9}, certificate.Whole(28, 28))
		if err != nil {
			t.Fatal(err)
		}
		reviewed := s.guards.review(ctx, input, look.Output)
		if squares.Agreed() {
			agreed++
		} else if disagreed++; !reviewed {
			t.Errorf("image %d: %d of %d masks agree, and it is not reviewed", i, squares.Agree, len(squares.Covered))
		}
	}
	if disagreed == 0 {
		t.Errorf("of %d images the masks disagree about none: the test says nothing", agreed)
	}
}

func TestALimitKeepsTheClassesInTheirShares(t *testing.T) {
	var classes []int
	for i := range 100 {
		c := 0
		if i >= 70 { // sorted by class: the first N would be of one
			c = 1
		}
		if i >= 97 {
			c = 4
		}
		classes = append(classes, c)
	}
	for _, limit := range []int{1, 10, 33, 99} {
		drawn := draw(classes, limit, 1)
		by := map[int]int{}
		for _, i := range drawn {
			by[classes[i]]++
		}
		if len(drawn) != limit || !slices.IsSorted(drawn) || len(slices.Compact(slices.Clone(drawn))) != limit {
			t.Errorf("limit %d: %v", limit, drawn)
		}
		for c, n := range map[int]int{0: 70, 1: 27, 4: 3} {
			if math.Abs(float64(by[c])-float64(limit*n)/100) >= 1 {
				t.Errorf("limit %d: %d of class %d, of %d", limit, by[c], c, n)
			}
		}
		if !slices.Equal(drawn, draw(classes, limit, 1)) || limit == 33 && slices.Equal(drawn, draw(classes, limit, 2)) {
			t.Errorf("limit %d: the draw does not follow the seed", limit)
		}
	}
	if all := draw(classes, 0, 1); len(all) != 100 {
		t.Errorf("without a limit %d", len(all))
	}
}
