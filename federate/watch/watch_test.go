package watch

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/train"
)

// pictures are noise around a grey, of which odd ones have stripes.
func pictures(n int, seed uint64, odd bool) *train.Set {
	rng := rand.New(rand.NewPCG(seed, 0))
	s := &train.Set{Name: "pictures", Channels: 1, Rows: 16, Columns: 16, Classes: 2}
	for i := range n {
		s.Labels = append(s.Labels, i%2)
		for at := range 256 {
			v := 90 + 40*(i%2) + rng.IntN(50)
			if odd && at/16%2 == 0 {
				v += 70
			}
			s.Pixels = append(s.Pixels, uint8(min(255, v)))
		}
	}
	return s
}

func TestGuardsFittedAtTheirSitesAreThoseOfTheImagesInOnePlace(t *testing.T) {
	network, err := train.CNN{Channels: 1, Rows: 16, Columns: 16, Classes: 2, Stages: [][]int{{4}, {6}}, GroupSize: 2, Hidden: 8, Mean: 0.4, Deviation: 0.2}.Build(rand.New(rand.NewPCG(1, 0)))
	if err != nil {
		t.Fatal(err)
	}
	terms := federate.DefaultTerms("north")
	terms.Tasks, terms.Questions = []federate.Task{federate.TaskGuards}, 12
	like := pictures(2, 0, false)
	e, err := federate.NewEngine(network, terms, like, 0)
	if errors.Is(err, engine.ErrNoRuntime) {
		t.Skipf("SKIPPED, nothing was checked: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	of := NetworkOf(e, network, like)
	initial, trained := e.Variables()
	var members []secagg.Member
	var keys []ed25519.PrivateKey
	for i := range 4 {
		keys = append(keys, ed25519.NewKeyFromSeed(slices.Repeat([]byte{byte(i + 1)}, 32)))
		members = append(members, secagg.Member{Name: fmt.Sprintf("site-%d", i), Key: keys[i].Public().(ed25519.PublicKey)})
	}
	var links []federate.Link
	var fitted, calibrated [][]float32
	for i := range 4 {
		set := pictures(60+40*i, uint64(i), false)
		images, patients := ImagesOf(set)
		first, second := guard.Halves(guard.Examples{Images: images, Patients: patients}, 7)
		for _, k := range first {
			fitted = append(fitted, images[k])
		}
		for _, k := range second {
			calibrated = append(calibrated, images[k])
		}
		site, err := federate.NewSite(federate.SiteOptions{Name: members[i].Name, Terms: terms, Members: members, Signer: keys[i], Trainer: e.Trainer(set),
			Answers: federate.Answerers{federate.TaskGuards: &Site{Network: of, Images: images, Patients: patients, Seed: 7}}})
		if err != nil {
			t.Fatal(err)
		}
		links = append(links, federate.Direct(site))
	}
	c, err := federate.NewCoordinator(federate.CoordinatorOptions{Terms: terms, Members: members, Variables: initial, Trained: trained})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Fit(t.Context(), c, links, of, 0)
	if err != nil {
		t.Fatal(err)
	}
	// the same steps over all images in one place, without secure sums
	n, err := of(federate.Subject{Variables: initial})
	if err != nil {
		t.Fatal(err)
	}
	want, err := guard.NewAdditive(n)
	if err != nil {
		t.Fatal(err)
	}
	measure := func(images [][]float32) *guard.Features {
		f, err := guard.Measure(t.Context(), n, images, 1)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for want.Step != guard.StepDone {
		f := measure(fitted)
		if want.Step == guard.StepClean {
			f = measure(calibrated)
		}
		sums, err := want.Sums(f)
		if err != nil {
			t.Fatal(err)
		}
		if err := want.Next(sums); err != nil {
			t.Fatal(err)
		}
	}
	if len(got.Parts) != len(want.Parts) || len(got.Parts) < 3 {
		t.Fatalf("%d parts, want %d", len(got.Parts), len(want.Parts))
	}
	off := 0.0
	for k, p := range want.Parts {
		for i, v := range p.Factor {
			off = max(off, math.Abs(got.Parts[k].Factor[i]-v)/max(1, math.Abs(v)))
		}
		off = max(off, math.Abs(got.Parts[k].Scale-p.Scale)/p.Scale)
	}
	if off > 1e-5 {
		t.Errorf("the fit by secure sums is off by %v", off)
	}
	clean, _ := ImagesOf(pictures(200, 99, false))
	odd, _ := ImagesOf(pictures(60, 98, true))
	for _, images := range [][][]float32{clean, odd} {
		f := measure(images)
		a, err := got.PValues(f)
		if err != nil {
			t.Fatal(err)
		}
		b, err := want.PValues(f)
		if err != nil {
			t.Fatal(err)
		}
		alarms, apart := 0, 0
		for i := range a {
			if a[i] <= 0.05 {
				alarms++
			}
			if math.Abs(a[i]-b[i]) > 0.02 { // a score at the edge of a bin
				apart++
			}
		}
		if apart > 2 {
			t.Errorf("%d of %d images are judged otherwise than in one place", apart, len(images))
		}
		if len(images) == 200 && alarms > 24 || len(images) == 60 && alarms < 55 {
			t.Errorf("%d alarms of %d images", alarms, len(images))
		}
	}
	// what does not fit the network is not answered
	if _, err := c.Ask(t.Context(), links, federate.Question{Task: federate.TaskGuards, Numbers: 5, Kind: "means"}); !errors.Is(err, federate.ErrRound) {
		t.Errorf("a question of another network: %v", err)
	}
	if _, err := Fit(t.Context(), c, links, of, 10_000); !errors.Is(err, guard.ErrTooFew) {
		t.Errorf("no site has enough images: %v", err)
	}
}
