package dimse

import (
	"os/exec"
	"strings"
	"testing"
)

func TestEveryStorageClassThatPydicomKnowsIsAccepted(t *testing.T) {
	const script = `
from pydicom._uid_dict import UID_dictionary
for uid, entry in UID_dictionary.items():
    if entry[1] == 'SOP Class' and uid.startswith('1.2.840.10008.5.1.4.') and ' Storage' in entry[0] and 'Commitment' not in entry[0]:
        print(uid)
`
	out, err := exec.Command("/usr/bin/python3", "-c", script).Output()
	if err != nil {
		t.Skipf("SKIPPED: pydicom (Debian package python3-pydicom) is the oracle here and is not there: %v", err)
	}
	uids := strings.Fields(string(out))
	if len(uids) < 150 {
		t.Fatalf("pydicom lists only %d storage classes", len(uids))
	}
	for _, uid := range uids {
		if !IsStorage(uid) || SOPClassName(uid) == uid {
			t.Errorf("%s: storage %v, named %q", uid, IsStorage(uid), SOPClassName(uid))
		}
	}
}

func TestWhatIsNotStorageIsNotAccepted(t *testing.T) {
	for _, uid := range []string{
		VerificationSOPClass,
		"1.2.840.10008.5.1.4.1.2.2.1", // study root find
		"1.2.840.10008.5.1.4.1.2.1.2", // patient root move
		"1.2.840.10008.5.1.4.31",      // modality worklist
		"1.2.840.10008.1.20.1",        // storage commitment
		"1.2.840.10008.5.1.1.9",       // basic grayscale print
		"1.2.840.10008.5.1.4.1.1.",    // no UID
		"1.2.840.10008.5.1.4.1.1.2\n", // no UID
		"1.3.12.2.1107.5.9.1",         // private
		"1.2.840.10008.5.1.4.1.11.2",  // near, and not below
		"",
	} {
		if IsStorage(uid) {
			t.Errorf("%q is taken for a storage class", uid)
		}
	}
	if !IsStorage(storageRoot + "99999.1") {
		t.Error("a storage class of the future is not taken")
	}
}

func TestStatusesSpeak(t *testing.T) {
	for status, want := range map[Status]string{
		Success: "success (0x0000)", 0xA702: "out of resources (0xA702)", 0xC123: "cannot understand (0xC123)", 0xB123: "warning (0xB123)",
		0xA987: "data set does not match SOP class (0xA987)", 0x0999: "failure (0x0999)",
	} {
		if status.String() != want {
			t.Errorf("%q, want %q", status.String(), want)
		}
	}
	for status, want := range map[Status][3]bool{ // stored, warning, transient
		Success: {true, false, false}, CoercedElements: {true, true, false}, 0x0107: {true, true, false}, OutOfResources: {false, false, true},
		0xA7FF: {false, false, true}, DataSetMismatch: {false, false, false}, CannotUnderstand: {false, false, false}, Pending: {false, false, false},
	} {
		if got := [3]bool{status.Stored(), status.Warning(), status.Transient()}; got != want {
			t.Errorf("%v: %v, want %v", status, got, want)
		}
	}
}
