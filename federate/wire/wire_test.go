package wire

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie/federate"
	"github.com/vigie/vigie/federate/secagg"
)

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{7}).Read(b)
	return b
}

func TestACallReachesASiteThatDialledAndItsAnswerComesBack(t *testing.T) {
	st := newStage(t, nil)
	st.play(st.client("lyon"), echo)
	st.connected("lyon")
	if _, body, err := st.ask("lyon", Call{Body: json.RawMessage(`{"a": 1}`)}); err != nil || string(body) != `{"a": 1}` {
		t.Errorf("%s, %v", body, err)
	}
	for _, n := range []int{0, 1, 4095, piece, 3*piece + 5} {
		want := noise(n)
		got, _, err := st.ask("lyon", Call{Body: json.RawMessage(`{}`), Bulk: Bytes(want)})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes there and back: %d, %v", n, len(got), err)
		}
	}
	left, err := filepath.Glob(filepath.Join(st.Dir, "*", "*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in the spool: %v, %v", left, err)
	}
}

func TestWhatASiteSaysOfItsFailureIsTold(t *testing.T) {
	st := newStage(t, nil)
	st.play(st.client("lyon"), func(_ context.Context, c Call) (Reply, error) {
		if c.Kind == "refused" {
			return Reply{}, fmt.Errorf("%w: not on a Sunday", ErrRefused)
		}
		return Reply{}, errors.New("the disk is full\x00")
	})
	_, _, err := st.ask("lyon", Call{Run: "1", Kind: "refused", Body: json.RawMessage(`{}`)})
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "not on a Sunday") {
		t.Error(err)
	}
	_, _, err = st.ask("lyon", Call{Run: "1", Kind: "failed", Body: json.RawMessage(`{}`)})
	if !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "the disk is full") || strings.Contains(err.Error(), "\x00") {
		t.Error(err)
	}
}

// pupil moves every variable a little, each in its own way.
type pupil struct{ n, at int }

func (p pupil) Size() (int, int) { return p.n, p.n }
func (p pupil) Examples() int    { return 100 + p.at }
func (p pupil) Train(_ context.Context, w federate.Work) (int, float64, error) {
	for j := range w.Variables {
		w.Variables[j] += float32(w.Rate) * (float32((j*7+p.at)%13)/13 - w.Variables[j])
	}
	return 1, 0.5, nil
}

// school is a federation whose sites have certificates.
type school struct {
	terms   federate.Terms
	members []secagg.Member
	signers []ed25519.PrivateKey
	size    int
}

func newSchool(n, size int) *school {
	s := &school{terms: federate.DefaultTerms("north"), size: size}
	s.terms.Rounds, s.terms.Rate, s.terms.FinalRate = 3, 0.1, 0.1
	s.terms.Deadline = 2 * time.Minute
	for i := range n {
		key := ed25519.NewKeyFromSeed(slices.Repeat([]byte{byte(i + 1)}, 32))
		s.signers = append(s.signers, key)
		s.members = append(s.members, secagg.Member{Name: fmt.Sprintf("site-%02d", i), Key: key.Public().(ed25519.PublicKey)})
	}
	return s
}

func (s *school) site(t testing.TB, i int) *federate.Site {
	t.Helper()
	keeper, err := federate.Folder(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	site, err := federate.NewSite(federate.SiteOptions{Name: s.members[i].Name, Terms: s.terms, Members: s.members, Signer: s.signers[i], Trainer: pupil{s.size, i}, Keeper: keeper})
	if err != nil {
		t.Fatal(err)
	}
	return site
}

func (s *school) coordinator(t testing.TB) *federate.Coordinator {
	t.Helper()
	c, err := federate.NewCoordinator(federate.CoordinatorOptions{Terms: s.terms, Members: s.members, Variables: make([]float32, s.size), Trained: s.size})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRoundsOverTheWireEndWithTheWeightsOfRoundsInOneProcess(t *testing.T) {
	for _, algorithm := range []federate.Algorithm{federate.FedAvg, federate.SCAFFOLD, "fewer bits"} {
		run := func(links func(s *school) []federate.Link) []float32 {
			s := newSchool(4, 2000)
			s.terms.Algorithm = algorithm
			if algorithm == "fewer bits" {
				s.terms.Algorithm, s.terms.Bits, s.terms.Limit, s.terms.Down = federate.FedAvg, 17, 0.2, 16
			}
			if algorithm == federate.SCAFFOLD {
				s.terms.Momentum = 0
			}
			c := s.coordinator(t)
			all := links(s)
			for !c.Done() {
				if out, err := c.Round(t.Context(), all); err != nil || out.Sites != 4 {
					t.Fatal(out.Sites, err)
				}
			}
			return c.Weights().Variables
		}
		direct := run(func(s *school) (links []federate.Link) {
			for i := range s.members {
				links = append(links, federate.Direct(s.site(t, i)))
			}
			return links
		})
		wired := run(func(s *school) (links []federate.Link) {
			st := newStage(t, nil)
			for i, m := range s.members {
				st.play(st.client(m.Name), Orders(s.site(t, i)))
				links = append(links, Link(st.Server, "run-1", m.Name))
			}
			return links
		})
		if !slices.Equal(direct, wired) {
			t.Errorf("%s: other weights", algorithm)
		}
		if direct[1] == 0 {
			t.Errorf("%s: nothing was learnt", algorithm)
		}
	}
}
