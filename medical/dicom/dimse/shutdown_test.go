package dimse

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie/medical/dicom"
)

func TestAShutdownFinishesTheObjectUnderWayAndAbortsTheIdle(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	s := open(t, func(cfg *ServerConfig) {
		store := cfg.Store
		cfg.Store = func(ctx context.Context, r StoreRequest) Status {
			close(entered)
			<-leave
			if ctx.Err() != nil {
				t.Error("the context of the running Store ended before its grace")
			}
			return store(ctx, r)
		}
	})
	busy := s.dial(t, Contexts(ctStorage, dicom.ExplicitLittleEndian)...)
	idle := s.raw(t)
	idle.establish()
	answer := make(chan error, 1)
	go func() {
		status, err := busy.Store(context.Background(), ctStorage, "1.2", dicom.ExplicitLittleEndian, strings.NewReader("xx"))
		if err == nil && status != Success {
			err = errors.New(status.String())
		}
		answer <- err
	}()
	<-entered
	s.stop()
	idle.wantAbort(abortByProvider, reasonNotSpecified)
	idle.Close()
	waitFor(t, "the listener to be closed", func() bool {
		conn, err := net.Dial("tcp", s.addr)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	close(leave)
	if err := <-answer; err != nil {
		t.Errorf("the object under way: %v", err)
	}
	if len(s.got()) != 1 {
		t.Error("the object under way was not stored")
	}
	if _, err := busy.Store(context.Background(), ctStorage, "1.3", dicom.ExplicitLittleEndian, strings.NewReader("xx")); err == nil {
		t.Error("another object was taken after the shutdown")
	}
}

func TestAShutdownWaitsNoLongerThanItsGrace(t *testing.T) {
	s := open(t, func(cfg *ServerConfig) {
		cfg.ShutdownGrace = 200 * time.Millisecond
		cfg.Store = func(ctx context.Context, _ StoreRequest) Status { <-ctx.Done(); return ProcessingFailure }
	})
	stuck := s.dial(t, Contexts(ctStorage, dicom.ExplicitLittleEndian)...)
	half := s.raw(t) // in the middle of an object
	half.establish()
	half.send(pdata(pdv(1, 3, storeRQ("1.2").encode()), pdv(1, 0, pattern(100))))
	answer := make(chan error, 1)
	go func() {
		status, err := stuck.Store(context.Background(), ctStorage, "1.2", dicom.ExplicitLittleEndian, strings.NewReader("xx"))
		if err == nil && !status.Stored() {
			err = errors.New(status.String()) // the owner could still say no
		}
		answer <- err
	}()
	waitFor(t, "the object", func() bool { return s.Stats().Objects == 1 })
	begin := time.Now()
	s.stop()
	if err := <-s.done; err != nil {
		t.Error(err)
	}
	s.done <- nil // for the cleanup
	if took := time.Since(begin); took < 150*time.Millisecond || took > 30*time.Second {
		t.Errorf("the shutdown took %v with a grace of 200 ms", took)
	}
	if err := <-answer; err == nil {
		t.Error("a stuck object was acknowledged")
	}
}

func TestAContextEndsAStoreThatHangs(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	release := make(chan struct{})
	s := open(t, func(cfg *ServerConfig) {
		cfg.Store = func(context.Context, StoreRequest) Status { cancel(); <-release; return Success }
	})
	defer close(release)
	a := s.dial(t, Contexts(ctStorage, dicom.ExplicitLittleEndian)...)
	_, err := a.Store(ctx, ctStorage, "1.2", dicom.ExplicitLittleEndian, bytes.NewReader(pattern(10)))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if _, err := a.Echo(context.Background()); err == nil {
		t.Error("the association outlived an unanswered store")
	}
}

func TestADialGivesUpOnAPeerThatSaysNothing(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go io.Copy(io.Discard, conn)
		}
	}()
	cfg := plainClient()
	cfg.Timeout = 300 * time.Millisecond
	if _, err := Dial(context.Background(), listener.Addr().String(), cfg, []Context{Verification}); !errors.Is(err, ErrTimeout) {
		t.Errorf("error %v, want a timeout", err)
	}
	ca := newAuthority(t)
	cfg.Plain, cfg.TLS = false, ClientTLS(ca.issue("x"), ca.pool(), "")
	if _, err := Dial(context.Background(), listener.Addr().String(), cfg, []Context{Verification}); !errors.Is(err, ErrTimeout) {
		t.Errorf("in the handshake: error %v, want a timeout", err)
	}
}
