package federate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/engine/safetensors"
)

// Files of the folder that a site's own program works in.
const (
	GlobalFile     = "global.safetensors"     // the weights to begin with
	CorrectionFile = "correction.safetensors" // what SCAFFOLD adds to every gradient
	RoundFile      = "round.json"             // Assignment
	WeightsFile    = "weights.safetensors"    // the weights that training ended with, or
	UpdateFile     = "update.safetensors"     // by what they have moved
	MetricsFile    = "metrics.json"           // Metrics
)

// Assignment is what a program is told of a round.
type Assignment struct {
	Federation string  `json:"federation"`
	Algorithm  string  `json:"algorithm"`
	Round      int     `json:"round"` // from 0
	Rounds     int     `json:"rounds"`
	Epochs     int     `json:"epochs"`
	Batch      int     `json:"batch"`
	Rate       float64 `json:"rate"` // of this round
	Momentum   float64 `json:"momentum"`
	Decay      float64 `json:"decay"`
	Proximal   float64 `json:"proximal"`
	Seed       uint64  `json:"seed"` // of this round, at this site, below 2⁵³
	Data       string  `json:"data"`
	// Names of the tensors in the global weights that are trained, that are running
	// statistics, and that are the site's own and never leave it.
	Trained    []string `json:"trained"`
	Statistics []string `json:"statistics"`
	Own        []string `json:"own"`
}

// Metrics is what a program says of its training.
type Metrics struct {
	Steps    int     `json:"steps"`    // gradient steps, at least 1
	Loss     float64 `json:"loss"`     // mean over them
	Examples int     `json:"examples"` // it trained on; 0: as many as the site said
}

// CommandOptions say how a site's own program trains.
type CommandOptions struct {
	// Command is the program with its arguments, divided at spaces outside quotes,
	// run without a shell. The folder of a round is added as the last argument.
	Command string
	Form    Form
	Data    string // told to the program; it may be empty
	// Examples is how many examples the site has.
	Examples int
	// Timeout ends a program that takes longer; 0 is the terms' deadline.
	Timeout time.Duration
	// Environment names variables that the program sees besides the usual few.
	Environment []string
	// Dir is where the folders of rounds are made and removed; empty: the system's
	// temporary folder.
	Dir string
}

// ErrProgram is returned when a site's own program has not trained.
var ErrProgram = errors.New("the site's own program has not trained")

// Limits of what a program may answer.
const (
	maxMetrics      = 1 << 20
	maxTensorHeader = 16 << 20
	tailOfText      = 4 << 10 // of what it writes, kept for errors
)

// environment are the variables that programs see. What else the site's process
// has may be secret.
var environment = []string{"PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX",
	"CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}

// CommandTrainer trains by a program of the site's, in whatever language. The
// program reads the weights and the assignment from a folder, trains on the
// site's data, and leaves weights or an update there; clipping, weighting, noise
// and masking stay with the site.
type CommandTrainer struct {
	options CommandOptions
	program Program
	argv    []string

	mu       sync.Mutex
	examples int
}

// Program is what a site runs, for the record of a job.
type Program struct {
	Command []string      `json:"command"`
	Files   []ProgramFile `json:"files"` // those of the command's words that are files, in order
	SHA256  string        `json:"sha256"`
}

// ProgramFile is one file of a program.
type ProgramFile struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
}

// NewCommandTrainer makes a trainer of a program, which must be there.
func NewCommandTrainer(o CommandOptions) (Trainer, error) {
	fail := func(format string, arguments ...any) (Trainer, error) {
		return nil, fmt.Errorf("federate: training by %q: %w: %s", o.Command, ErrProgram, fmt.Sprintf(format, arguments...))
	}
	if variables, trained, _ := o.Form.size(); variables < 1 || trained < 1 {
		return fail("a model with %d variables, %d of them trained", variables, trained)
	}
	if o.Examples < 1 || o.Timeout < 0 {
		return fail("%d examples, a timeout of %v: say how many examples the site has", o.Examples, o.Timeout)
	}
	t := &CommandTrainer{options: o, examples: o.Examples}
	var err error
	if t.argv, err = splitCommand(o.Command); err != nil {
		return fail("%v", err)
	}
	if t.argv[0], err = exec.LookPath(t.argv[0]); err != nil {
		return fail("%v", err)
	}
	if t.program, err = programOf(t.argv); err != nil {
		return fail("%v", err)
	}
	if len(o.Form.Start) > 0 {
		return &personalCommand{t}, nil
	}
	return t, nil
}

// personalCommand has variables of its own.
type personalCommand struct{ *CommandTrainer }

func (t *personalCommand) Personal() []float32 { return t.options.Form.Start }

// Program is what the trainer runs, as it was when the trainer was made.
func (t *CommandTrainer) Program() Program { return t.program }

// Size implements Trainer.
func (t *CommandTrainer) Size() (variables, trained int) {
	variables, trained, _ = t.options.Form.size()
	return variables, trained
}

// Examples implements Trainer: what the program said last, or else what the site
// said.
func (t *CommandTrainer) Examples() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.examples
}

// splitCommand divides a command into words at spaces; quotes of either kind keep
// spaces, and a backslash keeps any character outside single quotes.
func splitCommand(command string) ([]string, error) {
	var words []string
	var word strings.Builder
	inside, quote, escaped := false, rune(0), false
	for _, r := range command {
		switch {
		case r == 0:
			return nil, errors.New("the command holds a zero byte")
		case escaped:
			word.WriteRune(r)
			escaped = false
		case r == '\\' && quote != '\'':
			inside, escaped = true, true
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '\'' || r == '"'):
			inside, quote = true, r
		case quote == 0 && (r == ' ' || r == '\t' || r == '\n'):
			if inside {
				words = append(words, word.String())
				word.Reset()
				inside = false
			}
		default:
			inside = true
			word.WriteRune(r)
		}
	}
	if quote != 0 || escaped {
		return nil, errors.New("a quote or a backslash has no end")
	}
	if inside {
		words = append(words, word.String())
	}
	if len(words) == 0 || words[0] == "" {
		return nil, errors.New("there is no program to run")
	}
	return words, nil
}

// programOf takes the digests of all files that a command names.
func programOf(argv []string) (Program, error) {
	p := Program{Command: slices.Clone(argv), Files: []ProgramFile{}}
	all := sha256.New()
	for _, word := range argv {
		fmt.Fprintf(all, "%d:%s", len(word), word)
		info, err := os.Stat(word)
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		f, err := os.Open(word)
		if err != nil {
			return p, err
		}
		one := sha256.New()
		_, err = io.Copy(one, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return p, err
		}
		p.Files = append(p.Files, ProgramFile{word, fmt.Sprintf("%x", one.Sum(nil))})
		all.Write(one.Sum(nil))
	}
	p.SHA256 = fmt.Sprintf("%x", all.Sum(nil))
	return p, nil
}

// Train implements Trainer.
func (t *CommandTrainer) Train(ctx context.Context, w Work) (int, float64, error) {
	fail := func(err error) (int, float64, error) {
		return 0, 0, fmt.Errorf("federate: training by %q in round %d: %w: %w", t.options.Command, w.Round+1, ErrProgram, err)
	}
	now, err := programOf(t.argv)
	if err != nil {
		return fail(err)
	}
	if now.SHA256 != t.program.SHA256 {
		return fail(errors.New("its files are not as they were when the site began with them: start the site anew"))
	}
	dir, err := os.MkdirTemp(t.options.Dir, "vigie-round-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	if err := t.write(dir, w); err != nil {
		return fail(err)
	}
	if err := t.run(ctx, dir, w.Terms.Deadline); err != nil {
		return fail(err)
	}
	m, err := readMetrics(filepath.Join(dir, MetricsFile))
	if err != nil {
		return fail(err)
	}
	if err := t.read(dir, w); err != nil {
		return fail(err)
	}
	if m.Examples > 0 {
		t.mu.Lock()
		t.examples = m.Examples
		t.mu.Unlock()
	}
	return m.Steps, m.Loss, nil
}

// write fills a round's folder.
func (t *CommandTrainer) write(dir string, w Work) error {
	a := Assignment{
		Federation: w.Terms.Federation, Algorithm: string(w.Terms.Algorithm), Round: w.Round, Rounds: w.Terms.Rounds, Epochs: w.Terms.Epochs, Batch: w.Terms.Batch,
		Rate: w.Rate, Momentum: w.Terms.Momentum, Decay: w.Terms.Decay, Proximal: w.Terms.Proximal, Data: t.options.Data,
		Seed:    rand.New(rand.NewPCG(w.Seed, uint64(w.Round))).Uint64() >> 11, // a whole number to every reader of JSON
		Trained: []string{}, Statistics: []string{}, Own: []string{},
	}
	tensors := map[string]engine.Tensor{}
	if err := t.options.Form.each(w.Variables, w.Own, func(v Variable, part []float32) error {
		tensors[v.Name] = engine.Float32(v.Dims, part)
		if v.Trained {
			a.Trained = append(a.Trained, v.Name)
		} else {
			a.Statistics = append(a.Statistics, v.Name)
		}
		if v.Own {
			a.Own = append(a.Own, v.Name)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := writeTensors(filepath.Join(dir, GlobalFile), tensors); err != nil {
		return err
	}
	if w.Correction != nil {
		correction := map[string]engine.Tensor{}
		rest := w.Correction
		for _, v := range t.options.Form.Variables {
			if !v.Trained || v.Own {
				continue
			}
			correction[v.Name] = engine.Float32(v.Dims, rest[:v.size()])
			rest = rest[v.size():]
		}
		if err := writeTensors(filepath.Join(dir, CorrectionFile), correction); err != nil {
			return err
		}
	}
	text, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, RoundFile), append(text, '\n'), 0o600)
}

func writeTensors(path string, tensors map[string]engine.Tensor) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(safetensors.Write(f, tensors, nil), f.Close())
}

// tail keeps the end of what is written.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.text = append(t.text, p...)
	if over := len(t.text) - tailOfText; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	return len(p), nil
}

// run runs the program on a folder, in a group of processes that ends with it.
func (t *CommandTrainer) run(ctx context.Context, dir string, deadline time.Duration) error {
	limit := t.options.Timeout
	if limit == 0 {
		limit = deadline
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	command := exec.CommandContext(limited, t.argv[0], append(slices.Clone(t.argv[1:]), dir)...)
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error {
		if err := syscall.Kill(-command.Process.Pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
			return err
		}
		return os.ErrProcessDone
	}
	command.WaitDelay = time.Second // for what a process that it left behind may still say
	command.Env = []string{"VIGIE_ROUND=" + dir, "TMPDIR=" + dir, "PYTHONDONTWRITEBYTECODE=1"}
	for _, name := range slices.Concat(environment, t.options.Environment) {
		if v, set := os.LookupEnv(name); set {
			command.Env = append(command.Env, name+"="+v)
		}
	}
	said := &tail{}
	command.Stdout, command.Stderr = said, said
	err := command.Run()
	if command.Process != nil { // whatever it has left running
		_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case limited.Err() != nil:
		return fmt.Errorf("it was stopped after %v%s", limit, said)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return fmt.Errorf("%w%s", err, said)
	}
	return nil
}

// String is what was written, for the end of an error.
func (t *tail) String() string {
	text := strings.TrimSpace(strings.ToValidUTF8(string(t.text), "?"))
	if text == "" {
		return ", and it said nothing"
	}
	return "; it said: " + text
}

// open opens a file that a program has left: a plain one within a limit.
func open(path string, limit int64) (*os.File, int64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, 0, fmt.Errorf("%s is no plain file, or has %d bytes: want at most %d", filepath.Base(path), info.Size(), limit)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	return f, info.Size(), err
}

func readMetrics(path string) (Metrics, error) {
	var m Metrics
	f, _, err := open(path, maxMetrics)
	if errors.Is(err, fs.ErrNotExist) {
		return m, fmt.Errorf("it has left no %s", MetricsFile)
	}
	if err != nil {
		return m, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMetrics+1))
	if err != nil {
		return m, err
	}
	return parseMetrics(data)
}

// parseMetrics reads what a program says. Fields that it adds for itself are left
// alone.
func parseMetrics(data []byte) (Metrics, error) {
	var m Metrics
	if len(data) > maxMetrics {
		return m, fmt.Errorf("%s has more than %d bytes", MetricsFile, maxMetrics)
	}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(&m); err != nil {
		return m, fmt.Errorf("reading %s: %w", MetricsFile, err)
	}
	if m.Steps < 1 || m.Examples < 0 || math.IsNaN(m.Loss) || math.IsInf(m.Loss, 0) {
		return m, fmt.Errorf("%s says %d steps, a loss of %g, %d examples: want at least 1, a number, and none or more", MetricsFile, m.Steps, m.Loss, m.Examples)
	}
	return m, nil
}

// read moves the work's variables to where the program has brought them.
func (t *CommandTrainer) read(dir string, w Work) error {
	variables, _, own := t.options.Form.size()
	data := 8*int64(variables+own) + 1<<20 // twice what it should be, for a better error
	limit := data + maxTensorHeader
	name, isUpdate := WeightsFile, false
	f, size, err := open(filepath.Join(dir, WeightsFile), limit)
	if errors.Is(err, fs.ErrNotExist) {
		name, isUpdate = UpdateFile, true
		f, size, err = open(filepath.Join(dir, UpdateFile), limit)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("it has left neither %s nor %s", WeightsFile, UpdateFile)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	file, err := safetensors.Read(f, size, safetensors.Limits{Header: maxTensorHeader, Data: data})
	if err != nil {
		return fmt.Errorf("reading %s: %w", name, err)
	}
	return t.take(name, file.Tensors, isUpdate, w)
}

// take holds tensors against the layout. All must be there, and no others.
func (t *CommandTrainer) take(name string, tensors map[string]engine.Tensor, isUpdate bool, w Work) error {
	if len(tensors) > len(t.options.Form.Variables) {
		known := map[string]bool{}
		for _, v := range t.options.Form.Variables {
			known[v.Name] = true
		}
		var strange []string
		for name := range tensors {
			if !known[name] {
				strange = append(strange, name)
			}
		}
		slices.Sort(strange)
		return fmt.Errorf("%s holds %q, which the model does not have", name, strange)
	}
	return t.options.Form.each(w.Variables, w.Own, func(v Variable, part []float32) error {
		tensor, is := tensors[v.Name]
		if !is {
			return fmt.Errorf("%s has no %q, of shape %v", name, v.Name, v.Dims)
		}
		values, float := tensor.Data.([]float32)
		if !float || !slices.Equal(tensor.Shape, v.Dims) && len(v.Dims)+len(tensor.Shape) > 0 {
			return fmt.Errorf("%s has %q as %v, want float32 of shape %v", name, v.Name, tensor, v.Dims)
		}
		for i, x := range values {
			if isUpdate {
				x += part[i]
			}
			if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) {
				return fmt.Errorf("%s has %v in %q: training has diverged", name, x, v.Name)
			}
			part[i] = x
		}
		return nil
	})
}
