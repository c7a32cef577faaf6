package deidentify

import (
	"strings"
)

const yesNo = "YES|NO"

// terms are the coded (and a few text) attributes that are kept if every value
// is one of the terms that PS3.3 enumerates or defines for it.
var terms = map[string]string{
	"Modality": "AR|ASMT|AU|BDUS|BI|BMD|CFM|CR|CT|CTPROTOCOL|DG|DMS|DOC|DX|ECG|EEG|EMG|EOG|EPS|ES|FID|GM|HC|HD|IO|IOL|IVOCT|IVUS|" +
		"KER|KO|LEN|LS|M3D|MG|MR|NM|OAM|OCT|OP|OPM|OPT|OPTBSV|OPTENF|OPV|OSS|OT|PA|PLAN|POS|PR|PT|PX|REG|RESP|RF|RG|RTDOSE|" +
		"RTIMAGE|RTINTENT|RTPLAN|RTRAD|RTRECORD|RTSEGANN|RTSTRUCT|RWV|SEG|SM|SMR|SR|SRF|STAIN|TEXTUREMAP|TG|US|VA|XA|XAPROTOCOL|XC",
	"ConversionType":                  "DV|DI|DF|WSD|SD|SI|DRW|SYN",
	"PresentationIntentType":          "FOR PRESENTATION|FOR PROCESSING",
	"PixelPresentation":               "COLOR|MONOCHROME|MIXED|TRUE_COLOR|COLOR_RANGE",
	"VolumetricProperties":            "VOLUME|SAMPLED|DISTORTED|MIXED",
	"VolumeBasedCalculationTechnique": "MAX_IP|MIN_IP|VOLUME_RENDER|SURFACE_RENDER|MPR|CURVED_MPR|NONE|MIXED",
	"ComplexImageComponent":           "MAGNITUDE|PHASE|REAL|IMAGINARY|MIXED",
	"AcquisitionContrast":             "DIFFUSION|FLOW_ENCODED|FLUID_ATTENUATED|PERFUSION|PROTON_DENSITY|STIR|TAGGING|T1|T2|T2_STAR|TOF|UNKNOWN|MIXED",

	"ScanningSequence":                       "SE|IR|GR|EP|RM",
	"SequenceVariant":                        "SK|MTC|SS|TRSS|SP|MP|OSP|NONE",
	"ScanOptions":                            "PER|RG|CG|PPG|FC|PFF|PFP|SP|FS|CT|NONE|HELICAL MODE|AXIAL MODE|SCOUT MODE|HELICAL_CT|NORMAL_CT|AXIAL|HELIX|SURVIEW|SAT_GEMS|VB_GEMS|ACC_GEMS|EDR_GEMS|FILTERED_GEMS|SAT1|SAT2|DIXW|WE",
	"MRAcquisitionType":                      "1D|2D|3D",
	"VariableFlipAngleFlag":                  "Y|N",
	"AngioFlag":                              "Y|N",
	"InitialCineRunState":                    "STOPPED|RUNNING",
	"BeatRejectionFlag":                      "Y|N",
	"TableMotion":                            "STATIC|DYNAMIC",
	"TableType":                              "FIXED|TILTING|NONE",
	"RotationDirection":                      "CW|CC",
	"FieldOfViewShape":                       "RECTANGLE|ROUND|HEXAGONAL",
	"RadiationSetting":                       "SC|GR",
	"RectificationType":                      "SINGLE PHASE|THREE PHASE|CONST POTENTIAL",
	"RadiationMode":                          "CONTINUOUS|PULSED",
	"Grid":                                   "FIXED|FOCUSED|RECIPROCATING|PARALLEL|CROSSED|HTC|LINEAR|IN|NONE",
	"CollimatorType":                         "NONE|LEHR|LEGP|LEUHR|MEHR|MEGP|HEGP|HEHR|PARA|PINH|FANB|CONE|SLNT|ASTG|DIVG|UNKN",
	"AnodeTargetMaterial":                    "TUNGSTEN|MOLYBDENUM|RHODIUM",
	"ExposureControlMode":                    "MANUAL|AUTOMATIC",
	"ExposureStatus":                         "NORMAL|ABORTED",
	"WholeBodyTechnique":                     "1PS|2PS|PCN|MSP",
	"InPlanePhaseEncodingDirection":          "ROW|COL|COLUMN|OTHER",
	"PatientPosition":                        "HFP|HFS|HFDR|HFDL|FFDR|FFDL|FFP|FFS|LFP|LFS|LFDR|LFDL|RFP|RFS|RFDR|RFDL|AFP|AFS|AFDR|AFDL|PFP|PFS|PFDR|PFDL",
	"ViewPosition":                           "AP|PA|LL|RL|RLD|LLD|RLO|LLO|LAO|RAO|LPO|RPO|LAT|LATERAL|LLAT|RLAT|XTL|OBL|OBLIQUE|CC|ML|MLO|LM|LMO|XCC|XCCL|XCCM|FB|SIO|ISO|CV|AT|TAN|ANT|POST|LORDOTIC|DECUB|SUPINE|PRONE|AXIAL",
	"CollimatorShape":                        "RECTANGULAR|CIRCULAR|POLYGONAL",
	"ShutterShape":                           "RECTANGULAR|CIRCULAR|POLYGONAL|BITMAP",
	"PositionerType":                         "CARM|COLUMN|MAMMOGRAPHIC|PANORAMIC|CEPHALOSTAT|RIGID|NONE|C-ARM",
	"PositionerMotion":                       "STATIC|DYNAMIC",
	"DetectorType":                           "DIRECT|SCINTILLATOR|STORAGE|FILM",
	"DetectorConfiguration":                  "AREA|SLOT",
	"DetectorConditionsNominalFlag":          yesNo,
	"DetectorActiveShape":                    "RECTANGLE|ROUND|HEXAGONAL",
	"FieldOfViewHorizontalFlip":              yesNo,
	"FilterMaterial":                         "MOLYBDENUM|ALUMINUM|COPPER|RHODIUM|NIOBIUM|EUROPIUM|LEAD|SILVER|TIN|MIXED|OTHER",
	"GridAbsorbingMaterial":                  "LEAD|TUNGSTEN|COPPER",
	"GridSpacingMaterial":                    "ALUMINUM|CARBON FIBER|FIBER|COTTON|PAPER|AIR",
	"OrganExposed":                           "BREAST|CHEST|ABDOMEN",
	"AcquisitionType":                        "SEQUENCED|SPIRAL|CONSTANT_ANGLE|STATIONARY|FREE|CONE_BEAM",
	"ReconstructionAlgorithm":                "FILTER_BACK_PROJ|ITERATIVE",
	"ExposureModulationType":                 "NONE|FIXED|ATTENUATION|XYZ_EC|XY_EC|Z_EC|ECG_MODULATION|ANGULAR",
	"DiffusionDirectionality":                "DIRECTIONAL|BMATRIX|ISOTROPIC|NONE",
	"CardiacSynchronizationTechnique":        "NONE|REALTIME|PROSPECTIVE|RETROSPECTIVE|PACED",
	"RespiratoryMotionCompensationTechnique": "NONE|BREATH_HOLD|REALTIME|GATING|TRACKING|PHASE_ORDERING|PHASE_RESCANNING|RETROSPECTIVE|CORRECTION|UNKNOWN",

	"Laterality":                "R|L",
	"ImageLaterality":           "R|L|U|B",
	"FrameLaterality":           "R|L|U|B",
	"DimensionOrganizationType": "3D|3D_TEMPORAL|TILED_FULL|TILED_SPARSE",

	"PhotometricInterpretation":   "MONOCHROME1|MONOCHROME2|PALETTE COLOR|RGB|YBR_FULL|YBR_FULL_422|YBR_PARTIAL_422|YBR_PARTIAL_420|YBR_ICT|YBR_RCT|HSV|ARGB|CMYK|XYB",
	"CorrectedImage":              "UNIF|COR|NCO|DECY|ATTN|SCAT|DTIM|NRGY|LIN|MOTN|CLN|RAN|RADL|DCAL|NORM",
	"QualityControlImage":         "YES|NO|BOTH",
	"BurnedInAnnotation":          yesNo,
	"RecognizableVisualFeatures":  yesNo,
	"PixelSpacingCalibrationType": "GEOMETRY|FIDUCIAL",
	"PixelIntensityRelationship":  "LIN|LOG|DISP|OTHER",
	"RescaleType":                 "OD|HU|US|MGML|Z_EFF|ED|EDW|HU_MOD|PCT|UNSPECIFIED",
	"ModalityLUTType":             "OD|HU|US|MGML|Z_EFF|ED|EDW|HU_MOD|PCT|UNSPECIFIED",
	"VOILUTFunction":              "LINEAR|LINEAR_EXACT|SIGMOID",
	"RecommendedViewingMode":      "SUB|NAT",
	"BreastImplantPresent":        yesNo,
	"PartialView":                 yesNo,
	"LossyImageCompression":       "00|01",
	"LossyImageCompressionMethod": "ISO_10918_1|ISO_14495_1|ISO_15444_1|ISO_15444_2|ISO_15444_15|ISO_18181_1|ISO_13818_2|ISO_14496_10|ISO_23008_2",
	"PresentationLUTShape":        "IDENTITY|INVERSE",

	"TypeOfDetectorMotion":    "STATIONARY|STEP AND SHOOT|CONTINUOUS|WOBBLE|CLAMSHELL",
	"SeriesType":              "STATIC|DYNAMIC|GATED|WHOLE BODY|IMAGE|REPROJECTION",
	"Units":                   "CNTS|NONE|CM2|CM2ML|PCNT|CPS|BQML|MGMINML|UMOLMINML|MLMING|MLG|1CM|UMOLML|PROPCNTS|PROPCPS|MLMINML|MLML|GML|STDDEV",
	"CountsSource":            "EMISSION|TRANSMISSION",
	"SUVType":                 "BSA|BW|LBM|LBMJAMES128|LBMJANMA|IBW",
	"RandomsCorrectionMethod": "NONE|DLYD|SING",
	"DecayCorrection":         "NONE|START|ADMIN",
}

// checks are attributes whose values need more than one list.
var checks = map[string]func([]string) ([]string, bool){
	"SOPClassUID":           registeredClass,
	"ReferencedSOPClassUID": registeredClass,
	"ImageType":             imageType,
	"FrameType":             imageType,
	"BodyPartExamined":      words(anatomy),
	"Manufacturer":          words(makers),
	"PatientOrientation":    directions,
	"StackID":               smallNumber,
}

func registeredClass(values []string) ([]string, bool) {
	for _, v := range values {
		if !classes()[v] {
			return nil, false
		}
	}
	return values, len(values) == 1
}

// imageTypes are the terms that PS3.3 C.7.6.1.1.2, C.8 and the large vendors
// write in Image Type.
const imageTypes = `ORIGINAL DERIVED MIXED PRIMARY SECONDARY AXIAL LOCALIZER OTHER NONE
	MPR REFORMATTED PROJECTION_IMAGE ADDITION SUBTRACTION DIVISION RESAMPLED VOLUME MIN_IP MAX_IP
	MEAN CURVED_MPR FILTERED STD DIS2D DIS3D ND NORM M P R I MAGNITUDE PHASE REAL IMAGINARY
	POST_PROCESSED POST_PROCESSING RT CSA CT_SOM5 CT_SOM7 SPI SEQ HELIX DYNAMIC_FLOW PERFUSION DIFFUSION
	ADC TRACEW FA T1 T2 T2_STAR FFE SE IR B0 B1 TOF FLOW_ENCODED STRESS REST SPECT TOMO GATED
	STATIC DYNAMIC RECON EMISSION TRANSMISSION WHOLE_BODY BIPLANE SINGLE DUAL_ENERGY
	MONOENERGETIC SCREEN SAVE CAPTURE SCOUT VISIBLE GENERATED_2D TOMOSYNTHESIS STEREO`

var imageTypeTerms = vocabulary(imageTypes)

// imageType keeps known terms in their place. From the third value on, where
// implementations write what they like, an unknown one becomes OTHER.
func imageType(values []string) ([]string, bool) {
	kept := make([]string, 0, len(values))
	for i, v := range values {
		ok := true
		for _, word := range strings.Fields(v) {
			ok = ok && imageTypeTerms[word]
		}
		if !ok {
			if i < 2 {
				return nil, false
			}
			v = "OTHER"
		}
		kept = append(kept, v)
	}
	return kept, len(kept) <= 32
}

// anatomy are the words of body parts: the defined terms of PS3.16 annex L, and
// what radiographers put beside them.
const anatomy = `ABDOMEN ABDOMINAL ABD ADRENAL ANKLE ANUS AORTA AORTIC ARCH ARM ARTERY ARTERIES AXILLA BACK BILE DUCT
	BLADDER BODY BONE BONES BOWEL BRACHIAL BRAIN BREAST BRONCHUS BUTTOCK CALCANEUS CALF CAROTID CEREBELLUM
	CERVICAL CSPINE CERVIX CHEEK CHEST CLAVICLE COCCYX COLON CORNEA CORONARY CTSPINE TSPINE LSPINE
	TLSPINE LSSPINE SSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE FACIAL FEMUR FEMORAL FINGER
	FOOT FOREARM GALLBLADDER GLUTEAL HAND HEAD HEADNECK HEART CARDIAC HIP HUMERUS ILEUM ILIUM ILIAC JAW JOINT KIDNEY
	KIDNEYS KNEE LARYNX LEG LIVER LUMBAR LUNG LUNGS MANDIBLE MAXILLA MEDIASTINUM MOUTH NASAL NECK NOSE
	ORBIT ORBITS OVARY PANCREAS PARATHYROID PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS ULNA
	RADIUSULNA RECTUM RENAL RIB RIBS SACRUM SCALP SCAPULA SCLERA SCROTUM SHOULDER SINUS SKULL SPINE
	SPLEEN STERNUM STOMACH SUBMANDIBULAR TARSUS TESTIS THIGH THORAX THORACIC THUMB THYMUS THYROID TIBIA
	FIBULA TIBFIB TOE TONGUE TOOTH TRACHEA URETER URETHRA UTERUS VAGINA VEIN VULVA WHOLEBODY WHOLE WRIST ZYGOMA
	UPPER LOWER LEFT RIGHT BILATERAL BOTH LIMB SOFT TISSUE AND OR JAWS TMJ VASCULAR VESSEL
	AP PA LAT LATERAL OBL OBLIQUE PORT PORTABLE PORTAL BED BEDSIDE ERECT SUPINE PRONE DECUB DECUBITUS
	VIEW VIEWS ADULT CHILD INFANT BABY PEDIATRIC PAEDIATRIC LORDOTIC GRID 1V 2V 1VW 2VW
	POUMON POUMONS CRANE GENOU MAIN PIED BASSIN EPAULE COUDE HANCHE CHEVILLE POIGNET RACHIS COU TETE
	OTHER UNKNOWN PHANTOM`

// makers are the words of equipment manufacturers' names. A name in any other
// words is emptied.
const makers = `ACUSON AGFA AGFA-GEVAERT ALOKA ALPINION ANALOGIC BARCO BK BRACCO CANON CARESTREAM CARESTREAMHEALTH 
	DEL DIGIRAD DRGEM DRTECH EDAN EIZO EOS ESAOTE FISCHER FUJI FUJIFILM FUJIPHOTO GE GENDEX
	GENERAL ELECTRIC GENORAY HITACHI HOLOGIC IMAGING ITALRAY IMS GIOTTO JPI KODAK
	EASTMAN KONICA KONICAMINOLTA MINOLTA KONINKLIJKE LODOX LORAD LUMISYS MINDRAY MEDISON NEUSOFT OREX PHILIPS PICKER PLANMECA
	PLANMED QUANTA RAYENCE RICOH SAMSUNG SECTRA SHIMADZU SIEMENS HEALTHINEERS SIRONA STEPHANIX
	SWISSRAY TOSHIBA TRIXELL TROPHY UNITED UIH VAREX VARIAN VATECH VIEWORKS VIDAR VIGIE VILLA XORAN ZIEHM ZIMMER
	COMPANY CO CO. CORP CORPORATION CORP. ELECTRONICS EUROPE GMBH HEALTH HEALTHCARE INC INC. INC., LTD LTD. LIMITED
	MEDICAL MEDICALS MEDIZINTECHNIK NV N.V. N.V SA S.A. S.P.A. SPA SRL SYSTEM SYSTEMS TECHNOLOGIES TECHNOLOGY
	ULTRASOUND X-RAY XRAY SOLUTIONS PHOTO FILM ELECTRON NUCLEAR MR CT DIGITAL AG AB OY BV B.V. K.K. KK AND &
	THE OF AMERICA PHANTOM`

func vocabulary(list string) map[string]bool {
	all := make(map[string]bool)
	for _, word := range strings.Fields(list) {
		all[word] = true
	}
	return all
}

// words vouches for one value all of whose words, whatever their case, are in
// the list: an unlisted word may be a name.
func words(list string) func([]string) ([]string, bool) {
	known := vocabulary(list)
	return func(values []string) ([]string, bool) {
		if len(values) > 1 {
			return nil, false
		}
		for _, v := range values {
			for _, word := range strings.FieldsFunc(strings.ToUpper(v), func(r rune) bool { return strings.ContainsRune(" _,/-()", r) }) {
				if !known[word] && !known[strings.Trim(word, ".")] {
					return nil, false
				}
			}
		}
		return values, true
	}
}

// directions vouches for Patient Orientation (PS3.3 C.7.6.1.1.1): the
// directions of the row and of the column, each up to three of the letters
// A, P, R, L, H, F.
func directions(values []string) ([]string, bool) {
	for _, v := range values {
		if len(v) > 3 || strings.Trim(v, "APRLHF") != "" {
			return nil, false
		}
	}
	return values, len(values) <= 2
}

// smallNumber vouches for an identifier that is a count in practice.
func smallNumber(values []string) ([]string, bool) {
	for _, v := range values {
		if len(v) > 4 || strings.Trim(v, "0123456789") != "" {
			return nil, false
		}
	}
	return values, len(values) == 1
}
