package privacy

import (
	"fmt"
	"math"
	"slices"

	"github.com/vigie/vigie/train"
)

// Matching says when an image counts as reconstructed.
type Matching struct {
	Rows, Columns int
	// Threshold of SSIM. On radiographs of one kind 0.5 proves nothing: any image
	// resembles some other so much.
	Threshold float64
}

// Hits count reconstructions honestly. A hit is an image of the batch whose best
// match among what was found is at least as similar as the threshold, and is
// identified: its nearest neighbour among all candidates is that very image. What
// chance gives stands beside it.
type Hits struct {
	Trials int `json:"trials"` // images that were in a batch
	Hits   int `json:"hits"`
	// Similar are those that pass the threshold, whether identified or not.
	Similar int `json:"similar"`

	// Never is the same of images that were in no batch: what of the hits is chance.
	NeverTrials  int `json:"never_trials"`
	NeverHits    int `json:"never_hits"`
	NeverSimilar int `json:"never_similar"`

	// MeanSimilar is how many images of the batch the mean of all candidates passes
	// for, NearestSimilar the nearest image that was in no batch: what somebody who
	// knows the kind of image, and no gradient, could show.
	MeanSimilar    int `json:"mean_similar"`
	NearestSimilar int `json:"nearest_similar"`

	SSIM []float64 `json:"-"` // of each trial's best match; -1 where nothing was found
	Best []int     `json:"-"` // its position among what was found; -1: nothing
}

// Rate is the share of hits with Clopper and Pearson's interval.
func (h *Hits) Rate() train.Interval { return ClopperPearson(h.Hits, h.Trials) }

// Add adds the counts of another batch.
func (h *Hits) Add(o *Hits) {
	h.Trials, h.Hits, h.Similar = h.Trials+o.Trials, h.Hits+o.Hits, h.Similar+o.Similar
	h.NeverTrials, h.NeverHits, h.NeverSimilar = h.NeverTrials+o.NeverTrials, h.NeverHits+o.NeverHits, h.NeverSimilar+o.NeverSimilar
	h.MeanSimilar, h.NearestSimilar = h.MeanSimilar+o.MeanSimilar, h.NearestSimilar+o.NearestSimilar
	h.SSIM, h.Best = append(h.SSIM, o.SSIM...), append(h.Best, o.Best...)
}

// Count compares what an attack found with the images that were in the batch, with
// as many as one likes that never were, and with all candidates, which hold both.
// Images are [channels, rows, columns] of values 0..1; the order of what was found
// means nothing.
func Count(found, batch, never, candidates [][]float32, m Matching) (*Hits, error) {
	if len(batch) == 0 || len(candidates) < len(batch) || !(m.Threshold > 0 && m.Threshold <= 1) {
		return nil, fmt.Errorf("privacy: counting reconstructions of %d images among %d candidates at a similarity of %v: %w", len(batch), len(candidates), m.Threshold, ErrAsk)
	}
	for _, group := range [][][]float32{found, batch, never, candidates} {
		for _, image := range group {
			if len(image) != len(batch[0]) {
				return nil, fmt.Errorf("privacy: counting reconstructions: images of %d and %d pixels: %w", len(image), len(batch[0]), ErrAsk)
			}
		}
	}
	h := &Hits{Trials: len(batch), NeverTrials: len(never)}
	one := func(image []float32) (similarity float64, at int, hit bool, err error) {
		if at = nearest(found, image); at < 0 {
			return -1, -1, false, nil
		}
		if similarity, err = SSIM(found[at], image, m.Rows, m.Columns); err != nil || similarity < m.Threshold {
			return similarity, at, false, err
		}
		// Candidates of equal content are the same image.
		return similarity, at, slices.Equal(candidates[nearest(candidates, found[at])], image), nil
	}
	mean := Mean(candidates)
	for _, image := range batch {
		similarity, at, hit, err := one(image)
		if err != nil {
			return nil, err
		}
		h.SSIM, h.Best = append(h.SSIM, similarity), append(h.Best, at)
		if similarity >= m.Threshold {
			h.Similar++
		}
		if hit {
			h.Hits++
		}
		if similarity, err = SSIM(mean, image, m.Rows, m.Columns); err != nil {
			return nil, err
		}
		if similarity >= m.Threshold {
			h.MeanSimilar++
		}
		if at := nearest(never, image); at >= 0 {
			if similarity, err = SSIM(never[at], image, m.Rows, m.Columns); err != nil {
				return nil, err
			}
			if similarity >= m.Threshold {
				h.NearestSimilar++
			}
		}
	}
	for _, image := range never {
		similarity, _, hit, err := one(image)
		if err != nil {
			return nil, err
		}
		if similarity >= m.Threshold {
			h.NeverSimilar++
		}
		if hit {
			h.NeverHits++
		}
	}
	return h, nil
}

// nearest is the position of the image that is least different; -1 of none.
func nearest(among [][]float32, image []float32) int {
	at, least := -1, math.Inf(1)
	for i, a := range among {
		if d := within(a, image, least); d < least {
			at, least = i, d
		}
	}
	return at
}

// Mean is the mean of images of one size.
func Mean(images [][]float32) []float32 {
	if len(images) == 0 {
		return nil
	}
	sum := make([]float64, len(images[0]))
	for _, image := range images {
		for i, v := range image {
			sum[i] += float64(v)
		}
	}
	out := make([]float32, len(sum))
	for i, v := range sum {
		out[i] = float32(v / float64(len(images)))
	}
	return out
}
