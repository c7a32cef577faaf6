//go:build !linux

package dimse

import "syscall"

// acknowledge does nothing: only Linux lets a program do this.
func acknowledge(syscall.RawConn) {}
