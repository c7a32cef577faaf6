package gateway

import "github.com/vigie/vigie"

// texts are the sentences of the reasons that the gateway itself gives.
var texts = map[vigie.ReasonCode]vigie.Text{
	vigie.ReasonUnreadable: {
		English: "The object cannot be read: it is truncated or corrupt.",
		French:  "L’objet est illisible : il est tronqué ou corrompu."},
	vigie.ReasonTransferSyntax: {
		English: "The pixels are in a transfer syntax that cannot be decoded here.",
		French:  "Les pixels sont dans une syntaxe de transfert qui ne peut pas être décodée ici."},
	vigie.ReasonPixels: {
		English: "The object carries no usable image.",
		French:  "L’objet ne contient pas d’image exploitable."},
	vigie.ReasonDeidentify: {
		English: "A de-identified copy could not be vouched for.",
		French:  "Une copie dé-identifiée n’a pas pu être garantie."},
	vigie.ReasonBorderline: {
		English: "The probability is too close to the operating point.",
		French:  "La probabilité est trop proche du point de décision."},
	vigie.ReasonImplausible: {
		English: "The model's output is not plausible.",
		French:  "La sortie du modèle n’est pas plausible."},
	vigie.ReasonGuard: {
		English: "A guard of the model raised an alarm.",
		French:  "Un garde du modèle a donné l’alarme."},
	vigie.ReasonEnclave: {
		English: "The enclave failed, did not answer in time or could not be trusted.",
		French:  "L’enclave a échoué, n’a pas répondu à temps ou n’a pas pu être vérifiée."},
	vigie.ReasonNoModel: {
		English: "No model is configured for this study.",
		French:  "Aucun modèle n’est configuré pour cet examen."},
	vigie.ReasonPolicy: {
		English: "Local policy sends this case to a person.",
		French:  "La politique locale confie ce cas à une personne."},
	vigie.ReasonInternal: {
		English: "An internal error kept the case from being analysed.",
		French:  "Une erreur interne a empêché l’analyse du cas."},
}

// reason makes a reason of the gateway's own. detail must not hold patient
// data: it is logged and audited.
func reason(code vigie.ReasonCode, detail string) vigie.Reason {
	return vigie.Reason{Code: code, Text: texts[code], Detail: detail}
}
