package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/simulate"
	"github.com/vigie/vigie/federate/tabular"
)

// hospitalsHelp is what the help of vigie fed simulate says of tables.
const hospitalsHelp = `
--leave-out takes a folder of tables instead, a CSV file a hospital (.csv, .data):
the hospitals are the sites, and the one that is left out, or each in turn, judges
the model. How columns are standardised is learnt from secure sums first. --schema
says which columns there are and within which limits ("vigie fed schema" drafts
one, and one is drafted from all files if none is given). The model is logistic
regression, or has --hidden layers.
`

// hospitals are the flags of a simulation of tables.
type hospitals struct {
	out, schema string
	negative    []string
	hidden      []int
	least       int
}

func (h *hospitals) flags(flags *pflag.FlagSet) {
	flags.StringVar(&h.out, "leave-out", "", "hospital of a folder of tables that judges the model of the others, or each")
	flags.StringVar(&h.schema, "schema", "", "FILE.json that says what the tables' columns are")
	flags.StringSliceVar(&h.negative, "negative", nil, "texts of the tables' label that are class 0, if no schema says so")
	flags.IntSliceVar(&h.hidden, "hidden", nil, "units of hidden layers over tables, such as 16,8")
	flags.IntVar(&h.least, "least", 0, "rows that a hospital has at least to be counted in the statistics")
}

// run simulates with the command's terms where they were given, and those that
// suit tables where not.
func (h *hospitals) run(cmd *cobra.Command, j simulate.Job, given federate.Terms, out string, asJSON bool) error {
	flags := cmd.Flags()
	for _, name := range []string{"malicious", "dropout", "dirichlet", "sites", "recipe", "model", "eval-split", "split", "compare", "group-size", "rule", "bad-groups", "evaluate-at-sites", "personal"} {
		if flags.Lookup(name) != nil && flags.Changed(name) {
			return fmt.Errorf("--%s does not go with --leave-out: the hospitals are the sites, and what was left out judges", name)
		}
	}
	t, usual := given, simulate.HospitalTerms()
	t.Federation, t.Augmentation, t.Tasks, t.Questions = usual.Federation, usual.Augmentation, usual.Tasks, usual.Questions
	for name, set := range map[string]func(){
		"rounds":     func() { t.Rounds = usual.Rounds },
		"batch":      func() { t.Batch = usual.Batch },
		"rate":       func() { t.Rate = usual.Rate },
		"final-rate": func() { t.FinalRate = min(usual.FinalRate, t.Rate) },
		"decay":      func() { t.Decay = usual.Decay },
	} {
		if !flags.Changed(name) {
			set()
		}
	}
	t.FinalRate = min(t.FinalRate, t.Rate)
	s := simulate.Hospitals{Out: h.out, Hidden: h.hidden, Least: h.least, Terms: t, Kernels: j.Kernels, Program: j.Program, Seed: j.Seed}
	var err error
	if h.schema != "" {
		if h.negative != nil || j.Data.LabelColumns != nil {
			return errors.New("the schema says what the label is: leave --negative and --label-column out")
		}
		s.Schema, err = readSchema(h.schema)
	} else {
		s.Schema, err = draftSchema(j.Data.Data, j.Data.LabelColumns, j.Data.PatientColumn, h.negative, nil)
	}
	if err != nil {
		return err
	}
	if s.Tables, err = simulate.ReadHospitals(j.Data.Data, s.Schema); err != nil {
		return err
	}
	s.Terminal(cmd.ErrOrStderr())
	r, err := s.Run(cmd.Context())
	if err != nil {
		return err
	}
	if out != "" {
		if err := r.Model.Save(out); err != nil {
			return err
		}
	}
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), r)
	}
	return r.Write(cmd.OutOrStdout())
}

func readSchema(path string) (*tabular.Schema, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading a schema: %w", err)
	}
	s, err := tabular.ParseSchema(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func draftSchema(path string, label []string, patient string, negative, leaveOut []string) (*tabular.Schema, error) {
	o := tabular.DraftOptions{Patient: patient, Negative: negative, LeaveOut: leaveOut}
	switch len(label) {
	case 0:
	case 1:
		o.Label = label[0]
	default:
		return nil, fmt.Errorf("--label-column %q: a table of hospitals has one label", label)
	}
	return simulate.DraftSchema(path, o)
}

func newFedSchemaCommand() *cobra.Command {
	var (
		data, patient             string
		label, negative, leaveOut []string
	)
	command := &cobra.Command{
		Use:   "schema --data FILE.csv",
		Short: "Draft a schema of tables for hospitals to correct and agree on",
		Long: `Schema looks at a table, or at a folder of tables, and prints a schema: which
columns there are, within which limits a number is a measurement (the least and the
greatest that was seen), which texts a category has, and what counts as which class.
A column of texts, or of at most five whole numbers, is taken for a category.

Correct the draft before hospitals agree on it: limits are those of what can be
measured, not of what one hospital has seen, and a number outside counts as missing.`,
		Example: `  vigie fed schema --data hospital.csv --label-column num --negative 0 > schema.json
  vigie fed simulate --data hospitals/ --schema schema.json --leave-out each`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := draftSchema(data, label, patient, negative, leaveOut)
			if err != nil {
				return err
			}
			text, err := json.MarshalIndent(s, "", "  ")
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", text)
			return err
		},
	}
	flags := command.Flags()
	flags.StringVar(&data, "data", "", "table, or folder of tables (required)")
	flags.StringSliceVar(&label, "label-column", nil, "column of the label; the last if not given")
	flags.StringSliceVar(&negative, "negative", nil, "texts of the label that are class 0; all others are class 1")
	flags.StringVar(&patient, "patient-column", "", "column that tells patients apart")
	flags.StringSliceVar(&leaveOut, "without", nil, "columns that are not learnt from")
	cobra.CheckErr(command.MarkFlagRequired("data"))
	return command
}

// kernels are those of this machine, unless the standard operators are asked for.
func kernels(standard bool) int {
	if standard {
		return 0
	}
	return engine.KernelTerms()
}
