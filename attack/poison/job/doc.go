// Package job is an audit of training data, and a search for triggers in a model,
// as the command line asks for them: it reads the data, trains a small network
// where one is wanted, runs package poison, and writes findings as text, JSON, CSV
// and one HTML page with the images.
//
//	r, err := job.Audit{Data: studies.Options{Data: "train.npz"}, Seed: 1}.Run(ctx)
//	err = r.Write(os.Stdout)
package job
