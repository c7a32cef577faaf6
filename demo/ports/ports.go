// Package ports finds addresses on this machine at which something will
// listen a moment later: a gateway in another process, a peer's program, a
// server that is killed and started again.
//
// To listen on port 0, close, and use the number is the usual way and fails by
// chance: the port lies in the range from which the kernel takes the ports of
// outgoing connections, so that in the meantime any of them may have it, even
// the one that dials that very address and so connects to itself. Reserve
// takes a port below that range, and marks it for as long as the process lives,
// so that of several processes that look for ports none gets another's:
//
//	addresses, err := ports.Reserve(2)
//
// It knows nothing of what will listen.
package ports

import (
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"strconv"
	"sync"
)

// Ports from lowest to highest are registered to nobody in particular and are
// not handed out to outgoing connections: those of Linux begin at 32768, those
// of macOS and the IANA's range at 49152.
const (
	lowest  = 12000
	highest = 32000
	tries   = 1000 // ports looked at for each address
)

var reserved struct {
	mu    sync.Mutex
	ports map[int]net.Listener // the mark; nil where there are none
}

// Reserve returns n different addresses on 127.0.0.1 on which nobody listens,
// and which it returns to no other caller: of this process, and on Linux of any
// process in the same network namespace, until this one ends.
func Reserve(n int) ([]string, error) {
	reserved.mu.Lock()
	defer reserved.mu.Unlock()
	if reserved.ports == nil {
		reserved.ports = map[int]net.Listener{}
	}
	var out []string
	for range n {
		address, err := one()
		if err != nil {
			return nil, err
		}
		out = append(out, address)
	}
	return out, nil
}

func one() (string, error) {
	var last error
	for range tries {
		port := lowest + rand.IntN(highest-lowest)
		if _, taken := reserved.ports[port]; taken {
			continue
		}
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		mark, err := marked(port)
		if err != nil {
			last = err
			continue
		}
		if err := free(address); err != nil {
			last = err
			if mark != nil {
				mark.Close()
			}
			continue
		}
		reserved.ports[port] = mark
		return address, nil
	}
	return "", fmt.Errorf("ports: none of %d ports from %d to %d is free: %w", tries, lowest, highest, last)
}

// marked binds a name in Linux's abstract socket namespace (unix(7)), which
// vanishes with the process. Elsewhere there is no such thing, and no mark.
func marked(port int) (net.Listener, error) {
	if runtime.GOOS != "linux" {
		return nil, nil
	}
	return net.Listen("unix", "@vigie-port-"+strconv.Itoa(port))
}

func free(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return l.Close()
}
