package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vigie/vigie/engine"
)

// work is one row of the engine's table: what is computed, on which network, and
// how much faster than the peer it must be.
type work struct {
	name    string
	kind    kind
	network string // a member of the zoo, "small-cnn" or "demo"
	norm    string
	input   []int64
	batch   int
	least   float64 // ratio to the peer that is asked for; 0: none
	kernels int     // terms of the engine's own operators; 0: the runtime's operators
}

type kind string

const (
	trainStep     kind = "train"          // gradients of every weight and an AdamW update
	privateStep   kind = "dp"             // the same with each example's gradient clipped, and noise
	inputGradient kind = "input-gradient" // of the loss, weights fixed
	inference     kind = "inference"
	trainMemory   kind = "memory" // peak of a process that trains
)

// works is the whole table.
var works = []work{
	{"small-cnn", trainStep, "small-cnn", "", []int64{1, 64, 64}, 32, 1.15, 0},
	{"resnet18-bn", trainStep, "resnet18", "batch", []int64{1, 64, 64}, 32, 1.1, 0},
	{"resnet18-gn", trainStep, "resnet18", "group", []int64{1, 64, 64}, 32, 1.1, 0},
	{"densenet121", trainStep, "densenet121", "batch", []int64{1, 64, 64}, 32, 1.1, 0},
	{"efficientnet-b0", trainStep, "efficientnet-b0", "batch", []int64{1, 64, 64}, 32, 1.1, 0},
	{"vit-ti", trainStep, "vit-ti16", "batch", []int64{1, 64, 64}, 32, 1.1, 0},
	{"demo", trainStep, "demo", "group", []int64{1, 28, 28}, 32, 0, 0},
	{"dp-small-cnn", privateStep, "small-cnn", "", []int64{1, 64, 64}, 32, 1.3, 0},
	{"dp-resnet18", privateStep, "resnet18", "group", []int64{1, 64, 64}, 32, 4, 0},
	{"input-gradient-1", inputGradient, "densenet121", "batch", []int64{3, 224, 224}, 1, 1.5, 0},
	{"input-gradient-8", inputGradient, "densenet121", "batch", []int64{3, 224, 224}, 8, 1.2, 0},
	{"inference-resnet18", inference, "resnet18", "batch", []int64{3, 224, 224}, 1, 0.97, 0},
	{"inference-densenet121", inference, "densenet121", "batch", []int64{3, 224, 224}, 1, 0.97, 0},
	{"memory-small-cnn", trainMemory, "small-cnn", "", []int64{1, 64, 64}, 32, 1 / 1.3, 0},
	{"memory-resnet18-bn", trainMemory, "resnet18", "batch", []int64{1, 64, 64}, 32, 1 / 1.3, 0},
	{"memory-densenet121", trainMemory, "densenet121", "batch", []int64{1, 64, 64}, 32, 1 / 1.3, 0},
	{"memory-efficientnet-b0", trainMemory, "efficientnet-b0", "batch", []int64{1, 64, 64}, 32, 1 / 1.3, 0},
	{"memory-vit-ti", trainMemory, "vit-ti16", "batch", []int64{1, 64, 64}, 32, 1 / 1.3, 0},
}

const classes = 2

func (w work) title() string {
	what := map[kind]string{
		trainStep: "training step with AdamW", privateStep: "DP-SGD step with noise and AdamW", inputGradient: "input gradient",
		inference: "inference", trainMemory: "peak memory of a process that trains",
	}[w.kind]
	norm := ""
	if w.norm != "" && !strings.HasPrefix(w.network, "vit") {
		norm = ", " + w.norm + " norm"
	}
	return fmt.Sprintf("%s: %s, %s%s, %s, batch %d", w.name, what, w.network, norm, strings.Trim(strings.ReplaceAll(fmt.Sprint(w.input), " ", "×"), "[]"), w.batch)
}

// measureEngine measures the works that o.rows chooses. A row that fails is
// reported and does not stop the others.
func measureEngine(ctx context.Context, o options) ([]Row, error) {
	chosen := works
	if o.rows != "" {
		chosen = nil
		for name := range strings.SplitSeq(o.rows, ",") {
			i := slices.IndexFunc(works, func(w work) bool { return w.name == name })
			if i < 0 {
				return nil, fmt.Errorf("bench: no row %q: the rows are %s", name, strings.Join(rowNames(), ", "))
			}
			chosen = append(chosen, works[i])
		}
	}
	kernels := o.kernels
	if kernels < 0 {
		kernels = engine.KernelTerms()
	}
	if err := engine.CheckKernels(kernels); err != nil {
		return nil, fmt.Errorf("bench: %w", err)
	}
	var rows []Row
	failed := 0
	plain := map[string]float64{} // wall milliseconds of our training steps, by network
	for _, w := range chosen {
		fmt.Fprintf(os.Stderr, "bench: %s …\n", w.name)
		w.kernels = kernels
		measured, err := w.measure(ctx, o)
		if ctx.Err() != nil {
			return rows, ctx.Err()
		}
		if err != nil {
			failed++
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", w.name, err)
		}
		rows = append(rows, measured...)
		if len(measured) == 0 {
			continue
		}
		key, ours := w.network+w.norm, measured[0].Value
		switch w.kind {
		case trainStep:
			plain[key] = ours
		case privateStep:
			if without, ok := plain[key]; ok {
				rows = append(rows, Row{Work: w.title(), System: "cost of privacy, ours over our plain step", Value: ours / without, Unit: "×"})
			}
		}
	}
	if failed > 0 {
		return rows, fmt.Errorf("%d of %d rows failed", failed, len(chosen))
	}
	return rows, nil
}

func rowNames() []string {
	var names []string
	for _, w := range works {
		names = append(names, w.name)
	}
	return names
}

func (w work) measure(ctx context.Context, o options) ([]Row, error) {
	if w.kind == trainMemory {
		return w.measureMemory(ctx)
	}
	ours, err := w.open()
	if err != nil {
		return nil, err
	}
	defer ours.close()
	var peer contender
	if w.kind == inference {
		peer, err = w.openBare()
	} else {
		peer, err = w.startPeer(ctx, "")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %s: the peer is left out: %v\n", w.name, err)
		peer = nil
	} else {
		defer peer.close()
	}
	return w.race(ctx, o, ours, peer)
}

// contender is one side of a comparison.
type contender interface {
	name() string
	// steps runs n steps and returns the wall and processor seconds of each.
	steps(ctx context.Context, n int) (wall, cpu []float64, err error)
	close()
}

// race lets the sides run by turns, so that what else the machine does meets
// both alike, and compares the medians of all steps.
func (w work) race(ctx context.Context, o options, ours, peer contender) ([]Row, error) {
	sides := []contender{ours}
	if peer != nil {
		sides = append(sides, peer)
	}
	wall, cpu, turn := make([][]float64, len(sides)), make([][]float64, len(sides)), make([]int, len(sides))
	for i, side := range sides { // warm up, and find how many steps a turn has
		first, _, err := side.steps(ctx, 2)
		if err != nil {
			return nil, err
		}
		turn[i] = max(1, min(200, int(o.turn.Seconds()/first[1])))
	}
	busy := startOthers()
	for range o.rounds {
		for i, side := range sides {
			a, b, err := side.steps(ctx, turn[i])
			if err != nil {
				return nil, err
			}
			wall[i], cpu[i] = append(wall[i], a...), append(cpu[i], b...)
			busy.ours(b)
		}
	}
	var rows []Row
	for i, side := range sides {
		rows = append(rows, Row{
			Work: w.title(), System: side.name(), Value: 1000 * median(wall[i]), Unit: "ms",
			CPU: 1000 * median(cpu[i]), Least: 1000 * slices.Min(wall[i]), Second: fmt.Sprintf("%.2f ms CPU", 1000*median(cpu[i])),
			Note: fmt.Sprintf("median of %d", len(wall[i])),
		})
	}
	if peer != nil {
		rows = append(rows, w.verdict(median(wall[1])/median(wall[0]), median(cpu[1])/median(cpu[0]), busy.note()))
	}
	return rows, nil
}

// verdict compares a ratio with what was asked for. A note says why it proves
// nothing: on a busy machine PyTorch's threads, which wait for each other
// spinning, lose more than ours.
func (w work) verdict(ratio, cpu float64, note string) Row {
	row := Row{Work: w.title(), System: "speed, ours over the peer's", Value: ratio, Unit: "×", CPU: cpu, Second: fmt.Sprintf("%.2f × CPU", cpu), Target: w.least}
	if w.kind == trainMemory {
		row.System, row.Second, row.CPU = "memory, the peer's over ours", "", 0
	}
	switch {
	case w.least == 0:
	case note != "":
		row.Note = fmt.Sprintf("INCONCLUSIVE: %.2f was asked for", w.least)
	case ratio >= w.least:
		row.Note = fmt.Sprintf("reached: %.2f was asked for", w.least)
	default:
		row.Note = fmt.Sprintf("MISSED: %.2f was asked for", w.least)
	}
	if note != "" {
		row.Note = strings.TrimPrefix(row.Note+"; "+note, "; ")
	}
	return row
}
