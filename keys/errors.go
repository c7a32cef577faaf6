package keys

import "errors"

var (
	// ErrCorrupt means that sealed bytes do not open: they were altered,
	// truncated, reordered or extended, or were sealed under another key or
	// for another purpose (other additional data). AES-GCM cannot tell which.
	ErrCorrupt = errors.New("the sealed bytes do not open: altered, cut short, or sealed under another key or for another purpose")

	// ErrErased means that the patient's data key was destroyed on purpose.
	// The data it sealed cannot be read again, by anyone.
	ErrErased = errors.New("the patient's data key was erased")

	// ErrNoKey means that no data key of that generation was ever made for
	// the patient.
	ErrNoKey = errors.New("the patient has no data key")

	// ErrPermissions means that a key file, or the folder it lies in, is open
	// to other users of the machine.
	ErrPermissions = errors.New("the key file is open to other users")
)
