// Command vigie diagnoses with evidence: it receives studies from hospital
// systems, lets an attested enclave read them, and returns explained, audited
// answers. `vigie help` is the table of contents; each subcommand has its own
// file here and no logic of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func main() { os.Exit(run(os.Args[1:])) }

// run executes one command line and returns the process's exit status.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	received := make(chan os.Signal, 1)
	signal.Notify(received, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(received)
	root := newRootCommand()
	root.SetArgs(args)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "vigie:", err)
		if errors.Is(err, context.Canceled) && ctx.Err() != nil {
			if s, ok := (<-received).(syscall.Signal); ok {
				return 128 + int(s) // as a shell reports it
			}
		}
		var status interface{ ExitStatus() int } // such as findings that a caller asked to fail on
		if errors.As(err, &status) {
			return status.ExitStatus()
		}
		return 1
	}
	return 0
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "vigie",
		Short: "Explained, audited diagnosis next to the PACS",
		Long: `Vigie receives studies from hospital systems over DICOM and DICOMweb, seals
them, lets a model read a pseudonymised copy inside an enclave, and delivers an
explained answer (structured report and overlay) back. Doubt goes to a person,
and every prediction can be proven from a signed log.

Start here:
  vigie demo                         see the whole path on this machine, in a minute
  vigie gateway check -c site.yaml   say what is wrong before start
  vigie gateway run   -c site.yaml   serve
  vigie case list     -c site.yaml   see what waits for a person`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	bindLogFlags(root.PersistentFlags())
	root.AddCommand(
		newDemoCommand(),
		newGatewayCommand(),
		newCaseCommand(),
		newAuditCommand(),
		newSendCommand(),
		newDataCommand(),
		newTrainCommand(),
		newHardenCommand(),
		newRunCommand(),
		newGradCommand(),
		newEvalCommand(), newFedCommand(), newConsortiumCommand(), newSiteCommand(),
		newGuardCommand(),
		newExplainCommand(),
		newAttackCommand(),
		newCertifyCommand(),
		newModelCommand(),
		newEnclaveCommand(),
		newDPCommand(),
		newPrivacyCommand(),
		newVersionCommand(),
	)
	for _, group := range root.Commands() {
		refuseUnknownSubcommand(group)
	}
	return root
}

// refuseUnknownSubcommand makes a misspelt subcommand an error. Cobra answers
// it with help and success, and a nightly `vigie audit verfy` would pass.
func refuseUnknownSubcommand(group *cobra.Command) {
	if !group.HasSubCommands() || group.Runnable() {
		return
	}
	group.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		var known []string
		for _, c := range cmd.Commands() {
			known = append(known, c.Name())
		}
		return fmt.Errorf("unknown command %q for %q: want one of %s", args[0], cmd.CommandPath(), strings.Join(known, ", "))
	}
}
