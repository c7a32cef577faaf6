package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vigie/vigie/dp"
	"github.com/vigie/vigie/train"
)

func newDPCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dp",
		Short: "Plan and account for differential privacy",
	}
	cmd.AddCommand(newDPBudgetCommand(), newDPLedgerCommand())
	return cmd
}

// privacyFlags are the flags of vigie train that make a run private. They change
// what a named recipe says, or begin from train.Privacy's own defaults.
type privacyFlags struct {
	recipe string
	given  train.Privacy
}

func (p *privacyFlags) add(flags *pflag.FlagSet) {
	var names []string
	for _, r := range train.Recipes() {
		names = append(names, r.Name+" ("+r.About+")")
	}
	flags.StringVar(&p.recipe, "recipe", "", "named network and settings, which other flags change: "+strings.Join(names, ", "))
	flags.Float64Var(&p.given.Epsilon, "dp-epsilon", 0, "train with differential privacy: the budget, of all that the ledger holds")
	flags.Float64Var(&p.given.Delta, "dp-delta", 1e-5, "probability of exceeding it; well below one over the number of examples")
	flags.Float64Var(&p.given.Clip, "dp-clip", 1, "bound of one example's gradient")
	flags.StringVar(&p.given.Clipping, "dp-clipping", train.ClipFlat, "flat, layer, or adaptive: the bound follows a quantile of the norms")
	flags.Float64Var(&p.given.Quantile, "dp-quantile", 0.5, "share of examples left unclipped, adaptive only")
	flags.IntVar(&p.given.Views, "dp-views", 1, "augmentations of an image, averaged before clipping: time, no privacy")
	flags.IntVar(&p.given.Micro, "dp-micro", 64, "examples times views in memory at once for each part")
}

// named returns the flags that were given, so that they can be set again over a
// named recipe; lists are not part of a recipe.
func (p *privacyFlags) named(flags *pflag.FlagSet, take func(name string) error) error {
	if p.recipe == "" {
		return nil
	}
	given := map[string]string{}
	flags.Visit(func(f *pflag.Flag) {
		if !strings.Contains(f.Value.Type(), "Slice") {
			given[f.Name] = f.Value.String()
		}
	})
	if err := take(p.recipe); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if err := flags.Set(name, given[name]); err != nil {
			return err
		}
	}
	return nil
}

// private puts the flags into a recipe.
func (p *privacyFlags) private(flags *pflag.FlagSet, r *train.Recipe) error {
	if r.Private == nil && !flags.Changed("dp-epsilon") {
		for _, name := range []string{"dp-delta", "dp-clip", "dp-clipping", "dp-quantile", "dp-views", "dp-micro"} {
			if flags.Changed(name) {
				return fmt.Errorf("--%s is for private training; give --dp-epsilon, too", name)
			}
		}
		return nil
	}
	out := p.given
	if from := r.Private; from != nil {
		for name, keep := range map[string]func(){
			"dp-epsilon":  func() { out.Epsilon = from.Epsilon },
			"dp-delta":    func() { out.Delta = from.Delta },
			"dp-clip":     func() { out.Clip = from.Clip },
			"dp-clipping": func() { out.Clipping = from.Clipping },
			"dp-quantile": func() { out.Quantile = from.Quantile },
			"dp-views":    func() { out.Views = from.Views },
			"dp-micro":    func() { out.Micro = from.Micro },
		} {
			if !flags.Changed(name) {
				keep()
			}
		}
	}
	if out.Clipping != train.ClipAdaptive {
		out.Quantile = 0
	}
	r.Private = &out
	return nil
}

func newDPLedgerCommand() *cobra.Command {
	var (
		delta  float64
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "ledger FILE",
		Short: "Say what a privacy ledger holds and what all of it costs together",
		Long: `Read the ledger that a private training run charged (privacy.jsonl beside the
model) and account for all its steps together.`,
		Example: `  vigie dp ledger models/mine/privacy.jsonl --delta 1e-5`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			report, err := dp.Account(args[0], delta)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(report)
			}
			return report.Print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().Float64Var(&delta, "delta", 1e-5, "probability of exceeding epsilon")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newDPBudgetCommand() *cobra.Command {
	var (
		plan           dp.Plan
		records, batch int
		accountant     string
		asJSON         bool
	)
	cmd := &cobra.Command{
		Use:   "budget",
		Short: "Find the missing one of epsilon, noise multiplier, sampling rate and steps",
		Long: `Give delta and three of --epsilon, --sigma, --rate and --steps; the fourth is
found, so that the whole training run stays within the budget. --records and
--batch stand for --rate: the expected batch over the number of records. With
--records alone the expected batch of the rate is printed.

The guarantee is for DP-SGD with Poisson sampling, under the add-or-remove-one
relation, per record that the sampler draws. The accountant "pld" composes the
privacy loss distribution and is tight; "rdp" is the older, looser Rényi bound.`,
		Example: `  # how much noise for epsilon 8 over 400 steps of about 240 of 4708 images?
  vigie dp budget --epsilon 8 --delta 1e-5 --rate 0.05098 --steps 400

  # the same, and how large may a batch be at that noise?
  vigie dp budget --epsilon 8 --sigma 1.2 --steps 400 --records 4708

  # what does this run spend?
  vigie dp budget --sigma 1.1 --delta 1e-5 --rate 0.004267 --steps 14062 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var (
				chosen dp.Accountant = dp.PLD{}
				found  string
			)
			switch accountant {
			case "pld":
			case "rdp":
				chosen = dp.RDP{}
			default:
				return fmt.Errorf("accountant %q is not known: choose pld or rdp", accountant)
			}
			for _, given := range []struct {
				name  string
				value float64
				why   string
			}{
				{"epsilon", plan.Epsilon, "a budget of nothing cannot be kept by any amount of noise"},
				{"sigma", plan.Run.Sigma, "without noise no epsilon is finite"},
				{"rate", plan.Run.Rate, "nobody would ever be drawn"},
				{"steps", float64(plan.Run.Steps), "there would be nothing to plan"},
			} {
				if cmd.Flags().Changed(given.name) && !(given.value > 0) {
					return fmt.Errorf("--%s %g: %s; give a positive number, or leave --%s out to have it found", given.name, given.value, given.why, given.name)
				}
			}
			switch {
			case records < 0 || batch < 0 || batch > 0 && records == 0 || batch > records:
				return fmt.Errorf("a batch of %d from %d records: give both, and no larger batch than there are records", batch, records)
			case batch > 0 && plan.Run.Rate != 0:
				return errors.New("--batch stands for --rate; give one of them")
			case batch > 0:
				plan.Run.Rate = float64(batch) / float64(records)
			}
			if records > 0 && plan.Delta*float64(records) >= 1 {
				return fmt.Errorf("delta %g with %d records would allow giving away one of them whole; take %.0e or less", plan.Delta, records, 0.1/float64(records))
			}
			switch {
			case plan.Epsilon == 0:
				found = "epsilon"
			case plan.Run.Sigma == 0:
				found = "sigma"
			case plan.Run.Rate == 0:
				found = "rate"
			case plan.Run.Steps == 0:
				found = "steps"
			}
			solved, err := plan.Solve(chosen)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					Epsilon    float64 `json:"epsilon"`
					Delta      float64 `json:"delta"`
					Sigma      float64 `json:"sigma"`
					Rate       float64 `json:"rate"`
					Steps      int     `json:"steps"`
					Batch      float64 `json:"expected_batch,omitempty"`
					Accountant string  `json:"accountant"`
					Relation   string  `json:"relation"`
					Solved     string  `json:"solved_for"`
				}{solved.Epsilon, solved.Delta, solved.Run.Sigma, solved.Run.Rate, solved.Run.Steps, solved.Run.Rate * float64(records), accountant, "add or remove one record", found})
			}
			fmt.Fprintf(cmd.OutOrStdout(), `epsilon           %.4f
delta             %g
noise multiplier  %.4f
sampling rate     %.6g
steps             %d
accountant        %s, add or remove one record (solved for %s)
`, solved.Epsilon, solved.Delta, solved.Run.Sigma, solved.Run.Rate, solved.Run.Steps, accountant, found)
			if records > 0 {
				expected := solved.Run.Rate * float64(records)
				fmt.Fprintf(cmd.OutOrStdout(), "expected batch    %.1f of %d records, %.1f passes\n", expected, records, float64(solved.Run.Steps)*solved.Run.Rate)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.Float64Var(&plan.Epsilon, "epsilon", 0, "total budget")
	flags.Float64Var(&plan.Delta, "delta", 1e-5, "probability of exceeding it; well below one over the number of records")
	flags.Float64Var(&plan.Run.Sigma, "sigma", 0, "noise standard deviation over the clipping norm")
	flags.Float64Var(&plan.Run.Rate, "rate", 0, "probability that a record is in a step's batch")
	flags.IntVar(&plan.Run.Steps, "steps", 0, "number of steps")
	flags.IntVar(&records, "records", 0, "records of the data set, to state the rate as a batch")
	flags.IntVar(&batch, "batch", 0, "expected batch")
	flags.StringVar(&accountant, "accountant", "pld", "pld or rdp")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
