package poison

import (
	"math"
	"slices"
)

// Contrast is a comparison of one contributor with the others.
type Contrast struct {
	Site      string  `json:"site"`
	What      string  `json:"what"`
	Here      float64 `json:"here"` // rate, or median
	Elsewhere float64 `json:"elsewhere"`
	Seen      int     `json:"seen"`              // cases here that have it; 0 of a measurement
	Cases     int     `json:"cases"`             // here
	P         float64 `json:"p"`                 // Fisher's exact test, or Mann and Whitney's
	Q         float64 `json:"q"`                 // adjusted for all comparisons (Benjamini and Hochberg)
	Exceeds   float64 `json:"exceeds,omitempty"` // of a measurement: probability that one here exceeds one elsewhere
	Found     bool    `json:"found"`
}

const (
	siteShare   = 0.05 // expected share of false ones among what is found (Benjamini and Hochberg)
	siteExceeds = 0.70 // a measurement must differ this much as well: in large data anything is significant
	siteCases   = 10   // of a contributor that is compared
)

// contrasts compares each contributor with the others: shares of labels, suspects,
// duplicates, and brightness, contrast and noise of images.
func contrasts(c *Cases, l *Labels, pairs []Pair, odd []Odd, found []Mark) []Contrast {
	if c.Sites == nil {
		return nil
	}
	n := c.Len()
	members := map[string][]int{}
	for i, s := range c.Sites {
		if s != "" {
			members[s] = append(members[s], i)
		}
	}
	var names []string
	for s, at := range members {
		if len(at) >= siteCases && n-len(at) >= siteCases {
			names = append(names, s)
		}
	}
	slices.Sort(names)
	type trait struct {
		what string
		has  []bool
	}
	none := func() []bool { return make([]bool, n) }
	var traits []trait
	for class := range c.Set.Classes {
		if c.Set.Classes == 2 && class == 0 {
			continue // the other one's mirror
		}
		has := none()
		for i := range n {
			has[i] = c.Set.Labels[i] == class
		}
		traits = append(traits, trait{"label " + c.Set.ClassName(class), has})
	}
	if l.Probabilities != nil {
		has := none()
		for i, p := range l.Probabilities {
			has[i] = slices.Index(p, slices.Max(p)) != c.Set.Labels[i]
		}
		traits = append(traits, trait{"labels that are not the likeliest class", has})
	}
	twice := none()
	for _, p := range pairs {
		twice[p.First], twice[p.Second] = true, true
	}
	strange := none()
	for _, o := range odd {
		strange[o.Case] = true
	}
	marked := none()
	for _, m := range found {
		for _, i := range m.Members {
			marked[i] = true
		}
	}
	traits = append(traits, trait{"images that are there twice", twice}, trait{"artificial or unusual images", strange}, trait{"recurring marks", marked})
	measured := []struct {
		what   string
		values []float64
	}{{"brightness", make([]float64, n)}, {"contrast", make([]float64, n)}, {"finest detail", make([]float64, n)}}
	for i := range n {
		p := c.grey(i)
		sum := 0.0
		for _, v := range p.values {
			sum += float64(v)
		}
		measured[0].values[i] = 255 * sum / float64(len(p.values))
		measured[1].values[i] = 255 * deviation(p.values)
		measured[2].values[i] = fine(p)
	}
	var out []Contrast
	for _, s := range names {
		here := make([]bool, n)
		for _, i := range members[s] {
			here[i] = true
		}
		for _, t := range traits {
			seen, marks := 0, 0
			for i, yes := range t.has {
				if yes {
					marks++
					if here[i] {
						seen++
					}
				}
			}
			if marks == 0 {
				continue
			}
			k := len(members[s])
			out = append(out, Contrast{Site: s, What: t.what, Seen: seen, Cases: k, Here: float64(seen) / float64(k), Elsewhere: float64(marks-seen) / float64(n-k), P: fisher(seen, k, marks, n)})
		}
		for _, m := range measured {
			var a, b []float64
			for i, v := range m.values {
				if here[i] {
					a = append(a, v)
				} else {
					b = append(b, v)
				}
			}
			exceeds, p := rankSum(a, b)
			out = append(out, Contrast{Site: s, What: m.what, Cases: len(a), Here: median(a), Elsewhere: median(b), P: p, Exceeds: exceeds})
		}
	}
	p := make([]float64, len(out))
	for i, v := range out {
		p[i] = v.P
	}
	for i, q := range Discoveries(p) {
		out[i].Q = q
		out[i].Found = q <= siteShare && (out[i].Exceeds == 0 || math.Abs(out[i].Exceeds-0.5) >= siteExceeds-0.5)
	}
	return out
}
