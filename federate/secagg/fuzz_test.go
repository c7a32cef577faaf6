package secagg

import (
	"encoding/json"
	"testing"
)

// FuzzPayload lets a member sign anything as any message of a round: neither
// the coordinator nor another site may do more than refuse.
func FuzzPayload(f *testing.F) {
	c := newCast(f, 4, 3, 1)
	types := []string{KeysType, ParcelType, AcceptanceType, ConfirmType, RevealType, VectorType}
	collect := func(kind int, m Message) { f.Add(kind, []byte(m.Envelope.Payload)) }
	coordinator, err := NewCoordinator(c.round)
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range c.names() {
		collect(0, c.sites[name].Keys())
		if err := coordinator.AddKeys(c.sites[name].Keys()); err != nil {
			f.Fatal(err)
		}
	}
	roster, err := coordinator.CloseKeys()
	if err != nil {
		f.Fatal(err)
	}
	received, dealt := map[string][]Message{}, map[string][]Message{}
	for _, name := range c.names() {
		parcels, err := c.sites[name].Share(roster)
		if err != nil {
			f.Fatal(err)
		}
		dealt[name] = parcels
		for i, m := range parcels {
			collect(1, m)
			received[without(c.names(), []string{name})[i]] = append(received[without(c.names(), []string{name})[i]], m)
		}
	}
	var confirmations []Message
	for _, name := range c.names() {
		acceptance, err := c.sites[name].Accept(received[name])
		if err != nil {
			f.Fatal(err)
		}
		collect(2, acceptance)
		signed, err := c.mask(name, c.names())
		if err != nil {
			f.Fatal(err)
		}
		collect(5, signed)
	}
	for _, name := range c.names() {
		m, err := c.confirm(name, c.names())
		if err != nil {
			f.Fatal(err)
		}
		collect(3, m)
		confirmations = append(confirmations, m)
	}
	reveal, err := c.sites["site-000"].Reveal(confirmations)
	if err != nil {
		f.Fatal(err)
	}
	collect(4, reveal)
	victim, err := c.sites["site-001"].MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, kind int, body []byte) {
		if kind < 0 || kind >= len(types) || !json.Valid(body) {
			return
		}
		m, err := signMessage(c.signers["site-000"], types[kind], raw{body, "site-000"})
		if err != nil {
			return
		}
		site, err := RestoreSite(c.round, "site-001", c.signers["site-001"], victim)
		if err != nil {
			t.Fatal(err)
		}
		coordinator, err := NewCoordinator(c.round)
		if err != nil {
			t.Fatal(err)
		}
		switch types[kind] {
		case KeysType:
			if coordinator.AddKeys(m) == nil {
				if _, err := newRoster(c.round, []Message{m}); err != nil {
					t.Errorf("taken by the coordinator, refused by sites: %v", err)
				}
			}
		case ParcelType:
			site.state.Acceptance = nil
			site.Accept([]Message{m})
		case AcceptanceType:
			coordinator, err := dealtCoordinator(c, roster, dealt)
			if err != nil {
				t.Fatal(err)
			}
			coordinator.AddAcceptance(m)
		case ConfirmType:
			site.Reveal([]Message{m})
			coordinator, err := dealtCoordinator(c, roster, dealt)
			if err != nil {
				t.Fatal(err)
			}
			sum := c.sum(c.names())
			digest := sum.Digest()
			coordinator.partners, coordinator.survivors, coordinator.sum, coordinator.step = c.names(), c.names(), digest[:], stepConfirm
			coordinator.confirmed, coordinator.checksums = map[string]Message{}, map[string]Checksum{}
			coordinator.AddConfirmation(m)
		case VectorType:
			coordinator, err := dealtCoordinator(c, roster, dealt)
			if err != nil {
				t.Fatal(err)
			}
			coordinator.partners, coordinator.arrived, coordinator.step = c.names(), map[string][]byte{}, stepMasked
			coordinator.Arrived(m, VectorDigest(c.masked["site-000"]))
		case RevealType:
			coordinator, err := dealtCoordinator(c, roster, dealt)
			if err != nil {
				t.Fatal(err)
			}
			coordinator.partners, coordinator.survivors, coordinator.step = c.names(), c.names(), stepReveal
			coordinator.seedShares, coordinator.maskShares, coordinator.revealed = map[string]map[int][]byte{}, map[string]map[int][]byte{}, map[string]bool{}
			coordinator.AddReveal(m)
		}
	})
}

func dealtCoordinator(c *cast, roster []Message, dealt map[string][]Message) (*Coordinator, error) {
	coordinator, err := NewCoordinator(c.round)
	if err != nil {
		return nil, err
	}
	for _, m := range roster {
		if err := coordinator.AddKeys(m); err != nil {
			return nil, err
		}
	}
	if _, err := coordinator.CloseKeys(); err != nil {
		return nil, err
	}
	for _, name := range c.names() {
		if err := coordinator.AddShares(name, dealt[name]); err != nil {
			return nil, err
		}
	}
	_, err = coordinator.CloseShares()
	return coordinator, err
}

// FuzzState reads a damaged state.
func FuzzState(f *testing.F) {
	c := newCast(f, 3, 2, 1)
	data, err := c.sites["site-000"].MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		site, err := RestoreSite(c.round, "site-000", c.signers["site-000"], data)
		if err == nil && site.Keys().From != "site-000" {
			t.Error("restored as another site")
		}
	})
}
