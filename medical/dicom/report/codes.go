package report

// The concepts of the templates (PS3.16 annex D, TID 1500 and those that it
// includes).
var (
	imagingMeasurementReport = Code{"126000", "DCM", "Imaging Measurement Report"}
	language                 = Code{"121049", "DCM", "Language of Content Item and Descendants"}
	english                  = Code{"en", "RFC5646", "English"}
	french                   = Code{"fr", "RFC5646", "French"}
	observerType             = Code{"121005", "DCM", "Observer Type"}
	device                   = Code{"121007", "DCM", "Device"}
	personObserver           = Code{"121006", "DCM", "Person"}
	personName               = Code{"121008", "DCM", "Person Observer Name"}
	personOrganization       = Code{"121009", "DCM", "Person Observer's Organization Name"}
	deviceUID                = Code{"121012", "DCM", "Device Observer UID"}
	deviceName               = Code{"121013", "DCM", "Device Observer Name"}
	deviceManufacturer       = Code{"121014", "DCM", "Device Observer Manufacturer"}
	deviceModel              = Code{"121015", "DCM", "Device Observer Model Name"}
	procedureReported        = Code{"121058", "DCM", "Procedure reported"}
	imagingProcedure         = Code{"363679005", "SCT", "Imaging procedure"}
	imageLibrary             = Code{"111028", "DCM", "Image Library"}
	imageLibraryGroup        = Code{"126200", "DCM", "Image Library Group"}
	modality                 = Code{"121139", "DCM", "Modality"}
	studyDate                = Code{"111060", "DCM", "Study Date"}
	imagingMeasurements      = Code{"126010", "DCM", "Imaging Measurements"}
	measurementGroup         = Code{"125007", "DCM", "Measurement Group"}
	trackingIdentifier       = Code{"112039", "DCM", "Tracking Identifier"}
	trackingUID              = Code{"112040", "DCM", "Tracking Unique Identifier"}
	finding                  = Code{"121071", "DCM", "Finding"}
	equivalentMeaning        = Code{"121051", "DCM", "Equivalent Meaning of Value"}
	probability              = Code{"122157", "DCM", "Probability"}
	threshold                = Code{"122411", "DCM", "Threshold Value"}
	percent                  = Code{"%", "UCUM", "Percent"}
	algorithmName            = Code{"111001", "DCM", "Algorithm Name"}
	algorithmParameters      = Code{"111002", "DCM", "Algorithm Parameters"}
	algorithmVersion         = Code{"111003", "DCM", "Algorithm Version"}
	algorithmManufacturer    = Code{"122405", "DCM", "Algorithm Manufacturer"}
	sourceOfMeasurement      = Code{"121112", "DCM", "Source of Measurement"}
	presence                 = Code{"121052", "DCM", "Presence of property"}
	qualitativeEvaluations   = Code{"C0034375", "UMLS", "Qualitative Evaluations"}
	comment                  = Code{"121106", "DCM", "Comment"}
	sourceForProcessing      = Code{"121322", "DCM", "Source image for image processing operation"}

	// What was concluded about a finding. A model suspects; only a person
	// says present or absent.
	suspected    = Code{"415684004", "SCT", "Suspected"}
	notSuspected = Code{"NOT-SUSPECTED", privateScheme, "Not suspected"}
	present      = Code{"52101004", "SCT", "Present"}
	absent       = Code{"272519000", "SCT", "Absent"}
)

// privateScheme designates the codes that no public scheme has.
const privateScheme = "99VIGIE"

// modalities names the modalities that radiographs and slices come in (PS3.16
// CID 29).
var modalities = map[string]string{
	"CR": "Computed Radiography", "CT": "Computed Tomography", "DX": "Digital Radiography",
	"MG": "Mammography", "MR": "Magnetic Resonance", "US": "Ultrasound", "RF": "Radiofluoroscopy",
	"XA": "X-Ray Angiography", "NM": "Nuclear Medicine", "PT": "Positron emission tomography",
	"RG": "Radiographic imaging", "IO": "Intra-oral Radiography", "PX": "Panoramic X-Ray",
}
