package dimse

import "syscall"

// acknowledge sends a pending acknowledgement now (TCP_QUICKACK, tcp(7); the
// option does not last). A failure costs time only.
func acknowledge(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1)
	})
}
