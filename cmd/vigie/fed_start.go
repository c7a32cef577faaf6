package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/consortium"
	"github.com/vigie/vigie/federate/robust"
	"github.com/vigie/vigie/federate/simulate"
	"github.com/vigie/vigie/train"
)

func newFedStartCommand() *cobra.Command {
	var (
		dir, size, augment string
		privacy            string
		options            consortium.StartOptions
		watch, asJSON      bool
		patience           time.Duration
	)
	terms := federate.DefaultTerms("")
	command := &cobra.Command{
		Use:   "start --model FILE.onnx --purpose TEXT",
		Short: "Ask the sites of a consortium to train a model",
		Long: `Signs a job with the consortium's key and leaves it in the consortium's folder for
the server, which brings it to every site. Each decides for itself; the run begins
when those that are asked for have approved (--sites, --patience). vigie fed
status follows it, vigie fed stop and vigie fed resume hold it up, and what comes
of it lies in the folder runs/RUN/result with a signed statement of where it came
from.

The network is any ONNX file, or with --recipe that of one of vigie train's recipes
with fresh weights. --eval names labelled data of the consortium's own, on which
the model is judged as it goes; --judge-at-sites asks the sites instead, each of
which counts on examples that it keeps for that, and only the sums are opened.

--dp epsilon=8 protects patients, --dp epsilon=8,unit=hospital hospitals; see vigie
fed simulate. How many patients take part about is --units. The noise is worked out
for the rounds and a tenth more attempts, and each site holds what it costs against
its budget.`,
		Example: `  vigie fed start --dir north --model net.onnx --algorithm fedprox --rounds 50 --scientist 'Dr Example' --purpose 'pneumonia on chest radiographs'
  vigie fed start --dir north --recipe plain-28 --eval val.npz --eval-split val --purpose 'pneumonia on chest radiographs' --watch
  vigie fed start --dir north --model net.onnx --dp epsilon=8,delta=1e-5 --units 4700 --purpose 'pneumonia on chest radiographs'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := consortium.Open(dir)
			if err != nil {
				return err
			}
			if options.Terms, err = completeTerms(cmd.Flags(), terms, augment, privacy); err != nil {
				return err
			}
			if options.Shape, err = parseShape(size); err != nil {
				return err
			}
			options.Local.Patience = consortium.Period(patience)
			if options.Local.Every == 0 {
				options.Local.Every = max(1, options.Terms.Rounds/20)
			}
			j, digest, err := c.Start(cmd.Context(), options)
			if err != nil {
				return err
			}
			if options.Dry {
				return writeJSON(cmd.OutOrStdout(), j.Terms)
			}
			if asJSON && !watch {
				return writeJSON(cmd.OutOrStdout(), struct {
					consortium.Job
					Digest consortium.Digest `json:"digest"`
				}{j, digest})
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "run %s, job %s\n", j.Run, digest)
			if watch {
				return watchRun(cmd, c, j.Run, asJSON)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "next: vigie fed status %s --dir %s --watch\n", j.Run, dir)
			return nil
		},
	}
	flags := command.Flags()
	consortiumFlag(flags, &dir)
	flags.StringVar(&options.Audit, "audit", "", "FILE of vigie privacy audit --out: a signed audit of this model under these terms")
	flags.BoolVar(&options.Dry, "print-terms", false, "print the terms that the run would have, for vigie privacy audit --terms, and ask nobody")
	flags.StringVar(&options.Run, "run", "", "name of the run (default: made of the algorithm and the time)")
	flags.StringVar(&options.Scientist, "scientist", whoami(), "who asks")
	flags.StringVar(&options.Purpose, "purpose", "", "what the model is for, in a line that data owners read (required)")
	flags.StringVar(&options.Model, "model", "", "ONNX file to start from")
	flags.StringVar(&options.Output, "output", "", "its logits (default: the first output)")
	flags.StringSliceVar(&options.Freeze, "freeze", nil, "patterns of weights that are not trained")
	flags.StringVar(&options.Recipe, "recipe", "", "network of this recipe of vigie train's, with fresh weights, instead of --model")
	flags.StringVar(&size, "shape", "", "of one example, such as 1x28x28 (default: the model's, or that of --eval)")
	flags.StringSliceVar(&options.Classes, "classes", nil, "names of the classes in the model's order")
	flags.BoolVar(&options.Multi, "multi-label", false, "labels do not exclude each other")
	bindTerms(flags, &terms, &augment)
	flags.StringVar(&privacy, "dp", "", "differential privacy: epsilon=NUMBER[,unit=patient|hospital][,delta=…][,…]")
	flags.IntVar(&options.Units, "units", 0, "with --dp: how many patients take part about; of hospitals, those that have joined")
	flags.StringVar(&options.Trainer, "trainer", "", "file of your own code that the sites are asked to train by; they must have it")
	flags.IntVar(&options.Local.AtSites, "judge-at-sites", 0, "rounds from one evaluation at the sites to the next (default: none)")
	flags.StringVar(&options.Local.Evaluation.Data, "eval", "", "labelled data of the consortium's own")
	flags.StringVar(&options.Local.Split, "eval-split", "val", "part of them that the model is judged on")
	flags.BoolVar(&options.Local.Trusted, "trusted", false, "with --naming: hold the sites against what the examples of --eval teach, too")
	flags.IntVar(&options.Local.Every, "eval-every", 0, "rounds from one evaluation to the next (default: a twentieth of all)")
	flags.IntVar(&options.Local.Sites, "sites", 0, "sites that must have approved before the first round (default: all that have not refused)")
	flags.DurationVar(&patience, "patience", 10*time.Minute, "after which the minimum of sites will do")
	flags.BoolVar(&watch, "watch", false, "follow the run until it is over")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	cobra.CheckErr(command.MarkFlagRequired("purpose"))
	command.MarkFlagsMutuallyExclusive("model", "recipe")
	return command
}

// bindTerms adds a flag for each of a federation's terms.
func bindTerms(flags *pflag.FlagSet, terms *federate.Terms, augment *string) {
	flags.StringVar((*string)(&terms.Algorithm), "algorithm", string(terms.Algorithm), "fedavg, fedprox, fedadam, fedyogi, scaffold, or with --dp for patients fedsgd")
	flags.IntVar(&terms.Rounds, "rounds", terms.Rounds, "rounds")
	flags.IntVar(&terms.Epochs, "epochs", terms.Epochs, "epochs of a site in a round")
	flags.IntVar(&terms.Batch, "batch", terms.Batch, "examples of a local step")
	flags.Float64Var(&terms.Rate, "rate", terms.Rate, "local learning rate in the first round")
	flags.Float64Var(&terms.FinalRate, "final-rate", terms.FinalRate, "local learning rate in the last round")
	flags.Float64Var(&terms.Momentum, "momentum", terms.Momentum, "of local steps (default 0 for scaffold)")
	flags.Float64Var(&terms.Decay, "decay", terms.Decay, "weight decay of local steps")
	flags.StringVar(augment, "augment", "none", "of images: shift (by whole pixels) or none")
	flags.Float64Var(&terms.Proximal, "mu", 0, "proximal term of fedprox (default 0.01)")
	flags.Float64Var(&terms.ServerRate, "server-rate", terms.ServerRate, "rate at which the mean update moves the model")
	flags.Float64Var(&terms.Tau, "tau", terms.Tau, "adaptivity of fedadam and fedyogi")
	flags.Float64Var(&terms.Average, "average", 0, "decay of the moving average of the weights that is published (default 0.985 with --dp for patients)")
	flags.Float64Var(&terms.Bound, "bound", terms.Bound, "largest length of a site's update")
	flags.IntVar(&terms.Bits, "bits", 0, "of each number of a masked update on its way, 12 to 31, with --limit; 0 is 32")
	flags.Float64Var(&terms.Limit, "limit", 0, "with --bits: largest size of a number of a weighed update")
	flags.IntVar(&terms.Down, "down-bits", 0, "of each weight on its way to the sites: 16, or 0 for 32")
	flags.IntVar(&terms.MaxExamples, "max-examples", terms.MaxExamples, "examples that a site counts for, at most")
	flags.IntVar(&terms.Minimum, "minimum", terms.Minimum, "sites that a sum must hold")
	flags.IntVar(&terms.Quorum, "quorum", 0, "sites that must be asked for a round of one sum (default more than two thirds of all)")
	flags.IntVar(&terms.GroupSize, "group-size", 0, "sites of a group at least; 0 is one group of all")
	flags.StringVar((*string)(&terms.Rule), "rule", string(terms.Rule), "how groups are combined: "+ruleNames())
	flags.IntVar(&terms.Bad, "bad-groups", 0, "groups that the rule must stand")
	flags.StringVar((*string)(&terms.Naming), "naming", "", "of sites that the evidence of many rounds is against: report or exclude (default: off)")
	flags.Float64Var(&terms.FalseNaming, "false-naming", 0.1, "chance that a run names an honest site, at most, as far as its assumptions hold")
	flags.IntVar(&terms.Sketch, "sketch", 512, "numbers that are kept of each group's sum, for --naming")
	flags.DurationVar(&terms.Deadline, "deadline", terms.Deadline, "how long a step of a round may take a site")
	flags.Uint64Var(&terms.Seed, "seed", 1, "of fresh weights, groups and the orders of examples")
}

func ruleNames() string {
	var names []string
	for _, r := range robust.Rules() {
		if r.Name != robust.FLTrust {
			names = append(names, string(r.Name))
		}
	}
	return strings.Join(names, ", ")
}

// completeTerms fills in what depends on other flags.
func completeTerms(flags *pflag.FlagSet, given federate.Terms, augment, privacy string) (federate.Terms, error) {
	terms := given
	d, err := simulate.ParsePrivacy(privacy)
	if err != nil {
		return terms, err
	}
	if d != nil {
		terms = privateFlags(flags, given, d.Unit)
		if flags.Changed("algorithm") {
			terms.Algorithm = given.Algorithm
		}
		terms.DP = d
	}
	switch terms.Naming {
	case "off", federate.NamingOff:
		terms.Naming, terms.FalseNaming, terms.Sketch = federate.NamingOff, 0, 0
	}
	if terms.Algorithm == federate.FedProx && !flags.Changed("mu") {
		terms.Proximal = 0.01
	}
	if terms.Algorithm == federate.SCAFFOLD && !flags.Changed("momentum") {
		terms.Momentum = 0
	}
	switch {
	case d != nil && d.Unit == federate.Patient && !flags.Changed("augment"):
	case augment == "shift":
		terms.Augmentation = train.Augmentation{Shift: 2, Whole: true}
	case augment == "none":
		terms.Augmentation = train.Augmentation{}
	default:
		return terms, fmt.Errorf("--augment %q: want shift or none", augment)
	}
	return terms, nil
}

// parseShape reads 1x28x28.
func parseShape(text string) ([]int64, error) {
	if text == "" {
		return nil, nil
	}
	var shape []int64
	for part := range strings.SplitSeq(text, "x") {
		n, err := strconv.ParseInt(part, 10, 32)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("--shape %q: want numbers from 1 with x between them, such as 1x28x28", text)
		}
		shape = append(shape, n)
	}
	return shape, nil
}

func newFedStatusCommand() *cobra.Command {
	var (
		dir           string
		watch, asJSON bool
	)
	command := &cobra.Command{
		Use:   "status [RUN]",
		Short: "Say how the runs of a consortium stand; with a name, round by round and site by site",
		Example: `  vigie fed status --dir north
  vigie fed status fedprox-20261128-174501 --dir north --watch
  vigie fed status fedprox-20261128-174501 --dir north --json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := consortium.Open(dir)
			if err != nil {
				return err
			}
			switch {
			case len(args) == 0 && watch:
				return fmt.Errorf("--watch: name a run")
			case len(args) == 0:
				runs, err := c.Runs()
				if err != nil {
					return err
				}
				return writeAs(cmd, asJSON, runs, runs.Write)
			case watch:
				return watchRun(cmd, c, args[0], asJSON)
			}
			progress, err := c.Progress(args[0])
			if err != nil {
				return err
			}
			return writeAs(cmd, asJSON, progress, progress.Write)
		},
	}
	consortiumFlag(command.Flags(), &dir)
	command.Flags().BoolVar(&watch, "watch", false, "follow the run until it is over; with --json, a line for every change")
	command.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return command
}

// watchRun follows a run until it is over.
func watchRun(cmd *cobra.Command, c *consortium.Consortium, run string, asJSON bool) error {
	watcher := consortium.Watcher{Out: cmd.OutOrStdout(), JSON: asJSON}
	if info, err := os.Stdout.Stat(); err == nil && os.Getenv("NO_COLOR") == "" {
		watcher.Terminal = info.Mode()&os.ModeCharDevice != 0
	}
	return c.Watch(cmd.Context(), run, watcher)
}

func newFedHoldCommand(name, short, said string, hold func(*consortium.Consortium, string) error) *cobra.Command {
	var dir string
	command := &cobra.Command{
		Use:     name + " RUN",
		Short:   short,
		Example: fmt.Sprintf("  vigie fed %s fedprox-20261128-174501 --dir north", name),
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := consortium.Open(dir)
			if err != nil {
				return err
			}
			if err := hold(c, args[0]); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), args[0], said)
			return nil
		},
	}
	consortiumFlag(command.Flags(), &dir)
	return command
}
