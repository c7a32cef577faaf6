package simulate

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/federate/tabular"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// Hospitals is a simulation of real hospitals, each with a table of its own: a
// site each, and one hospital left out, on which the model is judged.
type Hospitals struct {
	Schema *tabular.Schema
	Tables []*tabular.Hospital
	Hidden []int  // units of the network's hidden layers; none is logistic regression
	Out    string // the hospital that is left out, or a part of its name that no other has; or Each
	Least  int    // rows that a hospital has at least to be counted in the statistics

	Terms    federate.Terms
	Kernels  int    // train.Recipe.Kernels
	Program  string // as Options.Program
	Seed     uint64
	Progress func(FoldRound) // told of every round; may be nil
}

// Each leaves out each hospital in turn.
const Each = "each"

// FoldRound is a round of the federation that one hospital is left out of.
type FoldRound struct {
	federate.Outcome
	Out    string
	Rounds int
}

// HospitalsReport is what came of it.
type HospitalsReport struct {
	Terms     federate.Terms   `json:"terms"`
	Hidden    []int            `json:"hidden"`
	Seed      uint64           `json:"seed"`
	Hospitals []HospitalReport `json:"hospitals"`
	Folds     []Fold           `json:"left_out"`
	// Means over the hospitals left out.
	Federated float64 `json:"federated"`
	Pooled    float64 `json:"pooled"`
	Alone     float64 `json:"alone"` // over those that learnt alone, too
	// Furthest is the largest distance of a federated AUC from the pooled one.
	Furthest float64          `json:"furthest"`
	Traffic  federate.Traffic `json:"bytes"`
	Seconds  float64          `json:"seconds"`
	Memory   int64            `json:"peak_memory_bytes"`
	Epsilon  *float64         `json:"epsilon"` // null: no differential privacy

	// Model is that of the last hospital left out, with its columns.
	Model *onnx.Model `json:"-"`

	Program *federate.Program `json:"trainer,omitempty"` // nil: the engine
}

// HospitalReport is what a hospital has.
type HospitalReport struct {
	Name    string `json:"name"`
	Rows    int    `json:"rows"`
	Counts  []int  `json:"by_class"`
	Outside int    `json:"cells_outside_the_schema"`
}

// Fold is what came of leaving out one hospital: AUCs on its rows, with DeLong's
// intervals.
type Fold struct {
	Out        string              `json:"hospital"`
	Rows       int                 `json:"rows"`
	Statistics *tabular.Statistics `json:"statistics"` // of the others, from the secure sum
	Variables  int                 `json:"variables"`
	Federated  train.Interval      `json:"federated"`
	Pooled     train.Interval      `json:"pooled"` // the others' rows in one place
	// Cost is how much lower the federated AUC is than the pooled one, with the
	// bootstrap's interval over the rows, the same for both.
	Cost  train.Interval `json:"cost"`
	Alone []AloneReport  `json:"alone"`
	Lost  int            `json:"rounds_without_result,omitempty"`
	None  string         `json:"none,omitempty"` // why the hospital judges nothing
}

// AloneReport is what one of the others reaches with its own rows alone.
type AloneReport struct {
	Name string         `json:"name"`
	AUC  train.Interval `json:"auc"`
	None string         `json:"none,omitempty"` // why there is no figure
}

// HospitalTerms are terms that suit tables of up to about a thousand rows. A site
// takes one step a round, over all its rows, so that the sum of the steps is the
// step of all rows in one place: what is learnt is then the same, but for rounding.
func HospitalTerms() federate.Terms {
	t := federate.DefaultTerms("hospitals")
	t.Rounds, t.Batch, t.Rate, t.FinalRate, t.Decay = 100, 1024, 0.5, 1e-3, 1e-2
	t.Augmentation = train.Augmentation{}
	t.Tasks, t.Questions = []federate.Task{federate.TaskStandardise}, 4
	return t
}

// ReadHospitals reads a folder's tables by a schema: every file that ends in .csv
// or .data is a hospital, called as the file.
func ReadHospitals(dir string, s *tabular.Schema) ([]*tabular.Hospital, error) {
	paths, err := tablesOf(dir)
	if err != nil {
		return nil, err
	}
	var out []*tabular.Hospital
	for _, path := range paths {
		h, err := readHospital(path, s)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(out, func(o *tabular.Hospital) bool { return o.Name == h.Name }) {
			return nil, fmt.Errorf("simulate: reading %s: %w: two hospitals are called %q", dir, ErrOptions, h.Name)
		}
		out = append(out, h)
	}
	return out, nil
}

func tablesOf(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("simulate: reading the hospitals' tables: %w", err)
	}
	var paths []string
	for _, e := range entries {
		if ext := strings.ToLower(filepath.Ext(e.Name())); e.Type()&fs.ModeDir == 0 && (ext == ".csv" || ext == ".data") {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("simulate: reading %s: %w: no file ends in .csv or .data", dir, ErrOptions)
	}
	return paths, nil
}

// readHospital gives a hospital a name that a member of a federation can have.
func readHospital(path string, s *tabular.Schema) (*tabular.Hospital, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("simulate: reading a hospital's table: %w", err)
	}
	defer f.Close()
	base := strings.ToLower(strings.TrimSuffix(filepath.Base(path), filepath.Ext(path)))
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, base)
	return s.Read(name, f)
}

// Run simulates.
func (o Hospitals) Run(ctx context.Context) (*HospitalsReport, error) {
	start := time.Now()
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("simulate: %w: %s", ErrOptions, fmt.Sprintf(format, arguments...))
	}
	if o.Schema == nil || len(o.Tables) < 4 {
		return nil, fail("%d hospitals' tables and a schema: want at least 4, so that a sum without one still hides its parts", len(o.Tables))
	}
	if !slices.Contains(o.Terms.Tasks, federate.TaskStandardise) {
		return nil, fail("the terms do not allow %s", federate.TaskStandardise)
	}
	if o.Terms.Personal != nil {
		return nil, fail("a hospital that is left out has nothing of its own to be judged with: leave personal parts out")
	}
	if err := o.Terms.Check(len(o.Tables) - 1); err != nil {
		return nil, err
	}
	r := &HospitalsReport{Terms: o.Terms, Hidden: append([]int{}, o.Hidden...), Seed: o.Seed}
	var out []int
	for i, h := range o.Tables {
		counts := make([]int, len(o.Schema.Label.Classes))
		for _, l := range h.Labels() {
			counts[l]++
		}
		r.Hospitals = append(r.Hospitals, HospitalReport{Name: h.Name, Rows: h.Rows(), Counts: counts, Outside: h.Outside})
		if o.Out == Each || o.Out != "" && strings.Contains(h.Name, o.Out) {
			out = append(out, i)
		}
	}
	if at := slices.IndexFunc(o.Tables, func(h *tabular.Hospital) bool { return h.Name == o.Out }); at >= 0 {
		out = []int{at}
	}
	if len(out) == 0 || o.Out != Each && len(out) > 1 {
		var names []string
		for _, h := range o.Tables {
			names = append(names, h.Name)
		}
		return nil, fail("%d hospitals are called %q: want %s, or one of %s", len(out), o.Out, Each, strings.Join(names, ", "))
	}
	alone, judged := 0, 0
	for _, at := range out {
		if slices.Contains(r.Hospitals[at].Counts, 0) {
			r.Folds = append(r.Folds, Fold{Out: o.Tables[at].Name, Rows: o.Tables[at].Rows(), None: "it has no rows of some class, and judges nothing"})
			continue
		}
		fold, err := o.fold(ctx, r, at)
		if err != nil {
			return nil, fmt.Errorf("simulate: leaving out %q: %w", o.Tables[at].Name, err)
		}
		r.Folds = append(r.Folds, fold)
		judged++
		r.Federated += fold.Federated.Value
		r.Pooled += fold.Pooled.Value
		r.Furthest = max(r.Furthest, math.Abs(fold.Federated.Value-fold.Pooled.Value))
		for _, a := range fold.Alone {
			if a.None == "" {
				r.Alone += a.AUC.Value
				alone++
			}
		}
	}
	if judged == 0 {
		return nil, fail("no hospital that is left out has rows of every class to judge on")
	}
	r.Federated, r.Pooled, r.Alone = r.Federated/float64(judged), r.Pooled/float64(judged), r.Alone/float64(max(1, alone))
	r.Seconds, r.Memory = time.Since(start).Seconds(), peakMemory()
	return r, nil
}

// consortium is the hospitals that are not left out.
type consortium struct {
	members []secagg.Member
	signers []ed25519.PrivateKey
}

func (o Hospitals) fold(ctx context.Context, r *HospitalsReport, at int) (Fold, error) {
	judge := o.Tables[at]
	inside := slices.Delete(slices.Clone(o.Tables), at, at+1)
	slices.SortFunc(inside, func(a, b *tabular.Hospital) int { return strings.Compare(a.Name, b.Name) })
	fold := Fold{Out: judge.Name, Rows: judge.Rows()}
	var c consortium
	rng := rand.New(rand.NewPCG(o.Seed, 0x4e52<<8|uint64(at)))
	for _, h := range inside {
		var seed [ed25519.SeedSize]byte
		for j := range seed {
			seed[j] = byte(rng.Uint32())
		}
		key := ed25519.NewKeyFromSeed(seed[:])
		c.signers = append(c.signers, key)
		c.members = append(c.members, secagg.Member{Name: h.Name, Key: key.Public().(ed25519.PublicKey)})
	}
	// first what all rows come to, then the network for rows so standardised
	var err error
	if fold.Statistics, err = o.standardise(ctx, c, inside); err != nil {
		return fold, err
	}
	sets := make([]*train.Set, len(inside))
	for i, h := range inside {
		if sets[i], err = h.Set(fold.Statistics.Learned); err != nil {
			return fold, err
		}
	}
	judged, engine, err := o.network(fold.Statistics, judge)
	if err != nil {
		return fold, err
	}
	defer engine.Close()
	shop, err := newWorkshop(engine, o.Program)
	if err != nil {
		return fold, err
	}
	defer shop.close()
	initial, trained := engine.Variables()
	fold.Variables = len(initial)
	var links []federate.Link
	for i := range inside {
		trainer, err := shop.trainer(sets[i])
		if err != nil {
			return fold, err
		}
		site, err := federate.NewSite(federate.SiteOptions{Name: inside[i].Name, Terms: o.Terms, Members: c.members, Signer: c.signers[i], Trainer: trainer, Seed: o.Seed<<20 + uint64(i)})
		if err != nil {
			return fold, err
		}
		links = append(links, federate.Direct(site))
	}
	coordinator, err := federate.NewCoordinator(federate.CoordinatorOptions{Terms: o.Terms, Members: c.members, Variables: initial, Trained: trained, Parallel: runtime.GOMAXPROCS(0)})
	if err != nil {
		return fold, err
	}
	defer coordinator.Settle()
	r.Program = shop.program
	failed := 0
	for !coordinator.Done() {
		outcome, err := coordinator.Round(ctx, links)
		if ctx.Err() != nil {
			return fold, ctx.Err()
		}
		r.Traffic.Down += outcome.Bytes.Down
		r.Traffic.Up += outcome.Bytes.Up
		if err != nil {
			fold.Lost++
			if failed++; failed >= 3 {
				return fold, fmt.Errorf("three attempts in a row had no result: %w", err)
			}
			continue
		}
		failed = 0
		if o.Progress != nil {
			o.Progress(FoldRound{outcome, judge.Name, o.Terms.Rounds})
		}
	}
	final := coordinator.Weights().Variables
	federated, err := engine.Logits(ctx, final, judged)
	if err != nil {
		return fold, err
	}
	if fold.Federated, err = judged.AUCInterval(federated, o.Seed); err != nil {
		return fold, err
	}
	if r.Model, err = engine.Model(final); err != nil {
		return fold, err
	}
	if err := train.Describe(r.Model, o.Schema.Label.Names, fold.Statistics.Learned); err != nil {
		return fold, err
	}
	// the others' rows in one place
	pooled, err := o.together(ctx, inside, judge)
	if err != nil {
		return fold, err
	}
	if fold.Pooled, err = judged.AUCInterval(pooled, o.Seed); err != nil {
		return fold, err
	}
	if fold.Cost, err = judged.AUCCost(pooled, federated, 2000, o.Seed); err != nil {
		return fold, err
	}
	for _, h := range inside {
		one := AloneReport{Name: h.Name}
		logits, err := o.together(ctx, []*tabular.Hospital{h}, judge)
		switch {
		case ctx.Err() != nil:
			return fold, ctx.Err()
		case err != nil:
			one.None = err.Error()
		default:
			if one.AUC, err = judged.AUCInterval(logits, o.Seed); err != nil {
				return fold, err
			}
		}
		fold.Alone = append(fold.Alone, one)
	}
	return fold, nil
}

// standardise asks the hospitals in a round of its own, of sites that do not
// train yet: what they would train is not known before.
func (o Hospitals) standardise(ctx context.Context, c consortium, inside []*tabular.Hospital) (*tabular.Statistics, error) {
	var links []federate.Link
	for i, h := range inside {
		site, err := federate.NewSite(federate.SiteOptions{Name: h.Name, Terms: o.Terms, Members: c.members, Signer: c.signers[i], Answers: federate.Answerers{federate.TaskStandardise: h}})
		if err != nil {
			return nil, err
		}
		links = append(links, federate.Direct(site))
	}
	coordinator, err := federate.NewCoordinator(federate.CoordinatorOptions{Terms: o.Terms, Members: c.members})
	if err != nil {
		return nil, err
	}
	return o.Schema.Standardise(ctx, coordinator, links, o.Least)
}

// network is what is trained on rows standardised so, and the judge's rows.
func (o Hospitals) network(s *tabular.Statistics, judge *tabular.Hospital) (*train.Set, *federate.Engine, error) {
	judged, err := judge.Set(s.Learned)
	if err != nil {
		return nil, nil, err
	}
	network, err := tabular.Network(s.Learned.Width(), len(o.Schema.Label.Classes), o.Hidden, rand.New(rand.NewPCG(o.Seed, 0xfed)))
	if err != nil {
		return nil, nil, err
	}
	engine, err := federate.NewEngine(network, o.Terms, judged, o.Kernels)
	return judged, engine, err
}

// together trains on the rows of hospitals in one place, standardised by them, by
// as many local rounds, and answers for the judge's rows.
func (o Hospitals) together(ctx context.Context, hospitals []*tabular.Hospital, judge *tabular.Hospital) ([][]float64, error) {
	s, err := o.Schema.Pool(hospitals...)
	if err != nil {
		return nil, err
	}
	judged, engine, err := o.network(s, judge)
	if err != nil {
		return nil, err
	}
	defer engine.Close()
	all := &train.Set{}
	for _, h := range hospitals {
		set, err := h.Set(s.Learned)
		if err != nil {
			return nil, err
		}
		if all.Values == nil {
			all = set
			continue
		}
		joined := *all
		joined.Name = "together"
		joined.Labels = slices.Concat(all.Labels, set.Labels)
		joined.Values = slices.Concat(all.Values, set.Values)
		joined.Names = slices.Concat(all.Names, set.Names)
		joined.Patients = slices.Concat(all.Patients, set.Patients)
		all = &joined
	}
	if n := slices.DeleteFunc(all.Counts(), func(n int) bool { return n == 0 }); len(n) < 2 {
		return nil, errors.New("its rows are of one class")
	}
	shop, err := newWorkshop(engine, o.Program)
	if err != nil {
		return nil, err
	}
	defer shop.close()
	trainer, err := shop.trainer(all)
	if err != nil {
		return nil, err
	}
	initial, _ := engine.Variables()
	x, err := alone(ctx, o.Terms, trainer, initial, o.Seed)
	if err != nil {
		return nil, err
	}
	return engine.Logits(ctx, x, judged)
}

// alone trains by the terms' local rounds, without anybody else.
func alone(ctx context.Context, terms federate.Terms, trainer federate.Trainer, x []float32, seed uint64) ([]float32, error) {
	if terms.Algorithm == federate.FedProx { // there is nobody to stay close to
		terms.Algorithm, terms.Proximal = federate.FedAvg, 0
	}
	x = slices.Clone(x)
	for round := range terms.Rounds {
		update, err := federate.Learn(ctx, trainer, federate.Work{Terms: terms, Round: round, Seed: seed}, x)
		if err != nil {
			return nil, err
		}
		for j, v := range update {
			x[j] += v
		}
	}
	return x, nil
}

// Terminal writes a line for every tenth round.
func (o *Hospitals) Terminal(w io.Writer) {
	o.Progress = func(r FoldRound) {
		if (r.Index+1)%10 == 0 || r.Index+1 == r.Rounds {
			fmt.Fprintf(w, "without %s, round %3d of %d: %d sites, loss %.4f\n", r.Out, r.Index+1, r.Rounds, r.Sites, r.Loss)
		}
	}
}

// Write writes the report for a person.
func (r *HospitalsReport) Write(w io.Writer) error {
	var b strings.Builder
	kind := "logistic regression"
	if len(r.Hidden) > 0 {
		kind = fmt.Sprintf("hidden layers of %v", r.Hidden)
	}
	fmt.Fprintf(&b, "%s, %d rounds, %s, seed %d; each hospital is judged by the model of the others\n\n", r.Terms.Algorithm, r.Terms.Rounds, kind, r.Seed)
	for _, h := range r.Hospitals {
		fmt.Fprintf(&b, "%-24s %5d rows, by class %v", h.Name, h.Rows, h.Counts)
		if h.Outside > 0 {
			fmt.Fprintf(&b, "; %d cells outside the schema's limits count as missing", h.Outside)
		}
		fmt.Fprintln(&b)
	}
	fmt.Fprintf(&b, "\n%-24s %-28s %-28s %-26s %s\n", "left out", "AUC federated (95 %)", "rows in one place (95 %)", "cost (95 %)", "alone, from to")
	show := func(i train.Interval) string { return fmt.Sprintf("%.4f (%.4f to %.4f)", i.Value, i.Low, i.High) }
	for _, f := range r.Folds {
		if f.None != "" {
			fmt.Fprintf(&b, "%-24s %s\n", f.Out, f.None)
			continue
		}
		low, high := math.Inf(1), math.Inf(-1)
		for _, a := range f.Alone {
			if a.None == "" {
				low, high = min(low, a.AUC.Value), max(high, a.AUC.Value)
			}
		}
		alone := "none"
		if low <= high {
			alone = fmt.Sprintf("%.4f %.4f", low, high)
		}
		fmt.Fprintf(&b, "%-24s %-28s %-28s %-26s %s\n", f.Out, show(f.Federated), show(f.Pooled), fmt.Sprintf("%+.4f (%+.4f to %+.4f)", f.Cost.Value, f.Cost.Low, f.Cost.High), alone)
	}
	fmt.Fprintf(&b, "%-24s %-28.4f %-28.4f %-26s %.4f\n\n", "mean", r.Federated, r.Pooled, fmt.Sprintf("%+.4f, at most ±%.4f", r.Pooled-r.Federated, r.Furthest), r.Alone)
	fmt.Fprintf(&b, "%.0f s, %.0f MB of memory at most, the whole process\n", r.Seconds, mega(r.Memory))
	fmt.Fprintln(&b, "no differential privacy: secure sums hide a hospital's update, not what the model remembers")
	_, err := io.WriteString(w, b.String())
	return err
}

// DraftSchema drafts a schema from a folder's tables, or from one table.
func DraftSchema(path string, o tabular.DraftOptions) (*tabular.Schema, error) {
	paths := []string{path}
	if info, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("simulate: drafting a schema: %w", err)
	} else if info.IsDir() {
		if paths, err = tablesOf(path); err != nil {
			return nil, err
		}
	}
	var tables []*train.Table
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("simulate: drafting a schema: %w", err)
		}
		t, err := train.ReadTable(f, train.TableLimits{})
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("simulate: drafting a schema: %s: %w", path, err)
		}
		tables = append(tables, t)
	}
	return tabular.Draft(tables, o)
}
