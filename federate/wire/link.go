package wire

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/secagg"
)

// OrderKind is the kind of the calls that carry a round's orders.
const OrderKind = "order"

// Link is a site as a coordinator reaches it through the server, for one run.
func Link(s *Server, run, site string) federate.Link { return &link{server: s, run: run, site: site} }

type link struct {
	server    *Server
	run, site string
	numbers   atomic.Int64 // that the question asks for which the round began with; 0: it is of training
}

var _ federate.Link = (*link)(nil)

func (l *link) Name() string { return l.site }

// room is how many bytes a site's vector may have: of 32 bits for every variable, for
// SCAFFOLD's, for weight and loss, or for each limb of a question's numbers. It comes
// in one step alone.
func (l *link) room(o federate.Order) int64 {
	switch {
	case o.Step == federate.StepKeys && o.Question == nil:
		l.numbers.Store(0)
	case o.Step == federate.StepKeys:
		l.numbers.Store(int64(min(max(o.Question.Numbers, 0), federate.MaxNumbers)))
	case o.Step == federate.StepTrain && o.Weights != nil:
		return 4 * max(int64(len(o.Weights.Variables)+len(o.Weights.Control)+2), limbs*l.numbers.Load())
	}
	return 0
}

// limbs are the numbers of 32 bits that one of an answer is written in.
const limbs = 3

func (l *link) Ask(ctx context.Context, o federate.Order) (federate.Answer, error) {
	fail := func(err error) (federate.Answer, error) {
		return federate.Answer{}, fmt.Errorf("wire: ordering %q of %q in round %d: %w", o.Step, l.site, o.Round, err)
	}
	body, err := json.Marshal(o)
	if err != nil {
		return fail(err)
	}
	c := Call{Run: l.run, Kind: OrderKind, Body: body, Room: l.room(o)}
	hash := sha256.New()
	hash.Write([]byte(l.run + "\x00"))
	hash.Write(body)
	if o.Weights != nil {
		c.Bulk = weights(o.Weights)
		hash.Write(c.Bulk.Digest[:])
	}
	// the same order is the same call, so that its answer need not be made twice
	c.ID = hex.EncodeToString(hash.Sum(nil)[:16])
	reply, err := l.server.Ask(ctx, l.site, c)
	if errors.Is(err, ErrRefused) {
		return fail(fmt.Errorf("%w: %w", federate.ErrOrder, err))
	}
	if err != nil {
		return fail(err)
	}
	var answer federate.Answer
	if err := json.Unmarshal(reply.Body, &answer); err != nil {
		reply.Bulk.Close()
		return fail(err)
	}
	if !reply.Bulk.None() {
		content, err := reply.Bulk.Open()
		if err != nil {
			reply.Bulk.Close()
			return fail(err)
		}
		answer.Spool = spool{content, reply.Bulk}
	}
	return answer, nil
}

// weights are a bulk part as they are: they are written while they are sent.
func weights(w *federate.Weights) Bulk {
	length := 4 * int64(w.Words())
	return Bulk{Length: length, Digest: w.Packed(), open: func() (Content, error) { return unclosed{words{w.Words(), w.PutWords}}, nil }}
}

// spool is a vector that has arrived.
type spool struct {
	Content
	bulk Bulk
}

func (s spool) Size() int64               { return s.bulk.Length }
func (s spool) Digest() [sha256.Size]byte { return s.bulk.Digest }

func (s spool) Close() error {
	err := s.Content.Close()
	if removing := s.bulk.Close(); err == nil {
		err = removing
	}
	return err
}

// Orders is the handler of a site that takes part in rounds.
func Orders(site *federate.Site) Handler {
	return func(ctx context.Context, c Call) (Reply, error) {
		fail := func(err error) (Reply, error) {
			return Reply{}, fmt.Errorf("wire: following an order of run %q: %w", c.Run, err)
		}
		if c.Kind != OrderKind {
			return fail(fmt.Errorf("%w: a call to %s, where orders are followed", ErrRefused, c.Kind))
		}
		o, err := readOrder(c.Body)
		if err != nil {
			return fail(fmt.Errorf("%w: %w", ErrRefused, err))
		}
		if !c.Bulk.None() {
			content, err := c.Bulk.Open()
			if err != nil {
				return fail(err)
			}
			defer content.Close()
			variables, control := site.SizeOfWeights()
			if o.Weights, err = federate.ReadWeights(io.NewSectionReader(content, 0, c.Bulk.Length), c.Bulk.Digest, variables, control); err != nil {
				return fail(fmt.Errorf("%w: %w", ErrRefused, err))
			}
		}
		answer, err := site.Obey(ctx, o)
		for _, refusal := range []error{federate.ErrOrder, secagg.ErrRound, secagg.ErrForged, secagg.ErrStep, secagg.ErrTooFew} {
			if errors.Is(err, refusal) {
				return fail(fmt.Errorf("%w: %w", ErrRefused, err))
			}
		}
		if err != nil {
			return fail(err)
		}
		reply := Reply{}
		if reply.Body, err = json.Marshal(answer); err != nil {
			return fail(err)
		}
		if answer.Vector != nil {
			if answer.Round.Bits != 0 {
				reply.Bulk = Bytes(answer.Round.Pack(answer.Vector))
			} else {
				reply.Bulk = numbers(answer.Vector)
				reply.Bulk.Digest = answer.Sum
			}
		}
		return reply, nil
	}
}

// readOrder reads an order strictly: one that says more than this site knows is
// none.
func readOrder(body []byte) (federate.Order, error) {
	var o federate.Order
	decoder := json.NewDecoder(bytes.NewReader(body))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&o); err != nil {
		return federate.Order{}, fmt.Errorf("wire: reading an order: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return federate.Order{}, errors.New("wire: reading an order: bytes after its end")
	}
	return o, nil
}
