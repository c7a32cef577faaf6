package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/gateway"
)

func newCaseCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "case",
		Short: "See cases and decide those that wait for a person",
		Long: `Works on the store and the keys of the configuration, beside a running gateway
or without one. What a person decides is recorded in the audit log under
--actor, and delivered by the gateway. Only identify shows who the patient is,
and the log names who asked.`,
		Example: `  vigie case list -c site.yaml --state "in review"
  vigie case show -c site.yaml CASE
  vigie case identify -c site.yaml CASE --actor dr.kone
  vigie case release  -c site.yaml CASE --actor dr.kone
  vigie case override -c site.yaml CASE --label normal --note "rotated, not opaque"
  vigie case reject   -c site.yaml CASE --note "not a chest"
  vigie case erase    -c site.yaml CASE --actor dpo.martin --yes`,
	}
	cmd.AddCommand(
		newCaseListCommand(),
		newCaseShowCommand(),
		newCaseIdentifyCommand(),
		newDecideCommand(gateway.ActionRelease, "Let the model's answer stand and deliver it"),
		newDecideCommand(gateway.ActionOverride, "Replace the model's answer by the labels that you found present"),
		newDecideCommand(gateway.ActionReject, "Close the case without reporting anything"),
		newCaseOverlayCommand(),
		newCaseEraseCommand(),
	)
	return cmd
}

// withCasebook opens the casebook of the configuration for one command.
func withCasebook(cmd *cobra.Command, do func(*gateway.Casebook) error) error {
	logger, err := newQuietLogger(cmd, cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	config, _, err := loadConfig(cmd)
	if err != nil {
		return err
	}
	book, err := gateway.OpenCasebook(cmd.Context(), config, logger)
	if err != nil {
		return err
	}
	return errors.Join(do(book), book.Close())
}

func newCaseListCommand() *cobra.Command {
	var asJSON bool
	var query gateway.Query
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List cases, newest first, each with the model's leading finding",
		Long:    "Lists cases, newest first, with what the model says first: the most probable\nlabel that it found present, or else of all. The audit log names who asked.",
		Example: "  vigie case list -c site.yaml --state \"in review\" --state quarantined",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withCasebook(cmd, func(book *gateway.Casebook) error {
				cases, err := book.Find(cmd.Context(), query, actorOf(cmd))
				if err != nil {
					return err
				}
				if asJSON {
					if cases == nil {
						cases = []vigie.Case{}
					}
					return json.NewEncoder(cmd.OutOrStdout()).Encode(cases)
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "CASE\tPATIENT\tRECEIVED\tSTATE\tFINDING\tREASONS")
				for _, c := range cases {
					var codes []string
					if c.Verdict != nil {
						for _, r := range c.Verdict.Reasons {
							if !slices.Contains(codes, string(r.Code)) {
								codes = append(codes, string(r.Code))
							}
						}
					}
					for _, r := range c.Refusals {
						codes = append(codes, gateway.RefusalText(r))
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", c.ID, c.Patient, c.Received.Local().Format("2006-01-02 15:04:05"),
						gateway.StateText(&c), gateway.FindingText(&c), strings.Join(codes, ", "))
				}
				return w.Flush()
			})
		},
	}
	bindConfig(cmd.Flags(), false)
	bindActor(cmd)
	cmd.Flags().StringArrayVar(&query.States, "state", nil, "only cases in this state; may be repeated")
	cmd.Flags().StringVar(&query.Patient, "patient", "", "only cases of this pseudonym")
	cmd.Flags().StringVar(&query.Study, "study", "", "only cases of this pseudonymised study")
	cmd.Flags().IntVar(&query.Limit, "limit", 100, "at most this many")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newCaseShowCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "show CASE",
		Short:   "Show a case: finding, verdict with reasons, decision, times",
		Example: "  vigie case show -c site.yaml CASE --json",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withCasebook(cmd, func(book *gateway.Casebook) error {
				c, err := book.View(cmd.Context(), vigie.CaseID(args[0]), actorOf(cmd))
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(c)
				}
				_, err = fmt.Fprint(cmd.OutOrStdout(), gateway.Describe(c))
				return err
			})
		},
	}
	bindConfig(cmd.Flags(), false)
	bindActor(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON, the explanation's map included")
	return cmd
}

func newCaseIdentifyCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "identify CASE",
		Short: "Show whose case it is and where its study lies in the PACS; the log names who asked",
		Long: `Opens the identity behind a case's pseudonym, so that the person who must read
the case finds the study in the PACS. The audit log records the question before
anything is shown.`,
		Example: "  vigie case identify -c site.yaml CASE --actor dr.kone",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withCasebook(cmd, func(book *gateway.Casebook) error {
				who, err := book.Identify(cmd.Context(), vigie.CaseID(args[0]), actorOf(cmd))
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(who)
				}
				w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				for _, line := range [][2]string{
					{"patient", who.PatientName}, {"patient id", who.PatientID}, {"issuer", who.Issuer}, {"born", who.BirthDate},
					{"accession", who.AccessionNumber}, {"study date", who.StudyDate}, {"study", who.StudyInstanceUID}, {"image", who.SOPInstanceUID},
				} {
					if line[1] != "" {
						fmt.Fprintf(w, "%s\t%s\n", line[0], line[1])
					}
				}
				return w.Flush()
			})
		},
	}
	bindConfig(cmd.Flags(), false)
	bindActor(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func bindActor(cmd *cobra.Command) {
	cmd.Flags().String("actor", "", "who does this, as the audit log names them (default: your user name on this machine)")
}

func actorOf(cmd *cobra.Command) string {
	if actor, err := cmd.Flags().GetString("actor"); err == nil && actor != "" {
		return actor
	}
	if u, err := user.Current(); err == nil {
		return "os:" + u.Username
	}
	return ""
}

func newDecideCommand(action, short string) *cobra.Command {
	var asJSON bool
	decision := vigie.HumanDecision{Action: action}
	cmd := &cobra.Command{
		Use:   action + " CASE",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			decision.Actor = actorOf(cmd)
			return withCasebook(cmd, func(book *gateway.Casebook) error {
				c, err := book.Decide(cmd.Context(), vigie.CaseID(args[0]), decision)
				if err != nil {
					return err
				}
				if asJSON {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(c)
				}
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "case %s is %s (%s by %s)\n", c.ID, c.State, action, decision.Actor)
				return err
			})
		},
	}
	bindConfig(cmd.Flags(), false)
	bindActor(cmd)
	cmd.Flags().StringVar(&decision.Note, "note", "", "why; sealed in the vault, never in the log")
	if action == gateway.ActionOverride {
		cmd.Flags().StringArrayVar(&decision.Labels, "label", nil, "a label that you found present; may be repeated, none means that none is")
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newCaseOverlayCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:     "export-overlay CASE",
		Short:   "Write the image with the model's relevance map as a PNG",
		Long:    "Writes the image with the model's relevance map drawn over it. The PNG shows\nthe patient's image in clear; the export is recorded in the audit log.",
		Example: "  vigie case export-overlay -c site.yaml CASE -o overlay.png",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withCasebook(cmd, func(book *gateway.Casebook) error {
				data, err := book.Overlay(cmd.Context(), vigie.CaseID(args[0]), actorOf(cmd))
				if err != nil {
					return err
				}
				if err := os.WriteFile(out, data, 0o600); err != nil {
					return fmt.Errorf("writing the overlay: %w", err)
				}
				fmt.Fprintf(cmd.OutOrStdout(), "wrote %s\n", out)
				return nil
			})
		},
	}
	bindConfig(cmd.Flags(), false)
	bindActor(cmd)
	cmd.Flags().StringVarP(&out, "out", "o", "overlay.png", "file to write")
	return cmd
}
