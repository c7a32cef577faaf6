package autodiff

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vigie/vigie/onnx"
)

// rule is one row of the operator table.
type rule struct {
	// since is the oldest opset whose meaning of the operator backward serves;
	// a model of an older opset is refused rather than differentiated wrongly.
	since    int64
	backward func(*operation)
	// lifted says that backward also serves a node outside the batch in a
	// per-example request, where dy has one more leading axis than the output.
	lifted bool
	// examples says how the node must treat the batch axis so that examples do
	// not mix; nil where every axis but the first may be touched freely.
	examples func(*operation)
}

// rules is the whole table: default-domain operators by name, others by
// "domain.name". Every family has its own file.
var rules = map[string]rule{
	// arithmetic.go
	"Add":   {13, addRule, true, examplesElementwise},
	"Sub":   {13, subRule, true, examplesElementwise},
	"Mul":   {13, mulRule, true, examplesElementwise},
	"Div":   {13, divRule, true, examplesElementwise},
	"Sum":   {13, addRule, true, examplesElementwise},
	"Mean":  {13, meanOfInputsRule, true, examplesElementwise},
	"Max":   {13, extremeRule, true, examplesElementwise},
	"Min":   {13, extremeRule, true, examplesElementwise},
	"Pow":   {13, powRule, true, examplesElementwise},
	"Where": {9, whereRule, true, examplesElementwise},
	"PRelu": {9, preluRule, true, examplesElementwise},

	// activation.go
	"Identity":        {1, identityRule, true, nil},
	"Neg":             {6, negRule, true, nil},
	"Cast":            {6, castRule, true, nil},
	"Relu":            {6, reluRule, true, nil},
	"LeakyRelu":       {6, pointwise(leakySlope(leakyAlpha)), true, nil},
	"ThresholdedRelu": {10, pointwise(thresholdedReluSlope), true, nil},
	"Elu":             {6, pointwise(eluSlope(attrOr("alpha", 1), always(1))), true, nil},
	"Selu":            {6, pointwise(eluSlope(attrOr("alpha", 1.6732632423543772), attrOr("gamma", 1.0507009873554805))), true, nil},
	"Sigmoid":         {6, pointwise(sigmoidSlope), true, nil},
	"HardSigmoid":     {6, pointwise(hardSigmoidSlope), true, nil},
	"HardSwish":       {14, pointwise(hardSwishSlope), true, nil},
	"Mish":            {18, pointwise(mishSlope), true, nil},
	"Gelu":            {20, pointwise(geluSlope), true, nil},
	"Tanh":            {6, pointwise(tanhSlope), true, nil},
	"Softplus":        {1, pointwise(softplusSlope), true, nil},
	"Softsign":        {1, pointwise(softsignSlope), true, nil},
	"Exp":             {6, pointwise(expSlope), true, nil},
	"Log":             {6, pointwise(logSlope), true, nil},
	"Sqrt":            {6, pointwise(sqrtSlope), true, nil},
	"Reciprocal":      {6, pointwise(reciprocalSlope), true, nil},
	"Abs":             {6, pointwise(absSlope), true, nil},
	"Sin":             {7, pointwise(sinSlope), true, nil},
	"Cos":             {7, pointwise(cosSlope), true, nil},
	"Erf":             {9, pointwise(erfSlope), true, nil},
	"Clip":            {12, clipRule, true, nil},
	"Dropout":         {12, dropoutRule, true, nil},
	"Floor":           {6, blockedRule, true, nil},
	"Ceil":            {6, blockedRule, true, nil},
	"Round":           {11, blockedRule, true, nil},
	"Sign":            {9, blockedRule, true, nil},

	// matrix.go
	"MatMul": {9, matmulRule, false, examplesMatMul},
	"Gemm":   {11, gemmRule, false, examplesGemm},

	// convolution.go
	"Conv":          {11, convRule, false, nil},
	"ConvTranspose": {11, convTransposeRule, false, nil},

	// pool.go
	"MaxPool":           {11, maxPoolRule, false, nil},
	"AveragePool":       {11, averagePoolRule, false, nil},
	"GlobalAveragePool": {1, globalAveragePoolRule, false, nil},
	"GlobalMaxPool":     {1, globalMaxPoolRule, false, nil},

	// normalise.go
	"BatchNormalization":    {9, batchNormRule, false, nil},
	"InstanceNormalization": {6, instanceNormRule, false, nil},
	"GroupNormalization":    {18, groupNormRule, false, nil},
	"LayerNormalization":    {17, layerNormRule, false, examplesFromAxis},
	"RMSNormalization":      {23, rmsNormRule, false, examplesFromAxis},

	// softmax.go
	"Softmax":    {13, softmaxRule, true, examplesAxis},
	"LogSoftmax": {13, logSoftmaxRule, true, examplesAxis},

	// reduce.go
	"ReduceSum":       {13, reduceSumRule, true, examplesReduce},
	"ReduceMean":      {13, reduceMeanRule, true, examplesReduce},
	"ReduceMax":       {13, reduceExtremeRule, true, examplesReduce},
	"ReduceMin":       {13, reduceExtremeRule, true, examplesReduce},
	"ReduceSumSquare": {13, reduceSumSquareRule, true, examplesReduce},
	"ReduceL1":        {13, reduceL1Rule, true, examplesReduce},
	"ReduceL2":        {13, reduceL2Rule, true, examplesReduce},
	"ReduceLogSumExp": {13, reduceLogSumExpRule, true, examplesReduce},

	// shape.go
	"Reshape":        {13, reshapeRule, true, examplesReshape},
	"Flatten":        {13, reshapeRule, true, examplesReshape},
	"Squeeze":        {13, reshapeRule, true, examplesReshape},
	"Unsqueeze":      {13, reshapeRule, true, examplesReshape},
	"Transpose":      {13, transposeRule, true, examplesTranspose},
	"Concat":         {13, concatRule, true, examplesAxis},
	"Split":          {13, splitRule, true, examplesAxis},
	"Slice":          {13, sliceRule, true, examplesSlice},
	"Pad":            {13, padRule, true, nil},
	"Expand":         {13, expandRule, true, nil},
	"Tile":           {13, tileRule, true, examplesReshape},
	"Gather":         {13, gatherRule, false, examplesGather},
	"GatherElements": {13, gatherElementsRule, false, examplesGather},
	"Trilu":          {14, triluRule, true, nil},
}

// opaque operators return a floating-point tensor that carries no gradient of
// their inputs: shapes and random numbers.
var opaque = map[string]bool{
	"Shape": true, "Size": true, "RandomNormalLike": true, "RandomUniformLike": true, "Bernoulli": true, "ConstantOfShape": true,
}

func cutsGradient(n *onnx.Node) bool {
	return opaque[n.OpType] && isDefault(n.Domain)
}

func isDefault(domain string) bool { return domain == "" || domain == "ai.onnx" }

func ruleFor(n *onnx.Node, opset int64) (rule, error) {
	key := n.OpType
	if !isDefault(n.Domain) {
		key = n.Domain + "." + key
	}
	r, ok := rules[key]
	switch {
	case !ok:
		return rule{}, ErrNotDifferentiable
	case isDefault(n.Domain) && opset < r.since:
		return rule{}, fmt.Errorf("needs opset %d, the model has %d: %w", r.since, opset, ErrNotDifferentiable)
	}
	return r, nil
}

// Operator is a row of the table of operators that Gradient can differentiate.
type Operator struct {
	Name  string // "Conv", or "domain.Name" outside the default domain
	Since int64  // oldest opset served
}

// Operators lists the differentiable operators by name.
func Operators() []Operator {
	var out []Operator
	for name, r := range rules {
		out = append(out, Operator{name, r.since})
	}
	slices.SortFunc(out, func(a, b Operator) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Differentiable says whether the table has a rule for a node of a model with
// these operator sets: nil, or an error that wraps ErrNotDifferentiable. The
// rule may still refuse an unusual attribute.
func Differentiable(n *onnx.Node, opsets map[string]int64) error {
	if _, err := ruleFor(n, max(opsets[""], opsets["ai.onnx"])); err != nil {
		return fmt.Errorf("autodiff: %s: %w", describe(n), err)
	}
	return nil
}
