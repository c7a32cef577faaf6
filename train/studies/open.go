package studies

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vigie/vigie/train"
)

// ErrData says that the data cannot be read as asked; the message says what is
// wrong and where.
var ErrData = errors.New("not usable as training data")

// Options say what to read and how.
type Options struct {
	Data   string // .npz file, CSV file, or folder
	Labels string // CSV file that labels the files of a folder; empty: a folder for each class
	// Classes are the classes in order; a label outside them is an error. Empty:
	// those that occur, sorted, each of which then needs two patients (or examples,
	// where patients are not known) in training and an example in every part.
	Classes   []string
	ClassesBy string // who named them, for messages; empty: --classes

	// Columns of a CSV file. Empty means the usual names: file, filename, image,
	// path; label, class, target, diagnosis (of a table otherwise the last
	// column); patient, patient_id, subject; split. Several label columns of
	// zeros and ones are labels that do not exclude each other.
	FileColumn    string
	LabelColumns  []string
	PatientColumn string
	SplitColumn   string
	LeaveOut      []string       // columns of a table that are not used
	Categorical   []string       // columns of a table that hold codes, not amounts
	Encoding      *train.Columns // of a table, from a trained model; nil: learnt from the training rows

	// Images. Rows and Columns of 0 keep the size, which must then be the same
	// for all; Channels 0 is 3 if any image has colour.
	Rows, Columns, Channels int
	Aspect                  string // model.Stretch (the default), model.Pad or model.CentreCrop

	// Shares of training, validation and test where the data are not divided:
	// nil means 0.7, 0.15, 0.15. Seed decides who goes where.
	Shares []float64
	Seed   uint64

	// Only reads of an .npz file no more than this part needs.
	Only string
	// Part says that the data are some of what is trained on, such as one
	// hospital's: they are not divided unless they come divided, and classes may be
	// missing, because others have them.
	Part bool
	// Leaks lets patients be in more than one part: an audit tells of them.
	Leaks bool

	Progress func(done, total int) // told of images read; may be nil
}

// The names of the parts.
const (
	Train      = "train"
	Validation = "val"
	Test       = "test"
	All        = "all"
)

// Studies are labelled examples in parts.
type Studies struct {
	Kind       string // "npz", "folder" or "table"
	Train      *train.Set
	Validation *train.Set
	Test       *train.Set // nil if the data have no such part
	Given      bool       // the data came divided
	Encoding   *train.Columns
	Table      *train.Table      // what a table holds, nil of other kinds
	Digest     string            // of the file, or of all files of the folder and the labels
	Duplicates []train.Duplicate // images that are in two parts, or have two labels; not of tables

	rows map[string]int // of a folder with a list: the row that names a file
}

// Set returns a part by name; "all" is every example.
func (s *Studies) Set(name string) (*train.Set, error) {
	var set *train.Set
	switch name {
	case Train:
		set = s.Train
	case Validation, "validation":
		set = s.Validation
	case Test:
		set = s.Test
	case All:
		return train.Join(All, s.sets()...), nil
	default:
		return nil, fmt.Errorf("studies: split %q: want train, val, test or all", name)
	}
	if set == nil {
		return nil, fmt.Errorf("studies: split %q: %w: the data have no such part", name, train.ErrNoSplit)
	}
	return set, nil
}

func (s *Studies) sets() []*train.Set {
	return slices.DeleteFunc([]*train.Set{s.Train, s.Validation, s.Test}, func(set *train.Set) bool { return set == nil })
}

// Open reads the data and divides them.
func Open(ctx context.Context, o Options) (*Studies, error) {
	if o.Shares == nil {
		o.Shares = []float64{0.7, 0.15, 0.15}
	}
	if len(o.Shares) != 2 && len(o.Shares) != 3 {
		return nil, fmt.Errorf("studies: %d shares; want two (training, validation) or three (and test)", len(o.Shares))
	}
	info, err := os.Stat(o.Data)
	if err != nil {
		return nil, fmt.Errorf("studies: opening the data: %w", err)
	}
	var s *Studies
	switch {
	case info.IsDir():
		s, err = openFolder(ctx, o)
	case strings.EqualFold(filepath.Ext(o.Data), ".npz"):
		s, err = openNPZ(o)
	default:
		s, err = openTable(o)
	}
	if err != nil {
		return nil, err
	}
	for _, part := range []struct {
		name string
		set  *train.Set
	}{{Train, s.Train}, {Validation, s.Validation}, {Test, s.Test}} {
		if part.set != nil {
			part.set.Name = part.name
		}
	}
	if s.Given && !o.Leaks {
		if err := train.CheckPatients(s.sets()...); err != nil {
			return nil, fmt.Errorf("studies: reading %s: %w", o.labelFile(), err)
		}
	}
	if err := s.checkClasses(o); err != nil {
		return nil, err
	}
	for _, set := range s.sets() {
		check := set.Check
		if o.Part {
			check = set.CheckPart
		}
		if err := check(); err != nil {
			return nil, fmt.Errorf("studies: reading %s: %w", o.Data, err)
		}
	}
	if s.Kind != "table" { // two patients may well have equal rows
		s.Duplicates = train.Duplicates(s.sets()...)
	}
	return s, nil
}

// openNPZ reads a file in MedMNIST's layout. One without a validation split has
// it taken out of the training split.
func openNPZ(o Options) (*Studies, error) {
	s := &Studies{Kind: "npz", Given: true}
	var err error
	if s.Digest, err = digestFile(o.Data); err != nil {
		return nil, err
	}
	read := func(name string, into **train.Set) error {
		load := train.LoadMedMNIST
		if o.Part {
			load = func(path, split string, limits train.Limits) (*train.Set, error) {
				return train.LoadMedMNISTPart(path, split, len(o.Classes), limits)
			}
		}
		set, err := load(o.Data, name, train.Limits{})
		if err == nil {
			*into = set
		}
		return err
	}
	// Whether the training split is whole depends on whether there is one for
	// validation; the others stand for themselves.
	alone := false
	switch o.Only {
	case Validation:
		if err := read(Validation, &s.Validation); err == nil {
			alone = true
		} else if !errors.Is(err, train.ErrNoSplit) {
			return nil, err
		}
	case Test:
		if err := read(Test, &s.Test); err != nil {
			return nil, err
		}
		alone = true
	}
	for _, part := range []struct {
		name string
		into **train.Set
		skip bool
	}{{Train, &s.Train, false}, {Validation, &s.Validation, false}, {Test, &s.Test, o.Only == Train || o.Only == Validation}} {
		if alone || part.skip {
			continue
		}
		if err := read(part.name, part.into); err != nil && !errors.Is(err, train.ErrNoSplit) {
			return nil, err
		}
	}
	if s.Train == nil && s.Validation == nil && s.Test == nil {
		if o.Only != "" && o.Only != All {
			return nil, fmt.Errorf("studies: reading %s: split %q: %w: it has no arrays %s_images and %s_labels, nor any to take them from", o.Data, o.Only, train.ErrNoSplit, o.Only, o.Only)
		}
		return nil, fmt.Errorf("studies: reading %s: %w: it has no arrays train_images and train_labels", o.Data, ErrData)
	}
	classes := 0
	for _, set := range s.sets() {
		classes = max(classes, set.Classes)
	}
	for _, set := range s.sets() {
		if !set.Multi() {
			set.Classes = classes
		}
		if o.Classes != nil {
			if len(o.Classes) != set.Classes {
				return nil, fmt.Errorf("studies: reading %s: %w", o.Data, o.named(fmt.Errorf("%w: its labels are 0 to %d, %d classes, and %d are named: %s", ErrData, set.Classes-1, set.Classes, len(o.Classes), strings.Join(o.Classes, ", "))))
			}
			set.ClassNames = o.Classes
		}
		if err := resizeSet(set, o); err != nil {
			return nil, err
		}
	}
	if s.Train != nil && s.Validation == nil && o.Part {
		s.Given = false
		return s, nil
	}
	if s.Train != nil && s.Validation == nil {
		s.Given = false
		parts, err := train.Split(s.Train, o.Seed, o.Shares[0], o.Shares[1])
		if err != nil {
			return nil, err
		}
		s.Train, s.Validation = parts[0], parts[1]
	}
	return s, nil
}

// divide splits a set by the part that each example names, or by shares if none
// does.
func divide(whole *train.Set, splits []string, o Options) (*Studies, error) {
	s := &Studies{}
	if splits == nil && o.Part {
		s.Train = whole
		return s, nil
	}
	if splits == nil {
		parts, err := train.Split(whole, o.Seed, o.Shares...)
		if err != nil {
			return nil, fmt.Errorf("studies: dividing %s: %w", o.Data, err)
		}
		s.Train, s.Validation = parts[0], parts[1]
		if len(parts) == 3 {
			s.Test = parts[2]
		}
		return s, nil
	}
	at, err := given(splits)
	if err != nil {
		return nil, fmt.Errorf("studies: dividing %s: %w", o.Data, err)
	}
	s.Given = true
	s.Train, s.Validation = whole.Subset(at[0]), whole.Subset(at[1])
	if len(at[2]) > 0 {
		s.Test = whole.Subset(at[2])
	}
	return s, nil
}

// given returns the positions of the examples of each part.
func given(splits []string) (at [3][]int, err error) {
	for i, name := range splits {
		switch strings.ToLower(name) {
		case "train", "training":
			at[0] = append(at[0], i)
		case "val", "valid", "validation", "dev":
			at[1] = append(at[1], i)
		case "test", "testing":
			at[2] = append(at[2], i)
		default:
			return at, fmt.Errorf("row %d: %w: split %q; want train, val or test", i+1, ErrData, name)
		}
	}
	for p, name := range []string{Train, Validation} {
		if len(at[p]) == 0 {
			return at, fmt.Errorf("%w: no example is in split %s", ErrData, name)
		}
	}
	return at, nil
}

// Digest is SHA-256 of a file, as Open gives it.
func Digest(path string) (string, error) { return digestFile(path) }

func digestFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("studies: reading the data: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("studies: reading %s: %w", path, err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
