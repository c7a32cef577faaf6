// Package tabular lets hospitals learn from tables: a row a patient, a column a
// measurement or a category, a class to predict.
//
// What the hospitals agree on beforehand is a Schema: which columns there are,
// within which limits, and what counts as which class. What depends on everybody's
// rows, means and deviations to standardise by, comes out of a question of package
// federate, so that no hospital's own figures are seen:
//
//	schema, err := tabular.ParseSchema(data)
//	hospital, err := schema.Read("lyon", file)
//	// at the site: federate.SiteOptions{…, Answers: federate.Answerers{federate.TaskStandardise: hospital}}
//	learned, err := schema.Standardise(ctx, coordinator, links)
//	set, err := hospital.Set(learned.Columns) // and then a round trains on it, as on images
//
// The package knows nothing of where tables come from and keeps nothing.
package tabular

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/vigie/vigie/train"
)

// Errors that callers branch on.
var (
	// ErrSchema is returned for a schema that says nothing one can learn by.
	ErrSchema = errors.New("not a usable schema")
	// ErrRows is returned for a hospital's table that does not fit its schema.
	ErrRows = errors.New("the table does not fit its schema")
)

// Schema is what hospitals agree on before anything is learnt.
type Schema struct {
	// Header names the columns of files that have no header, in their order.
	Header  []string `json:"header,omitempty"`
	Label   Label    `json:"label"`
	Patient string   `json:"patient,omitempty"` // column of who a row is of
	Columns []Column `json:"columns"`
}

// Label says which class a row has.
type Label struct {
	Column string `json:"column"`
	// Classes are the texts that each class is written as, and Names what the
	// classes are called; both at least two.
	Classes [][]string `json:"classes"`
	Names   []string   `json:"names"`
}

// Column is one column that is learnt from.
type Column struct {
	Name string `json:"name"`
	// Values are those of a category. A text outside them is as a missing value.
	Values []string `json:"values,omitempty"`
	// Low and High are the limits of a measurement: what can be measured at all. A
	// number outside them is as a missing value, and counted.
	Low  float64 `json:"low,omitempty"`
	High float64 `json:"high,omitempty"`
	// Missing adds a number that says whether the value is missing. Leave it out
	// where hospitals differ in what they measure: the number then says which
	// hospital it is.
	Missing bool `json:"missing,omitempty"`
}

// Limits of a schema.
const (
	maxSchema  = 4 << 20 // bytes
	maxColumns = 10_000
	maxValues  = 1000
)

// ParseSchema reads a schema as JSON, strictly.
func ParseSchema(data []byte) (*Schema, error) {
	fail := func(err error) (*Schema, error) {
		return nil, fmt.Errorf("tabular: reading a schema: %w: %w", ErrSchema, err)
	}
	if len(data) > maxSchema {
		return fail(fmt.Errorf("%d bytes, want at most %d", len(data), maxSchema))
	}
	s := &Schema{}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		return fail(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fail(errors.New("something follows it"))
	}
	return s, s.Check()
}

// Check returns an error that wraps ErrSchema for a schema that nothing can be
// learnt by.
func (s *Schema) Check() error {
	fail := func(format string, arguments ...any) error {
		return fmt.Errorf("tabular: checking a schema: %w: %s", ErrSchema, fmt.Sprintf(format, arguments...))
	}
	if len(s.Label.Classes) < 2 || len(s.Label.Classes) > maxValues || len(s.Label.Names) != len(s.Label.Classes) {
		return fail("%d classes with %d names: want at least 2, with a name each", len(s.Label.Classes), len(s.Label.Names))
	}
	var texts []string
	for i, class := range s.Label.Classes {
		if len(class) == 0 || s.Label.Names[i] == "" {
			return fail("class %d has no text or no name", i)
		}
		texts = append(texts, class...)
	}
	if at := twice(texts); at != "" {
		return fail("the text %q is of two classes", at)
	}
	if len(s.Columns) == 0 || len(s.Columns) > maxColumns || len(s.Header) > maxColumns {
		return fail("%d columns: want 1 to %d", len(s.Columns), maxColumns)
	}
	var names []string
	for _, c := range s.Columns {
		if strings.TrimSpace(c.Name) == "" || same(c.Name, s.Label.Column) || s.Patient != "" && same(c.Name, s.Patient) {
			return fail("column %q has no name of its own, or is the label or the patient", c.Name)
		}
		names = append(names, c.Name)
		switch {
		case c.Values == nil && !(c.Low < c.High && c.High-c.Low <= math.MaxFloat64/4):
			return fail("column %q is measured from %g to %g: want limits, the lower one first", c.Name, c.Low, c.High)
		case c.Values != nil && (c.Low != 0 || c.High != 0):
			return fail("column %q has both limits and values", c.Name)
		case c.Values != nil && (len(c.Values) < 2 || len(c.Values) > maxValues):
			return fail("column %q has %d values, want 2 to %d", c.Name, len(c.Values), maxValues)
		}
		if at := twice(c.Values); at != "" {
			return fail("column %q has the value %q twice", c.Name, at)
		}
		if slices.ContainsFunc(c.Values, train.Missing) {
			return fail("column %q has a value that says that there is none", c.Name)
		}
	}
	if s.Label.Column == "" {
		return fail("no column is the label")
	}
	if at := twice(append(names, s.Label.Column)); at != "" {
		return fail("column %q is there twice", at)
	}
	if at := twice(s.Header); at != "" {
		return fail("the header names %q twice", at)
	}
	return nil
}

// Digest is the SHA-256 digest of the schema's JSON.
func (s *Schema) Digest() [sha256.Size]byte {
	data, err := json.Marshal(s)
	if err != nil {
		panic("tabular: " + err.Error()) // only for numbers that Check refuses
	}
	return sha256.Sum256(data)
}

func same(a, b string) bool { return strings.EqualFold(a, b) }

// twice returns a text that means the same as another of the list: letters in
// upper and lower case, a number in two forms.
func twice(list []string) string {
	seen := map[string]bool{}
	for _, text := range list {
		key := plain(text)
		if seen[key] {
			return text
		}
		seen[key] = true
	}
	return ""
}

// plain is what a text means, whatever its spelling: 1.0 is 1.
func plain(text string) string {
	text = strings.ToLower(strings.TrimSpace(text))
	if v, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(v) {
		return strconv.FormatFloat(v+0, 'g', -1, 64) // + 0, because there is -0
	}
	return text
}
