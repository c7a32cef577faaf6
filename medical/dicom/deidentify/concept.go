package deidentify

import "sync"

// concept is a coded concept that may stay in a de-identified copy.
type concept struct {
	scheme  string // coding scheme designator today
	value   string
	srt     string // its value under SRT (or SNM3, 99SDM), which older equipment sends
	meaning string // written in place of whatever meaning came in
}

// legacy are the coding scheme designators under which SNOMED-RT style values
// travelled before PS3.16 moved to SCT.
var legacy = []string{"SRT", "SNM3", "99SDM"}

var known = sync.OnceValue(func() map[[2]string]string {
	all := make(map[[2]string]string, 4*len(concepts))
	for _, c := range concepts {
		all[[2]string{c.scheme, c.value}] = c.meaning
		if c.srt == "" {
			continue
		}
		for _, scheme := range legacy {
			all[[2]string{scheme, c.srt}] = c.meaning
		}
	}
	// PS3.16 CID 4010 gave the postero-anterior projection this value for years.
	for _, scheme := range legacy {
		all[[2]string{scheme, "R-10214"}] = "postero-anterior"
	}
	return all
})

// meaningOf returns the meaning of a code of the vocabulary.
func meaningOf(scheme, value string) (string, bool) {
	meaning, ok := known()[[2]string{scheme, value}]
	return meaning, ok
}
