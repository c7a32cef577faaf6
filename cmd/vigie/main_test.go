package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/model"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"vigie": func() { os.Exit(run(os.Args[1:])) }})
}

// TestCommands runs the scripts in testdata, which read like the README.
func TestAMisspeltSubcommandFails(t *testing.T) {
	for _, args := range [][]string{{"audit", "verfy"}, {"gateway", "frob"}, {"case", "lst"}, {"model", "show"}, {"dp", "x"}, {"nosuch"}} {
		if status := run(args); status != 1 {
			t.Errorf("vigie %v: exit status %d, want 1", args, status)
		}
		if status := run(args[:len(args)-1]); status != 0 {
			t.Errorf("vigie %v: exit status %d, want 0 and its help", args[:len(args)-1], status)
		}
	}
}

func TestCommands(t *testing.T) {
	dir, err := filepath.Abs("../../models/chest-pneumonia-28")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("MODEL", dir)
			return nil
		},
		Condition: func(condition string) (bool, error) {
			if condition != "runtime" {
				return false, errors.New("unknown condition " + condition)
			}
			pkg, err := model.Open(dir)
			if err != nil {
				return false, err
			}
			session, err := engine.Open(pkg.Graph, engine.Options{Threads: 1})
			if errors.Is(err, engine.ErrNoRuntime) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			return true, session.Close()
		},
	})
}
