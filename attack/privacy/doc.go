// Package privacy asks what a released model, or a gradient that leaves a
// hospital, gives away of the people it was trained on.
//
// Five questions, a file or two each:
//
//   - membership ([LiRAOnline], [LiRAOffline], [RMIA], [Calibrated], [Loss]): was
//     this person in the training set? [Compare] gives the figures, at the low
//     false-positive rates that matter; [Blind] is the classifier that never saw
//     the model, which every such figure must beat; [Limit] is what differential
//     privacy allows.
//   - attribute inference ([GuessAttribute]): what does the model add to guessing
//     a person's missing value from the others?
//   - inversion of outputs ([Invert]): which image does the model take for a class?
//   - inversion of gradients ([Leak], [Linear], [Imprint], [Match]): which images
//     was a gradient computed on? [Count] counts hits honestly.
//   - extraction ([Agreement], [MostUncertain], [Surrogate]): how many queries buy
//     a copy of the model?
//
// For example, how much a gradient says of its batch:
//
//	leak, err := privacy.NewLeak(graph, privacy.LeakOptions{Input: "image", Logits: "logits", Batch: 8})
//	defer leak.Close()
//	gradients, err := leak.Gradients(ctx, images, labels)
//	found := privacy.Linear(gradients[0], gradients[1], 0, 1) // of a linear first layer
//	count, err := privacy.Count(found, images, never, candidates, privacy.Matching{Rows: 28, Columns: 28, Threshold: 0.9})
//
// Nothing here counts without what chance gives: every figure has beside it what
// a non-member, an image that was not in the batch, or no model at all would give.
// Package train is used for its intervals and optimisers; package
// attack/privacy/job reads data, trains shadow models and writes reports.
package privacy
