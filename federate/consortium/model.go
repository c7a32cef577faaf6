package consortium

import (
	"fmt"
	"os"

	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/train"
)

// network makes the network that a job trains of its ONNX file, the same at all
// parties.
func (m Model) network(path string) (*train.Network, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("consortium: reading the job's model: %w", err)
	}
	if DigestOf(data) != m.SHA256 {
		return nil, fmt.Errorf("consortium: reading the job's model: %w: %s is not the file that the job names", ErrDocument, path)
	}
	graph, err := onnx.Parse(data)
	if err != nil {
		return nil, err
	}
	return train.Import(graph, train.ImportOptions{Output: m.Output, Freeze: m.Freeze})
}

// like is a set without examples of the model's form.
func (m Model) like() *train.Set {
	s := &train.Set{Name: "like", Classes: max(m.Outputs, 2)}
	if m.Image {
		s.Channels, s.Rows, s.Columns = int(m.Example[0]), int(m.Example[1]), int(m.Example[2])
		s.Pixels = []uint8{}
	} else {
		s.Shape = m.Example
		s.Values = []float32{}
	}
	if m.Multi {
		s.Classes = m.Outputs
		s.Marks = []uint8{}
	} else {
		s.Labels = []int{}
	}
	return s
}
