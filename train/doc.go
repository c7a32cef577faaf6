// Package train fits ONNX models to labelled examples and says how good they are.
//
//	network, err := train.Import(model, train.ImportOptions{Freeze: []string{"layer1.*"}})
//	parts, err := train.Split(set, 1, 0.8, 0.2) // by patient and class
//	result, err := train.Run(ctx, train.Config{
//		Network: network, Train: parts[0], Validation: parts[1],
//		Recipe: train.Recipe{Epochs: 30, Batch: 64, Rate: 2e-3, Seed: 1},
//	}, nil)
//	err = result.Model.Save("model.onnx")
//
// There is no training framework underneath: the model is an inference graph,
// onnx/autodiff derives its gradient graph, the engine runs that, and the
// optimisers here move the weights. So whatever exporter wrote the graph, it can
// be trained further: Import finds its weights, ReplaceHead gives it other
// classes, and batch normalisation uses the batch's statistics while it trains
// and running averages of them afterwards.
//
// A batch is split into a fixed number of parts that run side by side in
// one-thread sessions; their gradients are summed in a fixed order. So the same
// seed gives the same weights bit for bit on the same processor type, however
// many cores run the parts, and a run that was killed ends with the weights of
// one that was not. How one batch's gradient is computed is behind one seam,
// step.go.
//
// Examples are a Set: images, or anything of one shape; classes that exclude
// each other, or labels that do not. Package train/studies reads sets from disk,
// train/job is the whole way from a folder to a model.
//
// Choices are made on the validation set only: the epoch, the temperature and
// the operating points. AUC comes with DeLong's interval and the bootstrap's.
package train
