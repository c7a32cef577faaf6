package dicom

// Limits bounds what a parser or decoder may spend on input that nobody vouches
// for. A zero field means the default beside it.
type Limits struct {
	Total     int64 // bytes of the data set, after inflating: DefaultTotal
	Element   int64 // bytes of one value or fragment: DefaultElement
	Elements  int   // elements, items and fragments in all: DefaultElements
	Depth     int   // nesting of sequences: DefaultDepth
	Expansion int   // deflated syntax: bytes out per byte in, beyond the first 16 MiB: DefaultExpansion
	Frame     int64 // bytes of one decoded frame: DefaultFrame
}

// The defaults of Limits: more than any radiograph, CT slice or cine loop
// needs, less than a small server has.
const (
	DefaultTotal     = 2 << 30
	DefaultElement   = 1 << 30
	DefaultElements  = 1 << 20
	DefaultDepth     = 32
	DefaultExpansion = 200
	DefaultFrame     = 256 << 20
)

// freeExpansion is what a deflated data set may inflate to before its ratio is
// looked at: a small blank image legitimately compresses a thousandfold.
const freeExpansion = 16 << 20

func (l Limits) withDefaults() Limits {
	if l.Total <= 0 {
		l.Total = DefaultTotal
	}
	if l.Element <= 0 {
		l.Element = DefaultElement
	}
	if l.Elements <= 0 {
		l.Elements = DefaultElements
	}
	if l.Depth <= 0 {
		l.Depth = DefaultDepth
	}
	if l.Expansion <= 0 {
		l.Expansion = DefaultExpansion
	}
	if l.Frame <= 0 {
		l.Frame = DefaultFrame
	}
	return l
}
