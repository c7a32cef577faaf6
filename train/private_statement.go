package train

import (
	"fmt"
	"io"
	"strings"

	"github.com/vigie/vigie/dp"
)

// Statement is the privacy promise of a run, with all that it rests on.
type Statement struct {
	Epsilon     float64  `json:"epsilon"`     // spent, by the privacy loss distribution; of the whole ledger
	EpsilonRDP  float64  `json:"epsilon_rdp"` // the same by the older Rényi bound
	Delta       float64  `json:"delta"`
	Budget      float64  `json:"budget"` // the epsilon that was asked for
	Relation    string   `json:"relation"`
	Unit        string   `json:"unit"`
	Sampling    string   `json:"sampling"`
	Rate        float64  `json:"sampling_rate"`
	Sigma       float64  `json:"noise_multiplier"` // of a step: noise over sensitivity
	Steps       int      `json:"steps"`            // of this run that were charged
	Lost        int      `json:"lost_steps"`       // of those, run and lost with a killed process
	Clip        float64  `json:"clip"`             // at the end
	Clipping    string   `json:"clipping"`
	Composition []dp.Run `json:"ledger"`
	Notes       []string `json:"notes"`
}

// statement is what the run can promise; nil without privacy.
func (t *trainer) statement() (*Statement, error) {
	p := t.private
	if p == nil {
		return nil, nil
	}
	s := &Statement{
		Delta: p.spec.Delta, Budget: p.spec.Epsilon,
		Relation: "add or remove one record", Unit: "one image of the training set",
		Sampling: "Poisson: every image is in a step's batch on its own, whatever others do",
		Rate:     p.rate, Sigma: p.state.Sigma, Steps: p.ledger.Steps() - p.state.Before,
		Lost: p.state.Lost, Clip: p.state.Clip.Norm, Clipping: p.spec.Clipping,
		Composition: p.ledger.Runs(),
	}
	var err error
	if s.Epsilon, err = p.ledger.Epsilon(dp.PLD{}, s.Delta); err != nil {
		return nil, fmt.Errorf("train: accounting: %w", err)
	}
	if s.EpsilonRDP, err = p.ledger.Epsilon(dp.RDP{}, s.Delta); err != nil {
		return nil, fmt.Errorf("train: accounting: %w", err)
	}
	s.Notes = []string{
		"Covered: the model, and the weights and validation figures of every epoch, as far as the training images are concerned. Epoch, temperature and operating point were chosen on the validation images, which no noise protects: do not publish those choices if the validation images are private too.",
		"Not covered: how many training images there are (it sets the sampling rate), how long a step takes, and whatever else is computed from the same images. A patient with k images has up to k times the epsilon of one image.",
		"Each further run on the same images adds to the ledger, and so does trying settings out: hyper-parameters chosen by looking at several private runs cost the sum of those runs, not the best one's epsilon. Choose them on public data of the same kind, or charge all runs to one ledger.",
		"Batches come from crypto/rand, the noise from AES-256 in counter mode under fresh seeds of crypto/rand, rounded to a grid against the floating-point attack (Mironov 2012): a mitigation, not a proof.",
	}
	if t.config.bits != nil {
		s.Notes = append(s.Notes, "NOT PRIVATE: noise and batches came from a given sequence, as in tests.")
	}
	return s, nil
}

// Print writes the statement for people.
func (s *Statement) Print(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, `privacy: (ε = %.3f, δ = %g)-differential privacy for %s, of a budget of ε = %g
  neighbours         %s
  sampling           %s; rate %.5g
  mechanism          clip %s to %.4g, Gaussian noise of %.4g times that, %d steps
  accountant         privacy loss distribution, an upper bound (Rényi bound: ε = %.3f)
`, s.Epsilon, s.Delta, s.Unit, s.Budget, s.Relation, s.Sampling, s.Rate, s.Clipping, s.Clip, s.Sigma, s.Steps, s.EpsilonRDP)
	if s.Lost > 0 {
		fmt.Fprintf(&b, "  lost               %d of the steps went down with a killed process; they are charged, and the run ended that much earlier\n", s.Lost)
	}
	if len(s.Composition) > 1 {
		fmt.Fprintf(&b, "  ledger             the epsilon is of %d runs or parts of runs together\n", len(s.Composition))
	}
	for _, note := range s.Notes {
		fmt.Fprintf(&b, "  %s\n", note)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
