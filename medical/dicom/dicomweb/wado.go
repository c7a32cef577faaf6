package dicomweb

import (
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"

	"github.com/vigie/vigie/medical/dicom"
)

// retrieve answers WADO-RS for a study, a series or an instance (PS3.18
// section 10.4): each object in a part of multipart/related, in the transfer
// syntax it is kept in. A single instance is also given alone to a client that
// accepts application/dicom only.
func (h *handler) retrieve(w http.ResponseWriter, r *http.Request, peer Peer) {
	form, ok := acceptsObjects(r)
	if !ok {
		refuse(w, http.StatusNotAcceptable, `objects are given as multipart/related; type="application/dicom"; bulk data, frames and XML are not offered`)
		return
	}
	instances := h.found(w, r, peer)
	if instances == nil {
		return
	}
	for _, i := range instances {
		if form.syntaxes != nil && !form.syntaxes[i.TransferSyntax] {
			refuse(w, http.StatusNotAcceptable, "an object is kept in another transfer syntax than asked for; ask for transfer-syntax=*")
			return
		}
	}
	if !form.multipart && len(instances) > 1 {
		refuse(w, http.StatusNotAcceptable, `several objects are given as multipart/related; type="application/dicom" only`)
		return
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	// The first is opened before anything is promised.
	first, err := instances[0].Open(r.Context())
	if err != nil {
		h.archiveFailed(w, err)
		return
	}
	if !form.multipart {
		defer first.Close()
		w.Header().Set("Content-Type", mediaDICOM)
		h.send(w, first)
		return
	}
	body := multipart.NewWriter(w)
	w.Header().Set("Content-Type", mime.FormatMediaType(mediaMultipart, map[string]string{"type": mediaDICOM, "boundary": body.Boundary()}))
	h.sendPart(body, first, instances[0].TransferSyntax)
	for _, i := range instances[1:] {
		next, err := i.Open(r.Context())
		if err != nil {
			h.cutShort(err)
		}
		h.sendPart(body, next, i.TransferSyntax)
	}
	if err := body.Close(); err != nil {
		h.cutShort(err)
	}
}

func (h *handler) sendPart(body *multipart.Writer, object io.ReadCloser, syntax string) {
	defer object.Close()
	part, err := body.CreatePart(textproto.MIMEHeader{"Content-Type": {mime.FormatMediaType(mediaDICOM, map[string]string{"transfer-syntax": syntax})}})
	if err != nil {
		h.cutShort(err)
	}
	h.send(part, object)
}

func (h *handler) send(w io.Writer, object io.Reader) {
	buffer := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buffer)
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{object}, *buffer); err != nil {
		h.cutShort(err)
	}
}

// cutShort ends an answer that has begun in the one way a client notices.
func (h *handler) cutShort(err error) {
	h.cfg.Logger.Warn("an answer was cut short", "error", err)
	panic(http.ErrAbortHandler)
}

// metadata answers with the attributes of each instance, without bulk data.
func (h *handler) metadata(w http.ResponseWriter, r *http.Request, peer Peer) {
	if !acceptsJSON(r) {
		refuse(w, http.StatusNotAcceptable, "metadata are given as application/dicom+json; XML is not offered")
		return
	}
	instances := h.found(w, r, peer)
	if instances == nil {
		return
	}
	if !h.disclose(w, r, peer, "metadata", len(instances)) {
		return
	}
	out := make([]*dicom.DataSet, len(instances))
	for i, instance := range instances {
		out[i] = instance.Header.Clone()
		out[i].DeleteFunc(isBulk)
	}
	h.answerJSON(w, http.StatusOK, out)
}

// isBulk names the elements that are only had by retrieving the object.
func isBulk(e *dicom.Element) bool {
	const largestInline = 4 << 10
	return e.Tag.Group() == 0x7FE0 || e.Fragments != nil || (isBinary(e.VR) && len(e.Value) > largestInline)
}

func isBinary(vr dicom.VR) bool {
	switch vr {
	case dicom.OB, dicom.OD, dicom.OF, dicom.OL, dicom.OV, dicom.OW, dicom.UN:
		return true
	}
	return false
}

// rendered answers with the first frame as PNG: colour as it is kept,
// grayscale through its lookup tables.
func (h *handler) rendered(w http.ResponseWriter, r *http.Request, peer Peer) {
	if !acceptsPNG(r) {
		refuse(w, http.StatusNotAcceptable, "a rendered instance is given as image/png")
		return
	}
	instances := h.found(w, r, peer)
	if instances == nil {
		return
	}
	object, err := instances[0].Open(r.Context())
	if err != nil {
		h.archiveFailed(w, err)
		return
	}
	defer object.Close()
	file, err := dicom.Parse(object, dicom.Limits{Total: h.cfg.MaxObject})
	if err != nil {
		h.archiveFailed(w, err)
		return
	}
	picture, err := render(file)
	switch {
	case errors.Is(err, dicom.ErrPixels):
		refuse(w, http.StatusNotFound, "the instance has no picture")
		return
	case err != nil:
		h.cfg.Logger.Warn("rendering failed", "error", err)
		refuse(w, http.StatusNotAcceptable, "the instance cannot be rendered; retrieve it instead")
		return
	}
	w.Header().Set("Content-Type", mediaPNG)
	w.Header().Set("Cache-Control", "no-store")
	if err := png.Encode(w, picture); err != nil {
		h.cutShort(err)
	}
}

func acceptsPNG(r *http.Request) bool {
	for _, a := range accepts(r) {
		switch a.media {
		case "*/*", "image/*", mediaPNG:
			return true
		}
	}
	return false
}

// render draws the first frame.
func render(file *dicom.File) (image.Image, error) {
	frame, err := file.Frame(0, dicom.Limits{})
	if err != nil {
		return nil, fmt.Errorf("dicomweb: rendering: %w", err)
	}
	bounds := image.Rect(0, 0, frame.Columns, frame.Rows)
	if frame.Photometric == "RGB" && frame.Allocated == 8 {
		out := image.NewNRGBA(bounds)
		for i := range frame.Rows * frame.Columns {
			copy(out.Pix[4*i:], frame.Data[3*i:3*i+3])
			out.Pix[4*i+3] = 0xFF
		}
		return out, nil
	}
	luminance, err := file.LuminanceOf(frame)
	if err != nil {
		return nil, fmt.Errorf("dicomweb: rendering: %w", err)
	}
	out := image.NewGray(bounds)
	for i, v := range luminance.Values {
		out.SetGray(i%frame.Columns, i/frame.Columns, color.Gray{Y: uint8(v*255 + 0.5)})
	}
	return out, nil
}
