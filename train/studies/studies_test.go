package studies_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

func write(t testing.TB, dir, name string, data []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// grey is a picture of one grey value but for its first pixel, which makes it
// unlike any other.
func grey(rows, columns int, v, first uint8) *image.Gray {
	img := image.NewGray(image.Rect(0, 0, columns, rows))
	for i := range img.Pix {
		img.Pix[i] = v
	}
	img.Pix[0] = first
	return img
}

func pngOf(t testing.TB, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// radiograph is a DICOM file of 12 stored bits.
func radiograph(t testing.TB, patient string, rows, columns int, value func(r, c int) uint16) []byte {
	t.Helper()
	d := new(dicom.DataSet)
	d.PutString(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.1.1")
	d.PutString(dicom.SOPInstanceUID, "1.2.3."+fmt.Sprint(value(0, 0)+1))
	d.PutString(dicom.PatientID, patient)
	d.PutInt(dicom.SamplesPerPixel, 1)
	d.PutString(dicom.PhotometricInterpretation, "MONOCHROME2")
	d.PutInt(dicom.Rows, int64(rows))
	d.PutInt(dicom.Columns, int64(columns))
	d.PutInt(dicom.BitsAllocated, 16)
	d.PutInt(dicom.BitsStored, 12)
	d.PutInt(dicom.HighBit, 11)
	d.PutInt(dicom.PixelRepresentation, 0)
	d.PutFloat(dicom.WindowCenter, 2048)
	d.PutFloat(dicom.WindowWidth, 4096)
	var pixels []byte
	for r := range rows {
		for c := range columns {
			v := value(r, c)
			pixels = append(pixels, byte(v), byte(v>>8))
		}
	}
	d.PutBytes(dicom.PixelData, "OW", pixels)
	var b bytes.Buffer
	if err := dicom.NewFile(d, "1.2.840.10008.1.2.1").Write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func open(t testing.TB, o studies.Options) *studies.Studies {
	t.Helper()
	s, err := studies.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAFolderOfDICOMWithAListIsDividedByPatient(t *testing.T) {
	dir := t.TempDir()
	var list strings.Builder
	list.WriteString("file,label\n")
	for i := range 60 {
		v := uint16(1000 + i)
		name := fmt.Sprintf("p%02d/image%d.dcm", i/3, i%3)
		write(t, dir, name, radiograph(t, fmt.Sprintf("patient%02d", i/3), 6, 4, func(r, c int) uint16 { return v * uint16(1+c%2) }))
		fmt.Fprintf(&list, "%s,%s\n", name, []string{"normal", "pneumonia"}[i/3%2])
	}
	write(t, dir, "labels.csv", []byte(list.String()))
	o := studies.Options{Data: dir, Labels: filepath.Join(dir, "labels.csv"), Seed: 1}
	s := open(t, o)
	if s.Train.Len()+s.Validation.Len()+s.Test.Len() != 60 || s.Given {
		t.Errorf("%d, %d and %d examples", s.Train.Len(), s.Validation.Len(), s.Test.Len())
	}
	if err := train.CheckPatients(s.Train, s.Validation, s.Test); err != nil {
		t.Error(err)
	}
	for _, set := range []*train.Set{s.Train, s.Validation, s.Test} {
		if counts := set.Counts(); counts[0] == 0 || counts[1] == 0 || len(slices.Compact(slices.Clone(set.Patients)))*3 != set.Len() {
			t.Errorf("%s: classes %v, patients %v", set.Name, counts, set.Patients)
		}
	}
	// Twelve bits reach training: neighbouring grey values stay apart.
	values := map[float32]bool{}
	all, err := s.Set(studies.All)
	if err != nil {
		t.Fatal(err)
	}
	for i := range all.Len() {
		values[all.Values[i*24]] = true
	}
	if len(values) != 60 {
		t.Errorf("60 images of 60 grey values have %d", len(values))
	}
	if got, want := float64(all.Values[1]/all.Values[0]), 2.0; math.Abs(got-want) > 0.01 {
		t.Errorf("neighbouring pixels have the ratio %g, want %g", got, want)
	}
	again := open(t, o)
	if again.Train.Digest() != s.Train.Digest() || again.Digest != s.Digest {
		t.Error("the same seed divides otherwise")
	}
	o.Seed = 2
	if open(t, o).Train.Digest() == s.Train.Digest() {
		t.Error("another seed divides the same way")
	}
}

func TestAFolderForEachClassIsReadAsItIsArranged(t *testing.T) {
	dir := t.TempDir()
	for p, part := range []string{"train", "val", "test"} {
		for c, class := range []string{"benign", "malignant"} {
			for i := range 3 {
				write(t, dir, fmt.Sprintf("%s/%s/%d.png", part, class, i), pngOf(t, grey(8, 6, uint8(100*c), uint8(10*p+i))))
			}
		}
	}
	s := open(t, studies.Options{Data: dir})
	if !s.Given || s.Kind != "folder" || !slices.Equal(s.Train.ClassNames, []string{"benign", "malignant"}) {
		t.Errorf("given %v, kind %s, classes %v", s.Given, s.Kind, s.Train.ClassNames)
	}
	for p, set := range []*train.Set{s.Train, s.Validation, s.Test} {
		if set.Len() != 6 || set.Channels != 1 || set.Rows != 8 || set.Columns != 6 {
			t.Fatalf("%s: %d images of %v", set.Name, set.Len(), set.Example())
		}
		for i := range 6 {
			if px := set.Image(i); px[0] != uint8(10*p+i%3) || px[1] != uint8(100*set.Labels[i]) {
				t.Errorf("%s: image %d begins with %v", set.Name, i, px[:2])
			}
		}
	}
	if len(s.Duplicates) != 0 {
		t.Errorf("duplicates: %v", s.Duplicates)
	}
}

func TestColourStaysAndGreyIsRepeatedBesideIt(t *testing.T) {
	dir := t.TempDir()
	for i := range 4 {
		img := image.NewRGBA(image.Rect(0, 0, 4, 4))
		for p := range 16 {
			img.Set(p%4, p/4, color.RGBA{200, uint8(i), 10, 255})
		}
		write(t, dir, fmt.Sprintf("a/%d.png", i), pngOf(t, img))
		write(t, dir, fmt.Sprintf("b/%d.png", i), pngOf(t, grey(4, 4, 77, uint8(i))))
	}
	s := open(t, studies.Options{Data: dir, Shares: []float64{1, 1}})
	for i := range s.Train.Len() {
		px := s.Train.Image(i)
		if want := []uint8{200, px[16], 10}; s.Train.Labels[i] == 0 && !slices.Equal([]uint8{px[1], px[17], px[33]}, want) {
			t.Errorf("colours are %d %d %d", px[1], px[17], px[33])
		}
		if s.Train.Labels[i] == 1 && (px[1] != 77 || px[17] != 77 || px[33] != 77) {
			t.Errorf("grey became %d %d %d", px[1], px[17], px[33])
		}
	}
	g := open(t, studies.Options{Data: dir, Shares: []float64{1, 1}, Channels: 1, Rows: 2, Columns: 2})
	if g.Train.Channels != 1 || g.Train.Rows != 2 || len(g.Train.Pixels) != 4*g.Train.Len() {
		t.Errorf("grey at another size: %v", g.Train.Example())
	}
}

func TestJPEGIsReadByItsContentWhateverItsName(t *testing.T) {
	dir := t.TempDir()
	for i := range 8 {
		var b bytes.Buffer
		if err := jpeg.Encode(&b, grey(16, 16, uint8(40+20*i), uint8(40+20*i)), &jpeg.Options{Quality: 95}); err != nil {
			t.Fatal(err)
		}
		write(t, dir, fmt.Sprintf("%d/scan%d", i%2, i), b.Bytes())
	}
	s := open(t, studies.Options{Data: dir, Shares: []float64{1, 1}})
	if s.Train.Len()+s.Validation.Len() != 8 || s.Train.Channels != 1 {
		t.Errorf("%d images of %v", s.Train.Len()+s.Validation.Len(), s.Train.Example())
	}
}

func TestWhatWouldSpoilTrainingIsAnErrorThatNamesIt(t *testing.T) {
	picture := func(dir string, names ...string) {
		for i, name := range names {
			write(t, dir, name, pngOf(t, grey(4, 4, 9, uint8(i))))
		}
	}
	csv := func(dir, text string) string {
		write(t, dir, "labels.csv", []byte(text))
		return filepath.Join(dir, "labels.csv")
	}
	for says, prepare := range map[string]func(dir string) studies.Options{
		"outside the set": func(dir string) studies.Options {
			picture(dir, "a.png", "b.png")
			return studies.Options{Labels: csv(dir, "file,label\na.png,normal\nb.png,nromal\n"), Classes: []string{"normal", "pneumonia"}}
		},
		"patients are on both sides": func(dir string) studies.Options {
			picture(dir, "a.png", "b.png", "c.png", "d.png")
			return studies.Options{Labels: csv(dir, "file,label,patient,split\na.png,0,P7,train\nb.png,1,P8,train\nc.png,0,P9,val\nd.png,1,P7,val\n")}
		},
		"class 1 has no example": func(dir string) studies.Options {
			picture(dir, "a.png", "b.png", "c.png")
			return studies.Options{Labels: csv(dir, "file,label,split\na.png,0,train\nb.png,1,train\nc.png,0,val\n"), Classes: []string{"0", "1"}}
		},
		// Where nobody names the classes, a slip of the pen makes one.
		"labels.csv: not usable as training data: class \"maligant\" is that of 1 of the examples in training, and training needs 2; it is the label of row 3 (c.png)": func(dir string) studies.Options {
			picture(dir, "a.png", "b.png", "c.png", "d.png", "e.png", "f.png")
			return studies.Options{Labels: csv(dir, "file,label,split\na.png,benign,train\nb.png,benign,train\nc.png,maligant,train\nd.png,malignant,train\ne.png,benign,val\nf.png,malignant,val\n")}
		},
		"class \"1\" is that of 1 of the patients in training": func(dir string) studies.Options {
			picture(dir, "a.png", "b.png", "c.png", "d.png", "e.png", "f.png")
			return studies.Options{Labels: csv(dir, "file,label,patient,split\na.png,0,P1,train\nb.png,0,P2,train\nc.png,1,P3,train\nd.png,1,P3,train\ne.png,0,P4,val\nf.png,1,P5,val\n")}
		},
		"class \"1\" has no example in split val; it is the label of row 2 (b.png), row 3 (c.png), row 4 (d.png), row 5 (e.png), row 6 (f.png) and 1 more": func(dir string) studies.Options {
			picture(dir, "a.png", "b.png", "c.png", "d.png", "e.png", "f.png", "g.png", "h.png", "i.png")
			return studies.Options{Labels: csv(dir, "file,label,split\na.png,0,train\nb.png,1,train\nc.png,1,train\nd.png,1,train\ne.png,1,train\nf.png,1,train\ng.png,1,train\nh.png,0,val\ni.png,0,train\n")}
		},
		"row 2 has the label \"Normal\" in column \"label\" and row 4 has \"normal\"": func(dir string) studies.Options {
			return studies.Options{Labels: csv(dir, "file,label\na.png,sick\nb.png,Normal\nc.png,Normal\nd.png,normal\n")}
		},
		"row 1 has the label \"0\" in column \"label\" and row 3 has \"0.0\"": func(dir string) studies.Options {
			return studies.Options{Labels: csv(dir, "file,label\na.png,0\nb.png,1\nc.png,0.0\n")}
		},
		"which is outside the set; want one of normal, sick (these are the classes by --head)": func(dir string) studies.Options {
			return studies.Options{Labels: csv(dir, "file,label\na.png,normal\nb.png,ill\n"), Classes: []string{"normal", "sick"}, ClassesBy: "--head"}
		},
		"the label columns are a, b (these are the classes by --classes)": func(dir string) studies.Options {
			return studies.Options{Labels: csv(dir, "file,a,b\na.png,0,1\n"), LabelColumns: []string{"a", "b"}, Classes: []string{"b", "a"}}
		},
		// A patient who is not named would be divided as if nobody.
		"labels.csv: not usable as training data: row 2 has no patient in column \"patient\" (\"\")": func(dir string) studies.Options {
			return studies.Options{Labels: csv(dir, "file,label,patient\na.png,0,P1\nb.png,1,\n")}
		},
		"row 1 has no patient in column \"subject\" (\"NA\")": func(dir string) studies.Options {
			return studies.Options{Labels: csv(dir, "file,label,subject\na.png,0,NA\nb.png,1,P2\n")}
		},
		"b.dcm: not usable as training data: it names no patient and other files do": func(dir string) studies.Options {
			write(t, dir, "a.dcm", radiograph(t, "P1", 2, 2, func(r, c int) uint16 { return 7 }))
			write(t, dir, "b.dcm", radiograph(t, "", 2, 2, func(r, c int) uint16 { return 8 }))
			return studies.Options{Labels: csv(dir, "file,label\na.dcm,0\nb.dcm,1\n")}
		},
		"split \"holdout\"": func(dir string) studies.Options {
			picture(dir, "a.png", "b.png")
			return studies.Options{Labels: csv(dir, "file,label,split\na.png,0,holdout\nb.png,1,val\n")}
		},
		"not within the data folder": func(dir string) studies.Options {
			return studies.Options{Labels: csv(dir, "file,label\n../secret.png,0\nb.png,1\n")}
		},
		"listed twice": func(dir string) studies.Options {
			picture(dir, "a.png")
			return studies.Options{Labels: csv(dir, "file,label\na.png,0\n./a.png,1\n")}
		},
		"no such file": func(dir string) studies.Options {
			picture(dir, "a.png")
			return studies.Options{Labels: csv(dir, "file,label\na.png,0\nb.png,1\n")}
		},
		"neither PNG nor JPEG": func(dir string) studies.Options {
			picture(dir, "x/a.png", "y/b.png")
			write(t, dir, "y/notes.txt", []byte("not an image"))
			return studies.Options{}
		},
		"choose a size": func(dir string) studies.Options {
			picture(dir, "x/a.png")
			write(t, dir, "y/b.png", pngOf(t, grey(9, 4, 1, 1)))
			return studies.Options{}
		},
		"folders for 1 classes": func(dir string) studies.Options {
			picture(dir, "x/a.png")
			return studies.Options{}
		},
		"is of no class": func(dir string) studies.Options {
			picture(dir, "x/a.png", "y/b.png", "z/c.png")
			return studies.Options{Classes: []string{"x", "y"}}
		},
		"no column names the files": func(dir string) studies.Options {
			return studies.Options{Labels: csv(dir, "name,label\na.png,0\n")}
		},
		"name the label column": func(dir string) studies.Options {
			return studies.Options{Labels: csv(dir, "file,finding\na.png,0\n")}
		},
		"there is no column \"grade\"": func(dir string) studies.Options {
			return studies.Options{Labels: csv(dir, "file,label\na.png,0\n"), LabelColumns: []string{"grade"}}
		},
		"want 0 or 1": func(dir string) studies.Options {
			picture(dir, "a.png")
			return studies.Options{Labels: csv(dir, "file,a,b\na.png,0,2\n"), LabelColumns: []string{"a", "b"}}
		},
	} {
		dir := t.TempDir()
		o := prepare(dir)
		o.Data = dir
		_, err := studies.Open(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("want an error with %q, got %v", says, err)
		}
	}
}

// A link out of the folder is not followed, whatever the list says.
func TestALinkOutOfTheDataFolderIsNotFollowed(t *testing.T) {
	outside, dir := t.TempDir(), t.TempDir()
	write(t, outside, "secret.png", pngOf(t, grey(4, 4, 9, 1)))
	write(t, dir, "x/a.png", pngOf(t, grey(4, 4, 9, 2)))
	if err := os.MkdirAll(filepath.Join(dir, "y"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(outside, "secret.png"), filepath.Join(dir, "y/b.png")); err != nil {
		t.Skip(err)
	}
	if _, err := studies.Open(t.Context(), studies.Options{Data: dir}); err == nil || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("error is %v", err)
	}
}

func TestTheSameContentInTwoSplitsIsReported(t *testing.T) {
	dir := t.TempDir()
	for i, name := range []string{"train/x/1", "train/x/2", "train/y/3", "val/x/4", "val/y/5", "train/y/6"} {
		first := i
		if name == "val/y/5" {
			first = 0 // what train/x/1 is, with another label
		}
		write(t, dir, name+".png", pngOf(t, grey(4, 4, 9, uint8(first))))
	}
	s := open(t, studies.Options{Data: dir})
	if len(s.Duplicates) != 1 || !s.Duplicates[0].Conflict || !slices.Equal(s.Duplicates[0].Examples, []string{"train/train/x/1.png", "val/val/y/5.png"}) {
		t.Errorf("duplicates: %+v", s.Duplicates)
	}
}

func TestWhatATableTeachesComesFromItsTrainingRowsAlone(t *testing.T) {
	dir := t.TempDir()
	var b strings.Builder
	b.WriteString("age,smoker,label,split\n")
	for i := range 20 {
		fmt.Fprintf(&b, "%d,%s,%d,train\n", 40+i, []string{"yes", "no"}[i%2], i/10)
	}
	b.WriteString("9999,often,0,val\n?,yes,1,val\n")
	write(t, dir, "table.csv", []byte(b.String()))
	s := open(t, studies.Options{Data: filepath.Join(dir, "table.csv")})
	age := s.Encoding.Columns[0]
	if s.Kind != "table" || age.Mean != 49.5 || math.Abs(age.Deviation-math.Sqrt(33.25)) > 1e-12 || age.Missing {
		t.Errorf("age is %+v", age)
	}
	if smoker := s.Encoding.Columns[1]; !slices.Equal(smoker.Values, []string{"no", "yes"}) {
		t.Errorf("smoker is %+v", smoker)
	}
	// An unseen text is none of the known ones; a missing number is the mean.
	if v := s.Validation.Values; v[1] != 0 || v[2] != 0 || v[3] != 0 || v[4] != 0 || v[5] != 1 || v[0] < 1000 {
		t.Errorf("validation rows are %v", v)
	}
	other := open(t, studies.Options{Data: filepath.Join(dir, "table.csv"), Encoding: &train.Columns{Columns: []train.Column{{Name: "age", Mean: 50, Deviation: 10}}}})
	if other.Train.Values[0] != -1 || len(other.Train.Values) != 20 {
		t.Errorf("with a given encoding rows are %v", other.Train.Values)
	}
}

// The tables of four hospitals have no header and "?" where a value is missing.
func TestRealTablesAreReadAsTheyCome(t *testing.T) {
	folder := os.Getenv("VIGIE_DATA")
	if folder == "" {
		folder = "../../../shared/data"
	}
	for name, want := range map[string]struct{ rows, classes int }{"heart4/processed.cleveland.data": {303, 5}, "mammographic_masses.data": {961, 2}} {
		path := filepath.Join(folder, name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			t.Skipf("SKIPPED, nothing was checked: %s is not here; set VIGIE_DATA to the folder of data sets", path)
		}
		s := open(t, studies.Options{Data: path, Seed: 1})
		if n := s.Train.Len() + s.Validation.Len() + s.Test.Len(); n != want.rows || s.Train.Classes != want.classes {
			t.Errorf("%s: %d rows of %d classes", name, n, s.Train.Classes)
		}
		missing := slices.ContainsFunc(s.Encoding.Columns, func(c train.Column) bool { return c.Missing })
		if !missing {
			t.Errorf("%s: no column has missing values", name)
		}
		whole := s.Train.Len() + s.Validation.Len() + s.Test.Len()
		for c, n := range s.Train.Counts() {
			all := n + s.Validation.Counts()[c] + s.Test.Counts()[c]
			if share := float64(n) / float64(all); math.Abs(share-0.7) > 0.05+1/float64(all) || whole == 0 {
				t.Errorf("%s: class %d has %.2f of its rows in training", name, c, share)
			}
		}
	}
}

func TestAnNPZWithoutAValidationSplitHasOneTakenOut(t *testing.T) {
	pixels, labels := make([]uint8, 40*4), make([]uint8, 40)
	for i := range labels {
		pixels[4*i], labels[i] = uint8(i), uint8(i%2)
	}
	var b bytes.Buffer
	err := train.WriteNPZ(&b, map[string]train.Array{"train_images": {Shape: []int64{40, 2, 2}, Data: pixels}, "train_labels": {Shape: []int64{40, 1}, Data: labels}})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, "set.npz", b.Bytes())
	s := open(t, studies.Options{Data: filepath.Join(dir, "set.npz"), Rows: 4, Columns: 4, Classes: []string{"a", "b"}})
	if s.Given || s.Train.Len()+s.Validation.Len() != 40 || s.Test != nil || s.Train.Rows != 4 || s.Train.ClassName(1) != "b" {
		t.Errorf("train %d, validation %d, test %v", s.Train.Len(), s.Validation.Len(), s.Test)
	}
	if _, err := s.Set("test"); !errors.Is(err, train.ErrNoSplit) {
		t.Errorf("error is %v", err)
	}
	if _, err := s.Set("holdout"); err == nil {
		t.Error("a split of another name is taken")
	}
}

// Asking for one part of an .npz file gives the part that all of them together
// have, also where it is the training split.
func TestAPartOfAnNPZIsTheSameWhetherTheOthersAreReadOrNot(t *testing.T) {
	arrays := map[string]train.Array{}
	for part, n := range map[string]int{"train": 40, "val": 10, "test": 6} {
		pixels, labels := make([]uint8, n*4), make([]uint8, n)
		for i := range labels {
			pixels[4*i], labels[i] = uint8(100*len(part)+i), uint8(i%2)
		}
		arrays[part+"_images"] = train.Array{Shape: []int64{int64(n), 2, 2}, Data: pixels}
		arrays[part+"_labels"] = train.Array{Shape: []int64{int64(n), 1}, Data: labels}
	}
	dir := t.TempDir()
	for _, without := range []string{"", "test", "val"} {
		for name := range arrays {
			if without != "" && strings.HasPrefix(name, without) {
				delete(arrays, name)
			}
		}
		var b bytes.Buffer
		if err := train.WriteNPZ(&b, arrays); err != nil {
			t.Fatal(err)
		}
		write(t, dir, "set.npz", b.Bytes())
		o := studies.Options{Data: filepath.Join(dir, "set.npz"), Seed: 1}
		whole := open(t, o)
		for _, part := range []string{studies.Train, studies.Validation, studies.Test} {
			o.Only = part
			want, missing := whole.Set(part)
			alone, err := studies.Open(t.Context(), o)
			if missing != nil {
				if !errors.Is(err, train.ErrNoSplit) {
					t.Errorf("without %q, %s: %v", without, part, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			got, err := alone.Set(part)
			if err != nil || got.Digest() != want.Digest() {
				t.Errorf("without %q, %s alone has %d examples, beside the others %d", without, part, got.Len(), want.Len())
			}
		}
	}
}

func TestAnInterruptedReadingStops(t *testing.T) {
	dir := t.TempDir()
	for i := range 40 {
		write(t, dir, fmt.Sprintf("%d/%d.png", i%2, i), pngOf(t, grey(64, 64, 9, uint8(i))))
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	_, err := studies.Open(ctx, studies.Options{Data: dir, Progress: func(done, total int) { stop() }})
	if err == nil || !strings.Contains(err.Error(), "canceled") {
		t.Errorf("error is %v", err)
	}
}

func TestAPartOfTheDataNeedsNotHaveEveryClassAndIsNotDivided(t *testing.T) {
	path := filepath.Join(t.TempDir(), "one-class.npz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := train.WriteNPZ(f, map[string]train.Array{
		"train_images": {Shape: []int64{3, 4, 4}, Data: make([]uint8, 48)},
		"train_labels": {Shape: []int64{3, 1}, Data: make([]uint8, 3)},
	}); err != nil {
		t.Fatal(err)
	}
	f.Close()
	s, err := studies.Open(t.Context(), studies.Options{Data: path, Part: true, Classes: []string{"a", "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Train.Len() != 3 || s.Train.Classes != 2 || s.Validation != nil || s.Given {
		t.Errorf("%d examples of %d classes, validation %v", s.Train.Len(), s.Train.Classes, s.Validation)
	}
	if _, err := studies.Open(t.Context(), studies.Options{Data: path, Classes: []string{"a", "b"}}); err == nil {
		t.Error("a whole data set may lack a class")
	}

	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "b"), 0o700); err != nil {
		t.Fatal(err)
	}
	var picture bytes.Buffer
	if err := png.Encode(&picture, image.NewGray(image.Rect(0, 0, 4, 4))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "b", "x.png"), picture.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = studies.Open(t.Context(), studies.Options{Data: dir, Part: true, Classes: []string{"a", "b"}}); err != nil {
		t.Fatal(err)
	}
	if whole, err := s.Set(studies.All); err != nil || whole.Len() != 1 || whole.Labels[0] != 1 || whole.Classes != 2 {
		t.Errorf("%+v, %v", whole, err)
	}
}
