package report

import (
	"fmt"
	"math"

	"github.com/vigie/vigie/medical/dicom"
)

// StructuredReport writes the result as a Comprehensive SR by TID 1500: the
// model as device observer, the source in the image library, a measurement
// group (TID 1501) with probability, operating point and algorithm
// identification (TID 4019) for each finding, and the remarks in English and
// French.
//
// It is always unverified and preliminary (PS3.3 C.17.2): verifying is the act
// of a person whom somebody authenticated, in the system that the report goes
// to. A reviewer is named as an observer in the content.
func StructuredReport(source *dicom.DataSet, r Result) (*dicom.File, error) {
	ref, err := referenceTo(source)
	if err != nil {
		return nil, err
	}
	d, err := begin(source, ComprehensiveSR, "SR", r.SeriesUID, r.InstanceUID, r.SeriesNumber, r.InstanceNumber, r.Time)
	if err != nil {
		return nil, err
	}
	for _, f := range r.Findings {
		if !f.ByPerson && !(f.Probability >= 0 && f.Probability <= 1) {
			return nil, fmt.Errorf("report: finding %s: a probability of %v is outside 0 to 1", f.Code.Value, f.Probability)
		}
		if f.TrackingUID == "" {
			return nil, fmt.Errorf("report: finding %s has no tracking UID", f.Code.Value)
		}
	}
	equipment(d, r.Model)
	d.PutString(dicom.SeriesDescription, clip("AI result "+r.Model.Name, 64))
	d.PutItems(dicom.ReferencedPerformedProcedureStepSequence)

	d.PutString(dicom.CompletionFlag, "COMPLETE")
	d.PutString(dicom.PreliminaryFlag, "PRELIMINARY")
	d.PutString(dicom.VerificationFlag, "UNVERIFIED")
	d.PutItems(dicom.PerformedProcedureCodeSequence)
	d.PutItems(dicom.CurrentRequestedProcedureEvidenceSequence, evidence(ref))
	d.PutItems(dicom.ContentTemplateSequence, template("1500"))
	scheme := new(dicom.DataSet)
	scheme.PutString(dicom.CodingSchemeDesignator, privateScheme)
	name, _ := dicom.TagOf("CodingSchemeName")
	scheme.PutString(name, "Vigie")
	identification, _ := dicom.TagOf("CodingSchemeIdentificationSequence")
	d.PutItems(identification, scheme)

	root := tree(source, ref, r).build()
	for e := range root.All() {
		d.Put(e)
	}
	d.ConvertToUTF8() // items built before they had a parent name the set themselves
	return dicom.NewFile(d, dicom.ExplicitLittleEndian), nil
}

// evidence lists the source by study and series (PS3.3 C.17.2).
func evidence(r reference) *dicom.DataSet {
	series := new(dicom.DataSet)
	series.PutString(dicom.SeriesInstanceUID, r.series)
	series.PutItems(dicom.ReferencedSOPSequence, r.item())
	study := new(dicom.DataSet)
	study.PutString(dicom.StudyInstanceUID, r.study)
	study.PutItems(dicom.ReferencedSeriesSequence, series)
	return study
}

func template(id string) *dicom.DataSet {
	d := new(dicom.DataSet)
	d.PutString(dicom.MappingResource, "DCMR")
	d.PutString(dicom.TemplateIdentifier, id)
	return d
}

// tree is the content of the document.
func tree(source *dicom.DataSet, ref reference, r Result) *content {
	root := container("", imagingMeasurementReport)
	root.add(code(modifies, language, english))
	root.add(observers(r)...)
	root.add(code(modifies, procedureReported, procedure(source)))
	root.add(container(contains, imageLibrary).add(
		container(contains, imageLibraryGroup).add(libraryEntry(source, ref))))
	measurements := container(contains, imagingMeasurements)
	for i, f := range r.Findings {
		measurements.add(group(ref, r.Model, f, i+1))
	}
	if len(r.Findings) > 0 {
		root.add(measurements)
	}
	if len(r.Remarks) > 0 {
		remarks := container(contains, qualitativeEvaluations)
		for _, t := range r.Remarks {
			remarks.add(text(contains, comment, t.English).add(code(modifies, language, english)))
			if t.French != "" {
				remarks.add(text(contains, comment, t.French).add(code(modifies, language, french)))
			}
		}
		root.add(remarks)
	}
	return root
}

// observers is TID 1002 for the model (TID 1004) and, if there is one, the
// reviewer (TID 1003).
func observers(r Result) []*content {
	out := []*content{code(observes, observerType, device)}
	if r.Model.DeviceUID != "" {
		out = append(out, uidref(observes, deviceUID, r.Model.DeviceUID))
	}
	out = append(out, text(observes, deviceName, clip(r.Model.Name+" "+r.Model.Version, 1024)))
	if r.Model.Manufacturer != "" {
		out = append(out, text(observes, deviceManufacturer, r.Model.Manufacturer))
	}
	out = append(out, text(observes, deviceModel, r.Model.Name))
	if r.Reviewer != nil {
		out = append(out, code(observes, observerType, personObserver), person(observes, personName, clip(r.Reviewer.Name, 64)))
		if r.Reviewer.Organization != "" {
			out = append(out, text(observes, personOrganization, r.Reviewer.Organization))
		}
	}
	return out
}

// procedure is the source's procedure code, else the most general one.
func procedure(source *dicom.DataSet) Code {
	if item := source.Item(dicom.ProcedureCodeSequence); item != nil {
		c := Code{item.String(dicom.CodeValue), item.String(dicom.CodingSchemeDesignator), item.String(dicom.CodeMeaning)}
		if c.Value != "" && c.Scheme != "" && c.Meaning != "" {
			return c
		}
	}
	return imagingProcedure
}

// libraryEntry is TID 1601 with the descriptors of TID 1602 that the source
// has.
func libraryEntry(source *dicom.DataSet, ref reference) *content {
	entry := imageItem(contains, nil, ref)
	if m := source.String(dicom.Modality); modalities[m] != "" {
		entry.add(code(acquired, modality, Code{m, "DCM", modalities[m]}))
	}
	if day, ok := source.Date(dicom.StudyDate); ok {
		entry.add(date(acquired, studyDate, day))
	}
	return entry
}

// group is TID 1501 for one finding.
func group(ref reference, m Model, f Finding, n int) *content {
	found := code(contains, finding, f.Code)
	if f.French != "" { // TID 1210
		found.add(text(modifies, equivalentMeaning, f.French).add(code(modifies, language, french)))
	}
	g := container(contains, measurementGroup)
	g.add(
		text(observes, trackingIdentifier, fmt.Sprintf("%s %d", clip(f.Code.Meaning, 64), n)),
		uidref(observes, trackingUID, f.TrackingUID),
		found,
	)
	if !f.ByPerson {
		g.add(algorithm(m)...)
		g.add(
			number(contains, probability, percentage(f.Probability), percent).add(imageItem(inferredBy, &sourceOfMeasurement, ref)),
			number(contains, threshold, percentage(f.Threshold), percent),
		)
	}
	g.add(code(contains, presence, f.conclusion()))
	return g
}

// algorithm is TID 4019.
func algorithm(m Model) []*content {
	out := []*content{text(modifies, algorithmName, m.Name), text(modifies, algorithmVersion, m.Version)}
	if m.Digest != "" {
		out = append(out, text(modifies, algorithmParameters, "model package "+m.Digest))
	}
	if m.Manufacturer != "" {
		out = append(out, text(modifies, algorithmManufacturer, m.Manufacturer))
	}
	return out
}

// percentage keeps a hundredth of a percent: more would claim a precision that
// no calibration has.
func percentage(p float64) float64 { return math.Round(p*1e4) / 1e2 }

func (f Finding) conclusion() Code {
	switch {
	case f.ByPerson && f.Positive:
		return present
	case f.ByPerson:
		return absent
	case f.Positive:
		return suspected
	}
	return notSuspected
}
