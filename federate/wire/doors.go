package wire

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
)

// doors counts the connections of an http.Server, so that nobody can hold more than
// a few: those of a site that has shown its certificate, and those of strangers. The
// oldest gives way, because a site that comes back after a broken link has left one
// behind.
type doors struct {
	limits Limits

	mu        sync.Mutex
	strangers []net.Conn // oldest first
	sites     map[string][]net.Conn
	of        map[net.Conn]string
}

type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

func (d *doors) state(c net.Conn, state http.ConnState) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch state {
	case http.StateNew:
		d.strangers = limit(append(d.strangers, c), d.limits.Strangers)
	case http.StateClosed, http.StateHijacked:
		same := func(other net.Conn) bool { return other == c }
		if site, known := d.of[c]; known {
			delete(d.of, c)
			if d.sites[site] = slices.DeleteFunc(d.sites[site], same); len(d.sites[site]) == 0 {
				delete(d.sites, site)
			}
			return
		}
		d.strangers = slices.DeleteFunc(d.strangers, same)
	}
}

// enter says that the connection of a request is a site's.
func (d *doors) enter(ctx context.Context, site string) {
	c, counted := ctx.Value(connKey{}).(net.Conn)
	if !counted { // another http.Server
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, known := d.of[c]; known {
		return
	}
	at := slices.IndexFunc(d.strangers, func(other net.Conn) bool { return other == c })
	if at < 0 {
		return // it is being ended
	}
	d.strangers = slices.Delete(d.strangers, at, at+1)
	d.of[c] = site
	d.sites[site] = append(d.sites[site], c)
	for _, oldest := range d.sites[site][:max(0, len(d.sites[site])-d.limits.Links)] {
		go oldest.Close() // which calls state
	}
}

// limit ends the oldest connections.
func limit(all []net.Conn, most int) []net.Conn {
	for len(all) > most {
		go all[0].Close()
		all = all[1:]
	}
	return all
}
