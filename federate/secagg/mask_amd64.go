package secagg

// addNumbers adds n little-endian numbers to those at dst, n a multiple of 16, by
// SSE2, which every processor of this architecture has.
//
//go:noescape
func addNumbers(dst *uint32, src *byte, n int)

// subtractNumbers likewise subtracts.
//
//go:noescape
func subtractNumbers(dst *uint32, src *byte, n int)

func addStream(dst []uint32, src []byte) {
	n := len(dst) &^ 15
	if n > 0 {
		_ = src[4*n-1]
		addNumbers(&dst[0], &src[0], n)
	}
	addStreamGeneric(dst[n:], src[4*n:])
}

func subtractStream(dst []uint32, src []byte) {
	n := len(dst) &^ 15
	if n > 0 {
		_ = src[4*n-1]
		subtractNumbers(&dst[0], &src[0], n)
	}
	subtractStreamGeneric(dst[n:], src[4*n:])
}

// addCarries adds n numbers to those at low and what goes beyond 32 bits to those
// at high, n a multiple of 8.
//
//go:noescape
func addCarries(low *uint32, high *uint16, src *uint32, n int)

func addWide(low []uint32, high []uint16, part []uint32) {
	n := len(part) &^ 7
	if n > 0 {
		_, _ = low[n-1], high[n-1]
		addCarries(&low[0], &high[0], &part[0], n)
	}
	addWideGeneric(low[n:], high[n:], part[n:])
}
