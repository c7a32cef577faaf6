package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/federate/wire"
)

// federationOf is the environment variable that makes this program one process
// of a federation: its value is the file of a fedPart.
const federationOf = "VIGIE_BENCH_FEDERATION"

// fedSetting is a federation of sites whose training costs nothing, so that what
// is measured is the round: keys, shares, masks, transport, disk.
type fedSetting struct {
	Sites  int  `json:"sites"`
	Size   int  `json:"size"`  // variables
	Lost   int  `json:"lost"`  // sites that fail when they are to train, in every round
	Group  int  `json:"group"` // size of the groups, 0 for one
	Rounds int  `json:"rounds"`
	Bits   int  `json:"bits"` // of a number on the wire; 0: 32
	All    bool `json:"all"`  // a round counts with all sites in its sum or not at all
}

// fedPart is what one process of it does.
type fedPart struct {
	fedSetting
	Dir     string `json:"dir"`     // with certificates and what the parts keep
	Address string `json:"address"` // of the server; the server: where it listens
	First   int    `json:"first"`   // sites: from this one
	Count   int    `json:"count"`   // on, so many; 0 is the server
	// Mortal is how likely the process kills itself at a step, and Seed which steps
	// those are: see fate.
	Mortal float64 `json:"mortal"`
	Seed   uint64  `json:"seed"`
}

// fedResult is what the server tells when its rounds are over.
type fedResult struct {
	Seconds []float64 `json:"seconds"` // of each round
	Up      int64     `json:"up"`      // bytes that came through TCP, in all
	Down    int64     `json:"down"`    // and went
	Sites   []int     `json:"sites"`   // in the sum of each round
	Peak    int64     `json:"peak"`    // bytes: VmHWM of the process
	Start   int64     `json:"start"`   // the same when all sites were connected, before the first round
	Digest  string    `json:"digest"`  // of the model
	Aborted int       `json:"aborted"` // attempts without a result, of this process
}

func fedName(i int) string { return fmt.Sprintf("site-%04d", i) }

func (s fedSetting) terms() federate.Terms {
	t := federate.DefaultTerms("bench")
	t.Rounds, t.Rate, t.FinalRate, t.Minimum = max(1, s.Rounds), 0.1, 0.1, 3
	t.GroupSize = s.Group
	t.Deadline = 5 * time.Minute
	if s.Bits != 0 {
		t.Bits, t.Limit, t.Down = s.Bits, 0.001, 16
	}
	if s.All {
		t.Minimum = s.Sites
	}
	return t
}

// echoTrainer moves each variable by a little that depends on its place.
type echoTrainer struct{ size, site int }

func (e echoTrainer) Size() (int, int) { return e.size, e.size }
func (e echoTrainer) Examples() int    { return 1000 }
func (e echoTrainer) Train(_ context.Context, w federate.Work) (int, float64, error) {
	for j := range w.Variables {
		w.Variables[j] += 1e-6 * float32((j+e.site)&15)
	}
	return 1, 0.5, nil
}

// fedCertificates makes an authority and the certificates of all parts.
func fedCertificates(dir string, sites int) error {
	_, authority, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	root, err := x509.CreateCertificate(rand.Reader, template, template, authority.Public(), authority)
	if err != nil {
		return err
	}
	if err := writeFedPEM(dir, "ca.pem", "CERTIFICATE", root); err != nil {
		return err
	}
	for i := -1; i < sites; i++ {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 3)), NotBefore: template.NotBefore, NotAfter: template.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature}
		name := "server"
		if i < 0 {
			leaf.ExtKeyUsage, leaf.IPAddresses = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, []net.IP{net.IPv4(127, 0, 0, 1)}
		} else {
			name = fedName(i)
			leaf.ExtKeyUsage, leaf.URIs = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, []*url.URL{wire.SiteID("bench", name)}
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, template, key.Public(), authority)
		if err != nil {
			return err
		}
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		if err := errors.Join(writeFedPEM(dir, name+".pem", "CERTIFICATE", der), writeFedPEM(dir, name+".key", "PRIVATE KEY", private)); err != nil {
			return err
		}
	}
	return nil
}

func writeFedPEM(dir, name, kind string, der []byte) error {
	return os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func (p fedPart) tls(name string) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(p.Dir, name+".pem"), filepath.Join(p.Dir, name+".key"))
	if err != nil {
		return nil, err
	}
	root, err := os.ReadFile(filepath.Join(p.Dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(root)
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"h2"}}, nil
}

// members reads who takes part from the certificates.
func (p fedPart) members() ([]secagg.Member, error) {
	var members []secagg.Member
	for i := range p.Sites {
		pair, err := tls.LoadX509KeyPair(filepath.Join(p.Dir, fedName(i)+".pem"), filepath.Join(p.Dir, fedName(i)+".key"))
		if err != nil {
			return nil, err
		}
		members = append(members, secagg.Member{Name: fedName(i), Key: pair.Leaf.PublicKey.(ed25519.PublicKey)})
	}
	return members, nil
}

// fedProcess is this program as one part of a federation.
func fedProcess(ctx context.Context, file string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var p fedPart
	if err := json.Unmarshal(data, &p); err != nil {
		return err
	}
	if p.Count == 0 {
		return p.serve(ctx)
	}
	return p.visit(ctx)
}

// visit runs sites until it is killed.
func (p fedPart) visit(ctx context.Context) error {
	members, err := p.members()
	if err != nil {
		return err
	}
	doom := p.fate()
	var all sync.WaitGroup
	failed := make(chan error, p.Count)
	for i := p.First; i < p.First+p.Count; i++ {
		config, err := p.tls(fedName(i))
		if err != nil {
			return err
		}
		keeper, err := federate.Folder(filepath.Join(p.Dir, "keep", fedName(i)))
		if err != nil {
			return err
		}
		site, err := federate.NewSite(federate.SiteOptions{Name: fedName(i), Terms: p.terms(), Members: members, Keeper: keeper,
			Signer: config.Certificates[0].PrivateKey.(ed25519.PrivateKey), Trainer: echoTrainer{p.Size, i}})
		if err != nil {
			return err
		}
		orders := wire.Orders(site)
		lost := i >= p.Sites-p.Lost
		client := &wire.Client{URL: "https://" + p.Address, TLS: config, Dir: filepath.Join(p.Dir, "spool", fedName(i)), Backoff: 20 * time.Millisecond}
		all.Go(func() {
			failed <- client.Run(ctx, func(ctx context.Context, c wire.Call) (wire.Reply, error) {
				if lost && strings.Contains(string(c.Body), `"step":"train"`) {
					return wire.Reply{}, errors.New("the site is lost")
				}
				defer doom.around("site", c.Body)()
				return orders(ctx, c)
			})
		})
	}
	err = <-failed
	all.Wait()
	return err
}

// counted counts what goes through the connections of a listener.
type counted struct {
	net.Listener
	up, down atomic.Int64
}

func (l *counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countedConn{c, l}, nil
}

type countedConn struct {
	net.Conn
	l *counted
}

func (c countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.l.up.Add(int64(n))
	return n, err
}

func (c countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.l.down.Add(int64(n))
	return n, err
}

// serve runs the rounds, and prints where it listens and what came of them.
func (p fedPart) serve(ctx context.Context) error {
	debug.SetGCPercent(20) // most of the memory is the model and the sum, which stay
	members, err := p.members()
	if err != nil {
		return err
	}
	config, err := p.tls("server")
	if err != nil {
		return err
	}
	server, err := wire.NewServer(wire.Options{Federation: "bench", Dir: filepath.Join(p.Dir, "spool", "server"), Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", p.Address)
	if err != nil {
		return err
	}
	counting := &counted{Listener: listener}
	go server.HTTP(config).ServeTLS(counting, "", "")
	fmt.Println(listener.Addr())
	keeper, err := federate.Folder(filepath.Join(p.Dir, "keep", "server"))
	if err != nil {
		return err
	}
	coordinator, err := federate.NewCoordinator(federate.CoordinatorOptions{Terms: p.terms(), Members: members, Variables: make([]float32, p.Size), Trained: p.Size, Keeper: keeper})
	if err != nil {
		return err
	}
	doom := p.fate()
	var links []federate.Link
	for _, m := range members {
		links = append(links, mortalLink{wire.Link(server, "bench", m.Name), doom})
	}
	for len(server.Connected()) < p.Sites {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r := fedResult{Up: -counting.up.Load(), Down: -counting.down.Load()}
	if r.Start, err = highWater(); err != nil {
		return err
	}
	for !coordinator.Done() {
		start := time.Now()
		out, err := coordinator.Round(ctx, links)
		if p.All && errors.Is(err, federate.ErrRound) && ctx.Err() == nil {
			r.Aborted++
			continue // it left nothing behind; the next attempt begins anew
		}
		if err != nil {
			return err
		}
		r.Seconds = append(r.Seconds, time.Since(start).Seconds())
		r.Sites = append(r.Sites, out.Sites)
	}
	coordinator.Settle()
	r.Up += counting.up.Load()
	r.Down += counting.down.Load()
	digest := coordinator.Weights().Digest()
	r.Digest = hex.EncodeToString(digest[:])
	if r.Peak, err = highWater(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// highWater is the largest size that this process has had in memory.
func highWater() (int64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kilobytes, err := strconv.ParseInt(strings.Fields(rest + " ?")[0], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading VmHWM: %w", err)
	}
	return kilobytes * 1024, nil
}

// process starts this program as a part.
func (p fedPart) process(ctx context.Context, name string) (*exec.Cmd, io.Reader, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	data, err := json.Marshal(p)
	if err != nil {
		return nil, nil, err
	}
	file := filepath.Join(p.Dir, name+".json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return nil, nil, err
	}
	command := exec.CommandContext(ctx, self)
	command.Env = append(os.Environ(), federationOf+"="+file)
	command.Stderr = os.Stderr
	output, err := command.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	return command, output, command.Start()
}

// run runs a setting: the server in one process, all sites in another.
func (s fedSetting) run(ctx context.Context) (r fedResult, err error) {
	dir, err := os.MkdirTemp("", "vigie-federation-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	if err := fedCertificates(dir, s.Sites); err != nil {
		return r, err
	}
	ctx, cancel := context.WithCancel(ctx)
	p := fedPart{fedSetting: s, Dir: dir, Address: "127.0.0.1:0"}
	server, output, err := p.process(ctx, "server")
	if err != nil {
		cancel()
		return r, err
	}
	defer server.Wait()
	defer cancel()
	lines := bufio.NewReader(output)
	if p.Address, err = lines.ReadString('\n'); err != nil {
		return r, fmt.Errorf("the server has not started: %w", err)
	}
	p.Address = strings.TrimSpace(p.Address)
	p.Count = s.Sites
	sites, _, err := p.process(ctx, "sites")
	if err != nil {
		return r, err
	}
	defer sites.Wait()
	defer cancel()
	if err := json.NewDecoder(lines).Decode(&r); err != nil {
		return r, fmt.Errorf("the server has ended without a result: %w", err)
	}
	return r, nil
}

// federation measures whole secure rounds of a server and its sites over TLS on
// this machine.
func federation(ctx context.Context, o options) ([]Row, error) {
	var rows []Row
	for _, work := range []struct {
		name    string
		setting fedSetting
		seconds float64 // that a round should take at most
	}{
		{"secure round, 15 × 1M", fedSetting{Sites: 15, Size: 1_000_000, Rounds: 5}, 0},
		{"secure round, 15 × 1M with 3 lost", fedSetting{Sites: 15, Size: 1_000_000, Rounds: 5, Lost: 3}, 1.5},
		{"secure round, 15 × 10M", fedSetting{Sites: 15, Size: 10_000_000, Rounds: 3}, 0},
		{"secure round, 15 × 10M with 3 lost", fedSetting{Sites: 15, Size: 10_000_000, Rounds: 3, Lost: 3}, 8},
		{"secure round, 15 × 10M in 16 bits", fedSetting{Sites: 15, Size: 10_000_000, Rounds: 3, Bits: 16}, 0},
		{"secure round, 5 × 50M", fedSetting{Sites: 5, Size: 50_000_000, Rounds: 2}, 0},
	} {
		if o.rows != "" && !slices.Contains(strings.Split(o.rows, ","), strings.TrimPrefix(work.name, "secure round, ")) {
			continue
		}
		r, err := work.setting.run(ctx)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", work.name, err)
		}
		model := 4 * int64(work.setting.Size)
		sorted := slices.Sorted(slices.Values(r.Seconds))
		there := 0
		for _, n := range r.Sites {
			there += n
		}
		asked := int64(work.setting.Sites*len(r.Seconds)) * model // weights go to all, lost or not
		most := 1.05
		if work.setting.Bits != 0 {
			most = 0.525 // half of it
		}
		rows = append(rows,
			Row{Work: work.name, System: "time of a round", Value: sorted[len(sorted)/2], Unit: "s", Least: sorted[0], Target: work.seconds,
				Note: fmt.Sprintf("median of %d, longest %.2f", len(sorted), sorted[len(sorted)-1])},
			Row{Work: work.name, System: "bytes over the ideal", Value: float64(r.Up+r.Down) / float64(asked+int64(there)*model), Unit: "×", Target: most,
				Note: "of TCP, both ways; ideal: 4 bytes a variable down to each site and up from each in the sum"},
			Row{Work: work.name, System: "memory of the server", Value: float64(r.Peak) / 1e6, Unit: "MB", Target: 3*float64(model)/1e6 + 100,
				Note: fmt.Sprintf("VmHWM; before the first round %.0f, the model is %.0f", float64(r.Start)/1e6, float64(model)/1e6)})
	}
	return rows, nil
}

// federationMany measures a round of very many sites in groups: what each costs and
// what the server holds.
func federationMany(ctx context.Context, o options) ([]Row, error) {
	var rows []Row
	for _, s := range []fedSetting{
		{Sites: 100, Size: 1_000_000, Group: 20, Rounds: 1},
		{Sites: 1000, Size: 1_000_000, Group: 10, Rounds: 1},
		{Sites: 1000, Size: 1_000_000, Group: 20, Rounds: 1},
	} {
		work := fmt.Sprintf("secure round, %d × 1M in groups of %d", s.Sites, s.Group)
		if o.rows != "" && !slices.Contains(strings.Split(o.rows, ","), strings.TrimPrefix(work, "secure round, ")) {
			continue
		}
		r, err := s.run(ctx)
		if err != nil {
			return rows, fmt.Errorf("%s: %w", work, err)
		}
		model := 4e-6 * float64(s.Size)
		rows = append(rows,
			Row{Work: work, System: "time for each site", Value: 1000 * r.Seconds[0] / float64(s.Sites), Unit: "ms", Note: fmt.Sprintf("%.1f s in all, %d sites in the sums", r.Seconds[0], r.Sites[0])},
			Row{Work: work, System: "bytes for each site", Value: float64(r.Up+r.Down) / 1e6 / float64(s.Sites), Unit: "MB", Note: fmt.Sprintf("the model is %.0f, there and back", model)},
			Row{Work: work, System: "memory of the server", Value: float64(r.Peak) / 1e6, Unit: "MB", Target: 3*model + 300, Note: fmt.Sprintf("VmHWM; with all connected, before the round, %.0f", float64(r.Start)/1e6)})
	}
	return rows, nil
}
