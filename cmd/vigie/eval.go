package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/probe"
)

func newEvalCommand() *cobra.Command {
	var (
		test   probe.Test
		asJSON bool
	)
	command := &cobra.Command{
		Use:   "eval MODEL --data FILE.npz --split NAME",
		Short: "Say how good a model package or an ONNX file is on labelled images",
		Long: `Eval runs a split of a data set in MedMNIST's .npz layout through a model and
reports AUC with DeLong's interval, accuracy, calibration error and confusion.

A package prepares the images as it prepares a radiograph, and its calibration
and operating point apply. A bare ONNX file gets pixel values from 0 to 1 in
[N, channels, rows, columns] and must return logits.`,
		Example: `  vigie eval models/chest-pneumonia-28 --data pneumoniamnist.npz --split val
  vigie eval network.onnx --data breastmnist.npz --split test --json`,
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
	flags.StringVar(&test.Data, "data", "", "data set, .npz in MedMNIST's layout")
	flags.StringVar(&test.Split, "split", "", "train, val or test")
	flags.Uint64Var(&test.Seed, "seed", 1, "seed of the bootstrap")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	cobra.CheckErr(command.MarkFlagRequired("data"))
	cobra.CheckErr(command.MarkFlagRequired("split"))
	return command
}
