package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vigie/vigie/attack"
	attackjob "github.com/vigie/vigie/attack/job"
	"github.com/vigie/vigie/onnx/zoo"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/harden"
	"github.com/vigie/vigie/train/job"
)

func newHardenCommand() *cobra.Command {
	o := harden.Default()
	var (
		f                    hardeningFlags
		config, size, recipe string
		asJSON               bool
	)
	command := &cobra.Command{
		Use:   "harden [MODEL] --data PATH --out DIR",
		Short: "Train a model to withstand perturbations, masks or noise, within a budget of AUC",
		Long: `Harden trains a network to be right also where an adversary, a mask or noise
changes its images, and says what that costs on images as they are.

MODEL is a package or an ONNX file. Without it the network is trained first, by the
same recipe (--recipe, or --network and the flags of vigie train) without hardening,
into DIR/plain: that is the network before, whose AUC the budget is measured from.

Against what:
  --method pgd-at   the loss at the worst perturbation found (Madry et al. 2018)
  --method trades   the clean loss, and --beta times how far the perturbed answer is
                    from the clean one (Zhang et al. 2019)
  --method none     no adversary
  --norm, --eps     its bound: linf or l2; with --norm patch a square of --patch-size
                    pixels of any content
  --awp             also the weights are perturbed (Wu et al. 2020)
  --mask-patch P    one or two masks of those that cover any patch of P×P pixels with
                    --mask-grid masks along each axis, as double masking lays them
                    (PatchCleanser), and --mask-sizes squares anywhere;
                    --mask-worst-of N takes the worst of N (greedy cutout)
  --noise S         Gaussian noise of deviation S, for randomised smoothing
They may be combined. Epsilon grows over the first --ramp epochs.

Of the epochs, and of --between the network before and the hardened one (weights
interpolated), what withstands most is kept of what loses at most --auc-budget of
clean validation AUC. All candidates are attacked at --bounds (--curve-attack), the
kept one by --verdict too, which is vigie attack's default.

DIR gets what vigie train writes there (the record in training.json says what was
hardened against), hardening.json, and trade-off.png and .svg. With --checkpoint a
run that was killed goes on where it was and ends with the same weights bit for bit.

Every flag may also be set by a variable (--batch is VIGIE_TRAIN_BATCH) or in a YAML
file (--config). Flags win over variables, variables over the file.`,
		Example: `  vigie harden models/chest-pneumonia-28 --data pneumoniamnist.npz --out hardened --eps 8/255 --auc-budget 0.01
  vigie harden --recipe hard-28 --data pneumoniamnist.npz --out hardened --json
  vigie harden network.onnx --data breastmnist.npz --out masked --method none --mask-patch 3 --mask-grid 6 --mask-worst-of 6
  vigie harden network.onnx --data radiographs --labels labels.csv --out smooth --method none --noise 0.25`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := job.Settings(cmd.Flags(), config, os.Environ()); err != nil {
				return err
			}
			if len(args) > 0 {
				o.Model = args[0]
			}
			if err := f.named(cmd.Flags(), &o, recipe); err != nil {
				return err
			}
			if err := f.take(cmd.Flags(), &o); err != nil {
				return err
			}
			if err := o.Job.SetSize(size); err != nil {
				return err
			}
			o.Command = commandLine(os.Args)
			r, err := o.Run(cmd.Context(), harden.Terminal(cmd.ErrOrStderr()))
			var stopped *train.Interrupted
			if errors.As(err, &stopped) {
				return fmt.Errorf("%w\n%s", err, job.Resume(stopped, os.Args, os.Environ()))
			}
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			return r.Write(cmd.OutOrStdout(), o.Job.Out)
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	flags.StringVar(&config, "config", os.Getenv(job.EnvPrefix+"CONFIG"), "YAML file of settings")
	f.add(flags, &o)
	flags.StringVar(&recipe, "recipe", "", "named network, settings and hardening, which other flags change: "+recipeNames(harden.Recipes()))
	flags.StringVar(&o.Job.Network, "network", "", "network to train first: a member of the zoo or "+job.Demo)
	flags.StringVar(&o.Job.Norm, "network-norm", zoo.BatchNorm, "its normalisation, if it is of the zoo: batch or group")
	trainingFlags(flags, &o.Job, &size)
	flags.BoolVar(&asJSON, "json", false, "print the report as JSON")
	return command
}

func recipeNames(recipes []harden.NamedRecipe) string {
	var names []string
	for _, r := range recipes {
		names = append(names, r.Name+" ("+r.About+")")
	}
	return strings.Join(names, ", ")
}

// hardeningFlags are the flags of vigie harden that say against what, and how it
// is judged.
type hardeningFlags struct {
	method, eps, bounds, curve, verdict string
	masks                               train.Occlusion
}

func (f *hardeningFlags) add(flags *pflag.FlagSet, o *harden.Options) {
	h := &o.Hardening
	flags.StringVar(&f.method, "method", h.Method, "pgd-at, trades or none")
	flags.StringVar(&h.Norm, "norm", h.Norm, "linf, l2 or patch")
	flags.StringVar(&f.eps, "eps", "8/255", "bound of the adversary, such as 8/255")
	flags.IntVar(&h.Side, "patch-size", 0, "side of the square that --norm patch may fill, pixels")
	flags.IntVar(&h.Steps, "steps", h.Steps, "of the adversary, on every batch")
	flags.Float64Var(&h.StepSize, "step-size", 0, "of one step, as a share of eps; 0 is 2.5/steps")
	flags.Float64Var(&h.Ramp, "ramp", h.Ramp, "epochs over which eps grows from 0")
	flags.Float64Var(&h.Clean, "clean-share", 0, "of pgd-at: share of each batch that stays unperturbed")
	flags.Float64Var(&h.Beta, "beta", 0, "of trades: weight of the divergence; 0 is 6")
	flags.Float64Var(&h.AWP, "awp", 0, "weight perturbation, as a share of each weight's length, such as 0.005; 0 is off")
	flags.IntVar(&f.masks.Patch, "mask-patch", 0, "train under the masks that cover a patch of so many pixels a side")
	flags.IntVar(&f.masks.Grid, "mask-grid", 6, "how many masks along each axis cover it")
	flags.IntSliceVar(&f.masks.Sizes, "mask-sizes", nil, "train under square masks of these sides, anywhere")
	flags.IntVar(&f.masks.Masks, "masks", 2, "how many masks an image gets at most")
	flags.Float64Var(&f.masks.Share, "mask-share", 1, "share of the images that get masks")
	flags.IntVar(&f.masks.WorstOf, "mask-worst-of", 0, "draw so many for each mask and take the one that raises the loss most")
	flags.StringVar(&f.masks.Fill, "mask-fill", train.Mean, "what is seen in a mask's place: grey, black, or mean of what stays, as the certificate will have it")
	flags.Float64Var(&h.Noise, "noise", 0, "deviation of Gaussian noise on every pixel, of pixels 0 to 1")
	flags.Float64Var(&o.Budget, "auc-budget", o.Budget, "clean validation AUC that may be lost")
	flags.Float64SliceVar(&o.Between, "between", o.Between, "candidates between the network before and the hardened one, as shares of the way")
	flags.BoolVar(&o.Fresh, "fresh", false, "harden from fresh weights, not from the network before")
	flags.Float64SliceVar(&o.Mean, "mean", nil, "of an ONNX file that wants normalised input: one number, or one for each channel")
	flags.Float64SliceVar(&o.Std, "std", nil, "of an ONNX file, likewise")
	flags.StringVar(&f.bounds, "bounds", "2/255,4/255,8/255", "bounds of the trade-off curve; none: no attack but the training's own")
	flags.StringVar(&f.curve, "curve-attack", string(o.Attack), "attack on every candidate")
	flags.IntVar(&o.Steps, "curve-steps", o.Steps, "its steps")
	flags.StringVar(&f.verdict, "verdict", string(o.Verdict), "attack on the kept model; none: none")
	flags.IntVar(&o.Limit, "limit", 0, "attack the first N validation images (default all)")
}

// named takes a named recipe and sets again the flags that were given over it.
func (f *hardeningFlags) named(flags *pflag.FlagSet, o *harden.Options, name string) error {
	if name == "" {
		return nil
	}
	r, err := harden.RecipeNamed(name)
	if err != nil {
		return err
	}
	given := map[string]string{}
	var order []string
	flags.Visit(func(g *pflag.Flag) {
		if !strings.Contains(g.Value.Type(), "Slice") {
			given[g.Name] = g.Value.String()
			order = append(order, g.Name)
		}
	})
	if err := o.SetRecipe(r); err != nil {
		return err
	}
	h := r.Hardening
	if f.method = h.Method; f.method == "" {
		f.method = "none"
	}
	if f.eps = fmt.Sprint(h.Eps); h.Eps == 0 {
		f.eps = ""
	}
	if h.Occlusion != nil {
		f.masks = *h.Occlusion
	}
	slices.Sort(order)
	for _, name := range order {
		if err := flags.Set(name, given[name]); err != nil {
			return err
		}
	}
	return nil
}

// take puts the flags into the options.
func (f *hardeningFlags) take(flags *pflag.FlagSet, o *harden.Options) error {
	h := &o.Hardening
	if h.Method = f.method; f.method == "none" {
		h.Method = ""
		for _, name := range []string{"eps", "norm", "patch-size", "steps", "step-size", "ramp", "clean-share", "beta"} {
			if flags.Changed(name) {
				return fmt.Errorf("--%s is of an adversary; name its --method, or leave it out", name)
			}
		}
	}
	if h.Eps = 0; h.Method != "" && h.Norm != train.Patch {
		bounds, err := attackjob.ParseEps(f.eps)
		if err != nil {
			return err
		}
		if len(bounds) != 1 {
			return fmt.Errorf("--eps %q: one bound is trained for; --bounds are those of the curve", f.eps)
		}
		h.Eps = bounds[0].Value
	}
	if h.Norm == train.Patch {
		if flags.Changed("eps") || flags.Changed("ramp") {
			return errors.New("--eps and --ramp bound no patch: it may have any content; leave them out")
		}
		h.Ramp = 0
	}
	if h.Occlusion = nil; f.masks.Patch != 0 || len(f.masks.Sizes) > 0 {
		masks := f.masks
		if masks.Patch == 0 {
			masks.Grid = 0
		}
		h.Occlusion = &masks
	} else {
		for _, name := range []string{"mask-grid", "masks", "mask-share", "mask-worst-of", "mask-fill"} {
			if flags.Changed(name) {
				return fmt.Errorf("--%s is of masks; say which: --mask-patch or --mask-sizes", name)
			}
		}
	}
	o.Bounds = nil
	if f.bounds != "none" {
		bounds, err := attackjob.ParseEps(f.bounds)
		if err != nil {
			return err
		}
		for _, b := range bounds {
			o.Bounds = append(o.Bounds, harden.Bound{Text: b.Text, Value: b.Value})
		}
	}
	if o.Attack, o.Verdict = attack.Name(f.curve), attack.Name(f.verdict); f.verdict == "none" {
		o.Verdict = ""
	}
	return nil
}
