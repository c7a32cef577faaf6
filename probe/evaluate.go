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
	"strings"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// Test says on what a model is evaluated. The size and aspect that images are
// brought to, the names of the classes and the encoding of a table are the
// model's where the options leave them open. Seed is also that of the bootstrap.
type Test struct {
	studies.Options
	Split string // "train", "val", "test" or "all"
}

// Evaluation says how good a model is on labelled images.
type Evaluation struct {
	Model string `json:"model"`
	// Digest is that of the package, or the file's SHA-256; of a file with weights
	// beside it that of what sha256sum prints for it and them.
	Digest     string   `json:"digest"`
	Data       string   `json:"data"`
	DataDigest string   `json:"data_digest"`
	Split      string   `json:"split"`
	Seed       uint64   `json:"seed"`
	Classes    []string `json:"classes"` // names, or numbers where nobody named them
	Images     []int    `json:"images_by_class"`
	// AUC is that of the positive class of two (a package's target, otherwise
	// class 1) with DeLong's 95 % interval; nil for more classes: see ClassAUC.
	AUC *train.Interval `json:"auc"`
	// ClassAUC holds each class against the rest, or each label of those that do
	// not exclude each other, with DeLong's intervals; MeanAUC is their mean, for
	// two classes AUC, and AUCBootstrap its 95 % interval by 2000 resamples.
	ClassAUC     []train.Interval `json:"auc_by_class"`
	MeanAUC      float64          `json:"mean_auc"`
	AUCBootstrap *train.Interval  `json:"auc_bootstrap"`
	// Accuracy is that of the most probable class, with Wilson's interval, and
	// Confusion counts [class of the image][most probable class]. For labels that
	// do not exclude each other it is the share of labels told right at one half,
	// and there is no confusion.
	Accuracy  train.Interval `json:"accuracy"`
	Confusion [][]int        `json:"confusion,omitempty"`
	// LogLoss and CalibrationError (expected, 15 bins; see
	// train.Set.CalibrationError) are of the probabilities that the package
	// calibrates; a bare graph's are its softmax, or sigmoid.
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

// ask completes the options by what the model says of its input.
func (m *Model) ask(t Test) (studies.Options, error) {
	o := t.Options
	o.Only = t.Split
	classes, columns, err := train.Described(m.Graph)
	if err != nil {
		return o, fmt.Errorf("probe: evaluating %s: %w", m.Path, err)
	}
	if o.Encoding == nil {
		o.Encoding = columns
	}
	if p := m.Package; p != nil {
		o.Aspect = p.Manifest.Input.Aspect
		classes = nil
		for _, l := range p.Manifest.Output.Labels {
			classes = append(classes, l.Name)
		}
	}
	npz := strings.EqualFold(filepath.Ext(o.Data), ".npz")
	if npz { // it holds numbers, and images of one size
		return o, nil
	}
	if o.Classes == nil && len(o.LabelColumns) < 2 && classes != nil {
		o.Classes, o.ClassesBy = classes, m.Path
	}
	in := m.inputs()[0].Shape
	if p := m.Package; p != nil {
		o.Rows, o.Columns, o.Channels = p.Manifest.Input.Rows, p.Manifest.Input.Columns, 1
	} else if len(in) == 4 {
		for i, size := range []*int{&o.Channels, &o.Rows, &o.Columns} {
			if d := in[1+i]; d.Known() && *size == 0 {
				*size = int(d.Value)
			}
		}
	}
	return o, nil
}

// reading is what a model says of one image.
type reading struct {
	score       []float64 // by class, to rank images by: logits against the others
	probability []float64 // by class, calibrated
	positive    bool      // the package's target, at its operating point
	review      bool
}

// Evaluate runs labelled examples through the model. A package prepares images
// as it does a radiograph's luminance and calibrates its answer. A bare graph
// gets values 0..1 in [N, channels, rows, columns], a grey image repeated where
// it wants three channels, or whatever else the data hold, and must return
// logits [N, classes], or [N, 1] for two classes.
func (m *Model) Evaluate(ctx context.Context, t Test) (*Evaluation, error) {
	if len(m.inputs()) == 0 {
		return nil, fmt.Errorf("probe: evaluating %s: %w: it has no input", m.Path, ErrAsk)
	}
	options, err := m.ask(t)
	if err != nil {
		return nil, err
	}
	data, err := studies.Open(ctx, options)
	if err != nil {
		return nil, err
	}
	set, err := data.Set(t.Split)
	if err != nil {
		return nil, fmt.Errorf("probe: evaluating on %s: %w", t.Data, err)
	}
	e := &Evaluation{Model: m.Path, Data: filepath.Base(t.Data), DataDigest: data.Digest, Split: t.Split, Seed: t.Seed, Images: set.Counts()}
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
	} else {
		if e.Digest, err = m.digest(); err != nil {
			return nil, err
		}
		if e.Classes = set.ClassNames; e.Classes == nil && !set.Multi() { // the data have numbers
			e.Classes = m.labels()
		}
	}
	readings, err := read(ctx, set)
	if err != nil {
		return nil, err
	}
	classes := len(readings[0].probability)
	if set.Classes > classes {
		return nil, fmt.Errorf("probe: %s has labels up to %d (%s): %w: its classes are 0 to %d", t.Data, set.Classes-1, set.ClassName(set.Classes-1), ErrAsk, classes-1)
	}
	if set.Classes < classes {
		return nil, fmt.Errorf("probe: split %q of %s: %w: it has images of %d classes, the model knows %d, and figures need every one", t.Split, t.Data, ErrAsk, set.Classes, classes)
	}
	if len(e.Classes) != classes {
		e.Classes = nil
		for c := range classes {
			e.Classes = append(e.Classes, set.ClassName(c))
		}
	}
	return e, e.fill(readings, set, target, m.Package)
}

func (e *Evaluation) fill(readings []reading, set *train.Set, target int, p *model.Package) error {
	classes := len(e.Classes)
	e.judge(readings, set)
	scores := make([][]float64, len(readings))
	for i, r := range readings {
		scores[i] = r.score
	}
	column := func(c int) (score, probability []float64, positive []bool) {
		for i, r := range readings {
			score, probability, positive = append(score, r.score[c]), append(probability, r.probability[c]), append(positive, set.Has(i, c))
		}
		return score, probability, positive
	}
	for c := range classes {
		score, _, positive := column(c)
		auc, err := train.AUC(score, positive)
		if err != nil {
			return err
		}
		e.ClassAUC = append(e.ClassAUC, auc)
		e.MeanAUC += auc.Value / float64(classes)
	}
	var bootstrap train.Interval
	var err error
	if classes == 2 && !set.Multi() {
		score, _, positive := column(target)
		e.AUC = &e.ClassAUC[target]
		bootstrap, err = train.Bootstrap(score, positive, resamples, e.Seed, func(s []float64, p []bool) float64 {
			auc, _ := train.AUC(s, p) // both classes are always there: resampling is by class
			return auc.Value
		})
	} else {
		bootstrap, err = set.BootstrapMean(scores, resamples, e.Seed)
	}
	if err != nil {
		return err
	}
	e.AUCBootstrap = &bootstrap
	if p != nil {
		e.Operating = operating(readings, set, target, p)
	}
	return nil
}

// judge fills what follows from the probabilities: accuracy, confusion, log loss
// and calibration error.
func (e *Evaluation) judge(readings []reading, set *train.Set) {
	classes, n := len(e.Classes), 0
	var confidence []float64 // of each judgement, and whether it came true
	var right []bool
	hits := 0
	if !set.Multi() {
		e.Confusion = make([][]int, classes)
		for c := range e.Confusion {
			e.Confusion[c] = make([]int, classes)
		}
	}
	for i, r := range readings {
		if set.Multi() {
			for c, p := range r.probability {
				n++
				has := set.Has(i, c)
				if (p >= 0.5) == has {
					hits++
				}
				confidence, right = append(confidence, p), append(right, has)
				if !has {
					p = 1 - p
				}
				e.LogLoss -= math.Log(max(p, 1e-300))
			}
			continue
		}
		n++
		label := set.Labels[i]
		best := slices.Index(r.probability, slices.Max(r.probability))
		if best == label {
			hits++
		}
		e.Confusion[label][best]++
		e.LogLoss -= math.Log(max(r.probability[label], 1e-300))
		if classes == 2 {
			confidence, right = append(confidence, r.probability[1]), append(right, label == 1)
		} else {
			confidence, right = append(confidence, r.probability[best]), append(right, best == label)
		}
	}
	e.LogLoss /= float64(n)
	e.Accuracy = train.Wilson(hits, n)
	e.CalibrationError = train.CalibrationError(confidence, right, calibrationBins)
}

func operating(readings []reading, set *train.Set, target int, p *model.Package) *Operating {
	label := p.Manifest.Output.Labels[target]
	o := &Operating{Label: label.Name, Threshold: label.Threshold}
	for i, r := range readings {
		switch is := set.Has(i, target); {
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
	o.Sensitivity = train.Wilson(o.TruePositive, o.TruePositive+o.FalseNegative)
	o.Specificity = train.Wilson(o.TrueNegative, o.TrueNegative+o.FalsePositive)
	return o
}

// batch is how many images run together where the graph leaves it open.
const batch = 32

// readGraph runs a bare graph.
func (m *Model) readGraph(ctx context.Context, set *train.Set) ([]reading, error) {
	declared := m.inputs()
	if len(declared) != 1 || len(declared[0].Shape) != len(set.Example())+1 || declared[0].Type != onnx.Float {
		return nil, fmt.Errorf("probe: evaluating %s: %w: want one input of floats for examples of shape %v, it has %s", m.Path, ErrAsk, set.Example(), list(declared))
	}
	copies, err := train.Fits(m.Graph, declared[0].Name, set.Example())
	if err != nil {
		return nil, fmt.Errorf("probe: evaluating %s: %w: want %v: %w", m.Path, ErrAsk, declared[0], err)
	}
	shape := slices.Clone(set.Example())
	shape[0] *= int64(copies)
	rows, err := m.logits(ctx, set.Len(), shape, func(i int, to []float32) error {
		set.Fill(to, i)
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
		if len(z) == 1 && !set.Multi() { // one logit: class 1 against class 0
			z = []float64{0, z[0]}
		}
		r := reading{probability: set.Probabilities(z, 1), score: z}
		if !set.Multi() {
			r.score = nil
			for c := range z {
				r.score = append(r.score, train.Margin(z, c))
			}
		}
		readings[i] = r
	}
	return readings, nil
}

// readPackage takes the images the way that a case's take.
func (m *Model) readPackage(ctx context.Context, set *train.Set) ([]reading, error) {
	p := m.Package
	if set.Channels != 1 || set.Shape != nil {
		return nil, fmt.Errorf("probe: evaluating %s: images of %d channels: %w: a package reads luminance", m.Path, set.Channels, ErrAsk)
	}
	rows, err := m.logits(ctx, set.Len(), p.Manifest.Input.Shape(1)[1:], func(i int, to []float32) error {
		l := &dicom.Luminance{Rows: set.Rows, Columns: set.Columns, Values: make([]float32, set.Rows*set.Columns)}
		set.Fill(l.Values, i)
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

func (m *Model) digest() (string, error) {
	own, err := digest(m.Path)
	if err != nil || len(m.Graph.External) == 0 {
		return own, err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s  %s\n", strings.TrimPrefix(own, "sha256:"), filepath.Base(m.Path))
	for _, name := range m.Graph.External {
		weights, err := digest(filepath.Join(filepath.Dir(m.Path), name))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s  %s\n", strings.TrimPrefix(weights, "sha256:"), name)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
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
		read := ""
		if e.Confusion != nil {
			read = fmt.Sprintf("   read as %v", e.Confusion[c])
		}
		err = errors.Join(err, write("  %-20s %6d examples   AUC %s%s\n", train.Spoken(name), e.Images[c], interval(e.ClassAUC[c]), read))
	}
	err = errors.Join(err, write("AUC                %.4f\n", e.MeanAUC))
	if e.AUC != nil {
		err = errors.Join(err, write("  DeLong           %s\n", interval(*e.AUC)))
	}
	err = errors.Join(err, write("  bootstrap        %s, seed %d\n", interval(*e.AUCBootstrap), e.Seed))
	err = errors.Join(err, write("accuracy           %s\nlog loss           %.4f\ncalibration error  %.4f\n", interval(e.Accuracy), e.LogLoss, e.CalibrationError))
	if o := e.Operating; o != nil {
		err = errors.Join(err, write("%s at %.3f: %d found, %d missed, %d false alarms, %d rightly negative\n  sensitivity      %s\n  specificity      %s\n  to review        %d\n",
			o.Label, o.Threshold, o.TruePositive, o.FalseNegative, o.FalsePositive, o.TrueNegative, interval(o.Sensitivity), interval(o.Specificity), o.ToReview))
	}
	return err
}
