package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/probe"
)

func TestTheNamesOfAModelDoNotSteerTheTerminal(t *testing.T) {
	var out bytes.Buffer
	command := &cobra.Command{}
	command.SetOut(&out)
	writeFigures(command, []probe.Figures{{Name: "\x1b[31mW\n"}, {Name: "größe"}}, nil)
	if strings.Contains(out.String(), "\x1b") || strings.Count(out.String(), "\n") != 2 || !strings.Contains(out.String(), "größe ") {
		t.Errorf("printed %q", out.String())
	}
}
