package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/probe"
)

func newGradCommand() *cobra.Command {
	var (
		request    probe.Request
		inputs     []string
		label, out string
		asJSON     bool
	)
	command := &cobra.Command{
		Use:   "grad MODEL --input x.npy --label y.npy --loss cross-entropy --wrt weights",
		Short: "Gradients of any ONNX file, to compare with other frameworks",
		Long: `Grad computes a loss of a model's output and its gradients with respect to the
inputs, the weights or any inner tensor, from the ONNX file alone.

Losses:
  cross-entropy  labels: classes [N] or distributions [N, K], whose rows add up
                 to 1; mean over examples
  bce            labels: 0 to 1, [N, K]; sum over labels, mean over examples
  sum            sum of the output's elements, no labels

With --per-example each example's own gradient is written: that of a weight of
shape S has shape [N, S...]. Each gradient has the name of its tensor.`,
		Example: `  vigie grad network.onnx --input x.npy --label y.npy --loss cross-entropy --wrt weights --out gradients.safetensors
  vigie grad network.onnx --input x.npy --label y.npy --loss bce --wrt input --per-example --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := probe.Open(args[0])
			if err != nil {
				return err
			}
			given, err := m.Inputs(inputs...)
			if err != nil {
				return err
			}
			if label != "" {
				labels, err := probe.ReadArray(label)
				if err != nil {
					return err
				}
				request.Labels = &labels
			}
			g, err := m.Gradient(cmd.Context(), given, request)
			if err != nil {
				return err
			}
			if out != "" {
				if err := probe.Save(out, g.Tensors, g.Metadata()); err != nil {
					return err
				}
			}
			if asJSON {
				for _, warning := range g.Warnings { // they are in the JSON, too
					fmt.Fprintln(cmd.ErrOrStderr(), "warning:", warning)
				}
				return writeJSON(cmd.OutOrStdout(), g)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s %.9g over %d examples\n", g.Loss, g.Value, len(g.Each))
			writeFigures(cmd, g.Gradients, g.Warnings)
			fmt.Fprintf(cmd.OutOrStdout(), "computed in %s\n", g.Duration.Round(10*time.Microsecond))
			return nil
		},
	}
	flags := command.Flags()
	flags.StringArrayVar(&inputs, "input", nil, "x.npy, NAME=x.npy (repeat for several inputs), x.safetensors, or a table x.csv")
	flags.StringVar(&label, "label", "", "labels, .npy")
	flags.StringVar(&request.Loss, "loss", probe.CrossEntropy, strings.Join(probe.Losses(), ", "))
	flags.StringVar(&request.Output, "output", "", "output or inner tensor that the loss is of (default the only output)")
	flags.StringArrayVar(&request.WithRespectTo, "wrt", []string{probe.Inputs}, "input, weights, or the name of a tensor; repeat for several")
	flags.BoolVar(&request.PerExample, "per-example", false, "each example's own gradient")
	flags.StringVar(&out, "out", "", "file for the gradients: .safetensors, .npz or .npy (one gradient)")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	cobra.CheckErr(command.MarkFlagRequired("input"))
	return command
}
