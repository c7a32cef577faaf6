package dimse

import (
	"container/list"
	"net"
	"sync"
)

// lobby holds the connections that are not associations: those that have not
// asked yet and those that are being seen off. It is small, and a newcomer
// pushes the oldest out. So a crowd that connects and stays silent cannot keep
// out a peer that gets through its handshake in the usual milliseconds.
type lobby struct {
	mu    sync.Mutex
	limit int
	order *list.List // of net.Conn, oldest first
}

func newLobby(limit int) *lobby { return &lobby{limit: limit, order: list.New()} }

// enter admits a connection and returns the function that takes it out again.
func (b *lobby) enter(conn net.Conn) (leave func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.order.Len() >= b.limit {
		oldest := b.order.Front()
		b.order.Remove(oldest)
		oldest.Value.(net.Conn).Close()
	}
	place := b.order.PushBack(conn)
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.order.Remove(place) // does nothing when pushed out before
	}
}
