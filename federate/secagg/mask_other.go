//go:build !amd64

package secagg

func addStream(dst []uint32, src []byte)      { addStreamGeneric(dst, src) }
func subtractStream(dst []uint32, src []byte) { subtractStreamGeneric(dst, src) }

func addWide(low []uint32, high []uint16, part []uint32) { addWideGeneric(low, high, part) }
