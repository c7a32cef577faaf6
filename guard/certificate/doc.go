// Package certificate says what of a model's answer is proven, whatever an
// attacker knows: that no small square of the image decides it (double masking,
// Xiang, Mahloujifar and Mittal 2022, PatchCleanser), and that no change of a
// bounded Euclidean length turns it (randomised smoothing, Cohen, Rosenfeld and
// Kolter 2019).
//
// Both run the model many times on changed copies of one input, and need
// nothing else of it:
//
//	c, err := certificate.Open(certificate.Model{Graph: graph, …}, certificate.Options{
//		Patch: &certificate.Patch{Masks: 3, Rounds: 2},
//	})
//	defer c.Close()
//	proof, err := c.Squares(ctx, input, answer, certificate.Size{Rows: 3, Columns: 3}, certificate.Whole(28, 28))
//
// What is proven by what, and under which conditions, is written in
// docs/certificates.md; the tests hold it against brute force and against an
// independent implementation. The package reads no files, keeps no state, and
// knows nothing of medicine.
package certificate
