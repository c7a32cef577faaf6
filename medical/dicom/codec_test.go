package dicom

import (
	"bytes"
	"encoding/binary"
	"errors"
	"image"
	"image/color"
	"image/jpeg"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

func TestRLEDecodesWhatDcmtkEncodesAndTheReverse(t *testing.T) {
	dcmcrle, dcmdrle := need(t, "dcmcrle"), need(t, "dcmdrle")
	for _, name := range []string{"CT_small.dcm", "MR_small.dcm", "SC_rgb_small_odd.dcm", "rtdose_1frame.dcm", "rtdose.dcm", "image_dfl.dcm"} {
		plain := parseBytes(t, realFile(t, name))
		dir := t.TempDir()
		path := func(file string) string { return filepath.Join(dir, file) }
		plain.TransferSyntax = ExplicitLittleEndian
		if err := os.WriteFile(path("plain"), encode(t, plain), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(dcmcrle, path("plain"), path("theirs")).CombinedOutput(); err != nil {
			t.Fatalf("%s: dcmcrle: %s", name, out)
		}
		data, err := os.ReadFile(path("theirs"))
		if err != nil {
			t.Fatal(err)
		}
		theirs := parseBytes(t, data)
		ours := plain.Clone()
		var coded [][]byte
		for i := range plain.DataSet.Frames() {
			want, err := plain.Frame(i, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			got, err := theirs.Frame(i, Limits{})
			if err != nil {
				t.Fatalf("%s: frame %d: %v", name, i, err)
			}
			if !slices.Equal(got.Values(), want.Values()) {
				t.Errorf("%s: frame %d of dcmtk decodes to other pixels", name, i)
			}
			coded = append(coded, EncodeRLE(want))
		}
		ours.TransferSyntax = RLELossless
		ours.DataSet.Put(Encapsulate(coded))
		if err := os.WriteFile(path("ours"), encode(t, ours), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(dcmdrle, path("ours"), path("back")).CombinedOutput(); err != nil {
			t.Fatalf("%s: dcmdrle on ours: %s", name, out)
		}
		if data, err = os.ReadFile(path("back")); err != nil {
			t.Fatal(err)
		}
		back := parseBytes(t, data)
		for i := range plain.DataSet.Frames() {
			want, _ := plain.Frame(i, Limits{})
			got, err := back.Frame(i, Limits{})
			if err != nil || !slices.Equal(got.Values(), want.Values()) {
				t.Errorf("%s: frame %d: dcmtk decodes ours to other pixels (%v)", name, i, err)
			}
		}
	}
}

func TestRLERoundTripsOverEveryLayout(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for _, bits := range []int{8, 16, 32} {
		for _, samples := range []int{1, 3} {
			for range 50 {
				d := smallImage(bits, samples)
				rows, columns := 1+random.IntN(5), 1+random.IntN(300)
				d.PutInt(Rows, int64(rows))
				d.PutInt(Columns, int64(columns))
				pixels := make([]byte, rows*columns*samples*bits/8)
				for i := range pixels {
					pixels[i] = byte(random.IntN(1 + random.IntN(3))) // runs and literals
				}
				d.PutBytes(PixelData, OW, pixels)
				want, err := NewFile(d, ExplicitLittleEndian).Frame(0, Limits{})
				if err != nil {
					t.Fatal(err)
				}
				d.Put(Encapsulate([][]byte{EncodeRLE(want)}))
				got, err := NewFile(d, RLELossless).Frame(0, Limits{})
				if err != nil {
					t.Fatalf("%d bits, %d samples, %d × %d: %v", bits, samples, columns, rows, err)
				}
				if !bytes.Equal(got.Data, want.Data) {
					t.Fatalf("%d bits, %d samples, %d × %d: other pixels", bits, samples, columns, rows)
				}
			}
		}
	}
}

func TestHostileRLEIsRefused(t *testing.T) {
	frame := &Frame{Rows: 3, Columns: 4, Samples: 1, Allocated: 16, Data: make([]byte, 24)}
	good := EncodeRLE(frame)
	for name, change := range map[string]func([]byte) []byte{
		"short":                  func(b []byte) []byte { return b[:40] },
		"segments missing":       func(b []byte) []byte { b[0] = 1; return b },
		"four billion segments":  func(b []byte) []byte { copy(b, "\xff\xff\xff\xff"); return b },
		"an offset outside":      func(b []byte) []byte { b[8], b[9] = 0xFF, 0xFF; return b },
		"offsets backwards":      func(b []byte) []byte { b[4], b[8] = b[8], b[4]; return b },
		"a segment that is cut":  func(b []byte) []byte { return b[:len(b)-3] },
		"a run without its byte": func(b []byte) []byte { b[len(b)-2] = 0x81; return b[:len(b)-1] },
	} {
		d := smallImage(16, 1)
		d.Put(&Element{Tag: PixelData, VR: OB, Fragments: [][]byte{nil, change(bytes.Clone(good))}})
		if _, err := NewFile(d, RLELossless).Frame(0, Limits{}); !errors.Is(err, ErrPixels) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d := smallImage(16, 1)
	d.PutInt(Rows, 8000)
	d.PutInt(Columns, 8000)
	d.Put(&Element{Tag: PixelData, VR: OB, Fragments: [][]byte{nil, good}})
	if _, err := NewFile(d, RLELossless).Frame(0, Limits{}); !errors.Is(err, ErrPixels) {
		t.Errorf("64 million pixels in %d bytes: %v", len(good), err)
	}
}

func gray(t *testing.T, width, height int) []byte {
	t.Helper()
	m := image.NewGray(image.Rect(0, 0, width, height))
	for i := range m.Pix {
		m.Pix[i] = byte(i * 3)
	}
	var out bytes.Buffer
	if err := jpeg.Encode(&out, m, &jpeg.Options{Quality: 95}); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestHostileJPEGIsRefusedBeforeItIsDecoded(t *testing.T) {
	good := gray(t, 4, 3)
	frameHeader := bytes.Index(good, []byte{0xFF, 0xC0})
	bent := func(at int, b ...byte) []byte { out := bytes.Clone(good); copy(out[at:], b); return out }
	colour := new(bytes.Buffer)
	if err := jpeg.Encode(colour, image.NewNRGBA(image.Rect(0, 0, 4, 3)), nil); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"other size":          gray(t, 5, 3),
		"colour in gray":      colour.Bytes(),
		"65535 rows":          bent(frameHeader+5, 0xFF, 0xFF),
		"progressive":         bent(frameHeader, 0xFF, 0xC2),
		"12 bits":             bent(frameHeader+4, 12),
		"no JPEG":             []byte("GIF89a, but longer than that"),
		"cut":                 good[:frameHeader+3],
		"nothing":             {},
		"no scan":             good[:frameHeader],
		"corrupt entropy":     good[:len(good)-8],
		"a scan first":        {0xFF, 0xD8, 0xFF, 0xDA, 0, 4, 0, 0, 1, 1},
		"a segment too long":  {0xFF, 0xD8, 0xFF, 0xE0, 0xFF, 0xFF, 0, 0},
		"markers without end": bytes.Repeat([]byte{0xFF, 0xD8, 0xFF, 0xFF}, 9),
	} {
		d := smallImage(8, 1)
		d.Put(&Element{Tag: PixelData, VR: OB, Fragments: [][]byte{nil, data}})
		if _, err := NewFile(d, JPEGBaseline).Frame(0, Limits{}); !errors.Is(err, ErrPixels) {
			t.Errorf("%s: %v", name, err)
		}
	}
	huge := smallImage(8, 1)
	huge.PutInt(Rows, 15000)
	huge.PutInt(Columns, 15000)
	huge.Put(&Element{Tag: PixelData, VR: OB, Fragments: [][]byte{nil, bent(frameHeader+5, 15000>>8, 15000&0xFF, 15000>>8, 15000&0xFF)}})
	if _, err := NewFile(huge, JPEGBaseline).Frame(0, Limits{}); !errors.Is(err, ErrPixels) {
		t.Errorf("225 million pixels in %d bytes: %v", len(good), err)
	}
}

func TestFragmentsFindTheirFrames(t *testing.T) {
	one := gray(t, 4, 3)
	two := func() []byte {
		m := image.NewGray(image.Rect(0, 0, 4, 3))
		for i := range m.Pix {
			m.Pix[i] = 200
		}
		var out bytes.Buffer
		if err := jpeg.Encode(&out, m, nil); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}()
	even := func(b []byte) []byte { return pad(OB, b) }
	one, two = even(one), even(two)
	half := len(one) / 4 * 2
	le32 := func(values ...uint32) []byte {
		var out []byte
		for _, v := range values {
			out = binary.LittleEndian.AppendUint32(out, v)
		}
		return out
	}
	second := uint32(8+half) + uint32(8+len(one)-half)
	le64 := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 0), uint64(second))
	for name, c := range map[string]struct {
		fragments [][]byte
		extended  []byte
		want      error
	}{
		"one each":                       {[][]byte{nil, one, two}, nil, nil},
		"basic offset table":             {[][]byte{le32(0, second), one[:half], one[half:], two}, nil, nil},
		"extended offset table":          {[][]byte{nil, one[:half], one[half:], two}, le64, nil},
		"by where images begin":          {[][]byte{nil, one[:half], one[half:], two}, nil, nil},
		"a table for another number":     {[][]byte{le32(0), one, two}, nil, ErrPixels},
		"an offset into a fragment":      {[][]byte{le32(0, second-2), one[:half], one[half:], two}, nil, ErrPixels},
		"an offset beyond the end":       {[][]byte{le32(0, 1<<31), one, two}, nil, ErrPixels},
		"offsets backwards":              {[][]byte{le32(second, 0), one[:half], one[half:], two}, nil, ErrPixels},
		"fragments that nothing assigns": {[][]byte{nil, one[:half], one[half:], two[:8], two[8:]}, nil, nil},
		"one fragment":                   {[][]byte{nil, one}, nil, ErrPixels},
		"no fragment":                    {[][]byte{nil}, nil, ErrPixels},
	} {
		d := smallImage(8, 1)
		d.PutInt(NumberOfFrames, 2)
		d.Put(&Element{Tag: PixelData, VR: OB, Fragments: c.fragments})
		if c.extended != nil {
			d.Put(&Element{Tag: ExtendedOffsetTable, VR: OV, Value: c.extended})
		}
		f := NewFile(d, JPEGBaseline)
		first, err := f.Frame(0, Limits{})
		if c.want != nil {
			_, later := f.Frame(1, Limits{})
			if !errors.Is(err, c.want) && !errors.Is(later, c.want) {
				t.Errorf("%s: %v and %v", name, err, later)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		last, err := f.Frame(1, Limits{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if first.Data[0] > 10 || last.Data[0] < 190 {
			t.Errorf("%s: the frames begin with %d and %d", name, first.Data[0], last.Data[0])
		}
	}
}

func TestColourJPEGWithoutMarkersFollowsItsLabel(t *testing.T) {
	m := image.NewRGBA(image.Rect(0, 0, 8, 8))
	for i := range 64 {
		m.Set(i%8, i/8, color.RGBA{200, 40, 90, 255})
	}
	var out bytes.Buffer
	if err := jpeg.Encode(&out, m, &jpeg.Options{Quality: 100}); err != nil {
		t.Fatal(err)
	}
	d := smallImage(8, 3)
	d.PutInt(Rows, 8)
	d.PutInt(Columns, 8)
	d.Put(&Element{Tag: PixelData, VR: OB, Fragments: [][]byte{nil, out.Bytes()}})
	d.PutString(PhotometricInterpretation, "YBR_FULL_422")
	frame, err := NewFile(d, JPEGBaseline).Frame(0, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if p := frame.Data[:3]; p[0] < 195 || p[1] > 45 || frame.Photometric != "RGB" {
		t.Errorf("YBR became %v %s", p, frame.Photometric)
	}
	d.PutString(PhotometricInterpretation, "RGB")
	frame, err = NewFile(d, JPEGBaseline).Frame(0, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	y, cb, cr := color.RGBToYCbCr(200, 40, 90)
	if p := frame.Data[:3]; math.Abs(float64(p[0])-float64(y)) > 3 || math.Abs(float64(p[1])-float64(cb)) > 3 || math.Abs(float64(p[2])-float64(cr)) > 3 {
		t.Errorf("a JPEG labelled RGB was converted: %v", p)
	}
}
