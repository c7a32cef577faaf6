package job

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/attack/privacy"
	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/robust"
	"github.com/vigie/vigie/federate/simulate"
	"github.com/vigie/vigie/keys/dsse"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// denseFile is a model of one hidden layer for images of 8×8.
func denseFile(t *testing.T, hidden int) string {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 7))
	random := func(n int, scale float64) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(scale * (2*rng.Float64() - 1))
		}
		return v
	}
	b := onnx.NewBuilder(17)
	n := onnx.Dim{Value: -1, Param: "n"}
	x := b.Op("Flatten", []string{b.Input("x", onnx.Float, n, onnx.Dim{Value: 1}, onnx.Dim{Value: side}, onnx.Dim{Value: side})})
	x = b.Op("Gemm", []string{x, b.Weight("w", []int64{int64(hidden), side * side}, random(hidden*side*side, 0.125)), b.Weight("b", []int64{int64(hidden)}, random(hidden, 0.125))}, onnx.IntAttribute("transB", 1))
	b.Node(&onnx.Node{OpType: "Gemm", Inputs: []string{b.Op("Relu", []string{x}), b.Weight("head", []int64{2, int64(hidden)}, random(2*hidden, 0.1)), b.Weight("shift", []int64{2}, random(2, 0.1))},
		Outputs: []string{"z"}, Attributes: []onnx.Attribute{onnx.IntAttribute("transB", 1)}}, 1)
	b.Output("z", onnx.Float, n, onnx.Dim{Value: 2})
	return save(t, b)
}

// smallAudit is of three hospitals that have four images each.
func smallAudit(t *testing.T, attacks ...string) Audit {
	t.Helper()
	terms := federate.DefaultTerms("north")
	terms.Batch, terms.MaxExamples = 4, 4
	return Audit{Common: Common{Model: denseFile(t, 96), Data: Data{Data: picturesFile(t, map[string]int{"train": 60, "val": 40}, 0.1, 3)}, Seed: 5},
		Terms: terms, Attacks: attacks, Trials: 48, Compared: 48, Searches: 3, Steps: 200, Bins: 96, People: 30, Shadows: 6, MemRounds: 2}
}

func find(t *testing.T, r *AuditReport, attack, means string, p Protection, view string) AuditFigure {
	t.Helper()
	at := slices.IndexFunc(r.Figures, func(f AuditFigure) bool {
		return f.Attack == attack && f.Means == means && f.Protection == p && f.View == view
	})
	if at < 0 {
		t.Fatalf("no figure of %s %s against %s: %+v", attack, means, p, r.Figures)
	}
	return r.Figures[at]
}

func TestUpdatesThatNothingHidesGiveTheirImagesAndMaskedOnesGiveNone(t *testing.T) {
	needsRuntime(t)
	r, err := smallAudit(t, AuditLinear, AuditImprint, AuditOptimise).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range []struct {
		attack, means string
		least         int // hits of those that nothing hides
	}{{AuditLinear, "", 36}, {AuditImprint, MeansWeights, 36}, {AuditImprint, MeansLayer, 36}, {AuditOptimise, "", 1}} {
		bare := find(t, r, a.attack, a.means, Unprotected, viewUpdate)
		if bare.Hits.Hits < a.least || bare.NeverHits != 0 {
			t.Errorf("%s %s: %d of %d hits, want %d; %d of %d that were never there", a.attack, a.means, bare.Hits.Hits, bare.Trials, a.least, bare.NeverHits, bare.NeverTrials)
		}
		sum := find(t, r, a.attack, a.means, SecureSum, viewSum)
		if sum.Rate.Value >= bare.Rate.Value || sum.NeverHits != 0 {
			t.Errorf("%s %s: %v of a sum, %v of one update; %d that were never there", a.attack, a.means, sum.Rate.Value, bare.Rate.Value, sum.NeverHits)
		}
		if a.attack == AuditOptimise {
			continue
		}
		for p, view := range map[Protection]string{Private: viewNoisy, SumAndDP: viewSum} {
			if noisy := find(t, r, a.attack, a.means, p, view); noisy.Hits.Hits != 0 || noisy.Trials < 48 {
				t.Errorf("%s %s: %d of %d hits against %s", a.attack, a.means, noisy.Hits.Hits, noisy.Trials, p)
			}
		}
		if masked := find(t, r, a.attack, a.means, SecureSum, viewMasked); masked.Hits.Hits != 0 || masked.Trials < 48 {
			t.Errorf("%s %s: %d of %d hits of masked updates", a.attack, a.means, masked.Hits.Hits, masked.Trials)
		}
		if sum.Images != 12 || sum.Trials < 48 {
			t.Errorf("%s %s: a sum of %d images, %d trials", a.attack, a.means, sum.Images, sum.Trials)
		}
	}
	// A secure sum of few images is a batch like any other: the audit says so.
	if sum := find(t, r, AuditImprint, MeansWeights, SecureSum, viewSum); sum.Hits.Hits < 12 || r.Passed || !strings.Contains(r.Verdict, "imprint by weights reconstructs") && sum.Trials >= r.Limits.Trials {
		t.Errorf("%d hits of the sum, passed %v: %v", sum.Hits.Hits, r.Passed, r.Failures)
	}
	again, err := smallAudit(t, AuditLinear).Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, f := range again.Figures {
		if f.View == viewMasked {
			continue // masks are of fresh keys
		}
		if got, want := mustJSON(t, f), mustJSON(t, r.Figures[i]); got != want {
			t.Errorf("the same seed gave\n%s\nand\n%s", got, want)
		}
	}
	var text bytes.Buffer
	if err := r.Write(&text); err != nil || !strings.Contains(text.String(), "NOT PASSED") || !strings.Contains(text.String(), "ÉCHEC") {
		t.Errorf("%v: %s", err, text.String())
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestTheSitesRefuseEachMoveOfALyingServerForWhatItIs(t *testing.T) {
	needsRuntime(t)
	o := smallAudit(t)
	if err := o.check(); err != nil {
		t.Fatal(err)
	}
	v := &victim{}
	n, _, err := o.trainable(t.Context(), v, o.Split, o.Aux)
	if err != nil {
		t.Fatal(err)
	}
	c := newConsortium(o.Terms, 5, 1)
	s, err := newScene("", n, o.Terms, v.set, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.engine.Close()
	got, err := c.tryMoves(t.Context(), s.engine, s.start, v.set, 1)
	if err != nil {
		t.Fatal(err)
	}
	for name, why := range map[string]string{
		"inserted-layer": "weights of another model", "other-weights": "other weights than the round began with",
		"small-group": "want 4 of 5 to be asked", "few-partners": "a sum of 1 sites; the terms want 4 of 5 in it", "only-survivor": "a sum of 1 sites; the terms want 4 of 5 in it",
		"few-survivors": "a sum of 3 sites; the terms want 4 of 5 in it", "two-sums": "was opened among other sites", "same-round": "does not begin again", "altered-weights": "",
	} {
		at := slices.IndexFunc(got, func(m Move) bool { return m.Name == name })
		if at < 0 {
			t.Errorf("%s was not tried", name)
			continue
		}
		if m := got[at]; m.Refused != (why != "") || !strings.Contains(m.Why, why) {
			t.Errorf("%s: refused %v, %q", name, m.Refused, m.Why)
		}
	}
	if len(got) != 9 {
		t.Errorf("%d moves", len(got))
	}
}

func TestMembersOfFederationsThatLearnByHeartAreRecognised(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED in short mode: it trains federations")
	}
	needsRuntime(t)
	o := smallAudit(t, AuditMembership)
	o.Terms.Epochs, o.Terms.Rate, o.Terms.FinalRate, o.Terms.Decay, o.Terms.Rounds = 60, 0.03, 0.03, 0, 3
	o.Common.Data.Data = picturesFile(t, map[string]int{"train": 60, "val": 20}, 1, 4) // labels at random: nothing but hearts
	o.Terms.Batch, o.Batch, o.People, o.MemRounds = 5, 5, 60, 3
	r, err := o.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Members) != 4 {
		t.Fatalf("%d views", len(r.Members))
	}
	for _, m := range r.Members[2:] {
		if m.AUC.Low > 0.5 {
			t.Errorf("%s, %s: AUC %v", m.Protection, m.View, m.AUC)
		}
	}
	for _, m := range r.Members[:2] {
		if m.AUC.Low <= 0.55 || m.ROC.Members+m.NonMembers != 6*60 {
			t.Errorf("%s, %s: AUC %v (loss %v) of %d members and %d others", m.Protection, m.View, m.AUC, m.Loss.AUC, m.ROC.Members, m.NonMembers)
		}
	}
	if r.Members[0].AUC.Value <= r.Members[1].AUC.Value {
		t.Errorf("a site's own model gives %v, that of all %v", r.Members[0].AUC.Value, r.Members[1].AUC.Value)
	}
}

func TestARunMayStartByTheAuditOfItsOwnPrivateTermsAndByNoOther(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED in short mode: it trains federations")
	}
	needsRuntime(t)
	o := smallAudit(t)
	o.Terms = simulate.PrivateTerms(o.Terms, federate.Patient)
	o.Terms.Rounds, o.Terms.Augmentation = 20, train.Augmentation{}
	o.Terms.DP, o.Plan = &federate.DP{Unit: federate.Patient, Epsilon: 8, Rate: 0.5, Colluding: -1}, true
	o.Data.Data = picturesFile(t, map[string]int{"train": 200, "val": 40}, 0.1, 3)
	o.People = 200
	o.Limits = AuditLimits{Trials: 40, Reconstructed: 0.08, Membership: 0.2}
	r, err := o.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r.Protocol != SumAndDP || !r.Passed {
		t.Fatalf("%s: %s", r.Protocol, r.Verdict)
	}
	if sum := find(t, r, AuditImprint, MeansWeights, SecureSum, viewSum); sum.Hits.Hits == 0 {
		t.Errorf("without noise nothing was found either: the audit shows nothing: %+v", sum)
	}
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	signed, err := r.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	terms, err := hex.DecodeString(r.Terms)
	if err != nil {
		t.Fatal(err)
	}
	trusted := []ed25519.PublicKey{key.Public().(ed25519.PublicKey)}
	read, err := VerifyAudit(signed, trusted, r.Digest, [32]byte(terms), o.Limits)
	if err != nil {
		t.Fatal(err)
	}
	if mustJSON(t, read) != mustJSON(t, r) {
		t.Error("what was read is not what was signed")
	}
	if _, err := VerifyAudit(signed, trusted, r.Digest, TermsDigest(federate.DefaultTerms("north")), o.Limits); !errors.Is(err, ErrAudit) {
		t.Errorf("other terms: %v", err)
	}
	if _, err := VerifyAudit(signed, trusted, r.Digest, [32]byte(terms), DefaultAuditLimits()); !errors.Is(err, ErrAudit) {
		t.Errorf("limits that so few trials cannot keep to: %v", err)
	}
}

func TestPartsThatStayAtTheirSitesAreNoPartOfWhatIsAttacked(t *testing.T) {
	needsRuntime(t)
	o := smallAudit(t, AuditLinear, AuditImprint, AuditOptimise)
	o.Terms.Personal, o.Terms.GroupSize, o.Terms.Rule = []federate.Part{federate.HeadPart}, 3, robust.Median
	o.Sites, o.Trials, o.Compared, o.Searches = 6, 24, 24, 1
	r, err := o.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if f := find(t, r, AuditLinear, "", SecureSum, viewSum); f.Images != 12 {
		t.Errorf("a sum of a group is of %d images", f.Images)
	}
	if r.Variables != 96*(side*side+1) || r.Without[string(Private)] == "" || r.Without[AuditImprint+"/"+MeansWeights] == "" {
		t.Errorf("%d variables, without %v", r.Variables, r.Without)
	}
}

// passed is a report that keeps to the limits.
func passed(t testing.TB, terms [32]byte) *AuditReport {
	r := &AuditReport{Head: Head{Attack: "federation", Digest: "sha256:ab12", Seed: 1}, Protocol: SecureSum, Limits: DefaultAuditLimits(), Without: map[string]string{AuditLinear: "no linear layer"}}
	r.Terms = hex.EncodeToString(terms[:])
	for _, m := range moves {
		r.Moves = append(r.Moves, Move{Name: m.name, Refused: !m.undetectable, Expected: !m.undetectable})
	}
	r.Figures = []AuditFigure{
		{Attack: AuditImprint, Means: MeansWeights, Protection: SecureSum, View: viewSum, Hits: privacy.Hits{Trials: 30_000}},
		{Attack: AuditOptimise, Protection: SecureSum, View: viewSum, Hits: privacy.Hits{Trials: 16}},
		{Attack: AuditImprint, Means: MeansLayer, Protection: SecureSum, View: viewSum, Refused: true, Hits: privacy.Hits{Trials: 48, Hits: 40}},
	}
	rate := privacy.Rate{FPR: 0.01, Resolved: true}
	rate.TPR.High = 0.02
	roc := &privacy.ROC{Members: 500, NonMembers: 500, Rates: []privacy.Rate{rate}}
	r.Members = []AuditMember{{Protection: SecureSum, View: viewGlobal, ROC: roc, Loss: roc}}
	r.judge()
	if !r.Passed {
		t.Fatalf("%v", r.Failures)
	}
	return r
}

func TestAnAuditLetsARunStartOnlyAsItWasSignedAndForWhatItWasMade(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	other := ed25519.NewKeyFromSeed(slices.Repeat([]byte{1}, 32))
	trusted := []ed25519.PublicKey{other.Public().(ed25519.PublicKey), key.Public().(ed25519.PublicKey)}
	terms := TermsDigest(federate.DefaultTerms("north"))
	sign := func(r *AuditReport) []byte {
		data, err := r.Sign(key)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	good := sign(passed(t, terms))
	limits := DefaultAuditLimits()
	if _, err := VerifyAudit(good, trusted, "SHA256:ab12", terms, limits); err != nil {
		t.Fatal(err)
	}
	// A report that says itself that it is good, with looser limits, is judged anew.
	change := func(f func(*AuditReport)) []byte {
		r := passed(t, terms)
		f(r)
		r.Passed, r.Failures = true, nil
		return sign(r)
	}
	for what, data := range map[string][]byte{
		"hits":               change(func(r *AuditReport) { r.Figures[0].Hits.Hits = 1; r.Limits.Reconstructed = 1 }),
		"fewer trials":       change(func(r *AuditReport) { r.Figures[0].Trials = 29_000; r.Limits.Trials = 1 }),
		"an attack left out": change(func(r *AuditReport) { r.Figures = r.Figures[1:] }),
		"an excuse": change(func(r *AuditReport) {
			r.Figures = append(r.Figures[:1], r.Figures[2:]...)
			r.Without[AuditOptimise] = "no time"
		}),
		"no inserted layer": change(func(r *AuditReport) { r.Figures = r.Figures[:2] }),
		"weights not known to": change(func(r *AuditReport) {
			r.Figures = r.Figures[1:]
			r.Without[AuditImprint+"/"+MeansWeights] = "a convolution"
		}),
		"a layer not refused":   change(func(r *AuditReport) { r.Moves[0].Refused = false }),
		"another protection":    change(func(r *AuditReport) { r.Figures[0].Protection = SumAndDP }),
		"another view":          change(func(r *AuditReport) { r.Figures[0].View = viewMasked }),
		"no membership":         change(func(r *AuditReport) { r.Members = nil }),
		"named members":         change(func(r *AuditReport) { r.Members[0].Rates[0].TPR.High = 0.2 }),
		"too few people":        change(func(r *AuditReport) { r.Members[0].Rates[0].Resolved = false }),
		"obeying sites":         change(func(r *AuditReport) { r.Moves[3].Refused = false }),
		"a move left out":       change(func(r *AuditReport) { r.Moves = r.Moves[1:] }),
		"another move's name":   change(func(r *AuditReport) { r.Moves[0].Name = r.Moves[1].Name }),
		"no real protection":    change(func(r *AuditReport) { r.Protocol = Unprotected }),
		"a promise that is not": change(func(r *AuditReport) { r.Protocol = SumAndDP }),
		"searches that hit":     change(func(r *AuditReport) { r.Figures[1].Hits.Hits = 8 }),
		"more hits than trials": change(func(r *AuditReport) { r.Figures[0].Hits.Hits = 30_001 }),
	} {
		if _, err := VerifyAudit(data, trusted, "sha256:ab12", terms, limits); !errors.Is(err, ErrAudit) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := VerifyAudit(good, trusted, "sha256:ab13", terms, limits); !errors.Is(err, ErrAudit) {
		t.Errorf("another model: %v", err)
	}
	altered := federate.DefaultTerms("north")
	altered.Federation, altered.Seed, altered.Deadline = "north.run-2", 7, 1
	if TermsDigest(altered) != terms {
		t.Error("another run under the same terms needs another audit")
	}
	altered.Rounds++
	if _, err := VerifyAudit(good, trusted, "sha256:ab12", TermsDigest(altered), limits); !errors.Is(err, ErrAudit) {
		t.Errorf("other terms: %v", err)
	}
	for _, keys := range [][]ed25519.PublicKey{nil, trusted[:1]} {
		if _, err := VerifyAudit(good, keys, "sha256:ab12", terms, limits); !errors.Is(err, ErrAudit) || !errors.Is(err, dsse.ErrSignature) {
			t.Errorf("keys %x: %v", keys, err)
		}
	}
	if _, err := VerifyAudit(bytes.Repeat([]byte(" "), mostAudit+1), trusted, "sha256:ab12", terms, limits); !errors.Is(err, ErrAudit) {
		t.Errorf("too long: %v", err)
	}
	// Any byte of the payload or the signature.
	var envelope dsse.Envelope
	if err := json.Unmarshal(good, &envelope); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(envelope.Payload); i += 7 {
		bad := envelope
		bad.Payload = slices.Clone(envelope.Payload)
		bad.Payload[i] ^= 1
		if _, err := VerifyAudit([]byte(mustJSON(t, bad)), trusted, "sha256:ab12", terms, limits); !errors.Is(err, dsse.ErrSignature) {
			t.Fatalf("byte %d of the payload: %v", i, err)
		}
	}
}

func TestNoHitsInThirtyThousandTrialsShowAHundredthOfAPercent(t *testing.T) {
	if high := privacy.AtMost(0, 30_000); high > 1e-4 || high < 0.99e-4 {
		t.Errorf("0 of 30,000: at most %v", high)
	}
	if high := privacy.AtMost(0, 29_000); high <= 1e-4 {
		t.Errorf("0 of 29,000: at most %v", high)
	}
	if privacy.AtMost(3, 3) != 1 || privacy.AtMost(0, 0) != 1 {
		t.Error("nothing is known of all hits, or of no trials")
	}
}

func TestAuditsThatCannotBeMadeAreRefusedBeforeAnythingRuns(t *testing.T) {
	for what, change := range map[string]func(*Audit){
		"an unknown attack":        func(o *Audit) { o.Attacks = []string{"magic"} },
		"too few sites":            func(o *Audit) { o.Sites = 2 },
		"a similarity beyond 1":    func(o *Audit) { o.Limit = 2 },
		"limits of nothing":        func(o *Audit) { o.Limits = AuditLimits{Trials: 1} },
		"more rounds than agreed":  func(o *Audit) { o.MemRounds = o.Terms.Rounds + 1 },
		"more images than data":    func(o *Audit) { o.Batch = 30 },
		"no model":                 func(o *Audit) { o.Model = "" },
		"few shadow federations":   func(o *Audit) { o.Shadows = 3 },
		"terms that cannot be met": func(o *Audit) { o.Terms.Minimum = 2 },
	} {
		o := smallAudit(t)
		change(&o)
		if _, err := o.Run(t.Context()); !errors.Is(err, ErrAsk) && !errors.Is(err, federate.ErrTerms) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzAudit(f *testing.F) {
	terms := TermsDigest(federate.DefaultTerms("north"))
	f.Add([]byte(`{"protocol": "secure-sum", "figures": [{"attack": "linear", "protection": "secure-sum", "view": "the opened sum", "trials": 3, "hits": 4}]}`))
	f.Add([]byte(`{"protocol": "secure-sum", "membership": [{"protection": "secure-sum", "rates": [{"fpr": 0.01, "tpr": {"low": 2}}]}]}`))
	f.Add([]byte(`{"protocol": "dp"}`))
	f.Add([]byte(`{} {}`))
	data, err := json.Marshal(passed(f, terms))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	limits := DefaultAuditLimits()
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, err := parseAudit(payload)
		if err != nil {
			return
		}
		if failures := limits.judge(r); len(failures) == 0 {
			for _, figure := range r.Figures {
				if figure.Protection == r.Protocol && figure.View == viewSum && figure.Attack == AuditLinear && figure.Hits.Hits > 0 && figure.Trials < 1e4 {
					t.Fatalf("%d hits of %d keep to the limits", figure.Hits.Hits, figure.Trials)
				}
			}
		}
		r.judge()
		if err := r.Write(&bytes.Buffer{}); err != nil {
			t.Fatal(err)
		}
	})
}
