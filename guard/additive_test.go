package guard

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// features are those of images of two answers, whose parts are correlated and of
// very different size.
func features(n int, seed uint64, shift float64) *Features {
	rng := rand.New(rand.NewPCG(seed, 4))
	f := &Features{parts: make([][][]float64, 2)}
	for range n {
		class := rng.IntN(2)
		f.answers = append(f.answers, class)
		one := rng.NormFloat64()
		f.parts[0] = append(f.parts[0], []float64{40 + 30*float64(class) + 9*one + shift, 9*one + rng.NormFloat64(), 0.01 * rng.NormFloat64()})
		f.parts[1] = append(f.parts[1], []float64{rng.NormFloat64() + shift, 1e-3 * rng.ExpFloat64()})
	}
	return f
}

func begun() *Additive {
	return &Additive{Classes: 2, Step: StepMeans, Parts: []AdditivePart{{Name: "layer", Width: 3, ByClass: true}, {Name: texturePart, Width: 2}}}
}

// fitBySums fits to features that are in several places.
func fitBySums(t *testing.T, fitted, calibrated []*Features) *Additive {
	t.Helper()
	a := begun()
	for a.Step != StepDone {
		total := make([]float64, a.Numbers())
		of := fitted
		if a.Step == StepClean {
			of = calibrated
		}
		for _, f := range of {
			site := begun() // knows what it is told, and nothing else
			if err := site.SetParameters(a.Step, a.Parameters()); err != nil {
				t.Fatal(err)
			}
			sums, err := site.Sums(f)
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range sums {
				total[i] += v
			}
		}
		if err := a.Next(total); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func TestAFitBySumsIsTheGaussianOfTheImagesInOnePlace(t *testing.T) {
	sites := []*Features{features(50, 1, 0), features(200, 2, 0.5), features(120, 3, -1)}
	a := fitBySums(t, sites, []*Features{features(300, 5, 0)})
	for k, p := range a.Parts {
		var rows [][]float64
		var class []int
		for _, f := range sites {
			rows, class = append(rows, f.parts[k]...), append(class, f.answers...)
		}
		groups := a.groups(p)
		if groups == 1 {
			class = make([]int, len(rows))
		}
		want, err := fitGaussian(rows, class, groups)
		if err != nil {
			t.Fatal(err)
		}
		var distances []float64
		for i, x := range rows {
			d := want.distance(x, class[i])
			distances = append(distances, d)
			if got := p.distance(x, class[i]); math.Abs(got-d) > 1e-6 {
				t.Fatalf("%s: the distance of image %d is %v by sums, %v in one place", p.Name, i, got, d)
			}
		}
		exact := fitTail(distances)
		const bin = (mostDistance - leastDistance) / distanceBins
		if math.Abs(p.Threshold-exact.Threshold) > bin || math.Abs(p.Excess-exact.Scale) > 2*bin {
			t.Errorf("%s: a tail from %v by %v, in one place from %v by %v", p.Name, p.Threshold, p.Excess, exact.Threshold, exact.Scale)
		}
	}
}

func TestAFitBySumsKeepsItsPromise(t *testing.T) {
	a := fitBySums(t, []*Features{features(150, 1, 0), features(150, 2, 0)}, []*Features{features(200, 5, 0), features(200, 6, 0)})
	alarms := func(f *Features) (n int) {
		p, err := a.PValues(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range p {
			if a.Result(v, 0.05).Alarm {
				n++
			}
		}
		return n
	}
	if clean := alarms(features(2000, 7, 0)); clean > 150 || clean < 30 { // 100 are promised at most, in the mean over calibrations
		t.Errorf("%d alarms of 2000 clean images", clean)
	}
	if odd := alarms(features(200, 8, 8)); odd < 180 {
		t.Errorf("%d alarms of 200 images that are far off", odd)
	}
	if _, err := begun().PValues(features(1, 1, 0)); !errors.Is(err, ErrStatistics) {
		t.Errorf("judged by what was not fitted: %v", err)
	}
}

func TestStepsOutOfPlaceAreRefused(t *testing.T) {
	a := begun()
	if err := a.Next(make([]float64, 3)); err == nil {
		t.Error("a total of another step was taken")
	}
	if err := a.Next(make([]float64, a.Numbers())); !errors.Is(err, ErrTooFew) {
		t.Errorf("no images: %v", err)
	}
	if err := begun().SetParameters(StepScatter, []float64{1}); err == nil {
		t.Error("too few parameters were taken")
	}
	if err := begun().SetParameters("spy", nil); err == nil {
		t.Error("parameters of no step were taken")
	}
	zero := begun()
	zero.Step = StepScatter
	if err := begun().SetParameters(StepScatter, make([]float64, len(zero.Parameters()))); err == nil {
		t.Error("a scale of 0 was taken")
	}
	if _, err := begun().Sums(&Features{answers: []int{0}}); err == nil {
		t.Error("features of another network were added up")
	}
	if !slices.IsSorted([]int{surpriseBin(math.Inf(-1)), surpriseBin(-5), surpriseBin(4), surpriseBin(9), surpriseBin(math.Inf(1))}) {
		t.Error("bins do not keep the order of surprises")
	}
}
