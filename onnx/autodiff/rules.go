package autodiff

import (
	"fmt"

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
	// examples says where the outputs count the examples of a batch, given where
	// the inputs do, or refuses the node because examples would meet.
	examples func(*operation) batchAxis
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
	"Mod":   {13, modRule, true, examplesElementwise},

	// activation.go
	"Identity":        {1, identityRule, true, examplesKeep},
	"Neg":             {6, negRule, true, examplesKeep},
	"Cast":            {6, castRule, true, examplesKeep},
	"Relu":            {6, reluRule, true, examplesKeep},
	"LeakyRelu":       {6, pointwise(leakySlope(leakyAlpha)), true, examplesKeep},
	"ThresholdedRelu": {10, pointwise(thresholdedReluSlope), true, examplesKeep},
	"Elu":             {6, pointwise(eluSlope(attrOr("alpha", 1), always(1))), true, examplesKeep},
	"Selu":            {6, pointwise(eluSlope(attrOr("alpha", 1.6732632423543772), attrOr("gamma", 1.0507009873554805))), true, examplesKeep},
	"Sigmoid":         {6, pointwise(sigmoidSlope), true, examplesKeep},
	"HardSigmoid":     {6, pointwise(hardSigmoidSlope), true, examplesKeep},
	"HardSwish":       {14, pointwise(hardSwishSlope), true, examplesKeep},
	"Mish":            {18, pointwise(mishSlope), true, examplesKeep},
	"Gelu":            {20, pointwise(geluSlope), true, examplesKeep},
	"Tanh":            {6, pointwise(tanhSlope), true, examplesKeep},
	"Softplus":        {1, pointwise(softplusSlope), true, examplesKeep},
	"Softsign":        {1, pointwise(softsignSlope), true, examplesKeep},
	"Exp":             {6, pointwise(expSlope), true, examplesKeep},
	"Log":             {6, pointwise(logSlope), true, examplesKeep},
	"Sqrt":            {6, pointwise(sqrtSlope), true, examplesKeep},
	"Reciprocal":      {6, pointwise(reciprocalSlope), true, examplesKeep},
	"Abs":             {6, pointwise(absSlope), true, examplesKeep},
	"Sin":             {7, pointwise(sinSlope), true, examplesKeep},
	"Cos":             {7, pointwise(cosSlope), true, examplesKeep},
	"Erf":             {9, pointwise(erfSlope), true, examplesKeep},
	"Clip":            {12, clipRule, true, examplesKeep},
	"Dropout":         {12, dropoutRule, true, examplesDropout},
	"Floor":           {6, blockedRule, true, examplesKeep},
	"Ceil":            {6, blockedRule, true, examplesKeep},
	"Round":           {11, blockedRule, true, examplesKeep},
	"Sign":            {9, blockedRule, true, examplesKeep},
	"Acos":            {7, pointwise(acosSlope), true, examplesKeep},
	"Asin":            {7, pointwise(asinSlope), true, examplesKeep},
	"Atan":            {7, pointwise(atanSlope), true, examplesKeep},
	"Acosh":           {9, pointwise(acoshSlope), true, examplesKeep},
	"Asinh":           {9, pointwise(asinhSlope), true, examplesKeep},
	"Atanh":           {9, pointwise(atanhSlope), true, examplesKeep},
	"Sinh":            {9, pointwise(sinhSlope), true, examplesKeep},
	"Cosh":            {9, pointwise(coshSlope), true, examplesKeep},
	"Tan":             {7, pointwise(tanSlope), true, examplesKeep},
	"Celu":            {12, pointwise(celuSlope), true, examplesKeep},
	"Shrink":          {9, pointwise(shrinkSlope), true, examplesKeep},
	"Swish":           {24, pointwise(sigmoidWeighted(attrOr("alpha", 1))), true, examplesKeep},
	"CastLike":        {15, castRule, true, examplesKeep},

	// matrix.go
	"MatMul": {9, matmulRule, true, examplesMatMul},
	"Gemm":   {11, gemmRule, false, examplesGemm},
	"Einsum": {12, einsumRule, false, examplesEinsum},

	// convolution.go
	"Conv":          {11, convRule, false, examplesRows},
	"ConvTranspose": {11, convTransposeRule, false, examplesRows},

	// pool.go
	"MaxPool":           {11, maxPoolRule, false, examplesPlanes},
	"AveragePool":       {11, averagePoolRule, false, examplesPlanes},
	"GlobalAveragePool": {1, globalAveragePoolRule, false, examplesPlanes},
	"GlobalMaxPool":     {1, globalMaxPoolRule, false, examplesPlanes},

	// normalise.go
	"BatchNormalization":           {9, batchNormRule, false, examplesBatchNorm},
	"InstanceNormalization":        {6, instanceNormRule, false, examplesRows},
	"GroupNormalization":           {18, groupNormRule, false, examplesRows},
	"LayerNormalization":           {13, layerNormRule, false, examplesFromAxis},
	"RMSNormalization":             {23, rmsNormRule, false, examplesFromAxis},
	"SimplifiedLayerNormalization": {1, rmsNormRule, false, examplesFromAxis},
	"LpNormalization":              {1, lpNormalizationRule, true, examplesAxis},

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
	"ReduceLogSum":    {13, reduceLogSumRule, true, examplesReduce},
	"ReduceProd":      {13, reduceProdRule, true, examplesReduce},

	// shape.go
	"Reshape":   {13, reshapeRule, true, examplesReshape},
	"Flatten":   {13, reshapeRule, true, examplesReshape},
	"Squeeze":   {13, reshapeRule, true, examplesReshape},
	"Unsqueeze": {13, reshapeRule, true, examplesReshape},
	"Transpose": {13, transposeRule, true, examplesTranspose},
	"Concat":    {13, concatRule, true, examplesAxis},
	"Split":     {13, splitRule, true, examplesAxis},
	"Slice":     {13, sliceRule, true, examplesSlice},
	"Pad":       {13, padRule, true, examplesPad},
	"Expand":    {13, expandRule, true, examplesExpand},
	"Tile":      {13, tileRule, true, examplesTile},
	"Trilu":     {14, triluRule, true, examplesTrilu},

	// scatter.go
	"Gather":          {13, gatherRule, true, examplesGather},
	"GatherElements":  {13, gatherElementsRule, false, examplesAxis},
	"GatherND":        {13, gatherNDRule, false, examplesGatherND},
	"ScatterElements": {13, scatterElementsRule, false, examplesScatter},
	"ScatterND":       {13, scatterNDRule, false, examplesScatter},
	"TopK":            {11, topKRule, false, examplesTopK},
	"OneHot":          {11, oneHotRule, false, examplesOneHot},
	"CumSum":          {11, cumSumRule, false, examplesCumSum},

	// resize.go
	"Resize": {13, resizeRule, false, examplesResize},

	// microsoft.go
	"com.microsoft.Gelu":      {1, pointwise(geluSlope), true, examplesKeep},
	"com.microsoft.FastGelu":  {1, fastGeluRule, false, examplesElementwise},
	"com.microsoft.QuickGelu": {1, pointwise(sigmoidWeighted(attrOr("alpha", 1.702))), true, examplesKeep},
}

// opaque operators return a floating-point tensor that carries no gradient of
// their inputs: shapes and random numbers.
var opaque = map[string]bool{
	"Shape": true, "Size": true, "RandomNormalLike": true, "RandomUniformLike": true, "Bernoulli": true,
	"ConstantOfShape": true, "EyeLike": true,
}

func cutsGradient(n *onnx.Node) bool {
	return opaque[n.OpType] && isDefault(n.Domain)
}

func isDefault(domain string) bool { return domain == "" || domain == "ai.onnx" }

// operatorKey is a node's row in the tables.
func operatorKey(n *onnx.Node) string {
	if isDefault(n.Domain) {
		return n.OpType
	}
	return n.Domain + "." + n.OpType
}

// ruleFor is the row of a node of a model of this version of the default
// operator set. The error gives the reason.
func ruleFor(n *onnx.Node, version int64) (rule, error) {
	key := operatorKey(n)
	r, ok := rules[key]
	if n.Domain == kernelDomain {
		r, ok = kernelRules[key]
	}
	switch {
	case !ok:
		if why := reasons[key]; why != "" {
			return rule{}, fmt.Errorf("%w: %s", ErrNotDifferentiable, why)
		}
		return rule{}, fmt.Errorf("%w: it is in no table", ErrNotDifferentiable)
	case isDefault(n.Domain) && version < r.since:
		return rule{}, fmt.Errorf("needs opset %d, the model has %d: %w", r.since, version, ErrNotDifferentiable)
	}
	return r, nil
}

// Differentiable says whether the table has a rule or a lowering for a node of
// a model with these operator sets: nil, or an error that wraps
// ErrNotDifferentiable and gives the reason. The rule may still refuse an
// unusual attribute.
func Differentiable(n *onnx.Node, opsets map[string]int64) error {
	if lowerings[operatorKey(n)] != nil {
		return nil
	}
	if _, err := ruleFor(n, max(opsets[""], opsets["ai.onnx"])); err != nil {
		return fmt.Errorf("autodiff: %s: %w", describe(n), err)
	}
	return nil
}
