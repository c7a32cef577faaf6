package gateway

import (
	"fmt"

	"github.com/vigie/vigie/keys"
)

// Init makes the master key that the configuration names. It never overwrites
// one.
func Init(c *Config) error {
	provider, err := keys.CreateFile(c.Keys)
	if err != nil {
		return fmt.Errorf("gateway: making the master key: %w", err)
	}
	return provider.Close()
}
