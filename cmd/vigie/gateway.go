package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vigie/vigie/gateway"
)

func newGatewayCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Receive, seal, diagnose, triage and deliver studies",
		Long: `The gateway stands beside the PACS. It receives objects over DICOM (C-STORE on
TLS 1.3) and DICOMweb (STOW-RS), keeps them sealed, and returns results.

Settings come from a YAML file, then the environment, then flags; a later one
wins. The setting dimse.ae_title is the variable VIGIE_GATEWAY_DIMSE_AE_TITLE
and the flag --dimse-ae-title. VIGIE_GATEWAY_CONFIG names the file.`,
	}
	cmd.AddCommand(newGatewayRunCommand(), newGatewayCheckCommand(), newGatewayInitCommand(), newGatewayConfigCommand())
	return cmd
}

func newGatewayRunCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Serve until SIGTERM or Ctrl-C, then shut down cleanly",
		Long: `Serves DICOM, DICOMweb, health and metrics. SIGTERM and Ctrl-C stop accepting,
let running transfers and jobs end, and sign a last checkpoint of the log. What
could not end goes on at the next start: nothing acknowledged is ever lost.`,
		Example: "  vigie gateway run -c site.yaml --log-format json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := newLogger(cmd, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			config, _, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			// Objects of megabytes come and go: collecting twice as often as
			// Go's default keeps the resident memory low. GOGC overrides it.
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(50)
			}
			g, err := gateway.Open(cmd.Context(), config, logger, gateway.Options{})
			if err != nil {
				return err
			}
			return errors.Join(g.Run(cmd.Context()), g.Close())
		},
	}
	bindConfig(cmd.Flags(), true)
	return cmd
}

func newGatewayCheckCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say everything that is wrong before start",
		Long: `Looks at settings, keys, certificates, ports, folders, the model package and
the store, and lists all that would keep the gateway from working, or soon
will. The exit status is 1 if there is anything.`,
		Example: "  vigie gateway check -c site.yaml\n  vigie gateway check -c site.yaml --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, origins, err := loadConfig(cmd)
			var problems gateway.Problems
			switch {
			case err == nil:
				problems = config.Check(cmd.Context(), origins)
			case !errors.As(err, &problems):
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				if problems == nil {
					problems = gateway.Problems{}
				}
				if err := json.NewEncoder(out).Encode(problems); err != nil {
					return err
				}
			} else {
				for _, p := range problems {
					fmt.Fprintln(out, p)
				}
			}
			if len(problems) > 0 {
				return fmt.Errorf("%d problem(s) found", len(problems))
			}
			if !asJSON {
				fmt.Fprintln(out, "nothing wrong: vigie gateway run can start")
			}
			return nil
		},
	}
	bindConfig(cmd.Flags(), true)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newGatewayInitCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make the master key that the configuration names",
		Long: `Makes the file of the setting keys, mode 0600, and never overwrites one. Every
stored object is sealed under it: keep a copy where the machine's thief is not.`,
		Example: "  vigie gateway init -c site.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, _, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			if err := gateway.Init(config); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "made %s\n", config.Keys)
			return nil
		},
	}
	bindConfig(cmd.Flags(), true)
	return cmd
}

// bindConfig adds -c and a flag for every setting.
func bindConfig(flags *pflag.FlagSet, settings bool) {
	flags.StringP("config", "c", os.Getenv("VIGIE_GATEWAY_CONFIG"), "configuration file (YAML)")
	if settings {
		gateway.BindFlags(flags)
	}
}

// loadConfig reads the configuration that the command line asks for.
func loadConfig(cmd *cobra.Command) (*gateway.Config, gateway.Origins, error) {
	file, err := cmd.Flags().GetString("config")
	if err != nil {
		return nil, nil, err
	}
	config, origins, err := gateway.Load(gateway.Sources{File: file, Environ: os.Environ(), Flags: cmd.Flags()})
	if err != nil {
		var problems gateway.Problems
		if errors.As(err, &problems) {
			return nil, origins, fmt.Errorf("the configuration is not usable:\n%w", err)
		}
		return nil, origins, err
	}
	return config, origins, nil
}

func newGatewayConfigCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "config",
		Short:   "List every setting: its value now, where the value came from, what it means",
		Example: "  vigie gateway config -c site.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, origins, err := loadConfig(cmd)
			if err != nil {
				return err
			}
			rows := config.Explain(origins)
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(rows)
			}
			for _, r := range rows {
				fmt.Fprintf(cmd.OutOrStdout(), "%-28s %-32s %s\n%28s %s\n", r.Setting, r.Value, r.Origin, "", r.Help)
			}
			return nil
		},
	}
	bindConfig(cmd.Flags(), true)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
