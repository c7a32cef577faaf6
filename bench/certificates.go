package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard/certificate"
	"github.com/vigie/vigie/guard/job"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx/zoo"
)

// certificates measures what a certificate of one answer takes: both rounds of
// masks, all of them, since an answer that a mask turns costs less. The networks
// of fresh weights stand for any of their size: what is covered does not change
// how long a run takes.
func certificates(ctx context.Context, o options) ([]Row, error) {
	pkg, err := model.Open(o.model)
	if err != nil {
		return nil, err
	}
	demo, err := pkg.Certified()
	if err != nil {
		return nil, err
	}
	built, err := zoo.Build("resnet18", zoo.Options{Input: []int64{1, 224, 224}, Classes: 2, Norm: zoo.BatchNorm}, rand.New(rand.NewPCG(1, 2)))
	if err != nil {
		return nil, err
	}
	large := certificate.Model{Graph: built.Model, Input: built.Input, Output: built.Logits, Shape: []int64{1, 224, 224}, Black: []float64{0}, White: []float64{1}}
	var rows []Row
	for _, work := range []struct {
		name              string
		model             certificate.Model
		side, patch, k, n int
		target            float64
	}{{"certificate, demo model 28×28, 3×3 pixels", demo, 28, 3, 6, 40, 0}, {"certificate, ResNet-18 224×224, 24×24 pixels", large, 224, 24, 3, 10, 1.0}} {
		bare, took, longest, runs, err := certificateTimes(ctx, work.model, work.side, work.patch, work.k, work.n)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", work.name, err)
		}
		rows = append(rows,
			Row{Work: work.name, System: "bare ONNX Runtime run", Value: 1000 * bare, Unit: "ms", Note: "median"},
			Row{Work: work.name, System: fmt.Sprintf("both rounds of %d masks, %d runs", work.k*work.k, runs), Value: took, Unit: "s", Target: work.target, Note: fmt.Sprintf("median; longest %.2f", longest)})
	}
	return rows, nil
}

// certificateTimes returns medians in seconds, the longest certificate, and how
// often the model was asked for one.
func certificateTimes(ctx context.Context, m certificate.Model, side, patch, k, n int) (bare, took, longest float64, runs int, err error) {
	// Every answer is the same, so that no round ends early.
	m.Decide = func([]float32) (certificate.Answer, error) { return "", nil }
	c, err := certificate.Open(m, certificate.Options{Patch: &certificate.Patch{Masks: k, Fill: certificate.Mean, Rounds: 2}})
	if err != nil {
		return 0, 0, 0, 0, err
	}
	defer c.Close()
	plain, err := engine.Open(m.Graph, engine.Options{Outputs: []string{m.Output}})
	if err != nil {
		return 0, 0, 0, 0, err
	}
	defer plain.Close()
	rng := rand.New(rand.NewPCG(3, 4))
	var bares, all []float64
	for i := range n + 1 { // the first warms up
		l := &dicom.Luminance{Rows: side, Columns: side, Values: make([]float32, side*side)}
		for p := range l.Values {
			y, x := float64(p/side)/float64(side), float64(p%side)/float64(side)
			l.Values[p] = float32(0.5 + 0.3*math.Sin(6*y+rng.Float64())*math.Cos(5*x))
		}
		input := engine.Float32(append([]int64{1}, m.Shape...), l.Values)
		start := time.Now()
		if _, err := plain.Run(ctx, map[string]engine.Tensor{m.Input: input}); err != nil {
			return 0, 0, 0, 0, err
		}
		middle := time.Now()
		found, err := c.Squares(ctx, input, "", certificate.Size{Rows: patch, Columns: patch}, certificate.Whole(side, side))
		if err != nil {
			return 0, 0, 0, 0, err
		}
		if runs = found.Runs; !found.Certified {
			return 0, 0, 0, 0, fmt.Errorf("a round ended early: %d runs: %w", runs, job.ErrAsk)
		}
		if i > 0 {
			bares, all = append(bares, middle.Sub(start).Seconds()), append(all, time.Since(middle).Seconds())
		}
	}
	slices.Sort(bares)
	slices.Sort(all)
	return bares[len(bares)/2], all[len(all)/2], all[len(all)-1], runs, nil
}
