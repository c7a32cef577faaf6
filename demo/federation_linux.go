package demo

import (
	"os/exec"
	"syscall"
)

// dieWithParent makes a process end if this one is killed.
func dieWithParent(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
