package autodiff

import (
	"fmt"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// Kernels: chains of nodes for which the engine has one operator of its own, in
// the domain "vigie" (package engine/kernel), are replaced by it before anything
// is differentiated, and its gradient is one such operator again. The result is
// for a session of this process only.

const kernelDomain = "vigie"

// kernelRules are the gradients of the operators of kernelDomain.
var kernelRules = map[string]rule{
	"vigie.Conv":          {since: 1, backward: kernelConvRule},
	"vigie.Normalization": {since: 1, backward: kernelNormRule},
	"vigie.MaxPool":       {since: 1, backward: kernelMaxPoolRule},
	"vigie.Affine":        {since: 1, backward: kernelAffineRule},
	"vigie.WeighChannels": {since: 1, backward: kernelWeighRule},
}

// Activations that a normalisation applies itself.
const (
	noActivation int64 = iota
	reluActivation
	siluActivation
)

// emitKernel appends an operator of kernelDomain with several outputs.
func (e *emitter) emitKernel(opType string, inputs []value, outputs []value, attrs ...onnx.Attribute) []value {
	n := &onnx.Node{OpType: opType, Domain: kernelDomain, Attributes: attrs}
	for _, in := range inputs {
		n.Inputs = append(n.Inputs, in.name)
	}
	for i := range outputs {
		outputs[i].name = e.fresh(opType)
		e.values[outputs[i].name] = outputs[i]
		n.Outputs = append(n.Outputs, outputs[i].name)
	}
	n.Name = outputs[0].name
	e.nodes = append(e.nodes, n)
	e.kernels = true
	return outputs
}

// fusing is one pass over the model's nodes.
type fusing struct {
	*tape
	readers map[string][]*onnx.Node
	asked   map[string]bool             // tensors that must stay
	at      map[*onnx.Node]int          // positions
	instead map[*onnx.Node][]*onnx.Node // replacements, at the chain's last node
	gone    map[*onnx.Node]bool         // nodes of replaced chains
}

// fuse replaces what the engine has operators for.
func (t *tape) fuse() {
	if t.request.Kernels == 0 {
		return
	}
	f := &fusing{
		tape: t, readers: map[string][]*onnx.Node{}, asked: map[string]bool{}, at: map[*onnx.Node]int{},
		instead: map[*onnx.Node][]*onnx.Node{}, gone: map[*onnx.Node]bool{},
	}
	for _, name := range append([]string{t.request.Loss}, append(t.request.WithRespectTo, t.request.Keep...)...) {
		f.asked[name] = true
	}
	for i, n := range t.graph.Nodes {
		f.at[n] = i
		reads(n, func(name string) { f.readers[name] = append(f.readers[name], n) })
	}
	for _, n := range t.graph.Nodes {
		if f.gone[n] || !isDefault(n.Domain) || !slices.ContainsFunc(n.Outputs, func(out string) bool { return t.needs[out] }) {
			continue
		}
		switch n.OpType {
		case "Conv":
			f.conv(n)
		case "MaxPool":
			f.maxPool(n)
		case "BatchNormalization":
			f.batchNorm(n)
		case "GroupNormalization":
			f.groupNorm(n)
		case "Reshape":
			f.groupNormChain(n)
		case "Mul":
			f.weighChannels(n)
		}
	}
	var nodes []*onnx.Node
	for _, n := range t.graph.Nodes {
		switch {
		case f.instead[n] != nil:
			nodes = append(nodes, f.instead[n]...)
		case !f.gone[n]:
			nodes = append(nodes, n)
		}
	}
	t.graph.Nodes = nodes
	t.index()
}

// next returns the only node that reads a tensor which nobody asked for, or nil.
func (f *fusing) next(name string) *onnx.Node {
	if r := f.readers[name]; len(r) == 1 && !f.asked[name] && isDefault(r[0].Domain) && !f.gone[r[0]] {
		return r[0]
	}
	return nil
}

// replace puts one node, and others that it needs before it, in the place of a
// chain, at its last node.
func (f *fusing) replace(chain []*onnx.Node, by *onnx.Node, before ...*onnx.Node) {
	last := chain[0]
	for _, n := range chain {
		f.gone[n] = true
		if f.at[n] > f.at[last] {
			last = n
		}
	}
	by.Domain, by.Name = kernelDomain, by.Outputs[0]
	f.instead[last] = append(before, by)
	f.kernels = true
}

func (f *fusing) operation(n *onnx.Node) *operation {
	o := &operation{tape: f.tape, node: n}
	for _, name := range n.Inputs {
		o.inputs = append(o.inputs, f.lookup(name))
	}
	for _, name := range n.Outputs {
		o.outputs = append(o.outputs, f.values[name])
	}
	return o
}

func image(v value) bool { return v.typ == onnx.Float && v.rank() == 4 && v.size() > 0 }

func (f *fusing) conv(n *onnx.Node) {
	x, w, y := f.values[n.Input(0)], f.values[n.Input(1)], f.values[n.Outputs[0]]
	if !image(x) || !image(w) || !image(y) {
		return
	}
	g := f.operation(n).windowOf(w.shape[2:], x.shape[2:], y.shape[2:])
	group := n.Int("group", 1)
	depthwise := group > 1 && group == x.shape[1] && group == w.shape[0]
	switch {
	case product(g.kernel) > 1024, product(g.stride) > 64, slices.Min(append(g.before, g.after...)) < 0:
		return
	case depthwise && product(g.kernel) > 64, !depthwise && group > 4:
		return
	}
	chain, out, relu := []*onnx.Node{n}, n.Outputs[0], int64(0)
	if next := f.next(out); next != nil && next.OpType == "Relu" {
		chain, out, relu = append(chain, next), next.Outputs[0], 1
	}
	f.replace(chain, &onnx.Node{
		OpType: "Conv", Inputs: slices.Clone(n.Inputs), Outputs: []string{out},
		Attributes: []onnx.Attribute{f.convGeometry(g, group, relu, 0, 0)},
	})
}

// convGeometry is the attribute of Conv and its gradients; register.c has the
// order.
func (t *tape) convGeometry(g window, group, relu, h, w int64) onnx.Attribute {
	return onnx.IntsAttribute("geometry", g.stride[0], g.stride[1], g.dilation[0], g.dilation[1], g.before[0], g.before[1], g.after[0], g.after[1],
		group, int64(t.request.Kernels), relu, h, w)
}

// windowOfKernel reads convGeometry back.
func (o *operation) windowOfKernel() (g window, group, relu int64) {
	a := o.node.Ints("geometry")
	return window{
		stride: a[0:2], dilation: a[2:4], before: a[4:6], after: a[6:8],
		kernel: o.in(1).shape[2:], in: o.in(0).shape[2:], out: o.out(0).shape[2:],
	}, a[8], a[10]
}

func kernelConvRule(o *operation) {
	x, w, d := o.in(0), o.in(1), o.dy()
	g, group, relu := o.windowOfKernel()
	gate := value{}
	if relu == 1 {
		gate = o.out(0)
	}
	if o.wants(0) {
		inputs := []value{w, d}
		if relu == 1 {
			inputs = append(inputs, gate)
		}
		o.give(0, o.emitKernel("ConvInputGradient", inputs, []value{{typ: x.typ, shape: x.shape}}, o.convGeometry(g, group, 0, x.shape[2], x.shape[3]))[0])
	}
	if !o.wants(1) && !o.wants(2) {
		return
	}
	if o.perExample(w) || o.wants(2) && o.perExample(o.in(2)) {
		o.kernelConvRows(g, group, gate)
		return
	}
	dw, db := o.kernelWeightGradient(g, group, gate, value{})
	if o.wants(1) {
		o.give(1, dw)
	}
	if o.wants(2) {
		o.give(2, db)
	}
}

// kernelWeightGradient is the gradient of weights and bias, each row of the
// batch multiplied by scale, if that is given.
func (o *operation) kernelWeightGradient(g window, group int64, gate, scale value) (dw, db value) {
	w := o.in(1)
	inputs := []value{o.in(0), o.dy()}
	if !gate.none() || !scale.none() {
		inputs = append(inputs, gate)
	}
	if !scale.none() {
		inputs = append(inputs, scale)
	}
	key := "kernel weight gradient|"
	for _, in := range inputs {
		key += in.name + "|"
	}
	out := []value{o.cache[key+"w"], o.cache[key+"b"]}
	if out[0].none() {
		out = o.emitKernel("ConvWeightGradient", inputs, []value{{typ: w.typ, shape: w.shape}, {typ: w.typ, shape: w.shape[:1]}},
			o.convGeometry(g, group, 0, w.shape[2], w.shape[3]))
		o.cache[key+"w"], o.cache[key+"b"] = out[0], out[1]
	}
	return out[0], out[1]
}

// kernelConvRows serves gradients for each row of the batch on standard
// operators: there the kernels have norms and weighted sums only (kernelConvSite).
func (o *operation) kernelConvRows(g window, group int64, gate value) {
	x, w, d := o.in(0), o.in(1), o.dy()
	if !gate.none() {
		d = o.mul(d, o.unary("Sign", gate))
	}
	if o.wants(2) {
		o.give(2, o.eachRecord(o.in(2), o.sum(d, o.allButChannel(o.in(2), d.rank()), false)))
	}
	if o.wants(1) {
		o.give(1, o.eachRecord(w, o.kernelGradient(x, d, w, g, group, o.perExample(w))))
	}
}

// kernelConvSite leaves the gradients of weights and bias to Clip.
func kernelConvSite(o *operation, i int) *site {
	if i == 0 || o.perExample(o.in(0)) {
		return nil
	}
	g, group, relu := o.windowOfKernel()
	views, w := o.clip.views, o.in(1)
	if views > 1 && group > 1 {
		return nil
	}
	inputs := []value{o.in(0), o.dy()}
	gate := value{}
	if relu == 1 {
		gate = o.out(0)
		inputs = append(inputs, gate)
	}
	// part emits an operator for weights and bias at once, when first asked for.
	part := func(opType string, at int, shapes ...[]int64) value {
		key := "kernel " + opType + "|" + o.node.Name
		if o.cache[key+"0"].none() {
			var outputs []value
			for _, shape := range shapes {
				outputs = append(outputs, value{typ: w.typ, shape: shape})
			}
			for k, out := range o.emitKernel(opType, inputs, outputs, o.convGeometry(g, group, views, w.shape[2], w.shape[3])) {
				o.cache[fmt.Sprint(key, k)] = out
			}
		}
		return o.cache[fmt.Sprint(key, at)]
	}
	records := o.clip.records
	// Gradients that are small for all records together are kept, which costs
	// less than to compute them twice.
	const small = 1 << 23
	if group == 1 && records*w.size() <= small {
		shapes := [][]int64{append([]int64{records}, w.shape...), {records, w.shape[0]}, {records}, {records}}
		s := o.materialised(part("ConvWeightRows", i-1, shapes...), o.in(i).shape)
		s.squaredNorm = func() value { return part("ConvWeightRows", i+1, shapes...) }
		return s
	}
	return &site{
		squaredNorm: func() value { return part("ConvWeightNorms", i-1, []int64{records}, []int64{records}) },
		weighted: func(factor value) value {
			dw, db := o.kernelWeightGradient(g, group, gate, o.perRow(factor))
			if i == 1 {
				return dw
			}
			return db
		},
	}
}

func (f *fusing) maxPool(n *onnx.Node) {
	x, y := f.values[n.Input(0)], f.values[n.Outputs[0]]
	if !image(x) || !image(y) || len(n.Outputs) > 1 || n.Int("storage_order", 0) != 0 {
		return
	}
	g := f.operation(n).windowOf(n.Ints("kernel_shape"), x.shape[2:], y.shape[2:])
	if product(g.kernel) > 255 || slices.Max(g.dilation) > 1 || slices.Min(append(g.before, g.after...)) < 0 {
		return
	}
	winner := f.fresh("winner")
	f.values[winner] = value{winner, onnx.Uint8, y.shape}
	f.replace([]*onnx.Node{n}, &onnx.Node{
		OpType: "MaxPool", Inputs: []string{x.name}, Outputs: []string{y.name, winner},
		Attributes: []onnx.Attribute{onnx.IntsAttribute("geometry", g.kernel[0], g.kernel[1], g.stride[0], g.stride[1], g.before[0], g.before[1],
			x.shape[2], x.shape[3], y.shape[2], y.shape[3])},
	})
}

func kernelMaxPoolRule(o *operation) {
	x := o.in(0)
	out := o.emitKernel("MaxPoolGradient", []value{o.dy(), o.out(1)}, []value{{typ: x.typ, shape: x.shape}}, *o.node.Attribute("geometry"))
	o.give(0, out[0])
}

// norm finishes the fusion of a normalisation that is computed by chain, adding
// what follows it: the sum with a skip connection, if a Relu comes after, and the
// activation. groups 0 is batch statistics.
func (f *fusing) norm(chain []*onnx.Node, x, scale, shift, out string, groups int64, epsilon float32, mean, variance string) {
	inputs, activation := []string{x, scale, shift}, noActivation
	next := f.next(out)
	if next != nil && next.OpType == "Add" {
		sum := next.Outputs[0]
		other := next.Input(0)
		if other == out {
			other = next.Input(1)
		}
		relu := f.next(sum)
		if other != out && slices.Equal(f.values[other].shape, f.values[out].shape) && relu != nil && relu.OpType == "Relu" {
			chain, inputs, out, activation = append(chain, next, relu), append(inputs, other), relu.Outputs[0], reluActivation
		}
	}
	if activation == noActivation {
		chain, out, activation = f.activated(chain, out)
	}
	shape := []int64{f.values[x].shape[1]}
	if groups > 0 {
		shape = []int64{f.values[x].shape[0], groups}
	}
	for _, name := range []string{mean, variance} {
		f.values[name] = value{name, onnx.Float, shape}
	}
	f.replace(chain, &onnx.Node{
		OpType: "Normalization", Inputs: inputs, Outputs: []string{out, mean, variance},
		Attributes: []onnx.Attribute{normGeometry(groups, activation, 0), onnx.FloatAttribute("epsilon", epsilon)},
	})
}

// activated adds the activation that follows a chain to it.
func (f *fusing) activated(chain []*onnx.Node, out string) ([]*onnx.Node, string, int64) {
	if next := f.next(out); next != nil && next.OpType == "Relu" {
		return append(chain, next), next.Outputs[0], reluActivation
	}
	if r := f.readers[out]; len(r) == 2 && !f.asked[out] && !f.gone[r[0]] && !f.gone[r[1]] {
		sigmoid, mul := r[0], r[1]
		if sigmoid.OpType == "Mul" {
			sigmoid, mul = mul, sigmoid
		}
		if sigmoid.OpType == "Sigmoid" && mul.OpType == "Mul" && f.next(sigmoid.Outputs[0]) == mul {
			return append(chain, sigmoid, mul), mul.Outputs[0], siluActivation
		}
	}
	return chain, out, noActivation
}

func normGeometry(groups, activation, perExample int64) onnx.Attribute {
	return onnx.IntsAttribute("geometry", groups, activation, perExample)
}

// batchNorm takes a normalisation by batch statistics. Its running statistics
// are the batch's own if momentum is 0; otherwise they must not be asked for.
func (f *fusing) batchNorm(n *onnx.Node) {
	x := f.values[n.Input(0)]
	if n.Int("training_mode", 0) == 0 {
		f.affine(n)
		return
	}
	if x.typ != onnx.Float || x.rank() < 2 || f.request.PerExample {
		return
	}
	outs := []string{n.Output(1), n.Output(2)}
	for i, hint := range []string{"mean", "variance"} {
		if outs[i] != "" && (f.asked[outs[i]] || len(f.readers[outs[i]]) > 0) && n.Float("momentum", 0.9) != 0 {
			return
		}
		if outs[i] == "" {
			outs[i] = f.fresh(hint)
		}
	}
	f.norm([]*onnx.Node{n}, x.name, n.Input(1), n.Input(2), n.Outputs[0], 0, n.Float("epsilon", 1e-5), outs[0], outs[1])
}

// affine takes a normalisation by given statistics, of which only the gradient
// by what it normalises is needed, and the activation after it.
func (f *fusing) affine(n *onnx.Node) {
	x := f.values[n.Input(0)]
	if x.typ != onnx.Float || x.rank() < 2 || slices.ContainsFunc(n.Inputs[1:], func(in string) bool { return f.needs[in] }) {
		return
	}
	before := f.nodes
	f.nodes = nil
	o := f.operation(n)
	factor := o.mul(o.in(1), o.unary("Reciprocal", o.unary("Sqrt", o.shift(o.in(4), o.epsilon()))))
	shift := o.sub(o.in(2), o.mul(o.in(3), factor))
	made := f.nodes
	f.nodes = before
	chain, out, activation := f.activated([]*onnx.Node{n}, n.Outputs[0])
	f.replace(chain, &onnx.Node{
		OpType: "Affine", Inputs: []string{x.name, factor.name, shift.name}, Outputs: []string{out},
		Attributes: []onnx.Attribute{normGeometry(0, activation, 0), onnx.FloatAttribute("epsilon", 0)},
	}, made...)
}

// weighChannels takes squeeze and excitation's product of an image with one
// number for each of its channels.
func (f *fusing) weighChannels(n *onnx.Node) {
	x, s := f.values[n.Input(0)], f.values[n.Input(1)]
	if !image(x) || x.shape[2]*x.shape[3] == 1 {
		x, s = s, x
	}
	if !image(x) || !image(s) || !slices.Equal(s.shape, []int64{x.shape[0], x.shape[1], 1, 1}) || x.shape[2]*x.shape[3] == 1 || !f.needs[x.name] || !f.needs[s.name] {
		return
	}
	f.replace([]*onnx.Node{n}, &onnx.Node{
		OpType: "WeighChannels", Inputs: []string{x.name, s.name}, Outputs: slices.Clone(n.Outputs),
		Attributes: []onnx.Attribute{normGeometry(0, noActivation, 0)},
	})
}

func kernelWeighRule(o *operation) {
	x, s := o.in(0), o.in(1)
	out := o.emitKernel("WeighChannelsGradient", []value{x, s, o.dy()}, []value{{typ: x.typ, shape: x.shape}, {typ: s.typ, shape: s.shape}}, o.node.Attributes...)
	o.give(0, out[0])
	o.give(1, out[1])
}

func kernelAffineRule(o *operation) {
	x := o.in(0)
	o.give(0, o.emitKernel("AffineGradient", []value{x, o.dy(), o.in(1), o.in(2)}, []value{{typ: x.typ, shape: x.shape}}, o.node.Attributes...)[0])
}

func (f *fusing) groupNorm(n *onnx.Node) {
	x, scale := f.values[n.Input(0)], f.values[n.Input(1)]
	groups := n.Int("num_groups", 0)
	if x.typ != onnx.Float || x.rank() < 3 || groups < 1 || scale.size() != x.shape[1] || x.shape[1]%groups != 0 {
		return
	}
	f.norm([]*onnx.Node{n}, x.name, scale.name, n.Input(2), n.Outputs[0], groups, n.Float("epsilon", 1e-5), f.fresh("mean"), f.fresh("variance"))
}

// groupNormChain takes group normalisation as exporters write it before opset
// 18, from its first node on; see groupNormPattern.
func (f *fusing) groupNormChain(first *onnx.Node) {
	step := func(n *onnx.Node, opType string) *onnx.Node {
		if n == nil {
			return nil
		}
		if next := f.next(n.Outputs[0]); next != nil && next.OpType == opType {
			return next
		}
		return nil
	}
	norm := step(first, "InstanceNormalization")
	if norm == nil || !f.allEqual(norm.Input(1), 1) || !f.allEqual(norm.Input(2), 0) {
		return
	}
	back := step(norm, "Reshape")
	mul := step(back, "Mul")
	add := step(mul, "Add")
	if add == nil {
		return
	}
	other := func(n *onnx.Node, than string) string {
		if n.Input(0) == than {
			return n.Input(1)
		}
		return n.Input(0)
	}
	x, grouped, y := f.values[first.Input(0)], f.values[norm.Input(0)], f.values[add.Outputs[0]]
	scale, shift := other(mul, back.Outputs[0]), other(add, mul.Outputs[0])
	if x.typ != onnx.Float || x.rank() < 3 || grouped.rank() < 3 || !slices.Equal(x.shape, y.shape) || x.shape[0] != grouped.shape[0] ||
		x.shape[1]%grouped.shape[1] != 0 || !f.perChannel(scale, x) || !f.perChannel(shift, x) {
		return
	}
	f.norm([]*onnx.Node{first, norm, back, mul, add}, x.name, scale, shift, y.name, grouped.shape[1], norm.Float("epsilon", 1e-5), f.fresh("mean"), f.fresh("variance"))
}

func kernelNormRule(o *operation) {
	x, d := o.in(0), o.dy()
	a := o.node.Ints("geometry")
	groups, activation := a[0], a[1]
	channels := x.shape[1:2]
	perExample := int64(0)
	if o.perExample(o.in(1)) || o.perExample(o.in(2)) {
		perExample, channels = 1, x.shape[:2]
	}
	inputs := []value{x, d, o.in(1), o.in(2), o.out(1), o.out(2)}
	outputs := []value{{typ: x.typ, shape: x.shape}, {typ: x.typ, shape: channels}, {typ: x.typ, shape: channels}}
	if o.has(3) {
		inputs = append(inputs, o.out(0))
		outputs = append(outputs, value{typ: x.typ, shape: x.shape})
	}
	out := o.emitKernel("NormalizationGradient", inputs, outputs, normGeometry(groups, activation, perExample), *o.node.Attribute("epsilon"))
	if o.wants(0) {
		o.give(0, out[0])
	}
	for i := 1; i <= 2; i++ {
		if !o.wants(i) {
			continue
		}
		g := out[i]
		if perExample == 1 {
			g = o.eachRecord(o.in(i), g)
			if !o.perExample(o.in(i)) {
				g = o.sum(g, []int64{0}, false)
			}
		}
		o.give(i, o.reshape(g, o.expects(o.in(i))...))
	}
	if o.wants(3) {
		o.give(3, out[3])
	}
}

// kernelProducts replaces the matrix products of a finished graph whose size is
// worth it.
func (t *tape) kernelProducts(nodes []*onnx.Node) []*onnx.Node {
	const worth = 1 << 15 // multiplications
	var out []*onnx.Node
	for _, n := range nodes {
		a, b, y := t.values[n.Input(0)], t.values[n.Input(1)], t.values[n.Outputs[0]]
		product := n.OpType == "MatMul" && isDefault(n.Domain) || n.OpType == "FusedMatMul" && n.Domain == fusedDomain || n.OpType == "Gemm" && isDefault(n.Domain)
		if !product || a.typ != onnx.Float || b.typ != onnx.Float || a.rank() < 2 || b.rank() < 2 || a.rank() > 8 ||
			n.Float("alpha", 1) != 1 || n.Float("beta", 1) != 1 || n.Int("transBatchA", 0) != 0 || n.Int("transBatchB", 0) != 0 {
			out = append(out, n)
			continue
		}
		transA, transB := n.Int("transA", 0), n.Int("transB", 0)
		shared := b.rank() == 2 && transA == 0 && a.rank() >= 2
		same := a.rank() == b.rank() && slices.Equal(a.shape[:a.rank()-2], b.shape[:b.rank()-2])
		inner := a.shape[a.rank()-1]
		if transA != 0 {
			inner = a.shape[a.rank()-2]
		}
		if rows, columns := y.shape[y.rank()-2], y.shape[y.rank()-1]; !shared && !same || y.size()*inner < worth || columns < 8 || same && rows < 8 {
			out = append(out, n)
			continue
		}
		m := &onnx.Node{
			Name: n.Name, OpType: "MatMul", Domain: kernelDomain, Inputs: []string{a.name, b.name}, Outputs: slices.Clone(n.Outputs),
			Attributes: []onnx.Attribute{onnx.IntsAttribute("geometry", transA, transB, int64(t.request.Kernels))},
		}
		t.kernels = true
		t.nodes = append(t.nodes, m)
		if n.OpType == "Gemm" && n.Input(2) != "" {
			m.Outputs = []string{t.fresh("MatMul")}
			m.Name = m.Outputs[0]
			out = append(out, m, &onnx.Node{Name: n.Name, OpType: "Add", Inputs: []string{m.Outputs[0], n.Input(2)}, Outputs: n.Outputs})
			continue
		}
		out = append(out, m)
	}
	return out
}
