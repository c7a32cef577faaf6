package job

import (
	"bytes"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"image"
	"image/color"
	"image/png"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/attack/privacy"
	"github.com/vigie/vigie/train"
)

//go:embed report.html
var html string

// ErrAsk says that the options contradict each other, the model or the data; the
// message says what to change.
var ErrAsk = privacy.ErrAsk

// The techniques of MITRE ATLAS that the attacks are an instance of.
var (
	membershipTechnique = attack.ATLAS{ID: "AML.T0024.000", Name: "Exfiltration via AI Inference API: Infer Training Data Membership"}
	inversionTechnique  = attack.ATLAS{ID: "AML.T0024.001", Name: "Exfiltration via AI Inference API: Invert AI Model"}
	extractionTechnique = attack.ATLAS{ID: "AML.T0024.002", Name: "Exfiltration via AI Inference API: Extract AI Model"}
	proxyTechnique      = attack.ATLAS{ID: "AML.T0005.001", Name: "Create Proxy AI Model: Train Proxy via Replication"}
	transferTechnique   = attack.ATLAS{ID: "AML.T0043.002", Name: "Craft Adversarial Data: Black-Box Transfer"}
)

// Head is what every report says of how it came about.
type Head struct {
	Attack     string         `json:"attack"`
	Model      string         `json:"model,omitempty"`
	Digest     string         `json:"digest,omitempty"` // of the package, or SHA-256 of the file
	Data       string         `json:"data"`
	DataDigest string         `json:"data_digest"`
	ATLAS      []attack.ATLAS `json:"atlas"`
	Seed       uint64         `json:"seed"`
	Command    string         `json:"command,omitempty"`
	Seconds    float64        `json:"seconds"`
	// Verdict is one sentence that the figures support.
	Verdict string   `json:"verdict"`
	Notes   []string `json:"notes,omitempty"`
}

// Report is what an attack found.
type Report interface {
	Write(io.Writer) error
	SaveHTML(path string) error
}

// Common are the options that all attacks share.
type Common struct {
	Model    string // ONNX file or package
	Data     Data
	Seed     uint64
	Report   string // .html file
	Command  string // as a person would type it again; part of the report
	Progress func(stage string, done float64)

	Mean, Std []float64 // of a bare graph that wants normalised input
	Output    string    // of a bare graph with several
	Freeze    []string  // patterns of weights that are not trained, of gradients and audits; see train.ImportOptions
}

func (c *Common) begin() error {
	if c.Progress == nil {
		c.Progress = func(string, float64) {}
	}
	if c.Data.Data == "" {
		return fmt.Errorf("job: no data: %w: name a file or folder", ErrAsk)
	}
	if c.Report == "" {
		return nil
	}
	if !strings.EqualFold(filepath.Ext(c.Report), ".html") {
		return fmt.Errorf("job: report %s: %w: name a .html file", c.Report, ErrAsk)
	}
	if _, err := os.Stat(filepath.Dir(c.Report)); err != nil {
		return fmt.Errorf("job: report: %w", err)
	}
	return nil
}

func (c Common) head(name string, s *subject, techniques ...attack.ATLAS) Head {
	return Head{Attack: name, Model: c.Model, Digest: s.digest, Data: filepath.Base(c.Data.Data), DataDigest: s.dataDigest,
		ATLAS: techniques, Seed: c.Seed, Command: c.Command, Notes: s.notes}
}

// finish ends a report and writes it where it was asked to.
func (c Common) finish(h *Head, r Report, start time.Time) error {
	h.Seconds = time.Since(start).Seconds()
	if c.Report == "" {
		return nil
	}
	return r.SaveHTML(c.Report)
}

// page is a report as people read it, on a terminal or in a browser.
type page struct {
	Title    string
	Lead     string
	Tiles    []tile
	Sections []section
	Fine     string // how figures are counted
}

type tile struct{ Label, Value, Below, Class string }

type section struct {
	Title    string
	Text     []string
	Head     []string // of the table
	Rows     [][]string
	Chart    template.HTML
	Pictures []picture
}

type picture struct {
	Source  template.URL
	Beside  template.URL // shown to the right of it; may be empty
	Caption string
}

func percent(v train.Interval) string {
	return fmt.Sprintf("%.1f %% (%.1f to %.1f)", 100*v.Value, 100*v.Low, 100*v.High)
}

func figure(v train.Interval) string {
	return fmt.Sprintf("%.3f (%.3f to %.3f)", v.Value, v.Low, v.High)
}

func (h Head) write(w io.Writer, p page) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n%s\n", p.Title, p.Lead)
	for _, t := range h.ATLAS {
		fmt.Fprintf(&b, "  MITRE ATLAS %s, %s\n", t.ID, t.Name)
	}
	for _, note := range h.Notes {
		fmt.Fprintf(&b, "  %s\n", note)
	}
	for _, s := range p.Sections {
		fmt.Fprintf(&b, "\n%s\n", s.Title)
		if len(s.Head) > 0 {
			t := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
			fmt.Fprintf(t, "  %s\n", strings.Join(s.Head, "\t"))
			for _, row := range s.Rows {
				fmt.Fprintf(t, "  %s\n", strings.Join(row, "\t"))
			}
			if err := t.Flush(); err != nil {
				return err
			}
		}
		for _, text := range s.Text {
			fmt.Fprintf(&b, "  %s\n", text)
		}
	}
	fmt.Fprintf(&b, "\n%s\n", h.Verdict)
	fmt.Fprintf(&b, "seed %d, %.1f s; intervals are of 95 %%\n", h.Seed, h.Seconds)
	_, err := io.WriteString(w, b.String())
	return err
}

// save writes a page that needs nothing else; the file appears whole or not at
// all.
func (h Head) save(path string, p page) error {
	t, err := template.New("report").Funcs(template.FuncMap{
		"number": func(v float64) string { return fmt.Sprintf("%.4g", v) },
	}).Parse(html)
	if err != nil {
		return fmt.Errorf("job: the report's page: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, struct {
		H Head
		P page
	}{h, p}); err != nil {
		return fmt.Errorf("job: writing the report: %w", err)
	}
	if err := train.WriteWhole(path, func(w io.Writer) error {
		_, err := w.Write(b.Bytes())
		return err
	}); err != nil {
		return fmt.Errorf("job: writing the report: %w", err)
	}
	return nil
}

// drawn is an image [channels, rows, columns] of values low..high as a picture in
// the page.
func drawn(shape []int64, pixels []float32, caption string) (picture, error) {
	if len(shape) != 3 {
		return picture{}, errors.New("job: drawing an example that is no image")
	}
	planes, rows, columns := int(shape[0]), int(shape[1]), int(shape[2])
	out := image.NewRGBA(image.Rect(0, 0, columns, rows))
	for i := range rows * columns {
		var rgb [3]uint8
		for c := range rgb {
			v := pixels[min(c, planes-1)*rows*columns+i]
			rgb[c] = uint8(255*max(0, min(1, v)) + 0.5)
		}
		out.SetRGBA(i%columns, i/columns, color.RGBA{rgb[0], rgb[1], rgb[2], 255})
	}
	var b bytes.Buffer
	if err := png.Encode(&b, out); err != nil {
		return picture{}, fmt.Errorf("job: drawing an image: %w", err)
	}
	return picture{Source: template.URL("data:image/png;base64," + base64.StdEncoding.EncodeToString(b.Bytes())), Caption: caption}, nil
}

// pair draws two images beside each other.
func pair(shape []int64, a, b []float32, caption string) (picture, error) {
	left, err := drawn(shape, a, caption)
	if err != nil {
		return left, err
	}
	right, err := drawn(shape, b, caption)
	left.Beside = right.Source
	return left, err
}
