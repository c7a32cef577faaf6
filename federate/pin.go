package federate

import (
	"bytes"
	"fmt"
	"slices"
)

// pin is what a site has agreed to open last: about which weights, and among which
// sites. Sites train the same way again, so that the difference of two sums of one
// round of the terms, over other sites, would be those sites' updates. A site
// therefore trains for a round in any number of attempts, and opens one sum.
type pin struct {
	Index     int      `json:"index"`
	Model     []byte   `json:"model"`
	Survivors []string `json:"survivors"`
}

// pinned refuses an order to train that does not fit what was agreed to before;
// survivors are nil until they are known.
func (s *Site) pinned(o Order, survivors []string) error {
	p := s.keep.Pinned
	switch {
	case o.Question != nil || p == nil || o.Index > p.Index:
		return nil
	case o.Index < p.Index:
		return fmt.Errorf("%w: round %d was opened, and is followed by no earlier one", ErrOrder, p.Index+1)
	case !bytes.Equal(o.Model, p.Model):
		return fmt.Errorf("%w: round %d was opened about other weights", ErrOrder, p.Index+1)
	case survivors != nil && !slices.Equal(survivors, p.Survivors):
		return fmt.Errorf("%w: round %d was opened among other sites; the difference of the sums would be their updates", ErrOrder, p.Index+1)
	}
	return nil
}

// pin agrees to open the sum of the survivors in the round that is under way, which
// is kept before it is said.
func (s *Site) pin(survivors []string) error {
	o := s.keep.Order
	if err := s.pinned(o, survivors); err != nil || o.Question != nil {
		return err
	}
	s.keep.Pinned = &pin{o.Index, o.Model, slices.Clone(survivors)}
	return nil
}

// quorate refuses to train for, and to open a sum of, fewer sites than the quorum:
// a server could ask all and let few enter.
func (s *Site) quorate(names []string) error {
	if least := s.Terms.Least(len(s.Members)); s.Terms.together(s.keep.Order, len(s.Members)) && len(names) < least {
		return fmt.Errorf("%w: a sum of %d sites; the terms want %d of %d in it", ErrOrder, len(names), least, len(s.Members))
	}
	return nil
}
