package dicomweb

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"net/http"
	"net/url"

	"github.com/vigie/vigie/medical/dicom"
)

// Archive is what can be searched and retrieved. It decides by the peer what
// that peer may see at all.
type Archive interface {
	// Instances yields every instance within the scope, those of one study and
	// series side by side, in an order that stays the same between calls. It
	// may use the scope's Equal as a hint and yield fewer. An error ends the
	// iteration.
	Instances(ctx context.Context, peer Peer, scope Scope) iter.Seq2[Instance, error]
}

// Scope limits a search. Empty fields do not.
type Scope struct {
	Study, Series, Instance string // Study, Series and SOP Instance UID

	// Equal holds attributes that must have exactly this value, such as
	// PatientID or AccessionNumber; an archive with an index on one saves the
	// handler from looking at everything.
	Equal map[dicom.Tag]string
}

// Instance is one object of an archive.
type Instance struct {
	Header         *dicom.DataSet // every attribute but bulk data; with Study, Series and SOP Instance UID
	TransferSyntax string

	// Open returns the object as a file (PS3.10).
	Open func(context.Context) (io.ReadCloser, error)
}

// within checks what the archive yields against the scope, so that a mistake
// there never leaks another study.
func (s Scope) within(i Instance) bool {
	return (s.Study == "" || i.Header.UID(dicom.StudyInstanceUID) == s.Study) &&
		(s.Series == "" || i.Header.UID(dicom.SeriesInstanceUID) == s.Series) &&
		(s.Instance == "" || i.Header.UID(dicom.SOPInstanceUID) == s.Instance)
}

// pathScope is the scope that the path names.
func pathScope(r *http.Request) Scope {
	return Scope{Study: r.PathValue("study"), Series: r.PathValue("series"), Instance: r.PathValue("instance")}
}

// collect gathers the instances of a path.
func (h *handler) collect(r *http.Request, peer Peer) ([]Instance, error) {
	scope := pathScope(r)
	var out []Instance
	for instance, err := range h.cfg.Archive.Instances(r.Context(), peer, scope) {
		if err != nil {
			return nil, err
		}
		if scope.within(instance) {
			out = append(out, instance)
		}
	}
	return out, nil
}

// found is collect with the refusals that retrieving has in common: nil when
// it has answered.
func (h *handler) found(w http.ResponseWriter, r *http.Request, peer Peer) []Instance {
	instances, err := h.collect(r, peer)
	switch {
	case err != nil:
		h.archiveFailed(w, err)
		return nil
	case len(instances) == 0:
		refuse(w, http.StatusNotFound, "nothing here by that identifier")
		return nil
	}
	return instances
}

func (h *handler) archiveFailed(w http.ResponseWriter, err error) {
	if errors.Is(err, context.Canceled) {
		return // nobody listens any more
	}
	h.cfg.Logger.Error("the archive failed", "error", err)
	refuse(w, http.StatusInternalServerError, "the archive cannot answer now")
}

// disclose tells of an answer. It reports false when it has refused instead.
func (h *handler) disclose(w http.ResponseWriter, r *http.Request, peer Peer, kind string, count int) bool {
	if h.cfg.Disclose == nil {
		return true
	}
	if err := h.cfg.Disclose(r.Context(), peer, Disclosure{Kind: kind, Count: count}); err != nil {
		h.archiveFailed(w, err)
		return false
	}
	return true
}

// retrieveURL is where an entity is retrieved.
func (h *handler) retrieveURL(uids ...string) string {
	path := h.base
	for i, uid := range uids {
		path += [...]string{"/studies/", "/series/", "/instances/"}[i] + url.PathEscape(uid)
	}
	return path
}

// answerJSON writes attributes as application/dicom+json.
func (h *handler) answerJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		h.cfg.Logger.Error("writing attributes as JSON failed", "error", err)
		refuse(w, http.StatusInternalServerError, "the answer cannot be written as JSON")
		return
	}
	w.Header().Set("Content-Type", mediaJSON)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that went away cannot be told
}
