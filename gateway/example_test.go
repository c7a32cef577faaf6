package gateway_test

import (
	"fmt"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/gateway"
)

// Triage releases what nobody doubts, and sends everything else to a person
// with the reason.
func ExampleTriage() {
	finding := &vigie.Finding{Predictions: []vigie.Prediction{
		{Label: "pneumonia", Probability: 0.52, Threshold: 0.5, Positive: true},
	}}
	verdict := gateway.Triage(finding, nil, gateway.Policy{Margin: 0.05})
	fmt.Println(verdict.Decision)
	for _, r := range verdict.Reasons {
		fmt.Println(r.Code, "-", r.Text.English)
	}
	// Output:
	// review
	// borderline - The probability is too close to the operating point.
}
