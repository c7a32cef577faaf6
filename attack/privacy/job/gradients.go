package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/vigie/vigie/attack/privacy"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// The ways of inverting gradients.
const (
	MethodLinear   = "linear"
	MethodImprint  = "imprint"
	MethodOptimise = "optimise"
)

var gradientMethods = map[string]string{
	MethodLinear:   "arithmetic on a linear first layer, by a server that keeps to the protocol (Phong et al. 2018)",
	MethodImprint:  "a layer that a malicious server puts in front (Fowl et al. 2022)",
	MethodOptimise: "search of images with the same gradient (Geiping et al. 2020)",
}

// Gradients asks which images a gradient was computed on.
type Gradients struct {
	Common
	Split    string // whose images are in the batches [train]
	Aux      string // split that the attacker has: brightness of the kind of image [val]
	Method   string
	Batch    int // images of an update
	Batches  int
	Sites    int // whose updates are added before anybody sees them; 0 is 1
	Bins     int // of the imprint [512]
	Steps    int // of the search
	Restarts int
	TV       float64
	Clip     float64 // of each image's gradient; 0: none
	Noise    float64 // in units of the clipping norm
	Limit    float64 // SSIM from which on an image counts as reconstructed [0.9]
}

// GradientsReport is what it found.
type GradientsReport struct {
	Head
	Method    string  `json:"method"`
	About     string  `json:"about"`
	Batch     int     `json:"batch"`
	Batches   int     `json:"batches"`
	Sites     int     `json:"sites"`
	Bins      int     `json:"bins,omitempty"`
	Clip      float64 `json:"clip,omitempty"`
	Noise     float64 `json:"noise_multiplier,omitempty"`
	Threshold float64 `json:"ssim_threshold"`
	// Candidates are the images among which one is identified.
	Candidates int `json:"candidates"`
	privacy.Hits
	Rate         train.Interval `json:"hit_rate"` // Clopper-Pearson, like the others
	NeverRate    train.Interval `json:"never_hit_rate"`
	SimilarRate  train.Interval `json:"similar_rate"`
	NeverSimilar train.Interval `json:"never_similar_rate"`
	MedianSSIM   float64        `json:"median_ssim"`
	Mismatch     float64        `json:"mismatch,omitempty"` // of the search, mean over the batches

	shape []int64
	shown [][2][]float32 // images of the first batch, and their best match
	label []string
}

// Run asks.
func (o Gradients) Run(ctx context.Context) (*GradientsReport, error) {
	start := time.Now()
	if err := o.check(); err != nil {
		return nil, err
	}
	v, err := o.victim(ctx)
	if err != nil {
		return nil, err
	}
	defer v.leak.Close()
	r := &GradientsReport{Head: o.head("gradients", v.subject, inversionTechnique), Method: o.Method, About: gradientMethods[o.Method], Batch: o.Batch, Batches: o.Batches,
		Sites: o.Sites, Clip: o.Clip, Noise: o.Noise, Threshold: o.Limit, Candidates: len(v.candidates), shape: v.set.Example()}
	if o.Method == MethodImprint {
		r.Bins = o.Bins
	}
	r.Notes = append(r.Notes, "gradients of the model as it is in the file: one that is not trained yet gives away more or less")
	per := o.Batch * o.Sites
	if o.Clip > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("each image's gradient clipped to %g, noise of %g times that in every weight of the sum", o.Clip, o.Noise))
	}
	for b := range o.Batches {
		at := v.order[b*per : (b+1)*per]
		var never [][]float32
		for k := range per { // as many that are in no batch
			never = append(never, v.images[v.order[o.Batches*per+(b*per+k)%(len(v.order)-o.Batches*per)]])
		}
		observed, labels, err := o.observe(ctx, v, at, b)
		if err != nil {
			return nil, err
		}
		found, mismatch, err := o.invert(ctx, v, observed, labels, b)
		if err != nil {
			return nil, err
		}
		r.Mismatch += mismatch / float64(o.Batches)
		batch := pick(v.images, at)
		hits, err := privacy.Count(found, batch, never, v.candidates, privacy.Matching{Rows: v.set.Rows, Columns: v.set.Columns, Threshold: o.Limit})
		if err != nil {
			return nil, err
		}
		for i := 0; i < len(batch) && len(r.shown) < 8; i++ {
			if hits.Best[i] >= 0 {
				r.shown = append(r.shown, [2][]float32{batch[i], found[hits.Best[i]]})
				r.label = append(r.label, fmt.Sprintf("SSIM %.2f", hits.SSIM[i]))
			}
		}
		r.Add(hits)
		o.Progress("inverting gradients", float64(b+1)/float64(o.Batches))
	}
	r.figures()
	return r, o.finish(&r.Head, r, start)
}

func (o *Gradients) check() error {
	if err := o.begin(); err != nil {
		return err
	}
	if _, known := gradientMethods[o.Method]; !known {
		return fmt.Errorf("job: method %q: %w: want %s, %s or %s", o.Method, ErrAsk, MethodLinear, MethodImprint, MethodOptimise)
	}
	if o.Split == "" {
		o.Split = studies.Train
	}
	if o.Aux == "" {
		o.Aux = studies.Validation
	}
	o.Sites = max(1, o.Sites)
	if o.Bins == 0 {
		o.Bins = 512
	}
	if o.Limit == 0 {
		o.Limit = 0.9
	}
	switch {
	case o.Model == "":
		return fmt.Errorf("job: %w: name a model", ErrAsk)
	case o.Batch < 1 || o.Batch > 1<<12 || o.Batches < 1 || o.Batches > 1<<20 || o.Sites > 1<<12:
		return fmt.Errorf("job: %d batches of %d images of %d sites: %w: want 1 or more of each", o.Batches, o.Batch, o.Sites, ErrAsk)
	case !(o.Limit > 0 && o.Limit <= 1):
		return fmt.Errorf("job: a similarity of %v: %w: want more than 0, at most 1", o.Limit, ErrAsk)
	case !(o.Clip >= 0) || !(o.Noise >= 0) || o.Noise > 0 && o.Clip == 0:
		return fmt.Errorf("job: clipping to %v with noise of %v: %w: noise is in units of the clipping norm, which must then be more than 0", o.Clip, o.Noise, ErrAsk)
	case o.Bins < 2 || o.Bins > 1<<14:
		return fmt.Errorf("job: %d bins: %w: want 2 to %d", o.Bins, ErrAsk, 1<<14)
	}
	return nil
}

// victim is a site that sends gradients of a model.
type victim struct {
	subject    *subject
	set        *train.Set
	images     [][]float32 // of the split
	candidates [][]float32 // they, and the attacker's own
	order      []int       // of the images, shuffled: those of the batches first
	leak       *privacy.Leak
	layer      *privacy.Layer
	imprint    *privacy.Imprint
}

// trainable opens a model as a site would train it, and the images of the site's
// split and of the attacker's.
func (c *Common) trainable(ctx context.Context, v *victim, split, auxiliary string) (n *train.Network, aux *train.Set, err error) {
	v.subject = &subject{}
	s := v.subject
	if s.model, err = probe.Open(c.Model); err != nil {
		return nil, nil, err
	}
	if s.digest, err = s.model.Digest(); err != nil {
		return nil, nil, err
	}
	if s.record, err = readRecord(c.Model); err != nil {
		return nil, nil, err
	}
	c.splitSeed(s.record)
	for _, part := range []struct {
		split string
		into  **train.Set
	}{{split, &v.set}, {auxiliary, &aux}} {
		if *part.into, s.dataDigest, s.classes, err = s.model.Set(ctx, probe.Test{Options: c.Data, Split: part.split}); err != nil {
			return nil, nil, err
		}
	}
	if v.set.Shape != nil || v.set.Multi() || v.set.Rows < 7 || v.set.Columns < 7 {
		return nil, nil, fmt.Errorf("job: %s: %w: reconstructions are counted of images of 7×7 pixels or more, of classes that exclude each other", c.Data.Data, ErrAsk)
	}
	if n, err = train.Import(s.model.Graph, train.ImportOptions{Output: c.Output, Freeze: c.Freeze}); err != nil {
		return nil, nil, fmt.Errorf("job: %s: %w", c.Model, err)
	}
	if copies, err := train.Fits(n.Model, n.Input, v.set.Example()); err != nil || copies != 1 {
		return nil, nil, errors.Join(err, fmt.Errorf("job: %s: %w: it wants colour, the data are grey", c.Model, ErrAsk))
	}
	// Sizes that an export left open are those of the data.
	graph := n.Model.Graph
	for i := range graph.Inputs {
		if graph.Inputs[i].Name == n.Input {
			for k, d := range v.set.Example() {
				graph.Inputs[i].Shape[k+1].Value, graph.Inputs[i].Shape[k+1].Param = d, ""
			}
		}
	}
	return n, aux, nil
}

func (o *Gradients) victim(ctx context.Context) (*victim, error) {
	v := &victim{}
	n, aux, err := o.trainable(ctx, v, o.Split, o.Aux)
	if err != nil {
		return nil, err
	}
	need := (o.Batches+1)*o.Batch*o.Sites - o.Batch*o.Sites + 1
	if v.set.Len() < need {
		return nil, fmt.Errorf("job: split %s has %d images: %w: %d batches of %d images of %d sites, and others beside them, take %d; ask for fewer", o.Split, v.set.Len(), ErrAsk, o.Batches, o.Batch, o.Sites, need)
	}
	v.images = rows(v.set)
	v.candidates = slices.Concat(v.images, rows(aux))
	v.order = rand.New(rand.NewPCG(o.Seed, 0x6ad)).Perm(len(v.images))
	options := privacy.LeakOptions{Input: n.Input, Logits: n.Logits, Weights: n.Weights, Batch: o.Batch}
	model := n.Model
	switch o.Method {
	case MethodLinear:
		if v.layer, err = privacy.FirstLayer(ctx, n.Model, n.Input); err != nil {
			return nil, fmt.Errorf("job: %s: %w", o.Model, err)
		}
		options.Weights = []string{v.layer.Weight, v.layer.Bias}
	case MethodImprint:
		mean, deviation := brightness(rows(aux))
		if v.imprint, err = privacy.NewImprint(n.Model, n.Input, o.Bins, mean, deviation, privacy.ImprintShare); err != nil {
			return nil, err
		}
		model, options.Weights = v.imprint.Model, []string{v.imprint.Weight, v.imprint.Bias}
	}
	// What is clipped is the whole update, of which the attack reads a part.
	if o.Clip > 0 && o.Method != MethodOptimise {
		for _, w := range n.Weights {
			if !slices.Contains(options.Weights, w) {
				options.Weights = append(options.Weights, w)
			}
		}
	}
	v.leak, err = privacy.NewLeak(model, options)
	return v, err
}

// brightness is the mean of the images' means, and their deviation.
func brightness(images [][]float32) (mean, deviation float64) {
	squares := 0.0
	for _, image := range images {
		own := 0.0
		for _, x := range image {
			own += float64(x) / float64(len(image))
		}
		mean += own / float64(len(images))
		squares += own * own / float64(len(images))
	}
	return mean, math.Sqrt(max(1e-12, squares-mean*mean))
}

func rows(s *train.Set) [][]float32 {
	all := pixels(s)
	size := len(all) / s.Len()
	out := make([][]float32, s.Len())
	for i := range out {
		out[i] = all[i*size : (i+1)*size]
	}
	return out
}

func pick[T any](from []T, at []int) []T {
	out := make([]T, len(at))
	for i, k := range at {
		out[i] = from[k]
	}
	return out
}

// observe is what the server sees: the sum of the sites' gradients.
func (o Gradients) observe(ctx context.Context, v *victim, at []int, b int) (sum [][]float32, labels []int, err error) {
	for site := range o.Sites {
		own := at[site*o.Batch : (site+1)*o.Batch]
		images, y := pick(v.images, own), pick(v.set.Labels, own)
		labels = append(labels, y...)
		var g [][]float32
		if o.Clip > 0 {
			rng := rand.New(rand.NewPCG(o.Seed, uint64(b)<<16|uint64(site)|1<<40))
			noise := 0.0
			if site == 0 { // once in the sum: each site adds its share
				noise = o.Noise
			}
			g, err = v.leak.Noisy(ctx, images, y, o.Clip, noise, rng)
		} else {
			g, err = v.leak.Gradients(ctx, images, y)
		}
		if err != nil {
			return nil, nil, err
		}
		if sum == nil {
			sum = g
			continue
		}
		for i := range g {
			for j, x := range g[i] {
				sum[i][j] += x
			}
		}
	}
	return sum, labels, nil
}

func (o Gradients) invert(ctx context.Context, v *victim, observed [][]float32, labels []int, b int) (found [][]float32, mismatch float64, err error) {
	switch o.Method {
	case MethodLinear:
		return v.layer.Found(observed[0], observed[1], 0, 1), 0, nil
	case MethodImprint:
		return v.imprint.Found(observed[0], observed[1], 0, 1), 0, nil
	}
	if o.Sites > 1 {
		return nil, 0, fmt.Errorf("job: %w: the search is for one site's batch; ask for a larger batch instead of several sites", ErrAsk)
	}
	m, err := privacy.Match(ctx, v.leak, observed, labels, privacy.MatchOptions{Steps: o.Steps, Restarts: o.Restarts, TV: o.TV,
		Rows: v.set.Rows, Columns: v.set.Columns, Low: 0, High: 1, Seed: o.Seed + uint64(b)<<20,
		Progress: func(done float64) {
			o.Progress("inverting gradients", min(0.999, (float64(b)+done)/float64(o.Batches)))
		}})
	if err != nil {
		return nil, 0, err
	}
	return m.Images, m.Mismatch, nil
}

func (r *GradientsReport) figures() {
	r.Rate = r.Hits.Rate()
	r.NeverRate = privacy.ClopperPearson(r.NeverHits, r.NeverTrials)
	r.SimilarRate = privacy.ClopperPearson(r.Similar, r.Trials)
	r.NeverSimilar = privacy.ClopperPearson(r.Hits.NeverSimilar, r.NeverTrials)
	sorted := slices.Sorted(slices.Values(r.SSIM))
	r.MedianSSIM = sorted[len(sorted)/2]
	switch {
	case r.Rate.Low > r.NeverRate.High:
		r.Verdict = fmt.Sprintf("The gradient gives images away: %s of those in the batch were reconstructed and identified, against %s of as many that were in none.", percent(r.Rate), percent(r.NeverRate))
	case r.Hits.Hits > 0:
		r.Verdict = fmt.Sprintf("%d of %d images were reconstructed and identified, which is not shown to be more than of images that were in no batch (%d of %d).", r.Hits.Hits, r.Trials, r.NeverHits, r.NeverTrials)
	default:
		r.Verdict = fmt.Sprintf("No image of %d was reconstructed by this attack: at most %.3g %% are, with 95 %% confidence.", r.Trials, 100*r.Rate.High)
	}
}

func (r *GradientsReport) page() page {
	p := page{Title: "Which images was a gradient computed on?", Lead: fmt.Sprintf("%s: %s. %d batches of %d images of %d sites each, from %s.", r.Method, r.About, r.Batches, r.Batch, r.Sites, r.Data),
		Fine: "A hit is an image of the batch whose best match among the reconstructions reaches the similarity and is identified: its nearest neighbour among all candidates is that very image. Intervals are Clopper-Pearson's; images of one batch are not independent."}
	p.Tiles = []tile{
		{"Reconstructed and identified", fmt.Sprintf("%.1f %%", 100*r.Rate.Value), fmt.Sprintf("95 %% %.1f to %.1f, %d of %d", 100*r.Rate.Low, 100*r.Rate.High, r.Hits.Hits, r.Trials), "bad"},
		{"The same of images in no batch", fmt.Sprintf("%.1f %%", 100*r.NeverRate.Value), fmt.Sprintf("95 %% %.1f to %.1f, %d of %d", 100*r.NeverRate.Low, 100*r.NeverRate.High, r.NeverHits, r.NeverTrials), ""},
		{"Median similarity", fmt.Sprintf("%.2f", r.MedianSSIM), fmt.Sprintf("counted from %g on", r.Threshold), ""},
	}
	count := func(n, of int) string { return percent(privacy.ClopperPearson(n, of)) }
	s := section{Title: "Counts", Head: []string{"", "of", "images", "share, 95 %"}}
	for _, row := range []struct {
		name  string
		n, of int
	}{
		{fmt.Sprintf("hits: SSIM ≥ %g and identified among %d candidates", r.Threshold, r.Candidates), r.Hits.Hits, r.Trials},
		{"the same of images that were in no batch", r.NeverHits, r.NeverTrials},
		{fmt.Sprintf("SSIM ≥ %g alone", r.Threshold), r.Similar, r.Trials},
		{"SSIM alone, of images in no batch", r.Hits.NeverSimilar, r.NeverTrials},
		{"SSIM alone, by the nearest image in no batch", r.NearestSimilar, r.Trials},
		{"SSIM alone, by the mean image", r.MeanSimilar, r.Trials},
	} {
		s.Rows = append(s.Rows, []string{row.name, fmt.Sprint(row.of), fmt.Sprint(row.n), count(row.n, row.of)})
	}
	if r.Method == MethodOptimise {
		s.Text = append(s.Text, fmt.Sprintf("mean mismatch of the gradients, 1 - cos: %.4g", r.Mismatch))
	}
	p.Sections = append(p.Sections, s)
	pictures := section{Title: "Left an image of the batch, right its best match", Text: []string{"These are images of the data: keep this page where the data may be."}}
	for i, two := range r.shown {
		if both, err := pair(r.shape, two[0], two[1], r.label[i]); err == nil {
			pictures.Pictures = append(pictures.Pictures, both)
		}
	}
	if len(pictures.Pictures) > 0 {
		p.Sections = append(p.Sections, pictures)
	}
	return p
}

// Write writes the report for people.
func (r *GradientsReport) Write(w io.Writer) error { return r.write(w, withoutPictures(r.page())) }

// SaveHTML writes it as one page that needs nothing else.
func (r *GradientsReport) SaveHTML(path string) error { return r.save(path, r.page()) }

// withoutPictures is a page for a terminal.
func withoutPictures(p page) page {
	p.Sections = slices.DeleteFunc(p.Sections, func(s section) bool { return len(s.Pictures) > 0 && len(s.Head) == 0 })
	return p
}
