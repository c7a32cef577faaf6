// Package guard looks at an input of a model and says how unusual it is beside
// the inputs that the model was validated on, before a person relies on the
// answer.
//
// Several guards look at different things (table in [Guards]): what the inner
// layers make of the image, its texture and noise, its neighbours among the
// validation images, traces of a computed perturbation or a pasted patch. Each
// turns a score into a conformal p-value; a combination, calibrated by itself on
// images that nothing else was fitted on, decides about the alarm. As long as
// new images are exchangeable with those (same scanners, same patients, same
// preparation), the share of alarms among them is at most the one promised,
// whatever the guards are worth (Vovk, Gammerman and Shafer 2005, section 4.1;
// Papadopoulos et al. 2002 for the split form).
//
// Everything is fitted once per model, on images that the model was not trained
// on, and kept in one file that names the model by digest:
//
//	statistics, report, err := guard.Fit(ctx, network, examples, guard.FitOptions{Subject: digest})
//	file, err := statistics.Marshal()
//
// At run time one engine run gives the answer and what the cheap guards need.
// Only the few per cent of cases that these find unusual get a second look,
// which costs a gradient and a small batch:
//
//	g, err := guard.Open(network.Model, statistics, guard.Options{Subject: digest})
//	look, err := g.Run(ctx, input)     // look.Output is the model's answer
//	results, err := g.Judge(ctx, look) // one vigie.GuardResult a guard, the combination last
//
// The package reads no files, keeps no state between cases but what a [Memory]
// is given, and knows nothing of DICOM or of stores. It cannot stop an attacker
// who knows the guards and optimises against them.
package guard
