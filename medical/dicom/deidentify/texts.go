package deidentify

import "github.com/vigie/vigie"

// What a person reads when a copy is referred.
var (
	burnedInText = vigie.Text{
		English: "The image declares text burned into its pixels; check that it shows no identity.",
		French:  "L’image déclare du texte incrusté dans ses pixels ; vérifiez qu’elle ne montre aucune identité.",
	}
	recognizableText = vigie.Text{
		English: "The image declares that a face or other feature could be recognised; check it before it is analysed.",
		French:  "L’image déclare qu’un visage ou un autre trait pourrait être reconnu ; vérifiez-la avant analyse.",
	}
	overlayText = vigie.Text{
		English: "The image carries overlay planes, which may show text; they are removed, but check the pixels.",
		French:  "L’image porte des plans de superposition, qui peuvent contenir du texte ; ils sont retirés, mais vérifiez les pixels.",
	}
	kindText = vigie.Text{
		English: "Images of this kind often have an identity burned into their pixels, and this one does not say that it has none.",
		French:  "Les images de ce type portent souvent une identité incrustée dans leurs pixels, et celle-ci n’affirme pas le contraire.",
	}
	unregisteredText = vigie.Text{
		English: "The object is of a kind (SOP class) that the DICOM standard does not register.",
		French:  "L’objet est d’un type (classe SOP) que la norme DICOM ne connaît pas.",
	}
	syntaxText = vigie.Text{
		English: "The pixels are in an encoding (transfer syntax) that the DICOM standard does not register; they were left out of the copy.",
		French:  "Les pixels sont dans un codage (syntaxe de transfert) que la norme DICOM ne connaît pas ; ils sont absents de la copie.",
	}
	framesText = vigie.Text{
		English: "The compressed pixels could not be checked for comments and were left out of the copy.",
		French:  "Les pixels comprimés n’ont pas pu être débarrassés de leurs commentaires et sont absents de la copie.",
	}
	geometryText = vigie.Text{
		English: "The pixels do not fit what the header says of them and were left out of the copy.",
		French:  "Les pixels ne correspondent pas à leur description dans l’en-tête et sont absents de la copie.",
	}
	tableText = vigie.Text{
		English: "A look-up table is not as long as it says and was left out of the copy.",
		French:  "Une table de correspondance n’a pas la longueur annoncée et est absente de la copie.",
	}
)
