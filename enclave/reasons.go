package enclave

import (
	"fmt"
	"image"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/model"
)

// The sentences a clinician reads when the enclave cannot vouch for a result.
// They say what happened and what it means for the case; details for engineers
// go to Detail and never quote the input.

func reason(code vigie.ReasonCode, detail, english, french string) vigie.Reason {
	return vigie.Reason{Code: code, Detail: detail, Text: vigie.Text{English: english, French: french}}
}

func reasonTimeout(limit time.Duration) vigie.Reason {
	return reason(vigie.ReasonEnclave, "time limit "+limit.String(),
		"The analysis took too long and was stopped. The image was not analysed.",
		"L’analyse a pris trop de temps et a été arrêtée. L’image n’a pas été analysée.")
}

func reasonPanic() vigie.Reason {
	return reason(vigie.ReasonEnclave, "contained panic",
		"The analysis failed on this image. The image was not analysed.",
		"L’analyse a échoué sur cette image. L’image n’a pas été analysée.")
}

func reasonInternal(err error) vigie.Reason {
	return reason(vigie.ReasonInternal, err.Error(),
		"The analysis produced an inconsistent result, which was discarded.",
		"L’analyse a produit un résultat incohérent, qui a été écarté.")
}

func reasonEngine(step string) vigie.Reason {
	return reason(vigie.ReasonEnclave, step+" failed",
		"The model could not be run on this image.",
		"Le modèle n’a pas pu être exécuté sur cette image.")
}

func reasonUnreadable(detail string) vigie.Reason {
	return reason(vigie.ReasonUnreadable, detail,
		"The DICOM object is damaged or incomplete and cannot be read.",
		"L’objet DICOM est endommagé ou incomplet et ne peut pas être lu.")
}

func reasonTransferSyntax(syntax string) vigie.Reason {
	return reason(vigie.ReasonTransferSyntax, syntax,
		fmt.Sprintf("The image is compressed in a way that this installation cannot decode (%s).", syntax),
		fmt.Sprintf("L'image est compressée d'une façon que cette installation ne sait pas décoder (%s).", syntax))
}

func reasonPixels(detail string) vigie.Reason {
	return reason(vigie.ReasonPixels, detail,
		"The object has no pixels that can be decoded as an image.",
		"L’objet ne contient pas de pixels décodables en image.")
}

func reasonIdentified(detail string) vigie.Reason {
	return reason(vigie.ReasonDeidentify, detail,
		"The copy sent for analysis was not de-identified as expected, so it was not analysed.",
		"La copie envoyée pour analyse n’était pas désidentifiée comme prévu ; elle n’a donc pas été analysée.")
}

// maxUnseen is the share of an image that the model's window may leave out
// before its answer is no answer about the image. A 2140×1760 chest loses 18 %
// to a centre square.
const maxUnseen = 0.35

// unseenShare is the part of an image of rows by columns pixels that lies
// outside window, 0 to 1.
func unseenShare(window model.Window, rows, columns int) float64 {
	seen := image.Rect(window.Left, window.Top, window.Left+window.Columns, window.Top+window.Rows).Intersect(image.Rect(0, 0, columns, rows))
	return 1 - float64(seen.Dx()*seen.Dy())/float64(max(1, rows*columns))
}

func reasonUnseen(unseen float64) vigie.Reason {
	return reason(vigie.ReasonGuard, fmt.Sprintf("image-window: %.0f %% of the image is outside", 100*unseen),
		"The model saw only the central part of the image; what lies outside was not read.",
		"Le modèle n’a vu que la partie centrale de l’image ; le reste n’a pas été lu.")
}
