package enclave

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

func TestTheDemoPackageReadsAPhantomOverHTTP(t *testing.T) {
	pkg := demoPackage(t)
	address, _ := serve(t, modelWorker(t, pkg), ServeOptions{})
	client := NewClient(remote(t, RemoteOptions{URL: "http://" + address, Development: true}), developmentVerifier(t, pkg.Digest), ClientOptions{})
	result, err := client.Diagnose(context.Background(), chest(t, phantom.Options{Opacity: 0.9}, nil))
	if err != nil {
		t.Fatal(err)
	}
	f := result.Finding
	if len(f.Predictions) != 2 || f.Explanation == nil || len(f.Stages) != 5 {
		t.Errorf("got %+v", f)
	}
	t.Logf("pneumonia %.3f, referrals %v", f.Predictions[1].Probability, f.Referrals)
}

// A real computed radiograph, in a Go module that is fetched for the demo.
func TestARealRadiographIsReadAndNoInputRuleMistakesIt(t *testing.T) {
	found, err := exec.Command("go", "env", "GOMODCACHE").Output()
	if err != nil {
		t.Skipf("the module cache cannot be found: %v", err)
	}
	path := filepath.Join(strings.TrimSpace(string(found)), "github.com/suyashkumar/dicom@v1.1.0/testdata/4.dcm")
	opened, err := os.Open(path)
	if err != nil {
		t.Skipf("the radiograph is not there (go mod download github.com/suyashkumar/dicom@v1.1.0): %v", err)
	}
	defer opened.Close()
	file, err := dicom.Parse(opened, dicom.Limits{})
	asked := request(t, file, err, nil)
	pkg := brightness(t, 40, -2)
	result, err := NewClient(modelWorker(t, pkg), developmentVerifier(t, pkg.Digest), ClientOptions{}).Diagnose(context.Background(), asked)
	if err != nil {
		t.Fatal(err)
	}
	f := result.Finding
	for _, guard := range f.Guards {
		if guard.Alarm {
			t.Errorf("%s raised an alarm: %s", guard.Guard, guard.Reason.Detail)
		}
	}
	if len(f.Predictions) != 2 || slices.Contains(codes(f), vigie.ReasonGuard) {
		t.Errorf("it was not read: %v", f.Referrals)
	}
	t.Logf("referrals %v, stages %v", codes(f), f.Stages)
}
