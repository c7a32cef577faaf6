package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/probe"
)

func newExplainCommand() *cobra.Command {
	var (
		question probe.Question
		method   string
		score    string
		out      []string
		asJSON   bool
	)
	var methods []string
	about := ""
	for _, d := range explain.Methods() {
		methods = append(methods, string(d.Method))
		about += fmt.Sprintf("  %-21s%s\n", d.Method, d.About)
	}
	command := &cobra.Command{
		Use:   "explain MODEL {--input FILE | --data PATH --split NAME} --method NAME",
		Short: "Show on which parts of an input a model's answer rests, and whether the map can be believed",
		Long: `Explain makes a map of one answer of a model package or an ONNX file, for an
image, a sequence or a row of a table.

Methods:
` + about + `
With --check the map is put to the test: what it marks is removed and restored,
compared with random maps of the same grain, and the model's weights are
randomised, after which the map must differ. A map that does not explain the
answer is labelled so, in the drawing too.

A table is read as vigie eval reads it: a model that vigie train made of one knows
which columns it reads and how texts, missing values and scales become numbers.
What is explained are then the columns: their numbers count together.

Backgrounds (what "not there" looks like): black, mean (the input's own), blur,
data (other examples), or rows in an .npy or .csv file.`,
		Example: `  vigie explain models/chest-pneumonia-28 --input chest.dcm --method gradcam++ --out map.png --check
  vigie explain network.onnx --data pneumoniamnist.npz --split val --index 7 --method integrated-gradients --background blur --out map.npy
  vigie explain tabular.onnx --input rows.csv --index 3 --method kernelshap --background data --json
  vigie explain risk.onnx --data patients.csv --split test --seed 1 --index 3 --method kernelshap`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := probe.Open(args[0])
			if err != nil {
				return err
			}
			question.Method, question.Options.Score = explain.Method(method), explain.Score(score)
			question.Options.Progress = progressLine(cmd)
			question.Reading.Seed = question.Options.Seed
			e, err := m.Explain(cmd.Context(), question)
			if err != nil {
				return err
			}
			for _, path := range out {
				if err := e.Save(path); err != nil {
					return err
				}
			}
			for _, warning := range e.Warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", warning)
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), e)
			}
			return e.Write(cmd.OutOrStdout())
		},
	}
	flags := command.Flags()
	flags.StringVar(&question.Input, "input", "", ".npy, .csv, PNG, JPEG or DICOM")
	flags.StringVar(&question.Data, "data", "", "data set as vigie eval takes it: FILE.npz, folder, or table")
	flags.StringVar(&question.Split, "split", "val", "of --data: train, val, test or all")
	flags.IntVar(&question.Index, "index", 0, "example of --data or row of --input, from 0")
	flags.StringSliceVar(&question.Names, "names", nil, "names of a table's features, with commas (default a .csv's header)")
	readingFlags(flags, &question.Reading)
	flags.StringVar(&method, "method", string(explain.GradCAM), strings.Join(methods, ", "))
	flags.StringVar(&question.Class, "class", "", "label or number to explain (default a package's target, otherwise the most probable)")
	flags.StringVar(&question.Background, "background", "", "black, mean, blur, data, FILE.npy or FILE.csv (default mean; of a table data)")
	flags.StringVar(&score, "score", string(explain.Logit), "what is explained: logit, log-odds or probability")
	flags.StringVar(&question.Options.Layer, "layer", "", "tensor for gradcam (default a package's, otherwise the last convolution's)")
	flags.IntVar(&question.Options.Samples, "samples", 0, "of a method that samples (default by method)")
	flags.IntVar(&question.Options.Segments, "segments", 0, "pieces for kernelshap and lime (default about 50)")
	flags.IntVar(&question.Options.Window, "window", 0, "side of the window for occlusion, pixels")
	flags.IntVar(&question.Options.Batch, "batch", 0, "examples in one run of the model (default by size)")
	flags.Uint64Var(&question.Options.Seed, "seed", 1, "seed of all random choices, and of the split of --data that is not divided")
	flags.BoolVar(&question.Check, "check", false, "put the map to the test and label it")
	flags.IntVar(&question.Tests.RandomMaps, "random-maps", 0, "of --check: maps to compare with (default 39)")
	flags.IntVar(&question.Tests.Randomisations, "randomisations", 0, "of --check: times the weights are randomised (default 5)")
	flags.StringArrayVar(&out, "out", nil, "file: .png (map over the image), .npy (values) or .csv (features); repeat for several")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return command
}

// progressLine rewrites a line on standard error for work of more than a second;
// where that is no terminal, it writes one every half minute.
func progressLine(cmd *cobra.Command) func(done, total int) {
	start, last := time.Now(), time.Time{}
	begin, end, every := "", "\n", 30*time.Second
	if file, is := cmd.ErrOrStderr().(*os.File); is {
		if info, err := file.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
			begin, end, every = "\r", "", 200*time.Millisecond
		}
	}
	return func(done, total int) {
		now := time.Now()
		if now.Sub(start) < time.Second || now.Sub(last) < every && done < total {
			return
		}
		last = now
		closing := end
		if done == total {
			closing = "\n"
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "%s%d of %d%s", begin, done, total, closing)
	}
}
