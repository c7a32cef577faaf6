package report

import (
	"time"

	"github.com/vigie/vigie/medical/dicom"
)

// Relationships between content items (PS3.3 table C.17.3-8).
const (
	contains   = "CONTAINS"
	observes   = "HAS OBS CONTEXT"
	modifies   = "HAS CONCEPT MOD"
	acquired   = "HAS ACQ CONTEXT"
	inferredBy = "INFERRED FROM"
)

// content is one node of an SR content tree (PS3.3 C.17.3).
type content struct {
	set      *dicom.DataSet
	children []*content
}

// node makes a content item; concept may be nil where the template allows it.
func node(relationship, valueType string, concept *Code) *content {
	d := new(dicom.DataSet)
	if relationship != "" {
		d.PutString(dicom.RelationshipType, relationship)
	}
	d.PutString(dicom.ValueType, valueType)
	if concept != nil {
		d.PutItems(dicom.ConceptNameCodeSequence, concept.item())
	}
	return &content{set: d}
}

// add appends children and returns the node.
func (c *content) add(children ...*content) *content {
	c.children = append(c.children, children...)
	return c
}

// build nests the children and returns the data set of the node.
func (c *content) build() *dicom.DataSet {
	if len(c.children) > 0 {
		items := make([]*dicom.DataSet, len(c.children))
		for i, child := range c.children {
			items[i] = child.build()
		}
		c.set.PutItems(dicom.ContentSequence, items...)
	}
	return c.set
}

func container(relationship string, concept Code) *content {
	c := node(relationship, "CONTAINER", &concept)
	c.set.PutString(dicom.ContinuityOfContent, "SEPARATE")
	return c
}

func text(relationship string, concept Code, value string) *content {
	c := node(relationship, "TEXT", &concept)
	c.set.PutString(dicom.TextValue, value)
	return c
}

func code(relationship string, concept, value Code) *content {
	c := node(relationship, "CODE", &concept)
	c.set.PutItems(dicom.ConceptCodeSequence, value.item())
	return c
}

func uidref(relationship string, concept Code, uid string) *content {
	c := node(relationship, "UIDREF", &concept)
	c.set.PutString(dicom.UIDValue, uid)
	return c
}

func person(relationship string, concept Code, name string) *content {
	c := node(relationship, "PNAME", &concept)
	c.set.PutString(dicom.PersonNameValue, name)
	return c
}

func number(relationship string, concept Code, value float64, unit Code) *content {
	c := node(relationship, "NUM", &concept)
	measured := new(dicom.DataSet)
	measured.PutFloat(dicom.NumericValue, value)
	measured.PutItems(dicom.MeasurementUnitsCodeSequence, unit.item())
	c.set.PutItems(dicom.MeasuredValueSequence, measured)
	return c
}

func imageItem(relationship string, concept *Code, r reference) *content {
	c := node(relationship, "IMAGE", concept)
	c.set.PutItems(dicom.ReferencedSOPSequence, r.item())
	return c
}

func date(relationship string, concept Code, day time.Time) *content {
	c := node(relationship, "DATE", &concept)
	tag, _ := dicom.TagOf("Date")
	c.set.PutDate(tag, day)
	return c
}
