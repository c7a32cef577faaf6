package train

import (
	"errors"
	"fmt"
	"os"
	"slices"
)

// ErrNoSplit is returned for a split that a file does not hold.
var ErrNoSplit = errors.New("no such split")

// LoadMedMNIST reads one split ("train", "val", "test") of a data set in the
// layout of MedMNIST (Yang et al. 2023): SPLIT_images and SPLIT_labels.
//
// Images are bytes [N, rows, columns], [N, rows, columns, 3] or, of a volume,
// [N, depth, rows, columns]; or floats [N, …] of any shape, which are taken as
// they are: [N, channels, rows, columns] as images, others as examples of that
// shape. Labels are [N] or [N, 1], the class of each image, or [N, labels] of
// zeros and ones, which need not exclude each other.
func LoadMedMNIST(path, split string, limits Limits) (*Set, error) {
	s, err := loadMedMNIST(path, split, limits)
	if err != nil {
		return nil, err
	}
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("train: reading %s: %w", path, err)
	}
	return s, nil
}

// LoadMedMNISTPart is LoadMedMNIST of some of the examples that are trained on,
// such as one hospital's: of so many classes at least, of which some may be missing
// there.
func LoadMedMNISTPart(path, split string, classes int, limits Limits) (*Set, error) {
	s, err := loadMedMNIST(path, split, limits)
	if err != nil {
		return nil, err
	}
	if !s.Multi() {
		s.Classes = max(s.Classes, classes)
	}
	if err := s.CheckPart(); err != nil {
		return nil, fmt.Errorf("train: reading %s: %w", path, err)
	}
	return s, nil
}

func loadMedMNIST(path, split string, limits Limits) (*Set, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("train: opening a data set: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("train: opening a data set: %w", err)
	}
	has, err := ListNPZ(f, info.Size(), limits)
	if err != nil {
		return nil, fmt.Errorf("train: reading %s: %w", path, err)
	}
	if !slices.Contains(has, split+"_images") || !slices.Contains(has, split+"_labels") {
		return nil, fmt.Errorf("train: reading split %q of %s: %w: it has the arrays %v", split, path, ErrNoSplit, has)
	}
	arrays, err := ReadNPZ(f, info.Size(), limits, split+"_images", split+"_labels")
	if err != nil {
		return nil, fmt.Errorf("train: reading %s: %w", path, err)
	}
	s, err := medMNIST(arrays[split+"_images"], arrays[split+"_labels"])
	if err != nil {
		return nil, fmt.Errorf("train: reading split %q of %s: %w", split, path, err)
	}
	s.Name = split
	return s, nil
}

func medMNIST(images, labels Array) (*Set, error) {
	s, err := examples(images)
	if err != nil {
		return nil, err
	}
	return s, s.label(labels, images.Shape[0])
}

// examples makes a set without labels.
func examples(images Array) (*Set, error) {
	dims := images.Shape
	wrong := fmt.Errorf("images of shape %v and type %T: %w: want bytes, [N, rows, columns] or [N, rows, columns, 3], or floats [N, …]", dims, images.Data, ErrFormat)
	if len(dims) < 2 || images.Len() == 0 {
		return nil, wrong
	}
	switch data := images.Data.(type) {
	case []uint8:
		switch {
		case len(dims) == 3:
			return &Set{Channels: 1, Rows: int(dims[1]), Columns: int(dims[2]), Pixels: data}, nil
		case len(dims) == 4 && dims[3] == 3:
			s := &Set{Channels: 3, Rows: int(dims[1]), Columns: int(dims[2])}
			s.Pixels = channelsFirst(data, int(dims[0]), s.Rows*s.Columns)
			return s, nil
		case len(dims) == 4: // a volume
			values := make([]float32, len(data))
			plain(values, data)
			return &Set{Shape: append([]int64{1}, dims[1:]...), Values: values}, nil
		}
	case []float32:
		return floats(data, dims), nil
	case []float64:
		values := make([]float32, len(data))
		for i, v := range data {
			values[i] = float32(v)
		}
		return floats(values, dims), nil
	}
	return nil, wrong
}

func floats(values []float32, dims []int64) *Set {
	if len(dims) == 4 && (dims[1] == 1 || dims[1] == 3) {
		return &Set{Channels: int(dims[1]), Rows: int(dims[2]), Columns: int(dims[3]), Values: values}
	}
	return &Set{Shape: dims[1:], Values: values}
}

// label gives a set of n examples its labels.
func (s *Set) label(labels Array, n int64) error {
	if len(labels.Shape) == 0 || len(labels.Shape) > 2 || labels.Shape[0] != n {
		return fmt.Errorf("labels of shape %v for %d images: %w: want one label an image, or one row", labels.Shape, n, ErrFormat)
	}
	var values []int64
	switch l := labels.Data.(type) {
	case []uint8:
		for _, v := range l {
			values = append(values, int64(v))
		}
	case []int64:
		values = l
	default:
		return fmt.Errorf("labels of type %T: %w: want integers", labels.Data, ErrFormat)
	}
	multi := len(labels.Shape) == 2 && labels.Shape[1] > 1
	most := int64(1 << 20)
	if multi {
		s.Classes, most = int(labels.Shape[1]), 1
	}
	for i, v := range values {
		if v < 0 || v > most {
			return fmt.Errorf("label %d of image %d: %w: want 0 to %d", v, i/int(max(1, int64(len(values))/n)), ErrFormat, most)
		}
		if multi {
			s.Marks = append(s.Marks, uint8(v))
			continue
		}
		s.Labels = append(s.Labels, int(v))
		s.Classes = max(s.Classes, int(v)+1, 2)
	}
	return nil
}

// channelsFirst turns [N, positions, 3] into [N, 3, positions].
func channelsFirst(pixels []uint8, n, positions int) []uint8 {
	out := make([]uint8, len(pixels))
	for i := range n {
		from, to := pixels[i*positions*3:], out[i*positions*3:]
		for p := range positions {
			for c := range 3 {
				to[c*positions+p] = from[p*3+c]
			}
		}
	}
	return out
}
