package train

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/vigie/vigie/onnx"
)

// The metadata in which a model keeps what its users need to read its answers.
const (
	classesKey = "classes" // JSON list of the names of the classes, in the order of the outputs
	columnsKey = "columns" // JSON of Columns: how rows of a table become the input
)

// ErrMetadata is returned for a model whose metadata say something else than
// training wrote there.
var ErrMetadata = errors.New("metadata are damaged")

// Describe keeps the names of the classes and the encoding of a table with a
// model; either may be nil.
func Describe(m *onnx.Model, classes []string, columns *Columns) error {
	for key, v := range map[string]any{classesKey: classes, columnsKey: columns} {
		if classes == nil && key == classesKey || columns == nil && key == columnsKey {
			delete(m.Metadata, key)
			continue
		}
		raw, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("train: describing a model: %w", err)
		}
		if m.Metadata == nil {
			m.Metadata = map[string]string{}
		}
		m.Metadata[key] = string(raw)
	}
	return nil
}

// Described returns what Describe kept; nil for what it did not.
func Described(m *onnx.Model) (classes []string, columns *Columns, err error) {
	for _, kept := range []struct {
		key  string
		into any
	}{{classesKey, &classes}, {columnsKey, &columns}} {
		if raw := m.Metadata[kept.key]; raw != "" {
			if err := json.Unmarshal([]byte(raw), kept.into); err != nil {
				return nil, nil, fmt.Errorf("train: reading the metadata %q of a model: %w: %w", kept.key, ErrMetadata, err)
			}
		}
	}
	return classes, columns, nil
}
