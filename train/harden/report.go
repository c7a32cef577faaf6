package harden

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/train"
)

// Report is hardening.json: what was hardened against what, what it costs, and
// what the kept model withstands. Everything in it was measured on the validation
// split, on which the candidate was chosen, too: it is optimistic.
type Report struct {
	Model      string          `json:"model,omitempty"` // that was gone on from
	Data       string          `json:"data"`
	DataDigest string          `json:"data_digest"`
	Hardening  train.Hardening `json:"hardening"`
	Baseline   train.Interval  `json:"baseline_auc"` // of the network before
	Budget     float64         `json:"auc_budget"`
	Floor      float64         `json:"auc_floor"`
	// Commonest is the share of the commonest class: the accuracy of a model that
	// looks at nothing, which no attack lowers.
	Commonest  float64       `json:"commonest_class_share,omitempty"`
	Met        bool          `json:"auc_budget_met"`
	Kept       string        `json:"kept"`
	Attack     attack.Name   `json:"attack"` // of the candidates' curves
	Norm       attack.Norm   `json:"norm"`
	Bounds     []Bound       `json:"bounds"`
	Candidates []Candidate   `json:"candidates"`
	Verdict    *Verdict      `json:"verdict,omitempty"` // on the kept model
	Training   *train.Report `json:"training"`
	Seed       uint64        `json:"seed"`
	Command    string        `json:"command,omitempty"`
	Seconds    float64       `json:"seconds"`
	Notes      []string      `json:"notes,omitempty"`

	byCurve bool // candidates are compared by their curves
}

// Candidate is a model that could have been kept.
type Candidate struct {
	Name     string         `json:"name"`
	Share    float64        `json:"hardened_share"` // 0 the network before, 1 a hardened one
	AUC      train.Interval `json:"auc"`            // of clean images; 95 %, as those below
	Accuracy train.Interval `json:"accuracy"`
	Cost     train.Interval `json:"auc_cost"` // against the network before, paired
	// Withstood is the accuracy under all that the network was hardened against
	// together, by the training's own adversary.
	Withstood train.Interval `json:"withstood_accuracy"`
	Curve     []Point        `json:"curve,omitempty"`
}

// Point is the accuracy under attack at a bound.
type Point struct {
	Bound
	Images int            `json:"images"`
	Clean  train.Interval `json:"clean_accuracy"`
	Robust train.Interval `json:"robust_accuracy"`
}

// Verdict is what the strongest attack that was asked for says.
type Verdict struct {
	Attack attack.Name `json:"attack"`
	Curve  []Point     `json:"curve"`
}

// robust is what candidates are compared by: the accuracy at the largest bound of
// the curve if there is an adversary, otherwise what was withstood.
func (r *Report) robust(c Candidate) float64 {
	if len(c.Curve) > 0 && r.byCurve {
		return c.Curve[len(c.Curve)-1].Robust.Value
	}
	return c.Withstood.Value
}

// keep chooses among the hardened candidates: the one that withstands most of
// those that keep the floor; if none does, the one whose AUC is highest.
func (r *Report) keep() int {
	best := -1
	for i, c := range r.Candidates {
		if c.Share == 0 {
			continue
		}
		if best < 0 {
			best = i
			continue
		}
		b := r.Candidates[best]
		in, was := c.AUC.Value >= r.Floor, b.AUC.Value >= r.Floor
		switch {
		case in != was:
			if in {
				best = i
			}
		case in && r.robust(c) != r.robust(b):
			if r.robust(c) > r.robust(b) {
				best = i
			}
		case c.AUC.Value > b.AUC.Value:
			best = i
		}
	}
	r.Kept, r.Met = r.Candidates[best].Name, r.Candidates[best].AUC.Value >= r.Floor
	return best
}

// Write writes the report for people.
func (r *Report) Write(w io.Writer, out string) error {
	var b strings.Builder
	share := func(v train.Interval) string {
		return fmt.Sprintf("%5.1f %% (%4.1f to %5.1f)", 100*v.Value, 100*v.Low, 100*v.High)
	}
	fmt.Fprintf(&b, "hardened against %s\n", r.Hardening.String())
	fmt.Fprintf(&b, "AUC before %.4f (95 %% %.4f to %.4f), of which %g may be lost: at least %.4f\n", r.Baseline.Value, r.Baseline.Low, r.Baseline.High, r.Budget, r.Floor)
	fmt.Fprintf(&b, "\n  %-18s %-26s %-24s %-24s", "candidate", "clean AUC (95 %)", "clean accuracy", "withstood in training")
	for _, bound := range r.Bounds {
		fmt.Fprintf(&b, " %-24s", fmt.Sprintf("%s %s", r.Attack, bound.Text))
	}
	b.WriteString("\n")
	for _, c := range r.Candidates {
		mark := " "
		if c.Name == r.Kept {
			mark = "*"
		}
		fmt.Fprintf(&b, "%s %-18s %.4f (%.4f to %.4f)  %-24s %-24s", mark, c.Name, c.AUC.Value, c.AUC.Low, c.AUC.High, share(c.Accuracy), share(c.Withstood))
		for _, p := range c.Curve {
			fmt.Fprintf(&b, " %-24s", share(p.Robust))
		}
		b.WriteString("\n")
	}
	b.WriteString("\n")
	cost := r.cost()
	if r.Met {
		fmt.Fprintf(&b, "kept: %s; what it costs in AUC is %.4f (paired, 95 %% %.4f to %.4f)\n", r.Kept, cost.Value, cost.Low, cost.High)
	} else {
		fmt.Fprintf(&b, "THE BUDGET IS NOT MET: no hardened candidate keeps an AUC of %.4f. Kept is the nearest, %s, %.4f less (paired, 95 %% %.4f to %.4f): allow more, or harden against less\n", r.Floor, r.Kept, cost.Value, cost.Low, cost.High)
	}
	if r.Verdict != nil {
		for _, p := range r.Verdict.Curve {
			fmt.Fprintf(&b, "%s at %s %s: robust accuracy %s of %d images, clean %s\n", r.Verdict.Attack, r.Norm, p.Text, share(p.Robust), p.Images, share(p.Clean))
		}
	}
	if r.Commonest > 0 {
		fmt.Fprintf(&b, "a model that always answers the commonest class is right on %.1f %%, attacked or not\n", 100*r.Commonest)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "%s\n", note)
	}
	fmt.Fprintf(&b, "all of it on the validation split, on which it was chosen\nwritten to %s\n", out)
	_, err := io.WriteString(w, b.String())
	return err
}

// cost is that of the kept candidate.
func (r *Report) cost() train.Interval {
	for _, c := range r.Candidates {
		if c.Name == r.Kept {
			return c.Cost
		}
	}
	return train.Interval{}
}

// tradeOff is the picture of the candidates.
func (r *Report) tradeOff() train.TradeOff {
	t := train.TradeOff{Floor: r.Floor}
	for _, b := range r.Bounds {
		t.Bounds = append(t.Bounds, fmt.Sprintf("%s, %s", r.Attack, b.Text))
	}
	t.Bounds = append(t.Bounds, "withstood in training")
	for _, c := range r.Candidates {
		p := train.TradePoint{Name: c.Name, Kept: c.Name == r.Kept, AUC: c.AUC}
		for _, at := range c.Curve {
			p.Robust = append(p.Robust, at.Robust)
		}
		t.Points = append(t.Points, train.TradePoint{Name: p.Name, Kept: p.Kept, AUC: p.AUC, Robust: append(p.Robust, c.Withstood)})
	}
	return t
}

// write leaves the files of the report.
func (o Options) write(f *train.Fit, r *Report) error {
	picture := r.tradeOff()
	files := map[string][]byte{TradeOffSVG: picture.SVG()}
	var err error
	if files[TradeOffPNG], err = picture.PNG(); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("harden: writing the report: %w", err)
	}
	files[ReportFile] = append(data, '\n')
	for _, name := range slices.Sorted(maps.Keys(files)) {
		err := train.WriteWhole(f.File(name), func(w io.Writer) error {
			_, err := w.Write(files[name])
			return err
		})
		if err != nil {
			return fmt.Errorf("harden: writing the report: %w", err)
		}
	}
	return nil
}
