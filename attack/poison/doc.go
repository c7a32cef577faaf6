// Package poison looks for poison in labelled images before a model learns from
// them, and for what it left in a model.
//
//	r, err := poison.Audit(ctx, &poison.Cases{Set: set, Splits: splits, Sites: sites}, poison.Options{Seed: 1})
//	for _, f := range r.Findings { fmt.Println(f.Kind, f.Sentence) }
//
//	found, err := poison.Search(ctx, target, pixels, labels, class, poison.SearchOptions{Seed: 1})
//
// Audit finds labels that contradict their images, images that are there twice,
// parts that were copied or drawn, marks that come with one label, and what sets
// one contributor apart. Search finds the smallest change that turns a model's
// answer to one class. Both only point: nothing is deleted, and what they do not
// find may still be there.
//
// It trains no network; package job does, where an audit wants one.
package poison

import "errors"

// ErrData says that the images cannot be audited as they are; the message says
// what would do.
var ErrData = errors.New("cannot be audited")
