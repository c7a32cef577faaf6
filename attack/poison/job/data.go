package job

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vigie/vigie/attack/poison"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// ErrAsk says that the options contradict each other or the data; the message
// says what to change.
var ErrAsk = errors.New("cannot be audited like this")

// splitNames are the parts of an .npz file, in their order.
var splitNames = []string{studies.Train, studies.Validation, studies.Test}

// read returns every case of the data, as it is divided, with its contributor.
func (a Audit) read(ctx context.Context) (*poison.Cases, string, error) {
	c, digest, err := a.open(ctx)
	if err != nil {
		return nil, "", err
	}
	if c.Set, err = a.oneLabel(c.Set); err != nil {
		return nil, "", err
	}
	return c, digest, c.Check()
}

func (a Audit) open(ctx context.Context) (*poison.Cases, string, error) {
	if strings.EqualFold(filepath.Ext(a.Data.Data), ".npz") {
		return a.openNPZ()
	}
	info, err := os.Stat(a.Data.Data)
	if err != nil {
		return nil, "", fmt.Errorf("job: opening the data: %w", err)
	}
	if !info.IsDir() {
		return nil, "", fmt.Errorf("job: auditing %s: %w: want a folder of images, or an .npz file; tables have no images", a.Data.Data, ErrAsk)
	}
	o := a.Data
	o.Seed, o.Leaks = a.Seed, true
	o.Progress = func(done, total int) { a.progress("reading", float64(done)/float64(total)) }
	s, err := studies.Open(ctx, o)
	if err != nil {
		return nil, "", err
	}
	c := &poison.Cases{}
	var sets []*train.Set
	for _, set := range []*train.Set{s.Train, s.Validation, s.Test} {
		if set == nil {
			continue
		}
		sets = append(sets, set)
		for range set.Len() {
			c.Splits = append(c.Splits, set.Name)
		}
	}
	c.Set = train.Join(studies.All, sets...)
	c.Places = c.Set.Names
	if !s.Given {
		c.Splits = nil
	}
	if a.Data.Labels == "" {
		if a.SiteColumn != "" {
			return nil, "", fmt.Errorf("job: a column of contributors: %w: name the table that has it with --labels", ErrAsk)
		}
		return c, s.Digest, nil
	}
	t, at, err := a.siteTable()
	if err != nil || at < 0 {
		return c, s.Digest, err
	}
	file, ok := t.Find(a.Data.FileColumn)
	if a.Data.FileColumn == "" {
		file, ok = t.Find("file", "filename", "file_name", "image", "path", "image_path")
	}
	if !ok {
		return nil, "", fmt.Errorf("job: reading %s: %w: no column names the files", a.Data.Labels, ErrAsk)
	}
	site := map[string]string{}
	for _, row := range t.Rows {
		site[path.Clean(filepath.ToSlash(row[file]))] = row[at]
	}
	for _, name := range c.Places {
		c.Sites = append(c.Sites, site[name])
	}
	return c, s.Digest, nil
}

// siteTable reads the table beside the images and finds the column of
// contributors; -1 if it has none and none was asked for.
func (a Audit) siteTable() (*train.Table, int, error) {
	f, err := os.Open(a.Data.Labels)
	if err != nil {
		return nil, -1, fmt.Errorf("job: opening a table: %w", err)
	}
	defer f.Close()
	t, err := train.ReadTable(f, train.TableLimits{})
	if err != nil {
		return nil, -1, fmt.Errorf("job: reading %s: %w", a.Data.Labels, err)
	}
	if a.SiteColumn != "" {
		at, ok := t.Column(a.SiteColumn)
		if !ok {
			return nil, -1, fmt.Errorf("job: reading %s: %w: there is no column %q; there are %q", a.Data.Labels, ErrAsk, a.SiteColumn, t.Header)
		}
		return t, at, nil
	}
	at, ok := t.Find("site", "contributor", "institution", "hospital")
	if !ok {
		at = -1
	}
	return t, at, nil
}

// openNPZ reads every part of a file in MedMNIST's layout. Contributors and
// patients are in arrays SPLIT_sites and SPLIT_patients of numbers, or in a table
// with the columns split, index and those of contributor and patient.
func (a Audit) openNPZ() (*poison.Cases, string, error) {
	f, err := os.Open(a.Data.Data)
	if err != nil {
		return nil, "", fmt.Errorf("job: opening the data: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, "", fmt.Errorf("job: opening the data: %w", err)
	}
	names, err := train.ListNPZ(f, info.Size(), train.Limits{})
	if err != nil {
		return nil, "", fmt.Errorf("job: reading %s: %w", a.Data.Data, err)
	}
	c := &poison.Cases{}
	var sets []*train.Set
	classes := 0
	for _, split := range splitNames {
		s, err := train.LoadMedMNIST(a.Data.Data, split, train.Limits{})
		if errors.Is(err, train.ErrNoSplit) {
			continue
		}
		if err != nil {
			return nil, "", err
		}
		if len(sets) > 0 && (s.Rows != sets[0].Rows || s.Columns != sets[0].Columns || s.Channels != sets[0].Channels || s.Multi() != sets[0].Multi() || s.Shape != nil || (s.Pixels == nil) != (sets[0].Pixels == nil)) {
			return nil, "", fmt.Errorf("job: auditing %s: %w: its parts hold images of different kinds", a.Data.Data, ErrAsk)
		}
		for _, column := range []struct {
			name string
			to   *[]string
		}{{split + "_sites", &c.Sites}, {split + "_patients", &s.Patients}} {
			if !slices.Contains(names, column.name) {
				continue
			}
			values, err := numbers(f, info.Size(), column.name)
			if err != nil {
				return nil, "", fmt.Errorf("job: reading %s: %w", a.Data.Data, err)
			}
			if len(values) != s.Len() {
				return nil, "", fmt.Errorf("job: reading %s: %w: array %s has %d entries for %d images", a.Data.Data, ErrAsk, column.name, len(values), s.Len())
			}
			if column.to == &c.Sites { // parts before may have none
				c.Sites = append(c.Sites, make([]string, len(c.Splits)-len(c.Sites))...)
			}
			*column.to = append(*column.to, values...)
		}
		for i := range s.Len() {
			c.Splits, c.Places = append(c.Splits, split), append(c.Places, fmt.Sprintf("%s/%d", split, i))
		}
		classes = max(classes, s.Classes)
		sets = append(sets, s)
	}
	if len(sets) == 0 {
		return nil, "", fmt.Errorf("job: auditing %s: %w: it has no arrays train_images and train_labels", a.Data.Data, ErrAsk)
	}
	known := slices.ContainsFunc(sets, func(s *train.Set) bool { return s.Patients != nil })
	for _, s := range sets {
		if !s.Multi() {
			s.Classes = classes
		}
		if a.Data.Classes != nil {
			if len(a.Data.Classes) != s.Classes {
				return nil, "", fmt.Errorf("job: auditing %s: %w: it has %d classes, and %d are named", a.Data.Data, ErrAsk, s.Classes, len(a.Data.Classes))
			}
			s.ClassNames = a.Data.Classes
		}
		if known && s.Patients == nil {
			s.Patients = make([]string, s.Len())
		}
	}
	c.Set = train.Join(studies.All, sets...)
	if c.Sites != nil {
		c.Sites = append(c.Sites, make([]string, len(c.Splits)-len(c.Sites))...)
	}
	if len(sets) == 1 {
		c.Splits = nil
	}
	digest, err := studies.Digest(a.Data.Data)
	if err != nil {
		return nil, "", err
	}
	if a.Data.Labels == "" {
		if a.SiteColumn != "" {
			return nil, "", fmt.Errorf("job: a column of contributors: %w: name the table that has it with --labels (columns split, index, %s), or put the array train_sites into the file", ErrAsk, a.SiteColumn)
		}
		return c, digest, nil
	}
	return c, digest, a.beside(c)
}

func numbers(f *os.File, size int64, name string) ([]string, error) {
	arrays, err := train.ReadNPZ(f, size, train.Limits{}, name)
	if err != nil {
		return nil, err
	}
	var out []string
	switch v := arrays[name].Data.(type) {
	case []uint8:
		for _, n := range v {
			out = append(out, strconv.Itoa(int(n)))
		}
	case []int64:
		for _, n := range v {
			out = append(out, strconv.FormatInt(n, 10))
		}
	default:
		return nil, fmt.Errorf("array %s of %T: %w: want integers", name, v, ErrAsk)
	}
	return out, nil
}

// beside takes contributors and patients from the table beside an .npz file.
func (a Audit) beside(c *poison.Cases) error {
	t, site, err := a.siteTable()
	if err != nil {
		return err
	}
	split, ok1 := t.Find("split")
	index, ok2 := t.Find("index")
	if !ok1 || !ok2 {
		return fmt.Errorf("job: reading %s: %w: beside an .npz file a table needs the columns split and index; there are %q", a.Data.Labels, ErrAsk, t.Header)
	}
	patient, has := -1, false
	if a.Data.PatientColumn != "" {
		if patient, has = t.Column(a.Data.PatientColumn); !has {
			return fmt.Errorf("job: reading %s: %w: there is no column %q; there are %q", a.Data.Labels, ErrAsk, a.Data.PatientColumn, t.Header)
		}
	} else if patient, has = t.Find("patient", "patient_id", "patientid", "subject", "subject_id"); !has {
		patient = -1
	}
	at := map[string]int{}
	for i, p := range c.Places {
		at[p] = i
	}
	if site >= 0 {
		c.Sites = make([]string, c.Len())
	}
	if patient >= 0 {
		c.Set.Patients = make([]string, c.Len())
	}
	for r, row := range t.Rows {
		i, ok := at[row[split]+"/"+row[index]]
		if !ok {
			return fmt.Errorf("job: reading %s: %w: row %d names image %s of split %q, which %s does not have", a.Data.Labels, ErrAsk, r+1, row[index], row[split], a.Data.Data)
		}
		if site >= 0 {
			c.Sites[i] = row[site]
		}
		if patient >= 0 {
			c.Set.Patients[i] = row[patient]
		}
	}
	return nil
}

// oneLabel makes one of several labels the class.
func (a Audit) oneLabel(s *train.Set) (*train.Set, error) {
	if !s.Multi() {
		if a.Label != "" {
			return nil, fmt.Errorf("job: label %q: %w: the classes of %s exclude each other; leave it out", a.Label, ErrAsk, a.Data.Data)
		}
		return s, nil
	}
	var names []string
	for c := range s.Classes {
		names = append(names, s.ClassName(c))
	}
	at := slices.Index(names, a.Label)
	if at < 0 {
		return nil, fmt.Errorf("job: auditing %s: %w: its labels do not exclude each other; say with --label which of %s is audited", a.Data.Data, ErrAsk, strings.Join(names, ", "))
	}
	out := *s
	out.Marks, out.Classes, out.ClassNames = nil, 2, []string{"not " + a.Label, a.Label}
	for i := range s.Len() {
		out.Labels = append(out.Labels, int(s.Marks[i*s.Classes+at]))
	}
	return &out, nil
}
