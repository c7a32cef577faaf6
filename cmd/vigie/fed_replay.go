package main

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/onnx"
)

func newFedReplayCommand() *cobra.Command {
	var (
		key, sites, model string
		asJSON            bool
	)
	command := &cobra.Command{
		Use:   "replay TRANSCRIPT",
		Short: "Verify a federation from the transcript that its coordinator kept",
		Long: `Replay verifies a run from its first byte to its last, believing nobody: every
signature of every site, that the groups are those the terms draw, that each masked
sum is the sum of the very vectors that the sites signed, that the shares which
opened it are right, and that the weights moved by what the sums hold and by
nothing else. It says who took part in which round, and who was accused of what.

It needs no image, no update of a site and no secret: the transcript is a folder
with the messages of each attempt and the masked sum of each group.

--key is the coordinator's public key, in hexadecimal or a file that holds it so.
Without it the transcript is verified against the key that it names itself, which
shows that it is whole, and not whose it is. --model holds a published model
against the weights that the run led to.

Exit status 1: something does not hold; the message says what and where.`,
		Example: `  vigie fed simulate --data pneumoniamnist.npz --eval-split val --sites 15 --out model.onnx --transcript run
  vigie fed replay run --model model.onnx
  vigie fed replay north/runs/chest-1/transcript --key coordinator.hex --sites sites.txt --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, own, err := federate.ReadHeader(args[0])
			if err != nil {
				return err
			}
			trusted := own
			if key != "" {
				if trusted, err = publicKey(key); err != nil {
					return err
				}
			} else {
				fmt.Fprintf(cmd.ErrOrStderr(), "no --key: verified against the key that the transcript names, %s\n", hex.EncodeToString(own))
			}
			o := federate.ReplayOptions{Dir: args[0], Coordinator: trusted, Progress: func(a federate.Attempt) {
				fmt.Fprintf(cmd.ErrOrStderr(), "attempt %d: round %d, %d sites verified\n", a.Number, a.Index+1, a.Sites)
			}}
			if sites != "" {
				if o.Members, err = siteKeys(sites); err != nil {
					return err
				}
			}
			r, err := federate.ReplayRun(cmd.Context(), o)
			if err != nil {
				return err
			}
			if model != "" {
				m, err := onnx.Load(model)
				if err != nil {
					return err
				}
				if err := r.CheckModel(m); err != nil {
					return err
				}
			}
			if asJSON {
				return writeJSON(cmd.OutOrStdout(), r)
			}
			if err := r.Write(cmd.OutOrStdout()); err != nil || model == "" {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "model     %s holds these weights\n", model)
			return err
		},
	}
	flags := command.Flags()
	flags.StringVar(&key, "key", "", "the coordinator's public key: 64 hexadecimal digits, or a file with them")
	flags.StringVar(&sites, "sites", "", "file with the sites' names and public keys, a line each")
	flags.StringVar(&model, "model", "", "FILE.onnx that was published")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	return command
}

// siteKeys reads the names and keys of sites, a line each.
func siteKeys(path string) ([]secagg.Member, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	members := []secagg.Member{}
	for i, line := range strings.Split(string(data), "\n") {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 2 {
			return nil, fmt.Errorf("%s:%d: want a name and a key", path, i+1)
		}
		key, err := hex.DecodeString(fields[1])
		if err != nil || len(key) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("%s:%d: %q is not the %d hexadecimal digits of an Ed25519 key", path, i+1, fields[1], 2*ed25519.PublicKeySize)
		}
		members = append(members, secagg.Member{Name: fields[0], Key: key})
	}
	return members, nil
}

// publicKey reads an Ed25519 public key in hexadecimal, given or in a file.
func publicKey(text string) (ed25519.PublicKey, error) {
	key, err := hex.DecodeString(strings.TrimSpace(text))
	if err != nil {
		data, reading := os.ReadFile(text)
		if reading != nil {
			return nil, fmt.Errorf("--key %q: want 64 hexadecimal digits or a file: %w", text, reading)
		}
		key, err = hex.DecodeString(strings.TrimSpace(string(data)))
	}
	if err != nil || len(key) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("--key %q: want the %d hexadecimal digits of an Ed25519 key", text, 2*ed25519.PublicKeySize)
	}
	return key, nil
}
