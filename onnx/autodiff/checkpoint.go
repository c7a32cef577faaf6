package autodiff

import (
	"fmt"
	"slices"

	"github.com/vigie/vigie/onnx"
)

// Checkpointing (Chen et al. 2016, "Training deep nets with sublinear memory
// cost"): the forward nodes are cut into segments. Only what crosses a cut is
// kept until the gradient needs it; what else the gradient of a segment reads is
// computed again from that, just before.
//
// A runtime orders nodes by their dependencies alone and merges equal ones.
// Written naively, the second computation would run first, or not at all. So
// what a segment is computed from again passes through a gate: it is
// concatenated with an empty tensor that is sliced from everything that the
// gradient of the segment behind it ends in. No optimiser can see through that,
// and nothing behind the gate can start while the previous segment is still at
// work. It costs a copy of what is kept. (A Reshape whose shape is not known
// before the run would cost none, but ONNX Runtime 1.30 merges it with a Reshape
// that follows, and fails.)

// checkpointing is one such rewriting.
type checkpointing struct {
	*tape
	forward []*onnx.Node        // in order
	maker   map[string]int      // position of the forward node that makes a tensor
	last    map[string]int      // position of the last forward node that reads it
	needed  map[string]bool     // forward tensors that the gradient reads
	cuts    []int               // segments end behind these positions; ascending
	kept    map[string]bool     // what crosses a cut
	names   []map[string]string // by segment: what stands for a tensor there
	gates   map[string]string   // by level and tensor
	wait    map[int]value       // by level: the empty list of integers that its gates wait for
	out     []*onnx.Node
}

// checkpoint rewrites the pruned nodes of a gradient graph and adds what they
// read to used. It leaves them as they are where nothing would be gained.
func (t *tape) checkpoint(graph *onnx.Graph, used map[string]bool) {
	nodes := graph.Nodes
	c := &checkpointing{
		tape: t, maker: map[string]int{}, last: map[string]int{}, needed: map[string]bool{}, kept: map[string]bool{},
		gates: map[string]string{}, wait: map[int]value{},
	}
	original := map[string]bool{}
	for _, n := range t.graph.Nodes {
		for _, out := range n.Outputs {
			original[out] = out != ""
		}
	}
	var backward []*onnx.Node
	for _, n := range nodes {
		if slices.ContainsFunc(n.Outputs, func(out string) bool { return original[out] }) {
			c.addForward(n)
		} else {
			backward = append(backward, n)
		}
	}
	for _, n := range backward {
		reads(n, func(name string) {
			if at, ok := c.maker[name]; ok && c.repeatable(c.forward[at]) && t.values[name].float() {
				c.needed[name] = true
			}
		})
	}
	c.cuts = c.plan()
	if len(c.cuts) == 0 {
		return
	}
	for _, cut := range c.cuts {
		for name := range c.crossing(cut) {
			c.kept[name] = true
		}
	}
	c.out = slices.Clone(c.forward)
	c.rewrite(backward)
	for _, n := range c.out {
		reads(n, func(name string) { used[name] = true })
	}
	graph.Nodes = c.out
}

func (c *checkpointing) addForward(n *onnx.Node) {
	at := len(c.forward)
	c.forward = append(c.forward, n)
	for _, out := range n.Outputs {
		if out != "" {
			c.maker[out] = at
		}
	}
	reads(n, func(name string) {
		if _, ok := c.maker[name]; ok {
			c.last[name] = at
		}
	})
}

// unrepeatable operators draw random numbers: computed again, they would give
// others.
var unrepeatable = map[string]bool{
	"Dropout": true, "RandomNormal": true, "RandomNormalLike": true, "RandomUniform": true, "RandomUniformLike": true,
	"Bernoulli": true, "Multinomial": true,
}

func (c *checkpointing) repeatable(n *onnx.Node) bool {
	if unrepeatable[n.OpType] {
		return false
	}
	return !slices.ContainsFunc(n.Attributes, func(a onnx.Attribute) bool { return a.Graph != nil || len(a.Graphs) > 0 })
}

// stored is the tensor that a view is a view of: where the bytes are.
func (c *checkpointing) stored(name string) string {
	for {
		at, ok := c.maker[name]
		if !ok {
			return name
		}
		switch n := c.forward[at]; n.OpType {
		case "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity":
			name = n.Input(0)
		default:
			return name
		}
	}
}

// bytes is what a tensor occupies.
func (c *checkpointing) bytes(name string) int64 {
	v, ok := c.values[name]
	if !ok {
		return 0
	}
	switch v.typ {
	case onnx.Double, onnx.Int64, onnx.Uint64:
		return 8 * v.size()
	case onnx.Bool, onnx.Int8, onnx.Uint8:
		return v.size()
	case onnx.Float16, onnx.Bfloat16:
		return 2 * v.size()
	}
	return 4 * v.size()
}

// crossing is what a node behind position cut reads from one at or before it.
func (c *checkpointing) crossing(cut int) map[string]bool {
	names := map[string]bool{}
	for name, at := range c.maker {
		if last, ok := c.last[name]; ok && at <= cut && last > cut {
			names[name] = true
		}
	}
	return names
}

// plan chooses the cuts whose kept tensors and largest segment together take
// the least memory: for each of many bounds on a segment, the cheapest cuts by
// dynamic programming. With n layers of one size that comes to √n segments.
func (c *checkpointing) plan() []int {
	n := len(c.forward)
	crossing, sum := make([]int64, n), make([]int64, n+1) // bytes across the cut behind each node; bytes needed of the nodes before
	until, wanted := map[string]int{}, map[string]bool{}  // by stored tensor
	for name := range c.maker {
		root := c.stored(name)
		if _, forward := c.maker[root]; !forward {
			continue
		}
		until[root] = max(until[root], c.last[name])
		wanted[root] = wanted[root] || c.needed[name]
	}
	for name, last := range until {
		at, size := c.maker[name], c.bytes(name)
		for i := at; i < last; i++ {
			crossing[i] += size
		}
		if wanted[name] {
			sum[at+1] += size
		}
	}
	for i := range n {
		sum[i+1] += sum[i]
	}
	const share = 2 // a segment's tensors, and as much again for their gradients
	total := sum[n]
	best, cuts := share*total, []int(nil)
	const bounds = 64
	cost, from := make([]int64, n+1), make([]int, n+1)
	for b := int64(1); b < bounds; b++ {
		bound := total * b / bounds
		for i := 1; i <= n; i++ {
			cost[i], from[i] = -1, -1
			for j := i - 1; j >= 0 && sum[i]-sum[j] <= bound; j-- {
				if cost[j] < 0 {
					continue
				}
				with := cost[j]
				if j > 0 {
					with += crossing[j-1]
				}
				if cost[i] < 0 || with < cost[i] {
					cost[i], from[i] = with, j
				}
			}
		}
		if cost[n] < 0 || cost[n]+share*bound >= best {
			continue
		}
		best, cuts = cost[n]+share*bound, nil
		for i := from[n]; i > 0; i = from[i] {
			cuts = append(cuts, i-1)
		}
		slices.Reverse(cuts)
	}
	return cuts
}

// segment is the number of the segment that position at lies in.
func (c *checkpointing) segment(at int) int {
	k, _ := slices.BinarySearch(c.cuts, at)
	return k
}

// rewrite appends the gradient's nodes. Their order is that of emission, which
// is the reverse of the forward nodes': the level, which is the segment at work,
// never rises. The last segment's tensors are still there when the gradient
// begins.
//
// Within a segment everything is read from the second computation, also what is
// kept: the runtime may fuse the two differently, and a gradient that looks for
// the elements of x equal to max(x) must not get one from here and one from
// there.
func (c *checkpointing) rewrite(backward []*onnx.Node) {
	c.names = make([]map[string]string, len(c.cuts))
	for i := range c.names {
		c.names[i] = map[string]string{}
	}
	last := len(c.cuts)
	level, start := last, len(c.out) // where the level's nodes begin
	for _, n := range backward {
		if next := min(level, c.levelOf(n, level)); next < level {
			c.wait[next] = c.await(level, c.out[start:])
			level, start = next, len(c.out)
		}
		if level < last {
			n = c.reading(n, level)
		}
		c.out = append(c.out, n)
	}
}

// levelOf is the segment whose gradient a node belongs to.
func (c *checkpointing) levelOf(n *onnx.Node, level int) int {
	if from := c.origin[n]; from != nil {
		for _, out := range from.Outputs {
			if at, ok := c.maker[out]; ok {
				return c.segment(at)
			}
		}
	}
	return level
}

// reading is n as it reads on a level.
func (c *checkpointing) reading(n *onnx.Node, level int) *onnx.Node {
	n = n.Clone()
	for i, name := range n.Inputs {
		at, forward := c.maker[name]
		if !forward || !c.values[name].float() || c.segment(at) == len(c.cuts) {
			continue
		}
		if c.segment(at) != level && c.kept[name] {
			n.Inputs[i] = c.gate(level, name)
		} else {
			n.Inputs[i] = c.again(c.segment(at), level, name)
		}
	}
	return n
}

// await returns an empty list of integers that exists once the given nodes have
// run.
func (c *checkpointing) await(level int, nodes []*onnx.Node) value {
	read := map[string]bool{}
	for _, n := range nodes {
		reads(n, func(name string) { read[name] = true })
	}
	var ends []value
	for _, n := range nodes {
		for _, out := range n.Outputs {
			v, ok := c.values[out]
			if !ok || read[out] || v.size() == 0 {
				continue
			}
			flat := c.step("Reshape", v.typ, []int64{v.size()}, v.name, c.ints(-1).name)
			none := c.step("Slice", v.typ, []int64{0}, flat.name, c.ints(0).name, c.ints(0).name, c.ints(0).name)
			if v.typ != onnx.Int64 {
				none = c.step("Cast", onnx.Int64, []int64{0}, none.name)
				c.attribute(onnx.IntAttribute("to", int64(onnx.Int64)))
			}
			ends = append(ends, none)
		}
	}
	switch len(ends) {
	case 0: // nothing ran on this level: wait for what it waited for
		return c.wait[level]
	case 1:
		return ends[0]
	}
	names := make([]string, len(ends))
	for i, e := range ends {
		names[i] = e.name
	}
	all := c.step("Concat", onnx.Int64, []int64{0}, names...)
	c.attribute(onnx.IntAttribute("axis", 0))
	return all
}

// step appends a node of one output.
func (c *checkpointing) step(opType string, typ onnx.DataType, shape []int64, inputs ...string) value {
	v := value{c.fresh("again/" + opType), typ, shape}
	c.values[v.name] = v
	c.out = append(c.out, &onnx.Node{Name: v.name, OpType: opType, Inputs: inputs, Outputs: []string{v.name}})
	return v
}

// attribute gives the last step an attribute.
func (c *checkpointing) attribute(a onnx.Attribute) {
	c.out[len(c.out)-1].Attributes = []onnx.Attribute{a}
}

// gate returns a tensor as it may be read on a level.
func (c *checkpointing) gate(level int, name string) string {
	key := fmt.Sprint(level, " ", name)
	if gated, ok := c.gates[key]; ok {
		return gated
	}
	v, ok := c.values[name]
	if !ok || v.rank() == 0 {
		return name
	}
	none := slices.Clone(v.shape)
	none[0] = 0
	empty := c.wait[level]
	if v.typ != onnx.Int64 {
		empty = c.step("Cast", v.typ, []int64{0}, empty.name)
		c.attribute(onnx.IntAttribute("to", int64(v.typ)))
	}
	empty = c.step("Reshape", v.typ, none, empty.name, c.ints(none...).name) // 0 is the 0 of the input
	gated := c.step("Concat", v.typ, v.shape, name, empty.name).name
	c.attribute(onnx.IntAttribute("axis", 0))
	c.gates[key] = gated
	return gated
}

// again returns what stands for a tensor of a segment when the gradient is at
// the given level, computing it if that has not been done.
func (c *checkpointing) again(segment, level int, name string) string {
	if known, ok := c.names[segment][name]; ok {
		return known
	}
	at, forward := c.maker[name]
	if !forward { // input, weight or constant
		return name
	}
	n := c.forward[at]
	switch {
	case c.segment(at) != segment || !c.repeatable(n):
		if !c.values[name].float() {
			return name // shapes and indices are small
		}
		return c.gate(level, name)
	case !slices.ContainsFunc(n.Outputs, func(out string) bool { return c.values[out].float() }):
		return name
	}
	n = n.Clone()
	entered := false
	for i, in := range n.Inputs {
		if in == "" {
			continue
		}
		n.Inputs[i] = c.again(segment, level, in)
		entered = entered || n.Inputs[i] != in
	}
	if !entered { // it reads inputs and weights only: one of them must wait
		i := slices.IndexFunc(n.Inputs, func(in string) bool { return c.values[in].rank() > 0 && c.values[in].float() })
		if i < 0 {
			return name
		}
		n.Inputs[i] = c.gate(level, n.Inputs[i])
	}
	for i, out := range n.Outputs {
		if out == "" {
			continue
		}
		fresh := c.fresh("again/" + out)
		if v, ok := c.values[out]; ok {
			c.values[fresh] = value{fresh, v.typ, v.shape}
		}
		c.names[segment][out], n.Outputs[i] = fresh, fresh
	}
	n.Name = n.Outputs[0]
	c.out = append(c.out, n)
	return c.names[segment][name]
}
