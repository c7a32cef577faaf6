// Package harden is adversarial hardening as the command line asks for it: a
// network, from a package, an ONNX file or trained first, is trained to withstand
// perturbations, masks or noise; candidates between the network before and the
// hardened one are attacked with package attack, and the one is kept that
// withstands most of those that keep the clean AUC within a budget.
//
//	o := harden.Default()
//	o.Model, o.Job.Out = "models/chest-pneumonia-28", "hardened"
//	o.Job.Data.Data = "pneumoniamnist.npz"
//	o.Hardening = train.Hardening{Method: train.PGDAT, Eps: 8.0 / 255}
//	report, err := o.Run(ctx, harden.Progress{})
//
// What trains is package train; a run that was killed goes on from its checkpoint
// and ends with the same weights. Choices are made on the validation split.
package harden
