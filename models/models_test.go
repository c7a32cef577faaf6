package models_test

import (
	"testing"

	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/models"
)

func TestTheEmbeddedPackageIsTheCommittedOne(t *testing.T) {
	folder, err := models.WriteDemo(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	written, err := model.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	committed, err := model.Open(models.Name)
	if err != nil {
		t.Fatal(err)
	}
	if written.Digest != committed.Digest {
		t.Fatalf("embedded %s, committed %s", written.Digest, committed.Digest)
	}
	if _, err := models.WriteDemo(folder + "/absent"); err == nil {
		t.Fatal("a folder that is not there was written to")
	}
}
