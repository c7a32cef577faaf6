package train

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Fit is a whole training job: a MedMNIST file in, a folder with a calibrated
// model and its record out.
type Fit struct {
	Data       string // .npz file with the splits train and val
	Out        string // folder; made if it does not exist
	Network    CNN
	Recipe     Recipe
	Checkpoint bool // go on from Out/checkpoint.gob, and keep it up to date
}

// The files of a Fit.
const (
	ModelFile       = "model.onnx"
	CalibrationFile = "calibration.json"
	TrainingFile    = "training.json"
	checkpointFile  = "checkpoint.gob"
)

// Report is training.json: what was trained from what and how good it is, on
// the validation split only. The epoch, the temperature and the operating point
// were chosen on that split too, so its figures are optimistic.
type Report struct {
	Data        string         `json:"data"`        // file name
	DataDigest  string         `json:"data_digest"` // "sha256:…"
	TrainImages []int          `json:"train_images_by_class"`
	Images      []int          `json:"validation_images_by_class"`
	Network     CNN            `json:"network"`
	Parameters  int            `json:"parameters"`
	Input       string         `json:"input"`  // float [N, channels, rows, columns], values 0..1
	Output      string         `json:"output"` // logits [N, classes]
	Layer       string         `json:"layer"`  // for Grad-CAM
	Seed        uint64         `json:"seed"`
	AUC         Interval       `json:"validation_auc"`           // DeLong
	Bootstrap   *Interval      `json:"validation_auc_bootstrap"` // 2000 resamples
	Accuracy    float64        `json:"validation_accuracy"`      // of the most probable class
	LogLoss     [2]float64     `json:"validation_log_loss"`      // before and after calibration
	Calibration [2]float64     `json:"calibration_error"`        // expected, 15 bins, before and after
	Temperature float64        `json:"temperature"`
	Operating   OperatingPoint `json:"operating_point"` // of class 1, on the calibrated probability
	Sensitive   OperatingPoint `json:"operating_point_sensitivity_98"`
	Processor   string         `json:"processor"` // weights repeat bit for bit on the same type only
	History     History        `json:"history"`
}

// calibrationRecord is calibration.json as package model reads it.
type calibrationRecord struct {
	Method      string  `json:"method"`
	Temperature float64 `json:"temperature"`
	FittedOn    string  `json:"fitted_on"`
	Examples    int     `json:"examples"`
	ErrorBefore float64 `json:"error_before"`
	ErrorAfter  float64 `json:"error_after"`
}

const calibrationBins = 15

// Run trains, calibrates and writes Out/model.onnx, Out/calibration.json and
// Out/training.json. Two classes only: class 1 is the positive one.
func (f Fit) Run(ctx context.Context, progress func(Epoch)) (*Report, error) {
	training, err := LoadMedMNIST(f.Data, "train", Limits{})
	if err != nil {
		return nil, err
	}
	validation, err := LoadMedMNIST(f.Data, "val", Limits{})
	if err != nil {
		return nil, err
	}
	if training.Classes != 2 {
		return nil, fmt.Errorf("train: %s has %d classes; calibration and operating point are for two", f.Data, training.Classes)
	}
	f.Network.Channels, f.Network.Rows, f.Network.Columns, f.Network.Classes = training.Channels, training.Rows, training.Columns, 2
	f.Network.Mean, f.Network.Deviation = training.Moments()
	network, err := f.Network.Build(rand.New(rand.NewPCG(f.Recipe.Seed, 0x11)))
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(f.Out, 0o755); err != nil {
		return nil, fmt.Errorf("train: making the output folder: %w", err)
	}
	config := Config{Network: network, Train: training, Validation: validation, Recipe: f.Recipe}
	if f.Checkpoint {
		config.Checkpoint = filepath.Join(f.Out, checkpointFile)
	}
	result, err := Run(ctx, config, progress)
	if err != nil {
		return nil, err
	}
	report, err := f.report(network, training, validation, result)
	if err != nil {
		return nil, err
	}
	return report, f.write(result, report, validation)
}

// Moments returns mean and standard deviation of the pixel values, 0..1, to four
// digits.
func (s *Set) Moments() (mean, deviation float32) {
	var counts [256]float64
	for _, p := range s.Pixels {
		counts[p]++
	}
	var sum, squares float64
	for v, n := range counts {
		x := float64(v) / 255
		sum += n * x
		squares += n * x * x
	}
	n := float64(len(s.Pixels))
	m := sum / n
	four := func(x float64) float32 { return float32(math.Round(x*1e4) / 1e4) }
	return four(m), four(math.Sqrt(squares/n - m*m))
}

func (f Fit) report(network *Network, training, validation *Set, result *Result) (*Report, error) {
	digest, err := digestOf(f.Data)
	if err != nil {
		return nil, err
	}
	temperature, err := Temperature(result.Logits, validation.Labels)
	if err != nil {
		return nil, err
	}
	positive := make([]bool, validation.Len())
	margins := make([]float64, validation.Len())
	raw, calibrated := make([]float64, validation.Len()), make([]float64, validation.Len())
	for i, z := range result.Logits {
		positive[i] = validation.Labels[i] == 1
		margins[i] = Margin(z, 1)
		raw[i], calibrated[i] = Softmax(z, 1)[1], Softmax(z, temperature)[1]
	}
	r := &Report{
		Data: filepath.Base(f.Data), DataDigest: digest,
		TrainImages: training.Counts(), Images: validation.Counts(),
		Network: f.Network, Parameters: result.History.Weights,
		Input: network.Input, Output: network.Logits, Layer: network.Layer, Seed: f.Recipe.Seed,
		Accuracy:    validation.Accuracy(result.Logits),
		LogLoss:     [2]float64{meanLogLoss(result.Logits, validation.Labels, 1), meanLogLoss(result.Logits, validation.Labels, temperature)},
		Calibration: [2]float64{CalibrationError(raw, positive, calibrationBins), CalibrationError(calibrated, positive, calibrationBins)},
		Temperature: temperature, Processor: processor(), History: result.History,
	}
	if r.AUC, err = AUC(margins, positive); err != nil {
		return nil, err
	}
	figure := func(s []float64, p []bool) float64 {
		a, _ := AUC(s, p) // both classes are always there: resampling is by class
		return a.Value
	}
	bootstrap, err := Bootstrap(margins, positive, 2000, f.Recipe.Seed, figure)
	if err != nil {
		return nil, err
	}
	r.Bootstrap = &bootstrap
	if r.Operating, err = Youden(calibrated, positive); err != nil {
		return nil, err
	}
	if r.Sensitive, err = AtSensitivity(calibrated, positive, 0.98); err != nil {
		return nil, err
	}
	return r, nil
}

func (f Fit) write(result *Result, r *Report, validation *Set) error {
	if err := result.Model.Save(filepath.Join(f.Out, ModelFile)); err != nil {
		return fmt.Errorf("train: writing the model: %w", err)
	}
	calibration := calibrationRecord{
		Method: "temperature", Temperature: r.Temperature, FittedOn: r.Data + ", split val", Examples: validation.Len(),
		ErrorBefore: r.Calibration[0], ErrorAfter: r.Calibration[1],
	}
	for name, v := range map[string]any{CalibrationFile: calibration, TrainingFile: r} {
		data, err := json.MarshalIndent(v, "", "  ")
		if err != nil {
			return fmt.Errorf("train: writing %s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(f.Out, name), append(data, '\n'), 0o644); err != nil {
			return fmt.Errorf("train: writing the record: %w", err)
		}
	}
	return nil
}

func digestOf(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("train: reading the data set: %w", err)
	}
	defer file.Close()
	h := sha256.New()
	if _, err := io.Copy(h, file); err != nil {
		return "", fmt.Errorf("train: reading the data set %s: %w", path, err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
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
