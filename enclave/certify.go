package enclave

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard/certificate"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
)

// certifying is what the pipeline needs of package certificate; tests put others
// here.
type certifying interface {
	Squares(ctx context.Context, input engine.Tensor, answer certificate.Answer, patch certificate.Size, region certificate.Region) (*certificate.Squares, error)
	Smooth(ctx context.Context, input engine.Tensor, seed certificate.Seed) (*certificate.Smoothed, error)
	Close() error
}

// prover certifies answers as the package's manifest asks for. It runs the
// package's own graph in this process, also where a model server computes the
// answer.
type prover struct {
	about   *model.Manifest
	options certificate.Options
	proofs  certifying
	budget  time.Duration
	seed    func() certificate.Seed
}

// newProver opens a model to be certified; nil: the manifest wants none. It says
// where the budget does not suffice on this machine.
func newProver(pkg *model.Package, options Options) (*prover, error) {
	wanted := pkg.Manifest.Certificate
	if !wanted.Wanted() {
		return nil, nil
	}
	about, err := pkg.Certified()
	if err != nil {
		return nil, err
	}
	p := &prover{about: pkg.Manifest, options: wanted.CertificateOptions(options.Threads), budget: options.CertifyBudget, seed: certificate.FreshSeed}
	opened, err := certificate.Open(about, p.options)
	if err != nil {
		return nil, err
	}
	p.proofs = opened
	p.warmUp(pkg, opened, options.Logger)
	return p, nil
}

// warmUp certifies a drawn texture, all rounds of it as far as its answer
// allows, to see how long that takes. A model may fail on what is no radiograph:
// that is no reason not to start.
func (p *prover) warmUp(pkg *model.Package, asker *certificate.Certifier, logger *slog.Logger) {
	textures, err := drawTextures(p.about)
	if err != nil {
		return
	}
	image := &dicom.Luminance{Rows: p.about.Input.Rows, Columns: p.about.Input.Columns}
	answer, err := asker.Answer(context.Background(), textures[0])
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), p.budget)
	defer cancel()
	if _, _, err := p.prove(ctx, textures[0], image, answer); err != nil && ctx.Err() != nil {
		logger.Warn("the certificate of a case does not fit into the time allowed for it: cases will go to a person; allow more, or let the manifest ask for less (masks, rounds, samples)",
			"model", pkg.Manifest.Name, "certificate", p.about.Certificate.String(), "budget", p.budget)
	}
}

func (p *prover) close() error {
	if p == nil {
		return nil
	}
	return p.proofs.Close()
}

// errUncertified says why a certificate cannot be made of an image.
var (
	errStretched     = errors.New("the image has no window")
	errCertifyBudget = errors.New("out of time")
)

// certify adds to a finding what is proven of its answer, and where a person
// must look, the reason. Whatever goes wrong is one.
func (p *prover) certify(ctx context.Context, input engine.Tensor, image *dicom.Luminance, predictions []vigie.Prediction, finding *vigie.Finding) {
	wanted := p.about.Certificate
	if !wanted.Asks(p.about.Output.Target, predictions) {
		finding.Certificate = &vigie.Certificate{Verdict: vigie.CertificateNone, Text: textNotAsked(wanted.Borderline)}
		return
	}
	c := &vigie.Certificate{Verdict: vigie.CertificateProven}
	finding.Certificate = c
	squares, smoothed, err := p.within(ctx, input, image, model.AnswerOf(predictions))
	var english, french []string
	weigh := func(verdict vigie.CertificateVerdict, text vigie.Text, detail string) {
		if place(verdict) > place(c.Verdict) {
			c.Verdict = verdict
		}
		english, french = append(english, text.English), append(french, text.French)
		if verdict.Sends() || detail != "" {
			finding.Referrals = append(finding.Referrals, vigie.Reason{Code: vigie.ReasonCertificate, Detail: detail, Text: text})
		}
	}
	if squares != nil {
		c.Patch = p.patch(squares, image)
		text, detail := textPatch(c.Patch, p.about), ""
		switch {
		case c.Patch.Verdict == vigie.CertificateDisagreed:
			detail = fmt.Sprintf("patch: %d of %d masks", c.Patch.Agree, c.Patch.Masks)
		case c.Patch.Verdict == vigie.CertificateAgreed && wanted.Patch.Uncertified == model.Review:
			detail = "patch: not every pair of masks agrees"
		}
		weigh(c.Patch.Verdict, text, detail)
	}
	if smoothed != nil {
		c.Smoothing = p.smoothing(smoothed, model.AnswerOf(predictions))
		detail := ""
		if c.Smoothing.Verdict == vigie.CertificateDisagreed {
			detail = fmt.Sprintf("smoothing: %d of %d copies", smoothed.Agree, smoothed.Samples)
		}
		weigh(c.Smoothing.Verdict, textSmoothing(c.Smoothing), detail)
	}
	if err != nil {
		text, detail := textUncertified(err)
		weigh(vigie.CertificateFailed, text, detail)
	}
	c.Text = vigie.Text{English: strings.Join(english, " "), French: strings.Join(french, " ")}
}

// place is where a verdict stands among all, the best first.
func place(verdict vigie.CertificateVerdict) int {
	for i, v := range vigie.CertificateVerdicts {
		if v == verdict {
			return i
		}
	}
	return len(vigie.CertificateVerdicts)
}

// within proves within the budget, at most half of what is left of the case, and
// outside this goroutine: one that does not return costs one case, and its
// answer is still read by a person. What was proven before an error is kept.
func (p *prover) within(ctx context.Context, input engine.Tensor, image *dicom.Luminance, answer certificate.Answer) (*certificate.Squares, *certificate.Smoothed, error) {
	type outcome struct {
		squares  *certificate.Squares
		smoothed *certificate.Smoothed
		err      error
	}
	budget := p.budget
	if deadline, ok := ctx.Deadline(); ok { // the answer itself must not be lost over its certificate
		budget = min(budget, time.Until(deadline)/2)
	}
	limited, cancel := context.WithTimeout(ctx, budget)
	done := make(chan outcome, 1)
	go func() {
		defer cancel()
		var o outcome
		defer func() {
			if cause := recover(); cause != nil { // the value may quote the input
				o = outcome{err: fmt.Errorf("contained panic (%T)", cause)}
			}
			done <- o
		}()
		o.squares, o.smoothed, o.err = p.prove(limited, input, image, answer)
	}()
	var o outcome
	select {
	case o = <-done:
	case <-limited.Done():
		select {
		case o = <-done: // it ended at this very moment, or its end ended limited
		default:
			o.err = errCertifyBudget
		}
	}
	return o.squares, o.smoothed, o.err
}

// prove makes the proofs one after the other.
func (p *prover) prove(ctx context.Context, input engine.Tensor, image *dicom.Luminance, answer certificate.Answer) (squares *certificate.Squares, smoothed *certificate.Smoothed, err error) {
	if p.options.Patch != nil {
		if image.Stretched {
			return nil, nil, errStretched
		}
		region, touched, _, err := p.about.Squares(*p.about.Certificate.Patch, image.Rows, image.Columns)
		if err != nil {
			return nil, nil, err
		}
		if squares, err = p.proofs.Squares(ctx, input, answer, touched, region); err != nil {
			return nil, nil, err
		}
	}
	if p.options.Smoothing != nil {
		if smoothed, err = p.proofs.Smooth(ctx, input, p.seed()); err != nil {
			return squares, nil, err
		}
	}
	return squares, smoothed, nil
}

// patch writes down what covering an image place by place found.
func (p *prover) patch(s *certificate.Squares, image *dicom.Luminance) *vigie.PatchCertificate {
	asked := *p.about.Certificate.Patch
	_, _, largest, _ := p.about.Squares(asked, image.Rows, image.Columns) // was possible before
	out := &vigie.PatchCertificate{
		Verdict: vigie.CertificateDisagreed, Side: asked.Size, Of: asked.Of, ImageSide: largest,
		Rows: s.Cover.Patch.Rows, Columns: s.Cover.Patch.Columns, MaskRows: s.Cover.Mask.Rows, MaskColumns: s.Cover.Mask.Columns,
		Fill: p.options.Patch.Fill, Masks: len(s.Covered), Agree: s.Agree, Pairs: s.Pairs, PairsAgree: s.PairsAgree,
	}
	if out.Of == "" {
		out.Of = model.OfInput
	}
	switch {
	case s.Certified:
		out.Verdict = vigie.CertificateProven
	case s.Agreed():
		out.Verdict = vigie.CertificateAgreed
	default:
		for i, label := range p.about.Output.Labels {
			if i < len(s.Recovered) && s.Recovered[i] == '1' {
				out.Recovered = append(out.Recovered, label.Name)
			}
		}
	}
	return out
}

// smoothing writes down what noise found.
func (p *prover) smoothing(s *certificate.Smoothed, answer certificate.Answer) *vigie.SmoothingCertificate {
	o := p.options.Smoothing
	out := &vigie.SmoothingCertificate{Verdict: vigie.CertificateDisagreed, Sigma: o.Sigma, Samples: s.Samples, Agree: s.Agree, Alpha: o.Alpha}
	if s.Answer != answer {
		out.Agree = 0 // those that agree with another answer are not this one's
	} else if !s.Abstain {
		out.Verdict, out.Radius = vigie.CertificateProven, s.Radius
	}
	return out
}

// checkCertificate refuses a certificate that says more than it counted, and one
// that a person must look at without a reason to.
func checkCertificate(finding vigie.Finding) error {
	c := finding.Certificate
	if c == nil {
		return nil
	}
	worst := 0
	if p := c.Patch; p != nil {
		worst = max(worst, place(p.Verdict))
		pairs := p.Masks * (p.Masks - 1) / 2
		switch agrees := p.Agree == p.Masks && p.Masks >= 2; {
		case p.Side < 1 || p.Agree < 0 || p.Agree > p.Masks || p.PairsAgree < 0 || p.PairsAgree > p.Pairs || p.Pairs > pairs,
			p.Verdict == vigie.CertificateProven && !(agrees && p.Pairs == pairs && p.PairsAgree == pairs),
			p.Verdict == vigie.CertificateAgreed && !agrees,
			p.Verdict == vigie.CertificateDisagreed && agrees,
			p.Verdict != vigie.CertificateProven && p.Verdict != vigie.CertificateAgreed && p.Verdict != vigie.CertificateDisagreed:
			return fmt.Errorf("the certificate of squares is %q with %d of %d masks and %d of %d pairs", p.Verdict, p.Agree, p.Masks, p.PairsAgree, p.Pairs)
		}
	}
	if s := c.Smoothing; s != nil {
		worst = max(worst, place(s.Verdict))
		if !(s.Sigma > 0 && s.Alpha > 0 && s.Alpha < 1 && s.Radius >= 0 && s.Radius <= s.Sigma*10) || s.Agree < 0 || s.Agree > s.Samples ||
			s.Verdict == vigie.CertificateProven != (s.Radius > 0) || s.Radius > 0 && 2*s.Agree <= s.Samples ||
			s.Verdict != vigie.CertificateProven && s.Verdict != vigie.CertificateDisagreed {
			return fmt.Errorf("the certificate of smoothing is %q, with %d of %d copies and a radius of %v", s.Verdict, s.Agree, s.Samples, s.Radius)
		}
	}
	switch {
	case place(c.Verdict) == len(vigie.CertificateVerdicts):
		return fmt.Errorf("the certificate's verdict %q is not known", c.Verdict)
	case c.Text.English == "" || c.Text.French == "":
		return errors.New("the certificate says nothing in one of the languages")
	case place(c.Verdict) < worst, (c.Verdict == vigie.CertificateProven || c.Verdict == vigie.CertificateAgreed) && c.Patch == nil && c.Smoothing == nil:
		return fmt.Errorf("the certificate is %q, and its parts are not", c.Verdict)
	}
	if c.Verdict.Sends() {
		for _, r := range finding.Referrals {
			if r.Code == vigie.ReasonCertificate {
				return nil
			}
		}
		return fmt.Errorf("the certificate is %q, and nobody is asked to look", c.Verdict)
	}
	return nil
}
