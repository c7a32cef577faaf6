package train

import (
	"fmt"
	"os"
	"slices"
)

// Set is a set of labelled images held as bytes: pixel values 0..255 stand for
// 0..1.
type Set struct {
	Name     string
	Channels int
	Rows     int
	Columns  int
	Pixels   []uint8 // [N, Channels, Rows, Columns]
	Labels   []int   // class of each image, 0..Classes-1
	Classes  int
}

// Len is the number of images.
func (s *Set) Len() int { return len(s.Labels) }

// Image returns the pixels of image i, [Channels, Rows, Columns], in place.
func (s *Set) Image(i int) []uint8 {
	n := s.Channels * s.Rows * s.Columns
	return s.Pixels[i*n : (i+1)*n : (i+1)*n]
}

// Counts returns how many images each class has.
func (s *Set) Counts() []int {
	counts := make([]int, s.Classes)
	for _, l := range s.Labels {
		counts[l]++
	}
	return counts
}

// Subset returns the images at the given positions, in that order.
func (s *Set) Subset(at []int) *Set {
	out := *s
	out.Pixels, out.Labels = nil, nil
	for _, i := range at {
		out.Pixels = append(out.Pixels, s.Image(i)...)
		out.Labels = append(out.Labels, s.Labels[i])
	}
	return &out
}

// Check finds what training would stumble over: sizes that disagree, labels
// outside the classes, classes without an image.
func (s *Set) Check() error {
	if s.Channels <= 0 || s.Rows <= 0 || s.Columns <= 0 || s.Classes < 2 {
		return fmt.Errorf("train: checking set %q: %d×%d×%d images of %d classes; want positive sizes and at least two classes", s.Name, s.Channels, s.Rows, s.Columns, s.Classes)
	}
	if len(s.Pixels) != s.Len()*s.Channels*s.Rows*s.Columns {
		return fmt.Errorf("train: checking set %q: %d bytes of pixels for %d images of %d×%d×%d", s.Name, len(s.Pixels), s.Len(), s.Channels, s.Rows, s.Columns)
	}
	for i, l := range s.Labels {
		if l < 0 || l >= s.Classes {
			return fmt.Errorf("train: checking set %q: image %d has label %d, want 0 to %d", s.Name, i, l, s.Classes-1)
		}
	}
	if empty := slices.Index(s.Counts(), 0); empty >= 0 {
		return fmt.Errorf("train: checking set %q: class %d has no image", s.Name, empty)
	}
	return nil
}

// LoadMedMNIST reads one split ("train", "val", "test") of a data set in the
// layout of MedMNIST (Yang et al. 2023): SPLIT_images uint8 [N, rows, columns]
// or [N, rows, columns, 3], and SPLIT_labels [N, 1].
func LoadMedMNIST(path, split string, limits Limits) (*Set, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("train: opening a data set: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("train: opening a data set: %w", err)
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
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("train: reading %s: %w", path, err)
	}
	return s, nil
}

func medMNIST(images, labels Array) (*Set, error) {
	pixels, ok := images.Data.([]uint8)
	if !ok || len(images.Shape) != 3 && !(len(images.Shape) == 4 && images.Shape[3] == 3) {
		return nil, fmt.Errorf("images of shape %v and type %T: %w: want bytes, [N, rows, columns] or [N, rows, columns, 3]", images.Shape, images.Data, ErrFormat)
	}
	n := images.Shape[0]
	s := &Set{Channels: 1, Rows: int(images.Shape[1]), Columns: int(images.Shape[2]), Pixels: pixels}
	if len(images.Shape) == 4 {
		s.Channels = 3
		s.Pixels = channelsFirst(pixels, int(n), s.Rows*s.Columns)
	}
	if labels.Len() != n || len(labels.Shape) == 0 || labels.Shape[0] != n {
		return nil, fmt.Errorf("labels of shape %v for %d images: %w: want one label an image", labels.Shape, n, ErrFormat)
	}
	switch l := labels.Data.(type) {
	case []uint8:
		for _, v := range l {
			s.Labels = append(s.Labels, int(v))
		}
	case []int64:
		for i, v := range l {
			if v < 0 || v > 1<<20 {
				return nil, fmt.Errorf("label %d of image %d: %w", v, i, ErrFormat)
			}
			s.Labels = append(s.Labels, int(v))
		}
	default:
		return nil, fmt.Errorf("labels of type %T: %w: want integers", labels.Data, ErrFormat)
	}
	for _, l := range s.Labels {
		s.Classes = max(s.Classes, l+1)
	}
	s.Classes = max(s.Classes, 2)
	return s, nil
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
