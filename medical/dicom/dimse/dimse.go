// Package dimse speaks DICOM's own network protocol: associations over TCP or
// TLS (PS3.8) and, on them, the messages C-ECHO and C-STORE (PS3.7). It is
// both sides: a [Server] that hospital systems send objects to, and a client
// ([Dial]) that delivers results to them.
//
// # Receiving
//
// A server never looks inside an object. It writes the bytes that arrive,
// preceded by the file meta information of PS3.10, into a [Spool] that its
// owner provides, and calls the owner's Store when the object is complete. The
// answer of Store is the answer to the sender, so an owner that returns
// [Success] only after its commit gives the sender a durable acknowledgement:
//
//	tls := dimse.ServerTLS(certificate, hospitalCAs)
//	server, err := dimse.NewServer(dimse.ServerConfig{
//		AETitle:  "VIGIE",
//		TLS:      tls,
//		Allow:    func(p dimse.Peer) error { return allowList.Check(p.CallingAE, p.Certificate) },
//		NewSpool: vault.NewSpool,
//		Store:    intake.Store,
//	})
//	err = server.Serve(ctx, listener) // until ctx ends
//
// Every storage SOP class is accepted in every transfer syntax, because an
// object that cannot be decoded must still reach a person.
//
// # Sending
//
//	association, err := dimse.Dial(ctx, "pacs:2762", dimse.ClientConfig{
//		CallingAE: "VIGIE", CalledAE: "PACS", TLS: dimse.ClientTLS(certificate, pacsCAs, "pacs"),
//	}, []dimse.Context{{SOPClass: class, TransferSyntaxes: []string{syntax}}})
//	status, err := association.Store(ctx, class, instance, syntax, dataSetBytes)
//	err = association.Release(ctx)
//
// # Other software
//
// dcmtk 3.6.7 and Orthanc 1.10 negotiate TLS 1.3 without being told to; these
// are tested. dcmtk's default security profile will do:
//
//	echoscu  --enable-tls key.pem cert.pem --add-cert-file ca.pem -aet MODALITY -aec VIGIE vigie 2762
//	storescu --enable-tls key.pem cert.pem --add-cert-file ca.pem -aet MODALITY -aec VIGIE vigie 2762 image.dcm
//	storescp --enable-tls key.pem cert.pem --add-cert-file ca.pem -aet PACS -od inbox +xa 2762
//
// storescu proposes compressed transfer syntaxes only when told, for instance
// -xy for JPEG baseline, -xw for JPEG 2000, -xr for RLE. Orthanc needs
// DicomTlsEnabled, DicomTlsCertificate, DicomTlsPrivateKey,
// DicomTlsTrustedCertificates, and "UseDicomTls": true in its entry for us
// under DicomModalities. Both ship with Nagle's algorithm on; this package
// acknowledges at once, so that it costs nothing here (on Linux).
//
// # Hostile peers
//
// Everything a peer declares is checked before anything is allocated for it.
// An association costs a constant amount of memory (about 100 KiB), whatever
// it sends; a protocol error, a panic in the owner's callbacks, a peer that
// says nothing or one that never stops ends that association and no other.
//
// The package knows nothing of data sets beyond group 0000, of models or of
// stores. Nothing it logs comes from an object.
package dimse

import (
	"crypto/x509"
	"io"

	"github.com/vigie/vigie/medical/dicom"
)

// Peer is the other end of an association, as far as the transport and the
// association request tell.
type Peer struct {
	CallingAE   string            // the AE title the peer calls itself by; a claim, not a proof
	CalledAE    string            // the AE title the peer wants to talk to
	Certificate *x509.Certificate // verified leaf certificate; nil only on a plain loopback connection
	RemoteAddr  string            // host:port
}

// Spool takes the bytes of one incoming object. The bytes written to it form a
// complete DICOM file (PS3.10): preamble, prefix, meta information, data set.
//
// The server calls Discard exactly once for every spool it asked for, after
// Store has returned or when the object is given up, in the way of a deferred
// rollback: whatever Store did not take by then is to be destroyed.
type Spool interface {
	io.Writer
	Discard()
}

// StoreRequest is one complete object, ready to be taken.
type StoreRequest struct {
	Peer           Peer
	SOPClass       string // Affected SOP Class UID of the command; it equals the presentation context's
	SOPInstance    string // Affected SOP Instance UID of the command; the data set may claim another
	TransferSyntax string // of the presentation context, hence of the data set
	Spool          Spool  // holds the whole file
	Size           int64  // bytes written to Spool
}

// ImplementationClassUID names this implementation to peers (PS3.7 section
// D.3.3.2) and in the files it writes.
const ImplementationClassUID = dicom.ImplementationUID

// ImplementationVersion is the human-readable companion of
// [ImplementationClassUID].
const ImplementationVersion = dicom.ImplementationName

// applicationContext is the only DICOM application context name (PS3.7 A.2.1).
const applicationContext = "1.2.840.10008.3.1.1.1"
