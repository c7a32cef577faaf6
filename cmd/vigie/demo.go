package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/demo"
)

func newDemoCommand() *cobra.Command {
	var options demo.Options
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See the whole path: a throw-away hospital, real protocols, every answer explained",
		Long: `Makes a site in an empty folder (certificates, keys, SQLite, a model package),
starts a gateway with its enclave in this process and a PACS beside it, sends
studies over C-STORE on TLS 1.3 and over STOW-RS, prints what becomes of each,
verifies the whole audit log and checks one case's proof offline.`,
		Example: "  vigie demo --radiograph chest.dcm\n  vigie demo --serve",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if options.Dir == "" {
				dir, err := os.MkdirTemp("", "vigie-demo-")
				if err != nil {
					return err
				}
				options.Dir = dir
			}
			if info, err := os.Stdout.Stat(); err == nil && os.Getenv("NO_COLOR") == "" {
				options.Colour = info.Mode()&os.ModeCharDevice != 0
			}
			return demo.Run(cmd.Context(), cmd.OutOrStdout(), options)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&options.Dir, "dir", "", "folder of the site, empty or absent (default: a new temporary folder)")
	flags.StringVar(&options.Model, "model", "", "folder of the model package (default: the demo package inside the binary)")
	flags.StringVar(&options.Radiograph, "radiograph", "", "a real DICOM radiograph to send first")
	flags.BoolVar(&options.Serve, "serve", false, "leave the gateway running until Ctrl-C")
	cmd.AddCommand(newDemoInsiderCommand())
	return cmd
}

func newDemoInsiderCommand() *cobra.Command {
	var (
		options demo.InsiderOptions
		asJSON  bool
	)
	cmd := &cobra.Command{
		Use:   "insider",
		Short: "Tell the story of a practitioner whose images turn suspicious into clear",
		Long: `Draws phantoms, fits guards to the demo package on some of them, and lets an
insider perturb his suspicious cases in their stored values, so little that nobody
sees it, until the model answers that they are clear. Two hospitals then work
through the same days, one without input guards and one with them: real gateways
over C-STORE on TLS 1.3. A table says day by day what was reported, what went out
as clear and unseen by anybody, and what a person looked at.`,
		Example: "  vigie demo insider\n  vigie demo insider --days 10 --eps 4/255 --seed 7 --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if options.Dir == "" {
				dir, err := os.MkdirTemp("", "vigie-insider-")
				if err != nil {
					return err
				}
				options.Dir = dir
			}
			out := cmd.OutOrStdout()
			if asJSON {
				out = cmd.ErrOrStderr()
			}
			story, err := demo.Insider(cmd.Context(), out, options)
			if err != nil || !asJSON {
				return err
			}
			return writeJSON(cmd.OutOrStdout(), story)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&options.Dir, "dir", "", "folder for everything, empty or absent (default: a new temporary folder)")
	flags.IntVar(&options.Days, "days", 5, "days of the story")
	flags.IntVar(&options.PerDay, "per-day", 4, "suspicious cases that the insider has a day; everybody else has as many, and as many clear ones")
	flags.StringVar(&options.Eps, "eps", "8/255", "bound of the perturbation, in units of the window")
	flags.IntVar(&options.Fit, "fit", 400, "clean images that the guards are fitted on")
	flags.Uint64Var(&options.Seed, "seed", 1, "of everything")
	flags.BoolVar(&asJSON, "json", false, "print JSON, and the story on standard error")
	return cmd
}
