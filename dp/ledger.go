package dp

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// Ledger is the record of what was spent on one data set. A step is charged,
// durably, before its noise is drawn: a process that is killed has charged what
// it ran, and perhaps one step more, never less. Every run that uses the same
// ledger adds to it, because privacy losses on the same records compose.
//
// A Ledger is for one goroutine at a time.
type Ledger struct {
	header LedgerHeader
	runs   []Run // equal neighbours merged
	file   *os.File
}

// LedgerHeader says whose privacy the ledger counts.
type LedgerHeader struct {
	Version int    `json:"vigie_privacy_ledger"` // 1
	Data    string `json:"data"`                 // digest of the data set
	Records int    `json:"records"`
}

// ErrLedger is wrapped by errors about a ledger's content.
var ErrLedger = errors.New("not a privacy ledger")

// ErrLedgerInUse is returned when another process is charging the same ledger.
var ErrLedgerInUse = errors.New("the privacy ledger is in use by another run")

// NewLedger is a ledger in memory: it ends with the process.
func NewLedger(data string, records int) *Ledger {
	return &Ledger{header: LedgerHeader{Version: 1, Data: data, Records: records}}
}

// OpenLedger opens or makes the ledger file of a data set. One of another data
// set is refused. The file is locked until Close.
func OpenLedger(path, data string, records int) (*Ledger, error) {
	l := NewLedger(data, records)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("dp: opening the ledger: %w", err)
	}
	if err := l.take(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("dp: opening the ledger %s: %w", path, err)
	}
	l.file = f
	return l, nil
}

func (l *Ledger) take(f *os.File) error {
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return ErrLedgerInUse
		}
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() == 0 {
		if err := write(f, l.header); err != nil {
			return err
		}
		folder, err := os.Open(filepath.Dir(f.Name()))
		if err != nil {
			return err
		}
		defer folder.Close()
		return folder.Sync()
	}
	header, runs, whole, err := ReadLedger(f)
	if err != nil {
		return err
	}
	if header != l.header {
		return fmt.Errorf("it counts %d records of data %s, this run is on %d of %s; give each data set a ledger of its own", header.Records, header.Data, l.header.Records, l.header.Data)
	}
	l.runs = runs
	if err := f.Truncate(whole); err != nil {
		return err
	}
	_, err = f.Seek(whole, io.SeekStart)
	return err
}

// Limits of ReadLedger.
const (
	maxLedgerLine = 4 << 10
	maxLedgerRuns = 1 << 16 // different neighbours; equal ones are merged
)

// ReadLedger reads a ledger: its header, what was charged, and how many bytes
// hold whole lines. A last line without an end is of a charge that did not come
// to pass, since noise is drawn only after the line is on disk; it is not
// counted. Anything else that is not a ledger wraps ErrLedger.
func ReadLedger(r io.Reader) (header LedgerHeader, runs []Run, whole int64, err error) {
	lines := bufio.NewReaderSize(r, maxLedgerLine)
	for n := 0; ; n++ {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && n == 0:
			return header, nil, 0, fmt.Errorf("%w: it has no header", ErrLedger)
		case errors.Is(err, io.EOF):
			return header, runs, whole, nil
		case errors.Is(err, bufio.ErrBufferFull):
			return header, nil, 0, fmt.Errorf("line %d: %w: it is longer than %d bytes", n+1, ErrLedger, maxLedgerLine)
		case err != nil:
			return header, nil, 0, fmt.Errorf("line %d: %w", n+1, err)
		}
		whole += int64(len(line))
		if n == 0 {
			if err := json.Unmarshal(line, &header); err != nil || header.Version != 1 || header.Records <= 0 {
				return header, nil, 0, fmt.Errorf("%w: its first line is not a header of version 1", ErrLedger)
			}
			continue
		}
		var run Run
		if err := json.Unmarshal(line, &run); err != nil {
			return header, nil, 0, fmt.Errorf("line %d: %w: %v", n+1, ErrLedger, err)
		}
		if err := run.check(); err != nil || run.Steps == 0 {
			return header, nil, 0, fmt.Errorf("line %d: %w: it charges %+v", n+1, ErrLedger, run)
		}
		if runs = merged(runs, run); len(runs) > maxLedgerRuns {
			return header, nil, 0, fmt.Errorf("line %d: %w: more than %d changes of noise or rate", n+1, ErrLedger, maxLedgerRuns)
		}
	}
}

func merged(runs []Run, run Run) []Run {
	if n := len(runs); n > 0 && runs[n-1].Sigma == run.Sigma && runs[n-1].Rate == run.Rate {
		runs[n-1].Steps += run.Steps
		return runs
	}
	return append(runs, run)
}

func write(f *os.File, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return err
	}
	return f.Sync()
}

// Charge records a run that is about to happen. Only after it has returned nil
// may the noise be drawn.
func (l *Ledger) Charge(run Run) error {
	if err := run.check(); err != nil {
		return err
	}
	if run.Steps == 0 {
		return nil
	}
	if l.file != nil {
		if err := write(l.file, run); err != nil {
			return fmt.Errorf("dp: charging the ledger %s: %w; without its record no step may run", l.file.Name(), err)
		}
	}
	l.runs = merged(l.runs, run)
	return nil
}

// Header says whose privacy the ledger counts.
func (l *Ledger) Header() LedgerHeader { return l.header }

// Runs is what was charged, in order; equal neighbours are one run.
func (l *Ledger) Runs() []Run { return append([]Run{}, l.runs...) }

// Steps is how many steps were charged.
func (l *Ledger) Steps() int {
	n := 0
	for _, r := range l.runs {
		n += r.Steps
	}
	return n
}

// Epsilon is what everything charged costs together at delta.
func (l *Ledger) Epsilon(a Accountant, delta float64) (float64, error) {
	return a.Compose(l.runs, delta)
}

// Close unlocks the file.
func (l *Ledger) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}

// Accounts are what a ledger holds and what all of it costs.
type Accounts struct {
	LedgerHeader
	Runs       []Run   `json:"runs"`
	Epsilon    float64 `json:"epsilon"`     // by PLD
	EpsilonRDP float64 `json:"epsilon_rdp"` // by RDP
	Delta      float64 `json:"delta"`
	Relation   string  `json:"relation"`
}

// Account reads the ledger file at path, without locking it, and accounts for
// everything in it at delta.
func Account(path string, delta float64) (*Accounts, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("dp: opening the ledger: %w", err)
	}
	defer f.Close()
	a := &Accounts{Delta: delta, Relation: "add or remove one record"}
	if a.LedgerHeader, a.Runs, _, err = ReadLedger(f); err != nil {
		return nil, fmt.Errorf("dp: reading the ledger %s: %w", path, err)
	}
	if a.Epsilon, err = (PLD{}).Compose(a.Runs, delta); err != nil {
		return nil, err
	}
	a.EpsilonRDP, err = RDP{}.Compose(a.Runs, delta)
	return a, err
}

// Print writes the accounts for people.
func (a *Accounts) Print(w io.Writer) error {
	out := fmt.Sprintf("data set   %s, %d records\n", a.Data, a.Records)
	for _, r := range a.Runs {
		out += fmt.Sprintf("charged    %d steps, noise multiplier %.5g, sampling rate %.5g\n", r.Steps, r.Sigma, r.Rate)
	}
	out += fmt.Sprintf("together   epsilon %.4f at delta %g (%s; Rényi bound %.4f)\n", a.Epsilon, a.Delta, a.Relation, a.EpsilonRDP)
	_, err := io.WriteString(w, out)
	return err
}
