package dicom

import (
	"iter"
	"slices"
	"sort"
)

// find returns where tag is, or where it would be put.
func (d *DataSet) find(tag Tag) (int, bool) {
	if d == nil {
		return 0, false
	}
	i := sort.Search(len(d.elements), func(i int) bool { return d.elements[i].Tag >= tag })
	return i, i < len(d.elements) && d.elements[i].Tag == tag
}

// Get returns the element, or nil when the data set does not have it.
func (d *DataSet) Get(tag Tag) *Element {
	if i, ok := d.find(tag); ok {
		return d.elements[i]
	}
	return nil
}

// Has reports whether the attribute is present, even if empty.
func (d *DataSet) Has(tag Tag) bool { _, ok := d.find(tag); return ok }

// Empty reports whether the attribute is absent or has no value.
func (d *DataSet) Empty(tag Tag) bool { return d.Get(tag).Empty() }

// Empty reports whether the element is nil or has neither value, items nor
// fragments. Blanks and NULs alone are no value.
func (e *Element) Empty() bool {
	if e == nil || len(e.Items) > 0 || len(e.Fragments) > 0 {
		return e == nil
	}
	if e.VR.Text() {
		return len(trim(e.VR, e.Value)) == 0
	}
	return len(e.Value) == 0
}

// Len returns how many elements the data set has, not counting those inside
// its sequences.
func (d *DataSet) Len() int {
	if d == nil {
		return 0
	}
	return len(d.elements)
}

// Put adds the element, replacing one of the same tag. The data set adopts the
// element and the items of its sequence.
func (d *DataSet) Put(e *Element) {
	for _, item := range e.Items {
		item.parent = d
	}
	i, ok := d.find(e.Tag)
	if ok {
		d.elements[i] = e
		return
	}
	d.elements = slices.Insert(d.elements, i, e)
}

// Delete removes the attribute if present.
func (d *DataSet) Delete(tag Tag) {
	if i, ok := d.find(tag); ok {
		d.elements = slices.Delete(d.elements, i, i+1)
	}
}

// DeleteFunc removes every element of this data set for which remove is true.
// It does not descend into sequences.
func (d *DataSet) DeleteFunc(remove func(*Element) bool) {
	d.elements = slices.DeleteFunc(d.elements, remove)
}

// All iterates over the elements in ascending order of tag, without
// descending into sequences. The data set must not be changed meanwhile.
func (d *DataSet) All() iter.Seq[*Element] {
	return func(yield func(*Element) bool) {
		if d == nil {
			return
		}
		for _, e := range d.elements {
			if !yield(e) {
				return
			}
		}
	}
}

// Walk visits every element in the order of the file, descending into
// sequences after visiting the sequence itself. within is the data set or item
// that holds e; path holds the tags of the sequences around it, outermost
// first, and is only valid during the call. Returning false stops the walk.
// Neither within nor the items of e may be changed during the walk, except
// that e itself may be modified.
func (d *DataSet) Walk(visit func(path []Tag, within *DataSet, e *Element) bool) {
	d.walk(nil, visit)
}

func (d *DataSet) walk(path []Tag, visit func([]Tag, *DataSet, *Element) bool) bool {
	if d == nil {
		return true
	}
	for _, e := range d.elements {
		if !visit(path, d, e) {
			return false
		}
		if len(e.Items) == 0 {
			continue
		}
		inner := append(path[:len(path):len(path)], e.Tag)
		for _, item := range e.Items {
			if !item.walk(inner, visit) {
				return false
			}
		}
	}
	return true
}

// Items returns the items of a sequence, or nil.
func (d *DataSet) Items(tag Tag) []*DataSet {
	if e := d.Get(tag); e != nil {
		return e.Items
	}
	return nil
}

// Item returns the first item of a sequence, or nil. Accessors of a nil
// *DataSet find nothing, so that d.Item(a).Item(b).String(c) is safe.
func (d *DataSet) Item(tag Tag) *DataSet {
	if items := d.Items(tag); len(items) > 0 {
		return items[0]
	}
	return nil
}

// Clone returns a copy that can be changed independently. Only the value
// bytes, which nobody changes in place, are shared.
func (d *DataSet) Clone() *DataSet {
	if d == nil {
		return nil
	}
	copied := &DataSet{elements: make([]*Element, len(d.elements)), parent: d.parent}
	for i, e := range d.elements {
		c := *e
		c.Items = nil
		for _, item := range e.Items {
			inner := item.Clone()
			inner.parent = copied
			c.Items = append(c.Items, inner)
		}
		c.Fragments = slices.Clone(e.Fragments)
		copied.elements[i] = &c
	}
	return copied
}

// Copy puts clones of the named elements of from into d, where from has them.
// Text of another character set is converted as PutString does.
func (d *DataSet) Copy(from *DataSet, tags ...Tag) {
	for _, tag := range tags {
		e := from.Get(tag)
		if e == nil {
			continue
		}
		if representations[e.VR].coded {
			d.putText(tag, e.VR, from.texts(e))
			continue
		}
		c := *e
		c.Items, c.Fragments = nil, slices.Clone(e.Fragments)
		for _, item := range e.Items {
			inner := item.Clone()
			inner.ConvertToUTF8()
			c.Items = append(c.Items, inner)
		}
		d.Put(&c)
	}
}

// PrivateCreator returns the private creator that reserved the block of a
// private element (PS3.5 7.8.1), or "".
func (d *DataSet) PrivateCreator(tag Tag) string {
	if !tag.Private() || tag.Element() < 0x1000 {
		return ""
	}
	return d.String(NewTag(tag.Group(), tag.Element()>>8))
}
