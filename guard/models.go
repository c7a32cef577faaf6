package guard

import "math"

// models is what is fitted: everything that turns an image into scores.
type models struct {
	Layers       []*gaussian // by tap
	LayerTails   []tail      // brings the layers to one scale
	Texture      *gaussian
	Perturbation *logistic
	Patch        *logistic
	References   *references
}

// first asks the guards of the first look.
func (m *models) first(l *Look, s scores) {
	most := math.Inf(-1)
	for i, g := range m.Layers {
		most = max(most, m.LayerTails[i].surprise(g.distance(l.layers[i], l.class)))
	}
	s[kindOf(Layers)] = most
	s[kindOf(Texture)] = m.Texture.distance(l.pixels.texture, 0)
	s[kindOf(Perturbation)] = m.Perturbation.score(l.pixels.texture)
	s[kindOf(Patch)] = m.Patch.score(l.pixels.peaks)
	s[kindOf(Neighbours)], s[kindOf(Density)] = m.References.look(l.layers[len(l.layers)-1])
}

// example is what fitting knows of an image: clean, with a perturbation, with a
// patch.
type example struct {
	*Look
	perturbed [][]float64 // texture of each perturbed copy
	patched   [][]float64 // peaks of each patched copy
}

// fitModels fits everything on some examples.
func fitModels(examples []example, classes int) (*models, error) {
	m := &models{}
	class := make([]int, len(examples))
	var texture, peaks, perturbed, patched [][]float64
	for i, e := range examples {
		class[i] = e.class
		texture, peaks = append(texture, e.pixels.texture), append(peaks, e.pixels.peaks)
		perturbed, patched = append(perturbed, e.perturbed...), append(patched, e.patched...)
	}
	for k := range examples[0].layers {
		rows := make([][]float64, len(examples))
		for i, e := range examples {
			rows[i] = e.layers[k]
		}
		g, err := fitGaussian(rows, class, classes)
		if err != nil {
			return nil, err
		}
		m.Layers = append(m.Layers, g)
		distances := make([]float64, len(rows))
		for i, x := range rows {
			distances[i] = g.distance(x, class[i])
		}
		m.LayerTails = append(m.LayerTails, fitTail(distances))
		if k == len(examples[0].layers)-1 {
			if m.References, err = fitReferences(rows); err != nil {
				return nil, err
			}
		}
	}
	var err error
	if m.Texture, err = fitGaussian(texture, make([]int, len(texture)), 1); err != nil {
		return nil, err
	}
	if m.Perturbation, err = fitLogistic(texture, perturbed); err != nil {
		return nil, err
	}
	m.Patch, err = fitLogistic(peaks, patched)
	return m, err
}
