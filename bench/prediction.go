package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/demo"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
)

// prediction sends radiographs one at a time, waits until the case has left
// triage, and reports the median of each stage as the case itself recorded it,
// beside a bare run of the same model.
func prediction(ctx context.Context, o options) ([]Row, error) {
	bare, err := bareRun(ctx, o.model)
	if err != nil {
		return nil, err
	}
	const work = "prediction, CR 2140×1760"
	rows := []Row{{Work: work, System: "bare ONNX Runtime run, same model", Value: bare, Unit: "ms", Note: "28×28 tensor in, logits out"}}

	dir, err := os.MkdirTemp("", "vigie-bench-")
	if err != nil {
		return rows, err
	}
	defer os.RemoveAll(dir)
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return rows, err
	}
	folder, err := filepath.Abs(o.model)
	if err != nil {
		return rows, err
	}
	site, err := demo.NewSite(filepath.Join(dir, "site"), demo.SiteOptions{Model: folder})
	if err != nil {
		return rows, err
	}
	pacs, err := site.StartPACS(ctx, slog.New(slog.DiscardHandler))
	if err != nil {
		return rows, err
	}
	defer pacs.Close()
	modality, err := site.TLS("modality")
	if err != nil {
		return rows, err
	}
	ready := func(ctx context.Context) error { return httpReady(ctx, "https://"+site.HTTP+"/readyz", modality) }
	stop, err := child(ctx, dir, ready, binary, "gateway", "run", "-c", site.Config)
	if err != nil {
		return rows, err
	}
	defer stop()
	file, err := phantom.Chest(1, phantom.Options{Rows: 2140, Columns: 1760})
	if err != nil {
		return rows, err
	}
	t, err := newTemplate(file)
	if err != nil {
		return rows, err
	}
	ask := func(answer any, arguments ...string) error {
		output, err := exec.CommandContext(ctx, binary, append(arguments, "-c", site.Config, "--json")...).Output()
		if err != nil {
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				err = fmt.Errorf("%w: %s", err, exit.Stderr)
			}
			return fmt.Errorf("bench: vigie %s: %w", strings.Join(arguments, " "), err)
		}
		return json.Unmarshal(output, answer)
	}
	config := dimse.ClientConfig{CallingAE: demo.ModalityAE, CalledAE: demo.GatewayAE, TLS: modality, Timeout: time.Minute}
	association, err := dimse.Dial(ctx, site.DIMSE, config, dimse.Contexts(t.class, t.syntax))
	if err != nil {
		return rows, err
	}
	var acknowledged []float64
	for range o.cases {
		uid, data := t.fresh(serial.Add(1))
		start := time.Now()
		status, err := association.Store(ctx, t.class, uid, t.syntax, bytes.NewReader(data))
		if err != nil || status != dimse.Success {
			return rows, fmt.Errorf("bench: C-STORE: %v %w", status, err)
		}
		acknowledged = append(acknowledged, milliseconds(time.Since(start)))
		time.Sleep(500 * time.Millisecond) // one case at a time: the stages are not to wait for each other
	}
	_ = association.Release(ctx)

	var cases []vigie.Case
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		cases = nil
		if err := ask(&cases, "case", "list", "--limit", "100000"); err != nil {
			return rows, err
		}
		if !slices.ContainsFunc(cases, func(c vigie.Case) bool {
			return c.State == vigie.Received || c.State == vigie.Diagnosed || c.State == vigie.Released
		}) {
			break
		}
		if time.Now().After(deadline) {
			return rows, errors.New("bench: cases were not finished within a minute")
		}
	}
	stages := map[string][]float64{}
	var order []string
	add := func(list []vigie.Stage, where string) {
		for _, stage := range list {
			name := where + " " + stage.Name
			if stages[name] == nil {
				order = append(order, name)
			}
			stages[name] = append(stages[name], milliseconds(stage.Duration))
		}
	}
	var total []float64
	for _, listed := range cases {
		var c vigie.Case // the list leaves findings sealed
		if err := ask(&c, "case", "show", string(listed.ID)); err != nil {
			return rows, err
		}
		add(c.Stages, "gateway:")
		if c.Finding != nil {
			add(c.Finding.Stages, "enclave:")
		}
		total = append(total, milliseconds(c.Updated.Sub(c.Received)))
	}
	rows = append(rows, Row{Work: work, System: "C-STORE to acknowledgement", Value: median(acknowledged), Unit: "ms", Note: "sealed, fsynced, committed"})
	for _, name := range order {
		rows = append(rows, Row{Work: work, System: name, Value: median(stages[name]), Unit: "ms", Note: fmt.Sprintf("median of %d", len(stages[name]))})
	}
	rows = append(rows, Row{Work: work, System: "received to last step", Value: median(total), Unit: "ms", Note: "delivery to the PACS included where released"})
	return rows, nil
}

func bareRun(ctx context.Context, folder string) (float64, error) {
	pkg, err := model.Open(folder)
	if err != nil {
		return 0, err
	}
	session, err := engine.OpenBytes(pkg.ONNX, engine.Options{})
	if err != nil {
		return 0, err
	}
	defer session.Close()
	input := session.Inputs()[0]
	shape, count := make([]int64, len(input.Shape)), int64(1)
	for i, dim := range input.Shape {
		shape[i] = max(1, dim.Value)
		count *= shape[i]
	}
	pixels := make([]float32, count)
	for i := range pixels {
		pixels[i] = float32(math.Mod(float64(i)*0.618, 1))
	}
	var times []float64
	for i := range 220 {
		start := time.Now()
		if _, err := session.Run(ctx, map[string]engine.Tensor{input.Name: engine.Float32(shape, pixels)}); err != nil {
			return 0, err
		}
		if i >= 20 {
			times = append(times, milliseconds(time.Since(start)))
		}
	}
	return median(times), nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / 1e6 }

func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
