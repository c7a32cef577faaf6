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
	return cmd
}
