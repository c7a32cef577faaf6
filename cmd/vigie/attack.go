package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/attack/job"
)

func newAttackCommand() *cobra.Command {
	var (
		o                     job.Options
		name, norm, eps, loss string
		pixels, printable     []float64
		asJSON                bool
	)
	var names []string
	about := ""
	for _, row := range attack.Attacks() {
		names = append(names, string(row.Name))
		var norms []string
		for _, n := range row.Norms {
			norms = append(norms, string(n))
		}
		about += fmt.Sprintf("  %-15s %s [%s]\n", row.Name, row.About, strings.Join(norms, ", "))
	}
	command := &cobra.Command{
		Use:   "attack MODEL --data PATH --split NAME --attack NAME --eps 8/255",
		Short: "Say how little it takes to turn the answers of a model package or an ONNX file",
		Long: `Attack perturbs labelled images until the model answers otherwise, and reports
how many it answered rightly, how many of these were fooled and how far the fooled
are from the originals. Images that are answered wrongly anyway are not attacked.

Attacks and their norms, the first being the default:
` + about + `
--data and --split are those of vigie eval. Perturbations are of pixels 0 to 1 of
the data: what the package's manifest does to an image is differentiated too. A
bare ONNX file gets pixels as they are, or normalised by --mean and --std.

Of a folder of DICOM files the stored values are perturbed, whole numbers at the
file's own resolution; bounds are in units of the window (1 is black to white).
Each result is written, read back and judged as the gateway reads it, and --save
keeps it as .dcm.

Whatever counts as fooled was replayed through the model's own path first. The
same --seed gives the same images on the same type of processor. --eps takes
several bounds (2/255,4/255,8/255) for a curve.

--guards adds what the package's fitted guards make of it, for an attacker who knows
the model (oblivious), or who knows the guards and their thresholds as well
(adaptive): how many images are fooled, noticed, and released, and the alarms on the
same images without an attack. Only the adaptive column is a guarantee.

--save keeps the images after the attack: a .npz file that vigie eval reads, or a
folder of 16-bit PNG with labels.csv. --report writes one HTML page with figures,
curve and pictures.`,
		Example: `  vigie attack models/chest-pneumonia-28 --data pneumoniamnist.npz --split val --eps 2/255,4/255,8/255 --report report.html
  vigie attack network.onnx --data breastmnist.npz --split val --attack pgd --norm l2 --eps 0.5 --steps 100 --restarts 5 --save out.npz
  vigie attack network.onnx --data breastmnist.npz --split val --attack pgd --eps 4/255 --targeted 1
  vigie attack network.onnx --data breastmnist.npz --split val --attack patch --patch-size 3
  vigie attack models/chest --data pneumoniamnist.npz --split val --attack pgd --eps 2/255,4/255,8/255 --guards both --report guards.html
  vigie attack models/chest-pneumonia-28 --data radiographs --labels labels.csv --split all --attack apgd-ce --eps 2/255 --save attacked`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Model, o.Attack = args[0], attack.Name(name)
			o.Attacking.Loss = attack.Loss(loss)
			o.Command = commandLine(os.Args)
			o.Progress = job.Terminal(cmd.ErrOrStderr())
			o.Data.Seed = o.Attacking.Seed
			var err error
			if norm != "" {
				if o.Attacking.Norm, err = attack.ParseNorm(norm); err != nil {
					return err
				}
			}
			if o.Eps, err = job.ParseEps(eps); err != nil {
				return err
			}
			if len(pixels) > 0 {
				if len(pixels) != 2 {
					return fmt.Errorf("--range: %d numbers: want the darkest and the brightest", len(pixels))
				}
				o.Low, o.High = pixels[0], pixels[1]
			}
			if len(printable) > 0 {
				if len(printable) != 2 {
					return fmt.Errorf("--printable: %d numbers: want the darkest and the brightest", len(printable))
				}
				o.Attacking.Printable = &[2]float64{printable[0], printable[1]}
			}
			r, err := o.Run(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			return r.Write(cmd.OutOrStdout())
		},
	}
	flags := command.Flags()
	flags.StringVar(&o.Data.Data, "data", "", "FILE.npz or folder (required)")
	flags.StringVar(&o.Data.Split, "split", "", "train, val, test or all (required)")
	flags.StringVar(&o.Data.Labels, "labels", "", "CSV file that labels the files of a folder")
	flags.StringVar(&name, "attack", string(attack.Auto), strings.Join(names, ", "))
	flags.StringVar(&norm, "norm", "", "linf, l2, l1 or l0 (default the attack's first)")
	flags.StringVar(&eps, "eps", "", "bound on the perturbation, such as 8/255; several with commas for a curve")
	flags.IntVar(&o.Limit, "limit", 0, "attack N images of the split, drawn by --seed with the classes in their shares (default all)")
	flags.IntVar(&o.Attacking.Steps, "steps", 0, "steps (default by attack)")
	flags.IntVar(&o.Attacking.Restarts, "restarts", 1, "starts at random points")
	flags.IntVar(&o.Attacking.Side, "patch-size", 3, "side of a patch, pixels")
	flags.Float64SliceVar(&printable, "printable", nil, "darkest and brightest pixel of a patch, such as 0.1,0.9 (default the range)")
	flags.Float64Var(&o.Attacking.StepSize, "step-size", 0, "of pgd: share of eps (default 2.5/steps)")
	flags.Float64Var(&o.Attacking.Momentum, "momentum", 0, "of pgd: share of the former direction that is kept")
	flags.StringVar(&loss, "loss", "", "of fgsm and pgd: ce, margin or dlr (default ce)")
	flags.BoolVar(&o.Attacking.FromHere, "from-image", false, "of pgd: start at the image first, not at a random point")
	flags.StringVar(&o.Class, "targeted", "", "class, by name or number, that every image is to be taken for")
	flags.StringVar(&o.Label, "label", "", "of labels that do not exclude each other, the one asked about (default a package's target)")
	flags.BoolVar(&o.OperatingPoint, "operating-point", false, "turn a package's decision at its operating point, not the more probable class")
	flags.Uint64Var(&o.Attacking.Seed, "seed", 1, "of every random choice, and of the split if the data are not divided")
	flags.Float64Var(&o.Threshold, "threshold", 0, "with --operating-point: a calibrated probability in its place, such as one beyond the borderline")
	flags.Float64SliceVar(&o.Mean, "mean", nil, "of a bare file's input: one number, or one for each channel")
	flags.Float64SliceVar(&o.Std, "std", nil, "of a bare file's input, likewise")
	flags.Float64SliceVar(&pixels, "range", nil, "darkest and brightest pixel of the data (default 0,1)")
	flags.StringVar(&o.Output, "output", "", "output of a bare file that holds the classes (default the only one)")
	flags.IntVar(&o.JPEG, "jpeg", 0, "of DICOM files of 8 bits: compress within and after the attack at this quality, 1 to 100")
	flags.StringVar(&o.Data.Aspect, "aspect", "stretch", "how a bare file's images are brought to size: stretch, pad or centre-crop")
	flags.StringVar(&o.Guards, "guards", "", "let the package's guards meet an attacker: oblivious, adaptive (knows them) or both")
	flags.StringVar(&o.GuardsFile, "guards-file", "", "statistics of guards fitted to this package, instead of those in it")
	flags.BoolVar(&o.GuardsAlone, "guards-alone", false, "leave out what else sends answers to people (borderline, plausibility, prediction sets)")
	flags.StringVar(&o.Save, "save", "", "FILE.npz, or folder, for the images after the attack")
	flags.StringVar(&o.Report, "report", "", "FILE.html with figures, curve and pictures")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	for _, required := range []string{"data", "split"} {
		cobra.CheckErr(command.MarkFlagRequired(required))
	}
	return command
}

// commandLine writes arguments as a shell would take them.
func commandLine(args []string) string {
	quoted := []string{"vigie"}
	for _, a := range args[min(1, len(args)):] {
		if a == "" || strings.ContainsFunc(a, func(r rune) bool {
			return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=+,./:@%", r)
		}) {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		quoted = append(quoted, a)
	}
	return strings.Join(quoted, " ")
}
