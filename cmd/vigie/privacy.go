package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	attackjob "github.com/vigie/vigie/attack/job"
	"github.com/vigie/vigie/attack/privacy/job"
)

func newPrivacyCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "privacy",
		Short: "Say what a model, or a gradient, gives away of those it was trained on",
		Long: `Each of the commands attacks a model package or an ONNX file and says, beside what
the attack found, what chance, a non-member or no model at all would give.`,
	}
	command.AddCommand(newPrivacyMembershipCommand(), newPrivacyAttributeCommand(), newPrivacyInversionCommand(), newPrivacyGradientsCommand(), newPrivacyExtractionCommand(), newPrivacyAuditCommand())
	return command
}

// privacyJob runs an attack and prints its report.
func privacyJob[R job.Report](cmd *cobra.Command, c *job.Common, asJSON bool, run func(context.Context) (R, error)) error {
	c.Command = commandLine(os.Args)
	c.Progress = attackjob.Terminal(cmd.ErrOrStderr())
	r, err := run(cmd.Context())
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), r)
	}
	return r.Write(cmd.OutOrStdout())
}

// commonPrivacyFlags are those of every attack.
func commonPrivacyFlags(flags *pflag.FlagSet, c *job.Common, asJSON *bool) {
	flags.SortFlags = false
	flags.StringVar(&c.Data.Data, "data", "", "FILE.npz, folder, or table (required)")
	readingFlags(flags, &c.Data)
	flags.StringSliceVar(&c.Data.LeaveOut, "leave-out", nil, "columns of a table that are not used")
	flags.StringSliceVar(&c.Data.Categorical, "categorical", nil, "columns of a table whose numbers are codes")
	flags.Uint64Var(&c.Data.Seed, "split-seed", 0, "of the division of data that are not divided (default that of the training record)")
	flags.Float64SliceVar(&c.Mean, "mean", nil, "of a bare file's input: one number, or one for each channel")
	flags.Float64SliceVar(&c.Std, "std", nil, "of a bare file's input, likewise")
	flags.StringVar(&c.Output, "output", "", "output of a bare file that holds the classes (default the only one)")
	flags.Uint64Var(&c.Seed, "seed", 1, "of every random choice")
	flags.StringVar(&c.Report, "report", "", "FILE.html with figures, curves and pictures")
	flags.BoolVar(asJSON, "json", false, "print JSON")
}

// shadowFlags say how models of the same recipe are trained.
func shadowFlags(flags *pflag.FlagSet, t *job.Training) {
	flags.StringVar(&t.Recipe, "recipe", "", "train them by a named recipe (see vigie train --help), not by the training record beside the model")
	flags.StringVar(&t.Network, "network", "", "train this network of vigie train instead, such as tabular-mlp")
	flags.IntVar(&t.Epochs, "epochs", 0, "passes over the training examples (default the recipe's)")
	flags.IntVar(&t.Batch, "batch", 0, "examples a step (default the recipe's)")
	flags.Float64Var(&t.Rate, "rate", 0, "peak learning rate (default the recipe's)")
	flags.StringVar(&t.Augment, "augment", "", "none: without augmentation (default the recipe's)")
}

func newPrivacyMembershipCommand() *cobra.Command {
	var (
		o      job.Membership
		asJSON bool
	)
	command := &cobra.Command{
		Use:   "membership [MODEL] --data PATH --shadows 32",
		Short: "Was this person in the training set?",
		Long: `Membership trains shadow models like the model, with and without each person, and
asks whether the model's answers tell members of its training set from others:
LiRA online and offline (Carlini et al. 2022), RMIA, a calibrated signal, and the
plain loss, which needs no shadow models. True-positive rates are given at 0.1, 1
and 10 % false alarms, with intervals.

Members are --members (train), others --nonmembers (val), or both are what
--membership says: a CSV file with the columns index (position in the data, splits
in the order train, val, test) and member (1 or 0). If the groups differ by
themselves, every attack looks better than it is: beside it stand a blind
classifier that never saw the model, and the same attack on the shadow models,
whose training sets have nothing to do with the groups.

Shadow models are trained as training.json beside the model says, or by --recipe or
--network. Without MODEL the recipe itself is asked: each shadow model is attacked
in turn, its members a random part of --members. --keep keeps them in a folder, so
that a run that was stopped goes on and another question costs nothing; they are
made of patients' data, so keep the folder where the data may be.

Of a model trained with differential privacy, what was measured is held against
what its privacy statement allows.`,
		Example: `  vigie privacy membership model.onnx --data breastmnist.npz --shadows 32 --keep shadows --report report.html
  vigie privacy membership models/chest-pneumonia-28 --data pneumoniamnist.npz --shadows 0
  vigie privacy membership --data breastmnist.npz --recipe plain-28 --epochs 40 --augment none --overfit --shadows 16 --json
  vigie privacy membership risk.onnx --data patients.csv --label-column outcome --network tabular-mlp --shadows 64`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				o.Model = args[0]
			}
			return privacyJob(cmd, &o.Common, asJSON, func(ctx context.Context) (*job.MembershipReport, error) { return o.Run(ctx) })
		},
	}
	flags := command.Flags()
	commonPrivacyFlags(flags, &o.Common, &asJSON)
	flags.StringVar(&o.Members, "members", "train", "split that the model was trained on")
	flags.StringVar(&o.NonMembers, "nonmembers", "val", "split that it was not trained on")
	flags.StringVar(&o.List, "membership", "", "CSV file that says who is a member instead")
	flags.IntVar(&o.Shadows, "shadows", 16, "shadow models; 0: only attacks that need none")
	flags.Float64Var(&o.Share, "share", 0.5, "of the examples, in each shadow model's training set")
	flags.IntVar(&o.Looks, "looks", 1, "at each image: 2 adds its mirror image, 6 also moves it by a pixel")
	flags.StringVar(&o.Folder, "keep", "", "folder in which shadow models stay and are found again")
	shadowFlags(flags, &o.Training)
	flags.Float64Var(&o.Training.Epsilon, "dp-epsilon", 0, "train them with differential privacy of this budget")
	flags.Float64Var(&o.Training.Delta, "dp-delta", 0, "its delta (default the recipe's, or 1e-5)")
	flags.BoolVar(&o.Training.Overfit, "overfit", false, "keep the epoch that fits the training examples best, as without a validation set")
	cobra.CheckErr(command.MarkFlagRequired("data"))
	return command
}

func newPrivacyGradientsCommand() *cobra.Command {
	var (
		o      job.Gradients
		asJSON bool
	)
	command := &cobra.Command{
		Use:   "gradients MODEL --data PATH --method imprint --batch 64",
		Short: "Which images was a gradient computed on?",
		Long: `Gradients computes updates as a hospital would send them and tries to read their
images off them:

  linear    arithmetic on a linear first layer, by a server that keeps to the
            protocol; exact where one image alone moves a unit (Phong et al. 2018)
  imprint   a layer that a malicious server puts in front of the model, whose units
            are thresholds of brightness (Fowl et al. 2022)
  optimise  a search of images whose gradient points the same way (Geiping et al.
            2020); labels are known; slow

A hit is an image whose best match reaches --ssim and is identified: its nearest
neighbour among all images is that very image. Beside it stand the same of as many
images that were in no batch, the mean image and the nearest other image: on
radiographs, similarity alone proves nothing.

--sites adds the updates of several sites before the server sees them, as secure
aggregation does; --clip and --noise make updates those of DP-SGD.`,
		Example: `  vigie privacy gradients model.onnx --data pneumoniamnist.npz --method imprint --batch 64 --batches 8 --report report.html
  vigie privacy gradients mlp.onnx --data pneumoniamnist.npz --method linear --batch 8 --batches 32 --json
  vigie privacy gradients model.onnx --data breastmnist.npz --method optimise --batch 1 --batches 8 --steps 500
  vigie privacy gradients model.onnx --data pneumoniamnist.npz --method imprint --batch 64 --batches 8 --clip 1 --noise 1`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Model = args[0]
			return privacyJob(cmd, &o.Common, asJSON, func(ctx context.Context) (*job.GradientsReport, error) { return o.Run(ctx) })
		},
	}
	flags := command.Flags()
	commonPrivacyFlags(flags, &o.Common, &asJSON)
	flags.StringVar(&o.Split, "split", "train", "split whose images are in the batches")
	flags.StringVar(&o.Aux, "aux", "val", "split that the attacker has: how bright images of the kind are")
	flags.StringVar(&o.Method, "method", job.MethodImprint, "linear, imprint or optimise")
	flags.IntVar(&o.Batch, "batch", 8, "images of a site's update")
	flags.IntVar(&o.Batches, "batches", 8, "updates")
	flags.IntVar(&o.Sites, "sites", 1, "whose updates are added before the server sees them")
	flags.IntVar(&o.Bins, "bins", 512, "units of the imprint")
	flags.IntVar(&o.Steps, "steps", 0, "of the search (default 300)")
	flags.IntVar(&o.Restarts, "restarts", 1, "of the search")
	flags.Float64Var(&o.TV, "tv", 0, "weight of the total variation in the search (default 0.001)")
	flags.Float64Var(&o.Clip, "clip", 0, "bound of each image's gradient; 0 is none")
	flags.Float64Var(&o.Noise, "noise", 0, "noise in every weight of the sum, in units of the bound")
	flags.Float64Var(&o.Limit, "ssim", 0.9, "similarity from which on an image counts as reconstructed")
	cobra.CheckErr(command.MarkFlagRequired("data"))
	return command
}

func newPrivacyExtractionCommand() *cobra.Command {
	var (
		o      job.Extraction
		asJSON bool
	)
	command := &cobra.Command{
		Use:   "extraction MODEL --data PATH --pool train --held-out val",
		Short: "How many queries buy a copy of the model?",
		Long: `Extraction asks the model and fits a copy to its answers, of an architecture of its
own: queries are random textures, examples of --pool in random order, or those of which the
copy is least sure (active); answers are classes alone, or probabilities. Copies are
judged by how often they agree with the model on --held-out.

Beside them stand the model's most frequent answer, and a model trained on the same
examples with labels of people, which never saw the target. --transfer makes
adversarial images on the copy and shows them to the model.

A pool of the model's own training examples flatters the attack: name a split that
the model was not trained on where there is one.`,
		Example: `  vigie privacy extraction model.onnx --data pneumoniamnist.npz --budgets 10,30,100,300,1000 --transfer --report report.html
  vigie privacy extraction risk.onnx --data patients.csv --label-column outcome --pool test --held-out val --budgets 10,50 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Model = args[0]
			return privacyJob(cmd, &o.Common, asJSON, func(ctx context.Context) (*job.ExtractionReport, error) { return o.Run(ctx) })
		},
	}
	flags := command.Flags()
	commonPrivacyFlags(flags, &o.Common, &asJSON)
	flags.StringVar(&o.Pool, "pool", "train", "split of the attacker's own examples")
	flags.StringVar(&o.HeldOut, "held-out", "val", "split on which copies are judged")
	flags.IntSliceVar(&o.Budgets, "budgets", []int{10, 30, 100, 300}, "numbers of queries")
	flags.IntVar(&o.Steps, "steps", 300, "of fitting a copy")
	flags.BoolVar(&o.Transfer, "transfer", false, "show the model adversarial images made on the copy")
	flags.Float64Var(&o.Eps, "eps", 8./255, "bound of these, L∞, in units of the pixel range")
	flags.IntVar(&o.TransferSteps, "transfer-steps", 20, "of making them")
	flags.StringVar(&o.Save, "save", "", "FILE.onnx for the last copy of natural examples and probabilities")
	cobra.CheckErr(command.MarkFlagRequired("data"))
	return command
}

func newPrivacyInversionCommand() *cobra.Command {
	var (
		o      job.Inversion
		asJSON bool
	)
	command := &cobra.Command{
		Use:   "inversion MODEL --data PATH",
		Short: "What does the model take for its classes, and is it anybody?",
		Long: `Inversion climbs, from several starts, to images that the model takes for each of its
classes (gradient ascent on log p with total variation, after Fredrikson et al.
2015), and compares them by structural similarity with the mean of the class's
members, with the nearest member and with the nearest image that was not trained on.

An image that is no nearer to a member than the class's mean is, or no nearer than
to strangers, shows nobody: the report says so. Of members it counts as many as
there are others, because the nearest of a larger group is nearer.`,
		Example: `  vigie privacy inversion model.onnx --data breastmnist.npz --report report.html
  vigie privacy inversion models/chest-pneumonia-28 --data pneumoniamnist.npz --restarts 16 --from-mean --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Model = args[0]
			return privacyJob(cmd, &o.Common, asJSON, func(ctx context.Context) (*job.InversionReport, error) { return o.Run(ctx) })
		},
	}
	flags := command.Flags()
	commonPrivacyFlags(flags, &o.Common, &asJSON)
	flags.StringVar(&o.Members, "members", "train", "split that the model was trained on")
	flags.StringVar(&o.NonMembers, "nonmembers", "val", "split that it was not trained on")
	flags.IntVar(&o.Restarts, "restarts", 8, "images of each class")
	flags.IntVar(&o.Steps, "steps", 0, "of each image (default 300)")
	flags.Float64Var(&o.TV, "tv", 100, "weight of the mean total variation")
	flags.Float64Var(&o.Pull, "pull", 0, "weight of the mean squared distance from the start")
	flags.BoolVar(&o.FromMean, "from-mean", false, "start at the mean of the class's others, not at grey")
	cobra.CheckErr(command.MarkFlagRequired("data"))
	return command
}

func newPrivacyAttributeCommand() *cobra.Command {
	var (
		o      job.Attribute
		asJSON bool
	)
	command := &cobra.Command{
		Use:   "attribute MODEL --data PATH --attribute NAME",
		Short: "What does the model add to guessing a person's missing value?",
		Long: `Attribute guesses an attribute of a person from all others, the label and the answers
of a model of a table (Fredrikson et al. 2014; Yeom et al. 2018): which value makes
the known label most probable?

Beside it stand the most frequent value, imputation from the other attributes
without the model, and the same of people who were not trained on. What the model
adds for those too, it learnt of people in general; only the difference is about its
members.`,
		Example: `  vigie privacy attribute risk.onnx --data patients.csv --label-column outcome --attribute sex,smoker
  vigie privacy attribute risk.onnx --data patients.csv --label-column outcome --json --report report.html`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Model = args[0]
			return privacyJob(cmd, &o.Common, asJSON, func(ctx context.Context) (*job.AttributeReport, error) { return o.Run(ctx) })
		},
	}
	flags := command.Flags()
	commonPrivacyFlags(flags, &o.Common, &asJSON)
	flags.StringVar(&o.Members, "members", "train", "split that the model was trained on")
	flags.StringVar(&o.NonMembers, "nonmembers", "val", "split that it was not trained on")
	flags.StringSliceVar(&o.Attributes, "attribute", nil, "columns to guess (default every column)")
	flags.IntVar(&o.Bins, "bins", 3, "parts that a column of more than ten numbers is cut into")
	cobra.CheckErr(command.MarkFlagRequired("data"))
	return command
}
