package dicom

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"
)

// radiograph is a file of the size of a computed radiograph: 2140×1760, 16 bits
// allocated, 12 stored.
func radiograph(t testing.TB) []byte {
	t.Helper()
	random := rand.New(rand.NewPCG(1, 2))
	pixels := make([]byte, 2*2140*1760)
	for i := 0; i < len(pixels); i += 2 {
		v := random.IntN(4096)
		pixels[i], pixels[i+1] = byte(v), byte(v>>8)
	}
	d := new(DataSet)
	d.PutString(SOPClassUID, "1.2.840.10008.5.1.4.1.1.1")
	d.PutString(SOPInstanceUID, "2.25.1")
	d.PutInt(Rows, 2140)
	d.PutInt(Columns, 1760)
	d.PutInt(SamplesPerPixel, 1)
	d.PutInt(BitsAllocated, 16)
	d.PutInt(BitsStored, 12)
	d.PutInt(HighBit, 11)
	d.PutInt(PixelRepresentation, 0)
	d.PutString(PhotometricInterpretation, "MONOCHROME1")
	d.PutFloat(WindowCenter, 2000)
	d.PutFloat(WindowWidth, 3000)
	d.PutBytes(PixelData, OW, pixels)
	var out bytes.Buffer
	if err := NewFile(d, ExplicitLittleEndian).Write(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func BenchmarkParseAndLuminance(b *testing.B) {
	data := radiograph(b)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		f, err := Parse(bytes.NewReader(data), Limits{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := f.Luminance(0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	data := radiograph(b)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Parse(bytes.NewReader(data), Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseFromAStreamOfUnknownSize(b *testing.B) {
	data := radiograph(b)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := Parse(io.MultiReader(bytes.NewReader(data)), Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWrite(b *testing.B) {
	data := radiograph(b)
	f, err := Parse(bytes.NewReader(data), Limits{})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := f.Write(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
