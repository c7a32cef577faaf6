package demo

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom/dimse"
)

// PACS is a receiving archive: it keeps every object it is sent as a file and
// remembers what came twice.
type PACS struct {
	dir    string
	cancel context.CancelFunc
	served chan error

	mu      sync.Mutex
	objects map[string]*Kept
}

// Kept is what a PACS knows of one SOP Instance UID.
type Kept struct {
	SOPClass string
	Path     string
	Digest   vigie.Digest // of the data set's bytes as first received
	Times    int          // how often it arrived
	Conflict bool         // it arrived again with other bytes
}

// StartPACS starts the site's PACS on its address; its objects go to the
// folder pacs of the site. Stop it with Close.
func (s *Site) StartPACS(ctx context.Context, logger *slog.Logger) (*PACS, error) {
	secure, err := s.TLS("pacs")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &PACS{dir: s.Path("pacs"), cancel: cancel, served: make(chan error, 1), objects: map[string]*Kept{}}
	server, err := dimse.NewServer(dimse.ServerConfig{
		AETitle:  PACSAE,
		TLS:      dimse.ServerTLS(secure.Certificates[0], secure.ClientCAs),
		NewSpool: func() (dimse.Spool, error) { return newFileSpool(p.dir) },
		Store:    p.store,
		Logger:   logger,
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("demo: starting the PACS: %w", err)
	}
	listener, err := net.Listen("tcp", s.PACS)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("demo: starting the PACS: %w", err)
	}
	go func() { p.served <- server.Serve(ctx, listener) }()
	return p, nil
}

// Close stops the PACS and waits for it.
func (p *PACS) Close() error {
	p.cancel()
	return <-p.served
}

// Objects returns what was received, by SOP Instance UID.
func (p *PACS) Objects() map[string]Kept {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]Kept, len(p.objects))
	for uid, k := range p.objects {
		out[uid] = *k
	}
	return out
}

func (p *PACS) store(_ context.Context, r dimse.StoreRequest) dimse.Status {
	spool := r.Spool.(*fileSpool)
	data, err := os.ReadFile(spool.file.Name())
	if err != nil {
		return dimse.ProcessingFailure
	}
	digest := vigie.DigestOf(data)
	p.mu.Lock()
	defer p.mu.Unlock()
	if known, ok := p.objects[r.SOPInstance]; ok {
		known.Times++
		known.Conflict = known.Conflict || known.Digest != digest
		return dimse.Success
	}
	path := filepath.Join(p.dir, r.SOPInstance+".dcm")
	if err := os.Rename(spool.file.Name(), path); err != nil {
		return dimse.OutOfResources
	}
	p.objects[r.SOPInstance] = &Kept{SOPClass: r.SOPClass, Path: path, Digest: digest, Times: 1}
	return dimse.Success
}

// fileSpool is a temporary file in the PACS's folder.
type fileSpool struct {
	io.Writer
	file *os.File
}

func newFileSpool(dir string) (*fileSpool, error) {
	f, err := os.CreateTemp(dir, ".incoming-*")
	if err != nil {
		return nil, err
	}
	return &fileSpool{Writer: f, file: f}, nil
}

// Discard removes the file unless it was kept under its final name.
func (s *fileSpool) Discard() {
	s.file.Close()
	os.Remove(s.file.Name())
}
