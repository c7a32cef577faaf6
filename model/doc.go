// Package model is the model package: a folder that holds everything needed to
// run one model on the images it was made for, and to say what it is.
//
//	manifest.yaml     intended use, accepted images, input, output, labels, rules
//	model.onnx        the graph; external data is refused
//	calibration.json  the temperature that makes its probabilities mean what they say
//	card.md           the model card, for people
//	training.json     how it was trained (optional)
//	digest            SHA-256 of every other file, as sha256sum writes it
//
// The digest of the digest file is the [vigie.ModelDigest]: two packages with
// the same one are the same to the byte.
//
//	pkg, err := model.Open("models/chest-pneumonia-28")     // verified and checked against its graph
//	reasons := pkg.Manifest.Check(file.DataSet)             // is this an image it reads?
//	input, err := pkg.Manifest.Prepare(luminance)           // pixels to tensor
//	predictions, err := pkg.Predictions(logits)             // tensor to calibrated probabilities
//	reasons = append(reasons, pkg.Manifest.Review(predictions, file.DataSet)...)
//
// Nothing here runs the graph: package engine does. Nothing here signs the
// package either: whoever deploys it pins the digest.
package model
