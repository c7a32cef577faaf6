package consortium

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"io"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/engine/safetensors"
	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/wire"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// Result is where the model of a run comes from, signed by the consortium.
type Result struct {
	Version    int    `json:"vigie_result"` // 1
	Run        string `json:"run"`
	Consortium string `json:"consortium"`
	Job        Digest `json:"job"`
	Scientist  string `json:"scientist"`
	Purpose    string `json:"purpose"`
	Terms      Digest `json:"terms"`         // federate.Terms.Digest
	Initial    Digest `json:"initial_model"` // that the run began with
	Model      Digest `json:"model"`         // the ONNX file
	Weights    Digest `json:"weights"`       // the safetensors file
	Variables  Digest `json:"variables"`     // federate.Weights.Digest, as the rounds' orders name it
	Rounds     int    `json:"rounds"`
	Attempts   int    `json:"attempts"` // at a round, whether or not they had a result
	Record     Digest `json:"record"`   // of rounds.jsonl
	// Privacy is the promise that the run has kept: what it spent at most.
	Privacy *federate.Statement `json:"privacy,omitempty"`
	Sites   []Part              `json:"sites"`
	Began   time.Time           `json:"began"`
	Ended   time.Time           `json:"ended"`
	AUC     *Figure             `json:"auc,omitempty"`
}

// Part is a site's part in a run.
type Part struct {
	Name    string `json:"name"`
	Rounds  int    `json:"rounds"`  // whose sum holds the site's update
	Consent Digest `json:"consent"` // of the site's signed decision
}

// Figure is a figure on the consortium's own examples.
type Figure struct {
	train.Interval
	Examples int    `json:"examples"`
	Data     string `json:"data_sha256"`
}

// finish writes the result.
func (l *leader) finish(ctx context.Context) error {
	network, err := l.job.Model.network(filepath.Join(l.dir, modelFile))
	if err != nil {
		return err
	}
	e, err := federate.NewEngine(network, l.job.Terms, l.job.Model.like(), l.Kernels)
	if err != nil {
		return err
	}
	defer e.Close()
	weights := l.coordinator.Weights()
	graph, err := e.Model(l.coordinator.Published())
	if err != nil {
		return err
	}
	dir := filepath.Join(l.dir, "result")
	keeper, err := federate.Folder(dir)
	if err != nil {
		return err
	}
	data, err := graph.Marshal()
	if err != nil {
		return fmt.Errorf("consortium: writing the model of %q: %w", l.job.Run, err)
	}
	if err := keeper.Put(modelFile, data); err != nil {
		return err
	}
	model := DigestOf(data)
	if err := writeWeights(filepath.Join(dir, weightsFile), graph, network, map[string]string{"run": l.job.Run, "job": l.job.digest.String()}); err != nil {
		return err
	}
	tensors, err := wire.File(filepath.Join(dir, weightsFile))
	if err != nil {
		return err
	}
	lines, err := readRounds(filepath.Join(l.dir, roundsFile))
	if err != nil {
		return err
	}
	record, err := os.ReadFile(filepath.Join(l.dir, roundsFile))
	if err != nil {
		return fmt.Errorf("consortium: reading the rounds: %w", err)
	}
	r := Result{Version: 1, Run: l.job.Run, Consortium: l.Name, Job: l.job.digest, Scientist: l.job.Scientist, Purpose: l.job.Purpose,
		Terms: l.job.Terms.Digest(), Initial: l.job.Model.SHA256, Model: model, Weights: tensors.Digest, Variables: weights.Digest(),
		Rounds: l.coordinator.Rounds(), Attempts: len(lines), Record: DigestOf(record),
		Sites: []Part{}, Began: l.job.Time, Ended: l.now().UTC().Truncate(time.Second)}
	var figure *train.Interval
	if l.judge != nil { // of what is published, whenever it was judged last
		if figure, err = l.judge.auc(ctx, l.coordinator.Published()); err != nil {
			return err
		}
	}
	l.mu.Lock()
	if figure != nil {
		l.status.AUC = figure
	}
	attempts := map[string]int{}
	for _, s := range l.status.Sites {
		// A site that was lost may have sent its vector, also in attempts that a stop or
		// a crash left without a record.
		if s.Sums+s.Lost > 0 || l.coordinator.Attempts() > len(lines) {
			attempts[s.Name] = l.coordinator.Attempts()
		}
		if s.Sums == 0 {
			continue
		}
		consent, err := os.ReadFile(filepath.Join(l.dir, consents, s.Name+".json"))
		if err != nil {
			l.mu.Unlock()
			return fmt.Errorf("consortium: reading the consent of %q: %w", s.Name, err)
		}
		r.Sites = append(r.Sites, Part{s.Name, s.Sums, DigestOf(consent)})
	}
	if l.status.AUC != nil && l.judge != nil {
		r.AUC = &Figure{*l.status.AUC, l.judge.set.Len(), l.judge.digest}
	}
	l.mu.Unlock()
	if r.Privacy, err = l.job.Terms.Statement(attempts, len(l.roster.Sites), len(l.variables)); err != nil {
		return err
	}
	document, err := sign(l.signer, ResultType, r)
	if err != nil {
		return err
	}
	if err := keeper.Put(resultFile, document); err != nil {
		return err
	}
	l.mu.Lock()
	l.status.State, l.status.Why, l.status.Model = Done, "", &model
	l.mu.Unlock()
	l.Logger.Info("a run is done", "run", l.job.Run, "model", model, "folder", dir)
	return l.save()
}

// writeWeights writes what was trained, by the names that it has in the graph.
func writeWeights(path string, graph *onnx.Model, network *train.Network, about map[string]string) error {
	tensors := map[string]engine.Tensor{}
	for _, t := range graph.Graph.Initializers {
		if t.Type != onnx.Float || !slices.Contains(network.Weights, t.Name) {
			continue
		}
		w, err := engine.FromONNX(t)
		if err != nil {
			return fmt.Errorf("consortium: writing %s: %w", weightsFile, err)
		}
		tensors[t.Name] = w
	}
	return train.WriteWhole(path, func(w io.Writer) error { return safetensors.Write(w, tensors, about) })
}

// deliver brings the result to every site that approved the job, as they come.
func (l *leader) deliver(ctx context.Context) error {
	dir := filepath.Join(l.dir, "result")
	document, err := readLimited(filepath.Join(dir, resultFile), maxDocument)
	if err != nil {
		return fmt.Errorf("consortium: reading the result of %q: %w", l.job.Run, err)
	}
	model, err := wire.File(filepath.Join(dir, modelFile))
	if err != nil {
		return err
	}
	for {
		roster, err := l.current()
		if err != nil {
			return err
		}
		connected := l.wire.Connected()
		waiting := false
		l.mu.Lock()
		sites := slices.Clone(l.status.Sites)
		l.mu.Unlock()
		for _, s := range sites {
			if _, listed := roster.Site(s.Name); s.Verdict != Approved || s.Received || !listed {
				continue
			}
			if waiting = true; !slices.Contains(connected, s.Name) {
				continue
			}
			limited, cancel := context.WithTimeout(ctx, l.job.Terms.Deadline)
			_, err := l.wire.Ask(limited, s.Name, wire.Call{Run: l.job.Run, Kind: kindResult, Body: document, Bulk: model})
			cancel()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			l.mu.Lock()
			if at := l.site(s.Name); err == nil {
				at.Received, at.Failure = true, ""
			} else {
				at.Failure = brief(err)
			}
			l.mu.Unlock()
		}
		if err := l.save(); err != nil {
			return err
		}
		if !waiting {
			return nil
		}
		if err := pause(ctx, 5*glance); err != nil {
			return err
		}
	}
}

// judge holds the model against examples that the consortium has itself.
type judge struct {
	engine *federate.Engine
	set    *train.Set
	digest string
}

func newJudge(ctx context.Context, e *federate.Engine, m Model, l Local) (*judge, error) {
	set, _, err := m.examples(ctx, l.Evaluation.Options, l.Split)
	if err != nil {
		e.Close()
		return nil, err
	}
	return &judge{e, set, strings.TrimPrefix(set.Digest(), "sha256:")}, nil
}

func (j *judge) close() { j.engine.Close() }

func (j *judge) auc(ctx context.Context, variables []float32) (*train.Interval, error) {
	logits, err := j.engine.Logits(ctx, variables, j.set)
	if err != nil {
		return nil, err
	}
	auc, err := j.set.AUCInterval(logits, 1)
	if err != nil {
		return nil, err
	}
	return &auc, nil
}

// ReadResult reads a result that this consortium has signed.
func (c *Consortium) ReadResult(run string) (Result, error) {
	if err := checkName("run", run); err != nil {
		return Result{}, err
	}
	document, err := readLimited(c.runsDir(run, "result", resultFile), maxDocument)
	if err != nil {
		return Result{}, fmt.Errorf("consortium: reading the result of %q: %w", run, err)
	}
	r, _, _, err := verify[Result](document, ResultType, c.Key())
	return r, err
}
