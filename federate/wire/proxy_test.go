package wire

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// proxy is a bad network between sites and a server: it cuts a connection after
// so many bytes, or keeps it and carries nothing.
type proxy struct {
	listener net.Listener
	to       string
	cutAfter atomic.Int64 // bytes of a connection, both ways; 0: never
	up, down atomic.Int64 // bytes that went through
	opened   atomic.Int64

	mu    sync.Mutex
	conns []*proxied
}

type proxied struct {
	near, far net.Conn
	frozen    atomic.Bool
	carried   atomic.Int64
}

func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, to: to}
	go p.serve()
	t.Cleanup(func() { listener.Close(); p.cut() })
	return p
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) serve() {
	for {
		near, err := p.listener.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", p.to)
		if err != nil {
			near.Close()
			continue
		}
		p.opened.Add(1)
		c := &proxied{near: near, far: far}
		p.mu.Lock()
		p.conns = append(p.conns, c)
		p.mu.Unlock()
		go p.carry(c, far, near, &p.up)
		go p.carry(c, near, far, &p.down)
	}
}

func (p *proxy) carry(c *proxied, to, from net.Conn, count *atomic.Int64) {
	defer c.close()
	buffer := make([]byte, 16<<10)
	for {
		n, err := from.Read(buffer)
		if c.frozen.Load() {
			io.Copy(io.Discard, from) // it looks open, and nothing comes through
			return
		}
		if limit := p.cutAfter.Load(); limit > 0 && c.carried.Add(int64(n)) > limit {
			return
		}
		count.Add(int64(n))
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
		if err != nil {
			return
		}
	}
}

func (c *proxied) close() { c.near.Close(); c.far.Close() }

// cut ends all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.close()
	}
	p.conns = nil
}

// freeze keeps all connections and lets nothing through.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.frozen.Store(true)
	}
	p.conns = nil
}
