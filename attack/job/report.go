package job

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/vigie/vigie/attack"
	"github.com/vigie/vigie/train"
)

// Report is what an attack says of a model.
type Report struct {
	Model      string       `json:"model"`
	Digest     string       `json:"digest"` // of the package, or SHA-256 of the file
	Data       string       `json:"data"`
	DataDigest string       `json:"data_digest"`
	Split      string       `json:"split"`
	Indices    []int        `json:"-"`
	Classes    []string     `json:"classes,omitempty"`
	Attack     attack.Name  `json:"attack"`
	About      string       `json:"about"`
	ATLAS      attack.ATLAS `json:"atlas"`
	Norm       attack.Norm  `json:"norm"`
	Steps      int          `json:"steps"`
	Side       int          `json:"patch_size,omitempty"`
	Restarts   int          `json:"restarts"`
	Aim        string       `json:"target_class,omitempty"` // class that every image is to be taken for
	Seed       uint64       `json:"seed"`
	Command    string       `json:"command,omitempty"`
	Bounded    bool         `json:"-"`

	// Point is that of the largest bound, and Curve holds every bound.
	Point
	Curve []Point `json:"curve"`

	// Made is the number of images that a change for all was made of, and
	// MadeFooled how many of these it fools; the points are of the others.
	Made       int `json:"made_of,omitempty"`
	MadeFooled int `json:"made_of_fooled,omitempty"`
	// Printable is the range of a patch's pixels, where it was narrowed.
	Printable *[2]float64 `json:"printable,omitempty"`

	// Distances are those of the images that were fooled at the largest bound, by
	// norm.
	Distances map[attack.Norm]Quantiles `json:"distances"`
	// Unconfirmed is how many images fooled the differentiated graph but not the
	// model's own path; they do not count as fooled.
	Unconfirmed int      `json:"unconfirmed"`
	Queries     int      `json:"queries"`   // examples that the model answered
	Gradients   int      `json:"gradients"` // of these with a gradient
	Seconds     float64  `json:"seconds"`
	Saved       string   `json:"saved,omitempty"`
	Notes       []string `json:"notes,omitempty"`

	// Guarding is nil where no guards were asked; the columns are in each point.
	Guarding *Guarding `json:"guards,omitempty"`

	result  *attack.Result
	subject *subject
}

// Point is what holds at one bound. The intervals are Wilson's, 95 %.
type Point struct {
	Eps            float64   `json:"eps"` // 0: no bound
	EpsText        string    `json:"eps_text,omitempty"`
	Images         int       `json:"images"`   // that count: without those of the class aimed at
	Attacked       int       `json:"attacked"` // answered rightly before
	Fooled         int       `json:"fooled"`
	CleanAccuracy  float64   `json:"clean_accuracy"`
	RobustAccuracy float64   `json:"robust_accuracy"`
	FooledRate     float64   `json:"fooled_rate"` // of the attacked
	Intervals      Intervals `json:"intervals"`
	Guarded        *Guarded  `json:"guarded,omitempty"` // what the guards left of the fooled
}

// Intervals are 95 % score intervals (Wilson 1927).
type Intervals struct {
	CleanAccuracy  train.Interval `json:"clean_accuracy"`
	RobustAccuracy train.Interval `json:"robust_accuracy"`
	FooledRate     train.Interval `json:"fooled_rate"`
}

// Quantiles of distances.
type Quantiles struct {
	Least  float64 `json:"min"`
	Low    float64 `json:"q25"`
	Median float64 `json:"median"`
	High   float64 `json:"q75"`
	Most   float64 `json:"max"`
}

func point(r *attack.Result, e Eps) Point {
	p := Point{Eps: e.Value, EpsText: e.Text, Images: r.Considered(), Attacked: r.Attacked(), Fooled: r.Fooled()}
	p.Intervals.CleanAccuracy = train.Wilson(r.Correct(), p.Images)
	p.Intervals.RobustAccuracy = train.Wilson(r.Correct()-p.Fooled, p.Images)
	p.Intervals.FooledRate = train.Wilson(p.Fooled, p.Attacked)
	p.CleanAccuracy, p.RobustAccuracy, p.FooledRate = p.Intervals.CleanAccuracy.Value, p.Intervals.RobustAccuracy.Value, p.Intervals.FooledRate.Value
	return p
}

// add adds a bound.
func (r *Report) add(result *attack.Result, e Eps) {
	r.Curve = append(r.Curve, point(result, e))
	if r.Bounded || r.Queries == 0 {
		r.Queries += result.Queries
		r.Gradients += result.Gradients
	}
}

// finish fills what is said of the largest bound.
func (r *Report) finish(last *attack.Result, s *subject) {
	r.Point = r.Curve[len(r.Curve)-1]
	if row, err := attack.Find(r.Attack); err == nil && row.Sized {
		r.Side = last.Options.Side
	}
	r.Made, r.MadeFooled, r.Printable = last.Made, last.MadeFooled, last.Options.Printable
	r.Norm, r.Steps, r.Restarts = last.Options.Norm, last.Options.Steps, last.Options.Restarts
	if c := last.Options.Class; c != nil {
		r.Aim = fmt.Sprint(*c)
		if names := s.names(); names != nil {
			r.Aim = names[*c]
		}
	}
	r.Distances = map[attack.Norm]Quantiles{}
	for _, norm := range []attack.Norm{attack.Linf, attack.L2, attack.L1, attack.L0} {
		var all []float64
		for _, c := range last.Cases {
			if c.Fooled {
				all = append(all, c.Distance[norm])
			}
		}
		if len(all) > 0 {
			r.Distances[norm] = quantiles(all)
		}
	}
	r.result, r.subject = last, s
}

func quantiles(v []float64) Quantiles {
	slices.Sort(v)
	at := func(q float64) float64 { // linear between order statistics
		p := q * float64(len(v)-1)
		i := int(math.Floor(p))
		if i+1 >= len(v) {
			return v[len(v)-1]
		}
		return v[i] + (p-float64(i))*(v[i+1]-v[i])
	}
	return Quantiles{at(0), at(0.25), at(0.5), at(0.75), at(1)}
}

// Write writes the report for people.
func (r *Report) Write(w io.Writer) error {
	var b strings.Builder
	share := func(v train.Interval) string {
		return fmt.Sprintf("%5.1f %% (95 %% %.1f to %.1f)", 100*v.Value, 100*v.Low, 100*v.High)
	}
	fmt.Fprintf(&b, "%s against %s, split %s of %s\n", r.Attack, r.Model, r.Split, r.Data)
	fmt.Fprintf(&b, "  %s\n  MITRE ATLAS %s, %s\n", r.About, r.ATLAS.ID, r.ATLAS.Name)
	if r.Aim != "" {
		fmt.Fprintf(&b, "  every image is to be taken for %s; those that are so are left out\n", r.Aim)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "  %s\n", note)
	}
	fmt.Fprintf(&b, "clean accuracy     %s of %d images\n", share(r.Intervals.CleanAccuracy), r.Images)
	for _, p := range r.Curve {
		fmt.Fprintf(&b, "%s\n  fooled           %s, %d of %d\n  robust accuracy  %s\n", r.within(p), share(p.Intervals.FooledRate), p.Fooled, p.Attacked, share(p.Intervals.RobustAccuracy))
		if p.Guarded != nil {
			for _, column := range p.Guarded.columns() {
				c := column.Passing
				fmt.Fprintf(&b, "  %s attacker\n    fooled and noticed by a guard   %3d of %d, %s\n", column.Attacker, c.Noticed, c.Fooled, share(c.Intervals.NoticedRate))
				if r.Guarding.Review {
					fmt.Fprintf(&b, "    fooled and reviewed otherwise   %3d of %d\n", c.Reviewed, c.Fooled)
				}
				fmt.Fprintf(&b, "    fooled and released             %3d of %d, %s\n", c.Released, c.Attacked, share(c.Intervals.ReleasedRate))
			}
		}
	}
	if r.Made > 0 {
		fmt.Fprintf(&b, "the change was made of %d other images, of which it fools %d; these count nowhere else\n", r.Made, r.MadeFooled)
	}
	if r.Printable != nil {
		fmt.Fprintf(&b, "patches are of pixels from %g to %g\n", r.Printable[0], r.Printable[1])
	}
	if g := r.Guarding; g != nil {
		fmt.Fprintf(&b, "without an attack  %d alarms on %d images, %s, at a promise of %.2g %%", g.Clean.Alarms, g.Clean.Images, share(g.Clean.Intervals.FalseAlarmRate), 100*g.FalseAlarms)
		if g.Review {
			fmt.Fprintf(&b, "; %d reviewed otherwise", g.Clean.Reviewed)
		}
		fmt.Fprintf(&b, "\n%s\n", g.Guarantee)
	}
	for _, norm := range []attack.Norm{attack.Linf, attack.L2, attack.L1, attack.L0} {
		if q, ok := r.Distances[norm]; ok {
			fmt.Fprintf(&b, "%-4s of the fooled  median %.4g, quartiles %.4g to %.4g, most %.4g\n", norm, q.Median, q.Low, q.High, q.Most)
		}
	}
	if r.Unconfirmed > 0 {
		fmt.Fprintf(&b, "%d images fooled the differentiated graph but not the model's own path: not counted\n", r.Unconfirmed)
	}
	fmt.Fprintf(&b, "%d queries, %d of them with gradients, %.1f s, seed %d\n", r.Queries, r.Gradients, r.Seconds, r.Seed)
	if r.Saved != "" {
		fmt.Fprintf(&b, "images written to %s\n", r.Saved)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// column is an attacker's.
type column struct {
	Attacker string
	*Passing
}

// columns are those that there are, the weaker attacker first.
func (g *Guarded) columns() []column {
	var out []column
	if g.Oblivious != nil {
		out = append(out, column{Oblivious, g.Oblivious})
	}
	if g.Adaptive != nil {
		out = append(out, column{Knowing, g.Adaptive})
	}
	return out
}
