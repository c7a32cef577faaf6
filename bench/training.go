package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
)

var benchmarkLine = regexp.MustCompile(`(?m)^BenchmarkDemoStep/(\S+?)(?:-\d+)?\s+\d+\s+([\d.]+) ns/op`)

// training times forward and backward of the demo network on 32 images in our
// engine and in Debian's PyTorch, one after the other, three times, and takes
// the medians.
func training(ctx context.Context, _ options) ([]Row, error) {
	const work = "training, demo network, forward + backward, batch 32"
	ours := map[string][]float64{}
	peer := map[string][]float64{}
	version := ""
	for range 3 {
		output, err := exec.CommandContext(ctx, "go", "test", "./train", "-run", "^$", "-bench", "DemoStep", "-benchtime", "2s").CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("bench: go test ./train -bench DemoStep: %w\n%s", err, output)
		}
		for _, match := range benchmarkLine.FindAllSubmatch(output, -1) {
			ns, err := strconv.ParseFloat(string(match[2]), 64)
			if err != nil {
				return nil, err
			}
			ours[string(match[1])] = append(ours[string(match[1])], ns/1e6)
		}
		if version, err = timePyTorch(ctx, peer); err != nil {
			fmt.Fprintln(os.Stderr, "bench: left out:", err)
		}
	}
	if len(ours) == 0 {
		return nil, errors.New("bench: the benchmark DemoStep printed no figure")
	}
	var rows []Row
	best := func(figures map[string][]float64) float64 {
		least := median(nil)
		for _, values := range figures {
			if m := median(values); !(m >= least) {
				least = m
			}
		}
		return least
	}
	for name, values := range ours {
		rows = append(rows, Row{Work: work, System: "vigie, " + name, Value: median(values), Unit: "ms"})
	}
	for name, values := range peer {
		rows = append(rows, Row{Work: work, System: "PyTorch " + version + ", " + name, Value: median(values), Unit: "ms", Note: "the better of contiguous and channels_last"})
	}
	slices.SortFunc(rows, func(a, b Row) int {
		if a.System < b.System {
			return 1
		}
		return -1
	})
	if len(peer) > 0 {
		rows = append(rows, Row{Work: work, System: "speed, best vigie over best PyTorch", Value: best(peer) / best(ours), Unit: "×"})
	}
	return rows, nil
}

func timePyTorch(ctx context.Context, into map[string][]float64) (version string, err error) {
	command := exec.CommandContext(ctx, "/usr/bin/python3", "bench/pytorch_demo_model.py")
	command.Env = append(os.Environ(), "OPENBLAS_NUM_THREADS=1")
	output, err := command.Output()
	if err != nil {
		return "", fmt.Errorf("the peer PyTorch (python3-torch): %w", err)
	}
	var result map[string]json.RawMessage
	if err := json.Unmarshal(output, &result); err != nil {
		return "", err
	}
	for name, raw := range result {
		var figures struct {
			Median float64 `json:"median_ms"`
		}
		if name == "pytorch" {
			_ = json.Unmarshal(raw, &version)
		} else if json.Unmarshal(raw, &figures) == nil && figures.Median > 0 {
			into[name] = append(into[name], figures.Median)
		}
	}
	return version, nil
}
