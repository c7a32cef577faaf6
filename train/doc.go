// Package train fits ONNX models to labelled images and says how good they are.
//
//	set, err := train.LoadMedMNIST("pneumoniamnist.npz", "train", train.Limits{})
//	network, err := train.CNN{…}.Build(rng)
//	result, err := train.Run(ctx, train.Config{
//		Network: network, Train: set, Validation: val,
//		Epochs: 30, Batch: 64, Rate: 2e-3, Seed: 1,
//	}, nil)
//	err = result.Model.Save("model.onnx")
//
// There is no training framework underneath: the model is an inference graph,
// onnx/autodiff derives its gradient graph, the engine runs that, and the
// optimisers here move the weights. A batch is split into a fixed number of
// parts that run side by side in one-thread sessions; their gradients are
// summed in a fixed order. So the same seed gives the same weights bit for bit
// on the same processor type, however many cores run the parts.
//
// Choices are made on the validation set only: the epoch, the temperature and
// the operating point. AUC comes with DeLong's interval.
package train
