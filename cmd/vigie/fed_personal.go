package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/simulate"
)

// personalHelp is what the help of vigie fed simulate says of what stays at a site
// and what is done there.
const personalHelp = `
--personal keeps parts of the model at their site: norm (normalisations: FedBN),
head (the last layer), or both. Each site is then judged on examples of its own, by
the global model, by its personal one, and by what it learns alone.

--evaluate-at-sites divides the evaluation split among the sites, which judge and
calibrate the final model by secure sums, and compares with the same in one place.

--trainer has the sites train by a program of yours instead of the engine. It gets
a folder as its last argument, reads global.safetensors and round.json there, and
leaves weights.safetensors or update.safetensors, and metrics.json; round.json says
where the site's examples are (docs/federation.md has one in PyTorch).
`

// personal are the flags of a simulation of personal models.
type personal struct {
	parts    []string
	held     float64
	scanners bool
}

func (p *personal) flags(flags *pflag.FlagSet) {
	flags.StringSliceVar(&p.parts, "personal", nil, "parts that stay at their site: norm, head, or norm,head")
	flags.Float64Var(&p.held, "held", 0.3, "share of a site's examples that it is judged on, with --personal")
	flags.BoolVar(&p.scanners, "scanners", false, "each site's images differ in contrast and brightness, with --personal")
}

// run simulates with and without the parts that stay at their site.
func (p *personal) run(cmd *cobra.Command, j simulate.Job, asJSON bool) error {
	for _, name := range []string{"malicious", "dropout", "compare", "out", "trainer", "evaluate-at-sites"} {
		if cmd.Flags().Changed(name) {
			return fmt.Errorf("--%s does not go with --personal", name)
		}
	}
	for _, part := range p.parts {
		j.Terms.Personal = append(j.Terms.Personal, federate.Part(strings.TrimSpace(part)))
	}
	j.Progress = simulate.Terminal(cmd.ErrOrStderr())
	r, err := j.RunPersonal(cmd.Context(), p.held, p.scanners)
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(cmd.OutOrStdout(), r)
	}
	return r.Write(cmd.OutOrStdout())
}
