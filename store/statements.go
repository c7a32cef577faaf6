package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"

	"modernc.org/sqlite"
)

// maxStatements is how many compiled statements a SQLite connection keeps.
// Ours and the job queue's together are fewer.
const maxStatements = 192

// openCached opens a SQLite pool whose connections keep the statements they
// compiled. database/sql compiles a statement anew for every Exec in a
// transaction, and for SQLite that cost more than running it: half of the time
// of a commit. PostgreSQL's driver keeps its statements by itself.
func openCached(dsn string) (*sql.DB, error) {
	connector, err := sqlite.NewConnector(dsn)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(cachingConnector{connector}), nil
}

type cachingConnector struct{ driver.Connector }

func (c cachingConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	full, ok := conn.(fullConn)
	if !ok {
		conn.Close()
		return nil, errors.New("store: the SQLite driver's connection lacks a method that this version of Vigie needs")
	}
	return &cachingConn{fullConn: full, statements: make(map[string]*cachedStatement)}, nil
}

// fullConn is what a connection of modernc.org/sqlite documents to implement.
type fullConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// cachingConn is one connection; database/sql never uses it concurrently.
type cachingConn struct {
	fullConn
	statements map[string]*cachedStatement
	tick       uint64
}

type cachedStatement struct {
	driver.Stmt
	used uint64
	busy bool // its rows are still being read
}

// Unwrap returns the SQLite driver's own connection.
func (c *cachingConn) Unwrap() driver.Conn { return c.fullConn }

func (c *cachingConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	s, err := c.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return c.fullConn.ExecContext(ctx, query, args)
	}
	return s.Stmt.(driver.StmtExecContext).ExecContext(ctx, args)
}

func (c *cachingConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	s, err := c.statement(ctx, query)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return c.fullConn.QueryContext(ctx, query, args)
	}
	rows, err := s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
	if err != nil {
		return nil, err
	}
	s.busy = true
	return &cachedRows{rows, s}, nil
}

// statement returns the compiled statement, or nil if the query must be run
// without one: its kind is not worth keeping, or it is being read already.
func (c *cachingConn) statement(ctx context.Context, query string) (*cachedStatement, error) {
	c.tick++
	if s, ok := c.statements[query]; ok {
		if s.busy {
			return nil, nil
		}
		s.used = c.tick
		return s, nil
	}
	if !worthKeeping(query) {
		return nil, nil
	}
	if len(c.statements) >= maxStatements {
		c.evict()
	}
	compiled, err := c.fullConn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	s := &cachedStatement{Stmt: compiled, used: c.tick}
	c.statements[query] = s
	return s, nil
}

func (c *cachingConn) evict() {
	var oldest string
	for query, s := range c.statements {
		if !s.busy && (oldest == "" || s.used < c.statements[oldest].used) {
			oldest = query
		}
	}
	if oldest != "" {
		c.statements[oldest].Close()
		delete(c.statements, oldest)
	}
}

func (c *cachingConn) Close() error {
	var err error
	for _, s := range c.statements {
		err = errors.Join(err, s.Close())
	}
	c.statements = nil
	return errors.Join(err, c.fullConn.Close())
}

// worthKeeping reports whether a query reads or changes rows. What changes the
// schema or the connection runs once.
func worthKeeping(query string) bool {
	for {
		query = strings.TrimLeft(query, " \t\r\n")
		comment, ok := strings.CutPrefix(query, "--")
		if !ok {
			break
		}
		_, query, _ = strings.Cut(comment, "\n")
	}
	word, _, _ := strings.Cut(strings.ReplaceAll(query[:min(len(query), 16)], "\n", " "), " ")
	switch strings.ToUpper(word) {
	case "SELECT", "INSERT", "UPDATE", "DELETE", "WITH", "SAVEPOINT", "RELEASE", "ROLLBACK":
		return true
	}
	return false
}

// cachedRows gives its statement back when it is closed.
type cachedRows struct {
	driver.Rows
	statement *cachedStatement
}

func (r *cachedRows) Close() error {
	r.statement.busy = false
	return r.Rows.Close()
}
