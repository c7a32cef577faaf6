package train

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
)

// state is all that a run carries from one epoch to the next. Random numbers
// need no state: each is drawn from the seed, the epoch and the image.
type state struct {
	Weights    [][]float32
	Statistics [][]float32 // running mean and variance of each batch normalisation
	Best       [][]float32 // weights and statistics of the best epoch
	Optimizer  Optimizer
	Average    *Average
	History    History
}

func init() {
	gob.Register(&AdamW{})
	gob.Register(&SGD{})
}

// save writes the state, durably and whole: a crash leaves the old file or the
// new one.
func (t *trainer) save() error {
	path := t.config.Checkpoint
	if path == "" {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("train: writing checkpoint: %w", err)
	}
	defer os.Remove(f.Name())
	err = gob.NewEncoder(f).Encode(t.state)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("train: writing checkpoint %s: %w", path, err)
	}
	return nil
}

// resume takes up the checkpoint, if there is one, of the same recipe and sizes.
func (t *trainer) resume() error {
	path := t.config.Checkpoint
	if path == "" {
		return nil
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("train: reading checkpoint: %w", err)
	}
	defer f.Close()
	var s state
	if err := gob.NewDecoder(f).Decode(&s); err != nil {
		return fmt.Errorf("train: reading checkpoint %s: %w; remove it to start afresh", path, err)
	}
	if !reflect.DeepEqual(s.History.Recipe, t.config.Recipe) || s.History.Images != t.config.Train.Len() {
		return fmt.Errorf("train: checkpoint %s is of another recipe or data set; remove it to start afresh", path)
	}
	for _, kept := range [][2][][]float32{{s.Weights, t.state.Weights}, {s.Statistics, t.state.Statistics}} {
		if len(kept[0]) != len(kept[1]) {
			return fmt.Errorf("train: checkpoint %s is of another network; remove it to start afresh", path)
		}
		for i, w := range kept[0] {
			if len(w) != len(kept[1][i]) {
				return fmt.Errorf("train: checkpoint %s is of another network; remove it to start afresh", path)
			}
			copy(kept[1][i], w) // the sessions are bound to these slices
		}
	}
	s.Weights, s.Statistics = t.state.Weights, t.state.Statistics
	t.state = s
	return nil
}
