package onnx

// recurrent are the cells that walk along a sequence.
var recurrent = family{
	"RNN":  {7, recurrence},
	"GRU":  {7, recurrence},
	"LSTM": {7, recurrence},
}

// recurrence: from X [T, N, input] (or, since version 14 with layout 1, [N, T,
// input]) come Y [T, directions, N, hidden] ([N, T, directions, hidden]) and
// the last state, for LSTM also the last cell, [directions, N, hidden] ([N,
// directions, hidden]).
func recurrence(o *op) error {
	if err := o.need(3); err != nil {
		return err
	}
	x, w, r := o.x(0), o.x(1), o.x(2)
	for _, p := range []*fact{x, w, r} {
		if p.shape != nil && len(p.shape) != 3 {
			return mistake("input or weights %v: want 3 dimensions", p)
		}
	}
	gates := map[string]int64{"RNN": 1, "GRU": 3, "LSTM": 4}[o.OpType]
	hidden := anyDim
	if h := o.Int("hidden_size", 0); h > 0 {
		hidden = Dim{Value: h}
	} else if r.shape != nil {
		hidden = r.shape[2]
	}
	directions := Dim{Value: 1}
	switch d := o.Text("direction", "forward"); d {
	case "forward", "reverse":
	case "bidirectional":
		directions.Value = 2
	default:
		return mistake("direction %q", d)
	}
	if hidden.Known() && hidden.Value > MaxElements {
		return mistake("hidden_size %d", hidden.Value)
	}
	if w.shape != nil {
		if _, ok := same(w.shape[0], directions); !ok {
			return mistake("weights %v for %v directions", w, directions)
		}
		if hidden.Known() && w.shape[1].Known() && w.shape[1].Value != gates*hidden.Value {
			return mistake("weights %v for %d gates of %v", w, gates, hidden)
		}
		if x.shape != nil {
			if _, ok := same(x.shape[2], w.shape[2]); !ok {
				return mistake("weights %v for the input %v", w, x)
			}
		}
	}
	steps, batch := anyDim, anyDim
	if x.shape != nil {
		steps, batch = x.shape[0], x.shape[1]
	}
	all, last := []Dim{steps, directions, batch, hidden}, []Dim{directions, batch, hidden}
	if o.Int("layout", 0) == 1 {
		steps, batch = batch, steps
		all, last = []Dim{batch, steps, directions, hidden}, []Dim{batch, directions, hidden}
	}
	o.set(0, x.typ, all)
	o.set(1, x.typ, last)
	o.set(2, x.typ, last)
	return nil
}
