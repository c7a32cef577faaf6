package job

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/guard/certificate"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/onnx"
	"github.com/vigie/vigie/probe"
	"github.com/vigie/vigie/train"
)

// Certify asks how many of a model's answers can be certified.
type Certify struct {
	Model string // package, or ONNX file
	Data  probe.Test
	Limit int // images, a seeded draw that keeps the classes' shares, that of vigie attack; 0: all
	// Patch and Smoothing are those of a manifest; both nil: a package's own.
	Patch     *model.Patch
	Smoothing *model.Smoothing
	Mean, Std []float64 // of a bare graph that wants normalised input
	Output    string    // of a bare graph with several
	Threads   int
	Each      bool   // also return what was found of each image
	Command   string // as a person would type it again
	Progress  func(done, total int)
}

// Certified says how many were.
type Certified struct {
	Model      string `json:"model"`
	Digest     string `json:"digest"`
	Data       string `json:"data"`
	DataDigest string `json:"data_digest"`
	Split      string `json:"split"`
	Images     int    `json:"images"`
	Seed       uint64 `json:"seed"`
	Command    string `json:"command,omitempty"`
	// Clean is the share of images that are answered rightly: of a package, those
	// whose every label is rightly positive or not at its operating point. All
	// intervals are Wilson's.
	Clean     train.Interval      `json:"clean_accuracy"`
	Patch     *CertifiedSquares   `json:"patch,omitempty"`
	Smoothing *CertifiedSmoothing `json:"smoothing,omitempty"`
	// ByClass holds each class by itself: a model that always says the same is
	// certified on all its images of one class, and right on none of the others.
	ByClass []CertifiedClass `json:"by_class,omitempty"`
	Each    []CertifiedOne   `json:"each,omitempty"`
}

// CertifiedClass counts the images of one class.
type CertifiedClass struct {
	Class     string `json:"class"`
	Images    int    `json:"images"`
	Right     int    `json:"right"`
	Detection int    `json:"certified_detection"` // of them answered rightly, and certified
	Recovery  int    `json:"certified_recovery"`
	Smoothed  int    `json:"certified_smoothed"` // at any radius
}

// CertifiedSquares is about squares of any content at any place.
type CertifiedSquares struct {
	Size        int    `json:"patch_size"`
	Of          string `json:"of"`
	ImageSide   int    `json:"image_side"` // largest square of the data's images that this holds for
	Masks       int    `json:"masks"`
	MaskRows    int    `json:"mask_rows"`
	MaskColumns int    `json:"mask_columns"`
	Fill        string `json:"fill"`
	Rounds      int    `json:"rounds"`
	// Agreement is the share of images under each of whose masks the answer stays;
	// the others go to a person: FalseReview.
	Agreement   train.Interval `json:"one_mask_agreement"`
	FalseReview train.Interval `json:"false_review_rate"`
	// Detection is the share, of the images answered rightly, that no patch turns
	// without a mask that disagrees (corollary of lemma 1 in docs/certificates.md).
	Detection train.Interval `json:"certified_detection"`
	// Recovery is the share, of the images answered rightly, that double masking
	// answers rightly with any patch (lemma 2); of all images in Accuracy. Nil of
	// one round.
	Recovery *train.Interval `json:"certified_recovery,omitempty"`
	Accuracy *train.Interval `json:"certified_accuracy,omitempty"`
	// Recovered is the accuracy of double masking on the images as they are.
	Recovered train.Interval `json:"double_masking_accuracy"`
	// Fooled bounds the share, of the images answered rightly, that a patch may
	// turn and that are then released: those that are not detected for certain.
	Fooled  train.Interval `json:"fooled_and_released_at_most"`
	Runs    float64        `json:"runs_per_case"`    // mean
	Seconds float64        `json:"seconds_per_case"` // median
	Longest float64        `json:"seconds_longest"`
}

// CertifiedSmoothing is about changes of a bounded Euclidean length.
type CertifiedSmoothing struct {
	Sigma    float64        `json:"sigma"`
	Samples  int            `json:"samples"`
	Alpha    float64        `json:"alpha"`
	Smoothed train.Interval `json:"smoothed_accuracy"` // certified at radius 0
	Abstain  train.Interval `json:"abstained"`
	// FalseReview is the share of images whose smoothed answer is another than the
	// model's, or none.
	FalseReview train.Interval `json:"false_review_rate"`
	Curve       []AtRadius     `json:"curve"`
	Median      float64        `json:"median_radius"` // of the images answered rightly, 0 where nothing is certified
	Seconds     float64        `json:"seconds_per_case"`
}

// AtRadius is the share of all images that are rightly answered and certified
// that far.
type AtRadius struct {
	Radius   float64        `json:"radius"` // L2, pixels 0 to 1 of the model's input
	Accuracy train.Interval `json:"certified_accuracy"`
}

// CertifiedOne is what was found of one image.
type CertifiedOne struct {
	Image     int                `json:"image"`
	Right     bool               `json:"right"`
	Answer    certificate.Answer `json:"answer"`
	Agree     int                `json:"agree"`
	Masks     int                `json:"masks"`
	Certified bool               `json:"certified"`
	Recovered certificate.Answer `json:"recovered,omitempty"`
	Smoothed  certificate.Answer `json:"smoothed,omitempty"`
	Radius    float64            `json:"radius,omitempty"`
	Seconds   float64            `json:"seconds"`
}

// subject is a model with images, ready to be certified.
type subject struct {
	about   certificate.Model
	prepare func(i int) ([]float32, error)
	truth   func(i int) certificate.Answer
	set     *train.Set
	index   []int // of the images that are asked about
	squares func() (certificate.Region, certificate.Size, int, error)
}

// Run certifies every image.
func (c Certify) Run(ctx context.Context) (*Certified, error) {
	if c.Limit < 0 || c.Threads < 0 {
		return nil, fmt.Errorf("job: a limit of %d images, %d threads: %w: want 0 or more", c.Limit, c.Threads, ErrAsk)
	}
	if p := c.Patch; p != nil && (p.Of != "" && p.Of != model.OfInput && p.Of != model.OfImage || p.Size < 1) {
		return nil, fmt.Errorf("job: squares of %d pixels of %q: %w: want 1 or more, of %s or %s", p.Size, p.Of, ErrAsk, model.OfInput, model.OfImage)
	}
	m, err := probe.Open(c.Model)
	if err != nil {
		return nil, err
	}
	if len(m.Warnings) > 0 {
		return nil, fmt.Errorf("job: %s: %w: %s", c.Model, ErrAsk, strings.Join(m.Warnings, "; "))
	}
	if p := m.Package; p != nil && c.Patch == nil && c.Smoothing == nil {
		c.Patch, c.Smoothing = p.Manifest.Certificate.Patch, p.Manifest.Certificate.Smoothing
	}
	if c.Patch == nil && c.Smoothing == nil {
		return nil, fmt.Errorf("job: %s: %w: its manifest asks for no certificate: say --patch-size, or --sigma", c.Model, ErrAsk)
	}
	options := model.Certificate{Patch: c.Patch, Smoothing: c.Smoothing}.CertificateOptions(c.Threads)
	if err := options.Check(); err != nil {
		return nil, err
	}
	out := &Certified{Model: c.Model, Data: filepath.Base(c.Data.Data), Split: c.Data.Split, Seed: c.Data.Seed, Command: c.Command}
	if out.Digest, err = m.Digest(); err != nil {
		return nil, err
	}
	s := &subject{}
	if s.set, out.DataDigest, _, err = m.Set(ctx, c.Data); err != nil {
		return nil, err
	}
	if m.Package != nil {
		err = c.ofPackage(m.Package, s)
	} else {
		err = c.ofGraph(m.Graph, s)
	}
	if err != nil {
		return nil, err
	}
	if c.Patch != nil { // what does not fit is said before the long work
		region, touched, _, err := s.squares()
		if err != nil {
			return nil, err
		}
		if _, err := certificate.Covering(region, touched, c.Patch.Masks); err != nil {
			return nil, err
		}
	}
	certifier, err := certificate.Open(s.about, options)
	if err != nil {
		return nil, err
	}
	defer certifier.Close()
	classes := make([]int, s.set.Len())
	if !s.set.Multi() {
		copy(classes, s.set.Labels)
	}
	s.index = draw(classes, c.Limit, c.Data.Seed)
	if out.Images = len(s.index); out.Images == 0 {
		return nil, fmt.Errorf("job: %s: %w: it has no images in split %s", c.Data.Data, ErrAsk, c.Data.Split)
	}
	if err := c.each(ctx, s, certifier, options, out); err != nil {
		return nil, err
	}
	return out, nil
}

// each certifies one image after the other and counts.
func (c Certify) each(ctx context.Context, s *subject, certifier *certificate.Certifier, options certificate.Options, out *Certified) error {
	var right, agreed, detected, proven, masked, runs int
	var smoothRight, abstained, other int
	var seconds, smoothing, radii []float64 // radii of those answered rightly
	var covers []float64                    // certified radius of a right smoothed answer, else -1
	var classes []CertifiedClass
	if !s.set.Multi() {
		classes = make([]CertifiedClass, s.set.Classes)
		for k := range classes {
			classes[k].Class = s.set.ClassName(k)
		}
	}
	for done, i := range s.index {
		values, err := s.prepare(i)
		if err != nil {
			return fmt.Errorf("job: preparing image %d: %w", i, err)
		}
		input := engine.Float32(append([]int64{1}, s.about.Shape...), values)
		answer, err := certifier.Answer(ctx, input)
		if err != nil {
			return fmt.Errorf("job: image %d: %w", i, err)
		}
		truth := s.truth(i)
		one := CertifiedOne{Image: i, Right: answer == truth, Answer: answer}
		class := &CertifiedClass{}
		if classes != nil {
			class = &classes[s.set.Labels[i]]
		}
		if class.Images++; one.Right {
			right++
			class.Right++
		}
		begin := time.Now()
		if options.Patch != nil {
			region, touched, largest, err := s.squares()
			if err != nil {
				return err
			}
			found, err := certifier.Squares(ctx, input, answer, touched, region)
			if err != nil {
				return fmt.Errorf("job: image %d: %w", i, err)
			}
			seconds = append(seconds, time.Since(begin).Seconds())
			if out.Patch == nil {
				out.Patch = &CertifiedSquares{Size: c.Patch.Size, Of: or(c.Patch.Of, model.OfInput), ImageSide: largest, Masks: len(found.Cover.Masks),
					MaskRows: found.Cover.Mask.Rows, MaskColumns: found.Cover.Mask.Columns, Fill: options.Patch.Fill, Rounds: options.Patch.Rounds}
			}
			one.Agree, one.Masks, one.Certified, one.Recovered = found.Agree, len(found.Covered), found.Certified, found.Recovered
			runs += found.Runs
			if found.Agreed() {
				agreed++
			}
			if found.Agreed() && one.Right {
				detected++
				class.Detection++
			}
			if found.Certified && one.Right {
				proven++
				class.Recovery++
			}
			if found.Recovered == truth {
				masked++
			}
		}
		if options.Smoothing != nil {
			begin := time.Now()
			found, err := certifier.Smooth(ctx, input, seedOf(c.Data.Seed, i))
			if err != nil {
				return fmt.Errorf("job: image %d: %w", i, err)
			}
			smoothing = append(smoothing, time.Since(begin).Seconds())
			one.Smoothed, one.Radius = found.Answer, found.Radius
			if found.Abstain {
				abstained++
			}
			if found.Abstain || found.Answer != answer {
				other++
			}
			far := -1.0
			if !found.Abstain && found.Answer == truth {
				smoothRight++
				class.Smoothed++
				far = found.Radius
			}
			covers = append(covers, far)
			if one.Right {
				radii = append(radii, max(far, 0))
			}
		}
		one.Seconds = time.Since(begin).Seconds()
		if c.Each {
			out.Each = append(out.Each, one)
		}
		if c.Progress != nil {
			c.Progress(done+1, out.Images)
		}
	}
	n := out.Images
	out.Clean, out.ByClass = train.Wilson(right, n), classes
	if p := out.Patch; p != nil {
		p.Agreement, p.FalseReview = train.Wilson(agreed, n), train.Wilson(n-agreed, n)
		p.Detection, p.Recovered, p.Fooled = train.Wilson(detected, right), train.Wilson(masked, n), train.Wilson(right-detected, right)
		if options.Patch.Rounds == 2 {
			recovery, accuracy := train.Wilson(proven, right), train.Wilson(proven, n)
			p.Recovery, p.Accuracy = &recovery, &accuracy
		}
		p.Runs, p.Seconds, p.Longest = float64(runs)/float64(n), median(seconds), slices.Max(seconds)
	}
	if o := c.Smoothing; o != nil {
		q := &CertifiedSmoothing{Sigma: o.Sigma, Samples: o.Samples, Alpha: o.Alpha, Smoothed: train.Wilson(smoothRight, n),
			Abstain: train.Wilson(abstained, n), FalseReview: train.Wilson(other, n), Seconds: median(smoothing)}
		if len(radii) > 0 {
			q.Median = median(radii)
		}
		for step := range 9 {
			radius := o.Sigma * float64(step) / 2
			count := 0
			for _, far := range covers {
				if far >= 0 && far > radius || step == 0 && far >= 0 {
					count++
				}
			}
			q.Curve = append(q.Curve, AtRadius{radius, train.Wilson(count, n)})
		}
		out.Smoothing = q
	}
	return nil
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// draw picks limit of the images at random, of each class its share of all
// (largest remainders), in their order; all if limit is 0 or no less. With the
// same seed vigie attack picks the same.
func draw(classes []int, limit int, seed uint64) []int {
	by := map[int][]int{}
	for i, c := range classes {
		by[c] = append(by[c], i)
	}
	order := slices.Sorted(maps.Keys(by))
	if limit <= 0 || limit >= len(classes) {
		limit = len(classes)
	}
	take, left := map[int]int{}, limit
	for _, c := range order {
		take[c] = limit * len(by[c]) / len(classes)
		left -= take[c]
	}
	rest := slices.Clone(order) // by what is cut off, the largest first
	slices.SortStableFunc(rest, func(a, b int) int {
		return cmp.Compare(limit*len(by[b])%len(classes), limit*len(by[a])%len(classes))
	})
	for _, c := range rest[:left] {
		take[c]++
	}
	random := rand.New(rand.NewPCG(seed, 0x117))
	var drawn []int
	for _, c := range order {
		of := by[c]
		random.Shuffle(len(of), func(i, j int) { of[i], of[j] = of[j], of[i] })
		drawn = append(drawn, of[:take[c]]...)
	}
	slices.Sort(drawn)
	return drawn
}

// seedOf draws a seed for an image from that of the command.
func seedOf(seed uint64, image int) certificate.Seed {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], seed)
	binary.BigEndian.PutUint64(b[8:], uint64(image))
	return certificate.Seed(sha256.Sum256(b[:]))
}

// ofPackage takes images the way that a case's take.
func (c Certify) ofPackage(p *model.Package, s *subject) (err error) {
	if len(c.Mean) > 0 || len(c.Std) > 0 || c.Output != "" {
		return fmt.Errorf("job: %s: %w: a package's manifest says how its input is prepared; leave mean, std and output out", c.Model, ErrAsk)
	}
	set := s.set
	if set.Channels != 1 || set.Shape != nil {
		return fmt.Errorf("job: images of %d channels: %w: a package reads luminance", set.Channels, ErrAsk)
	}
	labels := len(p.Manifest.Output.Labels)
	if classes := set.Classes; classes > max(labels, 2) || set.Multi() && classes != labels {
		return fmt.Errorf("job: %d classes for a package of %d labels: %w", classes, labels, ErrAsk)
	}
	if s.about, err = p.Certified(); err != nil {
		return err
	}
	s.prepare = func(i int) ([]float32, error) {
		l := &dicom.Luminance{Rows: set.Rows, Columns: set.Columns, Values: make([]float32, set.Rows*set.Columns)}
		set.Fill(l.Values, i)
		prepared, err := p.Manifest.Prepare(l)
		if err != nil {
			return nil, err
		}
		return engine.Values[float32](prepared)
	}
	s.truth = func(i int) certificate.Answer {
		flags := []byte(strings.Repeat("0", labels))
		for k := range flags {
			switch {
			case set.Multi() && set.Has(i, k), !set.Multi() && labels > 1 && set.Labels[i] == k, !set.Multi() && labels == 1 && set.Labels[i] == 1:
				flags[k] = '1'
			}
		}
		return certificate.Answer(flags)
	}
	s.squares = func() (certificate.Region, certificate.Size, int, error) {
		return p.Manifest.Squares(*c.Patch, set.Rows, set.Columns)
	}
	return nil
}

// ofGraph takes images as a bare graph does: values 0 to 1, normalised if asked
// for, a grey image repeated where three channels are wanted, channels first or
// last.
func (c Certify) ofGraph(g *onnx.Model, s *subject) error {
	set := s.set
	if set.Shape != nil || set.Multi() {
		return fmt.Errorf("job: %s: %w: a bare ONNX file is asked about images of one class each", c.Data.Data, ErrAsk)
	}
	weights := map[string]bool{}
	for _, w := range g.Graph.Initializers {
		weights[w.Name] = true
	}
	inputs := slices.DeleteFunc(slices.Clone(g.Graph.Inputs), func(v onnx.Value) bool { return weights[v.Name] })
	if len(inputs) != 1 || len(inputs[0].Shape) != 4 || inputs[0].Type != onnx.Float {
		return fmt.Errorf("job: %s: %w: want one input of images in float32", c.Model, ErrAsk)
	}
	output := c.Output
	if output == "" {
		if len(g.Graph.Outputs) != 1 {
			return fmt.Errorf("job: %s: %w: it has %d outputs: say which one holds the classes (--output)", c.Model, ErrAsk, len(g.Graph.Outputs))
		}
		output = g.Graph.Outputs[0].Name
	}
	in, last := inputs[0], false
	copies, err := train.Fits(g, in.Name, set.Example())
	if err != nil {
		fits := func(d onnx.Dim, size int) bool { return !d.Known() || d.Value == int64(size) }
		if last = fits(in.Shape[1], set.Rows) && fits(in.Shape[2], set.Columns); !last {
			return fmt.Errorf("job: %s: %w: %w", c.Model, ErrAsk, err)
		}
		switch d := in.Shape[3]; {
		case fits(d, set.Channels):
			copies = 1
		case set.Channels == 1 && d.Value == 3:
			copies = 3
		default:
			return fmt.Errorf("job: %s: %w: %w", c.Model, ErrAsk, err)
		}
	}
	channels := set.Channels * copies
	black, white := make([]float64, channels), make([]float64, channels)
	for k := range channels {
		m, d := 0.0, 1.0
		for _, list := range []struct {
			name   string
			values []float64
			to     *float64
		}{{"mean", c.Mean, &m}, {"std", c.Std, &d}} {
			switch len(list.values) {
			case 0:
			case 1:
				*list.to = list.values[0]
			case channels:
				*list.to = list.values[k]
			default:
				return fmt.Errorf("job: --%s: %w: %d numbers for %d channels", list.name, ErrAsk, len(list.values), channels)
			}
		}
		if !(d > 0) || math.IsInf(d, 0) || math.IsNaN(m) || math.IsInf(m, 0) {
			return fmt.Errorf("job: --mean %v --std %v: %w", m, d, ErrAsk)
		}
		black[k], white[k] = -m/d, (1-m)/d
	}
	probability := false
	if node, _ := g.Graph.Producer(output); node != nil {
		probability = node.OpType == "Sigmoid"
	}
	s.about = certificate.Model{Graph: g, Input: in.Name, Output: output, Shape: []int64{int64(channels), int64(set.Rows), int64(set.Columns)}, ChannelsLast: last,
		Black: black, White: white, Grey: copies > 1, Decide: func(output []float32) (certificate.Answer, error) {
			if len(output) == 1 {
				return certificate.Answer(strconv.Itoa(map[bool]int{true: 1}[output[0] > map[bool]float32{true: 0.5}[probability]])), nil
			}
			best := 0
			for k, v := range output {
				if v > output[best] {
					best = k
				}
			}
			return certificate.Answer(strconv.Itoa(best)), nil
		}}
	if last {
		s.about.Shape = []int64{int64(set.Rows), int64(set.Columns), int64(channels)}
	}
	plane := set.Rows * set.Columns
	s.prepare = func(i int) ([]float32, error) {
		image := make([]float32, set.Channels*plane)
		set.Fill(image, i)
		out := make([]float32, channels*plane)
		for k := range channels {
			for p := range plane {
				at := k*plane + p
				if last {
					at = p*channels + k
				}
				v := float64(image[k%set.Channels*plane+p])
				out[at] = float32(black[k] + (white[k]-black[k])*v)
			}
		}
		return out, nil
	}
	s.truth = func(i int) certificate.Answer { return certificate.Answer(strconv.Itoa(set.Labels[i])) }
	s.squares = func() (certificate.Region, certificate.Size, int, error) {
		return certificate.Whole(set.Rows, set.Columns), certificate.Size{Rows: c.Patch.Size, Columns: c.Patch.Size}, c.Patch.Size, nil
	}
	return nil
}

// Write writes it for people.
func (c *Certified) Write(w io.Writer) error {
	var s strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&s, "%-26s %s\n", name, fmt.Sprintf(format, args...))
	}
	rate := func(name string, v train.Interval, format string, args ...any) {
		line(name, "%5.1f %% (95 %% %.1f to %.1f)  %s", 100*v.Value, 100*v.Low, 100*v.High, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(&s, "%s on %d images of split %s of %s\n", c.Model, c.Images, c.Split, c.Data)
	rate("answered rightly", c.Clean, "")
	if p := c.Patch; p != nil {
		fmt.Fprintf(&s, "\nany square of %d pixels of the %s (%d of the image), %d masks of %d by %d, %s\n", p.Size, p.Of, p.ImageSide, p.Masks, p.MaskRows, p.MaskColumns, p.Fill)
		rate("one mask agrees", p.Agreement, "of all; the others go to a person, attacked or not")
		rate("certified detection", p.Detection, "of those answered rightly: no square turns them and lets them pass")
		rate("fooled and released", p.Fooled, "of those answered rightly, at most")
		if p.Recovery != nil {
			rate("certified recovery", *p.Recovery, "of those answered rightly: double masking answers rightly with any square")
			rate("certified accuracy", *p.Accuracy, "of all")
		}
		rate("double masking", p.Recovered, "right on the images as they are")
		line("cost", "%.0f runs of the model, %.3f s a case (median; longest %.3f)", p.Runs, p.Seconds, p.Longest)
	}
	if q := c.Smoothing; q != nil {
		fmt.Fprintf(&s, "\nnoise of deviation %v, %d samples, alpha %v\n", q.Sigma, q.Samples, q.Alpha)
		rate("smoothed answer right", q.Smoothed, "")
		rate("abstained", q.Abstain, "")
		rate("to a person", q.FalseReview, "another answer than the model's, or none")
		for _, at := range q.Curve[1:] {
			rate(fmt.Sprintf("certified to L2 %.3f", at.Radius), at.Accuracy, "of all")
		}
		line("median radius", "%.3f of those answered rightly", q.Median)
		line("cost", "%.3f s a case", q.Seconds)
	}
	if len(c.ByClass) > 0 {
		fmt.Fprintln(&s, "\nof each class, answered rightly and certified:")
	}
	for _, k := range c.ByClass {
		text := fmt.Sprintf("%d images, %d right", k.Images, k.Right)
		if p := c.Patch; p != nil {
			text += fmt.Sprintf(", %d detection", k.Detection)
			if p.Recovery != nil {
				text += fmt.Sprintf(", %d recovery", k.Recovery)
			}
		}
		if c.Smoothing != nil {
			text += fmt.Sprintf(", %d smoothed", k.Smoothed)
		}
		line(k.Class, "%s", text)
	}
	_, err := io.WriteString(w, s.String())
	return err
}
