package dicomweb

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/vigie/vigie/medical/dicom"
)

// level is one of the three levels of a search, with the attributes it answers
// with (PS3.18 tables 10.6.3-3 to 10.6.3-5) and those it adds when asked.
type level struct {
	name   string
	parts  []dicom.Tag // the identifiers of an entity
	always []dicom.Tag
	more   []dicom.Tag // nil: everything
}

var (
	studyLevel = &level{
		name: "study", parts: []dicom.Tag{dicom.StudyInstanceUID},
		always: []dicom.Tag{
			dicom.StudyDate, dicom.StudyTime, dicom.AccessionNumber, dicom.ReferringPhysicianName, dicom.TimezoneOffsetFromUTC,
			dicom.PatientName, dicom.PatientID, dicom.PatientBirthDate, dicom.PatientSex, dicom.StudyInstanceUID, dicom.StudyID,
		},
		more: []dicom.Tag{
			dicom.StudyDescription, dicom.IssuerOfPatientID, dicom.PatientAge, dicom.PatientSize, dicom.PatientWeight, dicom.PhysiciansOfRecord,
			dicom.ProcedureCodeSequence, dicom.AdmittingDiagnosesDescription,
		},
	}
	seriesLevel = &level{
		name: "series", parts: []dicom.Tag{dicom.StudyInstanceUID, dicom.SeriesInstanceUID},
		always: []dicom.Tag{
			dicom.Modality, dicom.SeriesDescription, dicom.SeriesInstanceUID, dicom.SeriesNumber, dicom.TimezoneOffsetFromUTC,
			performedStepStartDate, performedStepStartTime, requestAttributes,
		},
		more: []dicom.Tag{
			dicom.SeriesDate, dicom.SeriesTime, dicom.BodyPartExamined, dicom.Laterality, dicom.ProtocolName, dicom.Manufacturer,
			dicom.ManufacturerModelName, dicom.StationName, dicom.InstitutionName, dicom.OperatorsName, dicom.PerformingPhysicianName,
		},
	}
	instanceLevel = &level{
		name: "instance", parts: []dicom.Tag{dicom.StudyInstanceUID, dicom.SeriesInstanceUID, dicom.SOPInstanceUID},
		always: []dicom.Tag{
			dicom.SOPClassUID, dicom.SOPInstanceUID, dicom.TimezoneOffsetFromUTC, dicom.InstanceNumber, dicom.Rows, dicom.Columns,
			dicom.BitsAllocated, dicom.NumberOfFrames,
		},
	}
)

const (
	performedStepStartDate dicom.Tag = 0x00400244
	performedStepStartTime dicom.Tag = 0x00400245
	requestAttributes      dicom.Tag = 0x00400275
)

// query is a search request.
type query struct {
	keys    []key
	include []dicom.Tag
	all     bool
	limit   int
	offset  int
}

// parseQuery reads the parameters of a search.
func parseQuery(values url.Values, maxResults int) (query, error) {
	q := query{limit: maxResults}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		for _, value := range values[name] {
			if err := q.parameter(name, value, maxResults); err != nil {
				return q, err
			}
		}
	}
	return q, nil
}

func (q *query) parameter(name, value string, maxResults int) error {
	switch name {
	case "accept", "fuzzymatching": // fuzzy matching is answered with plain matching, which the standard allows
		return nil
	case "limit", "offset":
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 {
			return fmt.Errorf("%s: want a whole number", name)
		}
		if name == "offset" {
			q.offset = n
		} else {
			q.limit = min(n, maxResults)
		}
		return nil
	case "includefield":
		for _, field := range strings.Split(value, ",") {
			if field == "all" {
				q.all = true
				continue
			}
			path, ok := attributePath(field)
			if !ok {
				return fmt.Errorf("includefield: not an attribute")
			}
			q.include = append(q.include, path[0])
		}
		return nil
	}
	path, ok := attributePath(name)
	if !ok {
		return fmt.Errorf("a parameter is neither an attribute nor one of limit, offset, includefield, fuzzymatching")
	}
	q.include = append(q.include, path[0]) // what is matched is answered, too
	if value != "" && strings.Trim(value, "*") != "" {
		q.keys = append(q.keys, key{path: path, value: value})
	}
	return nil
}

// attributePath reads "PatientID", "00100020" or a path of them with dots.
func attributePath(text string) ([]dicom.Tag, bool) {
	var path []dicom.Tag
	for _, name := range strings.Split(text, ".") {
		tag, ok := dicom.TagOf(name)
		if !ok {
			n, err := strconv.ParseUint(name, 16, 32)
			if err != nil || len(name) != 8 {
				return nil, false
			}
			tag = dicom.Tag(n)
		}
		path = append(path, tag)
	}
	return path, len(path) <= 4
}

// equal are the keys that an archive may have an index for.
func (q query) equal() map[dicom.Tag]string {
	out := map[dicom.Tag]string{}
	for _, k := range q.keys {
		if len(k.path) == 1 && !strings.ContainsAny(k.value, `*?,\-`) && k.path[0] != dicom.ModalitiesInStudy {
			switch attribute, _ := dicom.Lookup(k.path[0]); attribute.VR {
			case dicom.PN, dicom.DA, dicom.TM, dicom.DT: // matched otherwise than by being equal
			default:
				out[k.path[0]] = k.value
			}
		}
	}
	return out
}

// entity gathers what a search says about one study, series or instance.
type entity struct {
	uids       []string
	header     *dicom.DataSet // of the first instance
	matched    bool
	instances  int64
	series     map[string]bool
	modalities []string
}

// search answers QIDO-RS at a level (PS3.18 section 10.6).
func (h *handler) search(w http.ResponseWriter, r *http.Request, peer Peer, at *level) {
	if !acceptsJSON(r) {
		refuse(w, http.StatusNotAcceptable, "results are given as application/dicom+json; XML is not offered")
		return
	}
	q, err := parseQuery(r.URL.Query(), h.cfg.MaxResults)
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
		return
	}
	scope := pathScope(r)
	scope.Equal = q.equal()
	entities, err := h.gather(r, peer, scope, q, at)
	if err != nil {
		h.archiveFailed(w, err)
		return
	}
	results := make([]*dicom.DataSet, 0)
	for i, e := range entities[min(q.offset, len(entities)):] {
		if i == q.limit {
			w.Header().Set("Warning", `299 dicomweb "There are additional results that can be requested"`)
			break
		}
		results = append(results, h.result(e, at, q, scope))
	}
	if len(results) == 0 {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if !h.disclose(w, r, peer, "search "+at.name, len(results)) {
		return
	}
	h.answerJSON(w, http.StatusOK, results)
}

// gather groups the archive's instances into entities and keeps those in which
// an instance matches every key.
func (h *handler) gather(r *http.Request, peer Peer, scope Scope, q query, at *level) ([]*entity, error) {
	byUID := map[string]*entity{}
	var order []*entity
	// The hints hold for instances. Where they are counted, all must be seen.
	if at != instanceLevel {
		scope.Equal = entityEqual(scope.Equal, at)
	}
	for instance, err := range h.cfg.Archive.Instances(r.Context(), peer, scope) {
		if err != nil {
			return nil, err
		}
		if !scope.within(instance) {
			continue
		}
		uids := make([]string, len(at.parts))
		for i, tag := range at.parts {
			uids[i] = instance.Header.UID(tag)
		}
		name := strings.Join(uids, "/")
		e := byUID[name]
		if e == nil {
			e = &entity{uids: uids, header: instance.Header, series: map[string]bool{}}
			byUID[name] = e
			order = append(order, e)
		}
		e.add(instance.Header, q.keys)
	}
	return slices.DeleteFunc(order, func(e *entity) bool { return !e.matched }), nil
}

// entityEqual keeps the hints that hold for every instance of an entity.
func entityEqual(equal map[dicom.Tag]string, at *level) map[dicom.Tag]string {
	out := map[dicom.Tag]string{}
	for tag, value := range equal {
		if slices.Contains(studyLevel.always, tag) || slices.Contains(at.parts, tag) {
			out[tag] = value
		}
	}
	return out
}

func (e *entity) add(header *dicom.DataSet, keys []key) {
	e.instances++
	e.series[header.UID(dicom.SeriesInstanceUID)] = true
	if m := header.String(dicom.Modality); m != "" && !slices.Contains(e.modalities, m) {
		e.modalities = append(e.modalities, m)
	}
	for _, k := range keys {
		if !k.matches(header) {
			return
		}
	}
	e.matched = true
}

// result is what is said about an entity. Attributes of the levels above come
// along when the path does not name them.
func (h *handler) result(e *entity, at *level, q query, scope Scope) *dicom.DataSet {
	out := &dicom.DataSet{}
	levels := []*level{at}
	if at != studyLevel && scope.Study == "" {
		levels = append(levels, studyLevel)
	}
	if at == instanceLevel && scope.Series == "" {
		levels = append(levels, seriesLevel)
	}
	for _, l := range levels {
		out.Copy(e.header, l.always...)
		for _, tag := range l.more {
			if q.all || slices.Contains(q.include, tag) {
				out.Copy(e.header, tag)
			}
		}
	}
	if at == instanceLevel {
		for element := range e.header.All() {
			if (q.all || slices.Contains(q.include, element.Tag)) && !isBulk(element) {
				out.Copy(e.header, element.Tag)
			}
		}
	}
	for _, tag := range at.parts {
		out.Copy(e.header, tag)
	}
	out.PutString(dicom.InstanceAvailability, "ONLINE")
	out.PutString(dicom.RetrieveURL, h.retrieveURL(e.uids...))
	switch at {
	case studyLevel:
		out.PutString(dicom.ModalitiesInStudy, e.modalities...)
		out.PutInt(dicom.NumberOfStudyRelatedSeries, int64(len(e.series)))
		out.PutInt(dicom.NumberOfStudyRelatedInstances, e.instances)
	case seriesLevel:
		out.PutInt(dicom.NumberOfSeriesRelatedInstances, e.instances)
	}
	return out
}
