package enclave

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/vigie/vigie/attest"
)

// RemoteOptions says how to reach an enclave in another process.
type RemoteOptions struct {
	URL         string        // https://host:port, or http://127.0.0.1:port with Development
	TLS         *tls.Config   // see certificates.Files.Client; required with https
	Development bool          // allows plain HTTP to a loopback address
	Attempts    int           // how often a request is tried when the connection fails or the enclave is busy; 0 is 4
	Backoff     time.Duration // before the second attempt, doubled for each further one; 0 is 250 ms
	Timeout     time.Duration // for one attempt; 0 is 5 minutes
}

// Remote is an enclave behind HTTP. Nothing it returns is trusted before
// Client verified it. A request may be repeated because a diagnosis changes
// nothing in the enclave.
type Remote struct {
	base    *url.URL
	client  *http.Client
	options RemoteOptions
}

var _ Enclave = (*Remote)(nil)

// NewRemote returns the enclave at a URL without connecting to it.
func NewRemote(options RemoteOptions) (*Remote, error) {
	base, err := url.Parse(options.URL)
	if err != nil {
		return nil, fmt.Errorf("enclave: reading the enclave's address: %w", err)
	}
	if base.Host == "" || base.Path != "" && base.Path != "/" || base.RawQuery != "" || base.User != nil {
		return nil, fmt.Errorf("enclave: reading the enclave's address %q: want https://host:port", base.Redacted())
	}
	switch {
	case base.Scheme == "https" && options.TLS != nil:
	case base.Scheme == "https":
		return nil, fmt.Errorf("enclave: reaching %s: https needs a client certificate and an authority", base)
	case base.Scheme == "http" && options.Development && loopbackHost(base.Hostname()):
	case base.Scheme == "http":
		return nil, fmt.Errorf("enclave: reaching %s: plain HTTP is for development on a loopback address: use https", base)
	default:
		return nil, fmt.Errorf("enclave: reaching %s: want https", base)
	}
	if options.Attempts <= 0 {
		options.Attempts = 4
	}
	if options.Backoff <= 0 {
		options.Backoff = 250 * time.Millisecond
	}
	if options.Timeout <= 0 {
		options.Timeout = 5 * time.Minute
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true) // see newHTTPServer
	return &Remote{base: base, options: options, client: &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			TLSClientConfig:       options.TLS,
			Protocols:             &protocols,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
			TLSHandshakeTimeout:   10 * time.Second,
			MaxIdleConnsPerHost:   8,
			IdleConnTimeout:       time.Minute,
			DisableCompression:    true,
			ResponseHeaderTimeout: options.Timeout,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func loopbackHost(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Evidence asks the enclave for evidence.
func (r *Remote) Evidence(ctx context.Context, nonce []byte) (attest.Evidence, error) {
	target := r.base.JoinPath(evidencePath)
	target.RawQuery = url.Values{"nonce": {base64.RawURLEncoding.EncodeToString(nonce)}}.Encode()
	encoded, err := r.exchange(ctx, http.MethodGet, target, nil, attest.MaxEvidence)
	if err != nil {
		return attest.Evidence{}, fmt.Errorf("enclave: asking %s for evidence: %w", r.base.Host, err)
	}
	return attest.Parse(encoded)
}

// Diagnose sends a sealed case.
func (r *Remote) Diagnose(ctx context.Context, sealed []byte) ([]byte, error) {
	if len(sealed) > MaxSealed {
		return nil, fmt.Errorf("enclave: sending a case of %d bytes: %w", len(sealed), ErrTooLarge)
	}
	reply, err := r.exchange(ctx, http.MethodPost, r.base.JoinPath(diagnosePath), sealed, MaxReply)
	if err != nil {
		return nil, fmt.Errorf("enclave: sending a case to %s: %w", r.base.Host, err)
	}
	return reply, nil
}

// Ready asks the enclave's /readyz, once.
func (r *Remote) Ready(ctx context.Context) error {
	if _, err := r.once(ctx, http.MethodGet, r.base.JoinPath(readyPath), nil, 4<<10); err != nil {
		return fmt.Errorf("enclave: asking %s: %w", r.base.Host, err)
	}
	return nil
}

// maxPause bounds the pause between two attempts.
const maxPause = 10 * time.Second

// exchange sends one request, again with growing pauses while the error wraps
// ErrUnavailable.
func (r *Remote) exchange(ctx context.Context, method string, target *url.URL, body []byte, limit int64) ([]byte, error) {
	pause := r.options.Backoff
	for attempt := 1; ; attempt++ {
		reply, err := r.once(ctx, method, target, body, limit)
		if err == nil || !errors.Is(err, ErrUnavailable) {
			return reply, err
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
		if attempt == r.options.Attempts {
			return nil, fmt.Errorf("after %d attempts: %w", attempt, err)
		}
		// Half of the pause is random, so that many gateways do not return at once.
		timer := time.NewTimer(pause/2 + rand.N(pause/2+1))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
		}
		pause = min(2*pause, maxPause)
	}
}

func (r *Remote) once(ctx context.Context, method string, target *url.URL, body []byte, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, r.options.Timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", octets)
	}
	response, err := r.client.Do(request)
	if err != nil {
		var failure *url.Error
		if errors.As(err, &failure) { // its text repeats the whole address
			err = failure.Err
		}
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		io.CopyN(io.Discard, response.Body, 4<<10) // lets the connection be used again
		for _, row := range statusOf {
			if response.StatusCode == row.status {
				return nil, fmt.Errorf("%w (HTTP status %d)", row.err, response.StatusCode)
			}
		}
		if response.StatusCode >= 500 || response.StatusCode == http.StatusRequestTimeout || response.StatusCode == http.StatusTooManyRequests {
			return nil, fmt.Errorf("%w (HTTP status %d)", ErrUnavailable, response.StatusCode)
		}
		return nil, fmt.Errorf("%w: HTTP status %d, which an enclave does not answer: check the address", ErrReply, response.StatusCode)
	}
	reply, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%w: the reply broke off: %w", ErrUnavailable, err)
	}
	if int64(len(reply)) > limit {
		return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrReply, limit)
	}
	return reply, nil
}
