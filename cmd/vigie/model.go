package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard"
	"github.com/vigie/vigie/guard/job"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/onnx/autodiff"
)

func newModelCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "model",
		Short: "Look into, check, make and seal model packages",
		Long: `A model package is a folder: manifest.yaml (intended use, accepted images, input,
output, labels, rules), model.onnx, calibration.json, card.md and digest, the
SHA-256 of every other file. The digest of the digest file names the model in
every finding and audit record.`,
	}
	cmd.AddCommand(newModelInspectCommand(), newModelCheckCommand(), newModelSealCommand(), newModelInitCommand(), newModelNewCommand(), newModelSurveyCommand(), newModelFitCommand(), newModelTriggersCommand())
	return cmd
}

func newModelInspectCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect DIR|FILE",
		Short: "Say what a package is, once it is verified, or what an ONNX file holds and can do",
		Long: `Of a package: what it is, once its digest is verified. Of an ONNX file: its inputs,
outputs and size, and for each operator how often it is used, its share of the
multiply-accumulates, its parameters, the bytes of its results for a batch of
one, whether it can run, be differentiated, and give gradients per example; where
it can not, why and what to do. docs/operators.md has the whole table.`,
		Example: `  vigie model inspect models/chest-pneumonia-28
  vigie model inspect resnet18.onnx --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if info, err := os.Stat(args[0]); err == nil && info.Mode().IsRegular() {
				m, err := onnx.Load(args[0])
				if err != nil {
					return err
				}
				graph, err := autodiff.Inspect(m, canRun)
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(graph)
				}
				_, err = fmt.Fprint(cmd.OutOrStdout(), graph)
				return err
			}
			p, err := model.Open(args[0])
			if err != nil {
				return err
			}
			verifiers, err := job.Verifiers(p)
			stale := errors.Is(err, guard.ErrOtherModel)
			if err != nil && !stale {
				return err
			}
			summary := p.Summary()
			if asJSON {
				if verifiers != nil {
					summary.Verifiers = verifiers.Summary()
				}
				return summary.WriteJSON(cmd.OutOrStdout())
			}
			if err := summary.Write(cmd.OutOrStdout()); err != nil {
				return err
			}
			if stale {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%-13s %s\n", "verifiers", "were fitted to another package: no enclave takes it; fit them again with vigie model fit")
				return err
			}
			if verifiers == nil {
				return nil
			}
			return job.WriteVerifiers(cmd.OutOrStdout(), verifiers)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "write JSON")
	return cmd
}

// canRun says why the runtime cannot run a model, nil if it can.
func canRun(m *onnx.Model) error {
	session, err := engine.Open(m, engine.Options{Threads: 1})
	if err != nil {
		return err
	}
	return session.Close()
}

func newModelCheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check DIR",
		Short: "Verify a package's digest, that manifest and graph agree, and say which explanations explain",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := model.Open(args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s is sound: %s\n", p.Manifest.Name, p.Manifest.Version, p.Digest)
			for _, name := range p.Manifest.Explanation.Methods() {
				line := name + " was not surveyed: the enclave measures itself, each time it loads the package, whether the weights matter to its maps; vigie model survey --write measures more, once"
				if surveyed := p.Explained.Of(name); surveyed != nil {
					line = surveyed.Line()
				}
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), "explanation:", line); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func newModelSealCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "seal DIR",
		Short: "Check a package and write its digest file",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			digest, err := model.Seal(args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), digest)
			return err
		},
	}
}

func newModelInitCommand() *cobra.Command {
	var graph, name string
	cmd := &cobra.Command{
		Use:     "init DIR --onnx FILE --name NAME",
		Short:   "Start a package from an ONNX graph; its manifest names what is left to fill in",
		Example: "  vigie model init ./my-model --onnx densenet.onnx --name my-model\n  vigie model seal ./my-model",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := os.ReadFile(graph)
			if err != nil {
				return fmt.Errorf("reading the graph: %w", err)
			}
			if err := model.Init(args[0], name, data); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Fill in %s/manifest.yaml and card.md, then run: vigie model seal %s\n", args[0], args[0])
			return err
		},
	}
	cmd.Flags().StringVar(&graph, "onnx", "", "the ONNX file (required)")
	cmd.Flags().StringVar(&name, "name", "", "name of the package: lower-case letters, digits and hyphens (required)")
	cobra.CheckErr(cmd.MarkFlagRequired("onnx"))
	cobra.CheckErr(cmd.MarkFlagRequired("name"))
	return cmd
}
