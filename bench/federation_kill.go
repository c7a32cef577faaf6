package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vigie/vigie/federate"
)

// fate kills its process with SIGKILL, as kill -9 does, before, during or after a
// step, and says so in the moment before: a line "dying SIDE STEP MOMENT".
type fate struct {
	mu     sync.Mutex
	rng    *rand.Rand
	chance float64
}

func (p fedPart) fate() *fate {
	return &fate{rng: rand.New(rand.NewPCG(p.Seed, 0x9)), chance: p.Mortal}
}

func (f *fate) die(side, step, moment string) {
	f.mu.Lock() // one last word, whoever else is about to die
	fmt.Println("dying", side, step, moment)
	syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// around is called before a step, and what it returns after.
func (f *fate) around(side string, order []byte) (after func()) {
	var o struct {
		Step string `json:"step"`
	}
	if err := json.Unmarshal(order, &o); err != nil {
		o.Step = "?"
	}
	f.mu.Lock()
	dies, moment, delay := f.rng.Float64() < f.chance, f.rng.IntN(3), time.Duration(f.rng.Int64N(int64(4*time.Millisecond)))
	f.mu.Unlock()
	if !dies {
		return func() {}
	}
	switch moment {
	case 0:
		f.die(side, o.Step, "before")
	case 1:
		time.AfterFunc(delay, func() { f.die(side, o.Step, "during") })
	}
	return func() { f.die(side, o.Step, "after") }
}

// mortalLink is where the server may die.
type mortalLink struct {
	federate.Link
	doom *fate
}

func (l mortalLink) Ask(ctx context.Context, o federate.Order) (federate.Answer, error) {
	defer l.doom.around("server", fmt.Appendf(nil, `{"step": %q}`, o.Step))()
	return l.Link.Ask(ctx, o)
}

// killed is what came of federations whose processes were killed.
type killed struct {
	Kills   int            // processes
	Runs    int            // federations, each with rounds to the end
	Aborted int            // attempts without a result, as servers told that lived to tell
	Where   map[string]int // kills by side, step and moment
	Same    int            // runs that ended with the weights of an undisturbed one
}

// kill runs federations of real processes, one a site, until so many were killed,
// and each to its end.
func (s fedSetting) kill(ctx context.Context, kills int, mortal float64, seed uint64) (k killed, err error) {
	s.All = true
	want, err := s.run(ctx)
	if err != nil {
		return k, fmt.Errorf("the undisturbed run: %w", err)
	}
	k.Where = map[string]int{}
	for k.Kills < kills {
		got, err := s.killRun(ctx, &k, kills, mortal, seed+1000*uint64(k.Runs))
		if err != nil {
			return k, err
		}
		k.Runs++
		if got.Digest == want.Digest {
			k.Same++
		}
	}
	return k, nil
}

// killRun runs one federation, and starts again whoever has died.
func (s fedSetting) killRun(ctx context.Context, k *killed, kills int, mortal float64, seed uint64) (r fedResult, err error) {
	dir, err := os.MkdirTemp("", "vigie-federation-")
	if err != nil {
		return r, err
	}
	defer os.RemoveAll(dir)
	if err := fedCertificates(dir, s.Sites); err != nil {
		return r, err
	}
	// the port that the server has now, and comes back to
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return r, err
	}
	p := fedPart{fedSetting: s, Dir: dir, Address: listener.Addr().String()}
	listener.Close()
	ctx, cancel := context.WithCancel(ctx)
	var mu sync.Mutex
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	failed := make(chan error, s.Sites+1)
	result := make(chan fedResult, 1)
	keep := func(p fedPart, name string, part uint64) {
		for life := uint64(0); ctx.Err() == nil; life++ {
			p.Seed = seed + 100*life + part
			mu.Lock()
			p.Mortal = mortal
			if k.Kills >= kills {
				p.Mortal = 0
			}
			mu.Unlock()
			command, output, err := p.process(ctx, name)
			if err != nil {
				failed <- err
				return
			}
			lines := bufio.NewScanner(output)
			for lines.Scan() {
				line := lines.Text()
				if where, dying := strings.CutPrefix(line, "dying "); dying {
					mu.Lock()
					k.Kills++
					k.Where[where]++
					mu.Unlock()
				} else if strings.HasPrefix(line, "{") {
					var r fedResult
					if err := json.Unmarshal([]byte(line), &r); err != nil {
						failed <- err
						return
					}
					command.Wait()
					mu.Lock()
					k.Aborted += r.Aborted
					mu.Unlock()
					result <- r
					return
				}
			}
			err = command.Wait()
			var exit *exec.ExitError
			if ctx.Err() == nil && (!errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
				failed <- fmt.Errorf("%s has ended by itself: %w", name, err)
				return
			}
		}
	}
	all.Go(func() { keep(p, "server", 0) })
	for i := range s.Sites {
		q := p
		q.First, q.Count = i, 1
		all.Go(func() { keep(q, fedName(i), uint64(1+i)) })
	}
	select {
	case r = <-result:
		return r, nil
	case err := <-failed:
		return r, err
	case <-ctx.Done():
		return r, ctx.Err()
	}
}

// federationKills kills processes of federations at random steps of their rounds,
// and holds the models against that of an undisturbed one.
func federationKills(ctx context.Context, o options) ([]Row, error) {
	s := fedSetting{Sites: 4, Size: 20_000, Rounds: 6}
	start := time.Now()
	k, err := s.kill(ctx, o.kills, 0.04, 1)
	if err != nil {
		return nil, err
	}
	work := fmt.Sprintf("kill -9, %d processes of %d federations with a server and %d sites", k.Kills, k.Runs, s.Sites)
	var where []string
	for _, w := range slices.Sorted(maps.Keys(k.Where)) {
		where = append(where, fmt.Sprintf("%s: %d", w, k.Where[w]))
	}
	return []Row{
		{Work: work, System: "runs that ended with the same bits", Value: float64(k.Same), Unit: fmt.Sprintf("of %d", k.Runs), Target: float64(k.Runs), Note: fmt.Sprintf("%d rounds each, %.0f s in all", s.Rounds, time.Since(start).Seconds())},
		{Work: work, System: "attempts without a result", Value: float64(k.Aborted), Unit: "", Note: "that servers told of which lived on"},
		{Work: work, System: "kills by side, step and moment", Value: float64(k.Kills), Unit: "", Note: strings.Join(where, "; ")},
	}, nil
}
