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

// Demo is the job that `make model` runs: it rebuilds the committed demo model
// from PneumoniaMNIST's training split.
func Demo(data, out string) Fit {
	return Fit{Data: data, Out: out, Network: DemoCNN, Recipe: DemoRecipe}
}
