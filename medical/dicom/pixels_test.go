package dicom

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func parseBytes(t testing.TB, data []byte) *File {
	t.Helper()
	f, err := Parse(bytes.NewReader(data), Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func valuesDigest(values []int32) string {
	sum := sha256.New()
	b := make([]byte, 0, 4*len(values))
	for _, v := range values {
		b = binary.LittleEndian.AppendUint32(b, uint32(v))
	}
	sum.Write(b)
	return hex.EncodeToString(sum.Sum(nil))
}

func TestEveryPixelOfRealFilesIsWhatPydicomDecodes(t *testing.T) {
	files := realFiles(t)
	scanner := bufio.NewScanner(bytes.NewReader(python(t, "pixels.py", files...)))
	scanner.Buffer(nil, 64<<20)
	frames, windows := 0, 0
	for scanner.Scan() {
		var theirs struct {
			File, Error string
			Shape       []int
			Frames      []struct {
				Values        string
				Modality, VOI []float64
				First         []int64
			}
		}
		if err := json.Unmarshal(scanner.Bytes(), &theirs); err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(theirs.File)
		data, err := os.ReadFile(theirs.File)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Parse(bytes.NewReader(data), Limits{})
		if err != nil {
			continue // the test of values says whether that is right
		}
		if theirs.Error != "" {
			if _, err := f.Luminance(0); err == nil && f.Meta.Has(TransferSyntaxUID) {
				t.Logf("%s: we read pixels, pydicom does not: %s", name, theirs.Error)
			}
			continue
		}
		for i, want := range theirs.Frames {
			frame, err := f.Frame(i, Limits{})
			if errors.Is(err, ErrTransferSyntax) {
				break
			}
			if f.TransferSyntax == ExplicitBigEndian && f.DataSet.Ints(BitsAllocated)[0] == 32 {
				if !errors.Is(err, ErrPixels) {
					t.Errorf("%s: 32-bit big-endian cells: %v; implementations disagree on their word order", name, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: frame %d: %v", name, i, err)
				continue
			}
			frames++
			values := frame.Values()
			syntax, _ := SyntaxOf(f.TransferSyntax)
			if got := valuesDigest(values); got != want.Values && !syntax.Lossy {
				t.Errorf("%s: frame %d: our values begin %v, pydicom's %v", name, i, values[:8], want.First)
			}
			if want.Modality == nil {
				continue
			}
			lum, err := f.LuminanceOf(frame)
			if err != nil {
				t.Errorf("%s: frame %d: %v", name, i, err)
				continue
			}
			expected := want.VOI
			if expected == nil {
				expected = want.Modality
			} else {
				windows++
			}
			compareScaled(t, name, lum, expected, frame.Photometric == "MONOCHROME1", want.VOI == nil)
		}
	}
	if frames < 30 || windows < 6 {
		t.Errorf("only %d frames and %d windows were compared", frames, windows)
	}
	t.Logf("%d frames, %d of them through a VOI, agree with pydicom", frames, windows)
}

// compareScaled compares luminance with values of pydicom that are the same up
// to one linear scaling. Pixels that pydicom shows beyond the extremes of its
// sample are clamped by us.
func compareScaled(t *testing.T, name string, lum *Luminance, theirs []float64, inverted, fullRange bool) {
	t.Helper()
	step := max(1, len(lum.Values)/500)
	var sx, sy, sxx, sxy, n float64
	var ours []float64
	for i, x := range theirs {
		y := float64(lum.Values[i*step])
		if inverted {
			y = 1 - y
		}
		ours = append(ours, y)
		sx, sy, sxx, sxy, n = sx+x, sy+y, sxx+x*x, sxy+x*y, n+1
	}
	varying := n*sxx - sx*sx
	if varying == 0 {
		return
	}
	slope := (n*sxy - sx*sy) / varying
	offset := (sy - slope*sx) / n
	for i, x := range theirs {
		if math.Abs(slope*x+offset-ours[i]) > 0.003 {
			t.Errorf("%s: sample %d: luminance %.4f, pydicom's value scales to %.4f", name, i, ours[i], slope*x+offset)
			return
		}
	}
}

func TestColourJPEGIsWhatDcmtkDecodes(t *testing.T) {
	dcmdjpeg := need(t, "dcmdjpeg")
	compared := 0
	for _, path := range realFiles(t) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Parse(bytes.NewReader(data), Limits{})
		if err != nil || f.TransferSyntax != JPEGBaseline {
			continue
		}
		name := filepath.Base(path)
		ours, err := f.Frame(0, Limits{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		plain := filepath.Join(t.TempDir(), "plain.dcm")
		if out, err := exec.Command(dcmdjpeg, "+cn", path, plain).CombinedOutput(); err != nil {
			t.Logf("%s: dcmdjpeg: %s", name, out)
			continue
		}
		// +cn leaves YBR as it is; ask for RGB the other way where it was YBR.
		if strings.HasPrefix(f.DataSet.String(PhotometricInterpretation), "YBR") {
			if out, err := exec.Command(dcmdjpeg, "+cp", path, plain).CombinedOutput(); err != nil {
				t.Logf("%s: dcmdjpeg: %s", name, out)
				continue
			}
		}
		decoded, err := os.ReadFile(plain)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := parseBytes(t, decoded).Frame(0, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		compared++
		// dcmtk smooths halved chroma between pixels, we repeat it: what must
		// agree is the luma, and colour on average.
		var colour, luma float64
		for i := 0; i < len(ours.Data); i += 3 {
			a, b := ours.Data[i:i+3], theirs.Data[i:i+3]
			var dy float64
			for s, weight := range []float64{lumaRed, lumaGreen, lumaBlue} {
				d := float64(a[s]) - float64(b[s])
				colour, dy = colour+math.Abs(d), dy+weight*d
			}
			luma += math.Abs(dy)
		}
		colour, luma = colour/float64(len(ours.Data)), luma*3/float64(len(ours.Data))
		if colour > 3 || luma > 1.5 {
			t.Errorf("%s: differs from dcmtk by %.2f in colour and %.2f in luma, on average", name, colour, luma)
		}
	}
	if compared < 8 {
		t.Errorf("only %d files were compared", compared)
	}
}
