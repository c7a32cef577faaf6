package enclave

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
)

// ModelServer names a server that computes the model's answers instead of the
// engine in this process: one that speaks the Open Inference Protocol version 2
// over HTTP, such as Triton or KServe, for instance because it has the GPU.
//
// It sees the de-identified images, and its answers are signed as the
// enclave's: no evidence covers it. It belongs inside the enclave's own
// boundary of trust, on the same machine or pod. What is checked is that it
// serves this package's graph: at the start on probe images, and where the
// package explains itself, on every case, since the explanation is computed
// here and both must give the same answer.
type ModelServer struct {
	// URL is https://host:port, or http:// on loopback. The model is that of the
	// manifest's name, unless the path says /v2/models/NAME or
	// /v2/models/NAME/versions/VERSION.
	URL string
	TLS *tls.Config // see certificates.Files.Client; required with https
}

// What a model server may make the enclave do.
const (
	maxServerAnswer = 4 << 20 // bytes; logits and names are a few hundred
	serverStart     = 30 * time.Second

	firstServerPause = 250 * time.Millisecond
	maxServerPause   = 5 * time.Second
)

// parse reads the address.
func (s ModelServer) parse(pkg *model.Package) (base *url.URL, name, version string, err error) {
	base, err = url.Parse(s.URL)
	if err != nil || base.Host == "" || base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, "", "", errors.New("enclave: reading the model server's address: want https://host:port, without user or query")
	}
	switch {
	case base.Scheme == "https" && s.TLS != nil:
	case base.Scheme == "http" && loopbackHost(base.Hostname()):
	case base.Scheme == "https":
		return nil, "", "", fmt.Errorf("enclave: reaching the model server %s: https needs a client certificate and an authority", base.Host)
	default:
		return nil, "", "", fmt.Errorf("enclave: reaching the model server %s: it sees the images, and plain HTTP is for a loopback address: use https", base.Host)
	}
	path := strings.Split(strings.Trim(base.Path, "/"), "/")
	switch {
	case len(path) == 1 && path[0] == "":
		name = pkg.Manifest.Name
	case len(path) == 3 && path[0] == "v2" && path[1] == "models":
		name = path[2]
	case len(path) == 5 && path[0] == "v2" && path[1] == "models" && path[3] == "versions":
		name, version = path[2], path[4]
	default:
		return nil, "", "", fmt.Errorf("enclave: reading the model server's address: path %q: want none, /v2/models/NAME or /v2/models/NAME/versions/VERSION", base.Path)
	}
	base.Path = ""
	return base, name, version, nil
}

// served is the session of a model server, with patience for one that is away
// for a while.
type served struct {
	engine.Session
	client *http.Client
	health string // the address that tells whether the model is ready
}

func openServed(pkg *model.Package, s ModelServer) (*served, error) {
	base, name, version, err := s.parse(pkg)
	if err != nil {
		return nil, err
	}
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	client := &http.Client{
		// No proxy: the images go to this server and nobody else.
		Transport: &http.Transport{
			TLSClientConfig: s.TLS, Protocols: &protocols, TLSHandshakeTimeout: 10 * time.Second,
			MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute, DisableCompression: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	ctx, cancel := context.WithTimeout(context.Background(), serverStart)
	defer cancel()
	session, err := engine.OpenRemote(ctx, base.String(), name, engine.RemoteOptions{Version: version, Client: client, MaxResponse: maxServerAnswer})
	if err != nil {
		return nil, err
	}
	model := base.JoinPath("v2", "models", name)
	if version != "" {
		model = model.JoinPath("versions", version)
	}
	return &served{Session: session, client: client, health: model.JoinPath("ready").String()}, nil
}

// Run asks again, with growing pauses, until ctx ends: a server that restarts
// costs a case some time. Without an answer by then the case goes to a person.
func (s *served) Run(ctx context.Context, inputs map[string]engine.Tensor, outputs ...string) (map[string]engine.Tensor, error) {
	for pause := firstServerPause; ; pause = min(2*pause, maxServerPause) {
		result, err := s.Session.Run(ctx, inputs, outputs...)
		if err == nil || errors.Is(err, engine.ErrInput) || errors.Is(err, engine.ErrClosed) {
			return result, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, errors.Join(err, ctx.Err())
		}
	}
}

// ready asks whether the server would answer now.
func (s *served) ready(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.health, nil)
	if err != nil {
		return err
	}
	response, err := s.client.Do(request)
	if err != nil {
		return fmt.Errorf("%w: the model server does not answer: %w", ErrUnavailable, err)
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, 4<<10) // lets the connection be used again
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: the model server says that its model is not ready (HTTP status %d)", ErrUnavailable, response.StatusCode)
	}
	return nil
}

func (s *served) Close() error {
	s.client.CloseIdleConnections()
	return s.Session.Close()
}

// errOtherModel says that a server computes something else than the package.
var errOtherModel = errors.New("the model server does not serve this package's graph in float32")

// compare holds the answers of a model server on a blank image, a ramp and
// noise against those of the package's own graph, computed here.
func (p *pipeline) compare(threads int) error {
	own, err := engine.Open(p.pkg.Graph, engine.Options{Threads: threads})
	if err != nil {
		return err
	}
	defer own.Close()
	ctx, cancel := context.WithTimeout(context.Background(), serverStart)
	defer cancel()
	in := p.pkg.Manifest.Input
	noise := rand.New(rand.NewPCG(1, 2))
	for _, trial := range []struct {
		kind string
		at   func(i, n int) float32
	}{
		{"a blank image", func(int, int) float32 { return 0 }},
		{"a ramp", func(i, n int) float32 { return float32(i) / float32(n) }},
		{"noise", func(int, int) float32 { return noise.Float32() }},
	} {
		kind, at := trial.kind, trial.at
		image := &dicom.Luminance{Rows: in.Rows, Columns: in.Columns, Values: make([]float32, in.Rows*in.Columns)}
		for i := range image.Values {
			image.Values[i] = at(i, len(image.Values))
		}
		input, err := p.pkg.Manifest.Prepare(image)
		if err != nil {
			return err
		}
		theirs, err := p.infer(ctx, input)
		if err != nil {
			return err
		}
		local := pipeline{pkg: p.pkg, session: own}
		ours, err := local.infer(ctx, input)
		if err != nil {
			return err
		}
		if apart := disagreement(theirs, ours); len(theirs) != len(ours) || !(apart <= maxDisagreement) {
			return fmt.Errorf("enclave: comparing answers on %s: %w: they differ by %.2g", kind, errOtherModel, apart)
		}
	}
	return nil
}
