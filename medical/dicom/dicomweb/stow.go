package dicomweb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dimse"
)

const (
	warningReason  dicom.Tag = 0x00081196
	otherFailures  dicom.Tag = 0x0008119A
	headLength               = 8 << 10 // the file meta information takes a few hundred bytes
	copyBufferSize           = 64 << 10
	// maxBoundary is beyond the 70 characters of RFC 2046 section 5.1.1,
	// because Orthanc's are 73 long.
	maxBoundary           = 200
	endOfMeta   dicom.Tag = 0x00030000
)

var copyBuffers = sync.Pool{New: func() any { b := make([]byte, copyBufferSize); return &b }}

// stored is the outcome for one part.
type stored struct {
	class, instance string // "" when the part is not even a DICOM file
	status          dimse.Status
}

// store answers STOW-RS (PS3.18 section 10.5).
func (h *handler) store(w http.ResponseWriter, r *http.Request, peer Peer) {
	boundary, status, sentence := storeBoundary(r)
	switch {
	case status != 0:
		refuse(w, status, sentence)
		return
	case !acceptsJSON(r):
		refuse(w, http.StatusNotAcceptable, "the answer is application/dicom+json; XML is not offered")
		return
	case r.ContentLength > h.cfg.MaxRequest:
		refuse(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("at most %d bytes in one request; send the objects in several", h.cfg.MaxRequest))
		return
	}
	select {
	case h.stores <- struct{}{}:
		defer func() { <-h.stores }()
	default:
		w.Header().Set("Retry-After", "5")
		refuse(w, http.StatusServiceUnavailable, "too many store requests at once; try again")
		return
	}
	study := r.PathValue("study")
	alive := keepAlive(http.NewResponseController(w).SetReadDeadline, h.cfg.IdleTimeout, h.cfg.MaxDuration)
	all := newParts(r.Body, boundary, h.cfg.MaxRequest, alive)
	var outcomes []stored
	var failure error
	for failure == nil {
		part, err := all.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && len(outcomes) == h.cfg.MaxParts {
			err = errTooLarge
		}
		if err != nil {
			failure = err
			break
		}
		var outcome stored
		if outcome, failure = h.storePart(r.Context(), part, part.Header.Get("Content-Type"), StoreRequest{Peer: peer, Study: study}); failure == nil {
			outcomes = append(outcomes, outcome)
		}
	}
	h.answerStore(w, outcomes, failure)
}

// storeBoundary checks how the objects are sent. status is 0 when they can be
// read.
func storeBoundary(r *http.Request) (boundary string, status int, sentence string) {
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return "", http.StatusUnsupportedMediaType, "send the body without Content-Encoding"
	}
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != mediaMultipart {
		return "", http.StatusUnsupportedMediaType, `send multipart/related; type="application/dicom"`
	}
	if kind := params["type"]; kind != "" && !strings.EqualFold(kind, mediaDICOM) {
		return "", http.StatusUnsupportedMediaType, `only type="application/dicom" is taken; metadata with separate bulk data is not`
	}
	if b := params["boundary"]; b != "" && len(b) <= maxBoundary {
		return b, 0, ""
	}
	return "", http.StatusBadRequest, fmt.Sprintf("the multipart boundary is missing or longer than %d characters", maxBoundary)
}

// storePart receives one object. An error ends the request; everything else
// is a status. request comes with the peer and the study.
func (h *handler) storePart(ctx context.Context, body io.Reader, contentType string, request StoreRequest) (stored, error) {
	buffer := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buffer)
	head := make([]byte, headLength)
	n, err := io.ReadFull(body, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return stored{}, err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		// Either the part is short or the body is: reading on tells which.
		if _, err := body.Read(head[n:]); !isEnd(err) {
			return stored{}, noEOF(err)
		}
	}
	head = head[:n]
	outcome := stored{status: dimse.CannotUnderstand}
	if !isDICOM(contentType) || !request.describe(head) {
		return outcome, drain(body, *buffer)
	}
	outcome.class, outcome.instance = request.SOPClass, request.SOPInstance
	if !validUID(outcome.instance) || !validUID(outcome.class) {
		outcome = stored{status: dimse.InvalidSOPInstance}
		return outcome, drain(body, *buffer)
	}
	spool, err := h.cfg.NewSpool()
	if err != nil {
		h.cfg.Logger.Error("no room for an object", "error", err)
		outcome.status = dimse.OutOfResources
		return outcome, drain(body, *buffer)
	}
	discard := spool.Discard
	defer func() { discard() }()
	size, full, err := h.fill(spool, io.MultiReader(bytes.NewReader(head), body), *buffer)
	if err != nil {
		return stored{}, err
	}
	if full != nil {
		h.cfg.Logger.Error("an object was given up", "error", full)
		spool.Discard()
		discard = func() {}
		outcome.status = dimse.OutOfResources
		return outcome, drain(body, *buffer)
	}
	request.Spool, request.Size = spool, size
	outcome.status = h.cfg.Store(ctx, request)
	return outcome, nil
}

// isEnd reports whether a part ended where it should.
func isEnd(err error) bool { return err == io.EOF } //nolint:errorlint // a wrapped EOF is a truncated body

// isDICOM reads a part's content type; without one it is what the request
// announced.
func isDICOM(contentType string) bool {
	if contentType == "" {
		return true
	}
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && media == mediaDICOM
}

// describe takes the identifiers from the beginning of a file. It reports
// whether the beginning is one of PS3.10.
func (r *StoreRequest) describe(head []byte) bool {
	if len(head) < 132 || string(head[128:132]) != "DICM" {
		return false
	}
	file, err := dicom.ParseHeader(bytes.NewReader(head), endOfMeta, dicom.Limits{Total: headLength})
	if file == nil || file.Meta == nil || (err != nil && !errors.Is(err, dicom.ErrTruncated)) {
		return false
	}
	r.SOPClass = file.Meta.UID(dicom.MediaStorageSOPClassUID)
	r.SOPInstance = file.Meta.UID(dicom.MediaStorageSOPInstanceUID)
	r.TransferSyntax = file.Meta.UID(dicom.TransferSyntaxUID)
	return true
}

// fill copies an object into the spool. full says why the spool cannot take it
// while the request goes on; err that it does not.
func (h *handler) fill(spool dimse.Spool, object io.Reader, buffer []byte) (size int64, full, err error) {
	for ended := false; !ended; {
		// A multipart reader hands out 4 KiB at a time; a spool is written to
		// in larger pieces.
		n := 0
		for n < len(buffer) && !ended {
			m, err := object.Read(buffer[n:])
			if err != nil && !isEnd(err) {
				return size, nil, fmt.Errorf("dicomweb: reading a part: %w", noEOF(err))
			}
			n, ended = n+m, err != nil
		}
		if size += int64(n); size > h.cfg.MaxObject {
			return size, fmt.Errorf("dicomweb: the object is larger than the %d bytes allowed", h.cfg.MaxObject), nil
		}
		if _, err := spool.Write(buffer[:n]); err != nil {
			return size, fmt.Errorf("dicomweb: spooling: %w", err), nil
		}
	}
	return size, nil, nil
}

// drain reads a part that nobody wants; the request's own limit bounds it.
func drain(body io.Reader, buffer []byte) error {
	for {
		if _, err := body.Read(buffer); isEnd(err) {
			return nil
		} else if err != nil {
			return fmt.Errorf("dicomweb: reading a part: %w", noEOF(err))
		}
	}
}

// answerStore writes the outcome of a store request: 200 all stored, 202 some
// not or with warnings, 409 none, 507 (RFC 4918) none and only for lack of room,
// which tells also a sender who reads no document to try again, 400 or 413 when
// the body itself is at fault. The document says what was stored before a fault
// too.
func (h *handler) answerStore(w http.ResponseWriter, outcomes []stored, failure error) {
	document := &dicom.DataSet{}
	var referenced, failed, others []*dicom.DataSet
	warned := false
	for _, o := range outcomes {
		item := &dicom.DataSet{}
		if o.instance != "" {
			item.PutString(dicom.ReferencedSOPClassUID, o.class)
			item.PutString(dicom.ReferencedSOPInstanceUID, o.instance)
		}
		switch {
		case o.status.Stored():
			if o.status.Warning() {
				warned = true
				item.PutInt(warningReason, int64(o.status))
			}
			referenced = append(referenced, item)
		case o.instance != "":
			item.PutInt(dicom.FailureReason, int64(o.status))
			failed = append(failed, item)
		default:
			item.PutInt(dicom.FailureReason, int64(o.status))
			others = append(others, item)
		}
	}
	for tag, items := range map[dicom.Tag][]*dicom.DataSet{
		dicom.ReferencedSOPSequence: referenced, dicom.FailedSOPSequence: failed, otherFailures: others,
	} {
		if len(items) > 0 {
			document.PutItems(tag, items...)
		}
	}
	status := http.StatusOK
	switch {
	case errors.Is(failure, errTooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(failure, os.ErrDeadlineExceeded):
		status = http.StatusRequestTimeout
	case failure != nil || len(outcomes) == 0:
		status = http.StatusBadRequest
	case len(referenced) == 0 && !slices.ContainsFunc(outcomes, func(o stored) bool { return !o.status.Transient() }):
		status = http.StatusInsufficientStorage
	case len(referenced) == 0:
		status = http.StatusConflict
	case len(failed)+len(others) > 0 || warned:
		status = http.StatusAccepted
	}
	if failure != nil {
		h.cfg.Logger.Warn("a store request was cut short", "objects", len(outcomes), "error", failure)
		w.Header().Set("Connection", "close") // what is left of the body is not read
	}
	h.answerJSON(w, status, document)
}
