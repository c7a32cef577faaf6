package main

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vigie/vigie/federate/consortium"
)

func newSiteCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "site",
		Short: "Join a federation, decide on its jobs, and see what left the building",
		Long: `A site is a hospital's side of a federation: a folder with keys that are made there
and never leave it, rules.yaml, in which the data owner says what is allowed, a
ledger of the privacy budget, and a log of everything that left. A site dials
outward; nothing listens.

  vigie site join lyon.invitation --dir lyon
  vigie site run --dir lyon --data radiographs
  vigie site jobs --dir lyon
  vigie site approve RUN --dir lyon`,
	}
	command.AddCommand(newSiteJoinCommand(), newSiteRunCommand(), newSiteJobsCommand(),
		newSiteDecideCommand("approve", "Let a job train on this site's data", consortium.Approved),
		newSiteDecideCommand("refuse", "Refuse a job, also one that is under way", consortium.Refused),
		newSiteStopCommand(), newSiteResumeCommand(), newSiteLogCommand(), newSiteLedgerCommand())
	return command
}

// siteFlag names the site's folder.
func siteFlag(flags *pflag.FlagSet, dir *string) {
	flags.StringVar(dir, "dir", ".", "folder of the site")
}

// baseName is the last part of a folder's path.
func baseName(dir string) string {
	if absolute, err := filepath.Abs(dir); err == nil {
		dir = absolute
	}
	return filepath.Base(dir)
}

// whoami is the name that decisions are signed off with.
func whoami() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return ""
}

func newSiteJoinCommand() *cobra.Command {
	var dir, request, answer string
	command := &cobra.Command{
		Use:   "join FILE",
		Short: "Join a consortium with its invitation; the site's keys are made here",
		Long: `Makes the site's keys in --dir, sends the consortium a signed request over TLS to
the very authority that the invitation names, and keeps the certificate that
comes back. No key leaves the folder, and no secret travels but the invitation's
token. Compare the printed fingerprint with the consortium's on the telephone.

In the folder of a site that has joined before, an invitation of the same name by
the same consortium renews its keys and its certificate; rules, ledger, log, jobs
and the numbers of rounds stay.

A join whose answer was lost is repeated by the same command. Without a
connection, --request writes what would be sent, and --answer takes what vigie
consortium admit made of it.`,
		Example: `  vigie site join lyon.invitation --dir lyon
  vigie site join lyon.invitation --dir lyon --request lyon.application
  vigie site join lyon.invitation --dir lyon --answer lyon.answer`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			document, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			i, err := consortium.ReadInvitation(document)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "invitation of %s to %s at %s\nfingerprint %s\n", i.Site, i.Consortium, i.URL, i.Fingerprint())
			var site *consortium.Site
			switch {
			case request != "":
				a, err := consortium.Apply(document, dir, time.Now())
				if err != nil {
					return err
				}
				if err := writeOut(cmd, request, a.Body()); err != nil {
					return err
				}
				fmt.Fprintf(out, "the application is in %s; next, at the consortium: vigie consortium admit %s\n", request, filepath.Base(request))
				return nil
			case answer != "":
				a, err := consortium.Apply(document, dir, time.Now())
				if err != nil {
					return err
				}
				data, err := os.ReadFile(answer)
				if err != nil {
					return err
				}
				if site, err = a.Finish(data); err != nil {
					return err
				}
			default:
				if site, err = consortium.Join(cmd.Context(), document, dir); err != nil {
					return err
				}
			}
			fmt.Fprintf(out, "joined: %s\nwhat this hospital allows is in %s\nnext: vigie site run --dir %s --data PATH\n", site.Dir(), filepath.Join(dir, "rules.yaml"), dir)
			return nil
		},
	}
	siteFlag(command.Flags(), &dir)
	command.Flags().StringVar(&request, "request", "", "write the application to this file instead of sending it")
	command.Flags().StringVar(&answer, "answer", "", "file with the consortium's answer to it")
	command.MarkFlagsMutuallyExclusive("request", "answer")
	cobra.CheckErr(command.MarkFlagRequired("dir"))
	return command
}

func newSiteRunCommand() *cobra.Command {
	var (
		dir, tamper string
		options     consortium.RunOptions
		standard    bool
	)
	command := &cobra.Command{
		Use:   "run --data PATH",
		Short: "Connect, and train for the jobs that are approved, until SIGTERM or Ctrl-C",
		Long: `Dials the consortium and waits for jobs. Each waits for vigie site approve unless
the rules allow it. A round in which the process ends goes on after a restart, if
the others have not gone on without it.

--data is whatever vigie train takes: FILE.npz in MedMNIST's layout, a folder of
DICOM, PNG or JPEG (with --labels CSV, or a folder for each class), or a table.
Images are brought to the size that the job's model wants. Nothing of the data
leaves but the masked updates; vigie site log says what did.

--trainer trains by a program of this hospital's own, in any language: it gets a
folder with global.safetensors and round.json as its last argument and leaves
weights.safetensors and metrics.json there. Clipping, noise and masking stay here.`,
		Example: `  vigie site run --dir lyon --data radiographs --labels labels.csv
  vigie site run --dir lyon --data lyon.npz --split train --log-format json
  vigie site run --dir lyon --data /srv/images --trainer "python3 train.py" --examples 1200`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := newLogger(cmd, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			site, err := consortium.OpenSite(dir)
			if err != nil {
				return err
			}
			options.Logger = logger.With("site", site.Name)
			options.Kernels = kernels(standard)
			if options.Tamper, err = tampering(tamper); err != nil {
				return err
			}
			return site.Run(cmd.Context(), options)
		},
	}
	flags := command.Flags()
	siteFlag(flags, &dir)
	flags.StringVar(&options.Data.Data, "data", "", "FILE.npz, folder, or table (required)")
	flags.StringVar(&options.Split, "split", "", "part of the data that is trained on (default: train if the data come divided, else all)")
	readingFlags(flags, &options.Data)
	flags.Uint64Var(&options.Data.Seed, "seed", 1, "of the division, where the data are divided here")
	flags.StringVar(&options.Judge, "judge-split", "", "part that the model is judged on where a job asks for it (default: val if the data come divided, else none)")
	flags.StringVar(&options.Command, "trainer", "", "program that trains instead of the built-in engine")
	flags.IntVar(&options.Examples, "examples", 0, "examples that the program trains on")
	flags.BoolVar(&standard, "standard-operators", false, "compute on ONNX Runtime's operators, not on the engine's own")
	flags.StringVar(&tamper, "tamper", "", "ATTACK[:STRENGTH] on the federation, for demonstrations")
	cobra.CheckErr(flags.MarkHidden("tamper"))
	cobra.CheckErr(command.MarkFlagRequired("data"))
	return command
}

func newSiteJobsCommand() *cobra.Command {
	var (
		dir    string
		asJSON bool
	)
	command := &cobra.Command{
		Use:     "jobs [RUN]",
		Short:   "List what this site is asked for, and what was decided; with a name, everything about one job",
		Example: "  vigie site jobs --dir lyon\n  vigie site jobs fedprox-20261128-174501 --dir lyon\n  vigie site jobs --dir lyon --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			site, err := consortium.OpenSite(dir)
			if err != nil {
				return err
			}
			jobs, err := site.Jobs()
			if err != nil {
				return err
			}
			if jobs, err = jobs.Only(args...); err != nil {
				return err
			}
			return writeAs(cmd, asJSON, jobs, jobs.Write)
		},
	}
	siteFlag(command.Flags(), &dir)
	command.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return command
}

func newSiteDecideCommand(name, short string, verdict consortium.Verdict) *cobra.Command {
	var dir, by, reason string
	command := &cobra.Command{
		Use:   name + " RUN",
		Short: short,
		Long: `The decision is signed with the site's key and names the job by its digest; the
consortium keeps it as the site's consent. It takes effect at once, also in a run
that is under way, and can be changed.`,
		Example: fmt.Sprintf("  vigie site %s fedprox-20261128-174501 --dir lyon --by 'Dr Martin'", name),
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			site, err := consortium.OpenSite(dir)
			if err != nil {
				return err
			}
			d, err := site.Decide(args[0], verdict, by, reason)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is %s by %s\n", d.Run, d.Verdict, d.By)
			return nil
		},
	}
	siteFlag(command.Flags(), &dir)
	command.Flags().StringVar(&by, "by", whoami(), "who decides")
	command.Flags().StringVar(&reason, "reason", "", "why, for the consortium and the records")
	return command
}

func newSiteStopCommand() *cobra.Command {
	var dir, by, reason string
	command := &cobra.Command{
		Use:   "stop",
		Short: "Stop everything: nothing leaves this site any more",
		Long: `When this command has succeeded, nothing leaves: a round that is under way gets no
answer, training ends, and the link is cut. It stays so over restarts, until vigie
site resume. A file named stop in the site's folder does the same, whoever puts it
there.`,
		Example: "  vigie site stop --dir lyon --reason 'ethics committee'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			site, err := consortium.OpenSite(dir)
			if err != nil {
				return err
			}
			if err := site.Stop(cmd.Context(), by, reason); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "stopped: nothing leaves this site")
			return nil
		},
	}
	siteFlag(command.Flags(), &dir)
	command.Flags().StringVar(&by, "by", whoami(), "who stops it")
	command.Flags().StringVar(&reason, "reason", "", "why")
	return command
}

func newSiteResumeCommand() *cobra.Command {
	var dir string
	command := &cobra.Command{
		Use:     "resume",
		Short:   "End vigie site stop",
		Example: "  vigie site resume --dir lyon",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			site, err := consortium.OpenSite(dir)
			if err != nil {
				return err
			}
			if err := site.Resume(); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the site works again")
			return nil
		},
	}
	siteFlag(command.Flags(), &dir)
	return command
}

func newSiteLogCommand() *cobra.Command {
	var (
		dir, run       string
		verify, asJSON bool
	)
	command := &cobra.Command{
		Use:   "log",
		Short: "Say what left the building, digest by digest, and verify that nothing was changed",
		Long: `Every answer that left has an entry, written before it left: what it answered, how
many bytes, and their SHA-256 digest. Entries are numbered, signed and chained; the
command fails if one was changed, left out or put in. --verify prints the number
of entries and the digest of the last one alone: whoever has noted it before can
tell that none was cut off since.`,
		Example: "  vigie site log --dir lyon\n  vigie site log --dir lyon --run fedprox-20261128-174501 --json\n  vigie site log --dir lyon --verify",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			site, err := consortium.OpenSite(dir)
			if err != nil {
				return err
			}
			log, err := site.Left()
			if err != nil {
				return err
			}
			if verify {
				return writeAs(cmd, asJSON, log.Head, log.Head.Write)
			}
			log = log.Of(run)
			return writeAs(cmd, asJSON, log, log.Write)
		},
	}
	flags := command.Flags()
	siteFlag(flags, &dir)
	flags.StringVar(&run, "run", "", "of this run alone")
	flags.BoolVar(&verify, "verify", false, "verify, and print the head alone")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return command
}

func newSiteLedgerCommand() *cobra.Command {
	var (
		dir    string
		asJSON bool
	)
	command := &cobra.Command{
		Use:     "ledger",
		Short:   "Say what was spent of the privacy budget, and what is left",
		Example: "  vigie site ledger --dir lyon\n  vigie site ledger --dir lyon --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			site, err := consortium.OpenSite(dir)
			if err != nil {
				return err
			}
			accounts, err := site.Ledger()
			if err != nil {
				return err
			}
			return writeAs(cmd, asJSON, accounts, accounts.Write)
		},
	}
	siteFlag(command.Flags(), &dir)
	command.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return command
}

// tampering reads ATTACK[:STRENGTH].
func tampering(text string) (consortium.Tampering, error) {
	if text == "" {
		return nil, nil
	}
	name, strength, _ := strings.Cut(text, ":")
	return consortium.Misbehave(name, strength)
}
