package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/audit"
	"github.com/vigie/vigie/keys"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/deidentify"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/store"
)

// Casebook is what a site knows: its cases, the sealed objects behind them,
// and the log that proves what happened. The gateway works on one, and so do
// the commands with which a person reviews a case or verifies the log, in a
// process of their own.
type Casebook struct {
	config       *Config
	configDigest vigie.Digest
	logger       *slog.Logger
	store        *store.Store
	ring         *keys.Ring
	profile      *deidentify.Profile
	log          *audit.Log
	model        *model.Package // nil until openModel
	now          func() time.Time
	closers      []func() error
}

// StateFile returns the path of a file in the configuration's state folder.
func (c *Config) StateFile(names ...string) string {
	return filepath.Join(append([]string{c.State}, names...)...)
}

// OpenCasebook opens the store, the keys and the log that the configuration
// names. Close it.
func OpenCasebook(ctx context.Context, config *Config, logger *slog.Logger) (*Casebook, error) {
	return openCasebook(ctx, config, logger, nil)
}

func openCasebook(ctx context.Context, config *Config, logger *slog.Logger, files store.FileSystem) (_ *Casebook, err error) {
	b := &Casebook{config: config, logger: logger, now: time.Now}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	if b.configDigest, err = config.Digest(); err != nil {
		return nil, err
	}
	provider, err := keys.OpenFile(config.Keys)
	if err != nil {
		return nil, fmt.Errorf("gateway: opening the master key (make one with vigie gateway init): %w", err)
	}
	b.closers = append(b.closers, provider.Close)
	b.store, err = store.Open(ctx, store.Config{
		URL: config.Store, BlobDir: config.StateFile("objects"), Files: files, Logger: slog.New(atLeast{slog.LevelWarn, logger.Handler()}),
		JobTimeout: config.Enclave.Timeout + jobSlack,
	})
	if err != nil {
		return nil, err
	}
	b.closers = append(b.closers, b.store.Close)
	b.ring = keys.NewRing(provider, b.store)
	b.closers = append(b.closers, func() error { b.ring.Close(); return nil })
	secrets, err := loadSecrets(ctx, b.store, provider)
	if err != nil {
		return nil, err
	}
	if b.profile, err = deidentify.New(secrets.pseudonyms); err != nil {
		return nil, err
	}
	if b.log, err = openLog(b, secrets); err != nil {
		return nil, err
	}
	return b, nil
}

// atLeast passes on what is serious enough. The job queue reports its counts
// every few seconds, which is what /metrics is for.
type atLeast struct {
	level slog.Level
	slog.Handler
}

func (a atLeast) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= a.level && a.Handler.Enabled(ctx, level)
}

func (a atLeast) WithAttrs(attrs []slog.Attr) slog.Handler {
	return atLeast{a.level, a.Handler.WithAttrs(attrs)}
}

func (a atLeast) WithGroup(name string) slog.Handler {
	return atLeast{a.level, a.Handler.WithGroup(name)}
}

// Close closes everything in the opposite order.
func (b *Casebook) Close() error {
	var errs []error
	for i := len(b.closers) - 1; i >= 0; i-- {
		errs = append(errs, b.closers[i]())
	}
	b.closers = nil
	return errors.Join(errs...)
}

// Case returns a case with its finding and its human decision opened.
func (b *Casebook) Case(ctx context.Context, id vigie.CaseID) (*vigie.Case, error) {
	var c *vigie.Case
	sealed := map[string][]byte{}
	err := b.store.View(ctx, func(tx *store.Tx) (err error) {
		if c, err = tx.Case(id); err != nil {
			return err
		}
		refused, err := tx.Deliveries(id, store.DeliveryRefused)
		if err != nil {
			return err
		}
		c.Refusals = refusals(refused)[id]
		if c.Erased, err = erasedAt(tx, id); err != nil {
			return err
		}
		for _, name := range []string{valueFinding, valueVerdict, valueDecision} {
			value, err := tx.Value(id, name)
			switch {
			case err == nil:
				sealed[name] = value
			case !errors.Is(err, store.ErrNotFound):
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c, b.openValues(ctx, c, sealed)
}

// Cases lists cases without their sealed values.
func (b *Casebook) Cases(ctx context.Context, filter store.Filter) ([]vigie.Case, error) {
	var cases []vigie.Case
	err := b.store.View(ctx, func(tx *store.Tx) (err error) {
		cases, err = tx.Cases(filter)
		return err
	})
	return cases, err
}

// openSecret opens what an object's row keeps sealed.
func (b *Casebook) openSecret(ctx context.Context, patient vigie.PatientPseudonym, o *store.Object) (objectSecret, error) {
	data, err := b.ring.Open(ctx, patient, o.Sealed, rowAAD(o.Blob))
	if err != nil {
		return objectSecret{}, fmt.Errorf("gateway: opening the key of an object of case %s: %w", o.Case, err)
	}
	return decodeObjectSecret(data)
}

// openHeader returns the attributes of an object that are kept beside it.
func (b *Casebook) openHeader(ctx context.Context, patient vigie.PatientPseudonym, o *store.Object) (*dicom.DataSet, error) {
	secret, err := b.openSecret(ctx, patient, o)
	if err != nil {
		return nil, err
	}
	defer keys.Zero(secret.key)
	return readHeader(secret.header)
}

// openObject returns the plaintext of a stored object.
func (b *Casebook) openObject(ctx context.Context, patient vigie.PatientPseudonym, o *store.Object) (io.ReadCloser, error) {
	secret, err := b.openSecret(ctx, patient, o)
	if err != nil {
		return nil, err
	}
	defer keys.Zero(secret.key)
	blob, err := b.store.Blobs().Open(o.Blob)
	if err != nil {
		return nil, fmt.Errorf("gateway: opening an object of case %s: %w", o.Case, err)
	}
	plain, err := keys.NewReader(blob, secret.key, objectAAD(o.Blob))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("gateway: opening an object of case %s: %w", o.Case, err), blob.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{plain, blob}, nil
}

// Model returns the model package of the site, which Open has opened.
func (g *Gateway) Model() *model.Package { return g.model }
