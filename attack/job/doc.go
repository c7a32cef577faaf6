// Package job is an attack as the command line asks for it: it opens a model and
// labelled images, runs an attack of package attack at each bound, replays what
// it found through the model's own path, and writes the figures, the images and
// the report.
//
//	r, err := job.Options{Model: "network.onnx", Data: probe.Test{…}, Attack: attack.PGD, Eps: []job.Eps{{Text: "8/255", Value: 8.0 / 255}}}.Run(ctx)
//
// Nothing counts as fooled that is not so in the replay: the manifest's
// preparation in Go and the graph as it was delivered, without anything that the
// attack put around it.
package job
