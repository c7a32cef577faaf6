// Package explain shows on which parts of an input a model's answer rests, and
// says when a map of them shows nothing. It needs the ONNX graph alone:
// onnx/autodiff supplies gradients, engine runs both.
//
//	e, err := explain.New(explain.GradCAM, model, explain.Options{})
//	if err != nil { … }
//	defer e.Close()
//	m, err := e.Explain(ctx, engine.Float32([]int64{1, 1, 28, 28}, pixels), 1)
//	// m.Values: 28×28 values in 0..1; m.Logits: the answer explained
//
// Every method of the table (Methods) has that one interface. They answer
// different questions, which Map.Kind names:
//
//   - Relevance, where evidence for the class lies: Grad-CAM, Grad-CAM++,
//     attention rollout.
//   - Contribution, how much of the score each place makes up, compared with an
//     input that stands for "not there" (Options.Background, which has to be
//     chosen: there is no neutral one): integrated gradients, GradientSHAP,
//     KernelSHAP, LIME, occlusion. Where the contributions ought to add up to
//     the difference of two answers, Map.Additive says by how much they miss it.
//   - Sensitivity, how fast the score changes with each value: gradient,
//     SmoothGrad.
//
// A map is a hint where to look, not evidence: it shows what the model used, not
// what is true, and some maps do not even show that. So a map can be put to the
// test before it is believed:
//
//	check, err := explain.Check(ctx, explain.GradCAM, model, input, 1, options, explain.CheckOptions{})
//	// check.Verdict.Explains; check.Verdict.Text: why not, in English and French
//
// Check removes and restores what the map marks and compares the effect with
// that of random maps of the same grain (Petsiuk et al. 2018), and randomises
// the model's weights, after which the map of a method that looks at the model
// must differ (Adebayo et al. 2018). Where maps are made all day, the two are
// asked apart: Survey says once what a method is worth on a model, over many
// inputs, and a Tester measures each map as it is made, before a deadline.
//
// Inputs are images [1, channels, rows, columns] (or channels last), sequences
// [1, channels, length] and tables [1, features]; a map has one value for each
// place: pixel, position or feature. Randomness comes from Options.Seed alone,
// so that an explanation can be made again. The package knows nothing of
// medicine, files or state.
package explain
