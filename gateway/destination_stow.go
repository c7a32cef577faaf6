package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/vigie/vigie/medical/dicom/dicomweb"
)

// stowDestination delivers with STOW-RS (PS3.18 section 10.5).
type stowDestination struct{ client dicomweb.Client }

func newSTOWDestination(c DestinationConfig, secure *tls.Config) (destination, error) {
	return &stowDestination{client: dicomweb.Client{
		BaseURL: c.URL,
		HTTP: &http.Client{
			Transport: &http.Transport{
				Proxy:                 http.ProxyFromEnvironment,
				TLSClientConfig:       secure,
				TLSHandshakeTimeout:   15 * time.Second,
				ResponseHeaderTimeout: 2 * time.Minute,
				IdleConnTimeout:       time.Minute,
				ForceAttemptHTTP2:     true,
			},
			// A redirect would carry the objects to a server that nobody configured.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}}, nil
}

func (d *stowDestination) send(ctx context.Context, objects []Outgoing, done func(int, error)) error {
	files := make([]io.Reader, len(objects))
	for i, o := range objects {
		files[i] = bytes.NewReader(o.File)
	}
	answer, err := d.client.Store(ctx, "", files...)
	if status, ok := errors.AsType[*dicomweb.StatusError](err); ok && refusesBody(status.Code) {
		for i := range objects {
			done(i, fmt.Errorf("%w: %w", ErrRefused, err))
		}
		return nil
	}
	if err != nil {
		return err
	}
	for i, o := range objects {
		status, found := answer.Status(o.SOPInstance)
		switch {
		case !found:
			done(i, fmt.Errorf("the destination's answer does not mention the object"))
		case status.Stored():
			done(i, nil)
		case status.Transient():
			done(i, fmt.Errorf("the destination answers %v", status))
		default:
			done(i, fmt.Errorf("%w: %v", ErrRefused, status))
		}
	}
	return nil
}

// refusesBody reports whether an HTTP status is about what was sent. Others
// (401, 403, 404, 5xx …) are about the service or its settings.
func refusesBody(code int) bool {
	switch code {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return true
	}
	return false
}
