package main

import (
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/consortium"
)

func newConsortiumCommand() *cobra.Command {
	command := &cobra.Command{
		Use:   "consortium",
		Short: "Set a federation up, invite hospitals, and serve it",
		Long: `A consortium is a folder: its keys, the policy that every run is held to, the
list of sites, and the runs. Commands change the folder whether or not a server
is running; one that runs takes the change up at once, and sites are told
before the next round. Nothing needs a restart.

  vigie consortium init north --url https://fed.example:8443
  vigie consortium invite lyon --dir north > lyon.invitation
  vigie consortium serve --dir north
  vigie fed start --dir north …`,
	}
	command.AddCommand(newConsortiumInitCommand(), newConsortiumInviteCommand(), newConsortiumAdmitCommand(),
		newConsortiumSitesCommand(), newConsortiumRemoveCommand(), newConsortiumServeCommand())
	return command
}

// consortiumFlag names the consortium's folder.
func consortiumFlag(flags *pflag.FlagSet, dir *string) {
	flags.StringVar(dir, "dir", ".", "folder of the consortium")
}

func newConsortiumInitCommand() *cobra.Command {
	var (
		settings consortium.Settings
		policy   string
		asJSON   bool
	)
	minimum, privacy := 0, []string{}
	command := &cobra.Command{
		Use:   "init DIR --url https://HOST:PORT",
		Short: "Make a consortium: its authority, its keys and its policy",
		Long: `Makes a folder with a certificate authority, the key that the consortium signs
with, the server's certificate for the host of --url, and policy.yaml, which says
what every run is held to. Sites agree to the policy byte for byte when they
join: edit it before you invite the first one.

Whoever has the folder's keys can add sites and sign jobs: keep it where the
machine's thief is not.`,
		Example: `  vigie consortium init north --url https://fed.example:8443
  vigie consortium init north --url https://fed.example:8443 --policy policy.yaml --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			settings.Policy = consortium.DefaultPolicy()
			if policy != "" {
				data, err := os.ReadFile(policy)
				if err != nil {
					return err
				}
				if settings.Policy, err = consortium.ParsePolicy(data); err != nil {
					return err
				}
			}
			if cmd.Flags().Changed("minimum-sites") {
				settings.Policy.MinimumSites = minimum
			}
			for _, s := range privacy {
				settings.Policy.RequirePrivacy = append(settings.Policy.RequirePrivacy, federate.Unit(s))
			}
			if settings.Name == "" {
				settings.Name = baseName(args[0])
			}
			c, err := consortium.Create(args[0], settings)
			if err != nil {
				return err
			}
			return writeAs(cmd, asJSON, c.About(), c.About().Write)
		},
	}
	flags := command.Flags()
	flags.StringVar(&settings.Name, "name", "", "of the consortium, of a-z, 0-9, '-' and '.' (default: that of the folder)")
	flags.StringVar(&settings.URL, "url", "", "https://HOST:PORT that sites dial (required)")
	flags.StringVar(&settings.Listen, "listen", "", "HOST:PORT that the server listens at (default: the URL's port on all interfaces)")
	flags.StringVar(&policy, "policy", "", "file with the policy (default: one that allows every algorithm)")
	flags.IntVar(&minimum, "minimum-sites", 3, "of the policy: sites whose updates a sum must hold")
	flags.StringSliceVar(&privacy, "require-privacy", nil, "of the policy: patient, hospital or both")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	cobra.CheckErr(command.MarkFlagRequired("url"))
	return command
}

func newConsortiumInviteCommand() *cobra.Command {
	var (
		dir, out string
		life     time.Duration
	)
	command := &cobra.Command{
		Use:   "invite NAME",
		Short: "Write the one file that a hospital joins with",
		Long: `Writes an invitation: the consortium's name, address, keys and policy, and a token
that is good once. Its only secret is the token: who has the file before the
hospital uses it could join in its name. Send it by a way that you trust, and
compare the fingerprint, printed here and by vigie site join, on the telephone.

A new invitation for the same name withdraws the one before.`,
		Example: `  vigie consortium invite lyon --dir north --out lyon.invitation
  vigie consortium invite lyon --dir north --expires 48h > lyon.invitation`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := consortium.Open(dir)
			if err != nil {
				return err
			}
			document, err := c.Invite(args[0], life)
			if err != nil {
				return err
			}
			i, err := consortium.ReadInvitation(document)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "invitation of %s to %s, good once until %s\nfingerprint %s\nnext, at the hospital: vigie site join FILE --dir %s\n", i.Site, i.Consortium, i.Expires.Local().Format("2 January 2006 15:04"), i.Fingerprint(), i.Site)
			return writeOut(cmd, out, append(document, '\n'))
		},
	}
	consortiumFlag(command.Flags(), &dir)
	command.Flags().StringVar(&out, "out", "", "file for the invitation (default: standard output)")
	command.Flags().DurationVar(&life, "expires", 7*24*time.Hour, "how long it is good")
	return command
}

func newConsortiumAdmitCommand() *cobra.Command {
	var dir, out string
	command := &cobra.Command{
		Use:   "admit FILE",
		Short: "Answer an application that came as a file, for hospitals that cannot dial",
		Long: `Takes the application that vigie site join --request wrote, checks its invitation
as the server would, puts the site on the list, and writes the answer for vigie
site join --answer.`,
		Example: `  vigie consortium admit lyon.application --dir north --out lyon.answer`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := consortium.Open(dir)
			if err != nil {
				return err
			}
			data, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			answer, name, err := c.Admit(data)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s is on the list\n", name)
			return writeOut(cmd, out, answer)
		},
	}
	consortiumFlag(command.Flags(), &dir)
	command.Flags().StringVar(&out, "out", "", "file for the answer (default: standard output)")
	return command
}

func newConsortiumSitesCommand() *cobra.Command {
	var (
		dir    string
		asJSON bool
	)
	command := &cobra.Command{
		Use:     "sites",
		Short:   "List the sites, and the invitations that are open",
		Example: "  vigie consortium sites --dir north\n  vigie consortium sites --dir north --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := consortium.Open(dir)
			if err != nil {
				return err
			}
			listing, err := c.Sites()
			if err != nil {
				return err
			}
			return writeAs(cmd, asJSON, listing, listing.Write)
		},
	}
	consortiumFlag(command.Flags(), &dir)
	command.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return command
}

func newConsortiumRemoveCommand() *cobra.Command {
	var dir string
	command := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a site off the list",
		Long: `Writes the next version of the list of sites. A server that runs turns the site
away at once, and tells the others before the next round. The name can be
invited again; the removed keys stay refused.`,
		Example: "  vigie consortium remove lyon --dir north",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := consortium.Open(dir)
			if err != nil {
				return err
			}
			r, err := c.Remove(args[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is off the list: version %d holds %d sites\n", args[0], r.Version, len(r.Sites))
			return nil
		},
	}
	consortiumFlag(command.Flags(), &dir)
	return command
}

func newConsortiumServeCommand() *cobra.Command {
	var (
		dir      string
		standard bool
	)
	command := &cobra.Command{
		Use:   "serve",
		Short: "Serve the consortium until SIGTERM or Ctrl-C",
		Long: `Listens for sites, which dial, and leads the runs that vigie fed start has left.
GET /healthz answers probes without a certificate. SIGTERM and Ctrl-C end a round
that is under way; runs go on at the next start, also after a crash.`,
		Example: "  vigie consortium serve --dir north --log-format json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := newLogger(cmd, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			c, err := consortium.Open(dir)
			if err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" { // a round's large parts are few: memory counts, not how often it is swept
				debug.SetGCPercent(20)
			}
			return c.Serve(cmd.Context(), consortium.ServeOptions{Logger: logger, Kernels: kernels(standard)})
		},
	}
	consortiumFlag(command.Flags(), &dir)
	command.Flags().BoolVar(&standard, "standard-operators", false, "compute on ONNX Runtime's operators, not on the engine's own")
	return command
}

// writeAs prints JSON, or for people.
func writeAs(cmd *cobra.Command, asJSON bool, v any, write func(io.Writer) error) error {
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), v)
	}
	return write(cmd.OutOrStdout())
}

// writeOut writes bytes to a file that is not there yet, or to standard output.
func writeOut(cmd *cobra.Command, path string, data []byte) error {
	if path == "" {
		_, err := cmd.OutOrStdout().Write(data)
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
