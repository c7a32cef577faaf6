// Package job is a training run from the command line's point of view: data of
// any kind that train/studies reads, a network from the zoo, from an ONNX file or
// the demo's, and a folder of results.
//
//	o := job.Default()
//	o.Network, o.Out = "resnet18", "model.onnx"
//	o.Data = studies.Options{Data: "radiographs", Labels: "labels.csv", Rows: 224, Columns: 224}
//	report, err := o.Run(ctx, job.Progress{})
//
// Everything that can be found wrong before the first step is found by then.
// Settings come from flags, the environment and a file; the earlier wins.
package job
