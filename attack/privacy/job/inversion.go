package job

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"time"

	"github.com/vigie/vigie/attack/privacy"
	"github.com/vigie/vigie/train"
	"github.com/vigie/vigie/train/studies"
)

// Inversion asks what a model takes for each of its classes, and whether that is
// anybody who was trained on.
type Inversion struct {
	Common
	Members    string // split that was trained on [train]
	NonMembers string // split that was not [val]
	Restarts   int    // images of each class [8]
	Steps      int
	TV         float64
	Pull       float64
	// FromMean starts at the mean of the class's non-members, which an attacker who
	// knows the kind of image has, and not at grey.
	FromMean bool
}

// InversionReport is what it found.
type InversionReport struct {
	Head
	Members    int                `json:"members"`
	NonMembers int                `json:"nonmembers"`
	Images     []InversionOutcome `json:"images"`
	// Nearer is the mean, over the images, of the SSIM with the nearest member less
	// that with the nearest of as many non-members of the class; a model that shows
	// its training images has it above 0. The interval is Student's over the images.
	Nearer train.Interval `json:"nearer_to_members"`
	// OverMean is the mean of the SSIM with the nearest member less that of the
	// class's mean with the member nearest to it.
	OverMean train.Interval `json:"over_class_mean"`

	shape    []int64
	pictures [][4][]float32
	names    []string
}

// InversionOutcome is one image. Similarities are SSIM.
type InversionOutcome struct {
	Class         string  `json:"class"`
	Probability   float64 `json:"probability"`          // as the model sees it
	ClassMean     float64 `json:"ssim_class_mean"`      // with the mean of the class's members
	Correlation   float64 `json:"correlation_mean"`     // Pearson's, with the same
	Member        float64 `json:"ssim_member"`          // with the nearest member
	SameNumber    float64 `json:"ssim_member_draws"`    // with the nearest of a draw of members, mean over draws
	NonMember     float64 `json:"ssim_nonmember_draws"` // with the nearest of a draw of as many non-members
	MeanMember    float64 `json:"mean_ssim_member"`     // of the class's mean with the member nearest to it
	NearestMember int     `json:"nearest_member"`       // its position in the split
}

// Run asks.
func (o Inversion) Run(ctx context.Context) (*InversionReport, error) {
	start := time.Now()
	if err := o.check(); err != nil {
		return nil, err
	}
	s, sets, err := o.open(ctx, true, o.Members, o.NonMembers)
	if err != nil {
		return nil, err
	}
	defer s.close()
	members, others := sets[0], sets[1]
	if members.Shape != nil || members.Rows < 7 || members.Columns < 7 {
		return nil, fmt.Errorf("job: %s: %w: inversion is judged on images of 7×7 pixels or more", o.Data.Data, ErrAsk)
	}
	r := &InversionReport{Head: o.head("inversion", s, inversionTechnique), Members: members.Len(), NonMembers: others.Len(), shape: members.Example()}
	classes := s.target.Describe().Classes
	var nearer, over []float64
	for class := range classes {
		own, positions := ofClass(members, class)
		strangers, _ := ofClass(others, class)
		if len(own) < 2 || len(strangers) < 2 {
			r.Notes = append(r.Notes, fmt.Sprintf("class %s is left out: %d members and %d others of it", members.ClassName(class), len(own), len(strangers)))
			continue
		}
		mean := privacy.Mean(own)
		meanMember, _, err := privacy.MostSimilar(mean, own, members.Rows, members.Columns)
		if err != nil {
			return nil, err
		}
		for k := range o.Restarts {
			options := privacy.InvertOptions{Steps: o.Steps, TV: o.TV, Pull: o.Pull, Rows: members.Rows, Columns: members.Columns, Seed: o.Seed + uint64(k)<<16,
				Progress: func(done float64) {
					o.Progress("inverting the model", (float64(class)+(float64(k)+done*0.9)/float64(o.Restarts))/float64(classes))
				}}
			if o.FromMean {
				options.Start = privacy.Mean(strangers)
			}
			found, err := privacy.Invert(ctx, s.target, class, options)
			if err != nil {
				return nil, err
			}
			out := InversionOutcome{Class: train.Spoken(members.ClassName(class)), Probability: found.Probability, MeanMember: meanMember, Correlation: correlation(found.Pixels, mean)}
			if out.ClassMean, err = privacy.SSIM(found.Pixels, mean, members.Rows, members.Columns); err != nil {
				return nil, err
			}
			// A larger group has a nearer nearest: members are counted in draws of as
			// many as there are others.
			similar, best, err := similarities(found.Pixels, own, members)
			if err != nil {
				return nil, err
			}
			other, stranger, err := similarities(found.Pixels, strangers, members)
			if err != nil {
				return nil, err
			}
			out.Member, out.NearestMember = similar[best], positions[best]
			rng := rand.New(rand.NewPCG(o.Seed, uint64(class)<<32|uint64(k)))
			number := min(len(own), len(strangers))
			out.SameNumber, out.NonMember = nearestOfDraws(similar, number, rng), nearestOfDraws(other, number, rng)
			r.Images = append(r.Images, out)
			nearer, over = append(nearer, out.SameNumber-out.NonMember), append(over, out.Member-out.MeanMember)
			if k < 4 {
				r.pictures = append(r.pictures, [4][]float32{found.Pixels, mean, own[best], strangers[stranger]})
				r.names = append(r.names, out.Class)
			}
		}
	}
	if len(r.Images) < 2 {
		return nil, fmt.Errorf("job: %s: %w: fewer than two images to compare; ask for more restarts, or name splits that have the classes", o.Data.Data, ErrAsk)
	}
	r.Nearer, r.OverMean = student(nearer), student(over)
	r.verdict()
	o.Progress("inverting the model", 1)
	return r, o.finish(&r.Head, r, start)
}

func (o *Inversion) check() error {
	if err := o.begin(); err != nil {
		return err
	}
	if o.Members == "" {
		o.Members = studies.Train
	}
	if o.NonMembers == "" {
		o.NonMembers = studies.Validation
	}
	if o.Restarts == 0 {
		o.Restarts = 8
	}
	switch {
	case o.Model == "":
		return fmt.Errorf("job: %w: name a model", ErrAsk)
	case o.Members == o.NonMembers:
		return fmt.Errorf("job: %w: members and others are both split %s", ErrAsk, o.Members)
	case o.Restarts < 1 || o.Restarts > 1<<12 || o.Steps < 0 || !(o.TV >= 0) || !(o.Pull >= 0):
		return fmt.Errorf("job: %d restarts of %d steps, total variation %v, pull %v: %w: want 1 restart or more, and 0 or more", o.Restarts, o.Steps, o.TV, o.Pull, ErrAsk)
	}
	return nil
}

// ofClass are the images of a class, with their positions.
func ofClass(s *train.Set, class int) (images [][]float32, at []int) {
	all := rows(s)
	for i, l := range s.Labels {
		if l == class {
			images, at = append(images, all[i]), append(at, i)
		}
	}
	return images, at
}

// similarities of an image with others, and the position of the most similar.
func similarities(image []float32, among [][]float32, s *train.Set) (all []float64, best int, err error) {
	all = make([]float64, len(among))
	for i, other := range among {
		if all[i], err = privacy.SSIM(image, other, s.Rows, s.Columns); err != nil {
			return nil, 0, err
		}
		if all[i] > all[best] {
			best = i
		}
	}
	return all, best, nil
}

// nearestOfDraws is the mean, over draws of a number of them, of the largest.
func nearestOfDraws(similar []float64, number int, rng *rand.Rand) float64 {
	const draws = 200
	sum := 0.0
	for range draws {
		most := math.Inf(-1)
		for _, i := range rng.Perm(len(similar))[:number] {
			most = max(most, similar[i])
		}
		sum += most / draws
	}
	return sum
}

// correlation is Pearson's; 0 where one of the images is flat.
func correlation(a, b []float32) float64 {
	var ma, mb, sab, saa, sbb float64
	for i := range a {
		ma += float64(a[i]) / float64(len(a))
		mb += float64(b[i]) / float64(len(a))
	}
	for i := range a {
		da, db := float64(a[i])-ma, float64(b[i])-mb
		sab, saa, sbb = sab+da*db, saa+da*da, sbb+db*db
	}
	if saa <= 0 || sbb <= 0 {
		return 0
	}
	return sab / math.Sqrt(saa*sbb)
}

// student is a mean with Student's 95 % interval.
func student(v []float64) train.Interval {
	n := float64(len(v))
	mean, sum := 0.0, 0.0
	for _, x := range v {
		mean += x / n
	}
	for _, x := range v {
		sum += (x - mean) * (x - mean)
	}
	// The quantile 0.975 by Hill's expansion (Abramowitz and Stegun 26.7.5), within
	// 1 % from four degrees of freedom on; below, the exact values.
	f := n - 1
	exact := []float64{0, 12.706, 4.303, 3.182, 2.776}
	const z = 1.959963984540054
	t := z + (z*z*z+z)/(4*f) + (5*math.Pow(z, 5)+16*math.Pow(z, 3)+3*z)/(96*f*f) + (3*math.Pow(z, 7)+19*math.Pow(z, 5)+17*math.Pow(z, 3)-15*z)/(384*f*f*f)
	if int(f) < len(exact) {
		t = exact[int(f)]
	}
	half := t * math.Sqrt(sum/f/n)
	return train.Interval{Value: mean, Low: mean - half, High: mean + half}
}

func (r *InversionReport) verdict() {
	switch {
	case r.Nearer.Low > 0 && r.OverMean.Low > 0:
		r.Verdict = fmt.Sprintf("The images resemble members more than people who were not trained on, by %s of SSIM, and more than the class's mean does: the model shows something of its training images.", figure(r.Nearer))
	case r.OverMean.Low <= 0:
		r.Verdict = fmt.Sprintf("Nothing more than the class's mean is shown: the images are no nearer to any member than that mean is (by %s of SSIM).", figure(r.OverMean))
	default:
		r.Verdict = fmt.Sprintf("Nobody is shown: the images are nearer to a member than the class's mean is, but no nearer than to people who were not trained on (by %s of SSIM).", figure(r.Nearer))
	}
}

func (r *InversionReport) page() page {
	p := page{Title: "What does the model take for its classes?", Lead: fmt.Sprintf("Gradient ascent on log p with total variation (Fredrikson et al. 2015), compared with %d members and %d others of %s.", r.Members, r.NonMembers, r.Data),
		Fine: "Similarities are SSIM (7×7 windows). Members are also counted in draws of as many as there are others, because the nearest of a larger group is nearer."}
	p.Tiles = []tile{
		{"Nearer to members than to others", fmt.Sprintf("%+.3f", r.Nearer.Value), fmt.Sprintf("SSIM, 95 %% %+.3f to %+.3f", r.Nearer.Low, r.Nearer.High), map[bool]string{true: "bad", false: "good"}[r.Nearer.Low > 0]},
		{"Nearer to a member than the class's mean is", fmt.Sprintf("%+.3f", r.OverMean.Value), fmt.Sprintf("SSIM, 95 %% %+.3f to %+.3f", r.OverMean.Low, r.OverMean.High), map[bool]string{true: "bad", false: "good"}[r.OverMean.Low > 0]},
	}
	s := section{Title: "Each image", Head: []string{"class", "probability", "SSIM: class mean", "nearest member", "of as many as others", "nearest other", "correlation with the mean"}}
	for _, i := range r.Images {
		s.Rows = append(s.Rows, []string{i.Class, fmt.Sprintf("%.4f", i.Probability), fmt.Sprintf("%.3f", i.ClassMean), fmt.Sprintf("%.3f", i.Member), fmt.Sprintf("%.3f", i.SameNumber), fmt.Sprintf("%.3f", i.NonMember), fmt.Sprintf("%.2f", i.Correlation)})
	}
	for _, i := range r.Images {
		text := fmt.Sprintf("The mean of %s is itself at %.3f from the member nearest to it.", i.Class, i.MeanMember)
		if len(s.Text) == 0 || s.Text[len(s.Text)-1] != text {
			s.Text = append(s.Text, text)
		}
	}
	p.Sections = append(p.Sections, s)
	pictures := section{Title: "The first images of each class", Text: []string{"Members and others are images of the data: keep this page where the data may be."}}
	for i, four := range r.pictures {
		for k, what := range []string{"found, " + r.names[i], "mean of members", "nearest member", "nearest other"} {
			if one, err := drawn(r.shape, four[k], what); err == nil {
				pictures.Pictures = append(pictures.Pictures, one)
			}
		}
	}
	p.Sections = append(p.Sections, pictures)
	return p
}

// Write writes the report for people.
func (r *InversionReport) Write(w io.Writer) error { return r.write(w, withoutPictures(r.page())) }

// SaveHTML writes it as one page that needs nothing else.
func (r *InversionReport) SaveHTML(path string) error { return r.save(path, r.page()) }
