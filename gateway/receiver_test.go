package gateway

import (
	"bytes"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vigie/vigie/medical/dicom/dimse"
)

// pacs is a receiving peer in this process that can be told to fail.
type pacs struct {
	address string
	refuse  atomic.Uint32 // a status to answer instead of success
	mu      sync.Mutex
	objects map[string][][]byte // by SOP Instance UID, each time it came
}

type memorySpool struct{ bytes.Buffer }

func (*memorySpool) Discard() {}

func startPACS(t testing.TB) *pacs {
	t.Helper()
	p := &pacs{objects: map[string][][]byte{}}
	server, err := dimse.NewServer(dimse.ServerConfig{
		AETitle: "PACS", Plain: true,
		NewSpool: func() (dimse.Spool, error) { return &memorySpool{}, nil },
		Store: func(_ context.Context, r dimse.StoreRequest) dimse.Status {
			if status := p.refuse.Load(); status != 0 {
				return dimse.Status(status)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.objects[r.SOPInstance] = append(p.objects[r.SOPInstance], bytes.Clone(r.Spool.(*memorySpool).Bytes()))
			return dimse.Success
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = listener.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, listener) }()
	t.Cleanup(func() { cancel(); <-ended })
	return p
}

func (p *pacs) destination(name string) DestinationConfig {
	return DestinationConfig{Name: name, Kind: "dimse", Address: p.address, AETitle: "PACS", CallingAETitle: "VIGIE", Plain: true}
}

func (p *pacs) received() map[string][][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[string][][]byte{}
	for uid, times := range p.objects {
		out[uid] = times
	}
	return out
}
