package onnx

var normalizations = merged(
	family{
		"BatchNormalization":           {7, batchNormalization},
		"InstanceNormalization":        {6, perChannel},
		"GroupNormalization":           {18, groupNormalization},
		"LayerNormalization":           {1, layerNormalization}, // of the standard since 17, ONNX Runtime's before
		"SimplifiedLayerNormalization": {1, layerNormalization}, // ONNX Runtime's name before RMSNormalization
		"RMSNormalization":             {23, layerNormalization},
	},
	each1(alongAxis, 1, "Softmax", "LogSoftmax", "Hardmax", "LpNormalization"),
	each1(keep, 1, "LRN", "MeanVarianceNormalization"),
)

// perChannel is the rule of normalizations whose parameters are as many as
// the input has channels.
func perChannel(o *op) error {
	if err := o.need(1); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, x.shape)
	if x.shape == nil {
		return nil
	}
	if len(x.shape) < 2 {
		return mistake("input %v: want 2 dimensions or more", x)
	}
	for i, p := range o.in[1:] {
		if p == nil || p.shape == nil {
			continue
		}
		if len(p.shape) != 1 {
			return mistake("parameter %d is %v: want a list", i+1, p)
		}
		if _, ok := same(p.shape[0], x.shape[1]); !ok {
			return mistake("parameter %d is %v for %v channels", i+1, p, x.shape[1])
		}
	}
	return nil
}

// batchNormalization also yields the running mean and variance in training
// mode (version 14 on; five outputs before).
func batchNormalization(o *op) error {
	if err := o.need(5); err != nil {
		return err
	}
	if err := perChannel(o); err != nil {
		return err
	}
	for i := 1; i < len(o.out); i++ {
		like := o.x(3 + (i-1)%2)
		o.set(i, like.typ, like.shape)
	}
	return nil
}

// groupNormalization has a scale and bias per group until version 20, per
// channel from 21 on.
func groupNormalization(o *op) error {
	if err := o.need(3); err != nil {
		return err
	}
	x := o.x(0)
	groups := o.Int("num_groups", 0)
	if groups < 1 {
		return mistake("num_groups %d", groups)
	}
	if x.rank() >= 2 && x.shape[1].Known() && x.shape[1].Value%groups != 0 {
		return mistake("%v channels in %d groups", x.shape[1], groups)
	}
	if o.version >= 21 {
		return perChannel(o)
	}
	o.set(0, x.typ, x.shape)
	return nil
}

// layerNormalization also yields mean and inverse standard deviation, with the
// normalized axes reduced to 1.
func layerNormalization(o *op) error {
	if err := o.need(2); err != nil {
		return err
	}
	x := o.x(0)
	o.set(0, x.typ, x.shape)
	statistics := DataType(o.Int("stash_type", int64(Float)))
	o.set(1, statistics, nil)
	o.set(2, statistics, nil)
	if x.shape == nil {
		return nil
	}
	first, err := axis(o.Int("axis", -1), len(x.shape))
	if err != nil {
		return err
	}
	if _, err := broadcast(x.shape, o.x(1).shape); err != nil {
		return err
	}
	reduced := append([]Dim{}, x.shape...)
	for i := first; i < len(reduced); i++ {
		reduced[i] = Dim{Value: 1}
	}
	o.set(1, statistics, reduced)
	o.set(2, statistics, reduced)
	return nil
}

// alongAxis is the rule of operators that keep the shape and need one axis.
func alongAxis(o *op) error {
	if err := keep(o); err != nil {
		return err
	}
	def := int64(-1)
	if o.version < 13 && o.OpType != "LpNormalization" {
		def = 1
	}
	x := o.x(0)
	if len(x.shape) == 0 {
		return nil
	}
	if o.version < 13 && o.Int("axis", def) == int64(len(x.shape)) {
		return nil // flattening at the end was legal
	}
	if len(x.shape) == 1 && o.Attribute("axis") == nil {
		return nil
	}
	_, err := axis(o.Int("axis", def), len(x.shape))
	return err
}
