package main

import (
	"os"

	"github.com/spf13/cobra"

	attackjob "github.com/vigie/vigie/attack/job"
	"github.com/vigie/vigie/attack/poison/job"
)

func newModelTriggersCommand() *cobra.Command {
	var (
		t      job.Triggers
		asJSON bool
	)
	command := &cobra.Command{
		Use:   "triggers MODEL --data PATH --split NAME",
		Short: "Search a model package or an ONNX file for triggers that were trained into it",
		Long: `Triggers looks, for each class, for the smallest mask and for the strongest small
patch that turn images of other classes to it: one for all images, made of some and
tried on others. Clean images that the model was not trained on are needed.

Any model can be turned by small patches. A trigger that was trained in does more:
nearly every image gets the log-odds of the class's own images. Strength is what
nine tenths of the held-out images reach of that. docs/data-audit.md says on which
models the rule was measured, and how often it was wrong.

--reference names models of the same kind, trained on data that are trusted: what
the same search finds in them is then what is usual.`,
		Example: `  vigie model triggers model.onnx --data pneumoniamnist.npz --split val --html triggers.html
  vigie model triggers models/chest --data radiographs --labels labels.csv --split test --save triggers --json
  vigie model triggers bought.onnx --data own.npz --split val --reference a.onnx,b.onnx,c.onnx --fail-found`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			t.Model, t.Command = args[0], commandLine(os.Args)
			t.Search.Seed = t.Data.Seed
			t.Progress = attackjob.Terminal(cmd.ErrOrStderr())
			r, err := t.Run(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), r)
			} else {
				err = r.Write(cmd.OutOrStdout())
			}
			if err != nil {
				return err
			}
			return r.Err()
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	bindImages(flags, &t.Data)
	flags.StringSliceVar(&t.References, "reference", nil, "models of the same kind that are known to be clean")
	flags.IntSliceVar(&t.Search.Sides, "sides", nil, "sides of patches, pixels (default 3, and of larger images also a tenth of the shorter side)")
	flags.IntVar(&t.Search.Images, "images", 0, "that a trigger is made of at most; as many or more are held out (default 64)")
	flags.IntVar(&t.Search.Steps, "steps", 0, "of the search for a mask (default 200)")
	flags.StringVar(&t.Label, "label", "", "of labels that do not exclude each other, the one that is asked about")
	flags.Float64SliceVar(&t.Mean, "mean", nil, "of a bare file's input: one number, or one for each channel")
	flags.Float64SliceVar(&t.Std, "std", nil, "of a bare file's input, likewise")
	flags.StringVar(&t.Output, "output", "", "output of a bare file that holds the classes (default the only one)")
	flags.StringVar(&t.HTML, "html", "", "FILE.html with the triggers")
	flags.StringVar(&t.Save, "save", "", "folder for the triggers as PNG")
	flags.BoolVar(&t.FailFound, "fail-found", false, "exit with status 3 if a trigger is found")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	requireImages(command)
	return command
}
