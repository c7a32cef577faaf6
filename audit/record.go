package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/vigie/vigie"
)

// Kind says what happened: lower-case letters, digits, "-" and ".", at most
// 64 of them.
type Kind string

// The kinds of record that the packages of Vigie write. Others may be used.
const (
	KindReceived  Kind = "received"  // a case was taken in
	KindDiagnosed Kind = "diagnosed" // a finding, or why there is none
	KindTriaged   Kind = "triaged"   // released, in review or quarantined
	KindReviewed  Kind = "reviewed"  // a person decided
	KindDelivered Kind = "delivered" // every destination acknowledged
	KindDelivery  Kind = "delivery"  // one destination acknowledged one object
	KindResent    Kind = "resent"    // an object of the case came again
	KindViewed    Kind = "viewed"    // a person read the case
	KindErased    Kind = "erased"    // a patient's data keys were destroyed
	KindStarted   Kind = "started"   // a process began with this configuration
)

// Record is one entry of the log. Kind and Time are always set; what does not
// apply is empty. No field may hold a patient datum: Patient is a pseudonym.
type Record struct {
	Kind          Kind
	Time          time.Time // to the microsecond, UTC; Append fills it if it is zero
	Case          vigie.CaseID
	Patient       vigie.PatientPseudonym
	Source        vigie.Source // who sent the object
	Actor         string       // who did it: a person, or the program's role
	Model         vigie.ModelDigest
	Configuration vigie.Digest
	Input         vigie.Digest
	Output        vigie.Digest
	From, To      vigie.State // a step of the case; From is empty for its first
	Reasons       []vigie.ReasonCode
	Destination   string
	Instance      vigie.InstanceUID
	// Guards lists what the guards of a diagnosis said, as name=p-value, separated by
	// blanks; first, where there are prediction sets, sets=answers@coverage.
	Guards   string
	Decision string // what a person or triage decided; of a diagnosis, the verdict on its map
}

const (
	recordVersion = 1

	// maxRecord is the largest encoded record, in bytes: entry bundles of
	// tlog-tiles give each entry a 16-bit length.
	maxRecord  = 1<<16 - 1
	maxText    = 512 // bytes of one field
	maxReasons = 64
	timeLayout = "2006-01-02T15:04:05.000000Z"
)

// wire is a record in its one encoding: JSON as RFC 8785 (JCS) canonicalises
// it. Fields stand in the order of their names, empty ones are absent, and
// text is restricted (see checkText) so that the standard library's escapes
// are JCS's.
type wire struct {
	Actor         string             `json:"actor,omitempty"`
	Case          string             `json:"case,omitempty"`
	Configuration string             `json:"configuration,omitempty"`
	Decision      string             `json:"decision,omitempty"`
	Destination   string             `json:"destination,omitempty"`
	From          string             `json:"from,omitempty"`
	Guards        string             `json:"guards,omitempty"`
	Input         string             `json:"input,omitempty"`
	Instance      string             `json:"instance,omitempty"`
	Kind          string             `json:"kind"`
	Model         string             `json:"model,omitempty"`
	Output        string             `json:"output,omitempty"`
	Patient       string             `json:"patient,omitempty"`
	Reasons       []vigie.ReasonCode `json:"reasons,omitempty"`
	Source        *wireSource        `json:"source,omitempty"`
	Time          string             `json:"time"`
	To            string             `json:"to,omitempty"`
	Version       int                `json:"v"`
}

type wireSource struct {
	AETitle     string `json:"ae_title,omitempty"`
	Certificate string `json:"certificate,omitempty"`
	Protocol    string `json:"protocol,omitempty"`
	Subject     string `json:"subject,omitempty"`
}

// Marshal returns the record's one encoding, the bytes of its leaf, or an
// error that names the field that is not acceptable.
func (r Record) Marshal() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("audit: encoding a record of kind %q: %w", r.Kind, err)
	}
	w := wire{
		Actor: r.Actor, Case: string(r.Case), Configuration: string(r.Configuration), Decision: r.Decision,
		Destination: r.Destination, From: string(r.From), Guards: r.Guards, Input: string(r.Input), Instance: string(r.Instance),
		Kind: string(r.Kind), Model: string(r.Model), Output: string(r.Output), Patient: string(r.Patient),
		Reasons: r.Reasons, Time: r.Time.UTC().Format(timeLayout), To: string(r.To), Version: recordVersion,
	}
	if r.Source != (vigie.Source{}) {
		w.Source = &wireSource{AETitle: r.Source.AETitle, Certificate: string(r.Source.Certificate),
			Protocol: r.Source.Protocol, Subject: r.Source.Subject}
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(w); err != nil {
		return nil, fmt.Errorf("audit: encoding a record of kind %q: %w", r.Kind, err)
	}
	data := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	if len(data) > maxRecord {
		return nil, fmt.Errorf("audit: encoding a record of kind %q: %d bytes exceed the limit of %d", r.Kind, len(data), maxRecord)
	}
	return data, nil
}

// ParseRecord reads what Marshal wrote and accepts no other spelling of it.
func ParseRecord(data []byte) (Record, error) {
	if len(data) > maxRecord {
		return Record{}, fmt.Errorf("audit: reading a record: %d bytes exceed the limit of %d", len(data), maxRecord)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	var w wire
	if err := decoder.Decode(&w); err != nil {
		return Record{}, fmt.Errorf("audit: reading a record: %w", err)
	}
	if w.Version != recordVersion {
		return Record{}, fmt.Errorf("audit: reading a record of version %d: only %d is known, use a newer vigie", w.Version, recordVersion)
	}
	when, err := time.Parse(timeLayout, w.Time)
	if err != nil {
		return Record{}, fmt.Errorf("audit: reading the time of a record: %w", err)
	}
	r := Record{
		Kind: Kind(w.Kind), Time: when, Case: vigie.CaseID(w.Case), Patient: vigie.PatientPseudonym(w.Patient),
		Actor: w.Actor, Model: vigie.ModelDigest(w.Model), Configuration: vigie.Digest(w.Configuration),
		Input: vigie.Digest(w.Input), Output: vigie.Digest(w.Output), From: vigie.State(w.From), To: vigie.State(w.To),
		Reasons: w.Reasons, Destination: w.Destination, Instance: vigie.InstanceUID(w.Instance), Decision: w.Decision,
		Guards: w.Guards,
	}
	if w.Source != nil {
		r.Source = vigie.Source{Protocol: w.Source.Protocol, AETitle: w.Source.AETitle,
			Certificate: vigie.Digest(w.Source.Certificate), Subject: w.Source.Subject}
	}
	again, err := r.Marshal()
	if err != nil {
		return Record{}, err
	}
	if !bytes.Equal(again, data) {
		return Record{}, errors.New("audit: reading a record: it is not in canonical form")
	}
	return r, nil
}

func (r *Record) check() error {
	if len(r.Kind) == 0 || len(r.Kind) > 64 {
		return errors.New("the kind is empty or longer than 64 bytes")
	}
	for _, c := range []byte(r.Kind) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '.') {
			return errors.New("the kind holds something other than a-z, 0-9, the dash and the dot")
		}
	}
	if year := r.Time.UTC().Year(); year < 1970 || year > 9999 {
		return fmt.Errorf("the year %d is out of range", year)
	}
	for _, field := range []struct{ name, text string }{
		{"actor", r.Actor}, {"case", string(r.Case)}, {"configuration", string(r.Configuration)},
		{"decision", r.Decision}, {"destination", r.Destination}, {"guards", r.Guards}, {"input", string(r.Input)},
		{"instance", string(r.Instance)}, {"model", string(r.Model)}, {"output", string(r.Output)},
		{"patient", string(r.Patient)}, {"source ae_title", r.Source.AETitle},
		{"source certificate", string(r.Source.Certificate)}, {"source protocol", r.Source.Protocol},
		{"source subject", r.Source.Subject},
	} {
		if err := checkText(field.text); err != nil {
			return fmt.Errorf("field %s %w", field.name, err)
		}
	}
	if len(r.Reasons) > maxReasons {
		return fmt.Errorf("%d reasons exceed the limit of %d", len(r.Reasons), maxReasons)
	}
	for _, reason := range r.Reasons {
		if err := checkText(string(reason)); err != nil {
			return fmt.Errorf("field reasons %w", err)
		}
	}
	return r.checkStep()
}

// checkStep holds a step of a case against the allowed transitions.
func (r *Record) checkStep() error {
	switch {
	case r.From == "" && r.To == "":
		return nil
	case r.Case == "":
		return errors.New("a step from one state to another names no case")
	case r.From == "" && r.To == vigie.Received:
		return nil
	case r.From != "" && r.From.CanBecome(r.To):
		return nil
	}
	return fmt.Errorf("a case does not go from %q to %q", r.From, r.To)
}

// checkText accepts text that every JSON encoder spells alike.
func checkText(text string) error {
	if len(text) > maxText {
		return fmt.Errorf("holds %d bytes, the limit is %d", len(text), maxText)
	}
	if !utf8.ValidString(text) {
		return errors.New("is not UTF-8")
	}
	for _, c := range text {
		if unicode.IsControl(c) || c == '\u2028' || c == '\u2029' {
			return fmt.Errorf("holds the control character %U", c)
		}
	}
	return nil
}
