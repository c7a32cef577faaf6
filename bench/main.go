// Command bench measures Vigie beside its peers, on one machine and in one run,
// and prints a table.
//
//	go run ./bench                                    everything
//	go run ./bench -parts intake -n 100               one part, more objects
//	go run ./bench -parts engine -rows resnet18-bn    one row of the engine's table
//	go run ./bench -json
//
// Peers that are not installed are left out, saying so. `make setup-peers`
// installs them.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"time"
)

// Row is one measurement.
type Row struct {
	Work   string  `json:"work"`
	System string  `json:"system"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Second string  `json:"second,omitempty"` // the same figure in another unit
	CPU    float64 `json:"cpu,omitempty"`    // processor time in Unit, or the ratio of processor times
	Least  float64 `json:"least,omitempty"`  // the smallest of the values whose median Value is
	Target float64 `json:"target,omitempty"` // what a ratio should reach
	Note   string  `json:"note,omitempty"`
}

type options struct {
	binary  string // the vigie binary to measure
	model   string // model package
	objects int    // per intake measurement
	senders int
	cases   int           // per prediction measurement
	rows    string        // of the engine's table; empty means all
	kills   int           // processes of a federation killed
	kernels int           // terms of the engine's own operators; 0: the runtime's; -1: the best here
	rounds  int           // turns that each side of an engine row has
	turn    time.Duration // about how long a turn is; at least one step
}

var parts = []struct {
	name    string
	measure func(context.Context, options) ([]Row, error)
	asked   bool // only when it is named: it takes long, and gigabytes of disk
}{
	{"intake", intake, false},
	{"prediction", prediction, false},
	{"engine", measureEngine, false},
	{"guards", guards, false},
	{"certificates", certificates, false},
	{"federation", federation, false},
	{"federation-kills", federationKills, true},
	{"federation-many", federationMany, true},
}

func main() {
	var (
		o      options
		only   string
		asJSON bool
	)
	flag.StringVar(&o.binary, "binary", "bin/vigie", "vigie binary")
	flag.StringVar(&o.model, "model", "models/chest-pneumonia-28", "model package")
	flag.StringVar(&only, "parts", "", "comma-separated parts: intake, prediction, engine, guards, certificates, federation, federation-kills, federation-many [all but the last two]")
	flag.StringVar(&o.rows, "rows", "", "comma-separated rows of the engine's table [all]: "+strings.Join(rowNames(), ", "))
	flag.IntVar(&o.kernels, "kernels", -1, "terms (1 to 3) of the engine's own operators, 0 to measure the runtime's, -1 for the best of this processor")
	flag.IntVar(&o.rounds, "rounds", 5, "turns of each side of an engine row")
	flag.DurationVar(&o.turn, "turn", 400*time.Millisecond, "length of a turn, at least one step")
	flag.IntVar(&o.kills, "kills", 200, "processes of a federation killed")
	flag.IntVar(&o.objects, "n", 200, "512×512 objects per intake measurement (a quarter of it for 2140×1760)")
	flag.IntVar(&o.senders, "senders", 4, "associations at once")
	flag.IntVar(&o.cases, "cases", 30, "predictions measured, one at a time")
	flag.BoolVar(&asJSON, "json", false, "print JSON")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if name := os.Getenv(memoryOf); name != "" {
		if err := measureOwnMemory(ctx, name); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if file := os.Getenv(federationOf); file != "" {
		if err := fedProcess(ctx, file); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	var rows []Row
	for _, part := range parts {
		if only == "" && part.asked || only != "" && !strings.Contains(","+only+",", ","+part.name+",") {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s …\n", part.name)
		measured, err := part.measure(ctx, o)
		rows = append(rows, measured...)
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: %v\n", part.name, err)
			os.Exit(1)
		}
	}
	if asJSON {
		encoder := json.NewEncoder(os.Stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(struct {
			Time   time.Time `json:"time"`
			Cores  int       `json:"cores"`
			Target string    `json:"target"`
			Rows   []Row     `json:"rows"`
		}{time.Now().UTC(), runtime.NumCPU(), runtime.GOOS + "/" + runtime.GOARCH, rows}); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	fmt.Printf("%d cores, %s/%s, %s\n\n", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, time.Now().UTC().Format(time.DateOnly))
	work := ""
	for _, row := range rows {
		if row.Work != work {
			work = row.Work
			fmt.Printf("%s\n", work)
		}
		fmt.Printf("  %-34s %10.2f %-10s %-14s %s\n", row.System, row.Value, row.Unit, row.Second, row.Note)
	}
}
