package enclave

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/keys/dsse"
)

func TestAFindingComesBackAsItWasSigned(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{})
	request := exampleRequest()
	result, err := NewClient(w, developmentVerifier(t, exampleModel), ClientOptions{}).Diagnose(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	f := result.Finding
	if f.Case != request.Case || f.Input != vigie.DigestOf(request.DICOM) || f.Model != exampleModel ||
		f.Configuration != w.Configuration() || f.ModelName != "scripted" || f.Time.IsZero() {
		t.Errorf("the finding does not say what it is about: %+v", f)
	}
	if len(f.Predictions) != 1 || f.Explanation == nil || !bytes.Equal(f.Explanation.Map, []uint8{0, 1, 2, 3, 4, 255}) {
		t.Errorf("the analyst's answer changed on its way: %+v", f)
	}
	again, err := result.Signed.Verify(result.Evidence.Claims.SigningKey)
	if err != nil || again.Case != f.Case {
		t.Errorf("the kept bytes do not verify: %v", err)
	}
	envelope, err := json.Marshal(result.Signed)
	if err != nil {
		t.Fatal(err)
	}
	var read SignedFinding
	if err := json.Unmarshal(envelope, &read); err != nil {
		t.Fatal(err)
	}
	if _, err := read.Verify(result.Evidence.Claims.SigningKey); err != nil || !bytes.Equal(read.Payload, result.Signed.Payload) {
		t.Errorf("the envelope does not carry the signature: %v", err)
	}
}

// stride between flipped bits: every byte is hit, in varying places; with
// -short every fifth.
func stride() int {
	if testing.Short() {
		return 41
	}
	return 3
}

func TestOneFlippedBitAnywhereInASealedCaseIsRefused(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{})
	sealed, _, err := Seal(verified(t, w), exampleRequest())
	if err != nil {
		t.Fatal(err)
	}
	for bit := 0; bit < len(sealed)*8; bit += stride() {
		flipped := bytes.Clone(sealed)
		flipped[bit/8] ^= 1 << (bit % 8)
		if _, err := w.Diagnose(context.Background(), flipped); !errors.Is(err, ErrSealed) && !errors.Is(err, ErrUnknownKey) {
			t.Fatalf("bit %d of %d: got %v, want ErrSealed or ErrUnknownKey", bit, len(sealed)*8, err)
		}
	}
}

func TestOneFlippedBitAnywhereInAReplyIsRefused(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{})
	sealed, pending, err := Seal(verified(t, w), exampleRequest())
	if err != nil {
		t.Fatal(err)
	}
	reply, err := w.Diagnose(context.Background(), sealed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pending.Open(reply); err != nil {
		t.Fatal(err)
	}
	for bit := 0; bit < len(reply)*8; bit += stride() {
		flipped := bytes.Clone(reply)
		flipped[bit/8] ^= 1 << (bit % 8)
		if _, err := pending.Open(flipped); !errors.Is(err, ErrReply) {
			t.Fatalf("bit %d of %d: got %v, want ErrReply", bit, len(reply)*8, err)
		}
	}
}

func TestEveryTruncationIsRefused(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{})
	sealed, pending, err := Seal(verified(t, w), exampleRequest())
	if err != nil {
		t.Fatal(err)
	}
	reply, err := w.Diagnose(context.Background(), sealed)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(sealed); n += 1 + stride()/4 {
		if _, err := w.Diagnose(context.Background(), sealed[:n]); !errors.Is(err, ErrSealed) {
			t.Fatalf("a case cut to %d bytes: got %v, want ErrSealed", n, err)
		}
	}
	for n := 0; n < len(reply); n += 1 + stride()/4 {
		if _, err := pending.Open(reply[:n]); !errors.Is(err, ErrReply) {
			t.Fatalf("a reply cut to %d bytes: got %v, want ErrReply", n, err)
		}
	}
	if _, err := w.Diagnose(context.Background(), append(bytes.Clone(sealed), 0)); !errors.Is(err, ErrSealed) {
		t.Errorf("a case with one byte more: got %v, want ErrSealed", err)
	}
}

func TestAReplyOpensOnlyForTheRequestItAnswers(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{})
	v := verified(t, w)
	first, firstPending, err := Seal(v, exampleRequest())
	if err != nil {
		t.Fatal(err)
	}
	reply, err := w.Diagnose(context.Background(), first)
	if err != nil {
		t.Fatal(err)
	}
	otherCase := exampleRequest()
	otherCase.Case = "bbbbbbbbbbbbbbbbbbbbbbbbbb"
	for name, request := range map[string]Request{"the same case sealed again": exampleRequest(), "another case": otherCase} {
		_, pending, err := Seal(v, request)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pending.Open(reply); !errors.Is(err, ErrReply) {
			t.Errorf("%s: got %v, want ErrReply", name, err)
		}
	}
	if _, err := firstPending.Open(reply); err != nil {
		t.Errorf("the right request: %v", err)
	}
}

// forge seals any finding, signed by any key, as an answer to a request whose
// reply key leaked: even then the checks inside must hold.
func forge(t *testing.T, pending *Pending, key ed25519.PrivateKey, change func(*vigie.Finding)) []byte {
	t.Helper()
	claims := pending.enclave.Claims()
	finding := positive()
	finding.Case, finding.Input, finding.Model, finding.Configuration = pending.id, pending.input, claims.Model, claims.Configuration
	change(&finding)
	payload, err := json.Marshal(finding)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := sign(key, payload)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := sealFinding(pending.replyKey.PublicKey(), pending.enclave.Identity(), pending.request, signed)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func TestAFindingAboutSomethingElseIsRefused(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{})
	_, pending, err := Seal(verified(t, w), exampleRequest())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pending.Open(forge(t, pending, w.keys.signing, func(*vigie.Finding) {})); err != nil {
		t.Fatalf("an unchanged finding: %v", err)
	}
	for name, change := range map[string]func(*vigie.Finding){
		"another case":          func(f *vigie.Finding) { f.Case = "other" },
		"another input":         func(f *vigie.Finding) { f.Input = vigie.DigestOf(nil) },
		"another model":         func(f *vigie.Finding) { f.Model = "sha256:2" },
		"another configuration": func(f *vigie.Finding) { f.Configuration = vigie.DigestOf(nil) },
		"a probability above 1": func(f *vigie.Finding) { f.Predictions[0].Probability = 1.5 },
		"a wrong positive flag": func(f *vigie.Finding) { f.Predictions[0].Positive = false },
		"a short map":           func(f *vigie.Finding) { f.Explanation.Rows = 3 },
		"a negative map":        func(f *vigie.Finding) { f.Explanation.Rows, f.Explanation.Columns = -2, -3 },
		"an empty answer":       func(f *vigie.Finding) { f.Predictions = nil },
	} {
		if _, err := pending.Open(forge(t, pending, w.keys.signing, change)); !errors.Is(err, ErrReply) {
			t.Errorf("%s: got %v, want ErrReply", name, err)
		}
	}
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pending.Open(forge(t, pending, stranger, func(*vigie.Finding) {})); !errors.Is(err, ErrReply) || !errors.Is(err, ErrSignature) {
		t.Errorf("a stranger's signature: got %v, want ErrReply and ErrSignature", err)
	}
}

func TestASignatureForAnotherPurposeIsNotAFindings(t *testing.T) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	payload := []byte(`{"case":"x"}`)
	public := key.Public().(ed25519.PublicKey)
	for name, message := range map[string][]byte{"bare": payload, "other type": dsse.PreAuthentication("application/json", payload)} {
		signed := SignedFinding{Payload: payload, Signature: ed25519.Sign(key, message), Key: public}
		if _, err := signed.Verify(public); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: got %v, want ErrSignature", name, err)
		}
	}
}

func TestAnotherEnclaveCannotOpenACase(t *testing.T) {
	one := scriptedWorker(t, &scripted{}, Options{})
	two := scriptedWorker(t, &scripted{}, Options{})
	sealed, _, err := Seal(verified(t, one), exampleRequest())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := two.Diagnose(context.Background(), sealed); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("got %v, want ErrUnknownKey", err)
	}
	// Renaming the key in the header does not help.
	key, err := two.keys.newest()
	if err != nil {
		t.Fatal(err)
	}
	copy(sealed[magicSize:], key.identity[:])
	if _, err := two.Diagnose(context.Background(), sealed); !errors.Is(err, ErrSealed) {
		t.Errorf("with the other key's name: got %v, want ErrSealed", err)
	}
}

func TestTheSealedBytesShowNothingOfTheCase(t *testing.T) {
	w := scriptedWorker(t, &scripted{}, Options{})
	request := exampleRequest()
	sealed, _, err := Seal(verified(t, w), request)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := w.Diagnose(context.Background(), sealed)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{string(request.Patient), string(request.DICOM), "pneumonia", "2.25.1"} {
		if bytes.Contains(sealed, []byte(secret)) || bytes.Contains(reply, []byte(secret)) {
			t.Errorf("%q travels in clear", secret)
		}
	}
}

func TestAnyCaseSurvivesSealing(t *testing.T) {
	var patient vigie.PatientPseudonym
	var dicom []byte
	w := scriptedWorker(t, &scripted{answer: func(_ context.Context, p vigie.PatientPseudonym, d []byte) vigie.Finding {
		patient, dicom = p, bytes.Clone(d)
		return positive()
	}}, Options{})
	client := NewClient(w, developmentVerifier(t, exampleModel), ClientOptions{})
	rapid.Check(t, func(t *rapid.T) {
		request := Request{
			Case:    vigie.CaseID(rapid.StringMatching(`[!-~]{1,64}`).Draw(t, "case")),
			Patient: vigie.PatientPseudonym(rapid.StringN(0, 60, maxPatient).Draw(t, "patient")),
			DICOM:   rapid.SliceOfN(rapid.Byte(), 0, 5000).Draw(t, "dicom"),
		}
		result, err := client.Diagnose(context.Background(), request)
		if err != nil {
			t.Fatal(err)
		}
		if result.Finding.Case != request.Case || patient != request.Patient || !bytes.Equal(dicom, request.DICOM) {
			t.Fatal("the enclave saw another case")
		}
	})
}

func TestACaseThatCannotBeSealedIsAnError(t *testing.T) {
	v := verified(t, scriptedWorker(t, &scripted{}, Options{}))
	for name, change := range map[string]func(*Request){
		"no case id":        func(r *Request) { r.Case = "" },
		"a long case id":    func(r *Request) { r.Case = vigie.CaseID(bytes.Repeat([]byte("a"), maxCaseID+1)) },
		"a binary case id":  func(r *Request) { r.Case = "a\nb" },
		"a long pseudonym":  func(r *Request) { r.Patient = vigie.PatientPseudonym(bytes.Repeat([]byte("a"), maxPatient+1)) },
		"too large a DICOM": func(r *Request) { r.DICOM = make([]byte, MaxDICOM+1) },
	} {
		request := exampleRequest()
		change(&request)
		if _, _, err := Seal(v, request); err == nil {
			t.Errorf("%s: it was sealed", name)
		}
	}
}

// FuzzDecodeCase looks at what an authenticated but hostile gateway can put
// inside a sealed case.
func FuzzDecodeCase(f *testing.F) {
	f.Add(sealedCase{patient: "p", replyKey: make([]byte, keySize), dicom: []byte("dicom")}.encode())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, plaintext []byte) {
		content, err := decodeCase("x", plaintext)
		if err != nil {
			if !errors.Is(err, ErrSealed) {
				t.Fatalf("error is not ErrSealed: %v", err)
			}
			return
		}
		if !bytes.Equal(content.encode(), plaintext) {
			t.Fatal("an accepted case does not encode to itself")
		}
	})
}

// FuzzSealedCase looks at what anybody who reaches the enclave can send.
func FuzzSealedCase(f *testing.F) {
	w := scriptedWorker(f, &scripted{}, Options{})
	sealed, _, err := Seal(verified(f, w), exampleRequest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sealed)
	f.Add(sealed[:60])
	f.Add([]byte(caseMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) >= magicSize+32 { // the right key's name, so that what follows is looked at
			copy(data[magicSize:], sealed[magicSize:magicSize+32])
		}
		if bytes.Equal(data, sealed) {
			return
		}
		if _, err := w.Diagnose(context.Background(), data); !errors.Is(err, ErrSealed) && !errors.Is(err, ErrUnknownKey) {
			t.Fatalf("got %v, want ErrSealed or ErrUnknownKey", err)
		}
	})
}
