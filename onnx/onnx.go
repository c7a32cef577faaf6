// Package onnx reads, builds, checks and writes ONNX graphs
// (https://github.com/onnx/onnx/blob/main/docs/IR.md) without running them.
// Package engine runs them, onnx/autodiff differentiates them.
//
// A [Model] is plain data: read the fields, change them, write it back. It
// comes from a file by [Load] or [Parse], which bound what a hostile file can
// cost, or from a [Builder]:
//
//	m, err := onnx.Load("model.onnx")
//	err = m.Check()                                           // the rules of the standard
//	err = m.CheckWeights()                                    // no NaN
//	shapes, err := onnx.InferShapes(m, map[string]int64{"batch": 1}) // every tensor's
//	summary, err := onnx.Inspect(m)                           // for people
//
// Operators live in one table, a file per family (rule_*.go): from which
// version of the operator set on this package knows them, and the rule that
// gives the shape of their results. Adding one is adding a row, its rule, and
// a drawing in drawings_test.go by which it is compared with ONNX Runtime and
// with the reference implementation.
//
// [Infer] also evaluates the arithmetic on shapes that exporters write, so that
// a model with named dimensions comes out with numbers once they are bound.
//
// The functions here are for files that nobody vouches for. What a file can cost
// is bounded by [MaxBytes], [MaxItems], [MaxDepth], [MaxRank] and [MaxElements];
// an error wraps [ErrCorrupt] (the bytes are no model), [ErrUnsupported] (legal,
// refused by name), [ErrLimit], [ErrInvalid] (the graph breaks a rule of the
// standard, or shapes do not fit), [ErrUnknownOperator] or [ErrNotFinite].
//
// Weights in files of their own are read by [Load], from the model's folder only.
//
// Not taken part in, and refused by name: local functions, sparse tensors,
// sequences and maps, training information.
package onnx

// DataType is ONNX's TensorProto.DataType.
type DataType int32

// The element types of ONNX tensors.
const (
	Undefined DataType = 0
	Float     DataType = 1
	Uint8     DataType = 2
	Int8      DataType = 3
	Uint16    DataType = 4
	Int16     DataType = 5
	Int32     DataType = 6
	Int64     DataType = 7
	String    DataType = 8
	Bool      DataType = 9
	Float16   DataType = 10
	Double    DataType = 11
	Uint32    DataType = 12
	Uint64    DataType = 13
	Bfloat16  DataType = 16
)

// Tensor is a constant: a weight or an attribute value. Raw holds the elements
// in row-major order, little-endian (Strings for String tensors).
type Tensor struct {
	Name    string
	Type    DataType
	Dims    []int64
	Raw     []byte
	Strings [][]byte
}

// AttributeType is ONNX's AttributeProto.AttributeType.
type AttributeType int32

// The kinds of attribute.
const (
	AttributeFloat   AttributeType = 1
	AttributeInt     AttributeType = 2
	AttributeString  AttributeType = 3
	AttributeTensor  AttributeType = 4
	AttributeGraph   AttributeType = 5
	AttributeFloats  AttributeType = 6
	AttributeInts    AttributeType = 7
	AttributeStrings AttributeType = 8
	AttributeTensors AttributeType = 9
	AttributeGraphs  AttributeType = 10
)

// Attribute is a named constant parameter of a node; Type says which field holds it.
type Attribute struct {
	Name    string
	Type    AttributeType
	Float   float32
	Int     int64
	String  []byte
	Tensor  *Tensor
	Graph   *Graph
	Floats  []float32
	Ints    []int64
	Strings [][]byte
	Tensors []*Tensor
	Graphs  []*Graph
}

// Node applies one operator. An empty name in Inputs or Outputs is an omitted
// optional value.
type Node struct {
	Name       string
	OpType     string
	Domain     string // "" is the default ONNX domain
	Inputs     []string
	Outputs    []string
	Attributes []Attribute
}

// Dim is one dimension of a shape: a number, a name such as "batch", or
// neither (unknown: Value -1 and Param "").
type Dim struct {
	Value int64 // -1 when not known
	Param string
}

// Value declares the type of an input, an output or an inner tensor. A nil
// Shape is an unknown rank; an empty non-nil Shape is a scalar.
type Value struct {
	Name  string
	Type  DataType
	Shape []Dim
}

// Graph is a list of nodes in topological order.
type Graph struct {
	Name         string
	Nodes        []*Node
	Inputs       []Value
	Outputs      []Value
	Initializers []*Tensor
	ValueInfo    []Value
}

// Model is a graph with its versions.
type Model struct {
	IRVersion       int64
	Opsets          map[string]int64 // operator set version by domain
	ProducerName    string
	ProducerVersion string
	Metadata        map[string]string
	Graph           *Graph
	// External are the files, by their paths from the model's folder, that Load
	// took tensors from. Marshal writes every tensor into the model itself.
	External []string
}
