package model

// Disagreement says when the model is asked more than once about an image: about
// slightly altered copies, or, of an ensemble, what each member says. How far
// apart the answers usually are is fitted (vigie model fit).
type Disagreement struct {
	Mode       string  `yaml:"mode"`       // off, on, or borderline
	By         string  `yaml:"by"`         // views or members; empty: members of an ensemble, or else views
	Below      float64 `yaml:"below"`      // of borderline: asked where the probability of the answer is below this
	Shift      int     `yaml:"shift"`      // of views: pixels of the input by which copies are moved; 0: a twenty-eighth of the side
	Brightness float64 `yaml:"brightness"` // of views: share of the range by which copies are lighter and darker; 0: 0.05
	Flip       bool    `yaml:"flip"`       // of views: left and right may change places, because sides do not matter to this model
}

// When the model is asked more than once.
const (
	AskOff        = "off"
	AskOn         = "on"
	AskBorderline = "borderline"
)

// What is compared.
const (
	ByViews   = "views"
	ByMembers = "members"
)

// Asks reports whether the manifest wants disagreement measured.
func (d *Disagreement) Asks() bool { return d != nil && d.Mode != AskOff }

func (p *problemList) disagreement(path string, d *Disagreement) {
	if d == nil {
		return
	}
	p.oneOf(path+".mode", d.Mode, AskOff, AskOn, AskBorderline)
	if d.By != "" {
		p.oneOf(path+".by", d.By, ByViews, ByMembers)
	}
	if d.Mode == AskBorderline {
		p.number(path+".below", d.Below, 0.5, 1)
	} else if d.Below != 0 {
		p.at(path+".below", "means nothing unless the mode is borderline")
	}
	p.number(path+".shift", float64(d.Shift), 0, 64)
	p.number(path+".brightness", d.Brightness, 0, 0.5)
}
