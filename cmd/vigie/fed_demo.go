package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/demo"
)

func newFedDemoCommand() *cobra.Command {
	var (
		options demo.FederationOptions
		asJSON  bool
	)
	command := &cobra.Command{
		Use:   "demo",
		Short: "See a federation on this machine: hospitals as processes, one killed, one malicious",
		Long: `Sets a consortium and its hospitals up in an empty folder by the commands that
hospitals use: each is a process of its own, and they speak over mutual TLS on
loopback. They train on phantoms of chest radiographs, so that no patient's image
is needed. In the middle one hospital is killed and started again; another turns
its updates round. The sums are opened in groups, and the median of them is what
moves the model. At the end the run is replayed from its transcript, and every
hospital's log and ledger are verified.`,
		Example: "  vigie fed demo\n  vigie fed demo --hospitals 10 --rounds 10 --dir demo --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if options.Dir == "" {
				dir, err := os.MkdirTemp("", "vigie-federation-")
				if err != nil {
					return err
				}
				options.Dir = dir
			}
			var err error
			if options.Program, err = os.Executable(); err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				out = cmd.ErrOrStderr()
			} else if info, err := os.Stdout.Stat(); err == nil && os.Getenv("NO_COLOR") == "" {
				options.Colour = info.Mode()&os.ModeCharDevice != 0
			}
			story, err := demo.Federation(cmd.Context(), out, options)
			if asJSON && story != nil {
				if err := writeJSON(cmd.OutOrStdout(), story); err != nil {
					return err
				}
			}
			return err
		},
	}
	flags := command.Flags()
	flags.StringVar(&options.Dir, "dir", "", "folder for everything, empty or absent (default: a new temporary folder)")
	flags.IntVar(&options.Hospitals, "hospitals", 15, "hospitals, each a process")
	flags.IntVar(&options.Rounds, "rounds", 20, "rounds of training")
	flags.IntVar(&options.Images, "images", 40, "phantoms of a hospital, about")
	flags.Uint64Var(&options.Seed, "seed", 1, "of everything")
	flags.BoolVar(&asJSON, "json", false, "print JSON, and the story on standard error")
	return command
}
