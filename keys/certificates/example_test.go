package certificates_test

import (
	"fmt"
	"net/http"

	"github.com/vigie/vigie/keys/certificates"
)

// A server whose certificate, key and authority may be renewed while it runs.
func Example() {
	files := certificates.Files{Certificate: "gateway.pem", Key: "gateway.key", Authority: "ca.pem", Private: true}
	config, err := files.Server(certificates.ServerOptions{Protocols: []string{"h2", "http/1.1"}})
	if err != nil {
		fmt.Println("vigie:", err)
		return
	}
	server := http.Server{Addr: ":8443", TLSConfig: config}
	fmt.Println(server.ListenAndServeTLS("", ""))
	// Output: vigie: certificates: loading a private key: stat gateway.key: no such file or directory
}
