package probe

import (
	"context"
	"fmt"

	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// Set reads the labelled examples that a test names, brought to the size that
// the model wants where the data leave it open, with the digest of the data and
// the names of the model's classes, where they are known.
func (m *Model) Set(ctx context.Context, t Test) (set *train.Set, dataDigest string, classes []string, err error) {
	if len(m.inputs()) == 0 {
		return nil, "", nil, fmt.Errorf("probe: reading data for %s: %w: it has no input", m.Path, ErrAsk)
	}
	options, err := m.ask(t)
	if err != nil {
		return nil, "", nil, err
	}
	data, err := studies.Open(ctx, options)
	if err != nil {
		return nil, "", nil, err
	}
	if set, err = data.Set(t.Split); err != nil {
		return nil, "", nil, fmt.Errorf("probe: reading %s: %w", t.Data, err)
	}
	classes, _, err = train.Described(m.Graph)
	if m.Package != nil {
		classes = nil
		for _, l := range m.Package.Manifest.Output.Labels {
			classes = append(classes, l.Name)
		}
	}
	if classes == nil {
		classes = set.ClassNames
	}
	return set, data.Digest, classes, err
}

// Digest is the package's digest, or SHA-256 of the file.
func (m *Model) Digest() (string, error) {
	if m.Package != nil {
		return string(m.Package.Digest), nil
	}
	return digest(m.Path)
}
