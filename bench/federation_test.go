package main

import (
	"context"
	"fmt"
	"os"
	"testing"
)

// TestMain lets this binary be the processes of a federation.
func TestMain(m *testing.M) {
	if file := os.Getenv(federationOf); file != "" {
		if err := fedProcess(context.Background(), file); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestAFederationWhoseProcessesAreKilledEndsWithTheSameBits(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts and kills dozens of processes")
	}
	k, err := fedSetting{Sites: 3, Size: 500, Rounds: 3}.kill(t.Context(), 8, 0.1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if k.Kills < 8 || k.Same != k.Runs {
		t.Errorf("%+v", k)
	}
}

func TestAServersMemoryIsOfTheModelAndNotOfTheSites(t *testing.T) {
	r, err := fedSetting{Sites: 8, Size: 1_000_000, Rounds: 2, Lost: 1}.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const model = 4_000_000
	t.Logf("%d MB before the first round, %d MB at most", r.Start>>20, r.Peak>>20)
	if grown := r.Peak - r.Start; grown > 8*model { // all vectors together are 28 MB, beside sum, model and what is on its way
		t.Errorf("%d bytes more than before the first round, the model is %d", grown, model)
	}
	if r.Sites[0] != 7 || r.Sites[1] != 7 {
		t.Errorf("%v sites were in the sums", r.Sites)
	}
	if ideal := int64(2*(8+7)) * model; r.Up+r.Down > ideal*105/100 {
		t.Errorf("%d bytes went over the wire, ideal are %d", r.Up+r.Down, ideal)
	}
}
