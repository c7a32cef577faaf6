package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"

	attackjob "github.com/vigie/vigie/attack/job"
	"github.com/vigie/vigie/attack/poison"
	"github.com/vigie/vigie/attack/poison/job"
	trainjob "github.com/vigie/vigie/train/job"
)

func newDataCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "data",
		Short: "Look into training data before a model learns from them",
	}
	command.AddCommand(newDataAuditCommand())
	return command
}

func newDataAuditCommand() *cobra.Command {
	var (
		a      job.Audit
		size   string
		asJSON bool
	)
	var kinds []string
	for _, k := range poison.Kinds() {
		kinds = append(kinds, string(k))
	}
	command := &cobra.Command{
		Use:   "audit DIR|FILE.npz",
		Short: "Find wrong labels, copies, leaks, planted marks and odd contributors in training data",
		Long: `Audit reads images and labels as vigie train does and points at what a person
should look at before a model learns from them:

  leak        a picture or a patient on both sides of a split
  trigger     the same small mark in many images, nearly all with one label
  cluster     few cases of a label that a network sets apart from the others of it
  label       a label that contradicts its image, with the probability that it is wrong
  duplicate   a picture that is there twice, also turned, mirrored or brighter
  copy        a region that is in two images, or twice in one
  artificial  constant, drawn or mirrored images, and noise unlike the others'
  mark        the same small mark with various labels: a letter, a logo
  site        a contributor whose labels or images are unlike the others'

Labels are judged by the other cases, never by a case's own label or its patient's
other images. Where contributors are known (a column site, or --site-column), each
one's errors are estimated by themselves, which finds what one of them got wrong.

Of an .npz file contributors and patients are in arrays train_sites and
train_patients of numbers, or in a table --labels with the columns split, index,
site and patient.

A small network is trained on the data for its inner values; --network none leaves
that out, --model takes an ONNX file instead. Nothing is deleted or changed.

With --fail-on the exit status is 3 if one of the kinds was found, and 1 if the
audit could not be done. The same --seed gives the same findings on the same type
of processor.`,
		Example: `  vigie data audit radiographs --labels labels.csv --site-column hospital --html audit.html --csv suspects.csv
  vigie data audit breastmnist.npz --json
  vigie data audit train.npz --labels sites.csv --network none --fail-on leak,trigger,copy`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.Data.Data, a.Command = args[0], commandLine(os.Args)
			sized := trainjob.Options{Data: a.Data}
			if err := sized.SetSize(size); err != nil {
				return err
			}
			a.Data = sized.Data
			a.Progress = attackjob.Terminal(cmd.ErrOrStderr())
			r, err := a.Run(cmd.Context())
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
	flags.StringVar(&a.Data.Labels, "labels", "", "CSV file that labels the files of a folder, or tells contributors and patients of an .npz file")
	flags.StringVar(&a.SiteColumn, "site-column", "", "column of contributors (default site, contributor, institution or hospital)")
	flags.StringVar(&a.Data.PatientColumn, "patient-column", "", "column that tells patients apart")
	flags.StringVar(&a.Data.SplitColumn, "split-column", "", "column of train, val and test")
	flags.StringVar(&a.Data.FileColumn, "file-column", "", "column of the file names")
	flags.StringSliceVar(&a.Data.LabelColumns, "label-column", nil, "column of the label")
	flags.StringSliceVar(&a.Data.Classes, "classes", nil, "names of the classes in order")
	flags.StringVar(&a.Label, "label", "", "of labels that do not exclude each other, the one that is audited")
	flags.StringVar(&size, "size", "", "bring images to this size: 224, or ROWSxCOLUMNS; small marks may be lost")
	flags.StringVar(&a.Data.Aspect, "aspect", "stretch", "how: stretch, pad or centre-crop")
	flags.StringSliceVar(&a.Only, "only", nil, "kinds to look for, which saves the time of the others: "+strings.Join(kinds, ", "))
	flags.StringVar(&a.Network, "network", "train", "train: a small network on the data; none: no network")
	flags.StringVar(&a.Model, "model", "", "ONNX file whose inner values are looked at instead, such as one that vigie train wrote")
	flags.IntVar(&a.Epochs, "epochs", job.DefaultEpochs, "of the small network")
	flags.Float64Var(&a.RightLabels, "right-labels", 1.0/3, "expected share of right labels among the label suspects, at most")
	flags.Uint64Var(&a.Seed, "seed", 1, "of what is drawn")
	flags.StringVar(&a.HTML, "html", "", "FILE.html with the images")
	flags.StringVar(&a.CSV, "csv", "", "FILE.csv with a row for each image of each finding")
	flags.StringVar(&a.ExcludeList, "exclude-list", "", "FILE of images to leave out until a person has looked, one a line")
	flags.StringSliceVar(&a.FailOn, "fail-on", nil, "kinds that make the exit status 3: any, "+strings.Join(kinds, ", "))
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return command
}
