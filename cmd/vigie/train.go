package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/train"
)

func newTrainCommand() *cobra.Command {
	fit := train.Demo("", "")
	var asJSON bool
	command := &cobra.Command{
		Use:   "train --data FILE.npz --out DIR",
		Short: "Train the demo network on a MedMNIST file of two classes",
		Long: `Train fits the demo network (a small CNN) to a data set in MedMNIST's .npz
layout. It trains on the split "train" and chooses epoch, temperature and
operating point on the split "val". DIR receives model.onnx, calibration.json
and training.json (recipe, history, AUC with intervals).

The same seed gives the same model bit for bit on the same type of processor.`,
		Example: `  vigie train --data pneumoniamnist.npz --out models/chest-pneumonia-28
  vigie train --data breastmnist.npz --out breast-model --epochs 60 --seed 3 --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			start, before := time.Now(), 0
			report, err := fit.Run(cmd.Context(), func(e train.Epoch) {
				if before == 0 { // after a resume, the first line is not epoch 1
					before = e.Epoch - 1
				}
				done := e.Epoch - before
				left := time.Since(start) / time.Duration(done) * time.Duration(fit.Recipe.Epochs-e.Epoch)
				mark := " "
				if e.Best {
					mark = "*"
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "epoch %*d/%d %s loss %.4f  validation: AUC %.5f, loss %.4f, accuracy %.4f  (%s left)\n",
					len(fmt.Sprint(fit.Recipe.Epochs)), e.Epoch, fit.Recipe.Epochs, mark, e.Loss, e.ValidationAUC, e.ValidationLoss, e.Accuracy, left.Round(time.Second))
			})
			if err != nil {
				return err
			}
			if asJSON {
				encoder := json.NewEncoder(cmd.OutOrStdout())
				encoder.SetIndent("", "  ")
				return encoder.Encode(report)
			}
			fmt.Fprintf(cmd.OutOrStdout(), `%d parameters, best epoch %d of %d, seed %d
validation AUC %.4f (DeLong 95 %% %.4f to %.4f), accuracy %.4f
temperature %.3f: calibration error %.4f, was %.4f
operating point %.3f: sensitivity %.3f, specificity %.3f (%s)
written to %s
`, report.Parameters, report.History.Best, len(report.History.Epochs), report.Seed,
				report.AUC.Value, report.AUC.Low, report.AUC.High, report.Accuracy,
				report.Temperature, report.Calibration[1], report.Calibration[0],
				report.Operating.Threshold, report.Operating.Sensitivity, report.Operating.Specificity, report.Operating.Rule, fit.Out)
			return nil
		},
	}
	flags := command.Flags()
	flags.StringVar(&fit.Data, "data", "", "data set, .npz in MedMNIST's layout")
	flags.StringVar(&fit.Out, "out", "", "folder for the model and its record")
	flags.IntVar(&fit.Recipe.Epochs, "epochs", fit.Recipe.Epochs, "passes over the training images")
	flags.IntVar(&fit.Recipe.Batch, "batch", fit.Recipe.Batch, "images a step")
	flags.Float64Var(&fit.Recipe.Rate, "rate", fit.Recipe.Rate, "peak learning rate")
	flags.Uint64Var(&fit.Recipe.Seed, "seed", fit.Recipe.Seed, "seed of weights, order and augmentation")
	flags.BoolVar(&fit.Checkpoint, "checkpoint", false, "save after every epoch, and go on from there")
	flags.BoolVar(&asJSON, "json", false, "print the report as JSON")
	command.MarkFlagRequired("data")
	command.MarkFlagRequired("out")
	return command
}
