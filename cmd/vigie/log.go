package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func bindLogFlags(flags *pflag.FlagSet) {
	flags.String("log-level", "info", "least serious log line printed: debug, info, warn or error")
	flags.String("log-format", "text", "form of log lines: text or json")
}

// newQuietLogger is newLogger for commands that answer a person: only warnings
// are worth a line beside the answer, unless --log-level asks for more.
func newQuietLogger(cmd *cobra.Command, w io.Writer) (*slog.Logger, error) {
	if !cmd.Flags().Changed("log-level") {
		if err := cmd.Flags().Set("log-level", "warn"); err != nil {
			return nil, err
		}
	}
	return newLogger(cmd, w)
}

// newLogger builds the logger that the log flags ask for, writing to w.
func newLogger(cmd *cobra.Command, w io.Writer) (*slog.Logger, error) {
	levelText, err := cmd.Flags().GetString("log-level")
	if err != nil {
		return nil, err
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(levelText)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", levelText)
	}
	format, err := cmd.Flags().GetString("log-format")
	if err != nil {
		return nil, err
	}
	options := &slog.HandlerOptions{Level: level}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, options)), nil
	default:
		return nil, fmt.Errorf("--log-format %q: want text or json", format)
	}
}
