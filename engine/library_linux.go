package engine

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// libraryFile returns an anonymous file in memory: nothing is written to a
// disk that may be full, read-only or mounted noexec.
func libraryFile() (*os.File, func() error, error) {
	const name = "libonnxruntime.so"
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // kernels before 6.3 do not know MFD_EXEC
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	return file, file.Close, nil
}

// sealLibrary makes the file immutable, so that what was verified is what the
// loader maps, and returns the path to load it by.
func sealLibrary(file *os.File) (string, error) {
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return "", fmt.Errorf("fcntl F_ADD_SEALS: %w", err)
	}
	return fmt.Sprintf("/proc/self/fd/%d", file.Fd()), nil
}
