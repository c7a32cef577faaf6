package federate

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
)

// WriteScores writes the evidence after each round as CSV with a header, a line
// for each round, site and charge, for people and programs that judge it
// themselves.
func WriteScores(w io.Writer, outcomes []Outcome) error {
	out := csv.NewWriter(w)
	out.Write([]string{"round", "attempt", "site", "charge", "value", "bar", "log_evidence", "threshold", "named", "named_after"})
	number := func(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }
	for _, o := range outcomes {
		for _, s := range o.Scores {
			for _, e := range s.Charges {
				since := ""
				if s.Named != "" {
					since = strconv.Itoa(s.Since)
				}
				out.Write([]string{strconv.Itoa(o.Index + 1), strconv.FormatUint(o.Number, 10), s.Site, string(e.Charge), number(e.Value), number(e.Bar), number(e.Log), number(e.Threshold), string(s.Named), since})
			}
		}
	}
	out.Flush()
	return out.Error()
}

// WriteScoreTable writes the evidence for a person: the logarithm of it for each
// site and charge, with what is estimated of the site in brackets.
func WriteScoreTable(w io.Writer, scores []Score) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "site\trounds")
	for _, charge := range Charges() {
		fmt.Fprintf(t, "\t%s", charge)
	}
	fmt.Fprintln(t, "\tnamed")
	for _, s := range scores {
		fmt.Fprintf(t, "%s\t%d", s.Site, s.Rounds)
		for _, e := range s.Charges {
			fmt.Fprintf(t, "\t%.1f (%.2f)", e.Log, e.Value)
		}
		if s.Named != "" {
			fmt.Fprintf(t, "\t%s, after round %d", s.Named, s.Since)
		}
		fmt.Fprintln(t)
	}
	if len(scores) > 0 {
		e := scores[0].Charges[0]
		fmt.Fprintf(t, "evidence as a natural logarithm, of which %.1f names a site; in brackets what is estimated of the site\n", e.Threshold)
	}
	return t.Flush()
}
