package dicomweb

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image/png"
	"io"
	"mime"
	"mime/multipart"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vigie/vigie/medical/dicom"
)

// library is an archive of three studies: A with two series (SR, SC) of one and
// two instances, B with one SC, and the same patient's C with one SR.
func library(t testing.TB) *memoryArchive {
	a := &memoryArchive{}
	add := func(class, modality, study, series, instance, name, id, date string) {
		d := dataSet(class, study, series, instance)
		d.PutString(dicom.Modality, modality)
		d.PutString(dicom.PatientName, name)
		d.PutString(dicom.PatientID, id)
		d.PutString(dicom.StudyDate, date)
		d.PutString(dicom.StudyTime, "101112")
		d.PutString(dicom.AccessionNumber, "ACC-"+study)
		d.PutString(dicom.StudyDescription, "Chest "+study)
		d.PutString(dicom.SeriesDescription, "Result")
		d.PutString(dicom.Manufacturer, "Vigie")
		d.PutInt(dicom.SeriesNumber, 900)
		step := &dicom.DataSet{}
		step.PutString(0x00400009, "STEP-"+study)
		d.PutItems(requestAttributes, step)
		if modality == "OT" {
			d.PutInt(dicom.Rows, 2)
			d.PutInt(dicom.Columns, 2)
			d.PutInt(dicom.SamplesPerPixel, 3)
			d.PutString(dicom.PhotometricInterpretation, "RGB")
			d.PutInt(dicom.PlanarConfiguration, 0)
			d.PutInt(dicom.BitsAllocated, 8)
			d.PutInt(dicom.BitsStored, 8)
			d.PutInt(dicom.HighBit, 7)
			d.PutInt(dicom.PixelRepresentation, 0)
			d.PutBytes(dicom.PixelData, dicom.OB, []byte{255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9})
		}
		var out bytes.Buffer
		if err := dicom.NewFile(d, dicom.ExplicitLittleEndian).Write(&out); err != nil {
			t.Fatal(err)
		}
		a.files = append(a.files, out.Bytes())
	}
	add(srStorage, "SR", "1.1", "1.1.1", "1.1.1.1", "Müller^Hans", "P1", "20240131")
	add(scStorage, "OT", "1.1", "1.1.2", "1.1.2.1", "Müller^Hans", "P1", "20240131")
	add(scStorage, "OT", "1.1", "1.1.2", "1.1.2.2", "Müller^Hans", "P1", "20240131")
	add(scStorage, "OT", "1.2", "1.2.1", "1.2.1.1", "Curie^Marie", "P2", "20240215")
	add(srStorage, "SR", "1.3", "1.3.1", "1.3.1.1", "Müller^Hans", "P1", "20250101")
	return a
}

// results fetches a search as JSON: the value of one tag of each result.
func (s *site) results(t testing.TB, path, tag string) []string {
	t.Helper()
	response, body := do(t, "GET", s.URL+path, map[string]string{"Accept": "application/dicom+json"}, nil)
	if response.StatusCode == 204 {
		return nil
	}
	if response.StatusCode != 200 {
		t.Fatalf("%s: %d %s", path, response.StatusCode, body)
	}
	var list []jsonItem
	if err := json.Unmarshal(body, &list); err != nil {
		t.Fatalf("%s: %v in %s", path, err, body)
	}
	var out []string
	for _, item := range list {
		var values []string
		for _, v := range item[tag].Value {
			values = append(values, strings.Trim(string(v), `"`))
		}
		out = append(out, strings.Join(values, `\`))
	}
	return out
}

func TestSearchesFindWhatMatches(t *testing.T) {
	s := open(t, func(cfg *Config) { cfg.Archive = library(t) })
	const study, series, instance = "0020000D", "0020000E", "00080018"
	for path, step := range map[string]struct {
		tag  string
		want []string
	}{
		"/studies":                                   {study, []string{"1.1", "1.2", "1.3"}},
		"/studies?PatientID=P1":                      {study, []string{"1.1", "1.3"}},
		"/studies?00100020=P2":                       {study, []string{"1.2"}},
		"/studies?PatientID=P?":                      {study, []string{"1.1", "1.2", "1.3"}},
		"/studies?PatientID=p1":                      {study, nil},
		"/studies?PatientName=m%C3%BCller*":          {study, []string{"1.1", "1.3"}},
		"/studies?PatientName=CURIE%5EMARIE":         {study, []string{"1.2"}},
		"/studies?PatientName=*":                     {study, []string{"1.1", "1.2", "1.3"}},
		"/studies?PatientName=":                      {study, []string{"1.1", "1.2", "1.3"}},
		"/studies?StudyDate=20240101-20240229":       {study, []string{"1.1", "1.2"}},
		"/studies?StudyDate=20240215-":               {study, []string{"1.2", "1.3"}},
		"/studies?StudyDate=-20240131":               {study, []string{"1.1"}},
		"/studies?StudyDate=20240131":                {study, []string{"1.1"}},
		"/studies?AccessionNumber=ACC-1.2":           {study, []string{"1.2"}},
		"/studies?StudyInstanceUID=1.3,1.2":          {study, []string{"1.2", "1.3"}},
		"/studies?StudyInstanceUID=1.3%5C1.1":        {study, []string{"1.1", "1.3"}},
		"/studies?ModalitiesInStudy=SR":              {study, []string{"1.1", "1.3"}},
		"/studies?PatientID=P1&ModalitiesInStudy=OT": {study, []string{"1.1"}},
		"/studies?limit=2":                           {study, []string{"1.1", "1.2"}},
		"/studies?limit=2&offset=2":                  {study, []string{"1.3"}},
		"/studies?offset=9":                          {study, nil},
		"/series":                                    {series, []string{"1.1.1", "1.1.2", "1.2.1", "1.3.1"}},
		"/series?Modality=OT":                        {series, []string{"1.1.2", "1.2.1"}},
		"/series?RequestAttributesSequence.ScheduledProcedureStepID=STEP-1.2": {series, []string{"1.2.1"}},
		"/series?00400275.00400009=STEP-1.2":                                  {series, []string{"1.2.1"}},
		"/series?SeriesNumber=900&limit=1":                                    {series, []string{"1.1.1"}},
		"/studies/1.1/series":                                                 {series, []string{"1.1.1", "1.1.2"}},
		"/studies/1.1/instances":                                              {instance, []string{"1.1.1.1", "1.1.2.1", "1.1.2.2"}},
		"/studies/1.1/series/1.1.2/instances":                                 {instance, []string{"1.1.2.1", "1.1.2.2"}},
		"/studies/1.2/series/1.1.2/instances":                                 {instance, nil},
		"/instances?SOPClassUID=" + srStorage:                                 {instance, []string{"1.1.1.1", "1.3.1.1"}},
		"/instances?Rows=2&StudyInstanceUID=1.2":                              {instance, []string{"1.2.1.1"}},
		"/studies/9.9/instances":                                              {instance, nil},
	} {
		if got := s.results(t, path, step.tag); !reflect.DeepEqual(got, step.want) {
			t.Errorf("%s found %q, want %q", path, got, step.want)
		}
	}
	// Counts are of the whole study, whatever the instances that matched.
	for path, tagAndWant := range map[string][2]string{
		"/studies?PatientID=P1&limit=1":                                {"00201208", "3"},
		"/studies?ModalitiesInStudy=OT&limit=1":                        {"00201208", "3"},
		"/studies?StudyInstanceUID=1.1":                                {"00201206", "2"},
		"/studies?StudyInstanceUID=1.1&x=":                             {"", ""},
		"/studies?AccessionNumber=ACC-1.1&includefield=00080061":       {"00080061", `SR\OT`},
		"/studies/1.1/series?SeriesInstanceUID=1.1.2":                  {"00201209", "2"},
		"/studies?StudyInstanceUID=1.1&limit=5":                        {"00081190", "/studies/1.1"},
		"/studies/1.1/series?Modality=SR":                              {"00081190", "/studies/1.1/series/1.1.1"},
		"/instances?SOPInstanceUID=1.2.1.1":                            {"00081190", "/studies/1.2/series/1.2.1/instances/1.2.1.1"},
		"/studies?StudyInstanceUID=1.1&fuzzymatching=true":             {"00081030", ""},
		"/studies?StudyInstanceUID=1.1&includefield=StudyDescription":  {"00081030", "Chest 1.1"},
		"/studies?StudyInstanceUID=1.1&includefield=all":               {"00081030", "Chest 1.1"},
		"/studies/1.2/series?includefield=Manufacturer,Laterality":     {"00080070", "Vigie"},
		"/studies/1.2/instances?includefield=00080070":                 {"00080070", "Vigie"},
		"/studies/1.2/instances":                                       {"00080070", ""},
		"/studies/1.2/instances?includefield=all":                      {"7FE00010", ""},
		"/instances?SOPInstanceUID=1.2.1.1&includefield=PatientWeight": {"00080020", "20240215"},
	} {
		if tagAndWant[0] == "" {
			if response, _ := do(t, "GET", s.URL+path, nil, nil); response.StatusCode != 400 {
				t.Errorf("%s: %d, want 400", path, response.StatusCode)
			}
			continue
		}
		if got := s.results(t, path, tagAndWant[0]); len(got) != 1 || got[0] != tagAndWant[1] {
			t.Errorf("%s: %s is %q, want %q", path, tagAndWant[0], got, tagAndWant[1])
		}
	}
}

func TestSearchesAreBoundedAndSaySo(t *testing.T) {
	s := open(t, func(cfg *Config) { cfg.Archive, cfg.MaxResults = library(t), 2 })
	response, _ := do(t, "GET", s.URL+"/instances?limit=100", nil, nil)
	if warning := response.Header.Get("Warning"); response.StatusCode != 200 || !strings.HasPrefix(warning, "299 ") {
		t.Errorf("%d, warning %q", response.StatusCode, warning)
	}
	if got := s.results(t, "/instances?limit=100", "00080018"); len(got) != 2 {
		t.Errorf("%d results", len(got))
	}
	for _, bad := range []string{"/studies?limit=-1", "/studies?offset=x", "/studies?includefield=Nonsense", "/studies?Nonsense=1", "/studies/x/series", "/studies?a.b.c.d.e=1"} {
		if response, _ := do(t, "GET", s.URL+bad, nil, nil); response.StatusCode != 400 {
			t.Errorf("%s: %d, want 400", bad, response.StatusCode)
		}
	}
	for range 20 { // of several mistakes always the same is named
		if _, body := do(t, "GET", s.URL+"/studies?offset=x&limit=-1", nil, nil); !strings.Contains(string(body), "limit") {
			t.Fatalf("the refusal says %s", body)
		}
	}
	for _, path := range []string{"/studies", "/studies/1.1/metadata"} {
		if response, _ := do(t, "GET", s.URL+path, map[string]string{"Accept": "application/dicom+xml"}, nil); response.StatusCode != 406 {
			t.Errorf("%s as XML: %d, want 406", path, response.StatusCode)
		}
	}
}

func TestAnArchiveThatKnowsNoScopeLeaksNothing(t *testing.T) {
	archive := library(t) // its Instances yields everything, always
	s := open(t, func(cfg *Config) { cfg.Archive = archive })
	if got := s.results(t, "/studies/1.2/instances", "00080018"); !slices.Equal(got, []string{"1.2.1.1"}) {
		t.Errorf("found %q", got)
	}
	s.results(t, "/studies?PatientID=P1&PatientName=x&StudyDate=20240131", "0020000D")
	if got := archive.seen[len(archive.seen)-1].Equal; !reflect.DeepEqual(got, map[dicom.Tag]string{dicom.PatientID: "P1"}) {
		t.Errorf("the archive was told %v", got)
	}
}

func TestObjectsAreRetrievedByteForByte(t *testing.T) {
	archive := library(t)
	s := open(t, func(cfg *Config) { cfg.Archive = archive })
	for path, want := range map[string][]int{
		"/studies/1.1": {0, 1, 2}, "/studies/1.1/series/1.1.2": {1, 2}, "/studies/1.1/series/1.1.2/instances/1.1.2.2": {2},
	} {
		for _, accept := range []string{
			"", "*/*", `multipart/related; type="application/dicom"`, `multipart/related; type="application/dicom"; transfer-syntax=*`,
			`application/dicom+xml, multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1`,
		} {
			headers := map[string]string{}
			if accept != "" {
				headers["Accept"] = accept
			}
			response, body := do(t, "GET", s.URL+path, headers, nil)
			media, params, err := mime.ParseMediaType(response.Header.Get("Content-Type"))
			if response.StatusCode != 200 || err != nil || media != "multipart/related" || params["type"] != "application/dicom" {
				t.Fatalf("%s as %q: %d, %q", path, accept, response.StatusCode, response.Header.Get("Content-Type"))
			}
			parts := multipart.NewReader(bytes.NewReader(body), params["boundary"])
			for _, i := range want {
				part, err := parts.NextRawPart()
				if err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(part); err != nil || !bytes.Equal(got, archive.files[i]) {
					t.Errorf("%s: object %d changed (%v)", path, i, err)
				}
				if got := part.Header.Get("Content-Type"); got != "application/dicom; transfer-syntax=1.2.840.10008.1.2.1" {
					t.Errorf("part type %q", got)
				}
			}
			if _, err := parts.NextRawPart(); !errors.Is(err, io.EOF) {
				t.Errorf("%s: more parts than objects (%v)", path, err)
			}
		}
	}
	alone := s.URL + "/studies/1.1/series/1.1.1/instances/1.1.1.1"
	if _, body := do(t, "GET", alone, map[string]string{"Accept": "application/dicom"}, nil); !bytes.Equal(body, archive.files[0]) {
		t.Error("the single object changed")
	}
	for path, accept := range map[string]string{
		"/studies/1.1/series/1.1.1/instances/1.1.1.1":  `multipart/related; type="application/octet-stream"`,
		"/studies/1.1/series/1.1.1/instances/1.1.1.1?": `multipart/related; type="application/dicom+xml"`,
		"/studies/1.1/series/1.1.2":                    "application/dicom",
		"/studies/1.1/series/1.1.2/":                   "",
		"/studies/1.1":                                 `multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.4.90`,
		"/studies/1.1/":                                "",
		"/studies/1.9":                                 "*/*",
	} {
		want := map[bool]int{true: 404, false: 406}[strings.HasSuffix(path, "/") || path == "/studies/1.9"]
		if response, _ := do(t, "GET", s.URL+path, map[string]string{"Accept": accept}, nil); response.StatusCode != want {
			t.Errorf("%s as %q: %d, want %d", path, accept, response.StatusCode, want)
		}
	}
}

func TestMetadataComeWithoutPixels(t *testing.T) {
	s := open(t, func(cfg *Config) { cfg.Archive, cfg.BaseURL = library(t), "https://vigie.test/dicom-web/" })
	if got := s.results(t, "/studies/1.1/metadata", "00100010"); len(got) != 3 || !strings.Contains(got[0], "Müller^Hans") {
		t.Errorf("names %q", got)
	}
	if got := s.results(t, "/studies/1.1/series/1.1.2/metadata", "00280010"); !slices.Equal(got, []string{"2", "2"}) {
		t.Errorf("rows %q", got)
	}
	_, body := do(t, "GET", s.URL+"/studies/1.1/series/1.1.2/instances/1.1.2.1/metadata", nil, nil)
	if strings.Contains(string(body), "7FE00010") {
		t.Error("the pixels came along")
	}
	if got := s.results(t, "/studies?StudyInstanceUID=1.1", "00081190"); got[0] != "https://vigie.test/dicom-web/studies/1.1" {
		t.Errorf("retrieve URL %q", got)
	}
}

func TestAPictureIsRendered(t *testing.T) {
	s := open(t, func(cfg *Config) { cfg.Archive = library(t) })
	response, body := do(t, "GET", s.URL+"/studies/1.2/series/1.2.1/instances/1.2.1.1/rendered", map[string]string{"Accept": "image/png"}, nil)
	if response.StatusCode != 200 {
		t.Fatalf("%d %s", response.StatusCode, body)
	}
	picture, err := png.Decode(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for y := range 2 {
		for x := range 2 {
			r, g, b, a := picture.At(x, y).RGBA()
			got = append(got, fmt.Sprint(r>>8, g>>8, b>>8, a>>8))
		}
	}
	if want := []string{"255 0 0 255", "0 255 0 255", "0 0 255 255", "9 9 9 255"}; !slices.Equal(got, want) {
		t.Errorf("pixels %q, want %q", got, want)
	}
	for path, want := range map[string]int{"/studies/1.1/series/1.1.1/instances/1.1.1.1/rendered": 404, "/studies/1.2/series/1.2.1/instances/1.2.1.9/rendered": 404} {
		if response, _ := do(t, "GET", s.URL+path, nil, nil); response.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, response.StatusCode, want)
		}
	}
	if response, _ := do(t, "GET", s.URL+"/studies/1.2/series/1.2.1/instances/1.2.1.1/rendered", map[string]string{"Accept": "image/jpeg"}, nil); response.StatusCode != 406 {
		t.Errorf("as JPEG: %d", response.StatusCode)
	}
}

func TestAFailingArchiveIsAServerErrorWithoutDetail(t *testing.T) {
	s := open(t, func(cfg *Config) { cfg.Archive = &memoryArchive{fail: errors.New("DOE^JOHN is locked")} })
	for _, path := range []string{"/studies", "/studies/1.1", "/studies/1.1/metadata"} {
		response, body := do(t, "GET", s.URL+path, nil, nil)
		if response.StatusCode != 500 || strings.Contains(string(body), "DOE") {
			t.Errorf("%s: %d %s", path, response.StatusCode, body)
		}
	}
	broken := library(t)
	broken.fail = errors.New("DOE^JOHN is locked")
	s = open(t, func(cfg *Config) { cfg.Archive = broken })
	if response, body := do(t, "GET", s.URL+"/studies/1.1", nil, nil); response.StatusCode != 500 || strings.Contains(string(body), "DOE") {
		t.Errorf("%d %s", response.StatusCode, body)
	}
}

func TestValuesMatchAsTheirVRSays(t *testing.T) {
	for _, step := range []struct {
		vr             dicom.VR
		pattern, value string
		want           bool
	}{
		{dicom.LO, "a*c", "abbc", true}, {dicom.LO, "a*c", "a/c", true}, {dicom.LO, "a?c", "abc", true}, {dicom.LO, "a?c", "abbc", false},
		{dicom.LO, "[ab]*", "[ab]x", true}, {dicom.LO, "[ab]*", "ax", false}, {dicom.LO, "a", "ab", false}, {dicom.SH, `x\*`, `x\yy`, true},
		{dicom.PN, "curie^m*", "Curie^Marie^^^", true}, {dicom.PN, "curie", "Curie^^^^", true}, {dicom.PN, "cur", "Curie", false},
		{dicom.TM, "10", "101112", true}, {dicom.TM, "1000-1030", "101112", true}, {dicom.TM, "-1011", "101112", true}, {dicom.TM, "-1010", "101112", false},
		{dicom.DA, "20240131-20240131", "20240131", true}, {dicom.DA, "20240201-", "20240131", false},
		{dicom.UI, "1.2,1.3", "1.3", true}, {dicom.UI, "1.2", "1.2.3", false}, {dicom.UI, "1.*", "1.2", false},
		{dicom.IS, "12", "12", true}, {dicom.US, "1", "12", false},
	} {
		if got := matchValue(step.vr, step.pattern, step.value); got != step.want {
			t.Errorf("%s %q against %q: %v", step.vr, step.pattern, step.value, got)
		}
	}
}

func TestAttributesLeaveOnlyOnceSomebodyWasTold(t *testing.T) {
	var told []Disclosure
	var refuse error
	s := open(t, func(c *Config) {
		c.Archive = library(t)
		c.Disclose = func(_ context.Context, _ Peer, d Disclosure) error {
			told = append(told, d)
			return refuse
		}
	})
	for _, refuse = range []error{nil, errors.New("the log is full")} {
		for path, want := range map[string]Disclosure{
			"/studies?PatientID=P1":  {"search study", 2},
			"/studies/1.1/series":    {"search series", 2},
			"/studies/1.1/instances": {"search instance", 3},
			"/studies/1.1/metadata":  {"metadata", 3},
		} {
			told = nil
			response, body := do(t, "GET", s.URL+path, nil, nil)
			if len(told) != 1 || told[0] != want {
				t.Errorf("%s: told %v, want %v", path, told, want)
			}
			if shown := strings.Contains(string(body), "1.1"); shown != (refuse == nil) || (response.StatusCode == 200) != shown {
				t.Errorf("%s: %d, shown %v though telling gave %v", path, response.StatusCode, shown, refuse)
			}
		}
	}
	told = nil
	if response, _ := do(t, "GET", s.URL+"/studies?PatientID=NOBODY", nil, nil); response.StatusCode != 204 || len(told) != 0 {
		t.Errorf("an empty answer: %d, told %v", response.StatusCode, told)
	}
}
