package dicom

import "fmt"

// The transfer syntaxes that this package reads and writes.
const (
	ImplicitLittleEndian = "1.2.840.10008.1.2"
	ExplicitLittleEndian = "1.2.840.10008.1.2.1"
	DeflatedLittleEndian = "1.2.840.10008.1.2.1.99"
	ExplicitBigEndian    = "1.2.840.10008.1.2.2"
	JPEGBaseline         = "1.2.840.10008.1.2.4.50"
	RLELossless          = "1.2.840.10008.1.2.5"
)

// TransferSyntax is a row of the table of transfer syntaxes (PS3.6 annex A).
// Data sets in any of them are parsed; Decodable says whether Frame can also
// decode the pixels.
type TransferSyntax struct {
	UID          string
	Name         string
	Implicit     bool // VRs are not written
	BigEndian    bool
	Deflated     bool
	Encapsulated bool // pixel data are fragments (PS3.5 A.4)
	Lossy        bool // always or possibly irreversible
	Decodable    bool
}

// TransferSyntaxes lists the storage transfer syntaxes of PS3.6 table A-1. A
// new codec is a new decoder and a changed row.
var TransferSyntaxes = []TransferSyntax{
	{UID: ImplicitLittleEndian, Name: "Implicit VR Little Endian", Implicit: true, Decodable: true},
	{UID: ExplicitLittleEndian, Name: "Explicit VR Little Endian", Decodable: true},
	{UID: DeflatedLittleEndian, Name: "Deflated Explicit VR Little Endian", Deflated: true, Decodable: true},
	{UID: ExplicitBigEndian, Name: "Explicit VR Big Endian", BigEndian: true, Decodable: true},
	{UID: RLELossless, Name: "RLE Lossless", Encapsulated: true, Decodable: true},
	{UID: JPEGBaseline, Name: "JPEG Baseline (Process 1)", Encapsulated: true, Lossy: true, Decodable: true},
	{UID: "1.2.840.10008.1.2.1.98", Name: "Encapsulated Uncompressed Explicit VR Little Endian", Encapsulated: true, Decodable: true},
	{UID: "1.2.840.10008.1.2.4.51", Name: "JPEG Extended (Process 2 and 4)", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.57", Name: "JPEG Lossless, Non-Hierarchical (Process 14)", Encapsulated: true},
	{UID: "1.2.840.10008.1.2.4.70", Name: "JPEG Lossless, Non-Hierarchical, First-Order Prediction", Encapsulated: true},
	{UID: "1.2.840.10008.1.2.4.80", Name: "JPEG-LS Lossless", Encapsulated: true},
	{UID: "1.2.840.10008.1.2.4.81", Name: "JPEG-LS Lossy (Near-Lossless)", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.90", Name: "JPEG 2000 (Lossless Only)", Encapsulated: true},
	{UID: "1.2.840.10008.1.2.4.91", Name: "JPEG 2000", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.92", Name: "JPEG 2000 Part 2 Multi-component (Lossless Only)", Encapsulated: true},
	{UID: "1.2.840.10008.1.2.4.93", Name: "JPEG 2000 Part 2 Multi-component", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.94", Name: "JPIP Referenced", Lossy: true},
	{UID: "1.2.840.10008.1.2.4.95", Name: "JPIP Referenced Deflate", Deflated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.100", Name: "MPEG2 Main Profile / Main Level", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.101", Name: "MPEG2 Main Profile / High Level", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.102", Name: "MPEG-4 AVC/H.264 High Profile / Level 4.1", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.103", Name: "MPEG-4 AVC/H.264 BD-compatible High Profile / Level 4.1", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.104", Name: "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 2D Video", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.105", Name: "MPEG-4 AVC/H.264 High Profile / Level 4.2 For 3D Video", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.106", Name: "MPEG-4 AVC/H.264 Stereo High Profile / Level 4.2", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.107", Name: "HEVC/H.265 Main Profile / Level 5.1", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.108", Name: "HEVC/H.265 Main 10 Profile / Level 5.1", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.110", Name: "JPEG XL Lossless", Encapsulated: true},
	{UID: "1.2.840.10008.1.2.4.111", Name: "JPEG XL JPEG Recompression", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.112", Name: "JPEG XL", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.4.201", Name: "High-Throughput JPEG 2000 (Lossless Only)", Encapsulated: true},
	{UID: "1.2.840.10008.1.2.4.202", Name: "High-Throughput JPEG 2000 with RPCL Options (Lossless Only)", Encapsulated: true},
	{UID: "1.2.840.10008.1.2.4.203", Name: "High-Throughput JPEG 2000", Encapsulated: true, Lossy: true},
	{UID: "1.2.840.10008.1.2.8.1", Name: "Deflated Image Frame Compression", Encapsulated: true},
}

var syntaxByUID = func() map[string]TransferSyntax {
	table := make(map[string]TransferSyntax, len(TransferSyntaxes))
	for _, ts := range TransferSyntaxes {
		table[ts.UID] = ts
	}
	return table
}()

// SyntaxOf returns the row of a transfer syntax. An unknown one is described
// as what every syntax since 1996 has been: explicit, little endian, and
// encapsulated; false says that it is a guess.
func SyntaxOf(uid string) (TransferSyntax, bool) {
	ts, ok := syntaxByUID[uid]
	if !ok {
		ts = TransferSyntax{UID: uid, Name: "unknown transfer syntax", Encapsulated: true}
	}
	return ts, ok
}

// undecodable names the syntax and the next move.
func undecodable(uid string) error {
	ts, _ := SyntaxOf(uid)
	return fmt.Errorf("dicom: decoding pixels in %s (%s): %w: this build has no decoder for it; send the image uncompressed, as RLE Lossless or as baseline JPEG, or have a person read it",
		printable(uid), ts.Name, ErrTransferSyntax)
}

// printable keeps a UID from the file fit for a log line.
func printable(uid string) string {
	if len(uid) > 64 {
		uid = uid[:64]
	}
	for _, c := range uid {
		if c != '.' && (c < '0' || c > '9') {
			return "a malformed UID"
		}
	}
	if uid == "" {
		return "no UID"
	}
	return uid
}
