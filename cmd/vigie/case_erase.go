package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/gateway"
)

func newCaseEraseCommand() *cobra.Command {
	var asJSON, yes bool
	cmd := &cobra.Command{
		Use:   "erase CASE",
		Short: "Destroy the keys of the case's patient, and so everything kept of that patient",
		Long: `Destroys the data keys of the patient whose case it is. Every image, report,
finding, decision and identity of all the patient's cases becomes unreadable for
good, and its files are removed. The cases' pseudonymous rows and the audit log
stay, and the log names who erased. An object of the patient that is sent again
is a new case.

Not reached are what was delivered already (it is in the PACS) and backups of
the database made before, which hold the wrapped keys: destroy those too.

Without --yes it only says what would be destroyed, and ends with status 1. After
an error that says that old bytes may be left on the disk, run it again.`,
		Example: "  vigie case erase -c site.yaml CASE --actor dpo.martin --yes",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withCasebook(cmd, func(book *gateway.Casebook) error {
				id := vigie.CaseID(args[0])
				if !yes {
					planned, err := book.Erasable(cmd.Context(), id)
					if err != nil {
						return err
					}
					if err := printErasure(cmd, asJSON, "would be erased", planned); err != nil {
						return err
					}
					return errors.New("nothing was erased: say --yes to destroy this for good")
				}
				done, err := book.Erase(cmd.Context(), id, actorOf(cmd))
				if err != nil {
					return err
				}
				return printErasure(cmd, asJSON, "erased", done)
			})
		},
	}
	bindConfig(cmd.Flags(), false)
	bindActor(cmd)
	cmd.Flags().BoolVar(&yes, "yes", false, "destroy it; without this nothing is changed")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printErasure(cmd *cobra.Command, asJSON bool, what string, e gateway.Erasure) error {
	if asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(e)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: patient %s, cases %d, objects %d\n", what, e.Patient, len(e.Cases), e.Objects)
	return err
}
