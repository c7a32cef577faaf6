package main

import (
	"encoding/json"
	"fmt"
	"os"

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
	cmd.AddCommand(newGatewayConfigCommand())
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
		if _, ok := err.(gateway.Problems); ok {
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
