package dimse

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vigie/vigie/medical/dicom"
)

// digestSpool keeps the digest of an object only, so that a test's memory is
// the server's.
type digestSpool struct{ hash.Hash }

func (digestSpool) Discard() {}

// residentMemory is the process's resident set in bytes.
func residentMemory(t testing.TB) int64 {
	t.Helper()
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skipf("SKIPPED: resident memory is read from /proc, which this system lacks: %v", err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// peakMemory samples resident memory until the returned function is called.
func peakMemory(t testing.TB) func() int64 {
	debug.FreeOSMemory()
	var peak atomic.Int64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			peak.Store(max(peak.Load(), residentMemory(t)))
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() int64 { close(stop); <-done; return peak.Load() }
}

// malformed makes the i-th hostile conversation of a seed: what is sent before
// the association exists (bare) or after it was accepted.
func malformed(rng *rand.Rand, i int) (name string, bare bool, bytesToSend []byte) {
	rq := sampleRequest().encode(pduAssociateRQ)
	set := storeRQ("1.2.3").encode()
	valid := [][]byte{
		rq, pdata(pdv(1, 3, set), pdv(1, 2, pattern(3000))), pdata(pdv(5, 3, echoRQ().encode())), releaseRQ(), releaseRP(),
		abortPDU(abortByUser, 0), sampleRequest().encode(pduAssociateAC), ErrTooMany.(*RejectedError).pdu(),
	}
	pick := func() []byte { return bytes.Clone(valid[rng.IntN(len(valid))]) }
	bare = rng.IntN(2) == 0
	switch i % 6 {
	case 0:
		pdu := pick()
		return "truncated", bare, pdu[:rng.IntN(len(pdu))]
	case 1:
		pdu := pick()
		binary.BigEndian.PutUint32(pdu[2:], rng.Uint32()|1<<(8+rng.IntN(24)))
		return "huge length", bare, append(pdu, pattern(rng.IntN(40000))...)
	case 2:
		pdu := pick()
		pdu[0] = byte(rng.UintN(256))
		return "wrong type", bare, pdu
	case 3:
		pdu := pick()
		if bare {
			pdu = bytes.Clone(rq)
		}
		for range 1 + rng.IntN(30) {
			pdu[rng.IntN(len(pdu))] ^= 1 << rng.IntN(8)
		}
		return "bit flips", bare, pdu
	case 4:
		var out []byte
		for range 1 + rng.IntN(5) {
			out = append(out, pick()...)
		}
		return "wrong state", bare, out
	default:
		// Inner lengths: of items, fragments, command elements.
		pdu := pick()
		for range 1 + rng.IntN(3) {
			binary.BigEndian.PutUint16(pdu[rng.IntN(len(pdu)-1):], uint16(rng.UintN(1<<16)))
		}
		return "inner lengths", bare, pdu
	}
}

func TestSixHundredMalformedPDUsHarmNeitherMemoryNorAnotherAssociation(t *testing.T) {
	if testing.Short() {
		t.Skip("SKIPPED in short mode")
	}
	var mu sync.Mutex
	digests := map[string]string{} // of what the friend sent
	var log lockedBuffer
	s := open(t, func(cfg *ServerConfig) {
		cfg.ARTIM, cfg.IdleTimeout = 20*time.Second, 20*time.Second
		cfg.MaxObject = 8 << 20
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		cfg.NewSpool = func() (Spool, error) { return digestSpool{sha256.New()}, nil }
		cfg.Store = func(_ context.Context, r StoreRequest) Status {
			if r.Peer.CallingAE == "SENDER" {
				mu.Lock()
				defer mu.Unlock()
				digests[r.SOPInstance] = fmt.Sprintf("%x", r.Spool.(digestSpool).Sum(nil))
			}
			return Success
		}
	})
	peak := peakMemory(t)

	// The friend stores all the while, on one association.
	const enough = 20
	friend := s.dial(t, Contexts(ctStorage, dicom.ExplicitLittleEndian)...)
	stop, stored := make(chan struct{}), make(chan int)
	var through atomic.Int64
	go func() {
		n := 0
		defer func() { through.Store(enough); stored <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			uid := fmt.Sprintf("1.2.%d", n+1)
			status, err := friend.Store(context.Background(), ctStorage, uid, dicom.ExplicitLittleEndian, bytes.NewReader(friendObject(n)))
			if err != nil || status != Success {
				t.Errorf("the friend's object %d: %v, %v", n, status, err)
				return
			}
			n++
			through.Add(1)
		}
	}()

	const total, seed = 600, 20250101
	rng := rand.New(rand.NewPCG(seed, 1))
	kinds := map[string]int{}
	attacks := make([]func(), total)
	for i := range attacks {
		name, bare, attack := malformed(rng, i)
		kinds[name]++
		attacks[i] = func() { s.attack(t, bare, attack) }
	}
	var attackers sync.WaitGroup
	var next atomic.Int64
	end := time.Now().Add(2 * time.Minute)
	for range 8 {
		attackers.Go(func() {
			// Each once, and over again until the friend got enough through.
			for i := next.Add(1) - 1; i < total || through.Load() < enough && time.Now().Before(end); i = next.Add(1) - 1 {
				attacks[i%total]()
			}
		})
	}
	attackers.Wait()
	close(stop)
	n := <-stored
	if err := friend.Release(context.Background()); err != nil {
		t.Errorf("the friend's release: %v", err)
	}
	for i := range n {
		uid := fmt.Sprintf("1.2.%d", i+1)
		file := append(fileHeader(ctStorage, uid, dicom.ExplicitLittleEndian, "SENDER"), friendObject(i)...)
		if want := fmt.Sprintf("%x", sha256.Sum256(file)); digests[uid] != want {
			t.Fatalf("the friend's object %d of %d changed or is missing", i, n)
		}
	}
	if n < enough {
		t.Errorf("the friend got only %d objects through in two minutes", n)
	}
	waitFor(t, "every association to end", func() bool { return s.Stats().Open == 0 })
	if strings.Contains(log.String(), "panicked") {
		t.Error("an association panicked:\n" + log.String())
	}
	resident := peak()
	t.Logf("seed %d, %v, %d in all; the friend stored %d objects; peak resident memory %d MB; %+v", seed, kinds, max(total, next.Load()-8), n, resident>>20, s.Stats())
	if resident > 200<<20 {
		t.Errorf("resident memory reached %d MB, at most 200 are allowed", resident>>20)
	}
}

// friendObject is 0.5 MB that depends on n.
func friendObject(n int) []byte {
	b := pattern(500_000)
	binary.LittleEndian.PutUint64(b, uint64(n))
	return b
}

// attack sends bytes and waits, a little, for the server to hang up.
func (s *site) attack(t testing.TB, bare bool, attack []byte) {
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if !bare {
		conn.Write(sampleRequest().encode(pduAssociateRQ))
		kind, length, err := readHeader(conn, MaxMaxPDU)
		if err != nil || kind != pduAssociateAC {
			t.Errorf("a good request was answered %s, %v", kind, err)
			return
		}
		io.CopyN(io.Discard, conn, int64(length))
	}
	conn.Write(attack) // the server may have hung up already
	conn.(*net.TCPConn).CloseWrite()
	_, err = io.Copy(io.Discard, conn)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		t.Errorf("the server kept the connection of % .60x", attack)
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestWhatIsNotTLSIsRefusedAtATLSPort(t *testing.T) {
	ca := newAuthority(t)
	s := open(t, func(cfg *ServerConfig) { ca.secure(cfg); cfg.ARTIM = 300 * time.Millisecond })
	old := &tls.Config{RootCAs: ca.pool(), ServerName: "vigie.test", Certificates: []tls.Certificate{ca.issue("old.test")}, MaxVersion: tls.VersionTLS12}
	if conn, err := tls.Dial("tcp", s.addr, old); err == nil {
		conn.Close()
		t.Error("TLS 1.2 was accepted")
	}
	for _, first := range [][]byte{sampleRequest().encode(pduAssociateRQ), []byte("GET / HTTP/1.1\r\n\r\n"), {0x16, 3, 1, 0xFF, 0xFF}, nil} {
		r := s.raw(t)
		r.send(first)
		answer, err := io.ReadAll(r)
		if len(answer) > 7 || (err != nil && !isReset(err)) { // a TLS alert at most
			t.Errorf("% x was answered % x, %v", first[:min(4, len(first))], answer, err)
		}
	}
	waitFor(t, "the refusals to be counted", func() bool { return s.Stats().Refused == 5 })
	if s.Stats().Accepted != 0 {
		t.Error("an association was accepted")
	}
}

func TestAPanicInTheOwnersCodeEndsOneAssociationOnly(t *testing.T) {
	var log lockedBuffer
	s := open(t, func(cfg *ServerConfig) {
		store := cfg.Store
		cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
		cfg.Store = func(ctx context.Context, r StoreRequest) Status {
			if r.SOPInstance == "1.2.666" {
				panic("DOE^JOHN 19700101")
			}
			return store(ctx, r)
		}
	})
	good := s.dial(t, Contexts(ctStorage, dicom.ExplicitLittleEndian)...)
	bad := s.dial(t, Contexts(ctStorage, dicom.ExplicitLittleEndian)...)
	if _, err := bad.Store(context.Background(), ctStorage, "1.2.666", dicom.ExplicitLittleEndian, strings.NewReader("xx")); err == nil {
		t.Error("a panic was answered with a status")
	}
	if status, err := good.Store(context.Background(), ctStorage, "1.2.1", dicom.ExplicitLittleEndian, strings.NewReader("xx")); err != nil || status != Success {
		t.Errorf("the other association: %v, %v", status, err)
	}
	waitFor(t, "the place to be given back", func() bool { return s.Stats().Open == 1 })
	if s.spools[0].discarded != 1 {
		t.Error("the spool was not discarded")
	}
	if text := log.String(); !strings.Contains(text, "panicked") || strings.Contains(text, "DOE") {
		t.Errorf("the log says %s", text)
	}
}

func TestSlowPeersAreCutOffAndKeepNobodyOut(t *testing.T) {
	// Short, and long enough for a friend on a busy machine.
	const patience = 5 * time.Second
	s := open(t, func(cfg *ServerConfig) {
		cfg.ARTIM, cfg.IdleTimeout, cfg.ObjectTimeout = patience, patience, patience+time.Second
		cfg.MaxConnections, cfg.MaxAssociations = 8, 8
	})
	drip := func(name string, established []byte, slow []byte, pause time.Duration) {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		conn.Write(established)
		go func() {
			for i := 0; ; i = (i + 1) % len(slow) {
				time.Sleep(pause)
				if _, err := conn.Write(slow[i : i+1]); err != nil {
					return
				}
			}
		}()
		conn.SetReadDeadline(time.Now().Add(time.Minute))
		_, err = io.Copy(io.Discard, conn)
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			t.Errorf("%s was never cut off", name)
		}
	}
	rq := sampleRequest().encode(pduAssociateRQ)
	set := storeRQ("1.2.3").encode()
	empty := pdata(pdv(1, 0, nil))
	var all sync.WaitGroup
	// One byte at a time inside the request, inside a PDU, and whole empty
	// PDUs that never finish an object.
	all.Go(func() { drip("request byte by byte", nil, rq, 20*time.Millisecond) })
	all.Go(func() { drip("silence", rq, []byte{4}, time.Hour) })
	all.Go(func() { drip("P-DATA byte by byte", rq, pdata(pdv(1, 3, set)), 30*time.Millisecond) })
	all.Go(func() {
		drip("endless object", append(bytes.Clone(rq), pdata(pdv(1, 3, set))...), empty, 2*time.Millisecond)
	})
	all.Go(func() { drip("endless command", rq, pdata(pdv(1, 1, nil)), 2*time.Millisecond) })
	// A crowd that never speaks fills the lobby several times over.
	for range 40 {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	friend := s.dial(t, Verification)
	if status, err := friend.Echo(context.Background()); err != nil || status != Success {
		t.Errorf("behind the crowd: %v, %v", status, err)
	}
	all.Wait()
}

func TestManyAssociationsStoreAtOnce(t *testing.T) {
	const peers, each = 100, 5
	ca := newAuthority(t)
	var bytesSeen atomic.Int64
	s := open(t, func(cfg *ServerConfig) {
		ca.secure(cfg)
		cfg.MaxAssociations = peers
		cfg.IdleTimeout, cfg.ARTIM = 5*time.Minute, 5*time.Minute
		cfg.NewSpool = func() (Spool, error) { return nullSpool{}, nil }
		cfg.Store = func(_ context.Context, r StoreRequest) Status { bytesSeen.Add(r.Size); return Success }
	})
	identity := ca.issue("modality.test")
	object := pattern(200_000)
	var all sync.WaitGroup
	for i := range peers {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
			defer cancel()
			a, err := Dial(ctx, s.addr, ClientConfig{CallingAE: fmt.Sprintf("PEER%d", i), CalledAE: "VIGIE", TLS: ClientTLS(identity, ca.pool(), ""), Timeout: 5 * time.Minute},
				Contexts(ctStorage, dicom.ExplicitLittleEndian))
			if err != nil {
				t.Errorf("peer %d: %v", i, err)
				return
			}
			for j := range each {
				status, err := a.Store(ctx, ctStorage, fmt.Sprintf("1.2.%d.%d", i+1, j+1), dicom.ExplicitLittleEndian, bytes.NewReader(object))
				if err != nil || status != Success {
					t.Errorf("peer %d object %d: %v, %v", i, j, status, err)
				}
			}
			if err := a.Release(ctx); err != nil {
				t.Errorf("peer %d release: %v", i, err)
			}
		})
	}
	all.Wait()
	waitFor(t, "the associations to end", func() bool { return s.Stats().Open == 0 })
	if stats := s.Stats(); stats.Stored != peers*each || stats.Aborted != 0 || stats.Bytes != bytesSeen.Load() || stats.Accepted != peers {
		t.Errorf("%+v", stats)
	}
}
