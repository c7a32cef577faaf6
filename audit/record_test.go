package audit

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"pgregory.net/rapid"
)

func TestARecordHasOneEncodingWithItsFieldsInOrder(t *testing.T) {
	r := Record{Kind: KindReceived, Time: time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("CET", 3600)), Case: "c", Patient: "p",
		Source: vigie.Source{Protocol: "dimse", AETitle: "A&E <1>"}, Actor: "é", To: vigie.Received, Reasons: []vigie.ReasonCode{"guard"}}
	data, err := r.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	want := `{"actor":"é","case":"c","kind":"received","patient":"p","reasons":["guard"],"source":{"ae_title":"A&E <1>","protocol":"dimse"},"time":"2026-01-02T02:04:05.000006Z","to":"received","v":1}`
	if string(data) != want {
		t.Errorf("\n%s, want\n%s", data, want)
	}
	for name, other := range map[string]string{
		"a blank":                 strings.Replace(want, ":1}", ": 1}", 1),
		"fields in another order": strings.Replace(want, `"actor":"é","case":"c"`, `"case":"c","actor":"é"`, 1),
		"an escape":               strings.Replace(want, "é", `\u00e9`, 1),
		"an empty field":          strings.Replace(want, `"v":1`, `"v":1,"output":""`, 1),
		"an unknown field":        strings.Replace(want, `"v":1`, `"v":1,"x":1`, 1),
		"a field twice":           strings.Replace(want, `"v":1`, `"v":1,"v":1`, 1),
		"another version":         strings.Replace(want, `"v":1`, `"v":2`, 1),
		"another case of a name":  strings.Replace(want, `"case"`, `"Case"`, 1),
		"another time zone":       strings.Replace(want, `02:04:05.000006Z`, `03:04:05.000006+01:00`, 1),
		"something after it":      want + "{}",
		"a forbidden step":        strings.Replace(want, `"to":"received"`, `"to":"delivered"`, 1),
	} {
		if _, err := ParseRecord([]byte(other)); err == nil {
			t.Errorf("%s was accepted: %s", name, other)
		}
	}
}

func TestARecordThatIsNotFitForTheLogIsRefused(t *testing.T) {
	good := Record{Kind: "x", Time: time.Now(), Case: "c", To: vigie.Received}
	if _, err := good.Marshal(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(r *Record){
		"no kind":                func(r *Record) { r.Kind = "" },
		"a kind in capitals":     func(r *Record) { r.Kind = "Received" },
		"no time":                func(r *Record) { r.Time = time.Time{} },
		"a control character":    func(r *Record) { r.Actor = "a\nb" },
		"bytes that are no text": func(r *Record) { r.Actor = "\xff" },
		"a line separator":       func(r *Record) { r.Decision = "\u2028" },
		"a long field":           func(r *Record) { r.Destination = strings.Repeat("x", maxText+1) },
		"many reasons":           func(r *Record) { r.Reasons = make([]vigie.ReasonCode, maxReasons+1) },
		"a step of no case":      func(r *Record) { r.Case = "" },
		"a step back":            func(r *Record) { r.From, r.To = vigie.Delivered, vigie.Received },
		"a first step elsewhere": func(r *Record) { r.To = vigie.Released },
		"a step to nowhere":      func(r *Record) { r.From, r.To = vigie.Received, "" },
	} {
		r := good
		spoil(&r)
		if _, err := r.Marshal(); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func drawRecord(t *rapid.T) Record {
	text := rapid.StringMatching(`[ -~éΩ漢"\\<>&]{0,40}`)
	r := Record{
		Kind: Kind(rapid.StringMatching(`[a-z0-9.-]{1,64}`).Draw(t, "kind")),
		Time: time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(t, "time")).UTC(),
		Case: vigie.CaseID(rapid.StringMatching(`[a-z2-7]{26}`).Draw(t, "case")), Patient: vigie.PatientPseudonym(text.Draw(t, "patient")),
		Source: vigie.Source{Protocol: text.Draw(t, "protocol"), AETitle: text.Draw(t, "ae"), Subject: text.Draw(t, "subject")},
		Actor:  text.Draw(t, "actor"), Decision: text.Draw(t, "decision"), Destination: text.Draw(t, "destination"),
	}
	if rapid.Bool().Draw(t, "step") {
		r.From = rapid.SampledFrom([]vigie.State{vigie.Received, vigie.Diagnosed, vigie.Released}).Draw(t, "from")
		r.To = map[vigie.State]vigie.State{vigie.Received: vigie.Diagnosed, vigie.Diagnosed: vigie.InReview, vigie.Released: vigie.Delivered}[r.From]
	}
	for range rapid.IntRange(0, 3).Draw(t, "reasons") {
		r.Reasons = append(r.Reasons, vigie.ReasonGuard)
	}
	return r
}

func TestARecordReadsBackAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRecord(t)
		data, err := r.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseRecord(data)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(r, again) {
			t.Fatalf("%+v became %+v", r, again)
		}
		// RFC 8785: names in order, no blanks. Sorting is what encoding/json
		// does to a map.
		var generic map[string]any
		if err := json.Unmarshal(data, &generic); err != nil {
			t.Fatal(err)
		}
		var sorted bytes.Buffer
		encoder := json.NewEncoder(&sorted)
		encoder.SetEscapeHTML(false)
		if err := encoder.Encode(generic); err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSpace(sorted.String()); got != string(data) {
			t.Fatalf("%s is not canonical: %s", data, got)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	data, err := Record{Kind: KindReceived, Time: time.Unix(1, 0), Case: "c", To: vigie.Received, Source: vigie.Source{Protocol: "dimse"}}.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"kind":"x","time":"2026-01-02T02:04:05.000006Z","v":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRecord(data)
		if err != nil {
			return
		}
		if again, err := r.Marshal(); err != nil || !bytes.Equal(again, data) {
			t.Fatalf("%q was accepted and is written %q (%v)", data, again, err)
		}
	})
}
