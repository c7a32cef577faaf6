package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/attack/privacy"
	"github.com/vigie/vigie/dp"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// Data says where labelled examples are and how they are read.
type Data = studies.Options

// subject is a model with what is known of it.
type subject struct {
	model      *probe.Model // nil where a recipe is asked
	target     *attack.Network
	record     *record // nil if there is none
	digest     string
	dataDigest string
	classes    []string
	notes      []string
}

func (s *subject) close() error {
	if s.target == nil {
		return nil
	}
	return s.target.Close()
}

// record is what training.json says that matters here.
type record struct {
	Network    json.RawMessage  `json:"network"`
	Seed       uint64           `json:"seed"`
	DataDigest string           `json:"data_digest"`
	Privacy    *train.Statement `json:"privacy"`
	History    struct {
		Recipe train.Recipe `json:"recipe"`
		Images int          `json:"train_images"`
	} `json:"history"`
}

const mostRecord = 16 << 20 // bytes

// readRecord reads the training record beside a model; nil if there is none.
func readRecord(modelPath string) (*record, error) {
	places := []string{train.Fit{Out: modelPath}.File(train.TrainingFile)}
	if strings.HasSuffix(modelPath, ".onnx") {
		places = append(places, filepath.Join(filepath.Dir(modelPath), train.TrainingFile))
	}
	for _, path := range places {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("job: reading the training record: %w", err)
		}
		defer f.Close()
		r, err := parseRecord(io.LimitReader(f, mostRecord))
		if err != nil {
			return nil, fmt.Errorf("job: reading the training record %s: %w", path, err)
		}
		return r, nil
	}
	return nil, nil
}

func parseRecord(from io.Reader) (*record, error) {
	r := &record{}
	if err := json.NewDecoder(from).Decode(r); err != nil {
		return nil, err
	}
	return r, nil
}

// open opens the model and the named splits of the data, in its terms. gradients
// says that the attack needs them.
func (c *Common) open(ctx context.Context, gradients bool, splits ...string) (s *subject, sets []*train.Set, err error) {
	s = &subject{}
	if s.model, err = probe.Open(c.Model); err != nil {
		return nil, nil, err
	}
	if len(s.model.Warnings) > 0 {
		return nil, nil, fmt.Errorf("job: %s: %w: %s", c.Model, ErrAsk, strings.Join(s.model.Warnings, "; "))
	}
	if s.digest, err = s.model.Digest(); err != nil {
		return nil, nil, err
	}
	if s.record, err = readRecord(c.Model); err != nil {
		return nil, nil, err
	}
	c.splitSeed(s.record)
	for _, split := range splits {
		var set *train.Set
		if set, s.dataDigest, s.classes, err = s.model.Set(ctx, probe.Test{Options: c.Data, Split: split}); err != nil {
			return nil, nil, err
		}
		if set.Multi() {
			return nil, nil, fmt.Errorf("job: %s: %w: its labels do not exclude each other; name one of them as the label column", c.Data.Data, ErrAsk)
		}
		sets = append(sets, set)
	}
	n, err := c.network(s, sets[0], gradients)
	if err != nil {
		return nil, nil, err
	}
	if s.target, err = attack.Open(s.model.Graph, n); err != nil {
		return nil, nil, err
	}
	if r := s.record; r != nil && r.DataDigest != "" && r.DataDigest != s.dataDigest {
		s.notes = append(s.notes, "the training record beside the model names other data than these: "+r.DataDigest)
	}
	if r := s.record; r != nil && splits[0] == studies.Train && r.History.Images != 0 && r.History.Images != sets[0].Len() {
		s.notes = append(s.notes, fmt.Sprintf("the training record says that the model was trained on %d examples, split train has %d: if the data are divided by --shares and --split-seed, these must be those of the training", r.History.Images, sets[0].Len()))
	}
	return s, sets, c.fits(s, sets)
}

// splitSeed is, where nobody says another, the seed by which the model's data were
// divided, or vigie train's.
func (c *Common) splitSeed(r *record) {
	if c.Data.Seed == 0 {
		if c.Data.Seed = 1; r != nil {
			c.Data.Seed = r.Seed
		}
	}
}

// network says how the data's examples become the model's input.
func (c Common) network(s *subject, set *train.Set, gradients bool) (attack.NetworkOptions, error) {
	n := attack.NetworkOptions{Shape: set.Example(), Mean: c.Mean, Std: c.Std, Output: c.Output, AnswersOnly: !gradients}
	if p := s.model.Package; p != nil {
		if len(c.Mean) > 0 || len(c.Std) > 0 || c.Output != "" {
			return n, fmt.Errorf("job: %s: %w: a package's manifest says how its input is prepared; leave mean, std and output out", c.Model, ErrAsk)
		}
		if set.Shape != nil || set.Channels != 1 {
			return n, fmt.Errorf("job: %s: %w: a package reads luminance, the data are of shape %v", c.Model, ErrAsk, set.Example())
		}
		n.Manifest = p.Manifest
		n.Probabilities = p.Manifest.Output.Activation == model.None
	}
	return n, nil
}

func (c Common) fits(s *subject, sets []*train.Set) error {
	classes := s.target.Describe().Classes
	for _, set := range sets {
		for i, l := range set.Labels {
			if l >= classes {
				return errors.Join(fmt.Errorf("job: %s: %w: example %d of split %s is of class %d, the model tells %d apart", c.Data.Data, ErrAsk, i, set.Name, l, classes), s.close())
			}
		}
	}
	return nil
}

// pixels are the examples of a set as floats.
func pixels(s *train.Set) []float32 {
	size := int(product(s.Example()))
	out := make([]float32, s.Len()*size)
	for i := range s.Len() {
		s.Fill(out[i*size:(i+1)*size], i)
	}
	return out
}

func product(shape []int64) int64 {
	n := int64(1)
	for _, d := range shape {
		n *= d
	}
	return n
}

// floats is a set whose examples are these floats.
func floats(s *train.Set, values []float32) *train.Set {
	out := *s
	out.Pixels, out.Values = nil, values
	return &out
}

// logits are a target's answers.
func logits(ctx context.Context, t attack.Target, pixels []float32) ([][]float64, error) {
	a, err := t.Ask(ctx, pixels, nil)
	if err != nil {
		return nil, err
	}
	classes := t.Describe().Classes
	out := make([][]float64, len(a.Logits)/classes)
	for i := range out {
		for _, v := range a.Logits[i*classes : (i+1)*classes] {
			out[i] = append(out[i], float64(v))
		}
	}
	return out, nil
}

// look is one way of showing an example to a model: as it is, mirrored, or moved
// by a pixel. Looks at one person are queries of one test.
func look(s *train.Set, from []float32, k int) []float32 {
	if k == 0 {
		return from
	}
	out := make([]float32, len(from))
	rows, columns := s.Rows, s.Columns
	dy := []int{0, 0, 0, 0, -1, 1}[k]
	dx := []int{0, 0, -1, 1, 0, 0}[k]
	for plane := 0; plane < len(from); plane += rows * columns {
		for y := range rows {
			for x := range columns {
				sy, sx := max(0, min(rows-1, y+dy)), max(0, min(columns-1, x+dx))
				if k == 1 {
					sx = columns - 1 - x
				}
				out[plane+y*columns+x] = from[plane+sy*columns+sx]
			}
		}
	}
	return out
}

const mostLooks = 6

// ReadMembership reads who was trained on: a CSV file with the columns index, the
// position of an example in the data (all splits, in the order train, val, test),
// and member, 1 or 0. Examples that it does not name are left out.
func ReadMembership(from io.Reader, examples int) (members, others []int, err error) {
	t, err := train.ReadTable(from, train.TableLimits{Cells: 20_000_000, Columns: 100})
	if err != nil {
		return nil, nil, fmt.Errorf("job: reading memberships: %w", err)
	}
	index, ok1 := t.Find("index")
	member, ok2 := t.Find("member")
	if !ok1 || !ok2 {
		return nil, nil, fmt.Errorf("job: reading memberships: %w: want the columns index and member, there are %s", ErrAsk, strings.Join(t.Header, ", "))
	}
	seen := make(map[int]bool, len(t.Rows))
	for i, row := range t.Rows {
		at, err := strconv.Atoi(row[index])
		if err != nil || at < 0 || at >= examples {
			return nil, nil, fmt.Errorf("job: reading memberships: %w: row %d names example %q, want 0 to %d", ErrAsk, i+1, row[index], examples-1)
		}
		if seen[at] {
			return nil, nil, fmt.Errorf("job: reading memberships: %w: row %d names example %d again", ErrAsk, i+1, at)
		}
		seen[at] = true
		switch row[member] {
		case "1":
			members = append(members, at)
		case "0":
			others = append(others, at)
		default:
			return nil, nil, fmt.Errorf("job: reading memberships: %w: row %d has member %q, want 1 or 0", ErrAsk, i+1, row[member])
		}
	}
	if len(members) < 2 || len(others) < 2 {
		return nil, nil, fmt.Errorf("job: reading memberships: %w: %d members and %d others, want at least two of each", ErrAsk, len(members), len(others))
	}
	return members, others, nil
}

// promises are what the runs of a ledger together promise, at many δ.
func promises(runs []dp.Run, delta float64) ([]privacy.Promise, error) {
	var out []privacy.Promise
	deltas := []float64{delta, 1e-4, 1e-3, 0.01, 0.03, 0.1, 0.2, 0.4}
	slices.Sort(deltas)
	steps := 1
	for _, r := range runs {
		steps += r.Steps
	}
	// Rounding up costs at most an interval a step: as coarse as it may be.
	accountant := dp.PLD{Interval: max(1e-4, min(2e-3, 0.05/float64(steps)))}
	for _, d := range slices.Compact(deltas) {
		epsilon, err := accountant.Compose(runs, d)
		if err != nil {
			return nil, fmt.Errorf("job: accounting: %w", err)
		}
		out = append(out, privacy.Promise{Epsilon: epsilon, Delta: d})
	}
	return out, nil
}
