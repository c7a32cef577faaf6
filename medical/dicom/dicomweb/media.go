package dicomweb

import (
	"mime"
	"net/http"
	"strconv"
	"strings"
)

const (
	mediaDICOM     = "application/dicom"
	mediaJSON      = "application/dicom+json"
	mediaXML       = "application/dicom+xml"
	mediaMultipart = "multipart/related"
	mediaPNG       = "image/png"
)

// wanted is one media range that a client accepts.
type wanted struct {
	media  string
	params map[string]string
}

// accepts reads what a client accepts: the accept query parameter if there is
// one, else the header (PS3.18 section 8.3.3). Nothing said is everything.
func accepts(r *http.Request) []wanted {
	values := r.Header.Values("Accept")
	if q := r.URL.Query()["accept"]; len(q) > 0 {
		values = q
	}
	var out []wanted
	for _, part := range splitList(strings.Join(values, ",")) {
		media, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		if q, err := strconv.ParseFloat(params["q"], 64); err == nil && q == 0 {
			continue
		}
		out = append(out, wanted{media, params})
	}
	if len(values) == 0 {
		out = []wanted{{media: "*/*"}}
	}
	return out
}

// splitList cuts at commas outside quotes.
func splitList(s string) []string {
	var out []string
	begin, quoted := 0, false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && quoted:
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ',' && !quoted:
			out = append(out, s[begin:i])
			begin = i + 1
		}
	}
	return append(out, s[begin:])
}

// acceptsJSON reports whether attributes may be answered as JSON; XML alone
// may not.
func acceptsJSON(r *http.Request) bool {
	for _, w := range accepts(r) {
		switch w.media {
		case "*/*", "application/*", mediaJSON, "application/json":
			return true
		}
	}
	return false
}

// objectForm is how an object may be answered.
type objectForm struct {
	multipart bool
	syntaxes  map[string]bool // nil: any
}

// acceptsObjects finds out how objects may be answered; ok is false when in no
// way of ours.
func acceptsObjects(r *http.Request) (form objectForm, ok bool) {
	for _, w := range accepts(r) {
		multipart := w.media == mediaMultipart && (w.params["type"] == "" || w.params["type"] == mediaDICOM)
		anything := w.media == "*/*" || w.media == "multipart/*"
		if !multipart && !anything && w.media != mediaDICOM && w.media != "application/*" {
			continue
		}
		if !ok {
			form = objectForm{multipart: multipart || anything, syntaxes: map[string]bool{}}
		}
		ok = true
		// A transfer syntax is asked for per range; no word, or *, takes what
		// is there.
		if syntax := w.params["transfer-syntax"]; syntax == "" || syntax == "*" {
			form.syntaxes = nil
		} else if form.syntaxes != nil {
			form.syntaxes[syntax] = true
		}
	}
	return form, ok
}
