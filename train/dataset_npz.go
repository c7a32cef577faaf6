package train

import (
	"fmt"
	"os"
)

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
