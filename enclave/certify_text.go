package enclave

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/model"
)

// The sentences a clinician reads about a certificate. They say what is proven
// and not more; docs/certificates.md has the conditions.

func textNotAsked(band *model.Borderline) vigie.Text {
	return vigie.Text{
		English: fmt.Sprintf("No certificate was asked for: the probability is not between %.2f and %.2f.", band.From, band.To),
		French:  fmt.Sprintf("Aucun certificat n’a été demandé : la probabilité n’est pas entre %s et %s.", comma(band.From, 2), comma(band.To, 2))}
}

func comma(v float64, digits int) string {
	return strings.Replace(strconv.FormatFloat(v, 'f', digits, 64), ".", ",", 1)
}

// textPatch says what covering places of the image found.
func textPatch(p *vigie.PatchCertificate, about *model.Manifest) vigie.Text {
	english, french := fmt.Sprintf("%d by %d pixels", p.ImageSide, p.ImageSide), fmt.Sprintf("%d sur %d pixels", p.ImageSide, p.ImageSide)
	if p.ImageSide < 1 {
		english, french = fmt.Sprintf("%d by %d pixels of the model's input", p.Side, p.Side), fmt.Sprintf("%d sur %d pixels de l’entrée du modèle", p.Side, p.Side)
	}
	switch p.Verdict {
	case vigie.CertificateProven:
		return vigie.Text{
			English: fmt.Sprintf("The answer rests on no single place: whatever any one square of up to %s of the image shows, the answer with places covered stays the same.", english),
			French:  fmt.Sprintf("La réponse ne repose sur aucun endroit isolé : quoi que montre un carré de l’image d’au plus %s, la réponse obtenue en masquant des endroits reste la même.", french)}
	case vigie.CertificateAgreed:
		return vigie.Text{
			English: fmt.Sprintf("The answer stays the same when any one square of up to %s of the image is covered; that no such square could turn it is not proven.", english),
			French:  fmt.Sprintf("La réponse reste la même quand on masque un carré quelconque de l’image d’au plus %s ; il n’est pas prouvé qu’aucun carré de cette taille ne puisse la renverser.", french)}
	}
	labels := func(name func(model.Label) string, none, quote string) string {
		var names []string
		for _, l := range about.Output.Labels {
			for _, have := range p.Recovered {
				if have == l.Name {
					names = append(names, fmt.Sprintf(quote, name(l)))
				}
			}
		}
		if len(names) == 0 {
			return none
		}
		return strings.Join(names, ", ")
	}
	return vigie.Text{
		English: fmt.Sprintf("The answer changes when a single place is covered (%d of %d): it may rest on a mark or a manipulation there. With such places left out it would be: %s.",
			p.Masks-p.Agree, p.Masks, labels(func(l model.Label) string { return l.Code.Meaning }, "no finding", "%s")),
		French: fmt.Sprintf("La réponse change quand on masque un seul endroit (%d sur %d) : elle repose peut-être sur une marque ou une manipulation à cet endroit. Sans de tels endroits, elle serait : %s.",
			p.Masks-p.Agree, p.Masks, labels(func(l model.Label) string { return l.Code.French }, "aucun résultat positif", "« %s »"))}
}

// textSmoothing says what noise over the image found.
func textSmoothing(s *vigie.SmoothingCertificate) vigie.Text {
	if s.Verdict == vigie.CertificateProven {
		return vigie.Text{
			English: fmt.Sprintf("No change of the whole image up to a Euclidean length of %.3f turns the answer that most noisy copies get, but for a chance of %g.", s.Radius, s.Alpha),
			French:  fmt.Sprintf("Aucune modification de l’ensemble de l’image d’une longueur euclidienne d’au plus %s ne renverse la réponse de la plupart des copies bruitées, sauf avec une probabilité de %s.", comma(s.Radius, 3), comma(s.Alpha, -1))}
	}
	return vigie.Text{
		English: "Noisy copies of the image do not get this answer for the most part, or not clearly: a small change of the image could turn it.",
		French:  "Les copies bruitées de l’image n’obtiennent pas cette réponse pour la plupart, ou pas nettement : une petite modification de l’image pourrait la renverser."}
}

// textUncertified names the kind of failure only: an engine's message may quote
// what it was given.
func textUncertified(err error) (text vigie.Text, detail string) {
	switch {
	case errors.Is(err, errStretched):
		return vigie.Text{
			English: "The answer could not be certified: this image's brightness is scaled by its own darkest and brightest pixels, so that no place can be looked at by itself.",
			French:  "La réponse n’a pas pu être certifiée : la luminosité de cette image est réglée sur ses propres pixels extrêmes, si bien qu’aucun endroit ne peut être considéré isolément."}, "no window"
	case errors.Is(err, errCertifyBudget), errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		detail = "out of time"
	default:
		detail = "failed"
	}
	return vigie.Text{
		English: "The certificate of the answer could not be completed, so nobody vouches for it.",
		French:  "Le certificat de la réponse n’a pas pu être établi ; rien ne garantit donc celle-ci."}, detail
}
