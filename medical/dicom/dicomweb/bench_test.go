package dicomweb

import (
	"bytes"
	"context"
	"testing"

	"github.com/vigie/vigie/medical/dicom/dimse"
)

type nullSpool struct{}

func (nullSpool) Write(p []byte) (int, error) { return len(p), nil }
func (nullSpool) Discard()                    {}

// BenchmarkSTOW posts one object per request over plain HTTP on loopback, our
// client to our handler, nothing kept.
func BenchmarkSTOW(b *testing.B) {
	for name, pixels := range map[string]int{"CT512x512": 512 * 512 * 2, "CR2140x1760": 2140 * 1760 * 2} {
		b.Run(name, func(b *testing.B) {
			s := open(b, func(cfg *Config) {
				cfg.NewSpool = func() (dimse.Spool, error) { return nullSpool{}, nil }
				cfg.Store = func(context.Context, StoreRequest) dimse.Status { return dimse.Success }
			})
			client := &Client{BaseURL: s.URL}
			file := object(b, ctStorage, "1", "1.1", "1.1.1", pixels)
			b.SetBytes(int64(len(file)))
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n++
				answer, err := client.Store(context.Background(), "", bytes.NewReader(file))
				if err != nil || len(answer.Stored) != 1 {
					b.Fatalf("%v, %+v", err, answer)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "objects/s")
		})
	}
}
