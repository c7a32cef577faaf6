package federate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vigie/vigie"
)

// Statement is the promise of privacy of a run, with all that it rests on. It is
// about one unit; there is none about both.
type Statement struct {
	Unit Unit `json:"unit"`
	// Epsilon is what the site has spent that has spent most, EpsilonRDP the same by
	// another proof, at Delta; Budget is what the terms allow.
	Epsilon    float64     `json:"epsilon"`
	EpsilonRDP float64     `json:"epsilon_rdp"`
	Delta      float64     `json:"delta"`
	Budget     float64     `json:"budget"`
	Relation   string      `json:"relation"`
	Clip       float64     `json:"clip"`
	Rate       float64     `json:"sampling_rate"`
	Lot        float64     `json:"lot"`
	Noise      float64     `json:"noise_multiplier"`
	Honest     int         `json:"honest"`
	Colluding  int         `json:"colluding"`
	Sites      []SiteSpent `json:"sites"`
	// Words say it to people, the promise first, then what it rests on.
	Words []vigie.Text `json:"words"`
	// Stopped says why the run ended before its rounds were over; empty if not.
	Stopped string `json:"stopped,omitempty"`
}

// SiteSpent is what a site's units have spent.
type SiteSpent struct {
	Site string `json:"site"`
	Spent
}

// Statement makes the promise of a run in which sites of so many, by their names,
// have sent their vectors in so many attempts at rounds; variables is the model's
// size. Nil without DP.
func (t Terms) Statement(attempts map[string]int, sites, variables int) (*Statement, error) {
	d := t.DP
	if d == nil {
		return nil, nil
	}
	s := &Statement{
		Unit: d.Unit, Delta: d.Delta, Budget: d.Epsilon, Relation: fmt.Sprintf("add or remove one %s", d.Unit),
		Clip: d.Clip, Rate: d.Rate, Lot: d.Lot, Noise: d.Noise, Honest: d.Honest, Colluding: d.Colluding,
	}
	known := map[int]Spent{}
	for name, n := range attempts {
		if _, have := known[n]; !have {
			spent, err := t.Spent(n, sites, variables)
			if err != nil {
				return nil, err
			}
			known[n] = spent
		}
		s.Sites = append(s.Sites, SiteSpent{name, known[n]})
		s.Epsilon, s.EpsilonRDP = max(s.Epsilon, known[n].Epsilon), max(s.EpsilonRDP, known[n].EpsilonRDP)
	}
	slices.SortFunc(s.Sites, func(a, b SiteSpent) int { return strings.Compare(a.Site, b.Site) })
	s.Words = s.words()
	return s, nil
}

func (s *Statement) words() []vigie.Text {
	number := func(v float64) string { return strings.Replace(fmt.Sprintf("%.2f", v), ".", ",", 1) }
	var out []vigie.Text
	add := func(english, french string) { out = append(out, vigie.Text{English: english, French: french}) }
	if s.Unit == Patient {
		add(fmt.Sprintf("Per patient, ε = %.2f at δ = %g: whoever sees the model of every round, and all sums that were opened, can hardly tell whether any one patient of any hospital was learnt from.", s.Epsilon, s.Delta),
			fmt.Sprintf("Par patient, ε = %s pour δ = %g : à partir des modèles de tous les tours et de toutes les sommes ouvertes, on ne peut guère savoir si un patient donné, de quelque hôpital que ce soit, a servi à l’apprentissage.", number(s.Epsilon), s.Delta))
		add("It is not a promise about a hospital: that a hospital took part, and what its patients have in common, may show.",
			"Ce n’est pas une promesse au sujet d’un hôpital : qu’un hôpital ait participé, et ce que ses patients ont en commun, peut se voir.")
		add("A patient known to two hospitals, or under two names, counts as two and has up to twice this ε. How many patients were expected in a round is public.",
			"Un patient connu de deux hôpitaux, ou sous deux noms, compte pour deux et a jusqu’à deux fois cet ε. Le nombre de patients attendu par tour est public.")
	} else {
		add(fmt.Sprintf("Per hospital, ε = %.2f at δ = %g: whoever sees the model of every round, and all sums that were opened, can hardly tell what any one hospital's updates were, or whether it sent any.", s.Epsilon, s.Delta),
			fmt.Sprintf("Par hôpital, ε = %s pour δ = %g : à partir des modèles de tous les tours et de toutes les sommes ouvertes, on ne peut guère savoir quelles étaient les mises à jour d’un hôpital donné, ni s’il en a envoyé.", number(s.Epsilon), s.Delta))
		add("It is not a promise about a patient, whose ε would be another number: do not compare the two.",
			"Ce n’est pas une promesse au sujet d’un patient, dont l’ε serait un autre nombre : ne comparez pas les deux.")
	}
	add(fmt.Sprintf("It rests on this: in every sum at least %d hospitals add their share of the noise and keep it to themselves. Up to %d others in the sum may work for the server, or leave their noise out.", s.Honest, s.Colluding),
		fmt.Sprintf("Elle repose sur ceci : dans chaque somme, au moins %d hôpitaux ajoutent leur part de bruit et la gardent pour eux. Jusqu’à %d autres peuvent travailler pour le serveur ou omettre leur bruit.", s.Honest, s.Colluding))
	add("Each further run on the same patients adds to it, and so does trying settings out.",
		"Chaque apprentissage de plus sur les mêmes patients s’y ajoute, tout comme l’essai de réglages.")
	return out
}
