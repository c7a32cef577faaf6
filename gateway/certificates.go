package gateway

import (
	"fmt"
	"slices"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom/report"
)

// certificateReasons send a case to a person whose certificate says that one
// must look, also where the enclave forgot to say so.
func certificateReasons(f *vigie.Finding) []vigie.Reason {
	c := f.Certificate
	if c == nil || !c.Verdict.Sends() || slices.ContainsFunc(f.Referrals, func(r vigie.Reason) bool { return r.Code == vigie.ReasonCertificate }) {
		return nil
	}
	return []vigie.Reason{{Code: vigie.ReasonCertificate, Text: c.Text, Detail: string(c.Verdict)}}
}

// certificateDecision says for the audit log what was proven of an answer: how
// far, and not by which counts, which are in the signed finding.
func certificateDecision(f *vigie.Finding) string {
	if f == nil || f.Certificate == nil {
		return ""
	}
	c := f.Certificate
	text := "certificate " + string(c.Verdict)
	if p := c.Patch; p != nil {
		text += fmt.Sprintf(" patch %s %d %s", p.Verdict, p.Side, p.Of)
	}
	if s := c.Smoothing; s != nil {
		text += fmt.Sprintf(" smoothing %s radius %.3f alpha %.3g", s.Verdict, s.Radius, s.Alpha)
	}
	return text
}

// certificateRemarks is what the structured report says of a certificate. One
// that was not asked for says nothing there.
func certificateRemarks(f *vigie.Finding) []report.Text {
	c := f.Certificate
	if c == nil || c.Verdict == vigie.CertificateNone {
		return nil
	}
	return []report.Text{{English: "Certificate: " + c.Text.English, French: "Certificat : " + c.Text.French}}
}

// certificateLines describe a certificate for a person at a terminal.
func certificateLines(f *vigie.Finding) (lines []string) {
	c := f.Certificate
	if c == nil {
		return nil
	}
	lines = append(lines, string(c.Verdict))
	for _, text := range []string{c.Text.English, c.Text.French} {
		if text != "" {
			lines = append(lines, text)
		}
	}
	if p := c.Patch; p != nil {
		line := fmt.Sprintf("squares of %d pixels of the %s (up to %d of this image): %s, %d of %d masks of %d by %d (%s) agree", p.Side, p.Of, p.ImageSide, p.Verdict, p.Agree, p.Masks, p.MaskRows, p.MaskColumns, p.Fill)
		if p.Pairs > 0 {
			line += fmt.Sprintf(", %d of %d pairs", p.PairsAgree, p.Pairs)
		}
		lines = append(lines, line)
	}
	if s := c.Smoothing; s != nil {
		lines = append(lines, fmt.Sprintf("noise of %v: %s, %d of %d copies agree, L2 radius %.3f, alpha %v", s.Sigma, s.Verdict, s.Agree, s.Samples, s.Radius, s.Alpha))
	}
	return lines
}
