package simulate

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/train"
)

// ParsePrivacy reads "epsilon=8" or "epsilon=8,delta=1e-5,unit=patient,clip=3,…" into
// terms. What is left out stays zero, and gets its default when the sites are known.
func ParsePrivacy(text string) (*federate.DP, error) {
	if text == "" {
		return nil, nil
	}
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("simulate: privacy %q: %w: %s", text, ErrOptions, fmt.Sprintf(format, arguments...))
	}
	d := &federate.DP{Unit: federate.Patient, Colluding: federate.Open}
	seen := map[string]bool{}
	for _, field := range strings.Split(text, ",") {
		name, value, found := strings.Cut(strings.TrimSpace(field), "=")
		if !found || value == "" || seen[name] {
			return nil, fail("%q is not NAME=VALUE, or there twice", field)
		}
		seen[name] = true
		var number *float64
		var count *int
		switch name {
		case "unit":
			d.Unit = federate.Unit(value)
		case "epsilon":
			number = &d.Epsilon
		case "delta":
			number = &d.Delta
		case "clip":
			number = &d.Clip
		case "rate":
			number = &d.Rate
		case "honest":
			count = &d.Honest
		case "colluding":
			count = &d.Colluding
		case "attempts":
			count = &d.Attempts
		case "views":
			count = &d.Views
		default:
			return nil, fail("%q is unknown: want epsilon, delta, unit, clip, rate, honest, colluding, attempts or views", name)
		}
		var err error
		if number != nil {
			if *number, err = strconv.ParseFloat(value, 64); err == nil && !(*number > 0 && !math.IsInf(*number, 0)) {
				err = strconv.ErrRange
			}
		}
		if count != nil {
			if *count, err = strconv.Atoi(value); err == nil && (*count < 0 || *count == 0 && name != "colluding") {
				err = strconv.ErrRange
			}
		}
		if err != nil {
			return nil, fail("%s: %v", field, err)
		}
	}
	if d.Epsilon == 0 {
		return nil, fail("it names no epsilon")
	}
	if d.Unit != federate.Patient && d.Unit != federate.Hospital {
		return nil, fail("the unit is patient or hospital")
	}
	return d, nil
}

// Defaults of privacy: see federate.Terms.Complete.
const (
	DefaultClip = federate.DefaultClip
	DefaultRate = federate.DefaultRate
)

// PrivateTerms changes default terms into those that patients or hospitals are
// protected under.
func PrivateTerms(t federate.Terms, unit federate.Unit) federate.Terms {
	if unit == federate.Hospital {
		return t
	}
	t.Algorithm, t.Rounds = federate.FedSGD, 900
	t.Rate, t.FinalRate, t.Momentum, t.Decay = 3e-3, 3e-5, 0, 0
	t.Beta1, t.Beta2, t.Tau, t.Average = 0.9, 0.999, 1e-8, 0.985
	t.Augmentation = train.PrivateRecipe.Augmentation
	return t
}

// Private fills in what the privacy of the options' terms leaves open, for their
// sites and the people of Train, and plans the noise for a model of so many variables.
func (o *Options) Private(variables int) error {
	if o.Terms.DP == nil {
		return nil
	}
	units := o.Sites
	if o.Terms.DP.Unit == federate.Patient {
		people := map[string]bool{}
		for i := range o.Train.Len() {
			people[o.Train.Person(i)] = true
		}
		units = len(people)
	}
	t := o.Terms
	if t.DP.Attempts == 0 && o.Dropout > 0 {
		d := *t.DP
		d.Attempts = t.Rounds + (t.Rounds+9)/10
		t.DP = &d
	}
	var err error
	o.Terms, err = t.Complete(o.Sites, units, variables)
	return err
}

// over says whether too few sites have budget for another attempt.
func (c *cast) over(t federate.Terms) string {
	if t.DP == nil {
		return ""
	}
	able := 0
	for _, s := range c.sites {
		if s.Left() > 0 {
			able++
		}
	}
	if able >= t.DP.Honest+t.DP.Colluding {
		return ""
	}
	return fmt.Sprintf("%d of %d sites have budget left for another attempt", able, len(c.sites))
}

// state makes the run's statement.
func (c *cast) state(r *Report, t federate.Terms, variables int) error {
	if t.DP == nil {
		return nil
	}
	attempts := map[string]int{}
	for i, s := range c.sites {
		spent, err := s.Spent()
		if err != nil {
			return err
		}
		attempts[c.members[i].Name] = spent.Attempts
		r.Sites[i].Epsilon = &spent.Epsilon
	}
	statement, err := t.Statement(attempts, len(c.sites), variables)
	if err != nil {
		return err
	}
	r.Privacy, r.Epsilon, r.EpsilonUnit = statement, &statement.Epsilon, t.DP.Unit
	return nil
}
