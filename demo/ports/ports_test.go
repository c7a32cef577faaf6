package ports_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"github.com/vigie/vigie/demo/ports"
)

// askEnv makes this test binary a process that reserves addresses.
const askEnv = "VIGIE_TEST_RESERVE"

// many is how many addresses each of two processes takes: a descriptor each,
// and a process may have no more than 1,024 somewhere.
const many = 400

func TestMain(m *testing.M) {
	if os.Getenv(askEnv) != "" {
		addresses, err := ports.Reserve(many)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(strings.Join(addresses, "\n"))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestReservedAddressesAreFreeAndDifferent(t *testing.T) {
	addresses, err := ports.Reserve(50)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, address := range addresses {
		if seen[address] {
			t.Errorf("%s is given out twice", address)
		}
		seen[address] = true
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Errorf("%s is not free: %v", address, err)
			continue
		}
		l.Close()
	}
}

// Of 20,000 ports two processes take 400 each: without marks they would agree
// on eight, give or take a few.
func TestTwoProcessesNeverGetTheSamePort(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("NOT TESTED: ports are marked for other processes on Linux only")
	}
	mine, err := ports.Reserve(many)
	if err != nil {
		t.Fatal(err)
	}
	other := exec.Command(os.Args[0])
	other.Env, other.Stderr = append(os.Environ(), askEnv+"=1"), os.Stderr
	out, err := other.Output()
	if err != nil {
		t.Fatal(err)
	}
	taken := map[string]bool{}
	for _, address := range mine {
		taken[address] = true
	}
	theirs := strings.Fields(string(out))
	if len(theirs) != many {
		t.Fatalf("the other process has %d addresses", len(theirs))
	}
	for _, address := range theirs {
		if taken[address] {
			t.Errorf("both have %s", address)
		}
	}
}

func Example() {
	addresses, err := ports.Reserve(1)
	if err != nil {
		fmt.Println(err)
		return
	}
	l, err := net.Listen("tcp", addresses[0]) // or in another process, later
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	fmt.Println(l.Addr().String() == addresses[0])
	// Output: true
}
