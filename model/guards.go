package model

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/vigie/vigie"
)

// GuardsFile holds what the input guards were fitted to (package guard); a
// package may do without.
const GuardsFile = "guards.safetensors"

// VerifiersFile holds what the output verifiers were fitted to (package guard),
// and how many cases they send to people; a package may do without.
const VerifiersFile = "verifiers.json"

// fitted are the files that hold what was fitted to the rest of the package.
var fitted = []string{GuardsFile, VerifiersFile}

// ErrNoVerifiers is returned for a package to which no verifiers were fitted.
var ErrNoVerifiers = errors.New("the package holds no output verifiers: fit them with vigie model fit")

// ErrNoGuards is returned for a package to which no guards were fitted.
var ErrNoGuards = errors.New("the package holds no guard statistics: fit them with vigie model fit")

// subject is the digest that a package has without what was fitted to it: what
// guards and verifiers are fitted to, and what their files name.
func subject(files map[string][]byte) vigie.ModelDigest {
	rest := make(map[string][]byte, len(files))
	for name, data := range files {
		if !slices.Contains(fitted, name) {
			rest[name] = data
		}
	}
	return digestOf(list(rest))
}

// Guards returns the package's guard statistics and the digest that the package
// has without what was fitted to it, which they must name. It reads the folder
// again, and refuses one that is no longer what was opened. ErrNoGuards: there are
// none; the digest is valid all the same.
func (p *Package) Guards() ([]byte, vigie.ModelDigest, error) {
	return p.fitted("guards", GuardsFile, ErrNoGuards)
}

// Verifiers returns the package's output verifiers as Guards returns its guards.
// ErrNoVerifiers: there are none; the digest is valid all the same.
func (p *Package) Verifiers() ([]byte, vigie.ModelDigest, error) {
	return p.fitted("verifiers", VerifiersFile, ErrNoVerifiers)
}

func (p *Package) fitted(what, name string, none error) ([]byte, vigie.ModelDigest, error) {
	files, err := contents(p.Dir)
	if err != nil {
		return nil, "", err
	}
	digest, err := verify(files)
	if err == nil && digest != p.Digest {
		err = fmt.Errorf("%w: its digest was %s when it was opened and is %s", ErrDigest, p.Digest, digest)
	}
	if err != nil {
		return nil, "", fmt.Errorf("model: reading the %s of package %s: %w", what, p.Dir, err)
	}
	data, there := files[name]
	if !there {
		return nil, subject(files), fmt.Errorf("model: reading the %s of package %s: %w", what, p.Dir, none)
	}
	return data, subject(files), nil
}

// WriteFitted puts what was fitted to the package into it, guards and verifiers,
// and seals it anew: its digest changes, because they decide which answers count.
// Of nil there will be no file.
func (p *Package) WriteFitted(guards, verifiers []byte) (vigie.ModelDigest, error) {
	if _, _, err := p.Guards(); err != nil && !errors.Is(err, ErrNoGuards) {
		return "", err
	}
	for _, file := range []struct {
		name string
		data []byte
	}{{GuardsFile, guards}, {VerifiersFile, verifiers}} {
		if len(file.data) > maxFile {
			return "", fmt.Errorf("model: writing %s of package %s: %w: %d bytes, the limit is %d", file.name, p.Dir, ErrFile, len(file.data), maxFile)
		}
	}
	for _, file := range []struct {
		name string
		data []byte
	}{{GuardsFile, guards}, {VerifiersFile, verifiers}} {
		path := filepath.Join(p.Dir, file.name)
		var err error
		if file.data != nil {
			err = replace(path, file.data)
		} else if err = os.Remove(path); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		if err != nil {
			return "", fmt.Errorf("model: writing %s of package %s: %w", file.name, p.Dir, err)
		}
	}
	return Seal(p.Dir)
}
