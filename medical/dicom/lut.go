package dicom

// lut is a lookup table of PS3.3 C.11.1.1, C.11.2.1.1 or C.7.6.3.1.5.
type lut struct {
	first  int // input that the first entry is for
	bits   int // of an entry
	values []uint16
}

// at clamps: inputs below the first entry take the first, above the last the
// last.
func (l *lut) at(v int) uint16 { return l.values[min(max(v-l.first, 0), len(l.values)-1)] }

// readLUT reads LUTDescriptor and LUTData of an item. Signed says whether the
// first input is (the descriptor's VR follows the pixels).
func readLUT(item *DataSet, signed bool) (*lut, error) {
	return readTable(item, LUTDescriptor, LUTData, signed)
}

func readTable(d *DataSet, descriptor, data Tag, signed bool) (*lut, error) {
	numbers := d.Ints(descriptor)
	if len(numbers) != 3 {
		return nil, pixelError(descriptor, "%d values where a lookup table has 3", len(numbers))
	}
	entries, bits := int(uint16(numbers[0])), int(uint16(numbers[2]))
	if entries == 0 {
		entries = 1 << 16
	}
	first := int(uint16(numbers[1]))
	if signed {
		first = int(int16(numbers[1]))
	}
	if bits < 8 || bits > 16 {
		return nil, pixelError(descriptor, "entries of %d bits; a lookup table has 8 to 16", bits)
	}
	e := d.Get(data)
	if e == nil {
		return nil, pixelError(data, "missing")
	}
	table := &lut{first: first, bits: bits, values: make([]uint16, entries)}
	switch {
	case len(e.Value) >= 2*entries:
		for i := range table.values {
			table.values[i] = uint16(e.Value[2*i]) | uint16(e.Value[2*i+1])<<8
		}
	case bits == 8 && len(e.Value) >= entries: // two entries a word
		for i := range table.values {
			table.values[i] = uint16(e.Value[i])
		}
	default:
		return nil, pixelError(data, "%d bytes for %d entries of %d bits", len(e.Value), entries, bits)
	}
	return table, nil
}
