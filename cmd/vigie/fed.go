package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/consortium"
	"github.com/vigie/vigie/federate/robust"
	"github.com/vigie/vigie/federate/simulate"
	"github.com/vigie/vigie/train"
)

func newFedCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "fed",
		Short: "Train one model at many hospitals without moving an image",
	}
	command.AddCommand(newFedSimulateCommand(), newFedReplayCommand(), newFedSchemaCommand(), newFedStartCommand(), newFedStatusCommand(), newFedDemoCommand(),
		newFedHoldCommand("stop", "Hold a run up: a round that is under way is given up", "is stopped", (*consortium.Consortium).StopRun),
		newFedHoldCommand("resume", "Let a run go on that was stopped or has failed", "goes on", (*consortium.Consortium).ResumeRun))
	return command
}

func newFedSimulateCommand() *cobra.Command {
	var (
		j                          simulate.Job
		algorithm, rule, malicious string
		augment, out, privacy      string
		naming, scores             string
		falseNaming                float64
		sketch                     int
		standard, asJSON           bool
		tables                     hospitals
		own                        personal
	)
	terms := federate.DefaultTerms("simulation")
	table := func(rows [][2]string) string {
		var b strings.Builder
		for _, r := range rows {
			fmt.Fprintf(&b, "  %-13s %s\n", r[0], r[1])
		}
		return b.String()
	}
	var algorithms, attacks, rules [][2]string
	for _, r := range federate.Algorithms() {
		algorithms = append(algorithms, [2]string{string(r.Name), r.About})
	}
	for _, r := range simulate.Attacks() {
		attacks = append(attacks, [2]string{string(r.Name), r.About})
	}
	for _, r := range robust.Rules() {
		if r.Name != robust.FLTrust {
			rules = append(rules, [2]string{string(r.Name), r.About})
		}
	}
	command := &cobra.Command{
		Use:   "simulate --data FILE.npz --eval-split NAME --sites 15",
		Short: "Run a federation of virtual sites in one process, through the code that hospitals run",
		Long: `Simulate divides labelled data among virtual sites and trains one model at all of
them: every round each site trains on its own examples, and only the sum of the
masked updates is opened, by the protocol that hospitals run. The same options
and --seed give the same model on the same type of processor.

--data is whatever vigie train takes; --split goes to the sites, --eval-split
judges the model. --dirichlet 0 gives each site an equal share, 0.5 makes sites
that differ much in size and in what they see.
` + hospitalsHelp + personalHelp + `
Algorithms:
` + table(algorithms) + `
--malicious NUMBER:ATTACK[:STRENGTH[:aware]] makes so many sites work against the
others, together, knowing all, at the largest weight; aware ones aim with their
group's mean rather than with their own update:
` + table(attacks) + `
--group-size K opens the sum of each of several groups of at least K sites, drawn
anew every round, and --rule judges them:
` + table(rules) + `
--naming keeps evidence against every site over the rounds, from these sums alone:
report names a site when it suffices, exclude also leaves it out of later rounds.
--trusted examples are kept from the sites and show the coordinator what honest
learning looks like; without them, sites that work against the others unobtrusively
are not found. --scores writes the evidence after each round.

Without --dp the sums hide a site's update, not what the model remembers of its
examples. --dp epsilon=8 protects patients: every round is one noisy step along
clipped gradients of patients drawn from all sites, and noise is added in whole
numbers inside the masked sum, a share at each site. --dp epsilon=8,unit=hospital
hides a hospital's whole update instead: another promise, whose epsilon is not to
be compared. The noise is worked out for the rounds; it comes from the system's
randomness, so that two runs differ. Settings, by commas: epsilon, delta, unit,
clip, rate (chance of a patient to be in a round), honest (sites whose noise is
counted on), colluding (others in a sum that may work for the server), attempts,
views. With unit=patient the algorithm is fedsgd, and the defaults of rounds, rate,
augmentation and server are those that suit it.`,
		Example: `  vigie fed simulate --data pneumoniamnist.npz --eval-split val --sites 15 --dirichlet 0.5 --compare
  vigie fed simulate --data pneumoniamnist.npz --eval-split val --sites 15 --malicious 3:alie --group-size 3 --rule median --json
  vigie fed simulate --data heart4/ --leave-out each --negative 0
  vigie fed simulate --data pneumoniamnist.npz --eval-split val --sites 15 --dirichlet 0.5 --dp epsilon=8,delta=1e-5
  vigie fed simulate --data pneumoniamnist.npz --eval-split val --sites 15 --malicious 3:ipm --group-size 3 --rule median --max-examples 100 --naming exclude --trusted 200
  vigie fed simulate --data pneumoniamnist.npz --sites 10 --personal norm --scanners
  vigie fed simulate --data breastmnist.npz --eval-split val --sites 5 --model net.onnx --trainer "python3 train.py"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags := cmd.Flags()
			given, err := simulate.ParsePrivacy(privacy)
			if err != nil {
				return err
			}
			j.Terms = terms
			j.Terms.Algorithm = federate.Algorithm(algorithm)
			if given != nil {
				j.Terms = privateFlags(flags, terms, given.Unit)
				if flags.Changed("algorithm") {
					j.Terms.Algorithm = federate.Algorithm(algorithm)
				}
				j.Terms.DP = given
			}
			j.Terms.Rule = robust.Name(rule)
			j.Terms.Seed, j.Data.Seed = j.Seed, j.Seed
			if j.Terms.Algorithm == federate.FedProx && !flags.Changed("mu") {
				j.Terms.Proximal = 0.01
			}
			if j.Terms.Algorithm == federate.SCAFFOLD && !flags.Changed("momentum") {
				j.Terms.Momentum = 0
			}
			switch federate.Naming(naming) {
			case "off":
				if j.Trusted > 0 || scores != "" {
					return errors.New("--trusted and --scores are for naming: add --naming report or --naming exclude")
				}
			default:
				j.Terms.Naming, j.Terms.FalseNaming, j.Terms.Sketch = federate.Naming(naming), falseNaming, sketch
			}
			if err := j.ParseMalicious(malicious); err != nil {
				return err
			}
			switch {
			case given != nil && given.Unit == federate.Patient && !flags.Changed("augment"):
			case augment == "shift":
				j.Terms.Augmentation = train.Augmentation{Shift: 2, Whole: true}
			case augment == "none":
				j.Terms.Augmentation = train.Augmentation{}
			default:
				return fmt.Errorf("--augment %q: want shift or none", augment)
			}
			j.Kernels = kernels(standard)
			if tables.out != "" && given != nil {
				return errors.New("--dp with --leave-out: the standardisation of a table's columns is opened without noise; leave one of them out")
			}
			if tables.out != "" {
				return tables.run(cmd, j, j.Terms, out, asJSON)
			}
			if own.parts != nil {
				return own.run(cmd, j, asJSON)
			}
			j.Progress = simulate.Terminal(cmd.ErrOrStderr())
			r, err := j.Run(cmd.Context())
			if err != nil {
				return err
			}
			if scores != "" {
				if err := writeScores(scores, r); err != nil {
					return err
				}
			}
			if out != "" {
				if err := r.Model.Save(out); err != nil {
					return err
				}
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			return r.Write(cmd.OutOrStdout())
		},
	}
	flags := command.Flags()
	flags.StringVar(&j.Data.Data, "data", "", "FILE.npz, folder, or table (required)")
	flags.StringVar(&j.Split, "split", "train", "part of the data that the sites have")
	flags.StringVar(&j.Eval, "eval-split", "", "part that the model is judged on (required, or --leave-out or --personal)")
	readingFlags(flags, &j.Data)
	flags.IntVar(&j.Sites, "sites", 15, "virtual sites")
	flags.Float64Var(&j.Dirichlet, "dirichlet", 0, "parameter of the division by class; 0 is equal shares")
	flags.StringVar(&j.Recipe, "recipe", "plain-28", "network to train, of vigie train's recipes")
	flags.StringVar(&j.Model, "model", "", "ONNX file to start from instead")
	flags.StringVar(&algorithm, "algorithm", string(terms.Algorithm), "fedavg, fedprox, fedadam, fedyogi, scaffold, or with --dp for patients fedsgd")
	flags.IntVar(&terms.Rounds, "rounds", terms.Rounds, "rounds")
	flags.IntVar(&terms.Epochs, "epochs", terms.Epochs, "epochs of a site in a round")
	flags.IntVar(&terms.Batch, "batch", terms.Batch, "examples of a local step")
	flags.Float64Var(&terms.Rate, "rate", terms.Rate, "local learning rate in the first round")
	flags.Float64Var(&terms.FinalRate, "final-rate", terms.FinalRate, "local learning rate in the last round")
	flags.Float64Var(&terms.Momentum, "momentum", terms.Momentum, "of local steps (default 0 for scaffold)")
	flags.Float64Var(&terms.Decay, "decay", terms.Decay, "weight decay of local steps")
	flags.StringVar(&augment, "augment", "shift", "of images: shift (by whole pixels) or none")
	flags.Float64Var(&terms.Proximal, "mu", 0, "proximal term of fedprox (default 0.01)")
	flags.Float64Var(&terms.ServerRate, "server-rate", terms.ServerRate, "rate at which the mean update moves the model")
	flags.Float64Var(&terms.Tau, "tau", terms.Tau, "adaptivity of fedadam and fedyogi")
	flags.Float64Var(&terms.Bound, "bound", terms.Bound, "largest length of a site's update")
	flags.IntVar(&terms.Bits, "bits", 0, "of each number of a masked update on its way, 12 to 31, with --limit; 0 is 32")
	flags.Float64Var(&terms.Limit, "limit", 0, "with --bits: largest size of a number of a weighed update")
	flags.IntVar(&terms.Down, "down-bits", 0, "of each weight on its way to the sites: 16, or 0 for 32")
	flags.IntVar(&terms.MaxExamples, "max-examples", terms.MaxExamples, "examples that a site counts for, at most")
	flags.IntVar(&terms.Minimum, "minimum", terms.Minimum, "sites that a sum must hold")
	flags.IntVar(&terms.GroupSize, "group-size", 0, "sites of a group at least; 0 is one group of all")
	flags.StringVar(&rule, "rule", string(terms.Rule), "how groups are combined")
	flags.IntVar(&terms.Bad, "bad-groups", 0, "groups that the rule must stand")
	flags.StringVar(&naming, "naming", "off", "of sites that the evidence of many rounds is against: off, report or exclude")
	flags.Float64Var(&falseNaming, "false-naming", 0.1, "chance that a run names an honest site, at most, as far as its assumptions hold")
	flags.IntVar(&sketch, "sketch", 512, "numbers that are kept of each group's sum, for --naming")
	flags.IntVar(&j.Trusted, "trusted", 0, "examples that the coordinator is trusted with, for --naming")
	flags.StringVar(&scores, "scores", "", "FILE.csv for the evidence after each round")
	flags.StringVar(&malicious, "malicious", "", "NUMBER:ATTACK[:STRENGTH[:aware]]")
	flags.Float64Var(&j.Dropout, "dropout", 0, "share of sites that fall silent in a round")
	flags.StringVar(&privacy, "dp", "", "differential privacy: epsilon=NUMBER[,unit=patient|hospital][,delta=…][,…]")
	flags.Float64Var(&terms.Average, "average", 0, "decay of the moving average of the weights that is published (default 0.985 with --dp for patients)")
	flags.BoolVar(&j.Compare, "compare", false, "train on all examples in one place, and at every site alone, too")
	flags.BoolVar(&standard, "standard-operators", false, "compute on ONNX Runtime's operators, not on the engine's own")
	flags.StringVar(&out, "out", "", "FILE.onnx for the model")
	flags.StringVar(&j.Transcript, "transcript", "", "empty folder to record the run into, for vigie fed replay")
	flags.Uint64Var(&j.Seed, "seed", 1, "of everything")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	flags.StringVar(&j.Program, "trainer", "", "command that trains at every site instead of the engine, such as \"python3 train.py\"")
	flags.BoolVar(&j.AtSites, "evaluate-at-sites", false, "have the sites judge and calibrate the model by secure sums, too")
	tables.flags(flags)
	own.flags(flags)
	cobra.CheckErr(command.MarkFlagRequired("data"))
	command.MarkFlagsOneRequired("eval-split", "leave-out", "personal")
	command.MarkFlagsMutuallyExclusive("eval-split", "leave-out", "personal")
	return command
}

// privateFlags are the terms that suit a promise of privacy, but for what was said
// by flags.
func privateFlags(flags *pflag.FlagSet, given federate.Terms, unit federate.Unit) federate.Terms {
	out := simulate.PrivateTerms(given, unit)
	for name, keep := range map[string]func(){
		"rounds":      func() { out.Rounds = given.Rounds },
		"rate":        func() { out.Rate = given.Rate },
		"final-rate":  func() { out.FinalRate = given.FinalRate },
		"momentum":    func() { out.Momentum = given.Momentum },
		"decay":       func() { out.Decay = given.Decay },
		"server-rate": func() { out.ServerRate = given.ServerRate },
		"tau":         func() { out.Tau = given.Tau },
		"average":     func() { out.Average = given.Average },
	} {
		if flags.Changed(name) {
			keep()
		}
	}
	return out
}

// writeScores writes the evidence after each round into a new file.
func writeScores(path string, r *simulate.Report) error {
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("vigie: writing scores: %w", err)
	}
	outcomes := make([]federate.Outcome, len(r.Rounds))
	for i, round := range r.Rounds {
		outcomes[i] = round.Outcome
	}
	err = federate.WriteScores(file, outcomes)
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err != nil {
		return fmt.Errorf("vigie: writing scores: %w", err)
	}
	return nil
}
