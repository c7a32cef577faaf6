package federate

import (
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/federate/robust"
	"github.com/vigie/vigie/federate/secagg"
	"github.com/vigie/vigie/keys/dsse"
	"github.com/vigie/vigie/onnx"
)

var leader = ed25519.NewKeyFromSeed(slices.Repeat([]byte{200}, 32))

// recorded is a coordinator of the school that records into a folder.
func (s *school) recorded(t testing.TB, keeper Keeper, dir string) *Coordinator {
	t.Helper()
	n, _ := s.pupils[0].Size()
	o := CoordinatorOptions{Terms: s.terms, Members: s.members, Variables: make([]float32, n), Trained: n, Keeper: keeper}
	var err error
	if o.Transcript, err = o.Record(dir, leader); err != nil {
		t.Fatal(err)
	}
	c, err := NewCoordinator(o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (s *school) replay(t testing.TB, dir string) (*Replayed, error) {
	t.Helper()
	return ReplayRun(t.Context(), ReplayOptions{Dir: dir, Coordinator: leader.Public().(ed25519.PublicKey), Members: s.members})
}

func TestARunReplaysToTheWeightsThatItLedTo(t *testing.T) {
	for _, algorithm := range []Algorithm{FedAvg, FedYogi, SCAFFOLD} {
		if testing.Short() && algorithm != FedYogi {
			continue
		}
		s := newSchool(t, 9, 5, func(terms *Terms) {
			terms.Algorithm, terms.GroupSize, terms.Rounds = algorithm, 4, 3
			if algorithm == SCAFFOLD {
				terms.GroupSize = 0
			} else if algorithm == FedYogi {
				terms.Rule = robust.Median
			}
		})
		dir := t.TempDir()
		c := s.recorded(t, nil, dir)
		for at := 0; !c.Done(); at++ {
			links := s.links()
			// one falls silent after others masked for it, one before it confirms, one
			// before it reveals; each in another round
			links[at%9] = failing{links[at%9], []Step{StepTrain, StepConfirm, StepReveal}[at%3]}
			if _, err := c.Round(t.Context(), links); err != nil {
				t.Fatal(err)
			}
		}
		r, err := s.replay(t, dir)
		if err != nil {
			t.Fatalf("%s: %v", algorithm, err)
		}
		digest := c.Weights().Digest()
		if r.Model != hexOf(digest[:]) || !slices.Equal(r.Weights.Variables, c.Weights().Variables) {
			t.Errorf("%s: the replay leads to %s, the run led to %x", algorithm, r.Model, digest)
		}
		if len(r.Attempts) != 3 || !slices.Equal(r.Sites[0].Rounds, []int{1, 2}) || r.Sites[0].Lost != 1 || !slices.Equal(r.Sites[1].Rounds, []int{0, 1, 2}) {
			t.Errorf("%s: %d attempts, the first site was in %v and lost %d times, the second in %v", algorithm, len(r.Attempts), r.Sites[0].Rounds, r.Sites[0].Lost, r.Sites[1].Rounds)
		}
	}
}

func TestACoordinatorThatIsKilledBetweenItsRecordAndItsStateLeavesOneThatDoesNotCount(t *testing.T) {
	s := newSchool(t, 4, 3, func(terms *Terms) { terms.Rounds = 3 })
	dir, keeper := t.TempDir(), memoryKeeper{}
	c := s.recorded(t, keeper, dir)
	if _, err := c.Round(t.Context(), s.links()); err != nil {
		t.Fatal(err)
	}
	c.state.Number++ // as if the process ended after the next number was kept
	if err := c.save(); err != nil {
		t.Fatal(err)
	}
	c.state.Number--
	before := memoryKeeper(maps.Clone(keeper))
	if _, err := c.Round(t.Context(), s.links()); err != nil {
		t.Fatal(err)
	}
	c = s.recorded(t, before, dir) // from what was kept before the second result was
	for !c.Done() {
		if _, err := c.Round(t.Context(), s.links()); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.replay(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	var counted []bool
	for _, a := range r.Attempts {
		counted = append(counted, a.Counted)
	}
	if !slices.Equal(counted, []bool{true, false, true, true}) || !slices.Equal(r.Sites[0].Rounds, []int{0, 1, 2}) {
		t.Errorf("attempts that count: %v; the first site was in %v", counted, r.Sites[0].Rounds)
	}
	if digest := c.Weights().Digest(); r.Model != hexOf(digest[:]) {
		t.Error("the replay leads elsewhere")
	}
}

func TestAnAttemptWithoutAResultIsRecordedToo(t *testing.T) {
	s := newSchool(t, 4, 3, func(terms *Terms) { terms.Rounds = 1 })
	dir := t.TempDir()
	c := s.recorded(t, nil, dir)
	links := s.links()
	links[0], links[1] = failing{links[0], StepTrain}, failing{links[1], StepTrain}
	if _, err := c.Round(t.Context(), links); !errors.Is(err, ErrRound) {
		t.Fatal(err)
	}
	if _, err := c.Round(t.Context(), s.links()); err != nil {
		t.Fatal(err)
	}
	r, err := s.replay(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Attempts) != 2 || r.Attempts[0].Counted || r.Attempts[0].Failure == "" || !r.Attempts[1].Counted {
		t.Errorf("%+v", r.Attempts)
	}
}

// rewrite changes a record as a coordinator could, who holds the key, and keeps the
// chain: only what the sites signed, and arithmetic, can give it away.
func rewrite(t *testing.T, dir string, number uint64, change func(*Record)) {
	t.Helper()
	tr := &Transcript{dir: dir, signer: leader}
	numbers, err := tr.numbers()
	if err != nil {
		t.Fatal(err)
	}
	header, err := readEnvelope(filepath.Join(dir, headerName), false, maxHeader)
	if err != nil {
		t.Fatal(err)
	}
	tr.last = digestOf(header.Payload)
	for _, n := range numbers {
		envelope, err := readEnvelope(filepath.Join(dir, recordName(n)), true, maxRecord)
		if err != nil {
			t.Fatal(err)
		}
		var r Record
		if err := json.Unmarshal(envelope.Payload, &r); err != nil {
			t.Fatal(err)
		}
		if n == number {
			change(&r)
		}
		if err := tr.write(r); err != nil {
			t.Fatal(err)
		}
	}
}

func TestATranscriptThatWasChangedDoesNotReplay(t *testing.T) {
	s := newSchool(t, 9, 3, func(terms *Terms) {
		terms.Rounds, terms.GroupSize, terms.Rule = 2, 4, robust.Median
	})
	dir := t.TempDir()
	c := s.recorded(t, nil, dir)
	for !c.Done() {
		links := s.links()
		links[3] = failing{links[3], StepConfirm}
		if _, err := c.Round(t.Context(), links); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.replay(t, dir); err != nil {
		t.Fatal(err)
	}
	edit := func(name string, change func([]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			path := filepath.Join(dir, name)
			data, err := os.ReadFile(path)
			if err == nil {
				err = os.WriteFile(path, change(data), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	flip := func(at int) func([]byte) []byte { return func(b []byte) []byte { b[at] ^= 1; return b } }
	record := func(change func(*Record)) func(*testing.T, string) {
		return func(t *testing.T, dir string) { rewrite(t, dir, 1, change) }
	}
	withVector := "" // the vector that was kept of the site that did not confirm
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "000000000001-") && strings.HasSuffix(e.Name(), ".vector") {
			withVector = e.Name()
		}
	}
	for what, change := range map[string]func(*testing.T, string){
		"a masked sum":                edit(sumName(1, 0), flip(0)),
		"a carry of a masked sum":     edit(sumName(1, 1), flip(4)),
		"a shorter sum":               edit(sumName(2, 1), func(b []byte) []byte { return b[:len(b)-6] }),
		"the initial weights":         edit(initialName, flip(2)),
		"a byte of the header":        edit(headerName, flip(100)),
		"a byte of a record":          edit(recordName(2), flip(40)),
		"a vector nobody vouches for": edit(withVector, flip(1)),
		"a record gone":               func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, recordName(1))) },
		"a sum gone":                  func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, sumName(1, 0))) },
		"records in another order": func(t *testing.T, dir string) {
			os.Rename(filepath.Join(dir, recordName(1)), filepath.Join(dir, "x"))
			os.Rename(filepath.Join(dir, recordName(2)), filepath.Join(dir, recordName(1)))
			os.Rename(filepath.Join(dir, "x"), filepath.Join(dir, recordName(2)))
		},
		// by the coordinator itself
		"a site left out of its group":  record(func(r *Record) { r.Groups[0].Members = r.Groups[0].Members[1:] }),
		"groups exchanged":              record(func(r *Record) { r.Groups[0], r.Groups[1] = r.Groups[1], r.Groups[0] }),
		"a group left out":              record(func(r *Record) { r.Groups = r.Groups[:1] }),
		"another result":                record(func(r *Record) { r.Result[0] ^= 1 }),
		"other weights to begin with":   record(func(r *Record) { r.Model[0] ^= 1 }),
		"another number":                record(func(r *Record) { r.Number = 7 }),
		"a survivor forgotten":          record(func(r *Record) { r.Groups[0].Vectors = r.Groups[0].Vectors[1:] }),
		"too few confirmations":         record(func(r *Record) { r.Groups[0].Confirmations = r.Groups[0].Confirmations[:2] }),
		"too few reveals":               record(func(r *Record) { r.Groups[0].Reveals = r.Groups[0].Reveals[:1] }),
		"a message of another site":     record(func(r *Record) { r.Groups[0].Keys[0].From = r.Groups[0].Keys[1].From }),
		"a failed group that did not":   record(func(r *Record) { r.Groups[0].Failure = "it rained" }),
		"an attempt that did not count": record(func(r *Record) { r.Failure = "it rained" }),
		"a claim that all have vouched": record(func(r *Record) {
			for i := range r.Groups {
				r.Groups[i].Unvouched = nil
			}
		}),
		"confirmations of the next round": func(t *testing.T, dir string) {
			var next Record
			rewrite(t, dir, 2, func(r *Record) { next = *r })
			rewrite(t, dir, 1, func(r *Record) { r.Groups[0].Confirmations = next.Groups[0].Confirmations })
		},
	} {
		t.Run(what, func(t *testing.T) {
			other := t.TempDir()
			if err := os.CopyFS(other, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			change(t, other)
			if _, err := s.replay(t, other); err == nil {
				t.Error("it replays")
			} else if !errors.Is(err, ErrTranscript) && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("it does not say that the transcript is at fault: %v", err)
			}
		})
	}
	t.Run("other sites than those that are trusted", func(t *testing.T) {
		members := slices.Clone(s.members)
		members[2].Key = leader.Public().(ed25519.PublicKey)
		if _, err := ReplayRun(t.Context(), ReplayOptions{Dir: dir, Coordinator: leader.Public().(ed25519.PublicKey), Members: members}); !errors.Is(err, ErrTranscript) {
			t.Error(err)
		}
	})
	t.Run("another coordinator", func(t *testing.T) {
		if _, err := ReplayRun(t.Context(), ReplayOptions{Dir: dir, Coordinator: s.members[0].Key, Members: s.members}); !errors.Is(err, ErrTranscript) {
			t.Error(err)
		}
	})
	t.Run("recording another run into it", func(t *testing.T) {
		s.terms.Rounds = 9
		o := CoordinatorOptions{Terms: s.terms, Members: s.members, Variables: make([]float32, 3), Trained: 3}
		if _, err := o.Record(dir, leader); !errors.Is(err, ErrTranscript) {
			t.Error(err)
		}
	})
}

func TestSitesForgetTheSecretsOfARoundThatEndsWithoutThem(t *testing.T) {
	s := newSchool(t, 4, 3, nil)
	c := s.coordinator(t, nil)
	links := s.links()
	links[2] = failing{links[2], StepConfirm}
	if _, err := c.Round(t.Context(), links); err != nil {
		t.Fatal(err)
	}
	c.Settle()
	for i, site := range s.sites {
		if !site.session.Erased() || site.vector != nil {
			t.Errorf("site %d still holds the secrets of the round", i)
		}
		kept := string(s.keepers[i].(memoryKeeper)[siteMemory])
		if strings.Contains(kept, `"own":"`) || strings.Contains(kept, "mask_shares") {
			t.Errorf("site %d still keeps them", i)
		}
		s.sites[i] = s.open(t, i) // and goes on
	}
	if _, err := c.Round(t.Context(), s.links()); err != nil {
		t.Error(err)
	}
}

// FuzzTranscript reads damaged records and headers.
func FuzzTranscript(f *testing.F) {
	s := newSchool(f, 3, 2, func(terms *Terms) { terms.Rounds = 1 })
	dir := f.TempDir()
	c := s.recorded(f, nil, dir)
	if _, err := c.Round(f.Context(), s.links()); err != nil {
		f.Fatal(err)
	}
	envelope, err := readEnvelope(filepath.Join(dir, recordName(1)), true, maxRecord)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(envelope.Payload), true)
	header, err := readEnvelope(filepath.Join(dir, headerName), false, maxHeader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(header.Payload), false)
	f.Fuzz(func(t *testing.T, payload []byte, record bool) {
		other := t.TempDir()
		if err := os.CopyFS(other, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		kind, name := HeaderType, headerName
		if record {
			kind, name = RecordType, recordName(1)
		}
		signed, err := dsse.Sign(leader, kind, payload)
		if err != nil {
			t.Fatal(err)
		}
		data, err := json.Marshal(signed)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		var w io.WriteCloser = nopCloser{&b}
		if record {
			w = gzip.NewWriter(&b)
		}
		w.Write(data)
		w.Close()
		if err := os.WriteFile(filepath.Join(other, name), b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := s.replay(t, other)
		if err == nil && r.Attempts[0].Counted {
			if digest := c.Weights().Digest(); r.Model != hexOf(digest[:]) {
				t.Error("it replays to other weights")
			}
		}
	})
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func TestAPublishedModelIsHeldAgainstTheRunBitByBit(t *testing.T) {
	s := newSchool(t, 4, 5, func(terms *Terms) { terms.Rounds = 2 })
	dir := t.TempDir()
	o := CoordinatorOptions{Terms: s.terms, Members: s.members, Variables: make([]float32, 5), Trained: 5, Layout: []Span{{"kernel", 3}, {"bias", 2}}}
	var err error
	if o.Transcript, err = o.Record(dir, leader); err != nil {
		t.Fatal(err)
	}
	c, err := NewCoordinator(o)
	if err != nil {
		t.Fatal(err)
	}
	for !c.Done() {
		if _, err := c.Round(t.Context(), s.links()); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.replay(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	v := c.Weights().Variables
	model := func(kernel, bias []float32) *onnx.Model {
		return &onnx.Model{Graph: &onnx.Graph{Initializers: []*onnx.Tensor{
			onnx.NewTensor("bias", []int64{int64(len(bias))}, bias), onnx.NewTensor("fixed", []int64{1}, []float32{9}), onnx.NewTensor("kernel", []int64{int64(len(kernel)), 1}, kernel)}}}
	}
	if err := r.CheckModel(model(v[:3], v[3:])); err != nil {
		t.Error(err)
	}
	other := slices.Clone(v)
	other[4] = math.Nextafter32(other[4], 9)
	for what, m := range map[string]*onnx.Model{
		"a number changed by a bit": model(other[:3], other[3:]),
		"tensors exchanged":         model(v[2:], v[:2]),
		"a tensor missing":          {Graph: &onnx.Graph{Initializers: []*onnx.Tensor{onnx.NewTensor("kernel", []int64{3}, v[:3])}}},
	} {
		if err := r.CheckModel(m); !errors.Is(err, ErrTranscript) {
			t.Errorf("%s: %v", what, err)
		}
	}
	var text bytes.Buffer
	if err := r.Write(&text); err != nil || !strings.Contains(text.String(), r.Model) || !strings.Contains(text.String(), "2 of 2 rounds") {
		t.Errorf("%s (%v)", text.String(), err)
	}
}

func TestARunGoesOnInItsTranscriptWhenItsSitesChange(t *testing.T) {
	s := newSchool(t, 6, 3, func(terms *Terms) { terms.Rounds = 3 })
	dir, keeper := t.TempDir(), memoryKeeper{}
	all := s.members
	reopen := func(members []secagg.Member) []Link {
		s.members = members
		var links []Link
		for i, m := range all {
			if slices.ContainsFunc(members, func(o secagg.Member) bool { return o.Name == m.Name }) {
				site, err := NewSite(SiteOptions{Name: m.Name, Terms: s.terms, Members: members, Signer: s.signers[i], Trainer: s.pupils[i], Keeper: s.keepers[i]})
				if err != nil {
					t.Fatal(err)
				}
				links = append(links, Direct(site))
			}
		}
		return links
	}
	var c *Coordinator
	for _, members := range [][]secagg.Member{all[:4], all, all[1:]} {
		links := reopen(members)
		c = s.recorded(t, keeper, dir)
		if _, err := c.Round(t.Context(), links); err != nil {
			t.Fatal(err)
		}
		c.Settle()
	}
	s.members = all
	r, err := s.replay(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	if digest := c.Weights().Digest(); r.Model != hexOf(digest[:]) {
		t.Error("the replay leads elsewhere")
	}
	for i, want := range [][]int{{0, 1}, {0, 1, 2}, {0, 1, 2}, {0, 1, 2}, {1, 2}, {1, 2}} {
		if !slices.Equal(r.Sites[i].Rounds, want) {
			t.Errorf("%s was in %v, want %v", r.Sites[i].Name, r.Sites[i].Rounds, want)
		}
	}
	s.members = all[1:]
	if _, err := s.replay(t, dir); !errors.Is(err, ErrTranscript) {
		t.Errorf("with a site that is not trusted: %v", err)
	}
}
