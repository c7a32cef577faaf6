package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/probe"
)

func newRunCommand() *cobra.Command {
	var (
		inputs, outputs []string
		out             string
		asJSON          bool
	)
	command := &cobra.Command{
		Use:   "run MODEL --input x.npy",
		Short: "Run any ONNX file or model package on arrays, to compare with other frameworks",
		Long: `Run computes the outputs of a model (an ONNX file, or a package's folder) from
NumPy arrays and writes them to a .npz, .npy or .safetensors file.

Numbers are taken as they are: bytes 0..255 reach a float input as 0 to 255. A
dimension that the model leaves open takes the array's size. A table (.csv) is read
as vigie eval reads it: by the encoding that vigie train keeps in a model, or as
numbers under a header.`,
		Example: `  vigie run network.onnx --input x.npy --out y.npy
  vigie run bert.onnx --input input_ids=ids.npy --input attention_mask=mask.npy --out out.npz --json`,
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
			answer, err := m.Run(cmd.Context(), given, outputs...)
			if err != nil {
				return err
			}
			if out != "" {
				if err := probe.Save(out, answer.Tensors, nil); err != nil {
					return err
				}
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), answer)
			}
			writeFigures(cmd, answer.Outputs, answer.Warnings)
			fmt.Fprintf(cmd.OutOrStdout(), "computed in %s\n", answer.Duration.Round(10*time.Microsecond))
			return nil
		},
	}
	flags := command.Flags()
	flags.StringArrayVar(&inputs, "input", nil, "x.npy, NAME=x.npy (repeat for several inputs), x.safetensors, or a table x.csv")
	flags.StringArrayVar(&outputs, "output", nil, "output or inner tensor to compute; repeat for several (default all outputs)")
	flags.StringVar(&out, "out", "", "file for the outputs: .npz, .npy (one output) or .safetensors")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	cobra.CheckErr(command.MarkFlagRequired("input"))
	return command
}

func writeJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

// writeFigures prints a line for each tensor; warnings go to standard error.
func writeFigures(cmd *cobra.Command, figures []probe.Figures, warnings []string) {
	for _, f := range figures {
		if strings.ContainsFunc(f.Name, func(r rune) bool { return !unicode.IsPrint(r) }) {
			f.Name = strconv.Quote(f.Name) // a model's names do not steer the terminal
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s %s%v  norm %.6g, mean %.6g, from %.6g to %.6g\n", f.Name, f.Type, f.Shape, f.Norm, f.Mean, f.Min, f.Max)
	}
	for _, warning := range warnings {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning:", warning)
	}
}
