package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/gateway"
)

func newAuditCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Verify the audit log, prove a case, check a proof offline",
		Long: `Every step of every case is a record in a signed Merkle tree. verify looks at
the whole log, prove writes a file about one case, and check verifies such a
file anywhere, with nothing but the log's public key.`,
		Example: `  vigie audit verify -c site.yaml
  vigie audit key    -c site.yaml > site.pub
  vigie audit prove  -c site.yaml CASE -o case.proof
  vigie audit check  case.proof --key site.pub     # offline, no configuration`,
	}
	cmd.AddCommand(newAuditVerifyCommand(), newAuditKeyCommand(), newAuditProveCommand(), newAuditCheckCommand())
	return cmd
}

func newAuditVerifyCommand() *cobra.Command {
	var asJSON bool
	var witnesses []string
	cmd := &cobra.Command{
		Use:     "verify",
		Short:   "Verify the whole log against its checkpoints and its cases",
		Example: "  vigie audit verify -c site.yaml --witness checkpoint-of-yesterday.txt",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withCasebook(cmd, func(book *gateway.Casebook) error {
				var notes [][]byte
				for _, path := range witnesses {
					note, err := os.ReadFile(path)
					if err != nil {
						return fmt.Errorf("reading a witness: %w", err)
					}
					notes = append(notes, note)
				}
				report, err := book.VerifyLog(cmd.Context(), notes)
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if asJSON {
					if err := json.NewEncoder(out).Encode(report); err != nil {
						return err
					}
				} else {
					fmt.Fprintf(out, "log %s: %d records, %d cases followed, %d checkpoints, %d records not yet signed\nroot %s\n",
						report.Origin, report.Size, report.Cases, report.Checkpoints, report.Unsigned, report.Root)
					for _, p := range report.Problems {
						fmt.Fprintln(out, "PROBLEM:", p)
					}
				}
				if !report.OK() {
					return fmt.Errorf("the log does not verify: %d problem(s)", len(report.Problems))
				}
				if !asJSON {
					fmt.Fprintln(out, "the log verifies")
				}
				return nil
			})
		},
	}
	bindConfig(cmd.Flags(), false)
	cmd.Flags().StringArrayVar(&witnesses, "witness", nil, "a checkpoint kept elsewhere that the log must extend; may be repeated")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newAuditKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "key",
		Short: "Print the log's public key, which check needs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withCasebook(cmd, func(book *gateway.Casebook) error {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), book.VerifierKey())
				return err
			})
		},
	}
	bindConfig(cmd.Flags(), false)
	return cmd
}

func newAuditProveCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:     "prove CASE",
		Short:   "Write a file that proves every record of one case",
		Example: "  vigie audit prove -c site.yaml CASE -o case.proof",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withCasebook(cmd, func(book *gateway.Casebook) error {
				proof, err := book.Prove(cmd.Context(), vigie.CaseID(args[0]))
				if err != nil {
					return err
				}
				if out == "" || out == "-" {
					_, err = cmd.OutOrStdout().Write(proof)
					return err
				}
				if err := os.WriteFile(out, proof, 0o644); err != nil {
					return fmt.Errorf("writing the proof: %w", err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "wrote %s\n", out)
				return nil
			})
		},
	}
	bindConfig(cmd.Flags(), false)
	cmd.Flags().StringVarP(&out, "out", "o", "", "file to write (default: standard output)")
	return cmd
}

func newAuditCheckCommand() *cobra.Command {
	var asJSON bool
	var keyFile string
	cmd := &cobra.Command{
		Use:     "check FILE",
		Short:   "Check a proof offline, with nothing but the log's public key",
		Example: "  vigie audit check case.proof --key site.pub",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			key, err := os.ReadFile(keyFile)
			if err != nil {
				return fmt.Errorf("reading the log's public key (print it with vigie audit key): %w", err)
			}
			file, err := os.Open(args[0])
			if err != nil {
				return fmt.Errorf("reading the proof: %w", err)
			}
			defer func() { err = errors.Join(err, file.Close()) }()
			proven, err := audit.Check(file, strings.TrimSpace(string(key)))
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if asJSON {
				return json.NewEncoder(out).Encode(proven)
			}
			fmt.Fprintf(out, "proven: %d records of case %s are in log %s, as signed at size %d\n",
				len(proven.Records), proven.Case, proven.Origin, proven.Size)
			for i, r := range proven.Records {
				what := strings.TrimSpace(strings.Join([]string{r.Destination, r.Decision}, " "))
				if r.To != "" && string(r.To) != string(r.Kind) {
					what = string(r.To)
				}
				fmt.Fprintf(out, "  %6d  %s  %-10s %-16s %s\n", proven.Indexes[i], r.Time.Format("2006-01-02 15:04:05.000"), r.Kind, what, r.Actor)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&keyFile, "key", "", "file with the log's public key")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	if err := cmd.MarkFlagRequired("key"); err != nil {
		panic(err) // the flag was defined two lines above
	}
	return cmd
}
