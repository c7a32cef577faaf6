package dimse

import (
	"slices"

	"github.com/vigie/vigie/medical/dicom"
)

// preferred orders the transfer syntaxes that a server chooses among when a
// presentation context offers several: first those that are cheapest to read
// and that every build decodes. Anything else is taken when nothing of these
// is offered.
var preferred = []string{
	dicom.ExplicitLittleEndian,
	dicom.ImplicitLittleEndian,
	dicom.DeflatedLittleEndian,
	dicom.ExplicitBigEndian,
	dicom.RLELossless,
	dicom.JPEGBaseline,
}

// chooseSyntax picks one of the offered transfer syntaxes; offered is not
// empty.
func chooseSyntax(offered []string) string {
	for _, uid := range preferred {
		if slices.Contains(offered, uid) {
			return uid
		}
	}
	return offered[0]
}

// negotiate answers the presentation contexts and roles of a request.
func negotiate(rq *associate, accepts func(sopClass string) bool) ([]presentation, map[byte]presentation, []role) {
	answers := make([]presentation, 0, len(rq.contexts))
	accepted := make(map[byte]presentation, len(rq.contexts))
	for _, p := range rq.contexts {
		answer := presentation{id: p.id, transfer: []string{p.transfer[0]}}
		switch {
		case !accepts(p.abstract):
			answer.result = contextAbstractSyntaxUnsupported
		case p.abstract == VerificationSOPClass && !slices.Contains(p.transfer, dicom.ImplicitLittleEndian) && !slices.Contains(p.transfer, dicom.ExplicitLittleEndian):
			answer.result = contextTransferSyntaxUnsupported
		default:
			answer.transfer[0] = chooseSyntax(p.transfer)
			accepted[p.id] = presentation{id: p.id, abstract: p.abstract, transfer: answer.transfer}
		}
		answers = append(answers, answer)
	}
	// We are only ever the SCP: the requestor may keep the SCU role it
	// proposes and never becomes SCP (PS3.7 D.3.3.4.2).
	var roles []role
	for _, r := range rq.user.roles {
		if accepts(r.class) {
			roles = append(roles, role{class: r.class, scu: r.scu})
		}
	}
	return answers, accepted, roles
}
