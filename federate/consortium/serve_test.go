package consortium

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net/http"
	"testing"
	"time"
)

func TestWhoeverJoinsSlowlyOrAtLengthHoldsNoServer(t *testing.T) {
	patience := joinPatience
	joinPatience = time.Second
	n := newNorth(t, nil)
	t.Cleanup(func() { n.end("server"); joinPatience = patience })
	n.join("lyon") // the server is up
	ca, err := n.consortium.keys.certificate(authorityFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	post := func(body io.Reader) int {
		response, err := client.Post(n.consortium.URL+joinPath, "application/json", body)
		if err != nil {
			return 0
		}
		response.Body.Close()
		return response.StatusCode
	}
	if status := post(bytes.NewReader(make([]byte, maxApplication+1))); status != http.StatusBadRequest {
		t.Errorf("more than an application has: status %d", status)
	}
	slow := make(chan int, joiners)
	for range joiners {
		body, end := io.Pipe() // nothing comes
		defer end.Close()
		go func() { slow <- post(body) }()
	}
	n.until("the server reads no more at a time", func() bool {
		status := post(bytes.NewReader([]byte("{}")))
		return status == http.StatusServiceUnavailable || len(slow) > 0
	})
	for range joiners {
		if status := <-slow; status == http.StatusOK {
			t.Errorf("nothing was taken for an application: status %d", status)
		}
	}
	if status := post(bytes.NewReader([]byte("{}"))); status != http.StatusForbidden {
		t.Errorf("when they have gone: status %d", status)
	}
	n.join("metz")
}
