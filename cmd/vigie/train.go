package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vigie/vigie/onnx/zoo"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/job"
)

func newTrainCommand() *cobra.Command {
	o := job.Default()
	var (
		asJSON       bool
		config, size string
		privacy      privacyFlags
	)
	members := []string{job.Demo}
	for _, a := range zoo.Architectures() {
		members = append(members, a.Name)
	}
	command := &cobra.Command{
		Use:   "train [NETWORK] --data PATH --out model.onnx",
		Short: "Train a network on images or a table, or go on from any ONNX file",
		Long: `Train fits a network to labelled data and says how good it is.

NETWORK is one of ` + strings.Join(members, ", ") + `.
Without it, and without --from, it is demo, a small CNN for small images.

--data is one of
  a folder of DICOM, PNG or JPEG  with --labels CSV (columns file, label and, if
                                  known, patient and split), or a folder for each
                                  class, below train/ val/ test/ if divided
  FILE.npz                        in MedMNIST's layout
  FILE.csv                        a table; its column label (or the last) is learnt

Data that are not divided are split by patient and class, the same way for the
same --seed. A patient on both sides of a split, a row without its patient, a label
outside the classes, a class that too few examples have, values that are not
numbers, and sizes that do not fit are errors before training starts. Classes are
those of --classes, or of the names in --head; without both, those that occur.

--out is a folder, or a file: model.onnx, and beside it the weights as
safetensors, calibration.json (temperature), training.json (recipe, data, AUC
with DeLong's and the bootstrap's intervals, operating points, history) and
the learning curves as PNG and SVG. Epoch, temperature and operating point are
chosen on the validation split; the test split is looked at once, at the end. One
run at a time writes to a place.

With --dp-epsilon, or a recipe that has it, training is differentially private
(DP-SGD): the report says what is promised, and privacy.jsonl beside the model is
the ledger. Another run into the same place adds to it.

With --checkpoint a run that was killed goes on where it was and ends with the
same weights bit for bit. Ctrl-C saves the last step, says where and with which
command the run goes on, and exits with status 130. The same seed gives the same model on the same type of
processor.

Every flag may also be set by a variable (--batch is VIGIE_TRAIN_BATCH) or in
a YAML file (--config; "batch: 32"). Flags win over variables, variables over
the file.`,
		Example: `  vigie train resnet18 --data radiographs --labels labels.csv --size 224 --out model.onnx --epochs 20 --seed 1 --json
  vigie train --data pneumoniamnist.npz --out models/chest-pneumonia-28
  vigie train --recipe private-28 --data pneumoniamnist.npz --out models/private --dp-epsilon 8 --dp-delta 1e-5
  vigie train tabular-mlp --data patients.csv --label-column outcome --out risk.onnx
  vigie train --from densenet121.onnx --head normal,pneumonia --freeze 'features.*' --data radiographs --out mine.onnx`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := job.Settings(cmd.Flags(), config, os.Environ()); err != nil {
				return err
			}
			if len(args) > 0 {
				o.Network = args[0]
			}
			if err := privacy.named(cmd.Flags(), o.SetRecipe); err != nil {
				return err
			}
			if err := privacy.private(cmd.Flags(), &o.Recipe); err != nil {
				return err
			}
			if err := o.SetSize(size); err != nil {
				return err
			}
			report, err := o.Run(cmd.Context(), job.Terminal(cmd.ErrOrStderr()))
			var stopped *train.Interrupted
			if errors.As(err, &stopped) {
				return fmt.Errorf("%w\n%s", err, job.Resume(stopped, os.Args, os.Environ()))
			}
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), report)
			}
			return job.Write(cmd.OutOrStdout(), report, o.Out)
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	flags.StringVar(&config, "config", os.Getenv(job.EnvPrefix+"CONFIG"), "YAML file of settings")
	trainingFlags(flags, &o, &size)
	flags.StringVar(&o.Norm, "norm", zoo.BatchNorm, "normalisation of a network of the zoo: batch or group")
	flags.StringVar(&o.From, "from", "", "ONNX file to go on from")
	privacy.add(flags)
	flags.BoolVar(&asJSON, "json", false, "print the report as JSON")
	return command
}

// trainingFlags are the flags of data, network and recipe that every command that
// trains has.
func trainingFlags(flags *pflag.FlagSet, o *job.Options, size *string) {
	flags.StringVar(&o.Data.Data, "data", "", "folder, .npz or .csv (required)")
	flags.StringVar(&o.Data.Labels, "labels", "", "CSV file that labels the files of a folder")
	flags.StringVar(&o.Out, "out", "", "folder, or file that ends in .onnx (required)")
	flags.StringSliceVar(&o.Data.Classes, "classes", nil, "names of the classes in order; others are errors")
	flags.StringSliceVar(&o.Data.LabelColumns, "label-column", nil, "column of the label; several hold 0 or 1 each")
	flags.StringVar(&o.Data.FileColumn, "file-column", "", "column of the file names")
	flags.StringVar(&o.Data.PatientColumn, "patient-column", "", "column that tells patients apart")
	flags.StringVar(&o.Data.SplitColumn, "split-column", "", "column of train, val and test")
	flags.StringSliceVar(&o.Data.LeaveOut, "leave-out", nil, "columns of a table that are not used")
	flags.StringSliceVar(&o.Data.Categorical, "categorical", nil, "columns of a table whose numbers are codes")
	flags.Float64SliceVar(&o.Data.Shares, "shares", nil, "shares of training, validation and test [0.7,0.15,0.15]")
	flags.StringVar(size, "size", "", "bring images to this size: 224, or ROWSxCOLUMNS")
	flags.IntVar(&o.Data.Channels, "channels", 0, "1 for grey, 3 for colour; 0 is as the images are")
	flags.StringVar(&o.Data.Aspect, "aspect", "stretch", "how: stretch, pad or centre-crop")
	flags.IntVar(&o.Members, "members", 0, "networks that answer together: trained side by side from different weights, averaged in one graph; 0 is as the recipe has it")
	flags.StringVar(&o.Weights, "weights", "", "safetensors file whose tensors replace weights of the same name")
	flags.StringVar(&o.Output, "output", "", "output of the file to train, if not the first")
	flags.StringVar(&o.Head, "head", "", "new last layer for the file: auto, a number, or the names of the classes")
	flags.StringSliceVar(&o.Freeze, "freeze", nil, "patterns of weights that stay as they are, such as 'layer1.*'")
	flags.IntVar(&o.Recipe.Epochs, "epochs", o.Recipe.Epochs, "passes over the training examples")
	flags.IntVar(&o.Recipe.Batch, "batch", o.Recipe.Batch, "examples a step")
	flags.StringVar(&o.Recipe.Optimizer, "optimizer", o.Recipe.Optimizer, "adamw or sgd")
	flags.Float64Var(&o.Recipe.Rate, "rate", 0, "peak learning rate; 0 is one that suits the network")
	flags.Float64Var(&o.Recipe.Warmup, "warmup", o.Recipe.Warmup, "epochs of linear warm-up before the cosine")
	flags.Float64Var(&o.Recipe.Momentum, "momentum", o.Recipe.Momentum, "of sgd")
	flags.Float64Var(&o.Recipe.Decay, "decay", o.Recipe.Decay, "weight decay of matrices and kernels")
	flags.Float64Var(&o.Recipe.Clip, "clip", 0, "largest norm of a gradient; 0 is off")
	flags.Float64Var(&o.Recipe.Average, "ema", o.Recipe.Average, "decay of the moving average of weights; 0 is off")
	flags.Float64Var(&o.Recipe.Smoothing, "label-smoothing", 0, "share of the target spread over all classes")
	flags.Float64Var(&o.Recipe.Mixup, "mixup", 0, "parameter of the Beta distribution; 0 is off")
	flags.IntVar(&o.Recipe.Patience, "patience", 0, "stop after so many epochs without a better validation AUC; 0 is never")
	flags.StringVar(&o.ClassWeights, "class-weights", "", "balanced, or a weight for each class")
	flags.StringVar(&o.Augment, "augment", "standard", "standard or none; tables have none")
	flags.Float64Var(&o.Sensitivity, "sensitivity", o.Sensitivity, "that a second operating point keeps")
	flags.Uint64Var(&o.Recipe.Seed, "seed", o.Recipe.Seed, "of weights, split, order and augmentation")
	flags.StringVar(&o.Kernels, "kernels", "auto", "the engine's own operators: auto, off, 1 (float32 by AVX-512), or 2 or 3 (bfloat16 terms a number, by AMX)")
	flags.BoolVar(&o.Checkpoint, "checkpoint", false, "save the run, and go on from what was saved")
	flags.DurationVar(&o.CheckpointEvery, "checkpoint-every", o.CheckpointEvery, "also within an epoch")
}
