package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

// BenchmarkIntake measures C-STORE from the sender's side: sealed, fsynced,
// deduplicated, audited and committed before the acknowledgement. The enclave
// is a stand-in that sends every case to a person, so that nothing competes.
// Each object gets a UID of its own by patching the digits of a template.
func BenchmarkIntake(b *testing.B) {
	ct, err := phantom.AbdomenCT(1, phantom.Options{})
	if err != nil {
		b.Fatal(err)
	}
	cr, err := phantom.Chest(1, phantom.Options{Rows: 2140, Columns: 1760})
	if err != nil {
		b.Fatal(err)
	}
	for name, data := range map[string][]byte{"ct-512x512": written(b, ct), "cr-2140x1760": written(b, cr)} {
		for _, senders := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s/senders=%d", name, senders), func(b *testing.B) { benchmarkIntake(b, data, senders) })
		}
	}
}

func benchmarkIntake(b *testing.B, data []byte, senders int) {
	config := testConfig(b)
	config.Review.Everything = true
	g := start(b, config, Options{Diagnoser: newStandIn(b, config.Model, always(0.03))})
	template, err := NewOutgoing(data)
	if err != nil {
		b.Fatal(err)
	}
	address := g.Addresses().DIMSE.(*net.TCPAddr).String()
	var serial atomic.Int64
	b.SetBytes(int64(len(data)))
	b.SetParallelism(senders) // times GOMAXPROCS, bounded below by one each
	b.ResetTimer()
	slots := make(chan struct{}, senders)
	b.RunParallel(func(pb *testing.PB) {
		slots <- struct{}{}
		defer func() { <-slots }()
		a, err := dimse.Dial(context.Background(), address, dimse.ClientConfig{CallingAE: "MODALITY", CalledAE: "VIGIE", Plain: true},
			dimse.Contexts(template.SOPClass, template.TransferSyntax))
		if err != nil {
			b.Error(err)
			return
		}
		for pb.Next() {
			uid := patched(template.SOPInstance, serial.Add(1))
			body := io.Reader(bytes.NewReader(bytes.Replace(template.File[template.dataSet:], []byte(template.SOPInstance), []byte(uid), 1)))
			status, err := a.Store(context.Background(), template.SOPClass, uid, template.TransferSyntax, body)
			if err != nil || status != dimse.Success {
				b.Errorf("%v, %v", status, err)
				return
			}
		}
		if err := a.Release(context.Background()); err != nil {
			b.Error(err)
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "objects/s")
}

// patched replaces the last digits of a UID by a number.
func patched(uid string, n int64) string {
	digits := fmt.Sprintf("%09d", n)
	return uid[:len(uid)-len(digits)] + digits
}
