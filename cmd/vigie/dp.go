package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/dp"
)

func newDPCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dp",
		Short: "Plan and account for differential privacy",
	}
	cmd.AddCommand(newDPBudgetCommand())
	return cmd
}

func newDPBudgetCommand() *cobra.Command {
	var (
		plan       dp.Plan
		accountant string
		asJSON     bool
	)
	cmd := &cobra.Command{
		Use:   "budget",
		Short: "Find the missing one of epsilon, noise multiplier, sampling rate and steps",
		Long: `Give delta and three of --epsilon, --sigma, --rate and --steps; the fourth is
found, so that the whole training run stays within the budget.

The guarantee is for DP-SGD with Poisson sampling, under the add-or-remove-one
relation, per record that the sampler draws. The accountant "pld" composes the
privacy loss distribution and is tight; "rdp" is the older, looser Rényi bound.`,
		Example: `  # how much noise for epsilon 8 over 400 steps of about 240 of 4708 images?
  vigie dp budget --epsilon 8 --delta 1e-5 --rate 0.05098 --steps 400

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
					Accountant string  `json:"accountant"`
					Relation   string  `json:"relation"`
					Solved     string  `json:"solved_for"`
				}{solved.Epsilon, solved.Delta, solved.Run.Sigma, solved.Run.Rate, solved.Run.Steps, accountant, "add or remove one record", found})
			}
			fmt.Fprintf(cmd.OutOrStdout(), `epsilon           %.4f
delta             %g
noise multiplier  %.4f
sampling rate     %.6g
steps             %d
accountant        %s, add or remove one record (solved for %s)
`, solved.Epsilon, solved.Delta, solved.Run.Sigma, solved.Run.Rate, solved.Run.Steps, accountant, found)
			return nil
		},
	}
	flags := cmd.Flags()
	flags.Float64Var(&plan.Epsilon, "epsilon", 0, "total budget")
	flags.Float64Var(&plan.Delta, "delta", 1e-5, "probability of exceeding it; well below one over the number of records")
	flags.Float64Var(&plan.Run.Sigma, "sigma", 0, "noise standard deviation over the clipping norm")
	flags.Float64Var(&plan.Run.Rate, "rate", 0, "probability that a record is in a step's batch")
	flags.IntVar(&plan.Run.Steps, "steps", 0, "number of steps")
	flags.StringVar(&accountant, "accountant", "pld", "pld or rdp")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
