package train

import (
	"context"
	"fmt"
	"slices"
)

// Report is training.json: what was trained from what and how good it is. The
// epoch, the temperature and the operating points were chosen on the validation
// split, so its figures are optimistic; those of Test are not.
type Report struct {
	Data        string `json:"data"`        // file name
	DataDigest  string `json:"data_digest"` // "sha256:…"
	TrainImages []int  `json:"train_images_by_class"`
	Images      []int  `json:"validation_images_by_class"`
	Network     any    `json:"network"`
	Parameters  int    `json:"parameters"`
	Input       string `json:"input"`  // float [N, …], of images values 0..1
	Output      string `json:"output"` // logits [N, classes]
	Layer       string `json:"layer"`  // for Grad-CAM
	Seed        uint64 `json:"seed"`

	// AUC is that of class 1 of two, with DeLong's interval; for more classes,
	// or labels that do not exclude each other, the mean over them, with the
	// bootstrap's.
	AUC         Interval        `json:"validation_auc"`
	Bootstrap   *Interval       `json:"validation_auc_bootstrap"` // 2000 resamples
	ClassAUC    []Interval      `json:"validation_auc_by_class,omitempty"`
	Accuracy    float64         `json:"validation_accuracy"`       // see Set.Accuracy
	LogLoss     [2]float64      `json:"validation_log_loss"`       // before and after calibration
	Calibration [2]float64      `json:"calibration_error"`         // expected, 15 bins, before and after
	Temperature float64         `json:"temperature"`               //
	Operating   *OperatingPoint `json:"operating_point,omitempty"` // of class 1 of two, on the calibrated probability
	Sensitive   *OperatingPoint `json:"operating_point_sensitivity_98,omitempty"`
	// ByClass are the operating points of each class against the rest, or of each
	// label.
	ByClass []ClassPoints `json:"operating_points_by_class,omitempty"`

	Classes    []string        `json:"classes,omitempty"`
	Test       *TestReport     `json:"test,omitempty"`
	Duplicates []Duplicate     `json:"duplicates,omitempty"`
	Privacy    *Statement      `json:"privacy,omitempty"`  // of a private run, which leaves out what is not paid for
	Hardened   *HardenedRecord `json:"hardened,omitempty"` // of a hardened run; how is in the history's recipe
	Processor  string          `json:"processor"`          // weights repeat bit for bit on the same type only
	History    History         `json:"history"`
}

// ClassPoints are the operating points of a class.
type ClassPoints struct {
	Class     string         `json:"class"`
	Operating OperatingPoint `json:"operating_point"`
	Sensitive OperatingPoint `json:"operating_point_sensitive"`
}

// TestReport holds figures of the test split, on which nothing was chosen.
type TestReport struct {
	Images      []int      `json:"images_by_class"`
	AUC         Interval   `json:"auc"`
	Bootstrap   Interval   `json:"auc_bootstrap"`
	ClassAUC    []Interval `json:"auc_by_class,omitempty"`
	Accuracy    float64    `json:"accuracy"`
	LogLoss     float64    `json:"log_loss"`          // calibrated
	Calibration float64    `json:"calibration_error"` // of the calibrated probabilities
	// Sensitivity and Specificity are those of class 1 of two at the operating
	// point, with Wilson's intervals.
	Sensitivity *Interval `json:"sensitivity,omitempty"`
	Specificity *Interval `json:"specificity,omitempty"`
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

const (
	calibrationBins = 15
	resamples       = 2000
)

func (f Fit) report(ctx context.Context, result *Result) (*Report, error) {
	v := f.Validation
	t, err := v.Temperature(result.Logits)
	if err != nil {
		return nil, err
	}
	r := &Report{
		Data: f.Data, DataDigest: f.DataDigest,
		TrainImages: f.Train.Counts(), Images: v.Counts(), Classes: v.ClassNames, Duplicates: f.Duplicates,
		Network: f.About, Parameters: result.History.Weights,
		Input: f.Network.Input, Output: f.Network.Logits, Layer: f.Network.Layer, Seed: f.Recipe.Seed,
		Accuracy:    v.Accuracy(result.Logits),
		LogLoss:     [2]float64{v.LogLoss(result.Logits, 1), v.LogLoss(result.Logits, t)},
		Calibration: [2]float64{v.CalibrationError(result.Logits, 1), v.CalibrationError(result.Logits, t)},
		Temperature: t, Processor: processor(), History: result.History,
	}
	r.Hardened = result.Hardened
	if r.Privacy = result.Privacy; r.Privacy != nil {
		// Exact functions of the training images, which no noise was added to.
		r.DataDigest, r.TrainImages, r.Duplicates = "", nil, nil
	}
	auc, bootstrap, classes, err := v.aucs(result.Logits, f.Recipe.Seed)
	if err != nil {
		return nil, err
	}
	r.AUC, r.Bootstrap, r.ClassAUC = auc, &bootstrap, classes
	for c := range v.Classes {
		if v.binary() && c == 0 {
			continue
		}
		probability, positive := v.ofClass(result.Logits, t, c)
		p := ClassPoints{Class: v.ClassName(c)}
		if p.Operating, err = Youden(probability, positive); err != nil {
			return nil, err
		}
		if p.Sensitive, err = AtSensitivity(probability, positive, f.Sensitivity); err != nil {
			return nil, err
		}
		if v.binary() {
			r.Operating, r.Sensitive = &p.Operating, &p.Sensitive
		} else {
			r.ByClass = append(r.ByClass, p)
		}
	}
	if f.Test != nil {
		r.Test, err = f.test(ctx, result, r)
	}
	return r, err
}

// test evaluates what was chosen on the test split.
func (f Fit) test(ctx context.Context, result *Result, r *Report) (*TestReport, error) {
	s := f.Test
	logits, err := Logits(ctx, result.Model, f.Network.Input, f.Network.Logits, s)
	if err != nil {
		return nil, err
	}
	out := &TestReport{Images: s.Counts(), Accuracy: s.Accuracy(logits), LogLoss: s.LogLoss(logits, r.Temperature), Calibration: s.CalibrationError(logits, r.Temperature)}
	if out.AUC, out.Bootstrap, out.ClassAUC, err = s.aucs(logits, f.Recipe.Seed); err != nil {
		return nil, fmt.Errorf("test split: %w", err)
	}
	if s.binary() {
		probability, positive := s.ofClass(logits, r.Temperature, 1)
		var hits, wrong, n [2]int
		for i, p := range probability {
			k := 0
			if positive[i] {
				k = 1
			}
			n[k]++
			if p >= r.Operating.Threshold {
				hits[k]++
			} else {
				wrong[k]++
			}
		}
		sensitivity, specificity := Wilson(hits[1], n[1]), Wilson(wrong[0], n[0])
		out.Sensitivity, out.Specificity = &sensitivity, &specificity
	}
	return out, nil
}

// binary says that the set has two classes that exclude each other.
func (s *Set) binary() bool { return s.Classes == 2 && !s.Multi() }

// ofClass returns the calibrated probabilities of one class, and who has it.
func (s *Set) ofClass(logits [][]float64, temperature float64, class int) (probability []float64, positive []bool) {
	for i, z := range logits {
		probability = append(probability, s.Probabilities(z, temperature)[class])
		positive = append(positive, s.Has(i, class))
	}
	return probability, positive
}

// CalibrationError is the expected calibration error, 15 equally filled bins: of
// the probability of class 1 of two; of the probability of the most probable of
// more classes; of all labels' probabilities together if they do not exclude
// each other.
func (s *Set) CalibrationError(logits [][]float64, temperature float64) float64 {
	var probability []float64
	var positive []bool
	switch {
	case s.binary():
		probability, positive = s.ofClass(logits, temperature, 1)
	case s.Multi():
		for c := range s.Classes {
			p, has := s.ofClass(logits, temperature, c)
			probability, positive = append(probability, p...), append(positive, has...)
		}
	default:
		for i, z := range logits {
			p := s.Probabilities(z, temperature)
			best := slices.Index(p, slices.Max(p))
			probability, positive = append(probability, slices.Max(p)), append(positive, best == s.Labels[i])
		}
	}
	return CalibrationError(probability, positive, calibrationBins)
}

// AUCInterval is the AUC of class 1 of two with DeLong's interval, or the mean over
// more classes, or over labels, with the bootstrap's of 2000 resamples.
func (s *Set) AUCInterval(logits [][]float64, seed uint64) (Interval, error) {
	if s.binary() {
		return AUC(s.Scores(logits, 1))
	}
	return s.BootstrapMeanAUC(logits, resamples, seed)
}

// aucs returns the AUC of the set with DeLong's interval (of two classes) or the
// bootstrap's, the bootstrap's interval, and of more than two classes each one's
// with DeLong's.
func (s *Set) aucs(logits [][]float64, seed uint64) (auc, bootstrap Interval, classes []Interval, err error) {
	if s.binary() {
		scores, positive := s.Scores(logits, 1)
		if auc, err = AUC(scores, positive); err != nil {
			return auc, bootstrap, nil, err
		}
		bootstrap, err = Bootstrap(scores, positive, resamples, seed, func(s []float64, p []bool) float64 {
			a, _ := AUC(s, p) // both classes are always there: resampling is by class
			return a.Value
		})
		return auc, bootstrap, nil, err
	}
	for c := range s.Classes {
		one, err := AUC(s.Scores(logits, c))
		if err != nil {
			return auc, bootstrap, nil, fmt.Errorf("class %s: %w", s.ClassName(c), err)
		}
		classes = append(classes, one)
	}
	bootstrap, err = s.BootstrapMeanAUC(logits, resamples, seed)
	return bootstrap, bootstrap, classes, err
}
