package model

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/vigie/vigie"
)

// GuardsFile holds what the input guards were fitted to (package guard); a
// package may do without.
const GuardsFile = "guards.safetensors"

// ErrNoGuards is returned for a package to which no guards were fitted.
var ErrNoGuards = errors.New("the package holds no guard statistics: fit them with vigie model fit")

// subject is the digest that a package has without its guards' file: what the
// guards are fitted to, and what their file names.
func subject(files map[string][]byte) vigie.ModelDigest {
	rest := make(map[string][]byte, len(files))
	for name, data := range files {
		if name != GuardsFile {
			rest[name] = data
		}
	}
	return digestOf(list(rest))
}

// Guards returns the package's guard statistics and the digest that the package
// has without them, which they must name. It reads the folder again, and refuses
// one that is no longer what was opened. ErrNoGuards: there are none; the digest
// is valid all the same.
func (p *Package) Guards() ([]byte, vigie.ModelDigest, error) {
	files, err := contents(p.Dir)
	if err != nil {
		return nil, "", err
	}
	digest, err := verify(files)
	if err == nil && digest != p.Digest {
		err = fmt.Errorf("%w: its digest was %s when it was opened and is %s", ErrDigest, p.Digest, digest)
	}
	if err != nil {
		return nil, "", fmt.Errorf("model: reading the guards of package %s: %w", p.Dir, err)
	}
	data, there := files[GuardsFile]
	if !there {
		return nil, subject(files), fmt.Errorf("model: reading the guards of package %s: %w", p.Dir, ErrNoGuards)
	}
	return data, subject(files), nil
}

// WriteGuards puts guard statistics into the package and seals it anew: its
// digest changes, because the guards decide which answers count.
func (p *Package) WriteGuards(data []byte) (vigie.ModelDigest, error) {
	if len(data) > maxFile {
		return "", fmt.Errorf("model: writing the guards of package %s: %w: %d bytes, the limit is %d", p.Dir, ErrFile, len(data), maxFile)
	}
	if _, _, err := p.Guards(); err != nil && !errors.Is(err, ErrNoGuards) {
		return "", err
	}
	if err := replace(filepath.Join(p.Dir, GuardsFile), data); err != nil {
		return "", fmt.Errorf("model: writing the guards of package %s: %w", p.Dir, err)
	}
	return Seal(p.Dir)
}
