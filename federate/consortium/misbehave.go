package consortium

import (
	"context"
	"fmt"
	"strconv"

	"github.com/vigie/vigie/federate"
)

// Tampering is what a site does that plays a malicious one, given the job.
type Tampering func(Job) func(ctx context.Context, d *federate.Draft) error

// Misbehave is what a malicious site can do by itself, for demonstrations and
// tests: "sign-flip", "free-rider" or "boost"; strength is a number, empty for 1.
// What sites can do together federate/simulate knows.
func Misbehave(attack, strength string) (Tampering, error) {
	by := 1.0
	if strength != "" {
		var err error
		if by, err = strconv.ParseFloat(strength, 64); err != nil || !(by > 0) {
			return nil, fmt.Errorf("consortium: misbehaving: %q is no strength above 0", strength)
		}
	}
	var factor float64
	switch attack {
	case "sign-flip":
		factor = -by
	case "free-rider":
		factor = 0
	case "boost":
		factor = by
	default:
		return nil, fmt.Errorf("consortium: misbehaving: %q: want sign-flip, free-rider or boost", attack)
	}
	return func(j Job) func(context.Context, *federate.Draft) error {
		return func(_ context.Context, d *federate.Draft) error {
			for i, v := range d.Update {
				d.Update[i] = float32(max(-j.Terms.Bound, min(j.Terms.Bound, factor*float64(v))))
			}
			return nil
		}
	}, nil
}
