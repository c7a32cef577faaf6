package main

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vigie/vigie/gateway"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/guard/job"
	"github.com/vigie/vigie/probe"
)

// bindImages adds the flags that name labelled images.
func bindImages(flags *pflag.FlagSet, t *probe.Test) {
	flags.StringVar(&t.Data, "data", "", "folder, or .npz (required)")
	flags.StringVar(&t.Split, "split", "", "train, val, test or all (required)")
	flags.StringVar(&t.Labels, "labels", "", "CSV file that labels the files of a folder")
	flags.StringSliceVar(&t.LabelColumns, "label-column", nil, "column of the label")
	flags.StringVar(&t.FileColumn, "file-column", "", "column of the file names")
	flags.StringVar(&t.PatientColumn, "patient-column", "", "column that tells patients apart")
	flags.StringVar(&t.SplitColumn, "split-column", "", "column of train, val and test")
	flags.Float64SliceVar(&t.Shares, "shares", nil, "shares of training, validation and test [0.7,0.15,0.15]")
	flags.Uint64Var(&t.Seed, "seed", 1, "of what is drawn")
}

func requireImages(command *cobra.Command) {
	cobra.CheckErr(command.MarkFlagRequired("data"))
	cobra.CheckErr(command.MarkFlagRequired("split"))
}

func newModelFitCommand() *cobra.Command {
	var (
		fit    job.Fit
		asJSON bool
	)
	command := &cobra.Command{
		Use:   "fit PACKAGE --data PATH --split NAME",
		Short: "Fit guards of the input and verifiers of the answer to a package, and seal it anew",
		Long: `Fit looks at images of the kind that the model will meet and writes down what is
usual of them: inside the model, in noise and detail, among each other, and in its
answers. The enclave then says of every case how unusual it is and which answers
cannot be ruled out, and sends the doubtful ones to a person.

The images must not be among those that the model was trained on. They are divided
by patient into a part to fit on and a part to calibrate on. As long as new images
are of the same kind, at most --false-alarms of them raise an alarm. One per cent
takes 160 images or more; --without-guards leaves the guards of the input out.

Labels are needed for prediction sets: of the images of any one label, at least
--coverage get a set that holds it. A set with more than one answer goes to a person.
--risk also sends answers that are not sure enough for a stated share of wrong ones.
If the manifest asks for disagreement, it is calibrated too.

--review-budget states instead what share of clean cases may go to people: it
chooses false alarms, coverage and disagreement so that the expected share is at most
that, counting the manifest's borderline band, its rules and --margin, and records
what each takes. A budget that cannot be kept is refused.

guards.safetensors and verifiers.json belong to this very model: another refuses
them. The package's digest changes; pin the new one.`,
		Example: `  vigie model fit models/chest --data pneumoniamnist.npz --split val
  vigie model fit models/chest --data radiographs --labels labels.csv --patient-column patient --split val --review-budget 0.15 --json
  vigie model fit models/breast --data breastmnist.npz --split val --without-guards --coverage 0.9`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			fit.Package = args[0]
			fit.Options.Seed = fit.Data.Seed
			fit.Options.Progress = progressLine(cmd)
			fitted, err := fit.Run(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), fitted)
			}
			return fitted.Write(cmd.OutOrStdout())
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	bindImages(flags, &fit.Data)
	flags.Float64Var(&fit.Options.FalseAlarms, "false-alarms", 0, "promised share of clean images with an alarm of the guards; 0 is 0.01, or a fifth of a small budget")
	flags.Float64Var(&fit.Options.SecondLook, "second-look", guard.DefaultSecondLook, "share of clean images that get a second, dearer look; 1 is every image")
	flags.BoolVar(&fit.WithoutGuards, "without-guards", false, "fit the verifiers of the answer only")
	flags.Float64Var(&fit.Verify.Coverage, "coverage", 0, "stated coverage of the prediction sets, of each label; 0 is 0.95, or what the budget allows; -1: no sets")
	flags.StringVar(&fit.Verify.Score, "score", guard.LAC, "of the sets: lac (smallest), or aps (grow with difficulty)")
	flags.Float64Var(&fit.Verify.Risk, "risk", 0, "share of wrong answers among the released ones, at most; 0: none is stated")
	flags.Float64Var(&fit.Verify.Certain, "certainty", guard.DefaultCertain, "that the risk is kept")
	flags.Float64Var(&fit.Verify.Unstable, "unstable", 0, "share of clean images with an alarm of disagreement; 0 is 0.01, or what the budget allows")
	flags.Float64Var(&fit.Verify.Review, "review-budget", 0, "share of clean cases that may go to people; 0: none is stated")
	flags.Float64Var(&fit.Verify.Margin, "margin", gateway.Default().Review.Margin, "review.margin of the gateway, which a budget counts")
	flags.IntVar(&fit.Options.Threads, "threads", 0, "of the engine; 0 is two, or one on a single core")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	requireImages(command)
	return command
}

func newGuardCommand() *cobra.Command {
	var (
		try    job.Try
		asJSON bool
	)
	command := &cobra.Command{
		Use:   "guard PACKAGE --data PATH --split NAME",
		Short: "Ask a package's guards and verifiers about images: how often they raise an alarm, and why",
		Long: `Guard runs images through a package, its guards and its verifiers as the enclave
would, and counts alarms. On clean images they are false ones; on images that vigie
attack saved they are what would have been noticed. With labels it says how often
the prediction sets held the true one, how many cases would go to people, and how
many of the released answers are right. What an attacker gets past the guards who
knows them is asked by vigie attack --guards both.`,
		Example: `  vigie guard models/chest --data pneumoniamnist.npz --split test
  vigie guard models/chest --data attacked.npz --split test --each --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			try.Package = args[0]
			tried, err := try.Run(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), tried)
			}
			return tried.Write(cmd.OutOrStdout())
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	bindImages(flags, &try.Data)
	flags.IntVar(&try.Threads, "threads", 0, "of the engine; 0 is two, or one on a single core")
	flags.Float64Var(&try.Margin, "margin", gateway.Default().Review.Margin, "review.margin of the gateway, for the share that goes to people")
	flags.BoolVar(&try.Each, "each", false, "with --json: also what was said of each image")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	requireImages(command)
	return command
}
