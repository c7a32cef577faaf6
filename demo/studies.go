package demo

import (
	"bytes"
	"fmt"
	"os"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

// study is one object that the demo sends, and what must become of it.
type study struct {
	name string
	stow bool // by STOW-RS instead of C-STORE
	make func() ([]byte, error)
	want []vigie.Decision   // any of these
	why  []vigie.ReasonCode // with all of these reasons
}

func (s study) by() string {
	if s.stow {
		return "STOW"
	}
	return "DIMSE"
}

// judge says what is not as expected about a case, or nothing.
func (s study) judge(c *vigie.Case) string {
	if c.Verdict == nil {
		return "no verdict: the case is " + string(c.State)
	}
	ok := false
	for _, d := range s.want {
		ok = ok || c.Verdict.Decision == d
	}
	if !ok {
		return fmt.Sprintf("decision %s, want one of %v", c.Verdict.Decision, s.want)
	}
	for _, code := range s.why {
		found := false
		for _, r := range c.Verdict.Reasons {
			found = found || r.Code == code
		}
		if !found {
			return fmt.Sprintf("no reason %q", code)
		}
	}
	if c.Verdict.Decision == vigie.Release && (c.Finding == nil || len(c.Finding.Predictions) == 0) {
		return "released without a finding"
	}
	return ""
}

var (
	answered = []vigie.Decision{vigie.Release, vigie.Review} // the model's answer may be borderline
	review   = []vigie.Decision{vigie.Review}
	corrupt  = []vigie.Decision{vigie.Quarantine}
)

// studies lists what the demo sends. radiograph is the path of a real DICOM
// radiograph, or empty.
func studies(radiograph string) []study {
	var list []study
	if radiograph != "" {
		list = append(list, study{
			name: "real chest radiograph",
			make: func() ([]byte, error) {
				data, err := os.ReadFile(radiograph)
				if err != nil {
					return nil, fmt.Errorf("demo: reading the radiograph: %w", err)
				}
				return data, nil
			},
			want: answered,
		})
	}
	chest := func(name string, stow bool, seed uint64, o phantom.Options) study {
		return study{name: name, stow: stow, want: answered, make: func() ([]byte, error) { return encode(phantom.Chest(seed, o)) }}
	}
	list = append(list,
		chest("clear chest, 4 y", false, 2, phantom.Options{}),
		chest("dense opacity, 3 y", true, 1, phantom.Options{Opacity: 1, OpacityRadius: 0.3, Age: "003Y"}),
		chest("faint opacity, 2 y", false, 3, phantom.Options{Opacity: 0.35, Age: "002Y"}),
		chest("MONOCHROME1, 5 y", true, 4, phantom.Options{Photometric: "MONOCHROME1", Age: "005Y"}),
		chest("RLE Lossless, 4 y", false, 5, phantom.Options{TransferSyntax: dicom.RLELossless}),
		chest("deflated, 1 y", true, 6, phantom.Options{TransferSyntax: dicom.DeflatedLittleEndian, Age: "001Y", Opacity: 0.8}),
		chest("JPEG Baseline, 4 y", false, 7, phantom.Options{TransferSyntax: dicom.JPEGBaseline, Opacity: 0.9}),
	)
	adult := chest("adult chest, 61 y", false, 8, phantom.Options{Age: "061Y"})
	adult.want, adult.why = review, []vigie.ReasonCode{vigie.ReasonAge}
	named := chest("name burned in, 4 y", true, 9, phantom.Options{BurnedIn: true})
	named.want, named.why = review, []vigie.ReasonCode{vigie.ReasonBurnedIn}
	return append(list, adult, named,
		study{
			name: "abdomen CT", want: review, why: []vigie.ReasonCode{vigie.ReasonModality},
			make: func() ([]byte, error) { return encode(phantom.AbdomenCT(10, phantom.Options{})) },
		},
		study{
			name: "truncated chest", stow: true, want: corrupt, why: []vigie.ReasonCode{vigie.ReasonUnreadable},
			make: func() ([]byte, error) {
				data, err := encode(phantom.Chest(11, phantom.Options{}))
				if err != nil {
					return nil, err
				}
				return data[:len(data)/3], nil
			},
		})
}

func encode(file *dicom.File, err error) ([]byte, error) {
	if err != nil {
		return nil, fmt.Errorf("demo: drawing a phantom: %w", err)
	}
	var out bytes.Buffer
	if err := file.Write(&out); err != nil {
		return nil, fmt.Errorf("demo: writing a phantom: %w", err)
	}
	return out.Bytes(), nil
}
