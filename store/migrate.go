package store

import (
	"context"
	"embed"
	"fmt"
	"io/fs"

	"github.com/pressly/goose/v3"
	"github.com/riverqueue/river/rivermigrate"
)

//go:embed migrations
var migrations embed.FS

// migrate brings our tables and the job queue's up to date.
func (s *Store) migrate(ctx context.Context) error {
	unlock, err := s.db.migrateLock(ctx)
	if err != nil {
		return fmt.Errorf("store: waiting for another process to migrate: %w", mapped(err))
	}
	defer unlock()
	files, err := fs.Sub(migrations, "migrations/"+s.db.name())
	if err != nil {
		return fmt.Errorf("store: reading the migrations: %w", err)
	}
	dialect := goose.DialectPostgres
	if s.db.name() == "sqlite" {
		dialect = goose.DialectSQLite3
	}
	ours, err := goose.NewProvider(dialect, s.db.writer(), files,
		goose.WithDisableGlobalRegistry(true), goose.WithSlog(s.logger))
	if err != nil {
		return fmt.Errorf("store: reading the migrations: %w", err)
	}
	if _, err := ours.Up(ctx); err != nil {
		return fmt.Errorf("store: migrating the schema: %w", mapped(err))
	}
	queue, err := rivermigrate.New(s.db.riverDriver(), &rivermigrate.Config{Logger: s.logger})
	if err != nil {
		return fmt.Errorf("store: reading the migrations of the job queue: %w", err)
	}
	if _, err := queue.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("store: migrating the job queue: %w", mapped(err))
	}
	return nil
}
