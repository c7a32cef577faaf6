package dicomweb

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"

	"github.com/vigie/vigie/medical/dicom/dimse"
)

// Client sends objects to a STOW-RS server.
type Client struct {
	BaseURL string       // of the DICOMweb service, such as https://pacs:8443/dicom-web
	HTTP    *http.Client // with TLS and timeouts; nil: http.DefaultClient

	// Prepare adds what the server wants to know who asks, such as an
	// Authorization header; nil: nothing.
	Prepare func(*http.Request) error
}

// Reference is one object in a server's answer. Status is Success, a warning
// or the failure reason.
type Reference struct {
	SOPClass    string // "" when the server could not tell
	SOPInstance string // "" when the server could not tell
	Status      dimse.Status
}

// Answer is what a server said about the objects of one request.
type Answer struct {
	Stored []Reference
	Failed []Reference
}

// Status returns what became of an object; found is false when the answer
// does not mention it.
func (a Answer) Status(sopInstance string) (status dimse.Status, found bool) {
	for _, list := range [][]Reference{a.Stored, a.Failed} {
		for _, r := range list {
			if r.SOPInstance == sopInstance {
				return r.Status, true
			}
		}
	}
	return 0, false
}

// StatusError is an HTTP status that carries no answer about objects.
type StatusError struct{ Code int }

func (e *StatusError) Error() string {
	return fmt.Sprintf("dicomweb: the server answered %d %s", e.Code, http.StatusText(e.Code))
}

// Temporary reports whether the same request may well succeed later.
func (e *StatusError) Temporary() bool {
	return e.Code == http.StatusTooManyRequests || e.Code == http.StatusRequestTimeout || e.Code >= 500
}

const maxAnswer = 16 << 20

// Store sends files (PS3.10) in one request, one after the other as they are
// read, to a study or, with "", to whatever studies they belong to. The
// answer says what became of each; an error means that nothing is known.
func (c *Client) Store(ctx context.Context, study string, files ...io.Reader) (Answer, error) {
	address := strings.TrimSuffix(c.BaseURL, "/") + "/studies"
	if study != "" {
		if !validUID(study) {
			return Answer{}, errors.New("dicomweb: storing: the study is not a UID")
		}
		address += "/" + study
	}
	reader, writer := io.Pipe()
	boundary := "vigie-" + rand.Text()
	go func() { writer.CloseWithError(writeParts(writer, boundary, files)) }()
	defer reader.Close() // ends the goroutine if the request did not read everything
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, address, reader)
	if err != nil {
		return Answer{}, fmt.Errorf("dicomweb: storing: %w", err)
	}
	request.Header.Set("Content-Type", fmt.Sprintf(`%s; type="%s"; boundary=%s`, mediaMultipart, mediaDICOM, boundary))
	request.Header.Set("Accept", mediaJSON)
	if c.Prepare != nil {
		if err := c.Prepare(request); err != nil {
			return Answer{}, fmt.Errorf("dicomweb: storing: preparing the request: %w", err)
		}
	}
	client := c.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	response, err := client.Do(request)
	if err != nil {
		return Answer{}, fmt.Errorf("dicomweb: storing: %w", err)
	}
	defer response.Body.Close()
	switch code := response.StatusCode; {
	case code == http.StatusOK || code == http.StatusAccepted || code == http.StatusConflict:
	case code == http.StatusInsufficientStorage && response.Header.Get("Content-Type") == mediaJSON: // as we answer
	default:
		return Answer{}, &StatusError{code}
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return Answer{}, fmt.Errorf("dicomweb: storing: reading the answer: %w", err)
	}
	answer, err := parseAnswer(body)
	if err != nil {
		return Answer{}, fmt.Errorf("dicomweb: storing: %w", err)
	}
	return answer, nil
}

func writeParts(w io.Writer, boundary string, files []io.Reader) error {
	body := multipart.NewWriter(w)
	if err := body.SetBoundary(boundary); err != nil {
		return err
	}
	for _, file := range files {
		part, err := body.CreatePart(textproto.MIMEHeader{"Content-Type": {mediaDICOM}})
		if err != nil {
			return err
		}
		if _, err := io.Copy(part, file); err != nil {
			return err
		}
	}
	return body.Close()
}

// jsonElement is one attribute of the DICOM JSON model (PS3.18 annex F).
type jsonElement struct {
	Value []json.RawMessage
}

type jsonItem map[string]jsonElement

func (i jsonItem) items(tag string) ([]jsonItem, error) {
	var out []jsonItem
	for _, raw := range i[tag].Value {
		var item jsonItem
		if err := json.Unmarshal(raw, &item); err != nil {
			return nil, fmt.Errorf("the answer's sequence %s is not a list of items: %w", tag, err)
		}
		out = append(out, item)
	}
	return out, nil
}

func (i jsonItem) text(tag string) string {
	var s string
	if v := i[tag].Value; len(v) > 0 && json.Unmarshal(v[0], &s) == nil {
		return s
	}
	return ""
}

// status reads a reason; absent is the given one.
func (i jsonItem) status(tag string, absent dimse.Status) dimse.Status {
	var n uint16
	if v := i[tag].Value; len(v) > 0 && json.Unmarshal(v[0], &n) == nil {
		return dimse.Status(n)
	}
	return absent
}

// parseAnswer reads a Store Instances Response (PS3.18 annex I).
func parseAnswer(body []byte) (Answer, error) {
	var document jsonItem
	if err := json.Unmarshal(body, &document); err != nil {
		return Answer{}, fmt.Errorf("the answer is not DICOM JSON: %w", err)
	}
	var answer Answer
	for _, group := range []struct {
		tag, reason string
		absent      dimse.Status
		into        *[]Reference
	}{
		{"00081199", "00081196", dimse.Success, &answer.Stored},
		{"00081198", "00081197", dimse.ProcessingFailure, &answer.Failed},
		{"0008119A", "00081197", dimse.ProcessingFailure, &answer.Failed},
	} {
		items, err := document.items(group.tag)
		if err != nil {
			return Answer{}, err
		}
		for _, item := range items {
			*group.into = append(*group.into, Reference{
				SOPClass: item.text("00081150"), SOPInstance: item.text("00081155"), Status: item.status(group.reason, group.absent),
			})
		}
	}
	return answer, nil
}
