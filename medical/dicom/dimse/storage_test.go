package dimse

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/vigie/vigie/medical/dicom"
)

func TestAnEchoIsAnswered(t *testing.T) {
	s := open(t, nil)
	a := s.dial(t, Verification)
	for range 3 {
		if status, err := a.Echo(context.Background()); err != nil || status != Success {
			t.Fatalf("echo: %v, %v", status, err)
		}
	}
	if err := a.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestAnObjectArrivesAsACompleteFile(t *testing.T) {
	for _, size := range []int{0, 2, DefaultMaxPDU - 8, DefaultMaxPDU - 6, DefaultMaxPDU - 4, 3*DefaultMaxPDU - 18, 3<<20 + 2} {
		s := open(t, nil)
		a := s.dial(t, Contexts(ctStorage, dicom.ExplicitLittleEndian)...)
		data := pattern(size)
		status, err := a.Store(context.Background(), ctStorage, "1.2.3.4", dicom.ExplicitLittleEndian, iotest.HalfReader(bytes.NewReader(data)))
		if err != nil || status != Success {
			t.Fatalf("%d bytes: %v, %v", size, status, err)
		}
		if err := a.Release(context.Background()); err != nil {
			t.Fatal(err)
		}
		got := s.got()
		if len(got) != 1 {
			t.Fatalf("%d bytes: %d objects arrived", size, len(got))
		}
		r := got[0]
		if r.Size != int64(len(r.file)) || r.SOPClass != ctStorage || r.SOPInstance != "1.2.3.4" || r.TransferSyntax != dicom.ExplicitLittleEndian {
			t.Errorf("%d bytes: request %+v", size, r.StoreRequest)
		}
		if r.Peer.CallingAE != "SENDER" || r.Peer.CalledAE != "VIGIE" || r.Peer.Certificate != nil {
			t.Errorf("peer %+v", r.Peer)
		}
		meta, rest := splitFile(t, r.file)
		if !bytes.Equal(rest, data) {
			t.Errorf("%d bytes: the data set changed on the way", size)
		}
		for element, want := range map[uint16]string{
			0x0002: ctStorage, 0x0003: "1.2.3.4", 0x0010: dicom.ExplicitLittleEndian, 0x0012: ImplementationClassUID,
			0x0013: ImplementationVersion, 0x0016: "SENDER",
		} {
			if got := strings.TrimRight(meta[element], " \x00"); got != want {
				t.Errorf("meta (0002,%04X) is %q, want %q", element, got, want)
			}
		}
		if meta[0x0001] != "\x00\x01" {
			t.Errorf("meta version %q", meta[0x0001])
		}
		if s.spools[0].discarded != 1 {
			t.Errorf("Discard was called %d times", s.spools[0].discarded)
		}
	}
}

// splitFile is a second, independent reading of PS3.10 section 7.1.
func splitFile(t *testing.T, file []byte) (meta map[uint16]string, rest []byte) {
	t.Helper()
	if len(file) < 144 || string(file[128:132]) != "DICM" || !bytes.Equal(file[:128], make([]byte, 128)) {
		t.Fatal("no preamble and prefix")
	}
	file = file[132:]
	if !bytes.Equal(file[:8], []byte{2, 0, 0, 0, 'U', 'L', 4, 0}) {
		t.Fatalf("group length begins % x", file[:8])
	}
	length := binary.LittleEndian.Uint32(file[8:])
	group, rest := file[12:12+length], file[12+length:]
	meta = map[uint16]string{}
	for len(group) > 0 {
		if binary.LittleEndian.Uint16(group) != 2 {
			t.Fatalf("group %x in the meta information", group[:2])
		}
		element, n := binary.LittleEndian.Uint16(group[2:]), int(binary.LittleEndian.Uint16(group[6:]))
		head := 8
		if string(group[4:6]) == "OB" {
			head, n = 12, int(binary.LittleEndian.Uint32(group[8:]))
		}
		if n%2 != 0 {
			t.Fatalf("odd length of (0002,%04X)", element)
		}
		meta[element] = string(group[head : head+n])
		group = group[head+n:]
	}
	return meta, rest
}

func TestSeveralContextsAreServedOnOneAssociation(t *testing.T) {
	s := open(t, nil)
	contexts := append(Contexts(ctStorage, dicom.ExplicitLittleEndian, "1.2.840.10008.1.2.4.90"), Verification)
	contexts = append(contexts, Context{SOPClass: crStorage, TransferSyntaxes: []string{"1.2.840.10008.1.2.4.50", dicom.ImplicitLittleEndian}})
	a := s.dial(t, contexts...)
	if got := a.TransferSyntaxes(crStorage); len(got) != 1 || got[0] != dicom.ImplicitLittleEndian {
		t.Errorf("of JPEG and implicit the server chose %v", got)
	}
	if got := a.TransferSyntaxes(ctStorage); len(got) != 2 {
		t.Errorf("CT is taken in %v", got)
	}
	for i, step := range []struct{ class, syntax string }{
		{ctStorage, "1.2.840.10008.1.2.4.90"}, {crStorage, dicom.ImplicitLittleEndian}, {ctStorage, dicom.ExplicitLittleEndian},
	} {
		status, err := a.Store(context.Background(), step.class, "1.2.3", step.syntax, bytes.NewReader(pattern(1000+i)))
		if err != nil || status != Success {
			t.Fatalf("step %d: %v, %v", i, status, err)
		}
		if status, err := a.Echo(context.Background()); err != nil || status != Success {
			t.Fatalf("echo %d: %v, %v", i, status, err)
		}
	}
	for i, r := range s.got() {
		if _, rest := splitFile(t, r.file); !bytes.Equal(rest, pattern(1000+i)) {
			t.Errorf("object %d changed", i)
		}
	}
	if _, err := a.Store(context.Background(), crStorage, "1.2.3", dicom.ExplicitLittleEndian, strings.NewReader("")); !errors.Is(err, ErrNotAccepted) {
		t.Errorf("a syntax that was not accepted: %v", err)
	}
}

func TestAnUnknownTransferSyntaxIsAcceptedAndKept(t *testing.T) {
	const exotic = "1.2.840.10008.1.2.4.999"
	s := open(t, nil)
	a := s.dial(t, Contexts("1.2.840.10008.5.1.4.1.1.77777", exotic)...)
	status, err := a.Store(context.Background(), "1.2.840.10008.5.1.4.1.1.77777", "1.2", exotic, strings.NewReader("??"))
	if err != nil || status != Success {
		t.Fatalf("%v, %v", status, err)
	}
	if got := s.got(); len(got) != 1 || got[0].TransferSyntax != exotic {
		t.Fatalf("got %+v", got)
	}
}

func TestStoreAnswersWhatTheOwnerSays(t *testing.T) {
	for _, want := range []Status{Success, OutOfResources, DataSetMismatch, CannotUnderstand, DuplicateSOPInstance, CoercedElements, 0xA701} {
		s := open(t, func(cfg *ServerConfig) { cfg.Store = func(context.Context, StoreRequest) Status { return want } })
		a := s.dial(t, Contexts(ctStorage, dicom.ExplicitLittleEndian)...)
		got, err := a.Store(context.Background(), ctStorage, "1.2", dicom.ExplicitLittleEndian, strings.NewReader("data"))
		if err != nil || got != want {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
		if s.spools[0].discarded != 1 {
			t.Errorf("%v: Discard was called %d times", want, s.spools[0].discarded)
		}
	}
}

func TestAnObjectThatIsTooLargeIsRefusedAndTheAssociationGoesOn(t *testing.T) {
	s := open(t, func(cfg *ServerConfig) { cfg.MaxObject = 1 << 20 })
	a := s.dial(t, Contexts(ctStorage, dicom.ExplicitLittleEndian)...)
	status, err := a.Store(context.Background(), ctStorage, "1.2", dicom.ExplicitLittleEndian, bytes.NewReader(pattern(1<<20+4000)))
	if err != nil || status != OutOfResources {
		t.Fatalf("%v, %v, want out of resources", status, err)
	}
	if s.spools[0].discarded != 1 || len(s.got()) != 0 {
		t.Error("the spool of the large object was kept")
	}
	if status, err = a.Store(context.Background(), ctStorage, "1.2", dicom.ExplicitLittleEndian, strings.NewReader("fits")); err != nil || status != Success {
		t.Fatalf("the next object: %v, %v", status, err)
	}
}

func TestAnObjectWithoutEndIsCutOff(t *testing.T) {
	s := open(t, func(cfg *ServerConfig) { cfg.MaxObject = 1 << 20 })
	a := s.dial(t, Contexts(ctStorage, dicom.ExplicitLittleEndian)...)
	endless := io.LimitReader(zeros{}, 1<<30)
	_, err := a.Store(context.Background(), ctStorage, "1.2", dicom.ExplicitLittleEndian, endless)
	if err == nil {
		t.Fatal("a gigabyte was drained")
	}
	if left := endless.(*io.LimitedReader).N; left < 1<<30-64<<20 {
		t.Errorf("%d bytes were taken of an object limited to 1 MiB", 1<<30-left)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestAFullSpoolIsOutOfResourcesAndRecovers(t *testing.T) {
	broken := errors.New("no space left on device")
	var refuse, fail bool
	var s *site
	s = open(t, func(cfg *ServerConfig) {
		cfg.NewSpool = func() (Spool, error) {
			if refuse {
				return nil, broken
			}
			spool := &memorySpool{}
			if fail {
				spool.fail = broken
			}
			s.spools = append(s.spools, spool)
			return spool, nil
		}
	})
	a := s.dial(t, Contexts(ctStorage, dicom.ExplicitLittleEndian)...)
	for i, step := range []struct {
		refuse, fail bool
		want         Status
	}{{true, false, OutOfResources}, {false, true, OutOfResources}, {false, false, Success}} {
		refuse, fail = step.refuse, step.fail
		status, err := a.Store(context.Background(), ctStorage, "1.2", dicom.ExplicitLittleEndian, bytes.NewReader(pattern(700_000)))
		if err != nil || status != step.want {
			t.Fatalf("step %d: %v, %v, want %v", i, status, err, step.want)
		}
	}
	for i, spool := range s.spools {
		if spool.discarded != 1 {
			t.Errorf("Discard of spool %d was called %d times", i, spool.discarded)
		}
	}
}

func TestASourceThatFailsAbortsInsteadOfStoringHalf(t *testing.T) {
	s := open(t, nil)
	a := s.dial(t, Contexts(ctStorage, dicom.ExplicitLittleEndian)...)
	broken := errors.New("disk gone")
	_, err := a.Store(context.Background(), ctStorage, "1.2", dicom.ExplicitLittleEndian,
		io.MultiReader(bytes.NewReader(pattern(1<<20)), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) {
		t.Fatalf("error %v", err)
	}
	if _, err := a.Store(context.Background(), ctStorage, "1.2", dicom.ExplicitLittleEndian, strings.NewReader("x")); err == nil {
		t.Error("the association outlived half an object")
	}
	waitFor(t, "the association to end", func() bool { return s.Stats().Open == 0 })
	if len(s.got()) != 0 || s.spools[0].discarded != 1 {
		t.Error("half an object was stored")
	}
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
