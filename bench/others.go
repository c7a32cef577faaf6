package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// others watches how much of the machine other processes take while something
// is measured: on a shared machine a figure without that is worth little.
type others struct {
	start time.Time
	busy  float64 // processor seconds of the whole machine at the start
	own   float64 // processor seconds of what is measured
}

func startOthers() *others { return &others{start: time.Now(), busy: busySeconds()} }

func (o *others) ours(cpu []float64) {
	for _, s := range cpu {
		o.own += s
	}
}

// note says it if others took more than a tenth of the machine.
func (o *others) note() string {
	now := busySeconds()
	if now == 0 {
		return ""
	}
	share := (now - o.busy - o.own) / (time.Since(o.start).Seconds() * float64(runtime.NumCPU()))
	if share < 0.1 {
		return ""
	}
	return fmt.Sprintf("other processes took %.0f %% of the machine", 100*share)
}

// busySeconds is the processor time that the machine has spent on anything but
// waiting, 0 where /proc/stat is not to be had.
func busySeconds() float64 {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	fields := strings.Fields(line)
	total := 0.0
	for i, f := range fields[min(1, len(fields)):] {
		if i == 3 || i == 4 || i > 7 { // idle, iowait, and guest time, which is in user time already
			continue
		}
		ticks, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0
		}
		total += ticks
	}
	return total / 100 // USER_HZ, 100 on every Linux that Go runs on
}
