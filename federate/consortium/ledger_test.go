package consortium

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie/dp"
	"github.com/vigie/vigie/federate"
)

// private is a job whose run states privacy per patient.
func (n *north) private(run string, change func(*federate.DP)) []byte {
	n.t.Helper()
	r, err := n.consortium.roster()
	if err != nil {
		n.t.Fatal(err)
	}
	j := Job{Version: 1, Run: run, Consortium: "north", Policy: r.Policy, Scientist: "Dr Example", Purpose: "bright sides", Time: time.Now().UTC(),
		Terms: federate.DefaultTerms(federation("north", run)), Model: Model{Bytes: 10, Example: []int64{4}, Outputs: 2}}
	j.Terms.Rounds, j.Terms.Algorithm = 20, federate.FedSGD
	j.Terms.DP = &federate.DP{Unit: federate.Patient, Epsilon: 3, Delta: 1e-5, Clip: 1, Rate: 0.1, Lot: 100, Noise: 1.5, Honest: 2, Colluding: 0, Attempts: 20}
	if change != nil {
		change(j.Terms.DP)
	}
	document, err := sign(n.consortium.signer, JobType, j)
	if err != nil {
		n.t.Fatal(err)
	}
	return document
}

func TestAJobThatTheBudgetDoesNotHoldIsRefusedAndSoIsTheRoundThatGoesOverIt(t *testing.T) {
	n := newNorth(t, nil)
	s := n.join("lyon")
	none := func(string) error { return nil }
	small, err := s.receive(n.private("small", nil), none)
	if err != nil {
		t.Fatal(err)
	}
	large, err := s.receive(n.private("large", func(d *federate.DP) { d.Noise = 0.3 }), none)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := dp.PLD{}.Compose([]dp.Run{{Sigma: 1.5, Rate: 0.1, Steps: 20}}, 1e-5)
	if err != nil || whole > 2 {
		t.Fatalf("twenty rounds cost %g, %v", whole, err)
	}
	n.rules(s, "budget: {patient: {epsilon: 2, delta: 1e-5}}\n")
	if _, err := s.Decide("large", Approved, "Dr Owner", ""); !errors.Is(err, ErrBudget) {
		t.Errorf("a job beyond the budget was approved: %v", err)
	}
	if d, _, err := s.standing(large); err != nil || d == nil || d.Verdict != Refused || !strings.Contains(d.Reason, "budget") {
		t.Errorf("a job beyond the budget is %+v, %v", d, err)
	}
	if _, err := s.Decide("small", Approved, "Dr Owner", ""); err != nil {
		t.Fatal(err)
	}

	l, err := s.openLedger()
	if err != nil {
		t.Fatal(err)
	}
	charge := func(j signedJob, round uint64, unit federate.Unit) error {
		return ledgerOf{l, j}.Charge(t.Context(), federate.Spending{Federation: j.Terms.Federation, Unit: unit, Round: round, Run: dp.Run{Sigma: 1.5, Rate: 0.1, Steps: 1}})
	}
	paid := uint64(0)
	for round := uint64(1); round < 1000; round++ {
		err := charge(small, round, federate.Patient)
		if errors.Is(err, federate.ErrBudget) && errors.Is(err, ErrBudget) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		paid = round
	}
	// an independent search for the same number
	fits := 0
	for steps := 1; steps < 1000; steps++ {
		spent, err := dp.PLD{Interval: 1e-3}.Compose([]dp.Run{{Sigma: 1.5, Rate: 0.1, Steps: steps}}, 1e-5)
		if err != nil {
			t.Fatal(err)
		}
		if spent > 2 {
			break
		}
		fits = steps
	}
	if int(paid) != fits || paid < 20 {
		t.Errorf("%d rounds were paid for, the budget holds %d", paid, fits)
	}
	rules, err := s.Rules()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.fits(small, rules.Budget); !errors.Is(err, ErrBudget) {
		t.Errorf("the next round would begin: %v", err)
	}
	if err := charge(small, paid, federate.Patient); err != nil {
		t.Errorf("a round that was paid for, after the process died: %v", err)
	}
	if err := charge(small, 2000, federate.Hospital); err != nil {
		t.Errorf("the other unit's budget has no limit here: %v", err)
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	if l, err = s.openLedger(); err != nil {
		t.Fatal(err)
	}
	defer l.close()
	if err := charge(small, paid+1, federate.Patient); !errors.Is(err, ErrBudget) {
		t.Errorf("a restart has made room: %v", err)
	}
	a, err := s.Ledger()
	if err != nil {
		t.Fatal(err)
	}
	if a.Head.Entries != paid+1 || a.Spent[0].Epsilon > 2 || a.Spent[0].Epsilon < 1.8 || a.Spent[0].Runs[0].Steps != fits {
		t.Errorf("the accounts say %+v", a.Spent)
	}
	var out bytes.Buffer
	if err := a.Write(&out); err != nil || !strings.Contains(out.String(), "of 2\n") {
		t.Errorf("%v: %s", err, &out)
	}
}

func TestALineThatIsChangedLeftOutOrPutInBreaksTheChain(t *testing.T) {
	n := newNorth(t, nil)
	s := n.join("lyon")
	c, err := openChain[Left](s.path(leftFile), leftName, s.Name, s.signer, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := c.add(Left{Kind: "order", Run: "r", Round: uint64(i), Bytes: 7, SHA: DigestOf([]byte{byte(i)})}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(s.path(leftFile))
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))[:5]
	other, err := s.openLedger()
	if err != nil {
		t.Fatal(err)
	}
	if err := other.enter(Charge{Federation: "north.r", Round: 1}); err != nil {
		t.Fatal(err)
	}
	other.close()
	ledger, err := os.ReadFile(s.path(ledgerFile))
	if err != nil {
		t.Fatal(err)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	broken := map[string][]byte{
		"one left out":             join(lines[0], lines[1], lines[3], lines[4]),
		"the first left out":       join(lines[1:]...),
		"two exchanged":            join(lines[0], lines[2], lines[1], lines[3], lines[4]),
		"one twice":                join(lines[0], lines[1], lines[1], lines[2], lines[3], lines[4]),
		"one of the ledger put in": join(lines[0], ledger),
		"one cut inside":           join(lines[0], lines[1][:40], []byte("\n"), lines[2]),
	}
	for at := range len(lines[2]) - 1 {
		if at%53 == 0 {
			changed := slices.Clone(lines[2])
			changed[at] ^= 1
			broken["a changed byte"] = join(lines[0], lines[1], changed, lines[3], lines[4])
			if err := s.reads(t, broken["a changed byte"]); !errors.Is(err, ErrChain) {
				t.Errorf("byte %d changed: %v", at, err)
			}
		}
	}
	for what, data := range broken {
		if err := s.reads(t, data); !errors.Is(err, ErrChain) {
			t.Errorf("%s: %v", what, err)
		}
	}
	// the power went while the next entry was written: nothing of it had left
	if err := s.reads(t, join(whole, lines[1][:30])); err != nil {
		t.Errorf("a torn last line: %v", err)
	}
	if c, err = openChain[Left](s.path(leftFile), leftName, s.Name, s.signer, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.add(Left{Kind: "order"}); err != nil {
		t.Fatal(err)
	}
	c.close()
	if log, err := s.Left(); err != nil || log.Head.Entries != 6 {
		t.Errorf("%d entries, %v", log.Head.Entries, err)
	}
}

func (s *Site) reads(t *testing.T, data []byte) error {
	t.Helper()
	if err := os.WriteFile(s.path(leftFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.Left()
	return err
}

func TestPrivacyIsLimitedInItsDeltaForEitherUnitAndInWhomItCountsOn(t *testing.T) {
	n := newNorth(t, func(p *Policy) { p.MaxDelta.Hospital = 1e-4 })
	s := n.join("lyon")
	job := func(run string, change func(*federate.DP)) Job {
		t.Helper()
		j, _, _, err := verify[Job](n.private(run, change), JobType, n.consortium.Key())
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	for what, c := range map[string]struct {
		change           func(*federate.DP)
		policy, standing bool
	}{
		"as it should be":           {nil, true, true},
		"a delta that gives all":    {func(d *federate.DP) { d.Epsilon, d.Delta = 1, 0.9 }, false, false},
		"a hair more":               {func(d *federate.DP) { d.Delta = 1.01e-5 }, false, false},
		"what hospitals may have":   {func(d *federate.DP) { d.Delta = 1e-4 }, false, false},
		"of a hospital":             {func(d *federate.DP) { d.Unit, d.Delta = federate.Hospital, 1e-4 }, true, true},
		"of a hospital, and more":   {func(d *federate.DP) { d.Unit, d.Delta = federate.Hospital, 2e-4 }, false, true},
		"of a hospital, far beyond": {func(d *federate.DP) { d.Unit, d.Delta = federate.Hospital, 1e-3 }, false, false},
	} {
		j := job("a", c.change)
		if err := s.policy.Allows(j); (err == nil) != c.policy || err != nil && (!errors.Is(err, ErrPolicy) || !strings.Contains(err.Error(), "δ")) {
			t.Errorf("%s: the policy says %v", what, err)
		}
		rules, err := ParseRules([]byte("approve: {scientists: [Dr Example], purposes: [bright sides], algorithms: [fedsgd], max_rounds: 50, max_epsilon: 3, max_delta: {patient: 1e-5, hospital: 5e-4}}\n"))
		if err != nil {
			t.Fatal(err)
		}
		if why := rules.Approves(j); (why == "") != c.standing {
			t.Errorf("%s: the standing approval says %q", what, why)
		}
	}
	rules, err := ParseRules([]byte("approve: {scientists: [Dr Example], purposes: [bright sides], algorithms: [fedsgd], max_rounds: 50, max_epsilon: 3}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if why := rules.Approves(job("a", func(d *federate.DP) { d.Delta = 2e-5 })); !strings.Contains(why, "δ") {
		t.Errorf("rules that say nothing of it let it through: %q", why)
	}
	for _, text := range []string{"approve: {max_delta: {patient: 1}}", "approve: {max_delta: {hospital: -1}}"} {
		if _, err := ParseRules([]byte(text)); !errors.Is(err, ErrPolicy) {
			t.Errorf("%s: %v", text, err)
		}
	}

	j := job("a", nil) // 100 expected at a rate of 0.1: 1000 patients in all
	for patients, fits := range map[int]bool{1: true, 1000: true, 1001: false} {
		if err := enough(j, ward(patients)); (err == nil) != fits || err != nil && !errors.Is(err, ErrPolicy) {
			t.Errorf("%d patients: %v", patients, err)
		}
	}
	received, err := s.receive(n.private("few", func(d *federate.DP) { d.Lot = 1 }), func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{Site: s, RunOptions: RunOptions{Logger: slog.New(slog.DiscardHandler)}}
	r := &siteRun{job: received, trainer: ward(11)}
	if _, err := w.ready(t.Context(), r, federate.Order{Step: federate.StepTrain}); !errors.Is(err, ErrPolicy) {
		t.Errorf("a site with 11 patients follows a run of 10: %v", err)
	}
}

// ward is a trainer with so many patients.
type ward int

func (w ward) Size() (int, int) { return 4, 4 }
func (w ward) Examples() int    { return int(w) }
func (w ward) Patients() int    { return int(w) }
func (w ward) Train(context.Context, federate.Work) (int, float64, error) {
	return 0, 0, errors.New("it does not")
}
func (w ward) Gradients(context.Context, federate.Work, []int, func([]float32) error) error {
	return errors.New("it does not")
}
