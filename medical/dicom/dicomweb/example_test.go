package dicomweb_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dicomweb"
	"github.com/vigie/vigie/medical/dicom/dimse"
)

// inMemory is the simplest spool; a real one encrypts to disk.
type inMemory struct{ bytes.Buffer }

func (s *inMemory) Discard() { s.Reset() }

// A handler that takes objects, and a client that sends one.
func Example() {
	handler, err := dicomweb.NewHandler(dicomweb.Config{
		Authorize: func(r *http.Request) (dicomweb.Peer, error) { return dicomweb.Peer{Name: "somebody"}, nil },
		NewSpool:  func() (dimse.Spool, error) { return &inMemory{}, nil },
		Store: func(_ context.Context, r dicomweb.StoreRequest) dimse.Status {
			fmt.Printf("%s sent a %s\n", r.Peer.Name, dimse.SOPClassName(r.SOPClass))
			return dimse.Success
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	server := httptest.NewServer(http.StripPrefix("/dicom-web", handler))
	defer server.Close()

	object := &dicom.DataSet{}
	object.PutString(dicom.SOPClassUID, "1.2.840.10008.5.1.4.1.1.88.33")
	object.PutString(dicom.SOPInstanceUID, "1.2.3.4")
	var file bytes.Buffer
	if err := dicom.NewFile(object, dicom.ExplicitLittleEndian).Write(&file); err != nil {
		log.Fatal(err)
	}
	client := &dicomweb.Client{BaseURL: server.URL + "/dicom-web"}
	answer, err := client.Store(context.Background(), "", &file)
	if err != nil {
		log.Fatal(err)
	}
	status, found := answer.Status("1.2.3.4")
	fmt.Println(status, found)
	// Output:
	// somebody sent a Comprehensive SR Storage
	// success (0x0000) true
}
