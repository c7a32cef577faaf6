package gateway

import "github.com/vigie/vigie"

// ReasonConflict: another object was received before under the same SOP
// Instance UID (PS3.5 9.1 forbids that). Both are kept; a person says which
// one is meant.
const ReasonConflict vigie.ReasonCode = "uid-conflict"

// ReasonUnnamed: the object does not say, or says in two ways, which object of
// which series and study it is. It can be kept and not reported on.
const ReasonUnnamed vigie.ReasonCode = "unnamed"

// ReasonNoPatient: the object has no Patient ID (type 2: it may be empty), so
// that nobody can be sure whose it is.
const ReasonNoPatient vigie.ReasonCode = "no-patient-id"

// texts are general sentences for every reason.
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
	vigie.ReasonModality: {
		English: "The modality or kind of object is outside the model's intended use.",
		French:  "La modalité ou le type d’objet est hors de l’usage prévu du modèle."},
	vigie.ReasonBodyPart: {
		English: "The body part is outside the model's intended use.",
		French:  "La partie du corps est hors de l’usage prévu du modèle."},
	vigie.ReasonView: {
		English: "The projection is outside the model's intended use, or unknown.",
		French:  "L’incidence est hors de l’usage prévu du modèle, ou inconnue."},
	vigie.ReasonAge: {
		English: "The patient's age is outside the model's intended use, or unknown.",
		French:  "L’âge du patient est hors de l’usage prévu du modèle, ou inconnu."},
	vigie.ReasonBurnedIn: {
		English: "The pixels carry, or may carry, burned-in annotation.",
		French:  "Les pixels contiennent, ou pourraient contenir, une annotation incrustée."},
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
	vigie.ReasonUndecided: {
		English: "The model cannot choose between several answers at the stated coverage.",
		French:  "Le modèle ne peut pas trancher entre plusieurs réponses au niveau de couverture annoncé."},
	vigie.ReasonUnsure: {
		English: "The model is less sure of its answer than the stated risk of a wrong one allows.",
		French:  "Le modèle est moins sûr de sa réponse que ne le permet le risque d’erreur annoncé."},
	vigie.ReasonUnstable: {
		English: "The model's answer changes with changes of the image that mean nothing, or its parts disagree.",
		French:  "La réponse du modèle varie avec des changements insignifiants de l’image, ou ses composantes divergent."},
	vigie.ReasonPrior: {
		English: "The answer contradicts an earlier study of the same patient.",
		French:  "La réponse contredit un examen antérieur du même patient."},
	vigie.ReasonCertificate: {
		English: "The answer depends on a small part of the image, or could not be certified.",
		French:  "La réponse dépend d’une petite partie de l’image, ou n’a pas pu être certifiée."},
	vigie.ReasonEnclave: {
		English: "The enclave failed, did not answer in time or could not be trusted.",
		French:  "L’enclave a échoué, n’a pas répondu à temps ou n’a pas pu être vérifiée."},
	vigie.ReasonNoModel: {
		English: "No model is configured for this study.",
		French:  "Aucun modèle n’est configuré pour cet examen."},
	vigie.ReasonPolicy: {
		English: "Local policy sends this case to a person.",
		French:  "La politique locale confie ce cas à une personne."},
	ReasonUnnamed: {
		English: "The object does not clearly say which study, series and instance it is.",
		French:  "L’objet n’indique pas clairement de quel examen, de quelle série et de quelle instance il s’agit."},
	ReasonNoPatient: {
		English: "The object names no patient ID.",
		French:  "L’objet n’indique aucun identifiant de patient."},
	ReasonConflict: {
		English: "Another object was received before under the same identifier.",
		French:  "Un autre objet a déjà été reçu sous le même identifiant."},
	vigie.ReasonInternal: {
		English: "An internal error kept the case from being analysed.",
		French:  "Une erreur interne a empêché l’analyse du cas."},
}

// reason makes a reason of the gateway's own. detail must not hold patient
// data: it is logged and audited.
func reason(code vigie.ReasonCode, detail string) vigie.Reason {
	return vigie.Reason{Code: code, Text: texts[code], Detail: detail}
}
