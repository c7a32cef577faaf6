package studies_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"

	"github.com/vigie/vigie/train/studies"
)

// A table is divided by patient and class, and its columns become numbers by
// what the training rows say.
func Example() {
	dir, err := os.MkdirTemp("", "studies")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	var table strings.Builder
	table.WriteString("patient,age,smoker,outcome\n")
	for i := range 100 {
		fmt.Fprintf(&table, "P%d,%d,%s,%s\n", i/2, 40+i%30, []string{"yes", "no"}[i%2], []string{"alive", "dead"}[i/2%2])
	}
	path := filepath.Join(dir, "patients.csv")
	if err := os.WriteFile(path, []byte(table.String()), 0o600); err != nil {
		log.Fatal(err)
	}

	s, err := studies.Open(context.Background(), studies.Options{Data: path, LabelColumns: []string{"outcome"}, Seed: 1})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(s.Train.ClassNames, s.Train.Counts(), s.Validation.Counts(), s.Test.Counts())
	for _, c := range s.Encoding.Columns {
		fmt.Printf("%s: mean %.1f, values %v\n", c.Name, c.Mean, c.Values)
	}
	// Output:
	// [alive dead] [34 34] [8 8] [8 8]
	// age: mean 52.8, values []
	// smoker: mean 0.0, values [no yes]
}
