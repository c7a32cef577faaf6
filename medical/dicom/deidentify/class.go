package deidentify

import (
	"strings"
	"sync"
)

// storageRoot is the arc under which PS3.4 annex B registers nearly all storage
// SOP classes.
const storageRoot = "1.2.840.10008.5.1.4.1.1."

// storageClasses holds the rest of each UID under storageRoot (PS3.4 table B.5-1,
// edition 2024e, and the retired image classes that archives still hold). A UID
// that merely begins like a standard one could carry anything in its last
// digits, so only these stay.
const storageClasses = `
1 1.1 1.1.1 1.2 1.2.1 1.3 1.3.1 2 2.1 2.2 3 3.1 4 4.1 4.2 4.3 4.4 5 6 6.1 6.2 6.3 7 7.1
7.2 7.3 7.4 9.1.1 9.1.2 9.1.3 9.1.4 9.2.1 9.3.1 9.4.1 9.4.2 9.5.1 9.6.1 9.6.2 9.7.1 9.7.2
9.7.3 9.7.4 9.8.1 11.1 11.2 11.3 11.4 11.5 11.6 11.7 11.8 11.9 11.10 11.11 11.12 12.1
12.1.1 12.2 12.2.1 12.3 13.1.1 13.1.2 13.1.3 13.1.4 13.1.5 14.1 14.2 20 30 66 66.1 66.2
66.3 66.4 66.5 66.6 67 68.1 68.2 77.1 77.1.1 77.1.1.1 77.1.2 77.1.2.1 77.1.3 77.1.4
77.1.4.1 77.1.5.1 77.1.5.2 77.1.5.3 77.1.5.4 77.1.5.5 77.1.5.6 77.1.5.7 77.1.5.8 77.1.6
77.1.7 77.1.8 77.1.9 77.2 78.1 78.2 78.3 78.4 78.5 78.6 78.7 78.8 79.1 80.1 81.1 82.1
88.11 88.22 88.33 88.34 88.35 88.40 88.50 88.59 88.65 88.67 88.68 88.69 88.70 88.71 88.72
88.73 88.74 88.75 88.76 90.1 91.1 104.1 104.2 104.3 104.4 104.5 128 128.1 130 131 200.1
200.2 200.3 200.7 200.8 201.1 481.1 481.2 481.3 481.4 481.5 481.6 481.7 481.8 481.9 481.10
481.11 481.12 481.13 481.14 481.15 481.16 481.17 481.18 481.19 481.20 481.21 481.22 481.23
481.24 481.25`

// otherClasses are registered outside storageRoot.
var otherClasses = []string{
	"1.2.840.10008.1.3.10",      // Media Storage Directory
	"1.2.840.10008.3.1.2.3.1",   // Detached Study Management (retired), in ReferencedStudySequence
	"1.2.840.10008.3.1.2.3.3",   // Modality Performed Procedure Step
	"1.2.840.10008.5.1.1.29",    // Hardcopy Grayscale Image (retired)
	"1.2.840.10008.5.1.1.30",    // Hardcopy Color Image (retired)
	"1.2.840.10008.5.1.4.34.7",  // RT Beams Delivery Instruction
	"1.2.840.10008.5.1.4.34.10", // RT Brachy Application Setup Delivery Instruction
	"1.2.840.10008.5.1.4.38.1",  // Hanging Protocol
	"1.2.840.10008.5.1.4.39.1",  // Color Palette
	"1.2.840.10008.5.1.4.43.1",  // Generic Implant Template
	"1.2.840.10008.5.1.4.44.1",  // Implant Assembly Template
	"1.2.840.10008.5.1.4.45.1",  // Implant Template Group
}

var classes = sync.OnceValue(func() map[string]bool {
	all := make(map[string]bool, 256)
	for _, rest := range strings.Fields(storageClasses) {
		all[storageRoot+rest] = true
	}
	for _, uid := range otherClasses {
		all[uid] = true
	}
	return all
})

// annotated are the beginnings of the SOP classes whose pixels commonly carry
// text burned into them: ultrasound, secondary capture, visible light, hard copy.
var annotated = []string{
	storageRoot + "3", storageRoot + "6", storageRoot + "7", storageRoot + "77",
	"1.2.840.10008.5.1.1.29", "1.2.840.10008.5.1.1.30",
}

// oftenAnnotated reports whether uid is one of those classes.
func oftenAnnotated(uid string) bool {
	for _, root := range annotated {
		if uid == root || strings.HasPrefix(uid, root+".") {
			return true
		}
	}
	return false
}
