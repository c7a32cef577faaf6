package guard

import (
	"math"

	"github.com/vigie/vigie"
)

// Name is a guard's name in findings and in the statistics file.
type Name string

// The guards, as findings name them.
const (
	Layers       Name = "layers"
	Texture      Name = "texture"
	Perturbation Name = "perturbation"
	Neighbours   Name = "neighbours"
	Density      Name = "density"
	Patch        Name = "patch"
	Gradient     Name = "gradient"
	Focus        Name = "focus"
	Squeezing    Name = "squeezing"
	Occlusion    Name = "occlusion"
	Combined     Name = "combined"
	Replay       Name = "replay"
)

// Kind is a row of the table of guards.
type Kind struct {
	Name    Name
	Second  bool // asked only at a second look
	ByClass bool // compared with images of the same leading answer
	About   string
	Text    vigie.Text // what a radiologist reads when it led to the alarm
}

// Guards returns the table, in the order of their results.
func Guards() []Kind { return append([]Kind{}, kinds...) }

var kinds = []Kind{
	{Layers, false, true,
		"Mahalanobis distance of the averages of inner layers from those of the same answer (Lee et al. 2018), the furthest layer",
		vigie.Text{
			English: "Inside the model, the image does not look like the images that led to this answer during validation.",
			French:  "À l’intérieur du modèle, l’image ne ressemble pas à celles qui ont conduit à cette réponse lors de la validation."}},
	{Texture, false, false,
		"Mahalanobis distance of frequency bands, residuals, local noise and correlation of noise",
		vigie.Text{
			English: "The noise or sharpness of the image is not that of the images the model was validated on.",
			French:  "Le bruit ou la netteté de l’image ne sont pas ceux des images de validation du modèle."}},
	{Perturbation, false, false,
		"the same statistics, weighted to tell images from images with a computed perturbation (fitted on attacks made while fitting)",
		vigie.Text{
			English: "The image carries a fine pattern like one added by a computer to change the model’s answer.",
			French:  "L’image porte un motif fin, comme ajouté par un ordinateur pour changer la réponse du modèle."}},
	{Neighbours, false, false,
		"distance to the nearest validation images, in the model's last inner layer",
		vigie.Text{
			English: "No image like this one was among those the model was validated on.",
			French:  "Aucune image semblable ne figurait parmi celles de la validation du modèle."}},
	{Density, false, false,
		"density of validation images around this one, in the model's last inner layer",
		vigie.Text{
			English: "Images like this one were rare among those the model was validated on.",
			French:  "Les images semblables étaient rares parmi celles de la validation du modèle."}},
	{Patch, false, false,
		"places that stick out of their surroundings, weighted to tell images from images with a pasted patch (fitted on patches made while fitting)",
		vigie.Text{
			English: "A small place of the image sticks out as if something had been pasted or drawn there.",
			French:  "Une petite zone de l’image tranche comme si un élément y avait été collé ou dessiné."}},
	{Gradient, true, false,
		"alignment of the image's fine detail with the direction that changes the answer fastest",
		vigie.Text{
			English: "The fine detail of the image points exactly where it would change the model’s answer: it may have been computed.",
			French:  "Le détail fin de l’image va précisément dans le sens qui change la réponse du modèle : il peut avoir été calculé."}},
	{Focus, true, false,
		"share of the answer's sensitivity that lies in one small place",
		vigie.Text{
			English: "The model’s answer hangs on one very small place of the image.",
			French:  "La réponse du modèle tient à une très petite zone de l’image."}},
	{Squeezing, true, false,
		"change of the answer when the image is smoothed or given fewer grey levels (Xu et al. 2018)",
		vigie.Text{
			English: "The model’s answer changes when the image is smoothed or rounded slightly.",
			French:  "La réponse du modèle change dès que l’image est légèrement lissée ou arrondie."}},
	{Occlusion, true, false,
		"largest loss of evidence when a small place is covered",
		vigie.Text{
			English: "The model’s answer changes when one small place of the image is covered.",
			French:  "La réponse du modèle change dès qu’une petite zone de l’image est masquée."}},
}

// kindOf returns the row of a name, or -1.
func kindOf(name Name) int {
	for i, k := range kinds {
		if k.Name == name {
			return i
		}
	}
	return -1
}

// scores holds one number a guard, in the order of the table; negative infinity
// where a guard was not asked.
type scores []float64

func unasked() scores {
	s := make(scores, len(kinds))
	for i := range s {
		s[i] = math.Inf(-1)
	}
	return s
}
