package train

import (
	"bytes"
	"crypto/sha256"
	"encoding/gob"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"time"
)

// ErrCheckpoint is returned for a checkpoint that cannot be gone on from: torn,
// or of another recipe, network or data set.
var ErrCheckpoint = errors.New("checkpoint cannot be used")

// state is all that a run carries from one step to the next. Random numbers
// need no state: each is drawn from the seed, the epoch and the example, or
// drawn again when an epoch is taken up half-way.
type state struct {
	Digest     string // of data and network: what the run started from
	Weights    [][]float32
	Statistics [][]float32 // running mean and variance of each batch normalisation
	Best       [][]float32 // weights and statistics of the best epoch
	Optimizer  Optimizer
	Average    *Average
	History    History
	Step       int           // steps done of the epoch under way
	Total      float64       // sum of their losses
	Spent      time.Duration // time spent on them
	Private    *privateState // plan of a private run
	Strongest  [][]float32   // of a hardened run: weights and statistics of the strongest epoch
}

func init() {
	gob.Register(&AdamW{})
	gob.Register(&SGD{})
}

// A checkpoint file is this line, the SHA-256 of the rest, and the state in
// encoding/gob.
const checkpointMagic = "vigie checkpoint 1\n"

// save writes the state, durably and whole: a crash or a power cut leaves the
// old file or the new one.
func (t *trainer) save() error {
	path := t.config.Checkpoint
	if path == "" {
		return nil
	}
	var body bytes.Buffer
	if err := gob.NewEncoder(&body).Encode(t.state); err != nil {
		return fmt.Errorf("train: writing checkpoint %s: %w", path, err)
	}
	sum := sha256.Sum256(body.Bytes())
	err := WriteWhole(path, func(w io.Writer) error {
		_, err := io.Copy(w, io.MultiReader(strings.NewReader(checkpointMagic), bytes.NewReader(sum[:]), &body))
		return err
	})
	if err != nil {
		return fmt.Errorf("train: writing checkpoint: %w", err)
	}
	return nil
}

// resume takes up the checkpoint, if there is one, of the same run.
func (t *trainer) resume() error {
	var err error
	if t.state.Digest, err = t.startDigest(); err != nil {
		return err
	}
	path := t.config.Checkpoint
	if path == "" {
		return nil
	}
	if err := sweepFile(path); err != nil {
		return fmt.Errorf("train: removing what a killed run left beside %s: %w", path, err)
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("train: reading checkpoint: %w", err)
	}
	refuse := func(why string) error {
		return fmt.Errorf("train: checkpoint %s is %s: %w; remove it to start afresh", path, why, ErrCheckpoint)
	}
	body, ok := bytes.CutPrefix(data, []byte(checkpointMagic))
	if !ok || len(body) < sha256.Size {
		return refuse("torn, or no checkpoint")
	}
	sum := sha256.Sum256(body[sha256.Size:])
	if !bytes.Equal(sum[:], body[:sha256.Size]) {
		return refuse("torn: its checksum is wrong")
	}
	var s state
	if err := gob.NewDecoder(bytes.NewReader(body[sha256.Size:])).Decode(&s); err != nil {
		return fmt.Errorf("train: reading checkpoint %s: %w: %w; remove it to start afresh", path, ErrCheckpoint, err)
	}
	if !reflect.DeepEqual(s.History.Recipe, t.config.Recipe) {
		return refuse("of another recipe")
	}
	if s.Digest != t.state.Digest {
		return refuse("of another network or data set")
	}
	for _, kept := range [][2][][]float32{{s.Weights, t.state.Weights}, {s.Statistics, t.state.Statistics}} {
		for i, w := range kept[0] { // as many and as long: the digest is the same
			copy(kept[1][i], w) // the sessions are bound to these slices
		}
	}
	s.Weights, s.Statistics = t.state.Weights, t.state.Statistics
	t.state = s
	return nil
}

// startDigest identifies what the run starts from.
func (t *trainer) startDigest() (string, error) {
	h := sha256.New()
	m, err := t.config.Network.Model.Marshal()
	if err != nil {
		return "", fmt.Errorf("train: %w", err)
	}
	h.Write(m)
	fmt.Fprintf(h, "%q %q %s", t.network.variables(), t.network.Logits, t.config.Train.Digest())
	fmt.Fprint(h, t.config.Validation.Digest())
	return hex.EncodeToString(h.Sum(nil)), nil
}
