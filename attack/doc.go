// Package attack looks for small changes of an image that turn a model's
// answer: the question a hospital must put to a model before a patient does.
//
// A [Target] is what is attacked: it answers for a batch of examples in pixel
// space and says how the answer changes with each pixel. [Open] makes one of any
// ONNX file or package, with the preparation of the package's manifest inside
// the path that is differentiated, so that a perturbation is one of the image
// and not of a normalised tensor. Others may be put around it: [Expectation]
// averages over a target that answers by chance, and a target that knows guards
// adds their terms to the gradient and says what they would hold.
//
//	target, err := attack.Open(graph, attack.NetworkOptions{Shape: []int64{1, 28, 28}})
//	if err != nil { … }
//	defer target.Close()
//	result, err := attack.Run(ctx, target, attack.APGDCE, pixels, labels, attack.Options{
//		Norm: attack.Linf, Eps: 8.0 / 255, Seed: 1,
//	})
//	fmt.Println(result.Accuracy(), result.RobustAccuracy())
//
// What comes back is within the bound and the pixel range as float32 numbers,
// not up to rounding, and was judged by the target on exactly these numbers.
// The same seed gives the same images.
//
// The attacks are one table ([Attacks]), a file each, with their source and
// their technique in MITRE ATLAS. The package reads no files and knows nothing
// of data sets; package attack/job does.
package attack
