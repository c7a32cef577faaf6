package job

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/attack/privacy"
)

// AuditLimits are what a consortium's policy allows.
type AuditLimits struct {
	// Trials are how many images each arithmetic attack must have been tried on,
	// against what the terms let a server see.
	Trials int `json:"trials"`
	// Reconstructed is the largest share of images that may be reconstructed and
	// identified. Of an arithmetic attack the one-sided 95 % upper end must not lie
	// above it; of the search, which is too slow for so many trials, the lower end.
	Reconstructed float64 `json:"reconstructed"`
	// Membership is the largest share of members that may be named at 1 % false
	// alarms: the upper end of its 95 % interval must not lie above it.
	Membership float64 `json:"membership_tpr_at_1_percent"`
}

// DefaultAuditLimits are 0.01 % of images, of 30,000 trials, and 5 % of members at
// 1 % false alarms.
func DefaultAuditLimits() AuditLimits {
	return AuditLimits{Trials: 30_000, Reconstructed: 1e-4, Membership: 0.05}
}

// Check says what is wrong with limits.
func (l AuditLimits) Check() error {
	if l.Trials < 1 || !(l.Reconstructed > 0 && l.Reconstructed <= 1) || !(l.Membership > 0 && l.Membership <= 1) {
		return fmt.Errorf("job: limits of %d trials, %v of images and %v of members: %w: want 1 or more, and shares above 0", l.Trials, l.Reconstructed, l.Membership, ErrAsk)
	}
	return nil
}

// enFrancais turns what figures and attacks have in them.
var enFrancais = strings.NewReplacer(" to ", " à ", " by "+MeansWeights, " par les poids", " by "+MeansLayer, " par une couche")

// judge works out from the counts alone whether the audit keeps to limits; nothing
// else of a report is believed. Where it is not known how a model's own weights could
// be made to read images, the inserted layer stands for what a server may know that
// we do not, and is judged although the sites refuse it.
func (l AuditLimits) judge(r *AuditReport) (failures []vigie.Text) {
	fail := func(english, french string, arguments ...any) {
		failures = append(failures, vigie.Text{English: fmt.Sprintf(english, arguments...), French: enFrancais.Replace(fmt.Sprintf(french, arguments...))})
	}
	if len(r.Moves) != len(moves) {
		fail("%d moves of a lying server were tried, want %d", "%d manœuvres d’un serveur malhonnête essayées, il en faut %d", len(r.Moves), len(moves))
	}
	refusesLayer := false
	for i, m := range r.Moves {
		if i < len(moves) && m.Name != moves[i].name {
			fail("move %q was not tried", "manœuvre %q non essayée", moves[i].name)
			continue
		}
		if i < len(moves) && !m.Refused && !moves[i].undetectable {
			fail("the sites obey a server that lies: %s", "les sites obéissent à un serveur malhonnête : %s", m.Name)
		}
		refusesLayer = refusesLayer || m.Name == "inserted-layer" && m.Refused
	}
	for _, a := range AuditAttacks {
		if a.Name == AuditMembership {
			continue
		}
		judged := 0
		for _, f := range r.Figures {
			if f.Attack != a.Name || f.Protection != r.Protocol || f.View != viewSum {
				continue
			}
			what := f.Attack
			if f.Means != "" {
				what += " by " + f.Means
			}
			if f.Means == MeansLayer && refusesLayer && r.Without[AuditImprint+"/"+MeansWeights] == "" {
				judged++ // by the sites, which do not train such a model
				continue
			}
			judged++
			switch rate := privacy.ClopperPearson(f.Hits.Hits, f.Trials); {
			case a.Name == AuditOptimise && f.Trials < 1:
				fail("%s was not tried", "attaque %s non essayée", what)
			case a.Name == AuditOptimise && rate.Low > l.Reconstructed:
				fail("%s reconstructs %d of %d images, %s", "l’attaque %s reconstruit %d images sur %d, %s", what, f.Hits.Hits, f.Trials, percent(rate))
			case a.Name == AuditOptimise:
			case f.Trials < l.Trials:
				fail("%s was tried on %d images, want %d", "l’attaque %s a été essayée sur %d images, il en faut %d", what, f.Trials, l.Trials)
			case privacy.AtMost(f.Hits.Hits, f.Trials) > l.Reconstructed:
				fail("%s reconstructs %d of %d images: up to %.3g %%, allowed are %.3g %%", "l’attaque %s reconstruit %d images sur %d : jusqu’à %.3g %%, le maximum permis est %.3g %%", what, f.Hits.Hits, f.Trials, 100*privacy.AtMost(f.Hits.Hits, f.Trials), 100*l.Reconstructed)
			}
		}
		switch a.Name {
		case AuditLinear: // not every model begins so
			if r.Without[a.Name] != "" {
				judged++
			}
		case AuditImprint: // in a layer before any model, and in its own weights where that is known
			for means, why := range map[string]string{MeansLayer: "", MeansWeights: r.Without[AuditImprint+"/"+MeansWeights]} {
				if why == "" && !slices.ContainsFunc(r.Figures, func(f AuditFigure) bool {
					return f.Attack == AuditImprint && f.Means == means && f.Protection == r.Protocol && f.View == viewSum
				}) {
					judged = 0
				}
			}
		}
		if judged == 0 {
			fail("%s was not tried against what the terms let a server see", "l’attaque %s n’a pas été essayée contre ce que les conditions laissent voir au serveur", a.Name)
		}
	}
	members := 0
	for _, m := range r.Members {
		if m.Protection != r.Protocol || m.ROC == nil {
			continue
		}
		members++
		at := slices.IndexFunc(m.Rates, func(r privacy.Rate) bool { return r.FPR == 0.01 })
		switch {
		case at < 0 || !m.Rates[at].Resolved:
			fail("membership was asked of too few people for 1 %% false alarms", "trop peu de personnes pour juger l’appartenance à 1 %% de fausses alarmes")
		case m.Rates[at].TPR.High > l.Membership:
			fail("%s of the members are named at 1 %% false alarms, allowed are %.3g %%", "%s des membres sont reconnus à 1 %% de fausses alarmes, le maximum permis est %.3g %%", percent(m.Rates[at].TPR), 100*l.Membership)
		}
	}
	if members == 0 {
		fail("membership was not asked against what the terms let a server see", "l’appartenance n’a pas été examinée contre ce que les conditions laissent voir au serveur")
	}
	return failures
}

// judge is the verdict by the report's own limits.
func (r *AuditReport) judge() {
	r.Failures = r.Limits.judge(r)
	r.Passed = len(r.Failures) == 0
	trials, hits := 0, 0
	for _, f := range r.Figures {
		if f.Protection == r.Protocol && f.View == viewSum && f.Attack != AuditOptimise && (!f.Refused || r.Without[AuditImprint+"/"+MeansWeights] != "") {
			trials, hits = trials+f.Trials, hits+f.Hits.Hits
		}
	}
	texts := func(of func(vigie.Text) string) string {
		var all []string
		for _, f := range r.Failures {
			all = append(all, of(f))
		}
		return strings.Join(all, "; ")
	}
	kinds := map[Protection][2]string{
		SecureSum: {"secure sums without differential privacy", "des sommes sécurisées, sans confidentialité différentielle"},
		SumAndDP:  {"secure sums with differential privacy", "des sommes sécurisées avec confidentialité différentielle"},
	}
	kind := kinds[r.Protocol]
	if r.Passed {
		r.Verdict = fmt.Sprintf("PASSED. Under these terms (%s), %d of %d images were reconstructed and identified by arithmetic; the server cannot do what the sites refuse, and the limits are kept.", kind[0], hits, trials)
		r.French = fmt.Sprintf("RÉUSSI. Sous ces conditions (%s), %d images sur %d ont été reconstruites et identifiées par le calcul ; le serveur ne peut pas faire ce que les sites refusent, et les limites sont respectées.", kind[1], hits, trials)
		return
	}
	r.Verdict = fmt.Sprintf("NOT PASSED. Under these terms (%s): %s.", kind[0], texts(func(t vigie.Text) string { return t.English }))
	r.French = fmt.Sprintf("ÉCHEC. Sous ces conditions (%s) : %s. Images reconstruites et identifiées par le calcul : %d sur %d.", kind[1], texts(func(t vigie.Text) string { return t.French }), hits, trials)
}

func (r *AuditReport) page() page {
	p := page{Title: "What does a federation give away, and to whom?",
		Lead: fmt.Sprintf("%d sites of %d images each, under terms %.12s…, from %s; a sum holds at least %d sites. Every round ran through the sites' and the coordinator's own code.", r.Sites, r.Batch, r.Terms, r.Data, r.Threshold),
		Fine: fmt.Sprintf("A hit is an image whose best match among what was found reaches an SSIM of %g and is identified: its nearest neighbour among all %d images is that very image. Beside it stand as many images that were in no update. Intervals are Clopper-Pearson's of 95 %%; \"at most\" is the one-sided upper end. Images of one update are not independent, and one image may be in several.", r.SSIM, r.Images)}
	mood := "bad"
	if r.Passed {
		mood = "good"
	}
	for _, f := range r.Figures {
		if f.View == viewSum && f.Protection == r.Protocol && f.Attack != AuditOptimise {
			name := f.Attack
			if f.Means != "" {
				name += " by " + f.Means
			}
			p.Tiles = append(p.Tiles, tile{name + ", " + string(f.Protection), fmt.Sprintf("%d of %d", f.Hits.Hits, f.Trials), fmt.Sprintf("at most %.3g %%, with 95 %% confidence", 100*f.AtMost), mood})
		}
	}
	moves := section{Title: "What a server that lies may try", Head: []string{"move", "the sites", "what it is"}}
	for _, m := range r.Moves {
		said := "obey"
		if m.Refused {
			said = "refuse"
		} else if !m.Expected {
			said = "cannot tell: see imprint by weights"
		}
		moves.Rows = append(moves.Rows, []string{m.Name, said, m.About})
	}
	p.Sections = append(p.Sections, moves)
	s := section{Title: "Images that are reconstructed and identified", Head: []string{"attack", "protection", "what was attacked", "images in it", "hits", "share, 95 %", "at most", "control"}}
	for _, f := range r.Figures {
		name := f.Attack
		if f.Means != "" {
			name += " by " + f.Means
		}
		if f.Refused {
			name += " *"
		}
		s.Rows = append(s.Rows, []string{name, string(f.Protection), f.View, fmt.Sprint(f.Images), fmt.Sprintf("%d of %d", f.Hits.Hits, f.Trials), percent(f.Rate), fmt.Sprintf("%.3g %%", 100*f.AtMost), fmt.Sprintf("%d of %d", f.NeverHits, f.NeverTrials)})
	}
	if slices.ContainsFunc(r.Figures, func(f AuditFigure) bool { return f.Refused }) {
		s.Text = append(s.Text, "* the sites refuse a model with another layer in it: this is what would come of sites that did not. It is part of the verdict only where it is not known how the model's own weights could be made to read images.")
	}
	for _, name := range slices.Sorted(maps.Keys(r.Without)) {
		s.Text = append(s.Text, fmt.Sprintf("%s does not apply: %s", name, r.Without[name]))
	}
	p.Sections = append(p.Sections, s)
	if len(r.Members) > 0 {
		s := section{Title: "People who are recognised as members", Head: []string{"protection", "what was attacked", "AUC (95 %)", "TPR at 0.1 % FPR, %", "at 1 %", "at 10 %", "AUC of the plain loss"}}
		for _, m := range r.Members {
			row := []string{string(m.Protection), m.View, figure(m.AUC)}
			for _, rate := range m.Rates {
				row = append(row, fmt.Sprintf("%.1f (%.1f to %.1f)", 100*rate.TPR.Value, 100*rate.TPR.Low, 100*rate.TPR.High))
			}
			s.Rows = append(s.Rows, append(row, figure(m.Loss.AUC)))
		}
		s.Text = append(s.Text, fmt.Sprintf("%d federations of %d rounds, each trained on a random half of %d people; each is attacked with the others' help.", r.Members[0].Federations, r.Members[0].Rounds, r.Members[0].People))
		p.Sections = append(p.Sections, s)
	}
	about := section{Title: "The attacks", Head: []string{"attack", "what it does"}}
	for _, a := range AuditAttacks {
		about.Rows = append(about.Rows, []string{a.Name, a.About})
	}
	p.Sections = append(p.Sections, about, section{Title: "En français", Text: []string{r.French}})
	return p
}

// Write writes the report for people.
func (r *AuditReport) Write(w io.Writer) error { return r.write(w, r.page()) }

// SaveHTML writes it as one page that needs nothing else.
func (r *AuditReport) SaveHTML(path string) error { return r.save(path, r.page()) }
