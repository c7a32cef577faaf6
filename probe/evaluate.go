package probe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// Test says on what a model is evaluated.
type Test struct {
	Data  string // .npz in the layout of MedMNIST
	Split string // "train", "val" or "test"
	Seed  uint64 // of the bootstrap
}

// Evaluation says how good a model is on labelled images.
type Evaluation struct {
	Model      string   `json:"model"`
	Digest     string   `json:"digest"` // of the package, or SHA-256 of the file
	Data       string   `json:"data"`
	DataDigest string   `json:"data_digest"`
	Split      string   `json:"split"`
	Seed       uint64   `json:"seed"`
	Classes    []string `json:"classes"`
	Images     []int    `json:"images_by_class"`
	// AUC is that of the positive class of two (a package's target, otherwise
	// class 1) with DeLong's 95 % interval, and AUCBootstrap the same with 2000
	// resamples. Both are nil for more classes: see ClassAUC.
	AUC          *train.Interval `json:"auc"`
	AUCBootstrap *train.Interval `json:"auc_bootstrap"`
	// ClassAUC holds each class against the rest, with DeLong's intervals, and
	// MeanAUC their mean; for two classes it equals AUC.
	ClassAUC []train.Interval `json:"auc_by_class"`
	MeanAUC  float64          `json:"mean_auc"`
	// Accuracy is that of the most probable class, with Wilson's interval, and
	// Confusion counts [class of the image][most probable class].
	Accuracy  train.Interval `json:"accuracy"`
	Confusion [][]int        `json:"confusion"`
	// LogLoss and CalibrationError (expected, 15 bins, of the positive class or,
	// of more than two, of the most probable one) are of the probabilities that
	// the package calibrates; a bare graph's are its softmax.
	LogLoss          float64    `json:"log_loss"`
	CalibrationError float64    `json:"calibration_error"`
	Operating        *Operating `json:"operating_point"` // nil for a bare graph
}

// Operating is what a package's operating point does with the images.
type Operating struct {
	Label         string         `json:"label"`
	Threshold     float64        `json:"threshold"` // on the calibrated probability
	TruePositive  int            `json:"true_positive"`
	FalseNegative int            `json:"false_negative"`
	FalsePositive int            `json:"false_positive"`
	TrueNegative  int            `json:"true_negative"`
	Sensitivity   train.Interval `json:"sensitivity"` // with Wilson's interval
	Specificity   train.Interval `json:"specificity"`
	ToReview      int            `json:"to_review"` // that its rules send to a person
}

const (
	calibrationBins = 15
	resamples       = 2000
)

// reading is what a model says of one image.
type reading struct {
	score       []float64 // by class, to rank images by: logits against the others
	probability []float64 // by class, calibrated
	positive    bool      // the package's target, at its operating point
	review      bool
}

// Evaluate runs a labelled split through the model. A package prepares the
// images as it does a radiograph's luminance and calibrates its answer. A bare
// graph gets pixel values 0..1 in [N, channels, rows, columns], a grey image
// repeated where it wants three channels, and must return logits [N, classes],
// or [N, 1] for two classes.
func (m *Model) Evaluate(ctx context.Context, t Test) (*Evaluation, error) {
	set, err := train.LoadMedMNIST(t.Data, t.Split, train.Limits{})
	if err != nil {
		return nil, err
	}
	e := &Evaluation{Model: m.Path, Data: filepath.Base(t.Data), Split: t.Split, Seed: t.Seed, Images: set.Counts()}
	if e.DataDigest, err = digest(t.Data); err != nil {
		return nil, err
	}
	target := 1
	read := m.readGraph
	if m.Package != nil {
		e.Digest = string(m.Package.Digest)
		read = m.readPackage
		output := m.Package.Manifest.Output
		target = slices.IndexFunc(output.Labels, func(l model.Label) bool { return l.Name == output.Target })
		for _, l := range output.Labels {
			e.Classes = append(e.Classes, l.Name)
		}
	} else if e.Digest, err = digest(m.Path); err != nil {
		return nil, err
	}
	readings, err := read(ctx, set)
	if err != nil {
		return nil, err
	}
	classes := len(readings[0].probability)
	if set.Classes > classes {
		return nil, fmt.Errorf("probe: %s has labels up to %d: %w: its classes are 0 to %d", t.Data, set.Classes-1, ErrAsk, classes-1)
	}
	if set.Classes < classes {
		return nil, fmt.Errorf("probe: split %q of %s: %w: it has images of %d classes, the model knows %d, and figures need every one", t.Split, t.Data, ErrAsk, set.Classes, classes)
	}
	for c := len(e.Classes); c < classes; c++ {
		e.Classes = append(e.Classes, fmt.Sprintf("class %d", c))
	}
	return e, e.fill(readings, set, target, m.Package)
}

func (e *Evaluation) fill(readings []reading, set *train.Set, target int, p *model.Package) error {
	classes := len(e.Classes)
	n := len(readings)
	e.Confusion = make([][]int, classes)
	for c := range e.Confusion {
		e.Confusion[c] = make([]int, classes)
	}
	right := make([]bool, n)
	confidence := make([]float64, n)
	hits := 0
	for i, r := range readings {
		best := 0
		for c, v := range r.probability {
			if v > r.probability[best] {
				best = c
			}
		}
		right[i], confidence[i] = best == set.Labels[i], r.probability[best]
		if right[i] {
			hits++
		}
		e.Confusion[set.Labels[i]][best]++
		e.LogLoss -= math.Log(max(r.probability[set.Labels[i]], 1e-300)) / float64(n)
	}
	e.Accuracy = wilson(hits, n)
	column := func(c int) (scores, probability []float64, positive []bool) {
		for i, r := range readings {
			scores, probability, positive = append(scores, r.score[c]), append(probability, r.probability[c]), append(positive, set.Labels[i] == c)
		}
		return scores, probability, positive
	}
	for c := range classes {
		scores, _, positive := column(c)
		auc, err := train.AUC(scores, positive)
		if err != nil {
			return err
		}
		e.ClassAUC = append(e.ClassAUC, auc)
		e.MeanAUC += auc.Value / float64(classes)
	}
	if classes == 2 {
		scores, probability, positive := column(target)
		e.AUC = &e.ClassAUC[target]
		bootstrap, err := train.Bootstrap(scores, positive, resamples, e.Seed, func(s []float64, p []bool) float64 {
			auc, _ := train.AUC(s, p) // both classes are always there: resampling is by class
			return auc.Value
		})
		if err != nil {
			return err
		}
		e.AUCBootstrap = &bootstrap
		e.CalibrationError = train.CalibrationError(probability, positive, calibrationBins)
	} else {
		e.CalibrationError = train.CalibrationError(confidence, right, calibrationBins)
	}
	if p != nil {
		e.Operating = operating(readings, set, target, p)
	}
	return nil
}

func operating(readings []reading, set *train.Set, target int, p *model.Package) *Operating {
	label := p.Manifest.Output.Labels[target]
	o := &Operating{Label: label.Name, Threshold: label.Threshold}
	for i, r := range readings {
		switch is := set.Labels[i] == target; {
		case is && r.positive:
			o.TruePositive++
		case is:
			o.FalseNegative++
		case r.positive:
			o.FalsePositive++
		default:
			o.TrueNegative++
		}
		if r.review {
			o.ToReview++
		}
	}
	o.Sensitivity = wilson(o.TruePositive, o.TruePositive+o.FalseNegative)
	o.Specificity = wilson(o.TrueNegative, o.TrueNegative+o.FalsePositive)
	return o
}

// wilson is a share with its 95 % score interval (Wilson 1927).
func wilson(hits, n int) train.Interval {
	const z = 1.959963984540054
	total := float64(n)
	p := float64(hits) / total
	centre := (p + z*z/(2*total)) / (1 + z*z/total)
	half := z / (1 + z*z/total) * math.Sqrt(p*(1-p)/total+z*z/(4*total*total))
	return train.Interval{Value: p, Low: max(0, centre-half), High: min(1, centre+half)}
}

// batch is how many images run together where the graph leaves it open.
const batch = 32

// readGraph runs a bare graph.
func (m *Model) readGraph(ctx context.Context, set *train.Set) ([]reading, error) {
	declared := m.inputs()
	if len(declared) != 1 || len(declared[0].Shape) != 4 || declared[0].Type != onnx.Float {
		return nil, fmt.Errorf("probe: evaluating %s: %w: want one input float[N, channels, rows, columns], it has %s", m.Path, ErrAsk, list(declared))
	}
	in := declared[0]
	repeat := 1
	if in.Shape[1].Value == 3 && set.Channels == 1 {
		repeat = 3
	}
	for i, size := range []int{set.Channels * repeat, set.Rows, set.Columns} {
		if d := in.Shape[1+i]; d.Known() && d.Value != int64(size) {
			return nil, fmt.Errorf("probe: evaluating %s: images of %d×%d×%d: %w: want %v", m.Path, set.Channels, set.Rows, set.Columns, ErrAsk, in)
		}
	}
	rows, err := m.logits(ctx, set.Len(), []int64{int64(set.Channels * repeat), int64(set.Rows), int64(set.Columns)}, func(i int, to []float32) error {
		pixels := set.Image(i)
		for r := range repeat {
			for j, v := range pixels {
				to[r*len(pixels)+j] = float32(v) / 255
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	readings := make([]reading, len(rows))
	for i, row := range rows {
		z := make([]float64, len(row))
		for k, v := range row {
			z[k] = float64(v)
			if math.IsNaN(z[k]) || math.IsInf(z[k], 0) {
				return nil, fmt.Errorf("probe: evaluating %s: output %d of image %d is %v", m.Path, k, i, v)
			}
		}
		if len(z) == 1 { // one logit: class 1 against class 0
			z = []float64{0, z[0]}
		}
		r := reading{probability: train.Softmax(z, 1)}
		for c := range z {
			r.score = append(r.score, train.Margin(z, c))
		}
		readings[i] = r
	}
	return readings, nil
}

// readPackage takes the images the way that a case's take.
func (m *Model) readPackage(ctx context.Context, set *train.Set) ([]reading, error) {
	p := m.Package
	if set.Channels != 1 {
		return nil, fmt.Errorf("probe: evaluating %s: images of %d channels: %w: a package reads luminance", m.Path, set.Channels, ErrAsk)
	}
	rows, err := m.logits(ctx, set.Len(), p.Manifest.Input.Shape(1)[1:], func(i int, to []float32) error {
		l := &dicom.Luminance{Rows: set.Rows, Columns: set.Columns, Values: make([]float32, set.Rows*set.Columns)}
		for j, v := range set.Image(i) {
			l.Values[j] = float32(v) / 255
		}
		prepared, err := p.Manifest.Prepare(l)
		if err != nil {
			return err
		}
		values, err := engine.Values[float32](prepared)
		copy(to, values)
		return err
	})
	if err != nil {
		return nil, err
	}
	output := p.Manifest.Output
	target := slices.IndexFunc(output.Labels, func(l model.Label) bool { return l.Name == output.Target })
	readings := make([]reading, len(rows))
	for i, row := range rows {
		predictions, err := p.Predictions(row)
		if err != nil {
			return nil, fmt.Errorf("probe: image %d: %w", i, err)
		}
		r := reading{positive: predictions[target].Positive, review: len(p.Manifest.Review(predictions, nil)) > 0}
		z := make([]float64, len(row))
		for k, v := range row {
			z[k] = float64(v)
		}
		for c, prediction := range predictions {
			r.probability = append(r.probability, prediction.Probability)
			if output.Activation == model.Softmax {
				r.score = append(r.score, train.Margin(z, c))
			} else { // each output ranks by itself
				r.score = append(r.score, z[c])
			}
		}
		readings[i] = r
	}
	return readings, nil
}

// logits runs n images of the given shape, written by fill, in batches of the
// size that the graph wants, and returns the output's rows.
func (m *Model) logits(ctx context.Context, n int, shape []int64, fill func(int, []float32) error) ([][]float32, error) {
	out, err := m.output("")
	if err != nil {
		return nil, err
	}
	in := m.inputs()[0]
	size := batch
	if in.Shape[0].Known() {
		size = int(in.Shape[0].Value)
	}
	session, err := engine.Open(m.Graph, engine.Options{Outputs: []string{out.Name}})
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	defer session.Close()
	pixels := 1
	for _, d := range shape {
		pixels *= int(d)
	}
	var rows [][]float32
	for from := 0; from < n; from += size {
		count := size
		if !in.Shape[0].Known() {
			count = min(size, n-from)
		}
		images := make([]float32, count*pixels) // a batch of fixed size is filled up with black
		for i := range min(count, n-from) {
			if err := fill(from+i, images[i*pixels:(i+1)*pixels]); err != nil {
				return nil, fmt.Errorf("probe: preparing image %d: %w", from+i, err)
			}
		}
		result, err := session.Run(ctx, map[string]engine.Tensor{in.Name: engine.Float32(append([]int64{int64(count)}, shape...), images)})
		if err != nil {
			return nil, fmt.Errorf("probe: evaluating %s: %w", m.Path, err)
		}
		values, err := engine.Values[float32](result[out.Name])
		if s := result[out.Name].Shape; err != nil || len(s) != 2 || s[0] != int64(count) || s[1] < 1 {
			return nil, fmt.Errorf("probe: evaluating %s: output %v: %w: want float[N, classes]", m.Path, result[out.Name], ErrAsk)
		}
		for i := range min(count, n-from) {
			width := len(values) / count
			rows = append(rows, values[i*width:(i+1)*width])
		}
	}
	return rows, nil
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("probe: reading a file: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("probe: reading %s: %w", path, err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// Write writes the evaluation for people.
func (e *Evaluation) Write(w io.Writer) error {
	write := func(format string, args ...any) error {
		_, err := fmt.Fprintf(w, format, args...)
		return err
	}
	interval := func(v train.Interval) string { return fmt.Sprintf("%.4f (95 %% %.4f to %.4f)", v.Value, v.Low, v.High) }
	err := write("%s, split %s of %s\n", e.Model, e.Split, e.Data)
	for c, name := range e.Classes {
		err = errors.Join(err, write("  %-20s %6d images   AUC %s   read as %v\n", name, e.Images[c], interval(e.ClassAUC[c]), e.Confusion[c]))
	}
	err = errors.Join(err, write("AUC                %.4f\n", e.MeanAUC))
	if e.AUC != nil {
		err = errors.Join(err, write("  DeLong           %s\n  bootstrap        %s, seed %d\n", interval(*e.AUC), interval(*e.AUCBootstrap), e.Seed))
	}
	err = errors.Join(err, write("accuracy           %s\nlog loss           %.4f\ncalibration error  %.4f\n", interval(e.Accuracy), e.LogLoss, e.CalibrationError))
	if o := e.Operating; o != nil {
		err = errors.Join(err, write("%s at %.3f: %d found, %d missed, %d false alarms, %d rightly negative\n  sensitivity      %s\n  specificity      %s\n  to review        %d\n",
			o.Label, o.Threshold, o.TruePositive, o.FalseNegative, o.FalsePositive, o.TrueNegative, interval(o.Sensitivity), interval(o.Specificity), o.ToReview))
	}
	return err
}
