package model

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

// Technique is how an image must have been made, as far as it says: a range of a
// number, or the makes of a device.
type Technique struct {
	Attribute string   `yaml:"attribute"` // one of TechniqueNames
	From      float64  `yaml:"from"`      // of a number, ends included
	To        float64  `yaml:"to"`
	Values    []string `yaml:"values"`  // of a device: what it may be, compared without regard to case
	Outside   Policy   `yaml:"outside"` // review, or block
	Unknown   Policy   `yaml:"unknown"` // where the image does not say; accept, review or block
}

// techniqueRow is an attribute that a manifest may bound.
type techniqueRow struct {
	name   string
	tags   []dicom.Tag // the first that is there counts; of several values, all
	number bool
	unit   string
	text   vigie.Text
}

// techniques are the attributes, PS3.3 C.8.1, C.8.7.1 and C.8.11, that say how an
// image was made. The numbers survive de-identification.
var techniques = []techniqueRow{
	{"tube-voltage", []dicom.Tag{dicom.KVP}, true, "kV", vigie.Text{English: "tube voltage", French: "tension du tube"}},
	{"exposure-time", []dicom.Tag{dicom.ExposureTime}, true, "ms", vigie.Text{English: "exposure time", French: "temps d’exposition"}},
	{"exposure", []dicom.Tag{dicom.Exposure}, true, "mAs", vigie.Text{English: "exposure", French: "exposition"}},
	{"detector-distance", []dicom.Tag{dicom.DistanceSourceToDetector}, true, "mm", vigie.Text{English: "distance from source to detector", French: "distance du foyer au détecteur"}},
	{"pixel-spacing", []dicom.Tag{dicom.PixelSpacing, dicom.ImagerPixelSpacing}, true, "mm", vigie.Text{English: "pixel spacing", French: "taille du pixel"}},
	{"rows", []dicom.Tag{dicom.Rows}, true, "pixels", vigie.Text{English: "number of rows", French: "nombre de lignes"}},
	{"columns", []dicom.Tag{dicom.Columns}, true, "pixels", vigie.Text{English: "number of columns", French: "nombre de colonnes"}},
	{"bits-stored", []dicom.Tag{dicom.BitsStored}, true, "bits", vigie.Text{English: "depth of the pixels", French: "profondeur des pixels"}},
	{"manufacturer", []dicom.Tag{dicom.Manufacturer}, false, "", vigie.Text{English: "manufacturer of the device", French: "fabricant de l’appareil"}},
	{"device", []dicom.Tag{dicom.ManufacturerModelName}, false, "", vigie.Text{English: "model of the device", French: "modèle de l’appareil"}},
}

// TechniqueNames are the attributes that a manifest may bound.
func TechniqueNames() (names []string) {
	for _, row := range techniques {
		names = append(names, row.name)
	}
	return names
}

func (p *problemList) technique(path string, list []Technique) {
	seen := map[string]bool{}
	for i, t := range list {
		here := fmt.Sprintf("%s[%d]", path, i)
		at := slices.IndexFunc(techniques, func(r techniqueRow) bool { return r.name == t.Attribute })
		if at < 0 {
			p.at(here+".attribute", "is %q, want one of %s", t.Attribute, strings.Join(TechniqueNames(), ", "))
			continue
		}
		if seen[t.Attribute] {
			p.at(here+".attribute", "%q is there twice", t.Attribute)
		}
		seen[t.Attribute] = true
		p.oneOf(here+".outside", string(t.Outside), string(Block), string(Review))
		p.policy(here+".unknown", t.Unknown)
		if techniques[at].number {
			if !(t.From <= t.To && t.From >= 0 && t.To <= 1e6) || len(t.Values) > 0 {
				p.at(here, "goes from %v to %v, want 0 to 1000000 in this order, and no values", t.From, t.To)
			}
		} else if len(t.Values) == 0 || len(t.Values) > 256 || t.From != 0 || t.To != 0 {
			p.at(here+".values", "has %d names, want 1 to 256, and no range", len(t.Values))
		}
		for k, v := range t.Values {
			p.name(fmt.Sprintf("%s.values[%d]", here, k), v)
		}
	}
}

// Technique compares how an image was made with what the manifest states: a
// result for each number that it bounds, whose p-value is 1, or the smallest
// there is where the image is outside. Reasons are those of the results with an
// alarm; Blocking applies to them as to those of Check.
func (m *Manifest) Technique(d *dicom.DataSet) ([]vigie.GuardResult, []vigie.Reason) {
	return m.technique(d, true)
}

// CheckDevice is Technique for the device's makers and models. They do not
// survive de-identification: ask it of the original.
func (m *Manifest) CheckDevice(d *dicom.DataSet) []vigie.Reason {
	_, reasons := m.technique(d, false)
	return reasons
}

func (m *Manifest) technique(d *dicom.DataSet, numbers bool) (results []vigie.GuardResult, reasons []vigie.Reason) {
	for _, t := range m.Accepts.Technique {
		at := slices.IndexFunc(techniques, func(r techniqueRow) bool { return r.name == t.Attribute })
		if at < 0 || techniques[at].number != numbers {
			continue
		}
		row := techniques[at]
		result := vigie.GuardResult{Guard: "technique-" + row.name, PValue: 1}
		where := row.compare(t, d)
		policy, detail := Accept, ""
		var text vigie.Text
		switch where {
		case unknown:
			policy, detail = t.Unknown, detailUnknown
			text = vigie.Text{
				English: fmt.Sprintf("The image does not state its %s.", row.text.English),
				French:  fmt.Sprintf("L’image n’indique pas : %s.", row.text.French)}
		case outside:
			policy, detail = t.Outside, detailOutside
			range_, plage := row.allowed(t)
			text = vigie.Text{
				English: fmt.Sprintf("The %s is outside what the model was validated for (%s).", row.text.English, range_),
				French:  fmt.Sprintf("Hors du domaine de validation du modèle : %s (%s).", row.text.French, plage)}
		}
		if policy != Accept {
			why := vigie.Reason{Code: vigie.ReasonGuard, Text: text, Detail: detail + "technique " + row.name}
			if policy == Block {
				why.Detail = detailBlocked + why.Detail
			}
			result.PValue, result.Alarm, result.Reason = math.SmallestNonzeroFloat64, true, &why
			reasons = append(reasons, why)
		}
		results = append(results, result)
	}
	return results, reasons
}

// allowed writes what the manifest states.
func (r techniqueRow) allowed(t Technique) (english, french string) {
	if !r.number {
		names := strings.Join(t.Values, ", ")
		return names, names
	}
	english = fmt.Sprintf("%v to %v %s", t.From, t.To, r.unit)
	french = strings.ReplaceAll(fmt.Sprintf("%v à %v %s", t.From, t.To, r.unit), ".", ",")
	return english, french
}

// compare looks the attribute up. A number of several values, such as the
// spacing of rows and columns, is inside if all are.
func (r techniqueRow) compare(t Technique, d *dicom.DataSet) match {
	for _, tag := range r.tags {
		if d.Empty(tag) {
			continue
		}
		if !r.number {
			value := strings.TrimSpace(d.String(tag))
			if value == "" {
				continue
			}
			if slices.ContainsFunc(t.Values, func(v string) bool { return strings.EqualFold(v, value) }) {
				return inside
			}
			return outside
		}
		values := d.Floats(tag)
		if len(values) == 0 {
			continue
		}
		for _, v := range values {
			if !(v >= t.From && v <= t.To) {
				return outside
			}
		}
		return inside
	}
	return unknown
}
