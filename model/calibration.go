package model

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
)

// ErrCalibration is returned for a calibration.json that does not parse or
// makes no sense.
var ErrCalibration = errors.New("the calibration is not valid")

// The calibration methods.
const (
	Temperature  = "temperature" // logits are divided by one number (Guo et al. 2017)
	Uncalibrated = "none"
)

// Calibration is calibration.json: what makes a probability of 0.8 come true
// eight times in ten, as far as the data it was fitted on goes.
type Calibration struct {
	Method      string  `json:"method"`
	Temperature float64 `json:"temperature,omitempty"` // 0.01 to 100
	FittedOn    string  `json:"fitted_on,omitempty"`   // which data, for people
	Examples    int     `json:"examples,omitempty"`
	ErrorBefore float64 `json:"error_before,omitempty"` // expected calibration error, 0..1
	ErrorAfter  float64 `json:"error_after,omitempty"`
}

// ParseCalibration reads calibration.json strictly.
func ParseCalibration(data []byte) (Calibration, error) {
	var c Calibration
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&c); err != nil {
		return c, fmt.Errorf("model: reading %s: %w: %w", CalibrationFile, ErrCalibration, err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return c, fmt.Errorf("model: reading %s: %w: something follows the object", CalibrationFile, ErrCalibration)
	}
	switch c.Method {
	case Temperature:
		if !(c.Temperature >= 0.01 && c.Temperature <= 100) {
			return c, fmt.Errorf("model: reading %s: %w: temperature %v, want 0.01 to 100", CalibrationFile, ErrCalibration, c.Temperature)
		}
	case Uncalibrated:
		if c.Temperature != 0 && c.Temperature != 1 {
			return c, fmt.Errorf("model: reading %s: %w: method none with temperature %v", CalibrationFile, ErrCalibration, c.Temperature)
		}
	default:
		return c, fmt.Errorf("model: reading %s: %w: method %q, want %s or %s", CalibrationFile, ErrCalibration, c.Method, Temperature, Uncalibrated)
	}
	return c, nil
}

// apply returns the calibrated logit.
func (c Calibration) apply(logit float64) float64 {
	if c.Method == Temperature {
		return logit / c.Temperature
	}
	return logit
}

// probabilities applies an activation to logits (or passes probabilities on).
func probabilities(activation string, logits []float64) []float64 {
	out := make([]float64, len(logits))
	switch activation {
	case Softmax:
		highest := math.Inf(-1)
		for _, v := range logits {
			highest = max(highest, v)
		}
		sum := 0.0
		for i, v := range logits {
			out[i] = math.Exp(v - highest)
			sum += out[i]
		}
		for i := range out {
			out[i] /= sum
		}
	case Sigmoid:
		for i, v := range logits {
			if v >= 0 {
				out[i] = 1 / (1 + math.Exp(-v))
			} else { // the same, without overflow
				e := math.Exp(v)
				out[i] = e / (1 + e)
			}
		}
	default:
		copy(out, logits)
	}
	return out
}
