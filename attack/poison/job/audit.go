package job

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vigie/vigie/attack/poison"
	"github.com/vigie/vigie/train/studies"
)

// Audit is an audit of training data. Zero values are defaults.
type Audit struct {
	Data       studies.Options // what vigie train reads
	SiteColumn string          // of contributors, in the table of labels; empty: site, contributor, institution or hospital
	Label      string          // of labels that do not exclude each other, the one that is audited
	// Network says whose inner values are looked at: "train" (the default), a small
	// network trained on the data, or "none". Model, an ONNX file, takes its place.
	Network     string
	Model       string
	Epochs      int     // of the small network; 0: DefaultEpochs
	RightLabels float64 // expected share of right labels among the suspects, at most; 0: a third
	Seed        uint64
	Only        []string // kinds of findings that are looked for; none: all
	FailOn      []string // kinds of findings that are a failure, or "any"
	HTML        string   // page with the images
	CSV         string   // a row for each case of each finding
	ExcludeList string   // a name a line: what to leave out until a person has looked
	Command     string   // as a person would type it again
	Progress    func(stage string, done float64)
}

// DefaultEpochs of the small network.
const DefaultEpochs = 8

func (a Audit) progress(stage string, done float64) {
	if a.Progress != nil {
		a.Progress(stage, done)
	}
}

// Case is an image in the report.
type Case struct {
	Place string `json:"place"`
	Split string `json:"split,omitempty"`
	Site  string `json:"site,omitempty"`
	Label string `json:"label"`
}

// Found is a finding of the report.
type Found struct {
	poison.Finding
	At []Case `json:"images"`
}

// Report is an audit's result, as --json prints it.
type Report struct {
	Data      string              `json:"data"`
	Digest    string              `json:"digest"`
	Seed      uint64              `json:"seed"`
	Command   string              `json:"command,omitempty"`
	Images    int                 `json:"images"`
	Classes   []string            `json:"classes"`
	Counts    map[poison.Kind]int `json:"counts"` // findings by kind
	Failed    []string            `json:"failed"` // kinds of --fail-on that were found
	Agreement float64             `json:"judge_agreement"`
	Exact     bool                `json:"judge_exact"`
	Suspects  int                 `json:"label_suspects"`
	Precision float64             `json:"label_suspects_expected_wrong"` // share
	Noise     [][]float64         `json:"label_noise"`                   // [class][label] of contributors without a matrix of their own
	Joint     [][]float64         `json:"confident_joint"`               // [label][class], shares
	Limits    []float64           `json:"confident_thresholds"`
	Sites     []poison.SiteNoise  `json:"sites,omitempty"`
	Contrasts []poison.Contrast   `json:"contrasts,omitempty"`
	Clusters  []Clusters          `json:"activations,omitempty"`
	Findings  []Found             `json:"findings"`
	Notes     []string            `json:"notes,omitempty"`
	Seconds   float64             `json:"seconds"`

	cases *poison.Cases
	audit *poison.Report
}

// Clusters are what a network's inner values say of one label.
type Clusters struct {
	Class      string  `json:"class"`
	Cases      int     `json:"cases"`
	Leading    float64 `json:"leading"`
	Silhouette float64 `json:"silhouette"`
	Smaller    int     `json:"smaller_cluster"`
	Against    int     `json:"labelled_against"`
	P          float64 `json:"p"`
	Found      bool    `json:"found"`
}

// Failure is the error of an audit that found what --fail-on names.
type Failure struct{ Kinds []string }

func (f *Failure) Error() string {
	return "the audit found what it was to fail on: " + strings.Join(f.Kinds, ", ")
}

// ExitStatus tells a finding from an audit that could not be done.
func (f *Failure) ExitStatus() int { return 3 }

func (a Audit) check() (Audit, error) {
	known := []string{"any"}
	for _, k := range poison.Kinds() {
		known = append(known, string(k))
	}
	for _, k := range a.FailOn {
		if !slices.Contains(known, k) {
			return a, fmt.Errorf("job: failing on %q: %w: want %s", k, ErrAsk, strings.Join(known, ", "))
		}
	}
	for _, k := range a.Only {
		if !slices.Contains(known[1:], k) {
			return a, fmt.Errorf("job: looking only for %q: %w: want %s", k, ErrAsk, strings.Join(known[1:], ", "))
		}
	}
	if a.Network == "" {
		a.Network = "train"
	}
	if a.Network != "train" && a.Network != "none" {
		return a, fmt.Errorf("job: network %q: %w: want train or none; an ONNX file is named as the model", a.Network, ErrAsk)
	}
	if a.Epochs == 0 {
		a.Epochs = DefaultEpochs
	}
	if a.Epochs < 1 || a.Epochs > 1000 {
		return a, fmt.Errorf("job: %d epochs: %w: want 1 to 1000", a.Epochs, ErrAsk)
	}
	if a.Model != "" {
		if _, err := os.Stat(a.Model); err != nil {
			return a, fmt.Errorf("job: opening the model: %w", err)
		}
	}
	for _, out := range []struct{ path, ending string }{{a.HTML, ".html"}, {a.CSV, ".csv"}, {a.ExcludeList, ""}} {
		if out.path == "" {
			continue
		}
		if out.ending != "" && !strings.EqualFold(filepath.Ext(out.path), out.ending) {
			return a, fmt.Errorf("job: report %s: %w: name a %s file", out.path, ErrAsk, out.ending)
		}
		if info, err := os.Stat(filepath.Dir(out.path)); err != nil {
			return a, fmt.Errorf("job: report: %w", err)
		} else if !info.IsDir() {
			return a, fmt.Errorf("job: report %s: %w: %s is no folder", out.path, ErrAsk, filepath.Dir(out.path))
		}
	}
	return a, nil
}

// Run audits the data and writes what was asked for. Nothing of the data is
// changed. What is found is in the report; Err turns it into an error.
func (a Audit) Run(ctx context.Context) (*Report, error) {
	start := time.Now()
	a, err := a.check()
	if err != nil {
		return nil, err
	}
	c, digest, err := a.read(ctx)
	if err != nil {
		return nil, err
	}
	o := poison.Options{RightLabels: a.RightLabels, Seed: a.Seed, Progress: a.progress}
	for _, k := range a.Only {
		o.Only = append(o.Only, poison.Kind(k))
	}
	if a.Network == "train" || a.Model != "" {
		o.Activations = a.activations(c)
	}
	audit, err := poison.Audit(ctx, c, o)
	if err != nil {
		return nil, err
	}
	r := a.report(c, audit, digest)
	r.Seconds = time.Since(start).Seconds()
	if a.CSV != "" {
		if err := whole(a.CSV, r.WriteCSV); err != nil {
			return nil, err
		}
	}
	if a.ExcludeList != "" {
		if err := whole(a.ExcludeList, r.writeExcluded); err != nil {
			return nil, err
		}
	}
	if a.HTML != "" {
		if err := whole(a.HTML, r.WriteHTML); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (a Audit) report(c *poison.Cases, audit *poison.Report, digest string) *Report {
	l := audit.Labels
	r := &Report{
		Data: filepath.Base(a.Data.Data), Digest: digest, Seed: a.Seed, Command: a.Command, Images: c.Len(), Classes: audit.Classes,
		Counts: map[poison.Kind]int{}, Failed: []string{}, Agreement: l.Agreement, Exact: l.Exact, Suspects: len(l.Suspects), Precision: l.Precision,
		Noise: l.Noise, Joint: l.Joint, Limits: l.Thresholds, Sites: l.Sites, Contrasts: audit.Contrasts, Findings: []Found{}, Notes: audit.Notes,
		cases: c, audit: audit,
	}
	for _, v := range audit.Activations {
		r.Clusters = append(r.Clusters, Clusters{c.Set.ClassName(v.Class), v.Cases, v.Leading, v.Silhouette, len(v.Members), v.Against, v.P, v.Found})
	}
	for _, f := range audit.Findings {
		found := Found{Finding: f, At: []Case{}}
		if found.Cases == nil {
			found.Cases = []int{}
		}
		for _, i := range f.Cases {
			found.At = append(found.At, r.caseAt(i))
		}
		r.Findings = append(r.Findings, found)
		r.Counts[f.Kind]++
	}
	for _, k := range poison.Kinds() {
		if r.Counts[k] > 0 && (slices.Contains(a.FailOn, string(k)) || slices.Contains(a.FailOn, "any")) {
			r.Failed = append(r.Failed, string(k))
		}
	}
	return r
}

func (r *Report) caseAt(i int) Case {
	c := r.cases
	out := Case{Place: fmt.Sprintf("image %d", i), Label: c.Set.ClassName(c.Set.Labels[i])}
	if c.Places != nil {
		out.Place = c.Places[i]
	}
	if c.Splits != nil {
		out.Split = c.Splits[i]
	}
	if c.Sites != nil {
		out.Site = c.Sites[i]
	}
	return out
}

// Err is a *Failure if something was found that the audit was to fail on.
func (r *Report) Err() error {
	if len(r.Failed) == 0 {
		return nil
	}
	return &Failure{r.Failed}
}

// whole writes a file that appears whole or not at all.
func whole(path string, write func(io.Writer) error) error {
	temporary := path + ".part"
	f, err := os.Create(temporary)
	if err != nil {
		return fmt.Errorf("job: writing %s: %w", path, err)
	}
	if err := errors.Join(write(f), f.Close()); err != nil {
		os.Remove(temporary)
		return fmt.Errorf("job: writing %s: %w", path, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("job: writing %s: %w", path, err)
	}
	return nil
}

// WriteCSV writes a row for each case of each finding.
func (r *Report) WriteCSV(out io.Writer) error {
	w := csv.NewWriter(out)
	w.Write([]string{"finding", "kind", "image", "split", "site", "label", "suggested_label", "score", "sentence"})
	for k, f := range r.Findings {
		score := strconv.FormatFloat(f.Score, 'g', 6, 64)
		if len(f.At) == 0 {
			w.Write([]string{strconv.Itoa(k + 1), string(f.Kind), "", "", f.Site, "", "", score, f.Sentence})
		}
		for _, c := range f.At {
			w.Write([]string{strconv.Itoa(k + 1), string(f.Kind), cell(c.Place), c.Split, cell(c.Site), cell(c.Label), cell(f.Suggest), score, f.Sentence})
		}
	}
	w.Flush()
	return w.Error()
}

// cell keeps a spreadsheet from taking a name for a formula.
func cell(text string) string {
	if text != "" && strings.ContainsRune("=+-@\t\r", rune(text[0])) {
		return "'" + text
	}
	return text
}

// writeExcluded lists what to leave out until a person has looked: suspects,
// carriers of triggers, artificial images, images with copied regions, and of a
// picture that is there several times all but the first.
func (r *Report) writeExcluded(out io.Writer) error {
	excluded := map[int]bool{}
	for _, f := range r.Findings {
		at := f.Cases
		switch f.Kind {
		case poison.Leak, poison.Duplicate:
			at = at[min(1, len(at)):]
		case poison.Label, poison.Trigger, poison.Cluster, poison.CopyMove, poison.Artificial:
		default:
			continue
		}
		for _, i := range at {
			excluded[i] = true
		}
	}
	for i := range r.Images {
		if excluded[i] {
			if _, err := fmt.Fprintln(out, r.caseAt(i).Place); err != nil {
				return err
			}
		}
	}
	return nil
}

// kindText is what a kind is called for people.
var kindText = map[poison.Kind]string{
	poison.Leak: "on both sides of a split", poison.Trigger: "marks that come with one label", poison.Cluster: "set apart by a network among their label",
	poison.Label: "labels that contradict their images", poison.Duplicate: "pictures that are there twice", poison.CopyMove: "regions that are there twice",
	poison.Artificial: "artificial or unusual images", poison.Recurring: "marks that come with any label", poison.Site: "contributors unlike the others",
}

// shownLines of a kind are printed; all are in the files.
const shownLines = 8

// Write writes the report for people.
func (r *Report) Write(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%d images of %s, seed %d\n", r.Images, r.Data, r.Seed)
	if r.Noise != nil {
		fmt.Fprintf(&b, "a judge that never saw a case's own label agrees with %.1f %% of the labels\n", 100*r.Agreement)
	}
	for _, k := range poison.Kinds() {
		if r.Counts[k] == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n%s (%d): %s\n", k, r.Counts[k], kindText[k])
		if k == poison.Label {
			fmt.Fprintf(&b, "  of these, %.0f %% are expected to be wrong\n", 100*r.Precision)
		}
		told := 0
		for _, f := range r.Findings {
			if f.Kind != k {
				continue
			}
			if told++; told > shownLines {
				fmt.Fprintf(&b, "  … and %d more (--csv, --html and --json have all)\n", r.Counts[k]-shownLines)
				break
			}
			fmt.Fprintf(&b, "  %s\n", f.Sentence)
		}
	}
	if len(r.Findings) == 0 {
		fmt.Fprintf(&b, "\nnothing was found; that is no proof that nothing is there\n")
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\nnote: %s\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
