// Package studies reads labelled studies from disk as sets that package train
// learns from: MedMNIST's .npz, folders of DICOM, PNG or JPEG, and tables.
//
//	data, err := studies.Open(ctx, studies.Options{
//		Data: "radiographs", Labels: "labels.csv", Rows: 224, Columns: 224, Seed: 1,
//	})
//	fmt.Println(data.Train.Counts(), data.Validation.Counts())
//
// A DICOM image is what a person would see of it (medical/dicom's luminance),
// and every image is resampled as a case's is when the model serves (package
// model's Prepare), so that a model meets in training what it will meet later.
//
// Data that come divided stay divided; otherwise they are split by patient and
// class, the same way for the same seed. Whatever would spoil the result is an
// error here, before training starts: a label outside the set, a patient on both
// sides of a split, a file that is not an image. Files are opened within the
// data folder only, whatever a list of labels says.
package studies
