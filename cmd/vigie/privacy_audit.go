package main

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/attack/privacy/job"
	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/simulate"
	"github.com/vigie/vigie/keys/certificates"
	"github.com/vigie/vigie/train"
)

func newPrivacyAuditCommand() *cobra.Command {
	var (
		o                        job.Audit
		terms, key, out, noise   string
		asJSON, standard, failed bool
	)
	agreed := federate.DefaultTerms("audit")
	command := &cobra.Command{
		Use:   "audit MODEL --data PATH [--terms FILE.json]",
		Short: "What would a federation under these terms give away, and to whom?",
		Long: `Audit plays a federation of the model under its terms, every site and the coordinator
by the code that hospitals run, and attacks what the coordinator is sent:

  linear      arithmetic on a linear first layer, by a server that keeps to the protocol
  imprint     a layer of brightness thresholds, by a malicious server: put into the
              weights of the agreed architecture, or inserted
  optimise    a search of images with the same gradient: cosine, total variation
  membership  LiRA: who was at any site?

each against no protection, secure sums alone, differential privacy alone, and both.
It also plays a server that lies (fewer survivors, two sums, other weights for one
site, an inserted layer …) and says what the sites refuse.

A hit is an image whose best match reaches --ssim and is identified: its nearest
neighbour among all images is that very image. Beside it stand as many images that
were in no update. The verdict is about what the terms provide, by the limits: of
0 hits in 30,000 trials, 0.01 % can be said with 95 % confidence.

--terms is the JSON of the terms that the hospitals would agree to; without it, the
flags of a default federation count. --out writes the report signed with --key (an
Ed25519 key, PEM), for a consortium that requires it before a run starts.`,
		Example: `  vigie privacy audit model.onnx --data pneumoniamnist.npz --terms terms.json --key auditor.pem --out audit.json --report audit.html
  vigie privacy audit model.onnx --data pneumoniamnist.npz --dp epsilon=8 --images 16
  vigie privacy audit mlp.onnx --data pneumoniamnist.npz --attacks linear,imprint --batch 64 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Model = args[0]
			o.Terms = agreed
			if terms != "" {
				for _, name := range termFlags {
					if cmd.Flags().Changed(name) {
						return fmt.Errorf("privacy audit: --%s beside --terms: the file says it", name)
					}
				}
				var err error
				if o.Terms, err = readTerms(terms); err != nil {
					return err
				}
			}
			given, err := simulate.ParsePrivacy(noise)
			if err != nil {
				return err
			}
			if given != nil {
				o.Terms = privateFlags(cmd.Flags(), o.Terms, given.Unit)
				o.Terms.Augmentation, o.Terms.DP, o.Plan = train.Augmentation{}, given, true
			}
			if (key == "") != (out == "") {
				return errors.New("privacy audit: --key signs what --out is written to: give both, or neither")
			}
			var signer ed25519.PrivateKey
			if key != "" {
				if signer, err = readEd25519(key); err != nil {
					return err
				}
			}
			if !standard {
				o.Kernels = engine.KernelTerms()
			}
			var report *job.AuditReport
			if err := privacyJob(cmd, &o.Common, asJSON, func(ctx context.Context) (*job.AuditReport, error) {
				var err error
				report, err = o.Run(ctx)
				return report, err
			}); err != nil {
				return err
			}
			if out != "" {
				signed, err := report.Sign(signer)
				if err != nil {
					return err
				}
				if err := train.WriteWhole(out, func(w io.Writer) error { _, err := w.Write(signed); return err }); err != nil {
					return fmt.Errorf("privacy audit: writing the signed report: %w", err)
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "%s is signed by %x\n", out, signer.Public())
			}
			if failed && !report.Passed {
				return errors.New("privacy audit: not passed")
			}
			return nil
		},
	}
	flags := command.Flags()
	commonPrivacyFlags(flags, &o.Common, &asJSON)
	flags.StringVar(&terms, "terms", "", "FILE.json of the terms")
	flags.StringVar(&noise, "dp", "", "differential privacy of default terms: epsilon=NUMBER[,unit=patient|hospital][,delta=…][,…]; see vigie fed simulate --help")
	flags.IntVar(&agreed.Batch, "batch", agreed.Batch, "of default terms: examples of a local step")
	flags.IntVar(&agreed.Epochs, "epochs", agreed.Epochs, "likewise: epochs of a site in a round")
	flags.Float64Var(&agreed.Rate, "rate", agreed.Rate, "likewise: local learning rate in the first round")
	flags.Float64Var(&agreed.Momentum, "momentum", agreed.Momentum, "likewise: of local steps")
	flags.Float64Var(&agreed.Decay, "decay", agreed.Decay, "likewise: weight decay of local steps")
	flags.Float64Var(&agreed.Bound, "bound", agreed.Bound, "likewise: largest length of a site's update")
	flags.IntVar(&agreed.MaxExamples, "max-examples", agreed.MaxExamples, "likewise: examples that a site counts for, at most")
	flags.IntVar(&agreed.Minimum, "minimum", agreed.Minimum, "likewise: sites that a sum must hold")
	flags.StringSliceVar(&o.Attacks, "attacks", nil, "linear, imprint, optimise, membership (default all)")
	flags.StringSliceVar(&o.Freeze, "freeze", nil, "patterns of weights that the federation does not train")
	flags.StringVar(&o.Split, "split", "train", "split whose images the sites have")
	flags.StringVar(&o.Aux, "aux", "val", "split that the server has: how bright images of the kind are")
	flags.IntVar(&o.Sites, "sites", 0, "sites (default as few as the terms allow, which hide the least)")
	flags.IntVar(&o.Batch, "images", 0, "images of a site (default the terms' batch: one step)")
	flags.IntVar(&o.Trials, "trials", 30_000, "images that arithmetic is tried on, against what the terms provide")
	flags.IntVar(&o.Compared, "compared", 2048, "images that it is tried on, against every other protection")
	flags.IntVar(&o.Searches, "searches", 16, "images that are searched for, of each protection")
	flags.IntVar(&o.Steps, "steps", 0, "of a search (default 300)")
	flags.IntVar(&o.Bins, "bins", 512, "units of an inserted imprint")
	flags.Float64Var(&o.Limit, "ssim", 0.9, "similarity from which on an image counts as reconstructed")
	flags.IntVar(&o.People, "people", 600, "people whose membership is asked")
	flags.IntVar(&o.Shadows, "shadows", 16, "federations that are trained for it, with each protection")
	flags.IntVar(&o.MemRounds, "rounds", 0, "rounds of each (default 10, at most the terms')")
	flags.IntVar(&o.Limits.Trials, "limit-trials", 30_000, "trials that the verdict wants of each arithmetic attack")
	flags.Float64Var(&o.Limits.Reconstructed, "limit-reconstructed", 1e-4, "share of images that may be reconstructed")
	flags.Float64Var(&o.Limits.Membership, "limit-membership", 0.05, "share of members that may be named at 1 % false alarms")
	flags.StringVar(&key, "key", "", "private key that signs the report, PEM (PKCS #8, Ed25519)")
	flags.StringVar(&out, "out", "", "FILE.json for the signed report")
	flags.BoolVar(&failed, "fail", false, "end with an error if the audit is not passed")
	flags.BoolVar(&standard, "standard-operators", false, "compute on ONNX Runtime's operators, not on the engine's own")
	cobra.CheckErr(command.MarkFlagRequired("data"))
	return command
}

// termFlags change the default terms.
var termFlags = []string{"dp", "batch", "epochs", "rate", "momentum", "decay", "bound", "max-examples", "minimum"}

const mostTerms = 1 << 20 // bytes

// readTerms reads terms as JSON, strictly.
func readTerms(path string) (federate.Terms, error) {
	var t federate.Terms
	f, err := os.Open(path)
	if err != nil {
		return t, fmt.Errorf("reading the terms: %w", err)
	}
	defer f.Close()
	d := json.NewDecoder(io.LimitReader(f, mostTerms))
	d.DisallowUnknownFields()
	if err := d.Decode(&t); err != nil {
		return t, fmt.Errorf("reading the terms of %s: %w", path, err)
	}
	return t, nil
}

// readEd25519 reads a private key that only its owner may read.
func readEd25519(path string) (ed25519.PrivateKey, error) {
	if err := certificates.CheckPrivate(path); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading a private key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("reading the private key %s: it is not PEM", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the private key %s: %w", path, err)
	}
	key, is := parsed.(ed25519.PrivateKey)
	if !is {
		return nil, fmt.Errorf("reading the private key %s: want an Ed25519 key (openssl genpkey -algorithm ed25519)", path)
	}
	return key, nil
}
