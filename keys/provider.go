package keys

import "context"

// Provider wraps and unwraps data keys under a master key that it never gives
// away. The master may live in a file ([File]), a hardware module or a remote
// service, hence the contexts.
type Provider interface {
	// ID names the provider and its master key in configuration and audit
	// records. It reveals nothing about the key.
	ID() string

	// Wrap encrypts a data key of 16 to 64 bytes under the newest master key.
	// The same aad must be given to Unwrap.
	Wrap(ctx context.Context, key, aad []byte) ([]byte, error)

	// Unwrap opens what Wrap returned, under whichever master key version
	// wrapped it. It returns ErrCorrupt when the bytes do not open.
	Unwrap(ctx context.Context, wrapped, aad []byte) ([]byte, error)
}
