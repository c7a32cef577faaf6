package train

// DemoCNN is the network of the demo model: 28×28 grey images, two classes,
// 72,082 parameters. Its last convolution's map is 7×7, coarse but a map.
var DemoCNN = CNN{
	Channels: 1, Rows: 28, Columns: 28, Classes: 2,
	Stages: [][]int{{16, 16}, {32, 32}, {64}}, GroupSize: 4, Hidden: 64,
	Mean: 0.5719, Deviation: 0.1684, // of PneumoniaMNIST's training split
}

// DemoRecipe is how the demo model was trained. It was chosen among three on
// the validation split: erasing rectangles and a second convolution a stage
// gained most.
var DemoRecipe = Recipe{
	Epochs: 30, Batch: 64, Parts: 2, Rate: 2e-3, Warmup: 1, Optimizer: "adamw", Momentum: 0.9,
	Decay: 0.05, Average: 0.995, Seed: 1,
	Augmentation: Augmentation{Shift: 2, Rotation: 10, Zoom: 0.1, Contrast: 0.15, Brightness: 0.05, Erase: 0.3},
}

// For builds the network for a set: its size, classes and pixel moments take the
// place of those in c, and seed decides the weights.
func (c *CNN) For(s *Set, seed uint64) (*Network, error) {
	return c.ForRecipe(s, Recipe{Seed: seed})
}

// StandardAugmentation is that of DemoRecipe for images of any size: moved by up
// to a fourteenth of the smaller side, turned, zoomed, lit otherwise and partly
// hidden, as radiographs differ. It mirrors nothing: the heart is on the left.
func StandardAugmentation(rows, columns int) Augmentation {
	a := DemoRecipe.Augmentation
	a.Shift = float64(min(rows, columns)) / 14
	return a
}
