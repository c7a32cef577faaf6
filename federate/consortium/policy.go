package consortium

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/robust"
)

// Policy is what a consortium holds every run to. Its sites have agreed to it
// byte for byte: each holds every job against it, whatever the server says.
type Policy struct {
	MinimumSites   int                  `yaml:"minimum_sites" json:"minimum_sites"`
	Algorithms     []federate.Algorithm `yaml:"algorithms" json:"algorithms"`
	Rules          []robust.Name        `yaml:"rules" json:"rules"`
	MaxRounds      int                  `yaml:"max_rounds" json:"max_rounds"`
	MaxDeadline    Period               `yaml:"max_deadline" json:"max_deadline"`
	RequirePrivacy []federate.Unit      `yaml:"require_privacy" json:"require_privacy"`
	MaxEpsilon     float64              `yaml:"max_epsilon" json:"max_epsilon"`
	RequireAudit   *AuditRule           `yaml:"require_audit" json:"require_audit,omitempty"`
	MaxDelta       MaxDelta             `yaml:"max_delta" json:"max_delta"`
}

// MaxDelta is the largest δ that one run may state, per unit: with a large one an
// epsilon means nothing.
type MaxDelta struct {
	Patient  float64 `yaml:"patient" json:"patient"`
	Hospital float64 `yaml:"hospital" json:"hospital"`
}

// defaultDelta holds where nothing is said.
const defaultDelta = 1e-5

func (m MaxDelta) of(unit federate.Unit) float64 {
	if unit == federate.Patient {
		return m.Patient
	}
	return m.Hospital
}

func (m MaxDelta) check() error {
	for _, d := range []float64{m.Patient, m.Hospital} {
		if !(d >= 0 && d < 1) {
			return fmt.Errorf("max_delta: %g: want numbers from 0, below 1", d)
		}
	}
	return nil
}

// Period is a length of time that is written as 10m or 1h30m.
type Period time.Duration

// MarshalText writes it.
func (p Period) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads it.
func (p *Period) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is no length of time: want one such as 10m or 1h30m", text)
	}
	*p = Period(d)
	return nil
}

func (p Period) String() string {
	text := time.Duration(p).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// DefaultPolicy allows every algorithm and every rule that needs nobody's trust,
// and demands no differential privacy.
func DefaultPolicy() Policy {
	p := Policy{MinimumSites: 3, MaxRounds: 500, MaxDeadline: Period(time.Hour), MaxEpsilon: 8, MaxDelta: MaxDelta{defaultDelta, defaultDelta}}
	for _, r := range federate.Algorithms() {
		p.Algorithms = append(p.Algorithms, r.Name)
	}
	for _, r := range robust.Rules() {
		if r.Name != robust.FLTrust {
			p.Rules = append(p.Rules, r.Name)
		}
	}
	return p
}

// Text is the policy as the file that people edit.
func (p Policy) Text(name string) string {
	list := func(items ...string) string { return "[" + strings.Join(items, ", ") + "]" }
	return fmt.Sprintf(`# What the consortium %s holds every run to. Each site agrees to these very bytes
# when it joins and checks every job against them itself, so edit this file before
# the first site joins.

minimum_sites: %d       # whose updates a sum must hold, at least 3
algorithms: %s
rules: %s
max_rounds: %d        # of one run
max_deadline: %s       # for one step of a round; a site that is later is left out of it

# Whom every run must protect by differential privacy: [], [patient] or [hospital].
# The two are different promises and are counted apart.
require_privacy: %s
max_epsilon: %g         # that one run may state
max_delta: {patient: %g, hospital: %g}
`, name, p.MinimumSites, list(words(p.Algorithms)...), list(words(p.Rules)...), p.MaxRounds, p.MaxDeadline, list(words(p.RequirePrivacy)...), p.MaxEpsilon, p.MaxDelta.Patient, p.MaxDelta.Hospital) + p.RequireAudit.text()
}

func words[S ~string](items []S) []string {
	var out []string
	for _, i := range items {
		out = append(out, string(i))
	}
	return out
}

const maxPolicy = 64 << 10

// ParsePolicy reads a policy.
func ParsePolicy(data []byte) (Policy, error) {
	p := DefaultPolicy()
	p.Algorithms, p.Rules = nil, nil
	if err := readYAML(data, &p); err != nil {
		return Policy{}, fmt.Errorf("consortium: reading a policy: %w", err)
	}
	return p, p.Check()
}

// Check returns an error that wraps ErrPolicy if no run could be held to it.
func (p Policy) Check() error {
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("consortium: checking a policy: %w: %s", ErrPolicy, fmt.Sprintf(format, arguments...))
	}
	for _, a := range p.Algorithms {
		if !slices.ContainsFunc(federate.Algorithms(), func(r federate.AlgorithmRow) bool { return r.Name == a }) {
			return fail("algorithms: there is no %q", a)
		}
	}
	for _, r := range p.Rules {
		if _, err := robust.Find(r); err != nil {
			return fail("rules: %v", err)
		}
	}
	if err := checkStatements(p.RequirePrivacy); err != nil {
		return fail("require_privacy: %v", err)
	}
	if err := p.RequireAudit.check(); err != nil {
		return fail("require_audit: %v", err)
	}
	switch {
	case len(p.Algorithms) == 0 || len(p.Rules) == 0:
		return fail("it allows no algorithm, or no rule")
	case p.MinimumSites < 3 || p.MinimumSites > maxSites:
		return fail("minimum_sites: %d: want 3 to %d", p.MinimumSites, maxSites)
	case p.MaxRounds < 1 || p.MaxDeadline <= 0:
		return fail("max_rounds %d and max_deadline %v: want more than none", p.MaxRounds, p.MaxDeadline)
	case !(p.MaxEpsilon >= 0) || math.IsInf(p.MaxEpsilon, 0):
		return fail("max_epsilon: %g: want a number from 0", p.MaxEpsilon)
	}
	if err := p.MaxDelta.check(); err != nil {
		return fail("%v", err)
	}
	return nil
}

func checkStatements(all []federate.Unit) error {
	for i, s := range all {
		if s != federate.Patient && s != federate.Hospital {
			return fmt.Errorf("there is no %q: want patient or hospital", s)
		}
		if slices.Contains(all[:i], s) {
			return fmt.Errorf("%s is there twice", s)
		}
	}
	return nil
}

// Allows returns an error that wraps ErrPolicy for a job that goes beyond it.
func (p Policy) Allows(j Job) error {
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("consortium: holding job %s against the consortium's policy: %w: %s", j.Run, ErrPolicy, fmt.Sprintf(format, arguments...))
	}
	t := j.Terms
	switch {
	case !slices.Contains(p.Algorithms, t.Algorithm):
		return fail("the algorithm %s; it allows %s", t.Algorithm, strings.Join(words(p.Algorithms), ", "))
	case !slices.Contains(p.Rules, t.Rule):
		return fail("the rule %s; it allows %s", t.Rule, strings.Join(words(p.Rules), ", "))
	case t.Rounds > p.MaxRounds:
		return fail("%d rounds; it allows %d", t.Rounds, p.MaxRounds)
	case t.Minimum < p.MinimumSites:
		return fail("sums of %d sites; it demands %d", t.Minimum, p.MinimumSites)
	case t.Deadline > time.Duration(p.MaxDeadline):
		return fail("a deadline of %v; it allows %v", t.Deadline, p.MaxDeadline)
	}
	for _, s := range p.RequirePrivacy {
		if !j.protects(s) {
			return fail("no differential privacy per %s is stated", s)
		}
	}
	if d := t.DP; d != nil && d.Epsilon > p.MaxEpsilon {
		return fail("ε %g per %s; it allows %g", d.Epsilon, d.Unit, p.MaxEpsilon)
	}
	if d := t.DP; d != nil && d.Delta > p.MaxDelta.of(d.Unit) {
		return fail("δ %g per %s; it allows %g", d.Delta, d.Unit, p.MaxDelta.of(d.Unit))
	}
	if err := p.RequireAudit.allows(j); err != nil {
		return fail("%v", err)
	}
	return nil
}

// Rules are what a data owner allows at a site. The file is read anew for every
// decision, so that an edit takes effect at once.
type Rules struct {
	// Approve says which jobs start without a person; nil: none.
	Approve *Approval `yaml:"approve"`
	// RequirePrivacy says whom every job must protect.
	RequirePrivacy []federate.Unit `yaml:"require_privacy"`
	// Budget is what all jobs together may cost, for ever.
	Budget Budget `yaml:"budget"`
	// Joins says what becomes of approvals when a site joins the consortium.
	Joins Joins `yaml:"joins"`
}

// Joins says whether a job that was approved may go on with sites that have joined
// since: whoever holds the consortium's keys can invent as many as it takes to be
// alone with this one in a sum.
type Joins string

// What may become of approvals when a site joins.
const (
	JoinsWait   Joins = "wait" // until the data owner has approved again
	JoinsAccept Joins = "accept"
)

// Approval is a standing approval: a job must fit all of it. Lists that are
// empty fit nothing.
type Approval struct {
	Scientists []string             `yaml:"scientists"`
	Purposes   []string             `yaml:"purposes"`
	Algorithms []federate.Algorithm `yaml:"algorithms"`
	Models     []Digest             `yaml:"models"` // empty: any
	MaxRounds  int                  `yaml:"max_rounds"`
	MaxEpsilon float64              `yaml:"max_epsilon"`
	MaxDelta   *MaxDelta            `yaml:"max_delta"` // nil: 1e-5 for either unit
	// WithoutPrivacy lets jobs through that state no differential privacy.
	WithoutPrivacy bool `yaml:"without_privacy"`
	// Tasks are what may be asked besides training: sums without noise.
	Tasks []federate.Task `yaml:"tasks"`
}

// Budget is the largest cost per unit. A unit without one is not limited.
type Budget struct {
	Patient  *Limit `yaml:"patient"`
	Hospital *Limit `yaml:"hospital"`
}

// Limit is an (ε, δ).
type Limit struct {
	Epsilon float64 `yaml:"epsilon" json:"epsilon"`
	Delta   float64 `yaml:"delta" json:"delta"`
}

func (b Budget) of(unit federate.Unit) *Limit {
	if unit == federate.Patient {
		return b.Patient
	}
	return b.Hospital
}

const rulesText = `# What this hospital allows. The file is read for every decision: an edit takes
# effect at once, without a restart. Lists are of exact words.

# A job that fits all of this starts without a person; every other one waits for
# "vigie site approve". Without this block, all wait.
#approve:
#  scientists: [Dr Example]
#  purposes: [pneumonia on chest radiographs]
#  algorithms: [fedavg, fedprox]
#  max_rounds: 100
#  max_epsilon: 2          # of one job
#  max_delta: {patient: 1e-5, hospital: 1e-5}
#  without_privacy: false  # true: also jobs that state no differential privacy
#  tasks: []               # questions besides training, such as evaluate: sums without noise

# Whom every job must protect, approved or not: [], [patient] or [hospital].
require_privacy: []

# What becomes of approvals when a site joins the consortium, also one that joins
# again with new keys. wait: this site takes part in no round with it until you
# approve the job again, and "approve" above covers no job of such a list of sites.
# accept: the consortium's word is enough.
joins: wait

# What all jobs together may cost, for ever. A job that would cost more in all its
# rounds is not approved, and a round that would is refused. Privacy per patient and
# per hospital are different promises and counted apart.
budget:
  patient: {epsilon: 8, delta: 1e-5}
  hospital: {epsilon: 8, delta: 1e-5}
`

// ParseRules reads a site's rules.
func ParseRules(data []byte) (Rules, error) {
	r := Rules{Joins: JoinsWait}
	if err := readYAML(data, &r); err != nil {
		return Rules{}, fmt.Errorf("consortium: reading the site's rules: %w", err)
	}
	if r.Joins != JoinsWait && r.Joins != JoinsAccept {
		return Rules{}, fmt.Errorf("consortium: reading the site's rules: %w: joins: %q: want %s or %s", ErrPolicy, r.Joins, JoinsWait, JoinsAccept)
	}
	if err := checkStatements(r.RequirePrivacy); err != nil {
		return Rules{}, fmt.Errorf("consortium: reading the site's rules: %w: require_privacy: %w", ErrPolicy, err)
	}
	for _, l := range []*Limit{r.Budget.Patient, r.Budget.Hospital} {
		if l != nil && (!(l.Epsilon >= 0) || !(l.Delta > 0) || l.Delta >= 1 || math.IsInf(l.Epsilon, 0)) {
			return Rules{}, fmt.Errorf("consortium: reading the site's rules: %w: budget: ε %g, δ %g: want ε from 0, and δ above 0 and below 1", ErrPolicy, l.Epsilon, l.Delta)
		}
	}
	if a := r.Approve; a != nil {
		if a.MaxDelta == nil {
			a.MaxDelta = &MaxDelta{defaultDelta, defaultDelta}
		}
		if err := a.MaxDelta.check(); err != nil {
			return Rules{}, fmt.Errorf("consortium: reading the site's rules: %w: approve: %w", ErrPolicy, err)
		}
	}
	if a := r.Approve; a != nil && (a.MaxRounds < 0 || !(a.MaxEpsilon >= 0)) {
		return Rules{}, fmt.Errorf("consortium: reading the site's rules: %w: approve: %d rounds, ε %g: want numbers from 0", ErrPolicy, a.MaxRounds, a.MaxEpsilon)
	}
	return r, nil
}

// Allow returns an error that wraps ErrPolicy for a job that no approval makes up
// for.
func (r Rules) Allow(j Job) error {
	for _, s := range r.RequirePrivacy {
		if !j.protects(s) {
			return fmt.Errorf("consortium: holding job %s against the site's rules: %w: no differential privacy per %s is stated", j.Run, ErrPolicy, s)
		}
	}
	return nil
}

// Approves says why the standing approval does not cover a job; empty if it
// does.
func (r Rules) Approves(j Job) string {
	a := r.Approve
	switch {
	case a == nil || a.MaxDelta == nil:
		return "every job is for a person to decide"
	case !slices.Contains(a.Scientists, j.Scientist):
		return fmt.Sprintf("scientist %q is not listed", j.Scientist)
	case !slices.Contains(a.Purposes, j.Purpose):
		return fmt.Sprintf("purpose %q is not listed", j.Purpose)
	case !slices.Contains(a.Algorithms, j.Terms.Algorithm):
		return fmt.Sprintf("algorithm %s is not listed", j.Terms.Algorithm)
	case len(a.Models) > 0 && !slices.Contains(a.Models, j.Model.SHA256):
		return fmt.Sprintf("model %s is not listed", j.Model.SHA256)
	case j.Terms.Rounds > a.MaxRounds:
		return fmt.Sprintf("%d rounds, at most %d go without a person", j.Terms.Rounds, a.MaxRounds)
	case j.Trainer != nil:
		return "the job brings code of its own"
	case j.Terms.DP == nil && !a.WithoutPrivacy:
		return "it states no differential privacy"
	case j.Terms.DP != nil && j.Terms.DP.Epsilon > a.MaxEpsilon:
		return fmt.Sprintf("ε %g per %s, at most %g goes without a person", j.Terms.DP.Epsilon, j.Terms.DP.Unit, a.MaxEpsilon)
	case j.Terms.DP != nil && j.Terms.DP.Delta > a.MaxDelta.of(j.Terms.DP.Unit):
		return fmt.Sprintf("δ %g per %s, at most %g goes without a person", j.Terms.DP.Delta, j.Terms.DP.Unit, a.MaxDelta.of(j.Terms.DP.Unit))
	}
	for _, task := range j.Terms.Tasks {
		if !slices.Contains(a.Tasks, task) {
			return fmt.Sprintf("the question %q is not listed", task)
		}
	}
	return ""
}

// readYAML decodes strictly. What is refused for its depth would make the parser
// recurse.
func readYAML(data []byte, into any) error {
	if len(data) > maxPolicy {
		return fmt.Errorf("%w: %d bytes, at most %d are allowed", ErrPolicy, len(data), maxPolicy)
	}
	depth := 0
	dashes := 0
	for _, c := range data {
		switch c {
		case '[', '{':
			depth++
		case '-', '?', ':':
			dashes++
		case ' ', '\t':
		default:
			dashes = 0
		}
		if c == '&' || c == '*' && dashes > 0 || depth > 256 || dashes > 64 {
			return fmt.Errorf("%w: it is not plain enough: no anchors, and no deep nesting", ErrPolicy)
		}
	}
	err := yaml.NewDecoder(bytes.NewReader(data), yaml.Strict()).Decode(into)
	if err != nil && !errors.Is(err, io.EOF) {
		text, _, _ := strings.Cut(yaml.FormatError(err, false, false), "\n")
		return fmt.Errorf("%w: %s", ErrPolicy, text)
	}
	return nil
}
