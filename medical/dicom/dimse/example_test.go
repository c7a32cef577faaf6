package dimse_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"net"
	"strings"

	"github.com/vigie/vigie/medical/dicom/dimse"
)

// inMemory is the simplest spool; a real one encrypts to disk.
type inMemory struct{ bytes.Buffer }

func (s *inMemory) Discard() { s.Reset() }

// A server and a client on one machine, in plain because the address is
// loopback and the configuration says so.
func Example() {
	server, err := dimse.NewServer(dimse.ServerConfig{
		AETitle:  "VIGIE",
		Plain:    true,
		NewSpool: func() (dimse.Spool, error) { return &inMemory{}, nil },
		Store: func(_ context.Context, r dimse.StoreRequest) dimse.Status {
			fmt.Printf("%s sent a %s\n", r.Peer.CallingAE, dimse.SOPClassName(r.SOPClass))
			return dimse.Success
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()

	const ct, syntax = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"
	association, err := dimse.Dial(ctx, listener.Addr().String(),
		dimse.ClientConfig{CallingAE: "MODALITY", CalledAE: "VIGIE", Plain: true}, dimse.Contexts(ct, syntax))
	if err != nil {
		log.Fatal(err)
	}
	status, err := association.Store(ctx, ct, "1.2.3.4", syntax, strings.NewReader("the bytes of a data set."))
	fmt.Println(status, err)
	fmt.Println(association.Release(ctx))
	stop()
	fmt.Println(<-served)
	// Output:
	// MODALITY sent a CT Image Storage
	// success (0x0000) <nil>
	// <nil>
	// <nil>
}
