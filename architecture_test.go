package vigie_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/vigie/vigie"

// allowed says which packages of ours each package may import (without the
// module prefix; "" is the root package, the vocabulary). Arrows point one way;
// a package that is missing here fails the test, so that a new room is a
// decision and not an accident. A trailing "/..." allows a whole block.
var allowed = map[string][]string{
	"": {},

	// graphs and engines: no medicine, no state
	"onnx":               {},
	"onnx/autodiff":      {"onnx"},
	"onnx/zoo":           {"onnx"},
	"engine":             {"onnx", "engine/kernel"},
	"engine/kernel":      {},
	"engine/runtime":     {},
	"engine/safetensors": {"onnx", "engine"},
	"train":              {"onnx", "onnx/autodiff", "engine", "dp"},
	"train/studies":      {"train", "engine", "model", "medical/dicom"},
	"train/job":          {"onnx", "onnx/zoo", "engine", "engine/safetensors", "train", "train/studies"},
	"train/harden":       {"onnx", "attack", "model", "train", "train/job"},
	"explain":            {"", "onnx", "onnx/autodiff", "engine"},
	"attack":             {"onnx", "onnx/autodiff", "engine", "model"},
	"attack/guarded":     {"attack", "engine", "guard"},
	"attack/job":         {"", "attack", "attack/guarded", "guard", "guard/certificate", "onnx", "engine", "model", "medical/dicom", "probe", "train"},
	"attack/privacy":     {"attack", "onnx", "onnx/autodiff", "engine", "train"},
	"attack/privacy/job": {"", "attack", "attack/job", "attack/privacy", "onnx", "onnx/zoo", "engine", "model", "probe", "train", "train/studies", "dp", "federate", "federate/secagg", "federate/simulate", "keys/dsse"},
	"attack/poison":      {"onnx", "engine", "attack", "train"},
	"attack/poison/job":  {"onnx", "engine", "attack", "attack/poison", "model", "probe", "train", "train/studies"},
	"guard":              {"", "onnx", "onnx/autodiff", "engine", "engine/safetensors"},
	"guard/certificate":  {"onnx", "engine"},
	"dp":                 {},

	// medicine: knows nothing of models
	"medical/dicom":            {},
	"medical/dicom/report":     {"medical/dicom"},
	"medical/dicom/phantom":    {"medical/dicom"},
	"medical/dicom/dimse":      {"medical/dicom"},
	"medical/dicom/dicomweb":   {"medical/dicom", "medical/dicom/dimse"},
	"medical/dicom/deidentify": {"", "medical/dicom"},

	// state and proof: know nothing of medicine
	"keys":              {""},
	"keys/certificates": {},
	"keys/dsse":         {},
	"store":             {"", "keys"},
	"store/storetest":   {"", "store"},
	"audit":             {"", "store"},
	"attest":            {""},

	// hospitals together
	"federate":               {"", "onnx", "engine", "engine/safetensors", "train", "dp", "federate/robust", "federate/secagg", "keys/dsse"},
	"federate/consortium":    {"attack/privacy/job", "onnx", "dp", "engine", "engine/safetensors", "train", "train/studies", "federate", "federate/robust", "federate/secagg", "federate/wire", "keys/certificates", "keys/dsse"},
	"federate/robust":        {},
	"federate/secagg":        {"keys/dsse"},
	"federate/simulate":      {"onnx", "guard", "train", "train/studies", "federate", "federate/watch", "federate/secagg", "federate/tabular"},
	"federate/tabular":       {"onnx", "train", "federate"},
	"federate/watch":         {"guard", "train", "federate"},
	"federate/wire":          {"federate", "federate/secagg", "federate/wire/protocol"},
	"federate/wire/protocol": {}, // generated

	// where the blocks meet
	"model":     {"", "onnx", "engine", "explain", "guard/certificate", "medical/dicom"},
	"probe":     {"", "onnx", "onnx/autodiff", "onnx/zoo", "engine", "engine/safetensors", "train", "train/studies", "explain", "model", "medical/dicom", "medical/dicom/phantom"},
	"guard/job": {"", "onnx", "engine", "guard", "guard/certificate", "medical/dicom", "model", "probe", "train", "train/studies"},
	"enclave":   {"", "onnx", "engine", "explain", "guard", "guard/certificate", "model", "attest", "keys/certificates", "keys/dsse", "medical/dicom"},
	"gateway": {"", "onnx", "engine", "model", "attest", "enclave", "keys", "keys/certificates", "store", "audit",
		"medical/dicom", "medical/dicom/..."},
	"models":     {},
	"demo":       {"...", "!cmd/vigie"},
	"demo/ports": {},
	"bench":      {"...", "!cmd/vigie"},
	"peers":      {"...", "!cmd/vigie"},
	"cmd/vigie":  {"..."},
}

func permits(rules []string, target string) bool {
	ok := false
	for _, rule := range rules {
		deny := strings.HasPrefix(rule, "!")
		rule = strings.TrimPrefix(rule, "!")
		match := rule == target || rule == "..." ||
			strings.HasSuffix(rule, "/...") && strings.HasPrefix(target, strings.TrimSuffix(rule, "..."))
		if match {
			ok = !deny
		}
	}
	return ok
}

func TestArchitecture(t *testing.T) {
	command := exec.Command("go", "list", "-json=ImportPath,Imports,CgoFiles,Name", "./...")
	output, err := command.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	decoder := json.NewDecoder(strings.NewReader(string(output)))
	seen := 0
	for {
		var listed struct {
			ImportPath, Name  string
			Imports, CgoFiles []string
		}
		if err := decoder.Decode(&listed); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		path := strings.TrimPrefix(strings.TrimPrefix(listed.ImportPath, module), "/")
		rules, known := allowed[path]
		if !known {
			t.Errorf("package %q is not in the architecture: add it to allowed with what it may import, and to docs/architecture.md", path)
			continue
		}
		for _, imported := range listed.Imports {
			if imported != module && !strings.HasPrefix(imported, module+"/") {
				continue
			}
			target := strings.TrimPrefix(strings.TrimPrefix(imported, module), "/")
			if !permits(rules, target) {
				t.Errorf("%q imports %q: that arrow is not in the architecture", path, target)
			}
		}
		if len(listed.CgoFiles) > 0 && path != "engine" && path != "engine/kernel" {
			t.Errorf("%q uses cgo (%v): only engine may", path, listed.CgoFiles)
		}
		for _, part := range strings.Split(path, "/") {
			if slices.Contains([]string{"util", "utils", "common", "helpers", "manager", "internal", "pkg"}, part) {
				t.Errorf("%q: a package is named for what it holds; %q says nothing", path, part)
			}
		}
	}
	if seen < 2 {
		t.Fatalf("go list returned %d packages: the test looked at nothing", seen)
	}
}
