package studies

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/vigie/vigie/train"
)

// openFolder reads a folder of images: labelled by a CSV file, or by the names
// of its folders, with train, val and test above them if the data come divided.
func openFolder(ctx context.Context, o Options) (*Studies, error) {
	root, err := os.OpenRoot(o.Data)
	if err != nil {
		return nil, fmt.Errorf("studies: opening the data: %w", err)
	}
	defer root.Close()
	var whole *train.Set
	var splits []string
	var rows map[string]int
	h := sha256.New()
	if o.Labels != "" {
		if whole, splits, err = listed(o, h); err == nil {
			rows = make(map[string]int, whole.Len())
			for i, name := range whole.Names {
				rows[name] = i + 1
			}
		}
	} else {
		whole, splits, err = arranged(root.FS(), o)
	}
	if err != nil {
		return nil, err
	}
	if whole.Len() == 0 {
		return nil, fmt.Errorf("studies: reading %s: %w: no images are there", o.Data, ErrData)
	}
	if err := readImages(ctx, root, whole, o, h); err != nil {
		return nil, err
	}
	s, err := divide(whole, splits, o)
	if err != nil {
		return nil, err
	}
	s.Kind, s.Digest, s.rows = "folder", "sha256:"+hex.EncodeToString(h.Sum(nil)), rows
	return s, nil
}

// listed takes files, labels, patients and parts from a CSV file.
func listed(o Options, h hash.Hash) (*train.Set, []string, error) {
	t, err := readTable(o.Labels)
	if err != nil {
		return nil, nil, err
	}
	sum, err := digestFile(o.Labels)
	if err != nil {
		return nil, nil, err
	}
	fmt.Fprintln(h, "labels", sum)
	name := o.FileColumn
	at, ok := t.Find(name)
	if name == "" {
		at, ok = t.Find("file", "filename", "file_name", "image", "path", "image_path")
	}
	if !ok {
		return nil, nil, fmt.Errorf("studies: reading %s: %w: no column names the files; there are %q", o.Labels, ErrData, t.Header)
	}
	c, err := findColumns(t, o.Labels, o, false)
	if err != nil {
		return nil, nil, err
	}
	whole, splits, err := labelled(t, o.Labels, c, o)
	if err != nil {
		return nil, nil, err
	}
	for i, row := range t.Rows {
		file := filepath.ToSlash(row[at])
		if !filepath.IsLocal(row[at]) {
			return nil, nil, fmt.Errorf("studies: reading %s: %w: row %d names %q, which is not within the data folder", o.Labels, ErrData, i+1, row[at])
		}
		whole.Names = append(whole.Names, path.Clean(file))
	}
	sorted := slices.Sorted(slices.Values(whole.Names))
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			return nil, nil, fmt.Errorf("studies: reading %s: %w: %q is listed twice", o.Labels, ErrData, sorted[i])
		}
	}
	return whole, splits, nil
}

// arranged takes labels from the folders that files are in.
func arranged(files fs.FS, o Options) (*train.Set, []string, error) {
	top, err := folders(files, ".")
	if err != nil {
		return nil, nil, fmt.Errorf("studies: reading %s: %w", o.Data, err)
	}
	parts := []string{""}
	if slices.Contains(top, "train") && (slices.Contains(top, "val") || slices.Contains(top, "valid") || slices.Contains(top, "validation")) {
		parts = slices.DeleteFunc(top, func(name string) bool {
			return !slices.Contains([]string{"train", "val", "valid", "validation", "test"}, strings.ToLower(name))
		})
	}
	classes := o.Classes
	if classes == nil {
		for _, part := range parts {
			within, err := folders(files, path.Join(".", part))
			if err != nil {
				return nil, nil, fmt.Errorf("studies: reading %s: %w", o.Data, err)
			}
			for _, name := range within {
				if !slices.Contains(classes, name) {
					classes = append(classes, name)
				}
			}
		}
		slices.Sort(classes)
	}
	if len(classes) < 2 {
		return nil, nil, fmt.Errorf("studies: reading %s: %w: it has folders for %d classes; want a folder of images for each class, or a CSV file of labels", o.Data, ErrData, len(classes))
	}
	whole := &train.Set{Classes: len(classes), ClassNames: classes}
	var splits []string
	for _, part := range parts {
		within, err := folders(files, path.Join(".", part))
		if err != nil {
			return nil, nil, fmt.Errorf("studies: reading %s: %w", o.Data, err)
		}
		for _, name := range within {
			label := slices.Index(classes, name)
			if label < 0 {
				return nil, nil, fmt.Errorf("studies: reading %s: %w: folder %q is of no class; want one of %s", o.Data, ErrData, name, strings.Join(classes, ", "))
			}
			err := fs.WalkDir(files, path.Join(part, name), func(file string, entry fs.DirEntry, err error) error {
				if err != nil || entry.IsDir() || strings.HasPrefix(entry.Name(), ".") {
					return err
				}
				whole.Names = append(whole.Names, file)
				whole.Labels = append(whole.Labels, label)
				if part != "" {
					splits = append(splits, part)
				}
				return nil
			})
			if err != nil {
				return nil, nil, fmt.Errorf("studies: reading %s: %w", o.Data, err)
			}
		}
	}
	return whole, splits, nil
}

// folders lists the folders in a folder, in order.
func folders(files fs.FS, name string) ([]string, error) {
	entries, err := fs.ReadDir(files, name)
	var out []string
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			out = append(out, e.Name())
		}
	}
	return out, err
}

// readImages fills a set whose examples have names with their pixels, and with
// the patients that DICOM files name if nothing else does.
func readImages(ctx context.Context, root *os.Root, s *train.Set, o Options, h hash.Hash) error {
	pictures := make([]*picture, s.Len())
	failures := make([]error, s.Len())
	going, stop := context.WithCancel(ctx)
	defer stop()
	var next atomic.Int64
	var reading sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for range min(runtime.GOMAXPROCS(0), s.Len()) {
		reading.Go(func() {
			for going.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= s.Len() {
					return
				}
				if pictures[i], failures[i] = readPicture(root, s.Names[i], o); failures[i] != nil {
					stop()
					return
				}
				if o.Progress != nil {
					mu.Lock()
					done++
					o.Progress(done, s.Len())
					mu.Unlock()
				}
			}
		})
	}
	reading.Wait()
	// What stands before a file that failed was read to its end, so the first
	// failure is the same one in every run.
	for i, err := range failures {
		if err != nil {
			return fmt.Errorf("studies: reading %s: %w", filepath.Join(o.Data, s.Names[i]), err)
		}
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if s.Patients == nil {
		if err := readPatients(s, pictures, o); err != nil {
			return err
		}
	}
	first := pictures[0]
	s.Channels, s.Rows, s.Columns = o.Channels, first.rows, first.columns
	deep := false
	for i, p := range pictures {
		fmt.Fprintln(h, s.Names[i], hex.EncodeToString(p.digest[:]))
		if p.rows != s.Rows || p.columns != s.Columns {
			return fmt.Errorf("studies: reading %s: %w: %s is %d×%d and %s is %d×%d; choose a size to bring them to", o.Data, ErrData, s.Names[0], first.rows, first.columns, s.Names[i], p.rows, p.columns)
		}
		if o.Channels == 0 {
			s.Channels = max(s.Channels, len(p.planes))
		}
		deep = deep || p.deep
	}
	if s.Channels != 1 && s.Channels != 3 {
		return errors.New("studies: images have 1 or 3 channels")
	}
	for i, p := range pictures {
		for c := range s.Channels {
			plane := p.channel(c, s.Channels)
			if deep {
				s.Values = append(s.Values, plane...)
				continue
			}
			for _, v := range plane {
				s.Pixels = append(s.Pixels, uint8(v*255+0.5))
			}
		}
		pictures[i] = nil
	}
	return nil
}

// readPatients takes the patients from the files, where DICOM names them. One that
// is not named among others that are would be divided as if it were nobody's.
func readPatients(s *train.Set, pictures []*picture, o Options) error {
	patients, unnamed := make([]string, len(pictures)), -1
	for i, p := range pictures {
		if patients[i] = p.patient; p.patient == "" && unnamed < 0 {
			unnamed = i
		}
	}
	if !slices.ContainsFunc(patients, func(p string) bool { return p != "" }) {
		return nil
	}
	if unnamed >= 0 {
		return fmt.Errorf("studies: reading %s: %w: it names no patient and other files do, by whom the data are divided; name every file's patient in a CSV file of labels (--labels)", filepath.Join(o.Data, s.Names[unnamed]), ErrData)
	}
	s.Patients = patients
	return nil
}
