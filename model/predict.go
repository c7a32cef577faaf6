package model

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/vigie/vigie"
)

// ErrOutput is returned for an output that is not one number for each label.
var ErrOutput = errors.New("the model's output makes no sense")

// Predictions turns the model's output for one image (a number for each label,
// logits or probabilities as the manifest says) into predictions in the order
// of the labels. ErrOutput: too few or too many numbers, or not numbers.
func (p *Package) Predictions(output []float32) ([]vigie.Prediction, error) {
	m := p.Manifest
	labels := m.Output.Labels
	if len(output) != len(labels) {
		return nil, fmt.Errorf("model: reading the output of %s: %w: %d numbers for %d labels", m.Name, ErrOutput, len(output), len(labels))
	}
	plain, calibrated := make([]float64, len(output)), make([]float64, len(output))
	for i, v := range output {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return nil, fmt.Errorf("model: reading the output of %s: %w: label %s is %v", m.Name, ErrOutput, labels[i].Name, v)
		}
		if m.Output.Activation == None && (v < 0 || v > 1) {
			return nil, fmt.Errorf("model: reading the output of %s: %w: label %s has probability %v", m.Name, ErrOutput, labels[i].Name, v)
		}
		plain[i], calibrated[i] = float64(v), p.Calibration.apply(float64(v))
	}
	raw, probability := probabilities(m.Output.Activation, plain), probabilities(m.Output.Activation, calibrated)
	predictions := make([]vigie.Prediction, len(labels))
	for i, label := range labels {
		predictions[i] = vigie.Prediction{
			Label: label.Name, Code: label.Code,
			Probability: probability[i], Raw: raw[i],
			Threshold: label.Threshold, Positive: probability[i] >= label.Threshold,
		}
	}
	return predictions, nil
}

func comma(v float64) string { return strings.Replace(fmt.Sprintf("%.2f", v), ".", ",", 1) }
