package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// memoryOf is the environment variable that makes this program train one work
// for a few steps and print its peak memory: VmHWM counts for a whole life, so
// each measurement has a process of its own.
const memoryOf = "VIGIE_BENCH_MEMORY_OF"

const memorySteps = 3

func (w work) measureMemory(ctx context.Context) ([]Row, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	command := exec.CommandContext(ctx, self)
	command.Env = append(os.Environ(), fmt.Sprintf("%s=%s/%d", memoryOf, w.name, w.kernels))
	command.Stderr = os.Stderr
	output, err := command.Output()
	if err != nil {
		return nil, fmt.Errorf("measuring memory in a process of its own: %w", err)
	}
	ours, err := strconv.ParseInt(string(bytes.TrimSpace(output)), 10, 64)
	if err != nil {
		return nil, err
	}
	rows := []Row{{Work: w.title(), System: w.system(), Value: float64(ours) / 1e6, Unit: "MB", Note: "VmHWM"}}
	peer, least := "", int64(0)
	for _, way := range []string{"contiguous", "channels_last"} { // foreach only adds to either
		p, err := w.startPeer(ctx, way)
		if err == nil {
			_, _, err = p.steps(ctx, memorySteps)
			p.close()
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s: the peer is left out: %v\n", w.name, err)
			return rows, nil
		}
		if least == 0 || p.peak < least {
			peer, least = p.name(), p.peak
		}
	}
	return append(rows,
		Row{Work: w.title(), System: peer, Value: float64(least) / 1e6, Unit: "MB", Note: "VmHWM, the leaner layout"},
		w.verdict(float64(least)/float64(ours), 0, "")), nil
}

// measureOwnMemory is the process that measureMemory starts.
func measureOwnMemory(ctx context.Context, which string) error {
	name, terms, _ := strings.Cut(which, "/")
	kernels, err := strconv.Atoi(terms)
	if err != nil {
		return fmt.Errorf("%s=%s: %w", memoryOf, which, err)
	}
	for _, w := range works {
		if w.name != name {
			continue
		}
		w.kernels = kernels
		ours, err := w.open()
		if err != nil {
			return err
		}
		defer ours.close()
		if _, _, err := ours.steps(ctx, memorySteps); err != nil {
			return err
		}
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			return err
		}
		_, rest, _ := strings.Cut(string(status), "VmHWM:")
		kilobytes, err := strconv.ParseInt(strings.Fields(rest + " ?")[0], 10, 64)
		if err != nil {
			return fmt.Errorf("reading VmHWM: %w", err)
		}
		fmt.Println(kilobytes * 1024)
		return nil
	}
	return fmt.Errorf("no work %q", name)
}
