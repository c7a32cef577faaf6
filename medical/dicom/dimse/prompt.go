package dimse

import (
	"net"
	"syscall"
)

// promptConn acknowledges what it received before it waits for more.
//
// Much DICOM software writes a PDU's header and its body separately and leaves
// Nagle's algorithm on (dcmtk as Debian builds it, hence Orthanc): the body
// waits for our acknowledgement of the header, which TCP delays by 40 ms. That
// happens several times per object, in both directions.
type promptConn struct {
	*net.TCPConn
	raw syscall.RawConn
}

// prompt wraps a TCP connection; any other is returned as it is.
func prompt(conn net.Conn) net.Conn {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return conn
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return conn
	}
	return &promptConn{tcp, raw}
}

// Read implements net.Conn.
func (c *promptConn) Read(p []byte) (int, error) {
	acknowledge(c.raw)
	return c.TCPConn.Read(p)
}
