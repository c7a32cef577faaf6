package gateway

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

func TestOnlySoManyHeadersAreInMemoryAtOnce(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
	for range cap(g.examining) {
		g.examining <- struct{}{}
	}
	spooled := func(seed uint64) *spool {
		s, err := g.newSpool("dimse")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write(chest(t, seed, phantom.Options{})); err != nil {
			t.Fatal(err)
		}
		return s
	}
	first, second := spooled(1), spooled(2)
	defer first.Discard()
	defer second.Discard()
	gone, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := g.receive(gone, vigie.Source{Protocol: "dimse"}, first, announced{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a sender that went while waiting: %v", err)
	}
	taken := make(chan error, 1)
	go func() {
		_, err := g.receive(context.Background(), vigie.Source{Protocol: "dimse"}, second, announced{})
		taken <- err
	}()
	select {
	case err := <-taken:
		t.Fatalf("one more than fits was read: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	<-g.examining
	if err := <-taken; err != nil {
		t.Error(err)
	}
	if n := len(g.examining); n != cap(g.examining)-1 {
		t.Errorf("%d of %d are held after the one that waited is done", n, cap(g.examining))
	}
}

func TestWhatIsNotKeptOfAHeaderDoesNotStayInMemory(t *testing.T) {
	config := testConfig(t)
	g := start(t, config, Options{Diagnoser: newStandIn(t, config.Model, always(0.5))})
	file, err := phantom.Chest(1, phantom.Options{Rows: 64, Columns: 64})
	if err != nil {
		t.Fatal(err)
	}
	file.DataSet.Put(&dicom.Element{Tag: 0x00081200, VR: dicom.UN, Value: make([]byte, 4<<20)})
	s, err := g.newSpool("dimse")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Discard()
	if _, err := s.Write(written(t, file)); err != nil {
		t.Fatal(err)
	}
	if err := s.finish(); err != nil {
		t.Fatal(err)
	}
	_, f, _, err := g.examine(context.Background(), vigie.Source{}, s, announced{})
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for e := range f.header.All() {
		size += weight(e)
	}
	if size > keptHeader {
		t.Errorf("%d bytes of a header stay in memory, want at most %d", size, keptHeader)
	}
}
