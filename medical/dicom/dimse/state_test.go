package dimse

import "testing"

// The rows of PS3.8 table 9-10 for received PDUs, columns Sta2, Sta5, Sta6, Sta7.
func TestEveryPDUInEveryStateIsHandledAsTable9_10Says(t *testing.T) {
	table := []struct {
		kind                               pduType
		request, answer, open, releaseSent string
	}{
		{pduAssociateAC, "AA-1", "AE-3", "AA-8", "AA-8"},
		{pduAssociateRJ, "AA-1", "AE-4", "AA-8", "AA-8"},
		{pduAssociateRQ, "AE-6", "AA-8", "AA-8", "AA-8"},
		{pduData, "AA-1", "AA-8", "DT-2", "AR-6"},
		{pduReleaseRQ, "AA-1", "AA-8", "AR-2", "AR-8"},
		{pduReleaseRP, "AA-1", "AA-8", "AA-8", "AR-3"},
		{pduAbort, "AA-2", "AA-3", "AA-3", "AA-3"},
		{0x08, "AA-1", "AA-8", "AA-8", "AA-8"},
		{0xFF, "AA-1", "AA-8", "AA-8", "AA-8"},
	}
	actions := map[string]action{
		"AA-1": abortAsUser, "AA-8": abortAsProvider, "AA-2": stop, "AA-3": stop, "AR-8": collide,
		"AE-3": take, "AE-4": take, "AE-6": take, "DT-2": take, "AR-2": take, "AR-3": take, "AR-6": take,
	}
	for _, row := range table {
		for s, want := range map[state]string{awaitingRequest: row.request, awaitingAnswer: row.answer, established: row.open, releasing: row.releaseSent} {
			if got := s.on(row.kind); got != actions[want] {
				t.Errorf("state %d, %s: action %d, want %s", s, row.kind, got, want)
			}
		}
	}
}
