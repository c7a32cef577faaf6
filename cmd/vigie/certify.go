package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/guard/certificate"
	"github.com/vigie/vigie/guard/job"
	"github.com/vigie/vigie/model"
)

func newCertifyCommand() *cobra.Command {
	var (
		c         job.Certify
		patch     model.Patch
		smoothing model.Smoothing
		asJSON    bool
	)
	command := &cobra.Command{
		Use:   "certify MODEL --data PATH --split NAME",
		Short: "Say how many answers of a package or an ONNX file can be certified, whatever an attacker knows",
		Long: `Certify covers every image place by place (--patch-size), or puts noise over it
(--sigma), and counts for how many the answer is proven to hold:

  certified detection  no square of that size, of any content at any place, turns the
                       answer without one of the masks disagreeing, which sends the
                       case to a person
  certified recovery   double masking gives the right answer with any such square
                       (PatchCleanser, Xiang et al. 2022)
  certified to L2 r    no change of that Euclidean length turns the smoothed answer
                       (Cohen et al. 2019); for models that were trained with noise

More masks hide less of the image and take longer: k along an axis are k² runs of the
model, and k²(k²-1)/2 more where all of these agree. Without --patch-size and --sigma
a package's own section "certificate" says what is asked. docs/certificates.md says
what is proven by what.`,
		Example: `  vigie certify network.onnx --data pneumoniamnist.npz --split val --patch-size 3 --masks 6
  vigie certify models/chest --data pneumoniamnist.npz --split val --json
  vigie certify smooth.onnx --data breastmnist.npz --split val --sigma 0.25 --samples 1000 --limit 100`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c.Model, c.Command, c.Progress = args[0], commandLine(os.Args), progressLine(cmd)
			if cmd.Flags().Changed("patch-size") {
				c.Patch = &patch
			}
			if cmd.Flags().Changed("sigma") {
				c.Smoothing = &smoothing
			}
			certified, err := c.Run(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), certified)
			}
			return certified.Write(cmd.OutOrStdout())
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	bindImages(flags, &c.Data)
	flags.IntVar(&c.Limit, "limit", 0, "certify N images, drawn with the seed as vigie attack draws them, each class by its share (default all)")
	flags.IntVar(&patch.Size, "patch-size", 0, "side of the squares, pixels")
	flags.StringVar(&patch.Of, "of", model.OfInput, "whose pixels: of the model's input, or of the image before it is brought to size ("+model.OfInput+", "+model.OfImage+")")
	flags.IntVar(&patch.Masks, "masks", 6, "masks along each axis")
	flags.StringVar(&patch.Fill, "fill", certificate.Mean, "what a mask shows: "+strings.Join(certificate.Fills(), ", ")+", or a brightness from 0 to 1")
	flags.IntVar(&patch.Rounds, "rounds", 2, "1: detection alone; 2: recovery also")
	flags.Float64Var(&smoothing.Sigma, "sigma", 0, "deviation of the noise, pixels 0 to 1")
	flags.IntVar(&smoothing.Samples, "samples", 1000, "noisy copies of each image")
	flags.Float64Var(&smoothing.Alpha, "alpha", 0.001, "chance that the certificate of an image is wrong")
	flags.Float64SliceVar(&c.Mean, "mean", nil, "of a bare file's input: one number, or one for each channel")
	flags.Float64SliceVar(&c.Std, "std", nil, "of a bare file's input, likewise")
	flags.StringVar(&c.Output, "output", "", "output of a bare file that holds the classes (default the only one)")
	flags.IntVar(&c.Threads, "threads", 0, "runs at once; 0 is two, or one on a single core")
	flags.BoolVar(&c.Each, "each", false, "with --json: also what was found of each image")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	requireImages(command)
	return command
}
