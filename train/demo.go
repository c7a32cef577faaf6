package train

// DemoCNN is the network of the demo model: 28×28 grey images, two classes.
var DemoCNN = CNN{
	Channels: 1, Rows: 28, Columns: 28, Classes: 2,
	Stages: [][]int{{16}, {32}, {64}}, GroupSize: 4, Hidden: 64,
	Mean: 0.5719, Deviation: 0.1684, // of PneumoniaMNIST's training split
}
