package train

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// hardened perturbs the batches of a run, and its weights.
type hardened struct {
	spec      Hardening
	adversary *adversary // nil without a method
	room      *room
	masker    *masker  // nil without masks
	forward   *forward // answers of any images; nil where the adversary gives them
	streams   []*rand.Rand
	kept      [][]float32 // weights before they were perturbed
	measured  [][]float32 // statistics at the unperturbed weights
}

func newHardened(t *trainer) (h *hardened, err error) {
	c := t.config
	for _, in := range t.network.Model.Graph.Inputs {
		if in.Name == t.network.Input && in.Shape[0].Known() {
			return nil, fmt.Errorf("train: hardening: input %v takes batches of %d only: %w: export the model with an open batch size", in, in.Shape[0].Value, ErrHardening)
		}
	}
	h = &hardened{spec: *c.Hardening, streams: make([]*rand.Rand, c.Batch)}
	example := t.example()
	if h.spec.adversarial() {
		if h.adversary, err = newAdversary(h.spec, t.network, t.loss, example, t.outputs, c.Batch, c.Parts, c.Kernels); err != nil {
			return nil, err
		}
		h.room = h.adversary.newRoom()
	}
	if h.forward, err = newForward(t.network, t.loss, example, c.Parts); err != nil {
		h.close()
		return nil, err
	}
	if o := h.spec.Occlusion; o != nil {
		h.masker = &masker{spec: *o, channels: int(example[0]), rows: int(example[1]), columns: int(example[2]), classes: t.outputs}
		if o.WorstOf > 1 {
			h.masker.worst = h.forward
		}
	}
	if h.spec.AWP > 0 {
		h.kept, h.measured = zerosLike(t.state.Weights), zerosLike(t.state.Statistics)
	}
	return h, nil
}

func (h *hardened) close() {
	if h == nil {
		return
	}
	h.adversary.close()
	h.forward.close()
}

// losses perturbs the filled batch, if the run is hardened, computes its gradients
// and returns its loss.
func (t *trainer) losses(ctx context.Context, epoch int, at []int) (float64, error) {
	h := t.hardened
	if h == nil {
		return t.step.run(ctx)
	}
	now := float64(epoch)
	if steps := t.config.Train.Len() / t.config.Batch; steps > 0 {
		now += float64(t.state.Step) / float64(steps)
	}
	for b, i := range at {
		h.streams[b] = rand.New(rand.NewPCG(t.config.Seed^0xad7e5a12c0de, uint64(epoch)<<32|uint64(i)))
	}
	images := t.batch.inputs
	if t.batch.perturbed != nil {
		copy(t.batch.perturbed, images)
		images = t.batch.perturbed
	}
	if err := h.perturb(ctx, t, images, h.spec.eps(now)); err != nil {
		return 0, err
	}
	loss, err := t.step.run(ctx)
	if err == nil && h.spec.AWP > 0 && now >= h.spec.Ramp {
		err = h.atWorseWeights(ctx, t)
	}
	return loss, err
}

// perturb masks, adds noise to and perturbs the images of a batch in place.
func (h *hardened) perturb(ctx context.Context, t *trainer, images []float32, eps float64) error {
	variables := t.variables()
	chance := func(b int) *rand.Rand { return h.streams[b] }
	var laid [][]square
	var err error
	if h.masker != nil {
		if laid, err = h.masker.masks(ctx, images, t.batch.targets, variables, chance); err != nil {
			return err
		}
	}
	h.noise(images)
	a := h.adversary
	if a == nil || eps == 0 && h.spec.Norm != Patch {
		return nil
	}
	a.load(variables)
	if copy(a.targets, t.batch.targets); h.spec.Method == TRADES { // away from the clean answer
		copy(a.images, t.batch.inputs)
		if err := a.ask(ctx); err != nil {
			return err
		}
		a.loss.answers(a.logits, a.targets, a.width)
	}
	if err := h.openRooms(ctx, images, laid, eps, int(h.spec.Clean*float64(a.size))); err != nil {
		return err
	}
	if err := a.climb(ctx, h.room, h.spec.Steps, chance); err != nil {
		return err
	}
	copy(images, a.images)
	return nil
}

// openRooms says what the adversary may change: nothing of the first images, nor
// what a mask hides.
func (h *hardened) openRooms(ctx context.Context, images []float32, laid [][]square, eps float64, clean int) error {
	a := h.adversary
	per := int(product(a.shape))
	copy(h.room.centre, images)
	h.room.eps = eps
	a.each(func(b int) { h.room.open(&h.spec, b, per, eps) })
	if h.spec.Norm == Patch {
		if err := a.place(ctx, h.room); err != nil {
			return err
		}
	}
	a.each(func(b int) {
		if b < clean {
			h.room.shut(b, per)
		}
		if laid == nil {
			return
		}
		for _, s := range laid[b] {
			h.room.shutSquare(s, b, int(a.shape[0]), int(a.shape[1]), int(a.shape[2]))
		}
	})
	return nil
}

// noise adds the noise of each image's stream.
func (h *hardened) noise(images []float32) {
	if h.spec.Noise == 0 {
		return
	}
	per := len(images) / len(h.streams)
	for b, rng := range h.streams {
		for i := b * per; i < (b+1)*per; i++ {
			images[i] += float32(h.spec.Noise * rng.NormFloat64())
		}
	}
}

// atWorseWeights computes the batch's gradients where each kernel and matrix is
// moved along its own gradient, by AWP of its length (Wu et al. 2020, equations
// 7 and 8), and puts the weights back. Statistics stay those of the weights as
// they are.
func (h *hardened) atWorseWeights(ctx context.Context, t *trainer) error {
	for i, s := range t.measured {
		copy(h.measured[i], s)
	}
	for i, w := range t.state.Weights {
		copy(h.kept[i], w)
		if t.decay[i] {
			worsen(w, t.gradient[i], h.spec.AWP)
		}
	}
	_, err := t.step.run(ctx)
	for i, w := range h.kept { // also when the run was stopped
		copy(t.state.Weights[i], w)
	}
	for i, s := range h.measured {
		copy(t.measured[i], s)
	}
	return err
}

// worsen moves weights along their gradient by a share of their length.
func worsen(w, g []float32, share float64) {
	long, steep := 0.0, 0.0
	for j, v := range w {
		long += float64(v) * float64(v)
		steep += float64(g[j]) * float64(g[j])
	}
	if steep == 0 {
		return
	}
	size := share * math.Sqrt(long/steep)
	for j := range w {
		w[j] += float32(size * float64(g[j]))
	}
}

// Of the validation images, the adversary is at least this thorough.
const (
	validationSteps = 10
	validationMasks = 8
)

// resists is Epoch.Robust: of every validation image the worst of some masks,
// one draw of noise and one climb of the adversary, all the same in every epoch.
func (h *hardened) resists(ctx context.Context, t *trainer, variables [][]float32) (float64, error) {
	s := t.config.Validation
	n, per := len(h.streams), len(t.batch.inputs)/len(h.streams)
	images, targets := make([]float32, n*per), make([]float32, n*t.outputs)
	chance := func(b int) *rand.Rand { return h.streams[b] }
	right := 0.0
	for from := 0; from < s.Len(); from += n {
		count := min(n, s.Len()-from)
		clear(images)
		clear(targets)
		for b := range n {
			h.streams[b] = rand.New(rand.NewPCG(t.config.Seed^0x7e575e7, uint64(from+b)))
			if b < count {
				s.Fill(images[b*per:(b+1)*per], from+b)
				t.aim(targets[b*t.outputs:(b+1)*t.outputs], s, from+b)
			}
		}
		var laid [][]square
		if h.masker != nil {
			m := *h.masker
			m.all, m.worst, m.spec.WorstOf = true, h.forward, max(validationMasks, m.spec.WorstOf)
			var err error
			if laid, err = m.masks(ctx, images, targets, variables, chance); err != nil {
				return 0, err
			}
		}
		h.noise(images)
		logits, err := h.worst(ctx, images, targets, variables, laid)
		if err != nil {
			return 0, err
		}
		for b := range count {
			right += t.told(s, from+b, logits[b*t.outputs:(b+1)*t.outputs])
		}
	}
	return right / float64(s.Len()), nil
}

// worst are the logits where the adversary arrives, or of the images themselves.
func (h *hardened) worst(ctx context.Context, images, targets []float32, variables [][]float32, laid [][]square) ([]float32, error) {
	a := h.adversary
	if a == nil {
		return h.forward.run(ctx, images, variables)
	}
	a.load(variables)
	copy(a.targets, targets)
	if err := h.openRooms(ctx, images, laid, h.spec.Eps, 0); err != nil {
		return nil, err
	}
	chance := func(b int) *rand.Rand { return h.streams[b] }
	if err := a.climb(ctx, h.room, max(validationSteps, h.spec.Steps), chance); err != nil {
		return nil, err
	}
	err := a.ask(ctx)
	return a.logits, err
}

// aim writes an example's labels as they are.
func (t *trainer) aim(target []float32, s *Set, i int) {
	for k := range target {
		class := k
		if t.outputs == 1 && !s.Multi() { // one logit, of class 1
			class = 1
		}
		if s.Has(i, class) {
			target[k] = 1
		}
	}
}

// told is 1 if logits tell an example's class, or the share of its labels that
// they tell at one half.
func (t *trainer) told(s *Set, i int, z []float32) float64 {
	if !s.Multi() {
		row := make([]float64, 0, len(z)+1)
		if len(z) == 1 {
			row = append(row, 0)
		}
		for _, v := range z {
			row = append(row, float64(v))
		}
		if slices.Index(row, slices.Max(row)) == s.Labels[i] {
			return 1
		}
		return 0
	}
	right := 0
	for k, v := range z {
		if (v >= 0) == s.Has(i, k) {
			right++
		}
	}
	return float64(right) / float64(len(z))
}
