package model

import (
	"strings"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/medical/dicom"
)

// The words under which BodyPartExamined names regions of the body (PS3.16
// annex L), to tell "another body part" from "a word nobody knows".
var regions = map[string]vigie.Text{
	"ABDOMEN": {English: "abdomen", French: "abdomen"}, "ANKLE": {English: "ankle", French: "cheville"},
	"AORTA": {English: "aorta", French: "aorte"}, "ARM": {English: "arm", French: "bras"},
	"BLADDER": {English: "bladder", French: "vessie"}, "BRAIN": {English: "brain", French: "cerveau"},
	"BREAST": {English: "breast", French: "sein"}, "CAROTID": {English: "carotid", French: "carotide"},
	"CHEST": {English: "chest", French: "thorax"}, "CLAVICLE": {English: "clavicle", French: "clavicule"},
	"COCCYX": {English: "coccyx", French: "coccyx"}, "COLON": {English: "colon", French: "côlon"},
	"CSPINE": {English: "cervical spine", French: "rachis cervical"}, "ELBOW": {English: "elbow", French: "coude"},
	"EXTREMITY": {English: "extremity", French: "extrémité"}, "EYE": {English: "eye", French: "œil"},
	"FACE": {English: "face", French: "face"}, "FEMUR": {English: "femur", French: "fémur"},
	"FIBULA": {English: "fibula", French: "fibula"}, "FINGER": {English: "finger", French: "doigt"},
	"FOOT": {English: "foot", French: "pied"}, "FOREARM": {English: "forearm", French: "avant-bras"},
	"HAND": {English: "hand", French: "main"}, "HEAD": {English: "head", French: "tête"},
	"HEART": {English: "heart", French: "cœur"}, "HIP": {English: "hip", French: "hanche"},
	"HUMERUS": {English: "humerus", French: "humérus"}, "JAW": {English: "jaw", French: "mâchoire"},
	"KIDNEY": {English: "kidney", French: "rein"}, "KNEE": {English: "knee", French: "genou"},
	"LEG": {English: "leg", French: "jambe"}, "LIVER": {English: "liver", French: "foie"},
	"LSPINE": {English: "lumbar spine", French: "rachis lombaire"}, "LUNG": {English: "lung", French: "poumon"},
	"LUNGS": {English: "lungs", French: "poumons"}, "MANDIBLE": {English: "mandible", French: "mandibule"},
	"NECK": {English: "neck", French: "cou"}, "NOSE": {English: "nose", French: "nez"},
	"ORBIT": {English: "orbit", French: "orbite"}, "PANCREAS": {English: "pancreas", French: "pancréas"},
	"PATELLA": {English: "patella", French: "patella"}, "PELVIS": {English: "pelvis", French: "bassin"},
	"PROSTATE": {English: "prostate", French: "prostate"}, "RIB": {English: "rib", French: "côte"},
	"RIBS": {English: "ribs", French: "côtes"}, "SACRUM": {English: "sacrum", French: "sacrum"},
	"SCAPULA": {English: "scapula", French: "scapula"}, "SHOULDER": {English: "shoulder", French: "épaule"},
	"SINUS": {English: "sinus", French: "sinus"}, "SKULL": {English: "skull", French: "crâne"},
	"SPINE": {English: "spine", French: "rachis"}, "SSPINE": {English: "sacral spine", French: "rachis sacré"},
	"STERNUM": {English: "sternum", French: "sternum"}, "STOMACH": {English: "stomach", French: "estomac"},
	"THIGH": {English: "thigh", French: "cuisse"}, "THORAX": {English: "thorax", French: "thorax"},
	"THUMB": {English: "thumb", French: "pouce"}, "THYROID": {English: "thyroid", French: "thyroïde"},
	"TIBIA": {English: "tibia", French: "tibia"}, "TOE": {English: "toe", French: "orteil"},
	"TSPINE": {English: "thoracic spine", French: "rachis thoracique"}, "UTERUS": {English: "uterus", French: "utérus"},
	"WHOLEBODY": {English: "whole body", French: "corps entier"}, "WRIST": {English: "wrist", French: "poignet"},
}

// The words under which ViewPosition names projections (PS3.3 C.8.1.2, C.8.11.5).
var projections = map[string]vigie.Text{
	"AP": {English: "antero-posterior", French: "antéro-postérieure"}, "PA": {English: "postero-anterior", French: "postéro-antérieure"},
	"LL": {English: "left lateral", French: "profil gauche"}, "RL": {English: "right lateral", French: "profil droit"},
	"LAT": {English: "lateral", French: "profil"}, "LATERAL": {English: "lateral", French: "profil"},
	"RLD": {English: "right lateral decubitus", French: "décubitus latéral droit"}, "LLD": {English: "left lateral decubitus", French: "décubitus latéral gauche"},
	"RLO": {English: "right lateral oblique", French: "oblique latérale droite"}, "LLO": {English: "left lateral oblique", French: "oblique latérale gauche"},
	"LAO": {English: "left anterior oblique", French: "oblique antérieure gauche"}, "RAO": {English: "right anterior oblique", French: "oblique antérieure droite"},
	"LPO": {English: "left posterior oblique", French: "oblique postérieure gauche"}, "RPO": {English: "right posterior oblique", French: "oblique postérieure droite"},
	"OBL": {English: "oblique", French: "oblique"}, "OBLIQUE": {English: "oblique", French: "oblique"},
	"CC": {English: "cranio-caudal", French: "crânio-caudale"}, "MLO": {English: "medio-lateral oblique", French: "médio-latérale oblique"},
	"ML": {English: "medio-lateral", French: "médio-latérale"}, "LM": {English: "latero-medial", French: "latéro-médiale"},
}

// match is what an image says of a place.
type match int

const (
	unknown match = iota // nothing, or nothing that is understood
	inside               // one of the manifest's places, and no other
	outside              // another place
)

// locate compares a text attribute and a sequence of codes with the places of
// a manifest. vocabulary holds the words of other places. The second result
// names the other place, in words of the vocabulary only: the attribute itself
// could hold anything.
func locate(d *dicom.DataSet, text, codes dicom.Tag, places []Place, vocabulary map[string]vigie.Text) (match, vigie.Text) {
	accepted := make(map[string]bool)
	for _, place := range places {
		accepted[place.Term] = true
		for _, synonym := range place.Synonyms {
			accepted[synonym] = true
		}
	}
	in, out := false, false
	var other vigie.Text
	for _, value := range d.Strings(text) {
		value = strings.ToUpper(strings.TrimSpace(value))
		if accepted[value] {
			in = true
			continue
		}
		words := strings.FieldsFunc(value, func(r rune) bool { return !(r >= 'A' && r <= 'Z' || r >= '0' && r <= '9') })
		for _, word := range words {
			if accepted[word] {
				in = true
			} else if name, ok := vocabulary[word]; ok {
				out, other = true, name
			}
		}
	}
	for _, item := range d.Items(codes) {
		value, scheme := item.String(dicom.CodeValue), item.String(dicom.CodingSchemeDesignator)
		if value == "" {
			continue
		}
		if coded(places, value, scheme) {
			in = true
		} else if scheme == "SCT" || scheme == "SRT" || scheme == "SNM3" {
			out = true // a standard code of some other place; a local one says nothing
		}
	}
	switch {
	case in && !out:
		return inside, vigie.Text{}
	case out && !in:
		return outside, other
	}
	return unknown, vigie.Text{}
}

func coded(places []Place, value, scheme string) bool {
	for _, place := range places {
		for _, code := range place.Codes {
			if code.Value == value && code.Scheme == scheme {
				return true
			}
		}
	}
	return false
}
