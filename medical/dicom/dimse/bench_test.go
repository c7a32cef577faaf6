package dimse

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/vigie/vigie/medical/dicom"
)

// fileSpool writes to a temporary file, in clear and without fsync, as
// storescp does: what the bare protocol costs, not what the product does.
type fileSpool struct{ *os.File }

func (f fileSpool) Discard() {
	f.Close()
	os.Remove(f.Name())
}

// benchObject is a data set with a picture, and where in it the last digits of
// its SOP Instance UID are, so that each object sent is another one.
type benchObject struct {
	class  string
	data   []byte
	digits int
}

const benchUID = "1.2.826.0.1.3680043.10.9999.000000"

func newBenchObject(b *testing.B, class, modality string, rows, columns int64) *benchObject {
	d := &dicom.DataSet{}
	for tag, value := range map[dicom.Tag]string{
		dicom.SOPClassUID: class, dicom.SOPInstanceUID: benchUID, dicom.StudyInstanceUID: "1.2.3", dicom.SeriesInstanceUID: "1.2.3.4",
		dicom.Modality: modality, dicom.PatientName: "BENCH^MARK", dicom.PatientID: "BENCH", dicom.PhotometricInterpretation: "MONOCHROME2",
	} {
		d.PutString(tag, value)
	}
	for tag, value := range map[dicom.Tag]int64{
		dicom.Rows: rows, dicom.Columns: columns, dicom.SamplesPerPixel: 1, dicom.BitsAllocated: 16, dicom.BitsStored: 12, dicom.HighBit: 11, dicom.PixelRepresentation: 0,
	} {
		d.PutInt(tag, value)
	}
	d.PutBytes(dicom.PixelData, dicom.OW, pattern(int(rows*columns*2)))
	var out bytes.Buffer
	if err := d.Write(&out, dicom.ExplicitLittleEndian); err != nil {
		b.Fatal(err)
	}
	return &benchObject{class: class, data: out.Bytes(), digits: bytes.Index(out.Bytes(), []byte(benchUID)) + len(benchUID) - 6}
}

// number makes it the n-th object and returns its UID.
func (o *benchObject) number(n int) string {
	copy(o.data[o.digits:], fmt.Sprintf("%06d", n%1_000_000))
	return string(o.data[o.digits+6-len(benchUID) : o.digits+6])
}

// BenchmarkIntake sends objects one after the other on one association, always
// by our client over TLS 1.3 on loopback, to our server and to other software.
// Run it with a fixed count, because the others keep what they get:
//
//	go test -run '^$' -bench Intake -benchtime 200x
func BenchmarkIntake(b *testing.B) {
	for _, kind := range []struct {
		name, class, modality string
		rows, columns         int64
	}{{"CT512x512", ctStorage, "CT", 512, 512}, {"CR2140x1760", crStorage, "CR", 2140, 1760}} {
		object := newBenchObject(b, kind.class, kind.modality, kind.rows, kind.columns)
		ca := newAuthority(b)
		for _, receiver := range []struct {
			name string
			open func(*testing.B) (addr, called string)
		}{
			{"vigie-discard", func(b *testing.B) (string, string) {
				return benchServer(b, ca, func() (Spool, error) { return nullSpool{}, nil })
			}},
			{"vigie-file", func(b *testing.B) (string, string) {
				dir := b.TempDir()
				return benchServer(b, ca, func() (Spool, error) {
					f, err := os.CreateTemp(dir, "object")
					return fileSpool{f}, err
				})
			}},
			{"storescp-ignore", func(b *testing.B) (string, string) { return benchStorescp(b, ca, "--ignore"), "PACS" }},
			{"storescp-file", func(b *testing.B) (string, string) { return benchStorescp(b, ca, "-od", b.TempDir()), "PACS" }},
			{"storescp-bitpreserving", func(b *testing.B) (string, string) { return benchStorescp(b, ca, "-od", b.TempDir(), "+B"), "PACS" }},
			{"orthanc", func(b *testing.B) (string, string) { return startOrthanc(b, ca, "127.0.0.1:104").dicom, "ORTHANC" }},
		} {
			b.Run(kind.name+"/"+receiver.name, func(b *testing.B) {
				addr, called := receiver.open(b)
				a, err := Dial(context.Background(), addr, ClientConfig{CallingAE: "BENCH", CalledAE: called, TLS: ClientTLS(ca.issue("bench.test"), ca.pool(), "127.0.0.1")},
					Contexts(kind.class, dicom.ExplicitLittleEndian))
				if err != nil {
					b.Fatal(err)
				}
				defer a.Abort()
				b.SetBytes(int64(len(object.data)))
				n := 0
				for b.Loop() {
					n++
					status, err := a.Store(context.Background(), kind.class, object.number(n), dicom.ExplicitLittleEndian, bytes.NewReader(object.data))
					if err != nil || status != Success {
						b.Fatalf("%v, %v", status, err)
					}
				}
				b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "objects/s")
			})
		}
	}
}

func benchServer(b *testing.B, ca *authority, newSpool func() (Spool, error)) (addr, called string) {
	s := open(b, func(cfg *ServerConfig) {
		ca.secure(cfg)
		cfg.IdleTimeout = time.Minute
		cfg.NewSpool = newSpool
		cfg.Store = func(context.Context, StoreRequest) Status { return Success }
	})
	return s.addr, "VIGIE"
}

func benchStorescp(b *testing.B, ca *authority, options ...string) string {
	caFile, cert, key := ca.files(b.TempDir(), ca.issue("pacs.test"))
	return startPeer(b, "storescp", func(port string) []string {
		return append(append([]string{"--enable-tls", key, cert, "--add-cert-file", caFile, "-aet", "PACS", "--max-pdu", "131072"}, options...), port)
	})
}

// BenchmarkFromStorescu has dcmtk's own sender send 50 CTs of 39 kB per
// operation, to our server and to its own sibling.
func BenchmarkFromStorescu(b *testing.B) {
	const files = 50
	ca := newAuthority(b)
	dir := b.TempDir()
	caFile, cert, key := ca.files(dir, ca.issue("sender.test"))
	for _, receiver := range []string{"vigie", "storescp"} {
		b.Run(receiver, func(b *testing.B) {
			var addr, called string
			if receiver == "vigie" {
				addr, called = benchServer(b, ca, func() (Spool, error) { return nullSpool{}, nil })
			} else {
				addr, called = benchStorescp(b, ca, "--ignore"), "PACS"
			}
			arguments := append([]string{"--enable-tls", key, cert, "--add-cert-file", caFile, "-aec", called}, host(addr)...)
			for range files {
				arguments = append(arguments, pydicomFile(b, "CT_small.dcm"))
			}
			n := 0
			for b.Loop() {
				if out, err := runPeer(b, "storescu", arguments...); err != nil {
					b.Fatalf("%v\n%s", err, out)
				}
				n += files
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "objects/s")
		})
	}
}

// BenchmarkAssociation opens and releases associations, handshake included.
func BenchmarkAssociation(b *testing.B) {
	ca := newAuthority(b)
	addr, called := benchServer(b, ca, func() (Spool, error) { return nullSpool{}, nil })
	config := ClientConfig{CallingAE: "BENCH", CalledAE: called, TLS: ClientTLS(ca.issue("bench.test"), ca.pool(), "127.0.0.1")}
	for b.Loop() {
		a, err := Dial(context.Background(), addr, config, []Context{Verification})
		if err != nil {
			b.Fatal(err)
		}
		if err := a.Release(context.Background()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPlainIntake is our server without TLS: the protocol alone.
func BenchmarkPlainIntake(b *testing.B) {
	object := newBenchObject(b, crStorage, "CR", 2140, 1760)
	s := open(b, func(cfg *ServerConfig) {
		cfg.NewSpool = func() (Spool, error) { return nullSpool{}, nil }
		cfg.Store = func(context.Context, StoreRequest) Status { return Success }
	})
	a := s.dial(b, Contexts(crStorage, dicom.ExplicitLittleEndian)...)
	b.SetBytes(int64(len(object.data)))
	b.ReportAllocs()
	for b.Loop() {
		if status, err := a.Store(context.Background(), crStorage, "1.2.3", dicom.ExplicitLittleEndian, bytes.NewReader(object.data)); err != nil || status != Success {
			b.Fatalf("%v, %v", status, err)
		}
	}
}
