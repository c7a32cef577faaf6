package deidentify

import (
	"errors"
	"fmt"
	"sort"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

// maxDepth bounds the recursion into sequences of a data set made by hand;
// parsed ones are bounded by dicom.Limits.
const maxDepth = 64

// ErrNoInstance is returned for a data set without SOP Instance UID or SOP
// Class UID: it is not an object, and nothing could refer back to it.
var ErrNoInstance = errors.New("deidentify: the data set has no SOP Instance UID or SOP Class UID")

// Basis says why an action was taken.
type Basis string

// The bases of an action.
const (
	ByTable  Basis = "table"    // a row of Table E.1-1
	ByKeep   Basis = "keep"     // on the keep list and its value vouched for
	ByValue  Basis = "value"    // on the keep list, but its value is not one that can be vouched for
	Unlisted Basis = "unlisted" // on neither list, or not allowed where it stood
	Declared Basis = "declared" // written by the profile itself
)

// Applied counts one action on one attribute, at whatever depth. It holds tags
// only. Private attributes and those that PS3.6 does not know are counted
// under their group, element 0000.
type Applied struct {
	Tag    dicom.Tag
	Action Action
	Basis  Basis
	Count  int
}

// Result is a de-identified copy and what was done for it.
type Result struct {
	File    *dicom.File            // shares no changeable memory with the original
	Patient vigie.PatientPseudonym // what the copy's Patient ID now is
	Refer   []vigie.Reason         // why a person must look before anything trusts this copy; empty when the copy may go on
	Applied []Applied              // in ascending order of tag
}

// Apply returns a de-identified copy of f. It does not change f. An error
// means that there is no copy; a reason in Refer means that there is one but
// that it may still show or carry an identity, or is not analysable.
func (p *Profile) Apply(f *dicom.File) (*Result, error) {
	if f == nil || f.DataSet == nil {
		return nil, errors.New("deidentify: no data set")
	}
	in := f.DataSet
	class, instance := significant(in.UID(dicom.SOPClassUID)), significant(in.UID(dicom.SOPInstanceUID))
	if class == "" || instance == "" {
		return nil, ErrNoInstance
	}
	w := &work{profile: p, counts: make(map[Applied]int), refer: burnedIn(in)}
	syntax := f.TransferSyntax
	if _, registered := dicom.SyntaxOf(syntax); registered {
		w.syntax = syntax
	} else { // its UID is free text too; the copy, without pixels, is plain
		syntax = dicom.ExplicitLittleEndian
		w.doubt(vigie.ReasonTransferSyntax, "transfer syntax not registered", syntaxText)
	}
	out, err := w.dataSet(in, 0)
	if err != nil {
		return nil, err
	}
	if !classes()[class] {
		class = p.UID(class)
		w.doubt(vigie.ReasonDeidentify, "SOP class not registered", unregisteredText)
		out.PutString(dicom.SOPClassUID, class)
	}
	patient := p.Patient(in)
	w.declare(out, patient)
	return &Result{
		File: &dicom.File{
			Meta:           meta(class, p.UID(instance), syntax),
			TransferSyntax: syntax,
			DataSet:        out,
		},
		Patient: patient,
		Refer:   w.refer,
		Applied: w.applied(),
	}, nil
}

// meta is rewritten, never copied: the original names the sender's AE and the
// original instance (PS3.10 section 7.1).
func meta(class, instance, syntax string) *dicom.DataSet {
	m := &dicom.DataSet{}
	m.PutBytes(dicom.FileMetaInformationVersion, dicom.OB, []byte{0, 1})
	m.PutString(dicom.MediaStorageSOPClassUID, class)
	m.PutString(dicom.MediaStorageSOPInstanceUID, instance)
	m.PutString(dicom.TransferSyntaxUID, syntax)
	m.PutString(dicom.ImplementationClassUID, dicom.ImplementationUID)
	m.PutString(dicom.ImplementationVersionName, dicom.ImplementationName)
	return m
}

// declare writes the pseudonym and what PS3.15 E.1.1 asks a de-identified
// object to say of itself.
func (w *work) declare(out *dicom.DataSet, patient vigie.PatientPseudonym) {
	out.PutString(dicom.PatientName, string(patient))
	out.PutString(dicom.PatientID, string(patient))
	out.PutString(dicom.PatientIdentityRemoved, "YES")
	out.PutString(dicom.DeidentificationMethod, "PS3.15 2024e Basic Application Level Confidentiality Profile")
	code := &dicom.DataSet{}
	code.PutString(dicom.CodeValue, "113100")
	code.PutString(dicom.CodingSchemeDesignator, "DCM")
	code.PutString(dicom.CodeMeaning, "Basic Application Confidentiality Profile")
	out.PutItems(dicom.DeidentificationMethodCodeSequence, code)
	out.PutString(longitudinalTemporalInformationModified, "REMOVED")
	for _, tag := range []dicom.Tag{dicom.PatientName, dicom.PatientID, dicom.PatientIdentityRemoved,
		dicom.DeidentificationMethod, dicom.DeidentificationMethodCodeSequence, longitudinalTemporalInformationModified} {
		w.count(tag, D, Declared)
	}
}

const longitudinalTemporalInformationModified dicom.Tag = 0x00280303

// work is the state of one Apply.
type work struct {
	profile *Profile
	syntax  string // of the pixels; empty when not a registered one
	counts  map[Applied]int
	refer   []vigie.Reason
}

func (w *work) doubt(code vigie.ReasonCode, detail string, text vigie.Text) {
	w.refer = append(w.refer, vigie.Reason{Code: code, Text: text, Detail: detail})
}

func (w *work) count(tag dicom.Tag, action Action, basis Basis) {
	if _, registered := dicom.Lookup(tag); tag.Private() || !registered {
		tag = dicom.NewTag(tag.Group(), 0) // else a hostile file could fill the audit with tags of its own
	}
	w.counts[Applied{Tag: tag, Action: action, Basis: basis}]++
}

func (w *work) applied() []Applied {
	all := make([]Applied, 0, len(w.counts))
	for a, n := range w.counts {
		a.Count = n
		all = append(all, a)
	}
	sort.Slice(all, func(i, j int) bool {
		a, b := all[i], all[j]
		if a.Tag != b.Tag {
			return a.Tag < b.Tag
		}
		if a.Action != b.Action {
			return a.Action < b.Action
		}
		return a.Basis < b.Basis
	})
	return all
}

// dataSet returns the de-identified copy of a data set or item.
func (w *work) dataSet(in *dicom.DataSet, depth int) (*dicom.DataSet, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("deidentify: sequences are nested more than %d deep", maxDepth)
	}
	out := &dicom.DataSet{}
	for e := range in.All() {
		kept, action, basis, err := w.element(in, out, e, depth)
		if err != nil {
			return nil, err
		}
		w.count(e.Tag, action, basis)
		if renders[e.Tag] && !e.Empty() && (kept == nil || kept.Empty() || e.VR == dicom.UN) {
			w.doubt(vigie.ReasonPixels, e.Tag.String(), rendersText)
		}
		if kept != nil {
			out.Put(kept)
		}
	}
	return out, nil
}

// element decides about one attribute: what stays of it, if anything, and why.
// out holds what stayed of the attributes before it.
func (w *work) element(in, out *dicom.DataSet, e *dicom.Element, depth int) (*dicom.Element, Action, Basis, error) {
	tag := e.Tag
	attribute, registered := dicom.Lookup(tag)
	if tag.Group() < 0x0008 || tag.Element() == 0 {
		// Commands, file meta, directory records and group lengths have no place in a data set.
		return nil, X, Unlisted, nil
	}
	if action, ok := ActionFor(tag); ok {
		kept, err := w.tabled(e, attribute, action.resolve(), depth)
		return kept, action.resolve(), ByTable, err
	}
	switch tag {
	case dicom.CodeValue, dicom.CodingSchemeDesignator, dicom.CodeMeaning:
		if depth > 0 {
			if kept := code(in, tag); kept != nil {
				return kept, K, ByKeep, nil
			}
			return nil, X, ByValue, nil
		}
	case dicom.PatientIdentityRemoved, dicom.DeidentificationMethod,
		dicom.DeidentificationMethodCodeSequence, longitudinalTemporalInformationModified:
		return nil, X, Declared, nil // declare writes them anew
	}
	k, listed := keepers()[tag]
	if !registered || !listed {
		return nil, X, Unlisted, nil
	}
	return w.keep(out, e, attribute, k, depth)
}

// tabled applies an action of Table E.1-1.
func (w *work) tabled(e *dicom.Element, attribute dicom.Attribute, action Action, depth int) (*dicom.Element, error) {
	blank := &dicom.Element{Tag: e.Tag, VR: attribute.VR}
	if action == D && attribute.VR == dicom.UI {
		action = U // the pseudonym is a dummy, and references to it still hold
	}
	switch action {
	case Z:
		return blank, nil
	case D:
		if e.Empty() {
			return blank, nil // nothing was said; a dummy would say that something was
		}
		if attribute.VR == dicom.SQ {
			return w.items(e, depth, true)
		}
		return &dicom.Element{Tag: e.Tag, VR: attribute.VR, Value: padded(dummies[attribute.VR], attribute.VR)}, nil
	case U:
		if attribute.VR == dicom.SQ {
			return w.items(e, depth, false)
		}
		var uids []string
		for _, uid := range strings.Split(string(e.Value), "\\") {
			uids = append(uids, w.profile.UID(uid))
		}
		return &dicom.Element{Tag: e.Tag, VR: dicom.UI, Value: padded(strings.Join(uids, "\\"), dicom.UI)}, nil
	}
	return nil, nil
}

// items de-identifies the items of a sequence. An item that was a code outside
// the vocabulary is dropped, or, where the sequence must say something (dummy),
// replaced by a code that says it was removed. Other items stay even if nothing
// is left in them, because the position of an item may be the number of a frame.
func (w *work) items(e *dicom.Element, depth int, dummy bool) (*dicom.Element, error) {
	out := &dicom.Element{Tag: e.Tag, VR: dicom.SQ}
	for _, item := range e.Items {
		kept, err := w.dataSet(item, depth+1)
		if err != nil {
			return nil, err
		}
		if kept.Len() == 0 {
			if dummy {
				kept.PutString(dicom.CodeValue, "REMOVED")
				kept.PutString(dicom.CodingSchemeDesignator, "99VIGIE")
				kept.PutString(dicom.CodeMeaning, "Removed")
			} else if item.Has(dicom.CodingSchemeDesignator) || item.Has(dicom.CodeValue) {
				continue
			}
		}
		out.Items = append(out.Items, kept)
	}
	return out, nil
}

// code keeps an attribute of a code that is in the vocabulary, with the meaning
// that the vocabulary gives it.
func code(in *dicom.DataSet, tag dicom.Tag) *dicom.Element {
	scheme, value := in.String(dicom.CodingSchemeDesignator), in.String(dicom.CodeValue)
	meaning, ok := meaningOf(scheme, value)
	if !ok {
		return nil
	}
	text, vr := meaning, dicom.LO
	switch tag {
	case dicom.CodeValue:
		text, vr = value, dicom.SH
	case dicom.CodingSchemeDesignator:
		text, vr = scheme, dicom.SH
	}
	return &dicom.Element{Tag: tag, VR: vr, Value: padded(text, vr)}
}

// padded returns text as a value of even length (PS3.5 6.2).
func padded(text string, vr dicom.VR) []byte {
	value := []byte(text)
	if len(value)%2 == 1 {
		filler := byte(' ')
		if vr == dicom.UI {
			filler = 0
		}
		value = append(value, filler)
	}
	return value
}
