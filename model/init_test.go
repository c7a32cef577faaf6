package model

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestANewPackageSaysWhatTheGraphTellsAndAsksForTheRest(t *testing.T) {
	data, err := graph(t, 2).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "new")
	if err := Init(dir, "new-model", data); err != nil {
		t.Fatal(err)
	}
	_, err = Seal(dir)
	if !errors.Is(err, ErrManifest) {
		t.Fatalf("Seal of a draft: %v", err)
	}
	for _, want := range []string{"intended_use.en", "accepts.modalities", "accepts.body_parts", "output.activation", "output.labels[1].code.value", "output.target", "training.licence"} {
		if !strings.Contains(err.Error(), want+": ") {
			t.Errorf("the draft does not ask for %s:\n%v", want, err)
		}
	}
	for _, settled := range []string{"input.", "explanation", "schema", "name: is", "version"} {
		if strings.Contains(err.Error(), ": "+settled) {
			t.Errorf("the draft should have settled %s:\n%v", settled, err)
		}
	}

	manifest, err := os.ReadFile(filepath.Join(dir, ManifestFile))
	if err != nil {
		t.Fatal(err)
	}
	filled := strings.NewReplacer(
		`en: ""`, `en: Test`, `fr: ""`, `fr: Essai`, "modalities: []", "modalities: [CR]", "sop_classes: []", "sop_classes: [1.2.3]",
		"body_parts: []", "body_parts: [{term: CHEST}]", `activation: ""`, "activation: softmax", `target: ""`, "target: label-2",
		`value: "", scheme: SCT, meaning: "", meaning_fr: ""`, `value: "1", scheme: SCT, meaning: a, meaning_fr: b`,
		`licence: ""`, "licence: CC0-1.0", `name: ""`, "name: data", `attribution: ""`, "attribution: nobody",
	).Replace(string(manifest))
	if err := os.WriteFile(filepath.Join(dir, ManifestFile), []byte(filled), 0o644); err != nil {
		t.Fatal(err)
	}
	digest, err := Seal(dir)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Open(dir)
	if err != nil || p.Digest != digest {
		t.Fatalf("digest %s, %v; want %s", p.Digest, err, digest)
	}
	if again, err := Seal(dir); err != nil || again != digest {
		t.Errorf("sealing twice: %s, %v", again, err)
	}
	if err := Init(dir, "new-model", data); err == nil {
		t.Error("a package was made over another")
	}
}

func TestASummarySaysWhatThePackageIs(t *testing.T) {
	p, err := Open(sealed(t))
	if err != nil {
		t.Fatal(err)
	}
	var text, data bytes.Buffer
	if err := errors.Join(p.Summary().Write(&text), p.Summary().WriteJSON(&data)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"chest-pneumonia-28 1.0.0", string(p.Digest), "ages 1 to 5 years", "image float32 [1 1 28 28] NCHW", "Pneumonie", "grad-cam of features", "Conv×1", "CC-BY-4.0"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("%q is missing:\n%s", want, text.String())
		}
	}
	var back Summary
	if err := json.Unmarshal(data.Bytes(), &back); err != nil || back.Digest != p.Digest || back.Parameters != 18+4 {
		t.Errorf("%+v, %v", back, err)
	}
}
