// Package job is a privacy attack as the command line asks for it: it reads data,
// trains shadow models and copies, asks package privacy, and writes the figures
// and the report.
//
//	r, err := job.Membership{Common: job.Common{Model: "model.onnx", Data: studies.Options{Data: "data.npz"}}, Members: "train", NonMembers: "val", Shadows: 32}.Run(ctx)
//	err = r.Write(os.Stdout)
//
// What can be found wrong is found before anything is trained or attacked.
package job
