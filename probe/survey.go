package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/vigie/vigie/engine"
	"github.com/vigie/vigie/explain"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/model"
	"github.com/vigie/vigie/train/studies"
)

// Survey says on which images a package's methods of explanation are put to the
// test, all of them together. They must be of the kind that the model reads.
type Survey struct {
	Files    []string // DICOM, PNG, JPEG
	Test              // or some of a data set, if Data is given
	Count    int      // of those; 0: all
	Phantoms int      // drawn chests of the seeds from Test.Seed on, every other one with a consolidation
	Methods  []string // as manifests spell them; none: those of the manifest
	All      bool     // every method, but for those that this graph cannot be explained by
	Threads  int      // of the engine; 0 is its default
}

// Survey measures what methods of explanation are worth on a package. The error
// wraps ErrAsk for a bare graph, or without images.
func (m *Model) Survey(ctx context.Context, q Survey) (*model.Survey, error) {
	if m.Package == nil {
		return nil, fmt.Errorf("probe: surveying %s: %w: want a package; vigie explain --check tests a map of a bare graph", m.Path, ErrAsk)
	}
	methods := q.Methods
	if q.All {
		methods = model.MethodNames()
	} else if len(methods) == 0 {
		methods = m.Package.Manifest.Explanation.Methods()
	}
	if len(methods) == 0 {
		return nil, fmt.Errorf("probe: surveying %s: %w: its manifest wants no explanation: name methods", m.Path, ErrAsk)
	}
	inputs, about, err := m.surveyed(ctx, q)
	if err != nil {
		return nil, err
	}
	if q.All {
		methods = slices.DeleteFunc(methods, func(name string) bool { return !m.fits(name) })
	}
	return m.Package.SurveyMethods(ctx, methods, inputs, about, q.Threads)
}

// fits says whether the graph has what a method explains by.
func (m *Model) fits(name string) bool {
	method, _ := model.MethodOf(name)
	o, _, err := m.Package.ExplainOptions(name, 1)
	if err != nil {
		return true // which says why when it is asked for
	}
	e, err := explain.New(method, m.Graph, o)
	if err == nil {
		err = e.Close()
	}
	return !errors.Is(err, explain.ErrNoAttention) && !errors.Is(err, explain.ErrNoLayer)
}

// surveyed prepares the images and describes them.
func (m *Model) surveyed(ctx context.Context, q Survey) (inputs []engine.Tensor, about string, err error) {
	var parts []string
	for _, path := range q.Files {
		t, err := m.fromImageFile(Example{Input: path})
		if err != nil {
			return nil, "", err
		}
		inputs = append(inputs, t)
	}
	switch n := len(q.Files); n {
	case 0:
	case 1:
		parts = append(parts, "1 file")
	default:
		parts = append(parts, fmt.Sprintf("%d files", n))
	}
	if q.Data != "" {
		o, err := m.ask(q.Test)
		if err != nil {
			return nil, "", err
		}
		data, err := studies.Open(ctx, o)
		if err != nil {
			return nil, "", err
		}
		set, err := data.Set(q.Split)
		if err != nil {
			return nil, "", err
		}
		chosen := rand.New(rand.NewPCG(q.Seed, 0x5EED)).Perm(set.Len())
		if q.Count > 0 && q.Count < len(chosen) {
			chosen = chosen[:q.Count]
		}
		slices.Sort(chosen)
		for _, i := range chosen {
			t, err := m.fromSet(set, i)
			if err != nil {
				return nil, "", err
			}
			inputs = append(inputs, t)
		}
		parts = append(parts, fmt.Sprintf("%d of %d images of %s, split %s, seed %d", len(chosen), set.Len(), filepath.Base(q.Data), q.Split, q.Seed))
	}
	for i := range q.Phantoms {
		t, err := m.drawn(q.Seed+uint64(i), i, q.Phantoms)
		if err != nil {
			return nil, "", err
		}
		inputs = append(inputs, t)
	}
	if q.Phantoms > 0 {
		parts = append(parts, fmt.Sprintf("%d drawn chests of seeds %d to %d", q.Phantoms, q.Seed, q.Seed+uint64(q.Phantoms)-1))
	}
	if len(inputs) == 0 {
		return nil, "", fmt.Errorf("probe: surveying %s: %w: name images: files, a data set, or a number of drawn chests", m.Path, ErrAsk)
	}
	return inputs, strings.Join(parts, "; "), nil
}

// drawn is a drawn chest as an input: clear, or with a consolidation that is
// denser from one to the next.
func (m *Model) drawn(seed uint64, i, n int) (engine.Tensor, error) {
	o := phantom.Options{}
	if i%2 == 1 {
		o.Opacity = 0.4 + 0.6*float64(i)/float64(n)
	}
	file, err := phantom.Chest(seed, o)
	if err != nil {
		return engine.Tensor{}, err
	}
	l, err := file.Luminance(0)
	if err != nil {
		return engine.Tensor{}, err
	}
	return m.Package.Manifest.Prepare(l)
}

// WriteSurvey writes a survey as a table for people.
func WriteSurvey(w io.Writer, s *model.Survey) error {
	fmt.Fprintf(w, "%s; background %s, in the test %s; score %s\n", s.Images, s.Background, s.Tested, s.Score)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "METHOD\tPASSED\tMEAN P\tINS-DEL\tRANDOMISED WEIGHTS\tMAP\tTEST\tEXPLAINS THIS MODEL")
	for _, m := range s.Methods {
		weights := "none"
		if m.Randomised {
			weights = fmt.Sprintf("%+.2f ± %.2f", m.Similarity, m.Error)
		}
		verdict := "yes"
		for i, f := range m.Failures() {
			if i == 0 {
				verdict = "NO: " + string(f)
			} else {
				verdict += ", " + string(f)
			}
		}
		fmt.Fprintf(table, "%s\t%d of %d\t%.3f\t%+.3f\t%s\t%s\t%s\t%s\n", m.Name, m.Explained, m.Images, m.MeanP, m.MeanScore, weights,
			m.MapTime.Round(100*time.Microsecond), m.TestTime.Round(100*time.Microsecond), verdict)
	}
	return table.Flush()
}

// ErrNoMethod: none of a package's methods explains its model.
var ErrNoMethod = errors.New("no method of the manifest explains this model: its answers would go out without a map")

// Explained returns ErrNoMethod unless one of the methods explains the model.
func Explained(s *model.Survey) error {
	for _, m := range s.Methods {
		if len(m.Failures()) == 0 {
			return nil
		}
	}
	return fmt.Errorf("probe: surveying: %w", ErrNoMethod)
}
