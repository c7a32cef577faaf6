package train

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// ErrBusy is returned for an output that another run writes to; the message says
// which process that is.
var ErrBusy = errors.New("another run writes there")

// Hold keeps other runs out of a Fit's output: checkpoint, ledger and model of two
// runs in one place would be a mixture of both. It is a lock of the operating
// system's on a file beside the model, so that it ends with its process, however
// that ends.
type Hold struct {
	file *os.File
	made string // folder that was made for it, empty if it was there
}

// HoldOutput takes the hold on an output, as Fit.Out names it, and removes what a
// killed run left of files that it was writing. The folder is made if it does not
// exist. An output that another run holds is ErrBusy.
func HoldOutput(out string) (*Hold, error) {
	model := Fit{Out: out}.File(ModelFile)
	dir := filepath.Dir(model)
	h := &Hold{}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		h.made = dir
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("train: making the output folder: %w", err)
	}
	path := filepath.Join(dir, "."+filepath.Base(model)+".lock")
	for h.file == nil {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, fmt.Errorf("train: holding the output %s: %w", out, err)
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			holder, _ := io.ReadAll(io.LimitReader(f, 200))
			f.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, fmt.Errorf("train: holding the output %s: %w: %s; wait until it ends, or choose another place", out, ErrBusy, strings.TrimSpace(string(holder)))
			}
			return nil, fmt.Errorf("train: locking %s: %w; it takes a local disk", path, err)
		}
		// Whoever held it before may have removed the file between our opening and
		// our locking of it: then the lock is on nothing that others see.
		locked, err := f.Stat()
		if err == nil {
			var there fs.FileInfo
			if there, err = os.Stat(path); err == nil && os.SameFile(locked, there) {
				h.file = f
				break
			}
		}
		f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("train: holding the output %s: %w", out, err)
		}
	}
	text := fmt.Sprintf("process %d, since %s\n", os.Getpid(), time.Now().Format("2006-01-02 15:04:05"))
	err := h.file.Truncate(0)
	if err == nil {
		_, err = h.file.WriteAt([]byte(text), 0)
	}
	if err == nil {
		err = sweep(out)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("train: holding the output %s: %w", out, err), h.Release())
	}
	return h, nil
}

// Release lets other runs write there. What was made for the hold alone is gone.
func (h *Hold) Release() error {
	err := os.Remove(h.file.Name()) // while it is locked: nobody else has locked it
	err = errors.Join(err, h.file.Close())
	if h.made != "" {
		os.Remove(h.made) // stays if anything is in it
	}
	if err != nil {
		return fmt.Errorf("train: letting go of the output: %w", err)
	}
	return nil
}

// sweep removes the files that a killed run was in the middle of writing.
func sweep(out string) error {
	f := Fit{Out: out}
	for _, name := range []string{ModelFile, CalibrationFile, TrainingFile, CurvesPNG, CurvesSVG, CheckpointFile, WeightsFile} {
		if err := sweepFile(f.File(name)); err != nil {
			return err
		}
	}
	if err := os.Remove(f.File(ModelFile) + ".part"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sweepFile removes what WriteWhole left of a file when its process was killed.
// Nobody may be writing the file.
func sweepFile(path string) error {
	entries, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	unfinished := regexp.MustCompile(`^\.` + regexp.QuoteMeta(filepath.Base(path)) + `\.\d+$`)
	for _, e := range entries {
		if unfinished.MatchString(e.Name()) && e.Type().IsRegular() {
			if err := os.Remove(filepath.Join(filepath.Dir(path), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// WriteWhole replaces a file so that it holds either what it held or all that
// write gives, whatever happens: a crash, a power cut, a full disk. It is on the
// disk when WriteWhole returns.
func WriteWhole(path string, write func(io.Writer) error) (err error) {
	var f *os.File
	for f == nil {
		name := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.%d", filepath.Base(path), rand.Uint32()))
		if f, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path)) // the rename itself must be on the disk
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
