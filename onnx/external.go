package onnx

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"google.golang.org/protobuf/encoding/protowire"
)

// A tensor may have its elements in a file of their own ("external data";
// docs/ExternalData.md of the ONNX repository), which is how exporters write
// models of more than protobuf's two gigabytes, and some any model. The tensor
// then says where: location, a path from the model's folder, offset and length in
// bytes. The format's optional SHA-1 of the file is not compared.

// besides is the folder that a model was loaded from. Nothing outside of it is
// read, whatever a model says: not by a path, nor through a symbolic link.
type besides struct {
	root *os.Root
	file *os.File // the last one that was read from
	size int64
	name string
	left int64    // bytes that tensors may still take
	used []string // files that were read, in order
}

// openBesides prepares for the external data of a model file.
func openBesides(path string) (*besides, error) {
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return &besides{root: root, left: MaxBytes}, nil
}

func (b *besides) close() {
	if b.file != nil {
		b.file.Close()
	}
	b.root.Close()
}

// open makes b.file the named one.
func (b *besides) open(name string) error {
	if b.file != nil && b.name == name {
		return nil
	}
	if !filepath.IsLocal(filepath.FromSlash(name)) {
		return fmt.Errorf("%w: it is not a path within the model's folder", ErrUnsupported)
	}
	// Not blocking: what is there may be a pipe.
	f, err := b.root.OpenFile(filepath.FromSlash(name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%w; keep the file beside the model", err)
	}
	if err != nil {
		return fmt.Errorf("%w: only files of the model's folder are read: %w", ErrUnsupported, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: it is no plain file", ErrUnsupported)
	}
	if err != nil {
		f.Close()
		return err
	}
	if b.file != nil {
		b.file.Close()
	}
	b.file, b.size, b.name = f, info.Size(), name
	if !slices.Contains(b.used, name) {
		b.used = append(b.used, name)
	}
	return nil
}

// place is where a tensor's elements are.
type place struct {
	location       string
	offset, length int64 // length -1: as many bytes as the tensor has
}

// placed reads the entries of TensorProto.external_data.
func placed(entries [][]byte) (place, error) {
	p := place{length: -1}
	seen := map[string]bool{}
	for _, entry := range entries {
		var key, value string
		err := fields(entry, func(f field) error {
			switch f.number {
			case 1:
				return f.text(&key)
			case 2:
				return f.text(&value)
			}
			return nil
		})
		if err != nil {
			return p, err
		}
		if seen[key] {
			return p, fmt.Errorf("%w: external data with two entries %q", ErrCorrupt, key)
		}
		seen[key] = true
		var number *int64
		switch key {
		case "location":
			p.location = value
		case "offset":
			number = &p.offset
		case "length":
			number = &p.length
		}
		if number != nil {
			if *number, err = strconv.ParseInt(value, 10, 64); err != nil || *number < 0 {
				return p, fmt.Errorf("%w: external data with the %s %q", ErrCorrupt, key, value)
			}
		}
	}
	if p.location == "" {
		return p, fmt.Errorf("%w: external data without a location", ErrCorrupt)
	}
	return p, nil
}

// fetch reads a tensor's elements from where they are. Memory is taken only once
// the file is known to hold them.
func (p *parser) fetch(t *Tensor, entries [][]byte) error {
	if p.besides == nil {
		return fmt.Errorf("%w: external data, weights in a file of their own, which the bytes of the model do not hold: save the model as one file, with onnx.save(onnx.load(FILE), FILE)", ErrUnsupported)
	}
	at, err := placed(entries)
	if err != nil {
		return err
	}
	size := int64(t.Type.Size())
	n, err := t.Count()
	if err != nil {
		return err
	}
	if size == 0 {
		return fmt.Errorf("%w: external data of element %v", ErrUnsupported, t.Type)
	}
	want := int64(n) * size
	if at.length < 0 {
		at.length = want
	}
	wrong := func(err error) error { return fmt.Errorf("external data in %q: %w", at.location, err) }
	if at.length != want {
		return wrong(fmt.Errorf("%w: %d bytes for %v of dimensions %v", ErrCorrupt, at.length, t.Type, t.Dims))
	}
	if p.besides.left -= want; p.besides.left < 0 {
		return wrong(fmt.Errorf("%w: tensors of more than %d bytes, which is what a model may have in all", ErrLimit, MaxBytes))
	}
	if err := p.besides.open(at.location); err != nil {
		return wrong(err)
	}
	if at.offset > p.besides.size || want > p.besides.size-at.offset {
		return wrong(fmt.Errorf("%w: the tensor is said to be the %d bytes from %d on, and the file has %d", ErrCorrupt, want, at.offset, p.besides.size))
	}
	t.Raw = make([]byte, want)
	if _, err := io.ReadFull(io.NewSectionReader(p.besides.file, at.offset, want), t.Raw); err != nil {
		return wrong(err)
	}
	return nil
}

// entry stores one entry of external_data.
func (p *parser) entry(f field, entries *[][]byte) error {
	if err := p.message(f); err != nil {
		return err
	}
	*entries = append(*entries, f.bytes)
	return f.want(protowire.BytesType)
}
