package dicomweb

import (
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"time"
)

const (
	maxPartHeader = 16 << 10
	// readAhead is how far the multipart reader may read past a header.
	readAhead = 8 << 10
)

var (
	errTooLarge   = errors.New("dicomweb: the request is larger than allowed")
	errPartHeader = fmt.Errorf("dicomweb: a part's header is larger than %d bytes", maxPartHeader)
)

// parts reads a multipart body with every bound held: the standard library's
// reader would collect up to 10 MB of headers for each part.
type parts struct {
	meter *meter
	mime  *multipart.Reader
}

func newParts(body io.Reader, boundary string, limit int64, alive func()) *parts {
	m := &meter{r: body, left: limit, window: -1, alive: alive}
	return &parts{meter: m, mime: multipart.NewReader(m, boundary)}
}

// next returns the next part, io.EOF after the closing boundary. The part
// before must have been read to its end.
func (p *parts) next() (*multipart.Part, error) {
	p.meter.window = maxPartHeader + readAhead
	part, err := p.mime.NextRawPart()
	p.meter.window = -1
	if err == io.EOF { //nolint:errorlint // only the bare EOF is the closing boundary
		return nil, io.EOF
	}
	if err != nil {
		return nil, fmt.Errorf("dicomweb: reading the multipart body: %w", noEOF(err))
	}
	return part, nil
}

// noEOF turns an end of input inside the body into an unexpected one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// meter bounds what is read of a body in all, and in the current window.
type meter struct {
	r      io.Reader
	left   int64
	window int64 // bytes until errPartHeader; negative: none
	alive  func()
}

func (m *meter) Read(p []byte) (int, error) {
	if m.window == 0 {
		return 0, errPartHeader
	}
	if m.window > 0 && int64(len(p)) > m.window {
		p = p[:m.window]
	}
	m.alive()
	if m.left == 0 {
		// The limit is reached exactly when nothing follows.
		if n, err := m.r.Read(make([]byte, 1)); n == 0 && err != nil {
			return 0, err
		}
		return 0, errTooLarge
	}
	if int64(len(p)) > m.left {
		p = p[:m.left]
	}
	n, err := m.r.Read(p)
	m.left -= int64(n)
	if m.window > 0 {
		m.window -= int64(n)
	}
	return n, err
}

// keepAlive returns a function that moves a read deadline ahead whenever the
// sender is given another chance, up to a total. set may fail where the
// transport has no deadlines; then the server's own apply.
func keepAlive(set func(time.Time) error, idle, total time.Duration) func() {
	end := time.Now().Add(total)
	var last time.Time
	return func() {
		now := time.Now()
		if now.Sub(last) < idle/16 {
			return
		}
		last = now
		deadline := now.Add(idle)
		if end.Before(deadline) {
			deadline = end
		}
		_ = set(deadline)
	}
}
