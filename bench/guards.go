package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/guard/job"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx/zoo"
)

// guards measures what the input guards add to a prediction: bare and guarded
// runs by turns on the same images. Two images in a hundred get a second look,
// as the default has it, so that the ratio is of the mean over all.
func guards(ctx context.Context, o options) ([]Row, error) {
	pkg, err := model.Open(o.model)
	if err != nil {
		return nil, err
	}
	small, err := job.Network(pkg)
	if err != nil {
		return nil, err
	}
	built, err := zoo.Build("resnet18", zoo.Options{Input: []int64{1, 96, 96}, Classes: 2, Norm: zoo.BatchNorm}, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		return nil, err
	}
	large := guard.Network{Model: built.Model, Input: built.Input, Output: built.Logits, Activation: guard.Softmax,
		Shape: []int64{1, 96, 96}, Black: []float64{0}, White: []float64{1}}
	var rows []Row
	for _, work := range []struct {
		name    string
		network guard.Network
		runs    int
	}{{"guards, demo model 28×28", small, 600}, {"guards, ResNet-18 96×96", large, 40}} {
		bare, first, second, err := guardTimes(ctx, work.network, work.runs)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", work.name, err)
		}
		mean := first + guard.DefaultSecondLook*(second-first)
		rows = append(rows,
			Row{Work: work.name, System: "bare ONNX Runtime run", Value: bare, Unit: "ms", Note: "median"},
			Row{Work: work.name, System: "run with guards, first look", Value: first, Unit: "ms", Note: "median"},
			Row{Work: work.name, System: "run with guards, second look", Value: second, Unit: "ms", Note: "median"},
			Row{Work: work.name, System: "ratio, two in a hundred with a second look", Value: mean / bare, Unit: "×", Target: 1.25, Note: "guards ÷ bare"})
	}
	return rows, nil
}

// guardTimes returns medians in milliseconds.
func guardTimes(ctx context.Context, n guard.Network, runs int) (bare, first, second float64, err error) {
	rng := rand.New(rand.NewPCG(3, 4))
	rows, columns := int(n.Shape[1]), int(n.Shape[2])
	image := func() []float32 {
		values := make([]float32, rows*columns)
		cx, cy, width := rng.Float64(), rng.Float64(), 0.2+0.3*rng.Float64()
		for i := range values {
			y, x := float64(i/columns)/float64(rows)-cy, float64(i%columns)/float64(columns)-cx
			b := 0.2 + 0.6*math.Exp(-(x*x+y*y)/(2*width*width)) + 0.01*rng.NormFloat64()
			values[i] = float32(n.Black[0] + (n.White[0]-n.Black[0])*min(max(b, 0), 1))
		}
		return values
	}
	var examples guard.Examples
	for range 66 {
		examples.Images = append(examples.Images, image())
	}
	subject := vigie.ModelDigest(vigie.DigestOf(nil))
	fitted, _, err := guard.Fit(ctx, n, examples, guard.FitOptions{Subject: subject, FalseAlarms: 0.2, SecondLook: 1})
	if err != nil {
		return 0, 0, 0, err
	}
	always, err := guard.Open(n.Model, fitted, guard.Options{Subject: subject})
	if err != nil {
		return 0, 0, 0, err
	}
	defer always.Close()
	never := *fitted
	never.Escalate = math.MaxFloat64
	once, err := guard.Open(n.Model, &never, guard.Options{Subject: subject})
	if err != nil {
		return 0, 0, 0, err
	}
	defer once.Close()
	plain, err := engine.Open(n.Model, engine.Options{})
	if err != nil {
		return 0, 0, 0, err
	}
	defer plain.Close()
	guarded := func(g *guard.Guard) func(engine.Tensor) error {
		return func(input engine.Tensor) error {
			look, err := g.Run(ctx, input)
			if err == nil {
				_, err = g.Judge(ctx, look)
			}
			return err
		}
	}
	sides := []func(engine.Tensor) error{
		func(input engine.Tensor) error {
			_, err := plain.Run(ctx, map[string]engine.Tensor{n.Input: input})
			return err
		}, guarded(once), guarded(always),
	}
	times := make([][]float64, len(sides))
	for i := range runs {
		input := engine.Float32(append([]int64{1}, n.Shape...), image())
		for k, run := range sides {
			start := time.Now()
			if err := run(input); err != nil {
				return 0, 0, 0, err
			}
			if i >= runs/10 {
				times[k] = append(times[k], milliseconds(time.Since(start)))
			}
		}
	}
	for k := range times {
		slices.Sort(times[k])
	}
	middle := func(k int) float64 { return times[k][len(times[k])/2] }
	return middle(0), middle(1), middle(2), nil
}
