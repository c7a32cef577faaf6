package dimse

import (
	"encoding/binary"
)

// fileHeader is the preamble, prefix and file meta information (PS3.10 section
// 7.1) that make a received data set a file. sender is the AE title that sent
// it; "" leaves the attribute out.
func fileHeader(sopClass, sopInstance, transferSyntax, sender string) []byte {
	meta := make([]byte, 0, 384)
	// OB has a 4-byte length after two reserved bytes (PS3.5 section 7.1.2).
	meta = append(meta, 0x02, 0x00, 0x01, 0x00, 'O', 'B', 0, 0, 2, 0, 0, 0, 0x00, 0x01)
	meta = appendShort(meta, 0x0002, "UI", sopClass, 0)
	meta = appendShort(meta, 0x0003, "UI", sopInstance, 0)
	meta = appendShort(meta, 0x0010, "UI", transferSyntax, 0)
	meta = appendShort(meta, 0x0012, "UI", ImplementationClassUID, 0)
	meta = appendShort(meta, 0x0013, "SH", ImplementationVersion, ' ')
	if sender != "" {
		meta = appendShort(meta, 0x0016, "AE", sender, ' ')
	}
	out := make([]byte, 128, 128+4+12+len(meta))
	out = append(out, "DICM"...)
	length := binary.LittleEndian.AppendUint32(nil, uint32(len(meta)))
	out = appendShort(out, 0x0000, "UL", string(length), 0)
	return append(out, meta...)
}

// appendShort appends an element of group 0002 whose VR has a 2-byte length.
func appendShort(out []byte, element uint16, vr, value string, pad byte) []byte {
	odd := len(value) % 2
	out = append(out, 0x02, 0x00)
	out = binary.LittleEndian.AppendUint16(out, element)
	out = append(out, vr...)
	out = binary.LittleEndian.AppendUint16(out, uint16(len(value)+odd))
	out = append(out, value...)
	if odd == 1 {
		out = append(out, pad)
	}
	return out
}
