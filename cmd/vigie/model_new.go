package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx/zoo"
)

func newModelNewCommand() *cobra.Command {
	var (
		options    zoo.Options
		input, out string
		seed       uint64
		asJSON     bool
	)
	var members strings.Builder
	for _, a := range zoo.Architectures() {
		fmt.Fprintf(&members, "  %-16s %s; input %s\n", a.Name, a.About, a.Input)
	}
	cmd := &cobra.Command{
		Use:   "new ARCHITECTURE --input 1x224x224 --labels normal,pneumonia [--out FILE.onnx|DIR]",
		Short: "Build a known architecture with fresh weights, ready to train",
		Long: `New builds an ONNX graph with initial weights, for any size of input. It writes a
.onnx file, or starts a model package in a new folder, as model init does.

Architectures:
` + members.String(),
		Example: `  vigie model new resnet18 --input 1x224x224 --labels normal,pneumonia
  vigie model new densenet121 --input 3x320x320 --labels nodule,mass,edema --norm group --seed 7 --out my-model`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if options.Input, err = zoo.ParseInput(input); err != nil {
				return err
			}
			options.Classes = len(options.Labels)
			if out == "" {
				out = args[0] + ".onnx"
			}
			n, err := zoo.Build(args[0], options, rand.New(rand.NewPCG(seed, 0)))
			if err != nil {
				return err
			}
			if _, err := os.Lstat(out); err == nil {
				return fmt.Errorf("model new: %s exists already: name another with --out", out)
			}
			if strings.HasSuffix(out, ".onnx") {
				err = n.Model.Save(out)
			} else {
				var data []byte
				if data, err = n.Model.Marshal(); err == nil {
					err = model.Init(out, filepath.Base(out), data)
				}
			}
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					Architecture string   `json:"architecture"`
					Input        []int64  `json:"input"`
					Labels       []string `json:"labels"`
					Norm         string   `json:"norm"`
					Parameters   int64    `json:"parameters"`
					Seed         uint64   `json:"seed"`
					Out          string   `json:"out"`
				}{args[0], options.Input, options.Labels, options.Norm, n.Parameters(), seed, out})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d parameters, seed %d, written to %s\n", args[0], n.Parameters(), seed, out)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&input, "input", "", "shape of one example, such as 1x224x224 (required)")
	flags.StringSliceVar(&options.Labels, "labels", nil, "names of the classes, separated by commas (required)")
	flags.StringVar(&options.Norm, "norm", zoo.BatchNorm, "normalisation: batch or group")
	flags.Int64Var(&options.Groups, "groups", 0, "most groups of a group normalisation [32]")
	flags.Float32SliceVar(&options.Mean, "mean", nil, "mean of each channel, subtracted within the graph")
	flags.Float32SliceVar(&options.Deviation, "deviation", nil, "deviation of each channel, divided by within the graph")
	flags.Uint64Var(&seed, "seed", 1, "seed of the weights")
	flags.StringVar(&out, "out", "", "file that ends in .onnx, or new folder for a package [ARCHITECTURE.onnx]; it must not exist")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	for _, name := range []string{"input", "labels"} {
		cobra.CheckErr(cmd.MarkFlagRequired(name))
	}
	return cmd
}
