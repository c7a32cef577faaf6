package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/gateway"
)

func newSendCommand() *cobra.Command {
	var asJSON bool
	var target gateway.DestinationConfig
	cmd := &cobra.Command{
		Use:   "send FILE|FOLDER…",
		Short: "Send DICOM files by C-STORE or STOW-RS",
		Long: `Sends files, and every file in folders, to a DICOM peer (--to host:port) or a
DICOMweb service (--to https://…), over TLS 1.3 with a client certificate. The
exit status is 1 if any file was not taken.`,
		Example: `  vigie send study/ --to vigie:2762 --called VIGIE --calling MODALITY \
      --ca ca.pem --certificate modality.pem --key modality.key
  vigie send image.dcm --to https://vigie:8443/dicom-web --ca ca.pem --certificate m.pem --key m.key`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := cmd.Flags().GetString("to")
			if err != nil {
				return err
			}
			target.Name, target.Kind, target.Address = "target", "dimse", to
			if strings.Contains(to, "://") {
				target.Kind, target.Address, target.URL = "stow", "", to
			}
			out := cmd.OutOrStdout()
			failed := 0
			err = gateway.Send(cmd.Context(), target, args, func(s gateway.Sent) {
				if s.Error != "" {
					failed++
				}
				if asJSON {
					_ = json.NewEncoder(out).Encode(s) // a broken pipe shows at the end
					return
				}
				if s.Error != "" {
					fmt.Fprintf(out, "FAILED  %s: %s\n", s.Path, s.Error)
					return
				}
				fmt.Fprintf(out, "sent    %s  %s\n", s.Path, s.SOPInstance)
			})
			if err != nil {
				return err
			}
			if failed > 0 {
				return fmt.Errorf("%d file(s) were not taken", failed)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.String("to", "", "host:port of a DICOM peer, or URL of a DICOMweb service")
	flags.StringVar(&target.AETitle, "called", "VIGIE", "called AE title")
	flags.StringVar(&target.CallingAETitle, "calling", "MODALITY", "our AE title")
	flags.StringVar(&target.TLS.CA, "ca", "", "PEM certificates that sign the peer's certificate")
	flags.StringVar(&target.TLS.Certificate, "certificate", "", "our PEM certificate chain")
	flags.StringVar(&target.TLS.Key, "key", "", "its PEM private key")
	flags.StringVar(&target.TLS.ServerName, "server-name", "", "name expected in the peer's certificate (default: the host)")
	flags.BoolVar(&target.Plain, "plain", false, "no TLS; only to a loopback address")
	flags.BoolVar(&asJSON, "json", false, "print one JSON object a file")
	if err := cmd.MarkFlagRequired("to"); err != nil {
		panic(err) // the flag was defined above
	}
	return cmd
}
