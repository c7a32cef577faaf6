package dimse

// state is where an association stands, named after PS3.8 section 9.2.1. The
// states in which this implementation never reads PDUs (3, 4, 8: it is busy
// answering; 13: it discards what comes, see linger) need no row, and the
// release collision of states 9 to 12 is played inside releasing.
type state uint8

const (
	awaitingRequest state = iota // Sta2: acceptor, connection open, no A-ASSOCIATE-RQ yet
	awaitingAnswer               // Sta5: requestor, waiting for AC or RJ
	established                  // Sta6
	releasing                    // Sta7: A-RELEASE-RQ sent, waiting for RP
	states
)

// action is what to do with a PDU that arrived.
type action uint8

const (
	abortAsUser     action = iota // AA-1: answer A-ABORT (service user) and close
	abortAsProvider               // AA-8: answer A-ABORT (service provider) and close
	take                          // AE-3, AE-4, AE-6, AR-2, AR-3, DT-2, AR-6: process it
	collide                       // AR-8: both sides release; answer and keep waiting
	stop                          // AA-2, AA-3: the peer aborted; close
)

// transitions is PS3.8 table 9-10 for the events "PDU received". The entry for
// type 0 is the one for an unrecognised or invalid PDU.
var transitions = [states]map[pduType]action{
	awaitingRequest: {
		pduAssociateRQ: take, pduAssociateAC: abortAsUser, pduAssociateRJ: abortAsUser, pduData: abortAsUser,
		pduReleaseRQ: abortAsUser, pduReleaseRP: abortAsUser, pduAbort: stop, 0: abortAsUser,
	},
	awaitingAnswer: {
		pduAssociateRQ: abortAsProvider, pduAssociateAC: take, pduAssociateRJ: take, pduData: abortAsProvider,
		pduReleaseRQ: abortAsProvider, pduReleaseRP: abortAsProvider, pduAbort: stop, 0: abortAsProvider,
	},
	established: {
		pduAssociateRQ: abortAsProvider, pduAssociateAC: abortAsProvider, pduAssociateRJ: abortAsProvider, pduData: take,
		pduReleaseRQ: take, pduReleaseRP: abortAsProvider, pduAbort: stop, 0: abortAsProvider,
	},
	releasing: {
		pduAssociateRQ: abortAsProvider, pduAssociateAC: abortAsProvider, pduAssociateRJ: abortAsProvider, pduData: take,
		pduReleaseRQ: collide, pduReleaseRP: take, pduAbort: stop, 0: abortAsProvider,
	},
}

// on returns the action for a PDU of the given type in state s.
func (s state) on(kind pduType) action {
	if act, ok := transitions[s][kind]; ok {
		return act
	}
	return transitions[s][0]
}
