package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/probe"
)

func newModelSurveyCommand() *cobra.Command {
	var (
		question      probe.Survey
		write, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "survey DIR {--phantoms N | --image FILE … | --data PATH --split NAME}",
		Short: "Measure which methods of explanation explain a package's model at all",
		Long: `Makes the maps of a package's methods of explanation over many images and puts
each to the test, as the enclave does with the map of a case: what it marks is
removed and restored, and the effect compared with that of random maps; and all
weights of the model are randomised, after which the maps must differ. A method
explains the model if at least half of its maps pass and their rank correlation
with those of randomised weights is at most 0.5.

--write keeps the result in the package (explanation.json) and seals it again. The
enclave then uses the first of the manifest's methods that explains the model, and
delivers no map if none does. Without it, the enclave measures the second part
itself when it loads the package, on drawn textures. The images must be of the kind
that the model reads, and not those it was trained on.`,
		Example: `  vigie model survey models/chest-pneumonia-28 --phantoms 24 --seed 100 --all
  vigie model survey ./my-model --data radiographs.npz --split val --count 50 --write`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := probe.Open(args[0])
			if err != nil {
				return err
			}
			if write && (question.All || len(question.Methods) > 0) {
				return errors.New("--write keeps what was measured of the manifest's methods: leave out --method and --all")
			}
			s, err := m.Survey(cmd.Context(), question)
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), s)
			} else {
				err = probe.WriteSurvey(cmd.OutOrStdout(), s)
			}
			if err != nil || !write {
				return err
			}
			digest, err := model.WriteSurvey(args[0], s)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "wrote %s and sealed the package: %s\n", model.ExplanationFile, digest)
			return probe.Explained(s)
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&question.Phantoms, "phantoms", 0, "draw this many chests, of the seeds from --seed on, every other one with a consolidation")
	flags.StringArrayVar(&question.Files, "image", nil, "a DICOM, PNG or JPEG file; repeat for several")
	flags.StringVar(&question.Data, "data", "", "data set as vigie eval takes it: FILE.npz or folder")
	flags.StringVar(&question.Split, "split", "val", "of --data: train, val, test or all")
	flags.IntVar(&question.Count, "count", 24, "of --data: how many images, chosen by --seed; 0 is all")
	readingFlags(flags, &question.Options)
	flags.Uint64Var(&question.Seed, "seed", 1, "of the choice of images, of the first drawn chest, and of the split if the data are not divided")
	flags.StringArrayVar(&question.Methods, "method", nil, "a method, repeat for several: "+strings.Join(model.MethodNames(), ", ")+" (default the manifest's)")
	flags.BoolVar(&question.All, "all", false, "every method, but for those that the graph has nothing for")
	flags.IntVar(&question.Threads, "threads", 0, "processor threads of the engine; 0 is two, or one on a single core")
	flags.BoolVar(&write, "write", false, "keep the result in the package and seal it")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
