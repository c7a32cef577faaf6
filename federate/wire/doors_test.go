package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/vigie/vigie/federate/wire/protocol"
)

func TestAnAnswerThatNobodyWaitsForIsNotRead(t *testing.T) {
	st := newStage(t, nil)
	lyon := st.raw(st.authority.issue(t, SiteID("north", "lyon")), true)
	header := func(id string) map[string]string {
		return map[string]string{"Content-Type": "application/proto", callHeader: id}
	}
	post := func(id string, body io.Reader) int {
		return lyon.status("POST", protocol.FederationAnswerProcedure, header(id), body)
	}
	endless := func() io.Reader { // a status comes before such a body was read
		body, end := io.Pipe()
		t.Cleanup(func() { end.Close() })
		return body
	}
	if status := post("call-1", endless()); status != 404 {
		t.Errorf("without a call: status %d", status)
	}
	answer, _ := st.pending("lyon", Call{ID: "call-1"})
	if status := post("call-2", endless()); status != 404 {
		t.Errorf("to another call: status %d", status)
	}
	oslo := st.raw(st.authority.issue(t, SiteID("north", "oslo")), true)
	if status := oslo.status("POST", protocol.FederationAnswerProcedure, header("call-1"), endless()); status != 404 {
		t.Errorf("of another site: status %d", status)
	}
	// version 1, and 65,530 bytes that nobody knows, as Connect frames it
	greeting := append([]byte{0, 0, 1, 0, 0, 8, version, 15<<3 | 2, 0xfa, 0xff, 3}, make([]byte, 65530)...)
	if _, _, err := lyon.do("POST", protocol.FederationEventsProcedure, map[string]string{"Content-Type": "application/connect+proto"}, bytes.NewReader(greeting)); err != nil || len(st.Connected()) > 0 {
		t.Errorf("a greeting of 64 KiB: %v connected, %v", st.Connected(), err)
	}
	if _, err := lyon.rpc.Answer(t.Context(), connect.NewRequest(&protocol.AnswerRequest{Id: "call-1", Body: []byte("1")})); err != nil {
		t.Error(err)
	}
	if err := <-answer; err != nil {
		t.Error(err)
	}
}

func TestOneAnswerOfASiteIsReadAtATimeAndNotForEver(t *testing.T) {
	st := newStage(t, func(o *Options) { o.Limits.Stall = 300 * time.Millisecond })
	st.pending("lyon", Call{ID: "call-1"})
	answer, _ := st.pending("lyon", Call{ID: "call-2"})
	lyon := st.raw(st.authority.issue(t, SiteID("north", "lyon")), true)
	hanging, end := io.Pipe()
	defer end.Close()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		lyon.do("POST", protocol.FederationAnswerProcedure, map[string]string{"Content-Type": "application/proto", callHeader: "call-1"}, hanging)
	}()
	st.mu.Lock()
	answering := st.peer("lyon").answering
	st.mu.Unlock()
	until(t, "answer that is read", func() bool { return len(answering) == 1 })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if leave := st.turn(ctx, "lyon", "call-2"); leave != nil {
		t.Error("two answers are read at a time")
	}
	if _, err := lyon.rpc.Answer(t.Context(), connect.NewRequest(&protocol.AnswerRequest{Id: "call-2", Body: []byte("1")})); err != nil {
		t.Errorf("after one that hung: %v", err)
	}
	if err := <-answer; err != nil {
		t.Error(err)
	}
	<-ended
}

func TestASiteAndStrangersHaveAFewConnectionsAndTheOldestGivesWay(t *testing.T) {
	st := newStage(t, func(o *Options) { o.Limits.Links, o.Limits.Strangers = 3, 4 })
	config := st.authority.issue(t, SiteID("north", "lyon"))
	for range 6 {
		st.raw(config, true).status("GET", downPath+"00", nil, nil)
	}
	of := func(site string) (links, strangers int) {
		st.doors.mu.Lock()
		defer st.doors.mu.Unlock()
		return len(st.doors.sites[site]), len(st.doors.strangers)
	}
	until(t, "oldest connections gone", func() bool { links, strangers := of("lyon"); return links == 3 && strangers == 0 })
	var silent []net.Conn
	for range 9 {
		c, err := net.Dial("tcp", st.address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	for _, c := range silent[:5] { // well before any time limit
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a stranger is answered")
		}
	}
	until(t, "strangers gone", func() bool { links, strangers := of("lyon"); return links == 3 && strangers == 4 })
	conn, err := tls.Dial("tcp", st.address, func() *tls.Config { c := config.Clone(); c.NextProtos = []string{"h2"}; return c }())
	if err != nil {
		t.Errorf("a site among strangers: %v", err)
	} else {
		conn.Close()
	}
	st.play(st.client("lyon"), echo)
	if _, _, err := st.ask("lyon", Call{Body: []byte("1")}); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
