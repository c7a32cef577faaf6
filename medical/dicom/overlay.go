package dicom

// Overlay is a plane of graphics beside the image (PS3.3 C.9.2), which may hold
// anything a person drew or a device wrote, identity included.
type Overlay struct {
	Group         uint16 // 0x6000, 0x6002, … 0x601E
	Rows, Columns int
	Frames        int
	Row, Column   int    // of the first cell in the image, from 1
	Type          string // "G" graphics, "R" region of interest
	Embedded      bool   // in unused bits of the pixel cells (retired in 2004), not in OverlayData
	data          []byte
}

// Overlays lists the overlay planes of the data set.
func (d *DataSet) Overlays() []Overlay {
	var out []Overlay
	for group := uint16(0x6000); group <= 0x60FE; group += 2 {
		tag := func(t Tag) Tag { return NewTag(group, t.Element()) }
		rows, _ := d.Int(tag(OverlayRows))
		columns, _ := d.Int(tag(OverlayColumns))
		data := d.Get(tag(OverlayData))
		if rows <= 0 && columns <= 0 && data == nil {
			continue
		}
		o := Overlay{Group: group, Rows: int(rows), Columns: int(columns), Frames: 1, Row: 1, Column: 1,
			Type: d.String(tag(OverlayType)), Embedded: data == nil}
		if n, ok := d.Int(tag(NumberOfFramesInOverlay)); ok && n > 0 {
			o.Frames = int(n)
		}
		if origin := d.Ints(tag(OverlayOrigin)); len(origin) == 2 {
			o.Row, o.Column = int(origin[0]), int(origin[1])
		}
		if data != nil {
			o.data = data.Value
		}
		out = append(out, o)
	}
	return out
}

// Set reports whether a cell of the first frame of the plane is drawn. Cells
// outside the plane, and those embedded in pixels, are not.
func (o Overlay) Set(row, column int) bool {
	bit := row*o.Columns + column
	if row < 0 || column < 0 || row >= o.Rows || column >= o.Columns || bit>>3 >= len(o.data) {
		return false
	}
	return o.data[bit>>3]>>(bit&7)&1 == 1
}

// Drawn reports whether the plane has any mark, which includes planes whose
// cells are embedded in the pixels and so cannot be vouched for.
func (o Overlay) Drawn() bool { return o.Embedded || !zero(o.data) }
