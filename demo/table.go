package demo

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/gateway"
)

// column is one column of the result table. The widths and two blanks between
// columns add up to 100.
type column struct {
	title string
	width int
}

var columns = []column{
	{"#", 2}, {"STUDY", 24}, {"BY", 6}, {"PATIENT", 9}, {"FINDING", 19}, {"TRIAGE", 12}, {"TOTAL, ms", 16},
}

// style is a terminal colour; empty when the output is no terminal.
type style struct{ bold, dim, green, yellow, red, reset string }

func newStyle(colour bool) style {
	if !colour {
		return style{}
	}
	return style{bold: "\x1b[1m", dim: "\x1b[2m", green: "\x1b[32m", yellow: "\x1b[33m", red: "\x1b[31m", reset: "\x1b[0m"}
}

// of returns the colour of a state.
func (s style) of(state vigie.State) string {
	switch state {
	case vigie.Released, vigie.Delivered:
		return s.green
	case vigie.Quarantined:
		return s.red
	default:
		return s.yellow
	}
}

// fit cuts or pads text to exactly width characters.
func fit(text string, width int) string {
	n := utf8.RuneCountInString(text)
	if n > width {
		runes := []rune(text)
		return string(runes[:width-1]) + "…"
	}
	return text + strings.Repeat(" ", width-n)
}

// wrap breaks text into lines of at most width characters at blanks.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}

func printHead(w io.Writer, s style) {
	var cells, rule []string
	for _, c := range columns {
		cells = append(cells, fit(c.title, c.width))
		rule = append(rule, strings.Repeat("─", c.width))
	}
	fmt.Fprintf(w, "%s%s%s\n%s%s%s\n", s.bold, strings.Join(cells, "  "), s.reset, s.dim, strings.Join(rule, "──"), s.reset)
}

// row is one study that came to rest.
type row struct {
	number  int
	study   string
	by      string
	case_   *vigie.Case // nil when the study was not taken
	failure string      // what was not as expected; empty when all is well
}

// target returns the prediction that triage is about, or nil.
func (r row) target(label string) *vigie.Prediction {
	if r.case_ == nil || r.case_.Finding == nil {
		return nil
	}
	for i, p := range r.case_.Finding.Predictions {
		if p.Label == label {
			return &r.case_.Finding.Predictions[i]
		}
	}
	return nil
}

// positive reports whether what the model explains is present.
func (r row) positive() bool {
	if r.case_ == nil || r.case_.Finding == nil || !r.case_.Finding.Explanation.Shown() {
		return false
	}
	p := r.target(r.case_.Finding.Explanation.Target)
	return p != nil && p.Positive
}

func (r row) findingText(label string) string {
	p := r.target(label)
	if p == nil {
		return "— not analysed"
	}
	sign := "−"
	if p.Positive {
		sign = "+"
	}
	return fmt.Sprintf("%s %s %.3f", sign, p.Label, p.Probability)
}

func (r row) triageText() string {
	switch {
	case r.case_ == nil || r.case_.Verdict == nil:
		return "—"
	case r.case_.Verdict.Decision == vigie.Release:
		return "released"
	case r.case_.Verdict.Decision == vigie.Quarantine:
		return "quarantined"
	default:
		return "in review"
	}
}

func milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms < 10 {
		return fmt.Sprintf("%.1f", ms)
	}
	return fmt.Sprintf("%.0f", ms)
}

// phases gathers the stages of a case into those that a reader cares about.
// Enclave stages take the place of the gateway's wait for them.
var phases = []struct {
	name   string
	stages []string
}{
	{"receive", []string{"receive", "read"}},
	{"seal", []string{"seal"}},
	{"queue", []string{"queue"}},
	{"open", []string{"open", "parse"}},
	{"de-identify", []string{"de-identify"}},
	{"decode", []string{"enclave/decode"}},
	{"guard", []string{"enclave/guard-in", "enclave/guard-out"}},
	{"infer", []string{"enclave/infer"}},
	{"explain", []string{"enclave/explain"}},
	{"report", []string{"report"}},
	{"deliver", []string{"deliver"}},
}

// phaseTimes returns the times of a case by phase, and their sum.
func (r row) phaseTimes() (parts []string, total time.Duration) {
	if r.case_ == nil {
		return nil, 0
	}
	spent := map[string]time.Duration{}
	for _, s := range r.case_.Stages {
		total += s.Duration
		spent[s.Name] += s.Duration
	}
	if r.case_.Finding != nil {
		for _, s := range r.case_.Finding.Stages {
			spent["enclave/"+s.Name] += s.Duration
		}
	}
	for _, p := range phases {
		var sum time.Duration
		for _, name := range p.stages {
			sum += spent[name]
		}
		if sum > 0 {
			parts = append(parts, p.name+" "+milliseconds(sum))
		}
	}
	return parts, total
}

func (r row) print(w io.Writer, s style, label string) {
	phases, total := r.phaseTimes()
	patient, colour := "", s.yellow
	var reasons []vigie.Reason
	if r.case_ != nil {
		patient = string(r.case_.Patient)
		if v := r.case_.Verdict; v != nil {
			colour, reasons = s.of(v.Decision.State()), v.Reasons
		}
	}
	cells := []string{
		fit(fmt.Sprint(r.number), columns[0].width),
		s.bold + fit(r.study, columns[1].width) + s.reset,
		fit(r.by, columns[2].width),
		fit(patient, columns[3].width),
		fit(r.findingText(label), columns[4].width),
		colour + fit(r.triageText(), columns[5].width) + s.reset,
		fit(milliseconds(total), columns[6].width),
	}
	fmt.Fprintln(w, strings.Join(cells, "  "))
	indent := strings.Repeat(" ", columns[0].width+2)
	width := 100 - len(indent)
	for _, reason := range reasons {
		for i, line := range wrap(reason.Text.English, width-2) {
			bullet := "  "
			if i == 0 {
				bullet = "▸ "
			}
			fmt.Fprintf(w, "%s%s%s%s%s\n", indent, colour, bullet, line, s.reset)
		}
	}
	if r.case_ != nil && r.case_.Finding != nil && r.case_.Finding.Explanation != nil {
		r.printMap(w, s, indent, width)
	}
	for _, line := range wrapParts(phases, " · ", width) {
		fmt.Fprintf(w, "%s%s%s%s\n", indent, s.dim, line, s.reset)
	}
	if r.failure != "" {
		fmt.Fprintf(w, "%s%sNOT AS EXPECTED: %s%s\n", indent, s.red, r.failure, s.reset)
	}
}

// printMap says what is known of the answer's map, and where it must not be
// relied on, or is not there, why.
func (r row) printMap(w io.Writer, s style, indent string, width int) {
	e := r.case_.Finding.Explanation
	if e.Passed() {
		fmt.Fprintf(w, "%s%smap: %s%s\n", indent, s.dim, gateway.MapText(r.case_.Finding), s.reset)
		return
	}
	text := e.Text.English
	if e.Shown() {
		text = gateway.MapText(r.case_.Finding) + ". " + e.Label().English
	}
	for _, line := range wrap("map: "+text, width) {
		fmt.Fprintf(w, "%s%s%s%s\n", indent, s.yellow, line, s.reset)
	}
}

// wrapParts joins parts into lines of at most width characters, never breaking
// a part.
func wrapParts(parts []string, separator string, width int) []string {
	var lines []string
	line := ""
	for _, part := range parts {
		switch {
		case line == "":
			line = part
		case utf8.RuneCountInString(line)+utf8.RuneCountInString(separator)+utf8.RuneCountInString(part) <= width:
			line += separator + part
		default:
			lines = append(lines, line)
			line = part
		}
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}
