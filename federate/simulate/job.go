package simulate

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// Job is a simulation as the command line asks for it.
type Job struct {
	Options
	Data    studies.Options
	Split   string // of the data, that the sites have
	Eval    string // of the data, that the model is judged on
	Recipe  string // whose network is trained, by name
	Model   string // an ONNX file to start from instead
	Command string
}

// Run reads the data, builds the network and simulates.
func (j Job) Run(ctx context.Context) (*Report, error) {
	if j.Split == j.Eval {
		return nil, fmt.Errorf("simulate: %w: the sites and the evaluation both have split %q; a model is not judged on what it learnt from", ErrOptions, j.Split)
	}
	data, err := studies.Open(ctx, j.Data)
	if err != nil {
		return nil, err
	}
	if j.Train, err = data.Set(j.Split); err != nil {
		return nil, err
	}
	if j.Evaluation, err = data.Set(j.Eval); err != nil {
		return nil, err
	}
	if err := train.CheckPatients(j.Train, j.Evaluation); err != nil {
		return nil, err
	}
	if j.Network, err = j.network(j.Train); err != nil {
		return nil, err
	}
	return Run(ctx, j.Options)
}

// RunPersonal simulates sites that keep parts of the model to themselves, on the
// split that they have, of which each is judged on a share.
func (j Job) RunPersonal(ctx context.Context, held float64, scanners bool) (*PersonalReport, error) {
	data, err := studies.Open(ctx, j.Data)
	if err != nil {
		return nil, err
	}
	if j.Train, err = data.Set(j.Split); err != nil {
		return nil, err
	}
	if j.Network, err = j.network(j.Train); err != nil {
		return nil, err
	}
	return Personal{Options: j.Options, Held: held, Scanners: scanners}.Run(ctx)
}

// network is the one to begin with, for examples like the set's.
func (j Job) network(like *train.Set) (*train.Network, error) {
	if j.Model != "" {
		m, err := onnx.Load(j.Model)
		if err != nil {
			return nil, err
		}
		return train.Import(m, train.ImportOptions{})
	}
	recipe, err := train.RecipeNamed(j.Recipe)
	if err != nil {
		return nil, err
	}
	cnn := recipe.Network
	cnn.Channels, cnn.Rows, cnn.Columns, cnn.Classes = like.Channels, like.Rows, like.Columns, like.Classes
	if like.Shape != nil {
		return nil, fmt.Errorf("simulate: %w: recipe %s is for images, and examples have shape %v; start from an ONNX file (--model)", ErrOptions, j.Recipe, like.Shape)
	}
	cnn.Members = 0
	return cnn.Build(rand.New(rand.NewPCG(j.Seed, 0xfed)))
}

// Terminal tells a person how a simulation goes on, a line a round.
func Terminal(w io.Writer) func(Round) {
	start := time.Now()
	return func(r Round) {
		if r.Failed != "" {
			fmt.Fprintf(w, "round %d of %d has no result and is tried again: %s\n", r.Index+1, r.Rounds, r.Failed)
			return
		}
		left := time.Duration(float64(time.Since(start)) / float64(r.Index+1) * float64(r.Rounds-r.Index-1))
		fmt.Fprintf(w, "round %3d of %d: %d sites", r.Index+1, r.Rounds, r.Sites)
		if r.Loss > 0 { // not under privacy, which does not release it
			fmt.Fprintf(w, ", loss %.4f", r.Loss)
		}
		if len(r.Lost) > 0 {
			fmt.Fprintf(w, ", lost %s", strings.Join(r.Lost, " "))
		}
		if len(r.Named) > 0 {
			fmt.Fprintf(w, ", named %s", strings.Join(r.Named, " "))
		}
		if r.AUC != nil {
			fmt.Fprintf(w, ", AUC %.4f", *r.AUC)
		}
		fmt.Fprintf(w, ", %v left\n", left.Round(time.Second))
	}
}

// Write writes the report for a person.
func (r *Report) Write(w io.Writer) error {
	smallest, largest, total := r.Sites[0].Examples, 0, 0
	for _, s := range r.Sites {
		smallest, largest, total = min(smallest, s.Examples), max(largest, s.Examples), total+s.Examples
	}
	division := "equal shares"
	if r.Dirichlet > 0 {
		division = fmt.Sprintf("Dirichlet(%g)", r.Dirichlet)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d rounds, %d sites with %d to %d of %d examples (%s), seed %d\n", r.Terms.Algorithm, r.Terms.Rounds, len(r.Sites), smallest, largest, total, division, r.Seed)
	if r.Malicious > 0 {
		fmt.Fprintf(&b, "%d sites are malicious: %s, strength %g; rule %s\n", r.Malicious, r.Attack, r.Strength, r.Terms.Rule)
	}
	fmt.Fprintf(&b, "AUC       %.4f  (95 %% interval %.4f to %.4f)\n", r.AUC.Value, r.AUC.Low, r.AUC.High)
	if r.Accuracy.High > 0 {
		fmt.Fprintf(&b, "accuracy  %.1f %%  (%.1f to %.1f)\n", 100*r.Accuracy.Value, 100*r.Accuracy.Low, 100*r.Accuracy.High)
	}
	if r.Triggered != nil {
		fmt.Fprintf(&b, "backdoor  %.1f %% of the others' images with the mark are taken for class %d  (%.1f to %.1f); without it %.1f %%\n", 100*r.Triggered.Value, markClass, 100*r.Triggered.Low, 100*r.Triggered.High, 100*r.Untriggered.Value)
	}
	if r.Central != nil {
		fmt.Fprintf(&b, "all examples in one place: AUC %.4f; sites alone: mean %.4f, from %.4f to %.4f\n", r.Central.Value, r.Alone.Value, r.Alone.Low, r.Alone.High)
	}
	if r.Scores != nil {
		if err := federate.WriteScoreTable(&b, r.Scores); err != nil {
			return err
		}
		right, wrong := 0, 0
		for _, s := range r.Sites {
			switch {
			case s.Named != "" && s.Malicious:
				right++
			case s.Named != "":
				wrong++
			}
		}
		fmt.Fprintf(&b, "named are %d of %d malicious sites, and %d honest ones\n", right, r.Malicious, wrong)
	}
	if r.AtSites != nil {
		fmt.Fprint(&b, r.AtSites)
	}
	if r.Program != nil {
		fmt.Fprintf(&b, "trained by %s, SHA-256 %s\n", strings.Join(r.Program.Command, " "), r.Program.SHA256)
	}
	fmt.Fprintf(&b, "vectors   %.1f MB down, %.1f MB up; 4 bytes a variable come to %.1f MB each way\n", mega(r.Traffic.Down), mega(r.Traffic.Up), mega(r.Ideal.Up))
	fmt.Fprintf(&b, "%.0f s, %.0f MB of memory at most, the whole process\n", r.Seconds, mega(r.Memory))
	if p := r.Privacy; p != nil {
		fmt.Fprintf(&b, "privacy   per %s: epsilon %.3f of %g at delta %g (by Rényi divergences %.3f); noise %.4g times the clip of %g, from %d honest sites\n", p.Unit, p.Epsilon, p.Budget, p.Delta, p.EpsilonRDP, p.Noise, p.Clip, p.Honest)
		if p.Stopped != "" {
			fmt.Fprintf(&b, "ended after %d of %d rounds: %s\n", len(r.Rounds), r.Terms.Rounds, p.Stopped)
		}
		for _, w := range p.Words {
			fmt.Fprintf(&b, "  %s\n", w.English)
		}
	} else {
		fmt.Fprintln(&b, "no differential privacy: secure sums hide a site's update, not what the model remembers")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func mega(bytes int64) float64 { return float64(bytes) / 1e6 }

// ParseMalicious reads "3:alie", "3:alie:1.5" or "3:alie:1.5:aware": how many,
// what, how strongly, and whether they aim with their groups' means.
func (o *Options) ParseMalicious(text string) error {
	if text == "" {
		return nil
	}
	parts := strings.Split(text, ":")
	if len(parts) == 4 && parts[3] == "aware" {
		o.Aware, parts = true, parts[:3]
	}
	if len(parts) < 2 || len(parts) > 3 {
		return fmt.Errorf("simulate: %q: %w: want NUMBER:ATTACK, such as 3:alie, or with a strength, 3:alie:1.5", text, ErrOptions)
	}
	if _, err := fmt.Sscanf(parts[0], "%d", &o.Malicious); err != nil || o.Malicious < 1 {
		return fmt.Errorf("simulate: %q: %w: %q is no number of sites", text, ErrOptions, parts[0])
	}
	o.Attack = Attack(parts[1])
	if _, err := FindAttack(o.Attack); err != nil {
		return err
	}
	if len(parts) == 3 && (parts[2] != "" || !o.Aware) {
		if _, err := fmt.Sscanf(parts[2], "%g", &o.Strength); err != nil || !(o.Strength > 0) {
			return fmt.Errorf("simulate: %q: %w: %q is no strength above 0", text, ErrOptions, parts[2])
		}
	}
	return nil
}
