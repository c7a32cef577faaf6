package main

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train/studies"
)

func newEvalCommand() *cobra.Command {
	var (
		test   probe.Test
		asJSON bool
	)
	command := &cobra.Command{
		Use:   "eval MODEL --data PATH --split NAME",
		Short: "Say how good a model package or an ONNX file is on labelled data",
		Long: `Eval runs labelled data through a model and reports AUC with DeLong's and the
bootstrap's intervals, accuracy, calibration error and confusion.

--data is whatever vigie train takes: FILE.npz in MedMNIST's layout, a folder of
DICOM, PNG or JPEG (with --labels CSV, or a folder for each class), or a table.
--split is train, val, test or all; data that are not divided are split by --seed
as vigie train splits them, so the same seed gives the examples held back.

A package prepares images as it prepares a radiograph, and its calibration and
operating point apply. A bare ONNX file gets pixel values from 0 to 1 in
[N, channels, rows, columns], or the columns of a table as it was trained on
them, and must return logits.`,
		Example: `  vigie eval models/chest-pneumonia-28 --data pneumoniamnist.npz --split val
  vigie eval model.onnx --data radiographs --labels labels.csv --split test --seed 1 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := probe.Open(args[0])
			if err != nil {
				return err
			}
			for _, warning := range m.Warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", warning)
			}
			e, err := m.Evaluate(cmd.Context(), test)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), e)
			}
			return e.Write(cmd.OutOrStdout())
		},
	}
	flags := command.Flags()
	flags.StringVar(&test.Data, "data", "", "FILE.npz, folder, or table (required)")
	flags.StringVar(&test.Split, "split", "", "train, val, test or all (required)")
	readingFlags(flags, &test.Options)
	flags.Uint64Var(&test.Seed, "seed", 1, "of the split, if the data are not divided, and of the bootstrap")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	cobra.CheckErr(command.MarkFlagRequired("data"))
	cobra.CheckErr(command.MarkFlagRequired("split"))
	return command
}

// readingFlags are the flags that say how labelled data are read, beside what the
// model says of it.
func readingFlags(flags *pflag.FlagSet, o *studies.Options) {
	flags.StringVar(&o.Labels, "labels", "", "CSV file that labels the files of a folder")
	flags.StringSliceVar(&o.Classes, "classes", nil, "names of the classes in the model's order, if it does not say")
	flags.StringSliceVar(&o.LabelColumns, "label-column", nil, "column of the label; several hold 0 or 1 each")
	flags.StringVar(&o.FileColumn, "file-column", "", "column of the file names")
	flags.StringVar(&o.PatientColumn, "patient-column", "", "column that tells patients apart")
	flags.StringVar(&o.SplitColumn, "split-column", "", "column of train, val and test")
	flags.Float64SliceVar(&o.Shares, "shares", nil, "shares of training, validation and test [0.7,0.15,0.15]")
	flags.StringVar(&o.Aspect, "aspect", "stretch", "how a bare file's images are brought to size: stretch, pad or centre-crop")
}
