package train

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Fit is a whole training job: sets in, a calibrated model and its record out.
type Fit struct {
	Network    *Network
	About      any // what the network is, for the record
	Train      *Set
	Validation *Set
	Test       *Set   // nil if there is none; evaluated once, when everything is chosen
	Data       string // name of the data, for the record
	DataDigest string // "sha256:…"
	Duplicates []Duplicate
	Recipe     Recipe
	// Sensitivity is that of the second operating point [0.98].
	Sensitivity float64

	// Out is a folder, made if it does not exist, or a file that ends in .onnx:
	// then the other files of the job stand beside it, their names beginning with
	// its own.
	Out             string
	Checkpoint      bool // go on from the checkpoint, and keep it up to date
	CheckpointEvery time.Duration
	// Choose, if not nil, may put another model with its validation logits into the
	// result of the training, and a record of the choice, before it is calibrated
	// and written.
	Choose func(context.Context, *Result) error
	// Held is the caller's hold on Out; nil: Run takes one for as long as it lasts.
	Held *Hold
}

// File is the path of one of the job's files.
func (f Fit) File(name string) string {
	base, isFile := strings.CutSuffix(f.Out, ".onnx")
	switch {
	case !isFile:
		return filepath.Join(f.Out, name)
	case name == ModelFile:
		return f.Out
	}
	return base + "." + name
}

// The files of a Fit.
const (
	ModelFile       = "model.onnx"
	CalibrationFile = "calibration.json"
	TrainingFile    = "training.json"
	CurvesPNG       = "curves.png"
	CurvesSVG       = "curves.svg"
	CheckpointFile  = "checkpoint.vigie"
	LedgerFile      = "privacy.jsonl"       // of a private run; see dp.Ledger
	WeightsFile     = "weights.safetensors" // which package job writes
)

// Run trains, calibrates and writes the files: model, calibration, training.json
// (the Report) and learning curves. Another run that writes to the same place is
// ErrBusy.
func (f Fit) Run(ctx context.Context, progress func(Epoch)) (report *Report, result *Result, err error) {
	if f.Sensitivity == 0 {
		f.Sensitivity = 0.98
	}
	if f.Held == nil {
		held, err := HoldOutput(f.Out)
		if err != nil {
			return nil, nil, err
		}
		defer func() { err = errors.Join(err, held.Release()) }()
	}
	config := Config{Network: f.Network, Train: f.Train, Validation: f.Validation, Recipe: f.Recipe}
	if f.Checkpoint {
		config.Checkpoint, config.CheckpointEvery = f.File(CheckpointFile), f.CheckpointEvery
	}
	if f.Recipe.Private != nil {
		config.Ledger = f.File(LedgerFile)
	}
	if f.Test != nil {
		if err := f.Test.Check(); err != nil {
			return nil, nil, err
		}
	}
	if result, err = Run(ctx, config, progress); err != nil {
		return nil, nil, err
	}
	if f.Choose != nil {
		err = f.Choose(ctx, result)
	}
	if err == nil {
		report, err = f.report(ctx, result)
	}
	if err != nil && ctx.Err() != nil {
		epochs := len(result.History.Epochs)
		return nil, nil, &Interrupted{Epochs: epochs, Of: epochs, Checkpoint: config.Checkpoint, Cause: err}
	}
	if err != nil {
		return nil, nil, err
	}
	return report, result, f.write(result, report)
}

// write leaves the files of a job.
func (f Fit) write(result *Result, r *Report) error {
	if err := result.Model.Save(f.File(ModelFile)); err != nil {
		return fmt.Errorf("train: writing the model: %w", err)
	}
	calibration := calibrationRecord{
		Method: "temperature", Temperature: r.Temperature, FittedOn: r.Data + ", split val", Examples: f.Validation.Len(),
		ErrorBefore: r.Calibration[0], ErrorAfter: r.Calibration[1],
	}
	files := map[string][]byte{CurvesSVG: r.History.SVG()}
	var err error
	if files[CurvesPNG], err = r.History.PNG(); err != nil {
		return err
	}
	for name, v := range map[string]any{CalibrationFile: calibration, TrainingFile: r} {
		data, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return fmt.Errorf("train: writing %s: %w", name, err)
		}
		files[name] = append(data, '\n')
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		err := WriteWhole(f.File(name), func(w io.Writer) error {
			_, err := w.Write(files[name])
			return err
		})
		if err != nil {
			return fmt.Errorf("train: writing the record: %w", err)
		}
	}
	return nil
}

// Moments returns mean and standard deviation of the pixel values, 0..1, to four
// digits.
func (s *Set) Moments() (mean, deviation float32) {
	var sum, squares, n float64
	if s.Pixels == nil {
		for _, v := range s.Values {
			sum += float64(v)
			squares += float64(v) * float64(v)
		}
		n = float64(len(s.Values))
	} else {
		var counts [256]float64
		for _, p := range s.Pixels {
			counts[p]++
		}
		for v, n := range counts {
			x := float64(v) / 255
			sum += n * x
			squares += n * x * x
		}
		n = float64(len(s.Pixels))
	}
	m := sum / n
	four := func(x float64) float32 { return float32(math.Round(x*1e4) / 1e4) }
	return four(m), four(math.Sqrt(max(0, squares/n-m*m)))
}

// processor names the type of processor: vector width decides the order of sums
// inside the runtime, and so the last bits of every weight.
func processor() string {
	if raw, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		flags := strings.Fields(string(raw))
		for _, set := range []string{"avx512f", "avx2", "avx"} {
			if slices.Contains(flags, set) {
				return runtime.GOARCH + " " + set
			}
		}
	}
	return runtime.GOARCH
}
