package wire

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Errors that callers branch on. Each is wrapped with what happened.
var (
	// ErrRefused is returned for a call that the site does not follow.
	ErrRefused = errors.New("the site refused")
	// ErrFailed is returned for a call that the site followed without success.
	ErrFailed = errors.New("the site failed")
	// ErrSilent is what a handler returns that answers nothing: not even that it has
	// failed leaves the site.
	ErrSilent = errors.New("nothing is answered")
	// ErrReplaced ends a client whose site has connected once more, from
	// elsewhere. One of the two processes has to stop.
	ErrReplaced = errors.New("another process has connected with this site's certificate")
	// ErrVersion ends a client whose server speaks another version of the protocol.
	ErrVersion = errors.New("the server speaks another version of this protocol")
	// ErrCall is returned for a call that cannot be sent.
	ErrCall = errors.New("not a call that can be sent")
)

// Call is what the server asks of a site.
type Call struct {
	// ID says which calls are the same: one that comes again gets the same answer.
	// Empty is a new one.
	ID   string
	Run  string // which run it belongs to
	Kind string
	Body json.RawMessage
	Bulk Bulk
	// Room is how many bytes the bulk part of the answer may have; 0: it has none.
	Room int64
}

// Reply is what a site answers. Whoever gets one closes its Bulk.
type Reply struct {
	Body json.RawMessage
	Bulk Bulk
}

// Handler answers a call at a site. The call's Bulk is there until it returns. An
// error that wraps ErrRefused is told as one, of one that wraps ErrSilent nothing
// is told; any other means that the site has failed. It may be called for the same call again after the site's process has
// died, and for different calls at a time.
type Handler func(ctx context.Context, c Call) (Reply, error)

// Limits are what one side takes from the other.
type Limits struct {
	Message int   // bytes of a message; 0: 32 MiB
	Bulk    int64 // bytes of a bulk part; 0: 4 GiB
	Calls   int   // calls that wait at one site, or are at work there, at a time; 0: 64
	// Links are the connections that one site may have to a server at a time, Strangers
	// those of whoever has not shown a site's certificate yet; one more ends the
	// oldest. 0: 8, and 1,024.
	Links, Strangers int
	Alive            time.Duration // between signs of life on an idle link, three of which may be missing; 0: 15 s
	Stall            time.Duration // how long a bulk part may not move before its transfer is ended; 0: 30 s
}

func (l Limits) filled() Limits {
	if l.Message <= 0 {
		l.Message = 32 << 20
	}
	if l.Bulk <= 0 {
		l.Bulk = 4 << 30
	}
	if l.Calls <= 0 {
		l.Calls = 64
	}
	if l.Links <= 0 {
		l.Links = 8
	}
	if l.Strangers <= 0 {
		l.Strangers = 1024
	}
	if l.Alive <= 0 {
		l.Alive = 15 * time.Second
	}
	if l.Stall <= 0 {
		l.Stall = 30 * time.Second
	}
	return l
}

const (
	version    = 1
	maxName    = 64      // of ids, runs and kinds
	maxFailure = 4 << 10 // bytes of the text of an error
	downPath   = "/vigie.federate.wire.v1/down/"
	upPath     = "/vigie.federate.wire.v1/up/"
	// offsetHeader says from which byte on, or how many are there; lengthHeader
	// how many there will be.
	offsetHeader = "Vigie-Offset"
	lengthHeader = "Vigie-Length"
	// callHeader says which call an answer is of, before anything of it is read.
	callHeader = "Vigie-Call"
)

// validName says whether an id, run or kind is one: it becomes part of paths and
// file names.
func validName(name string) bool {
	return name != "" && len(name) <= maxName && name[0] != '.' &&
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") == ""
}

func (c Call) check(l Limits) error {
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("%w: %s", ErrCall, fmt.Sprintf(format, arguments...))
	}
	switch {
	case !validName(c.ID) || !validName(c.Run) || !validName(c.Kind):
		return fail("id %q, run %q, kind %q: each needs 1 to %d of letters, digits, '-', '_' and '.'", c.ID, c.Run, c.Kind, maxName)
	case len(c.Body) == 0 || !json.Valid(c.Body):
		return fail("its body is not JSON")
	case len(c.Body) > l.Message-1024: // the rest of the message fits, too
		return fail("a body of %d bytes, at most %d are allowed", len(c.Body), l.Message-1024)
	case c.Bulk.Length > l.Bulk || c.Room < 0 || c.Room > l.Bulk:
		return fail("%d bytes down and %d up, at most %d are allowed", c.Bulk.Length, c.Room, l.Bulk)
	}
	return nil
}

// shorten makes a text fit to be sent.
func shorten(text string) string {
	if len(text) > maxFailure {
		text = text[:maxFailure]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == utf8.RuneError {
			return ' '
		}
		return r
	}, text)
}
