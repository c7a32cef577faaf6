package consortium

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// table writes rows in columns.
func table(w io.Writer, header string, rows func(row func(cells ...any))) error {
	t := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(header, " | ", "\t"))
	rows(func(cells ...any) {
		var parts []string
		for _, c := range cells {
			parts = append(parts, fmt.Sprint(c))
		}
		fmt.Fprintln(t, strings.TrimRight(strings.Join(parts, "\t"), "\t"))
	})
	return t.Flush()
}

func day(t time.Time) string { return t.Local().Format("2006-01-02 15:04") }

// About is what a consortium is.
type About struct {
	Name        string `json:"name"`
	Dir         string `json:"dir"`
	URL         string `json:"url"`
	Listen      string `json:"listen"`
	Fingerprint string `json:"fingerprint"`
	Policy      Digest `json:"policy"`
}

// About says what the consortium is.
func (c *Consortium) About() About {
	a := About{c.Name, c.dir, c.URL, c.Listen, "", DigestOf(c.policy)}
	if ca, err := c.keys.certificate(authorityFile); err == nil {
		a.Fingerprint = Invitation{Key: c.Key(), Authority: ca.Raw}.Fingerprint()
	}
	return a
}

// Write writes it for people.
func (a About) Write(w io.Writer) error {
	_, err := fmt.Fprintf(w, "consortium %s in %s\nsites dial  %s, the server listens at %s\nfingerprint %s\npolicy      %s/%s: edit it before the first site joins\nnext: vigie consortium invite NAME --dir %s\n", a.Name, a.Dir, a.URL, a.Listen, a.Fingerprint, a.Dir, policyFile, a.Dir)
	return err
}

// Listing is who belongs to a consortium.
type Listing struct {
	Roster
	Invited []Pending `json:"invited"`
}

// Pending is an invitation that was not used.
type Pending struct {
	Site    string    `json:"site"`
	Expires time.Time `json:"expires"`
	Expired bool      `json:"expired,omitempty"`
}

// Sites lists the sites and the open invitations.
func (c *Consortium) Sites() (Listing, error) {
	r, err := c.Roster()
	if err != nil {
		return Listing{}, err
	}
	l := Listing{Roster: r, Invited: []Pending{}}
	all, err := c.invitations()
	for _, i := range all {
		if i.Used == nil {
			l.Invited = append(l.Invited, Pending{i.Site, i.Expires, c.now().After(i.Expires)})
		}
	}
	slices.SortFunc(l.Invited, func(a, b Pending) int { return strings.Compare(a.Site, b.Site) })
	return l, err
}

// Write writes it for people.
func (l Listing) Write(w io.Writer) error {
	fmt.Fprintf(w, "%s, version %d of the list, %d sites\n", l.Consortium, l.Version, len(l.Sites))
	return table(w, "SITE | SINCE | KEY", func(row func(...any)) {
		for _, m := range l.Sites {
			row(m.Name, day(m.Time), fingerprint(DigestOf(m.Key)))
		}
		for _, i := range l.Invited {
			if i.Expired {
				row(i.Site, "–", "invitation expired "+day(i.Expires))
			} else {
				row(i.Site, "–", "invited until "+day(i.Expires))
			}
		}
	})
}

// Jobs are what a site was asked for.
type Jobs []JobAt

// Only returns the job of that name; without a name, all.
func (j Jobs) Only(run ...string) (Jobs, error) {
	if len(run) == 0 {
		return j, nil
	}
	for _, at := range j {
		if at.Run == run[0] {
			return Jobs{at}, nil
		}
	}
	return nil, fmt.Errorf("consortium: looking for job %q: this site has not received it; see vigie site jobs", run[0])
}

// Write writes them for people: one with everything that a data owner decides on.
func (j Jobs) Write(w io.Writer) error {
	if len(j) == 1 {
		return j[0].write(w)
	}
	if len(j) == 0 {
		_, err := fmt.Fprintln(w, "no job has arrived")
		return err
	}
	return table(w, "RUN | ASKED | DECISION | SCIENTIST | PURPOSE", func(row func(...any)) {
		for _, at := range j {
			row(at.Run, day(at.Time), at.verdict(), at.Scientist, at.Purpose)
		}
	})
}

func (at JobAt) verdict() string {
	text := string(at.Verdict)
	if at.Decision != nil {
		text += " by " + at.Decision.By
	}
	if len(at.Strangers) > 0 && !at.Over {
		text += fmt.Sprintf(", but not with %s", strings.Join(at.Strangers, ", "))
	}
	if at.Over {
		text += ", over"
	}
	return text
}

func (at JobAt) write(w io.Writer) error {
	t := at.Terms
	fmt.Fprintf(w, "run        %s\nasked by   %s, %s\npurpose    %s\n", at.Run, at.Scientist, day(at.Time), at.Purpose)
	fmt.Fprintf(w, "model      %d bytes, SHA-256 %s, examples %v\n", at.Model.Bytes, at.Model.SHA256, at.Model.Example)
	fmt.Fprintf(w, "training   %s, %d rounds of %d epochs; sums hold at least %d sites", t.Algorithm, t.Rounds, t.Epochs, t.Minimum)
	if t.GroupSize > 0 {
		fmt.Fprintf(w, ", opened by groups of at least %d for the rule %s", t.GroupSize, t.Rule)
	}
	fmt.Fprintln(w)
	if len(t.Tasks) > 0 {
		fmt.Fprintf(w, "questions  %s: up to %d, each opened as a sum without noise\n", strings.Join(words(t.Tasks), ", "), t.Questions)
	}
	if at.Trainer != nil {
		fmt.Fprintf(w, "code       %s, SHA-256 %s\n", at.Trainer.About, at.Trainer.SHA256)
	}
	if d := t.DP; d == nil {
		fmt.Fprintln(w, "privacy    nothing is stated: sums hide a site's update, not what the model remembers")
	} else {
		fmt.Fprintf(w, "privacy    ε %g, δ %g per %s, for %d attempts, if %d sites of a sum add their noise\n", d.Epsilon, d.Delta, d.Unit, d.Attempts, d.Honest)
	}
	fmt.Fprintf(w, "job        SHA-256 %s\ndecision   %s\n", at.Digest, at.verdict())
	if d := at.Decision; d != nil && d.Reason != "" {
		fmt.Fprintf(w, "           %s\n", d.Reason)
	}
	fmt.Fprintf(w, "sites      %d on the list:", len(at.Members))
	for _, p := range at.Members {
		fmt.Fprintf(w, " %s", p.Name)
	}
	fmt.Fprintln(w)
	if at.Why != "" {
		fmt.Fprintf(w, "           waits for a person: %s\n", at.Why)
	}
	return nil
}

// Head is how far a chain goes.
type Head struct {
	Chain   string `json:"chain"`
	Site    string `json:"site"`
	Entries uint64 `json:"entries"`
	Last    Digest `json:"last"` // digest of the last entry
}

// Write writes it for people.
func (h Head) Write(w io.Writer) error {
	_, err := fmt.Fprintf(w, "the %s of %s verifies: %d entries, the last is %s\n", h.Chain, h.Site, h.Entries, h.Last)
	return err
}

// Log is what left a site.
type Log struct {
	Head    Head          `json:"head"`
	Entries []Entry[Left] `json:"entries"`
}

// Of returns the entries of a run; without a name, all.
func (l Log) Of(run string) Log {
	if run != "" {
		l.Entries = slices.DeleteFunc(slices.Clone(l.Entries), func(e Entry[Left]) bool { return e.What.Run != run })
	}
	return l
}

// Write writes it for people.
func (l Log) Write(w io.Writer) error {
	if err := table(w, "NUMBER | TIME | WHAT | RUN | BYTES | SHA-256", func(row func(...any)) {
		for _, e := range l.Entries {
			if e.Former != nil {
				row(e.Number, e.Time.Local().Format(time.DateTime), "new keys")
				continue
			}
			what := e.What.Kind
			if e.What.Step != "" {
				what = fmt.Sprintf("%s, attempt %d", e.What.Step, e.What.Round)
			}
			if e.What.Failure != "" {
				row(e.Number, e.Time.Local().Format(time.DateTime), what, e.What.Run, len(e.What.Failure), "refusal: "+e.What.Failure)
				continue
			}
			row(e.Number, e.Time.Local().Format(time.DateTime), what, e.What.Run, e.What.Bytes, e.What.SHA)
			if e.What.BulkSHA != nil {
				row("", "", "  masked vector", "", e.What.Bulk, *e.What.BulkSHA)
			}
		}
	}); err != nil {
		return err
	}
	return l.Head.Write(w)
}

// Accounts are what a site has spent.
type Accounts struct {
	Head    Head            `json:"head"`
	Entries []Entry[Charge] `json:"entries"`
	Spent   []Spent         `json:"spent"`
}

// Write writes them for people: rounds of one run that cost the same are one line.
func (a Accounts) Write(w io.Writer) error {
	if err := table(w, "FROM | TO | RUN | ATTEMPTS | CHARGED", func(row func(...any)) {
		for i := 0; i < len(a.Entries); {
			first, last := a.Entries[i], i
			same := func(c Charge) bool {
				f := first.What
				return c.Federation == f.Federation && c.Unit == f.Unit && (c.Run == nil) == (f.Run == nil) && (c.Run == nil || *c.Run == *f.Run)
			}
			for last+1 < len(a.Entries) && same(a.Entries[last+1].What) {
				last++
			}
			charged := "nothing: the run states no privacy"
			if first.Former != nil {
				charged = "the site has joined again, with new keys"
			}
			if r := first.What.Run; r != nil {
				charged = fmt.Sprintf("per %s, noise multiplier %.4g at a sampling rate of %.4g, each", first.What.Unit, r.Sigma, r.Rate)
			}
			row(first.Time.Local().Format(time.DateTime), a.Entries[last].Time.Local().Format(time.DateTime), first.What.Federation, last-i+1, charged)
			i = last + 1
		}
	}); err != nil {
		return err
	}
	for _, s := range a.Spent {
		limit := "no limit"
		if s.Limit != nil {
			limit = fmt.Sprintf("of %g", s.Limit.Epsilon)
		}
		fmt.Fprintf(w, "spent per %-9s ε %.4f at δ %g, %s\n", s.Unit, s.Epsilon, s.Delta, limit)
	}
	return a.Head.Write(w)
}

// Runs are how runs stand.
type Runs []Status

// Write writes them for people.
func (r Runs) Write(w io.Writer) error {
	if len(r) == 0 {
		_, err := fmt.Fprintln(w, "no run: vigie fed start")
		return err
	}
	return table(w, "RUN | STATE | ROUND | LOSS | AUC | SCIENTIST | PURPOSE", func(row func(...any)) {
		for _, s := range r {
			row(s.Run, s.State, fmt.Sprintf("%d of %d", s.Round, s.Rounds), optional(s.Loss), s.auc(), s.Scientist, s.Purpose)
		}
	})
}

func optional(v *float64) string {
	if v == nil {
		return "–"
	}
	return fmt.Sprintf("%.4f", *v)
}

func (s Status) auc() string {
	if s.AUC == nil {
		return "–"
	}
	return fmt.Sprintf("%.4f (%.4f to %.4f)", s.AUC.Value, s.AUC.Low, s.AUC.High)
}

// Progress is how a run stands, round by round.
type Progress struct {
	Status
	Attempts []RoundLine `json:"attempts"`
}

// Progress says how a run stands.
func (c *Consortium) Progress(run string) (Progress, error) {
	s, lines, err := c.Status(run)
	return Progress{s, lines}, err
}

// Write writes it for people.
func (p Progress) Write(w io.Writer) error {
	for _, line := range p.Attempts {
		if err := line.write(w, p.Rounds); err != nil {
			return err
		}
	}
	return p.Status.write(w)
}

func (l RoundLine) write(w io.Writer, rounds int) error {
	if l.Failed != "" {
		_, err := fmt.Fprintf(w, "round %3d of %d has no result and is tried again: %s\n", l.Index+1, rounds, l.Failed)
		return err
	}
	if l.Sites == 0 {
		_, err := fmt.Fprintf(w, "round %3d of %d: kept, but its record was lost with the process\n", l.Index+1, rounds)
		return err
	}
	text := fmt.Sprintf("round %3d of %d: %d sites", l.Index+1, rounds, l.Sites)
	if l.Loss != 0 { // under differential privacy nobody tells it
		text += fmt.Sprintf(", loss %.4f", l.Loss)
	}
	if l.AUC != nil {
		text += fmt.Sprintf(", AUC %.4f", l.AUC.Value)
	}
	if l.AtSites != nil {
		text += fmt.Sprintf(", AUC at the sites %.4f", l.AtSites.AUC.Value)
	}
	text += fmt.Sprintf(", %v", l.Elapsed.Round(time.Millisecond))
	if len(l.Lost) > 0 {
		text += ", without " + strings.Join(l.Lost, " ")
	}
	_, err := fmt.Fprintln(w, text)
	return err
}

func (s Status) write(w io.Writer) error {
	fmt.Fprintf(w, "run %s: %s, round %d of %d", s.Run, s.State, s.Round, s.Rounds)
	if s.Loss != nil {
		fmt.Fprintf(w, ", loss %.4f", *s.Loss)
	}
	if s.AUC != nil {
		fmt.Fprintf(w, ", AUC %s", s.auc())
	}
	if s.AtSites != nil {
		fmt.Fprintf(w, ", at the sites %.4f", s.AtSites.Value)
	}
	fmt.Fprintln(w)
	if s.Why != "" {
		fmt.Fprintln(w, s.Why)
	}
	if s.Model != nil {
		fmt.Fprintf(w, "model SHA-256 %s in runs/%s/result\n", *s.Model, s.Run)
	}
	return table(w, "SITE | DECISION | LINK | IN SUMS | LOST | HELD AGAINST | LAST SAID", func(row func(...any)) {
		for _, site := range s.Sites {
			link, verdict := "–", string(site.Verdict)
			if site.Connected {
				link = "up"
			}
			if site.By != "" {
				verdict += " by " + site.By
			}
			said := site.Failure
			switch {
			case site.Verdict == Refused:
				said = site.Reason
			case site.LeftOut != "":
				said = "left out: " + site.LeftOut + " has not approved with it"
			}
			if site.Named != "" {
				said = strings.TrimSuffix("named: "+string(site.Named)+"; "+said, "; ")
			}
			if long := []rune(said); len(long) > 100 {
				said = string(long[:99]) + "…"
			}
			row(site.Name, verdict, link, site.Sums, site.Lost, fmt.Sprintf("%.2f", site.Held), said)
		}
	})
}

// Watcher is where Watch writes.
type Watcher struct {
	Out      io.Writer
	JSON     bool // a line of Status for every change
	Terminal bool // the table of sites may be drawn over
	// Each is asked at every look what to say besides; an error ends the watch. It
	// may be nil.
	Each func(Progress) (string, error)
}

// Watch follows a run until it is over, stopped or failed: a line for each
// attempt at a round, and the sites whenever something changes there.
func (c *Consortium) Watch(ctx context.Context, run string, o Watcher) error {
	shown, drawn, before := 0, 0, ""
	for {
		p, err := c.Progress(run)
		if err != nil {
			return err
		}
		if o.JSON {
			p.Updated = time.Time{}
			data, err := json.Marshal(p.Status)
			if err != nil {
				return err
			}
			if string(data) != before {
				before = string(data)
				fmt.Fprintln(o.Out, before)
			}
		} else {
			if drawn > 0 && o.Terminal {
				fmt.Fprintf(o.Out, "\x1b[%dA\x1b[J", drawn)
				drawn = 0
			}
			for _, line := range p.Attempts[min(shown, len(p.Attempts)):] {
				if err := line.write(o.Out, p.Rounds); err != nil {
					return err
				}
			}
			shown = len(p.Attempts)
			if o.Each != nil {
				said, err := o.Each(p)
				if err != nil {
					return err
				}
				if said != "" {
					fmt.Fprintln(o.Out, said)
				}
			}
			var text strings.Builder
			if err := p.Status.write(&text); err != nil {
				return err
			}
			over := p.State == Done || p.State == Stopped || p.State == Failed
			switch {
			case o.Terminal || over:
				io.WriteString(o.Out, text.String())
				drawn = strings.Count(text.String(), "\n")
			case p.State == Gathering && p.Why != before:
				before = p.Why
				fmt.Fprintln(o.Out, p.Why)
			}
		}
		switch p.State {
		case Done:
			return nil
		case Stopped:
			return fmt.Errorf("consortium: following run %q: it was stopped; vigie fed resume lets it go on", run)
		case Failed:
			return errors.New(p.Why)
		}
		if err := pause(ctx, 3*glance); err != nil {
			return err
		}
	}
}
