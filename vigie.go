// Package vigie is the vocabulary of the product: every type that more than
// one package must agree on, and nothing else. Read it first.
//
// A [Case] is one diagnostic question: an image object that a hospital system
// sent for one model to read. It walks one way:
//
//	received ▸ diagnosed ▸ released | in review | quarantined ▸ reviewed ▸ delivered
//
// The gateway holds identities and moves the case; the enclave sees only a
// pseudonymised, sealed copy and answers with a signed [Finding]; triage turns
// the finding into a [Verdict]. Doubt always goes to a person: a failure is a
// [Reason] for review, never a silent drop.
//
// This package imports nothing of ours and performs no input or output.
package vigie

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Digest is a SHA-256 digest written "sha256:" followed by 64 lower-case
// hexadecimal digits.
type Digest string

// ModelDigest names one exact model package: the SHA-256 digest over the
// package's file list, as computed by package model. Two packages with the
// same ModelDigest answer identically.
type ModelDigest string

// DigestOf returns the SHA-256 digest of data.
func DigestOf(data []byte) Digest {
	sum := sha256.Sum256(data)
	return DigestFromSum(sum)
}

// DigestFromSum writes an already computed SHA-256 sum as a Digest.
func DigestFromSum(sum [sha256.Size]byte) Digest {
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// Sum returns the 32 bytes of the digest, or an error if it is not written in
// the one accepted form.
func (d Digest) Sum() ([sha256.Size]byte, error) {
	var sum [sha256.Size]byte
	text, ok := strings.CutPrefix(string(d), "sha256:")
	if !ok || len(text) != 2*sha256.Size || strings.ToLower(text) != text {
		return sum, fmt.Errorf("vigie: reading digest %q: want sha256: and 64 lower-case hexadecimal digits", string(d))
	}
	if _, err := hex.Decode(sum[:], []byte(text)); err != nil {
		return sum, fmt.Errorf("vigie: reading digest %q: %w", string(d), err)
	}
	return sum, nil
}

// CaseID identifies a case inside one gateway: 26 characters of lower-case
// base32 from 128 random bits. It carries no information about the patient.
type CaseID string

// PatientPseudonym replaces a patient's identity everywhere outside the vault:
// a keyed digest of (issuer, patient id) that only the hospital's key can
// reproduce.
type PatientPseudonym string

// StudyUID, SeriesUID and InstanceUID are DICOM unique identifiers (PS3.5
// section 9). In a Case and a Finding they are always the pseudonymised ones.
type (
	StudyUID    string
	SeriesUID   string
	InstanceUID string
)

// State is where a case stands. See the package comment for the order.
type State string

// The states of a case.
const (
	Received    State = "received"    // sealed in the vault, acknowledged to the sender
	Diagnosed   State = "diagnosed"   // a signed finding (or a reason why there is none) is stored
	Released    State = "released"    // triage vouches for the result; it will be delivered
	InReview    State = "in review"   // a person must read the case
	Quarantined State = "quarantined" // suspected corrupt or hostile; a security officer must look
	Reviewed    State = "reviewed"    // a person decided; the outcome will be delivered
	Delivered   State = "delivered"   // every destination acknowledged
)

// States lists every state in the order of the walk.
var States = []State{Received, Diagnosed, Released, InReview, Quarantined, Reviewed, Delivered}

// next holds the allowed transitions. A case never walks back.
var next = map[State][]State{
	Received:    {Diagnosed},
	Diagnosed:   {Released, InReview, Quarantined},
	Released:    {Delivered},
	InReview:    {Reviewed},
	Quarantined: {Reviewed},
	Reviewed:    {Delivered},
}

// CanBecome reports whether a case in state s may move to state t.
func (s State) CanBecome(t State) bool {
	for _, allowed := range next[s] {
		if allowed == t {
			return true
		}
	}
	return false
}

// ErrTransition is returned when a case is asked to make a step that its state
// does not allow, for instance because another process already made it.
var ErrTransition = errors.New("the case is not in a state that allows this step")

// Source says who sent a case, as far as the transport proved it.
type Source struct {
	Protocol    string `json:"protocol"`              // "dimse", "dicomweb"
	AETitle     string `json:"ae_title,omitempty"`    // calling AE title (DIMSE)
	Certificate Digest `json:"certificate,omitempty"` // SHA-256 of the peer's leaf certificate; empty only in plain development mode
	Subject     string `json:"subject,omitempty"`     // subject or SPIFFE id of that certificate
}

// Text is a sentence in the languages a clinician may read. Both are always
// filled; French falls back to English only where a term has no translation.
type Text struct {
	English string `json:"en"`
	French  string `json:"fr"`
}

// Reason says why something was not simply released, in a stable code for
// programs and a sentence for people. It never contains patient data.
type Reason struct {
	Code   ReasonCode `json:"code"`
	Text   Text       `json:"text"`
	Detail string     `json:"detail,omitempty"` // technical detail, no patient data
}

// ReasonCode is the stable, machine-readable part of a Reason.
type ReasonCode string

// The reasons a case is referred. New codes are added, never reused.
const (
	ReasonUnreadable     ReasonCode = "unreadable"         // the object does not parse (truncated, corrupt)
	ReasonTransferSyntax ReasonCode = "transfer-syntax"    // pixels in a syntax this build cannot decode
	ReasonPixels         ReasonCode = "pixels"             // pixel data missing, inconsistent or not an image
	ReasonModality       ReasonCode = "modality"           // modality or SOP class outside the manifest
	ReasonBodyPart       ReasonCode = "body-part"          // body part outside the manifest
	ReasonView           ReasonCode = "view"               // view position outside the manifest or unknown
	ReasonAge            ReasonCode = "age"                // patient age outside the manifest or unknown
	ReasonBurnedIn       ReasonCode = "burned-in"          // pixels declare or may contain burned-in annotation
	ReasonDeidentify     ReasonCode = "de-identification"  // de-identification could not vouch for the copy
	ReasonBorderline     ReasonCode = "borderline"         // calibrated probability too close to the operating point
	ReasonImplausible    ReasonCode = "implausible-output" // an output plausibility rule failed
	ReasonGuard          ReasonCode = "guard"              // an input guard raised an alarm
	ReasonUndecided      ReasonCode = "undecided"          // the prediction set holds several labels: the model does not decide
	ReasonUnsure         ReasonCode = "unsure"             // less confident than the stated risk of a wrong answer allows
	ReasonUnstable       ReasonCode = "unstable"           // slightly altered copies, or the members of an ensemble, disagree
	ReasonPrior          ReasonCode = "prior-study"        // contradicts an earlier study of the same patient
	ReasonCertificate    ReasonCode = "certificate"        // the answer depends on a small part of the image, or its certificate could not be made
	ReasonEnclave        ReasonCode = "enclave"            // enclave failed, timed out or was not trusted
	ReasonNoModel        ReasonCode = "no-model"           // no model is configured for this study
	ReasonPolicy         ReasonCode = "policy"             // local policy sends every such case to a person
	ReasonInternal       ReasonCode = "internal"           // an error of Vigie's own
)

// Code is a coded concept (PS3.16): value, coding scheme designator, meaning.
type Code struct {
	Value   string `json:"value" yaml:"value"`
	Scheme  string `json:"scheme" yaml:"scheme"` // "SCT", "RADLEX", "DCM", …
	Meaning string `json:"meaning" yaml:"meaning"`
	French  string `json:"meaning_fr,omitempty" yaml:"meaning_fr,omitempty"`
}

// Prediction is the model's answer for one label.
type Prediction struct {
	Label       string  `json:"label"`       // the manifest's label name
	Code        Code    `json:"code"`        // the label's coded concept
	Probability float64 `json:"probability"` // calibrated, 0..1
	Raw         float64 `json:"raw"`         // before calibration, 0..1
	Threshold   float64 `json:"threshold"`   // operating point on the calibrated scale
	Positive    bool    `json:"positive"`    // Probability >= Threshold
}

// GuardResult is what one guard said of a case.
type GuardResult struct {
	Guard  string  `json:"guard"`
	PValue float64 `json:"p_value"` // conformal p-value in (0, 1]; small means suspicious
	Alarm  bool    `json:"alarm"`
	Reason *Reason `json:"reason,omitempty"`
}

// LabelSet is a conformal prediction set: the labels that the calibration cannot
// rule out at a level. Of the cases whose true label is any given one, the set
// holds that label in a share of at least Coverage, in the mean over calibrations.
type LabelSet struct {
	// Label is what the set is about where labels do not exclude each other;
	// Holds are then of SetPresent and SetAbsent. Empty: the set is about all
	// labels, of which one is true.
	Label    string   `json:"label,omitempty"`
	Holds    []string `json:"holds"`    // in the order of the model's labels; never empty: the model's answer is one of them
	Coverage float64  `json:"coverage"` // stated, 0..1
}

// What a LabelSet about one label holds.
const (
	SetPresent = "present"
	SetAbsent  = "absent"
)

// Decided reports whether the set holds one answer only.
func (s LabelSet) Decided() bool { return len(s.Holds) == 1 }

// MapVerdict says whether a relevance map may be relied on.
type MapVerdict string

// The verdicts on a map. What is none of them counts as MapUntested, as the
// maps of releases that did not test any.
const (
	MapPassed   MapVerdict = "passed"   // it passed every test
	MapFailed   MapVerdict = "failed"   // it explains nothing: see Failures
	MapUntested MapVerdict = "untested" // the time did not suffice for the tests
	MapNone     MapVerdict = "none"     // there is no map: see Text
)

// Explanation is a relevance map over the analysed image, together with what the
// tests of it say. A map is never shown without Label.
type Explanation struct {
	Method  string  `json:"method,omitempty"` // "kernelshap", "grad-cam", …, as the manifest names it; empty without a map
	Target  string  `json:"target"`           // label explained
	Rows    int     `json:"rows"`             // height of Map
	Columns int     `json:"columns"`          // width of Map
	Map     []uint8 `json:"map"`              // row-major, Rows*Columns, 0 (none) .. 255 (strongest); empty where there is none

	Verdict  MapVerdict `json:"verdict,omitempty"`
	Text     Text       `json:"text,omitzero"`      // why: what the tests found, or why there is no map
	Failures []string   `json:"failures,omitempty"` // of a failed map: "no-better", "weights-no-matter", …, as package explain names them
	Tests    *MapTests  `json:"tests,omitempty"`    // what was measured; nil if nothing was
	// Rejected names the methods that the model's manifest asks for first and
	// that explain nothing of this model.
	Rejected []string `json:"rejected,omitempty"`
}

// MapTests holds the scores that the verdict on a map rests on. Deletion takes
// the image's places away in the order of the map, insertion puts them back
// (Petsiuk et al. 2018); Similarity compares the method's maps with those of
// the same model after its weights were randomised (Adebayo et al. 2018).
type MapTests struct {
	Background string   `json:"background"`          // what a place that is taken away looks like: "mean" or "blur"
	Insertion  *float64 `json:"insertion,omitempty"` // area under the curve of the target's score; nil if this map was not measured
	Deletion   *float64 `json:"deletion,omitempty"`  // the same
	RandomMean *float64 `json:"random_mean,omitempty"`
	RandomMaps int      `json:"random_maps"`     // how many the map was compared with; RandomMean is their mean insertion - deletion
	Steps      int      `json:"steps,omitempty"` // points of the curves after the first: fewer where the time was short
	P          *float64 `json:"p,omitempty"`     // share of random maps that do as well, this one included; small is good

	Similarity      *float64 `json:"similarity,omitempty"`       // rank correlation, -1 to 1, small is good; nil if the model has no weights to randomise or it was not measured
	SimilarityError float64  `json:"similarity_error,omitempty"` // its standard error
	ModelImages     int      `json:"model_images,omitempty"`     // how many images Similarity is the mean over
	ModelExplained  *int     `json:"model_explained,omitempty"`  // on how many of those the method's maps did better than random ones; nil if that was not measured
}

// Shown reports whether there is a map to show.
func (e *Explanation) Shown() bool { return e != nil && len(e.Map) > 0 }

// Passed reports whether there is a map that may be relied on as far as tests
// can tell.
func (e *Explanation) Passed() bool { return e.Shown() && e.Verdict == MapPassed }

// Label is the sentence that a map is never shown without.
func (e *Explanation) Label() Text {
	switch {
	case !e.Shown():
		return Text{
			English: "There is no map of what the answer rests on.",
			French:  "Il n’y a pas de carte de ce sur quoi la réponse repose."}
	case e.Verdict == MapPassed:
		return Text{
			English: "This map passed its tests.",
			French:  "Cette carte a passé ses tests."}
	case e.Verdict == MapFailed:
		return Text{
			English: "This map did not pass its tests: do not rely on it.",
			French:  "Cette carte n’a pas passé ses tests : ne vous y fiez pas."}
	default:
		return Text{
			English: "This map was not tested: do not rely on it.",
			French:  "Cette carte n’a pas été testée : ne vous y fiez pas."}
	}
}

// CertificateVerdict says what of an answer is proven.
type CertificateVerdict string

// The verdicts of a certificate, the best first.
const (
	CertificateProven    CertificateVerdict = "proven"    // all that was asked for is proven
	CertificateAgreed    CertificateVerdict = "agreed"    // no single square decides the answer; that no square could turn it is not proven
	CertificateNone      CertificateVerdict = "none"      // none was asked for of this case: see Text
	CertificateDisagreed CertificateVerdict = "disagreed" // the answer depends on one small square, or is not that of most noisy copies
	CertificateFailed    CertificateVerdict = "failed"    // one was asked for and could not be made: see Text
)

// CertificateVerdicts lists the verdicts, the best first.
var CertificateVerdicts = []CertificateVerdict{CertificateProven, CertificateAgreed, CertificateNone, CertificateDisagreed, CertificateFailed}

// Sends reports whether a person must read a case with such a verdict. One that
// is not known does.
func (v CertificateVerdict) Sends() bool {
	return v != CertificateProven && v != CertificateAgreed && v != CertificateNone
}

// Certificate is what is proven of an answer, whatever an attacker knows, as far
// as the model's package asks for it. The conditions are in docs/certificates.md.
type Certificate struct {
	Verdict   CertificateVerdict    `json:"verdict"` // of the weaker part
	Text      Text                  `json:"text"`
	Patch     *PatchCertificate     `json:"patch,omitempty"`
	Smoothing *SmoothingCertificate `json:"smoothing,omitempty"`
}

// PatchCertificate is about squares of any content at any one place of the image
// (double masking, Xiang et al. 2022).
type PatchCertificate struct {
	Verdict   CertificateVerdict `json:"verdict"`    // proven, agreed or disagreed
	Side      int                `json:"side"`       // of the squares, pixels of Of
	Of        string             `json:"of"`         // "input": the model's input; "image": the image as it was decoded
	ImageSide int                `json:"image_side"` // side of the largest square of the image that the statement holds for, pixels
	// Rows and Columns of the model's input are the most that a square touches;
	// MaskRows and MaskColumns are the size of each mask.
	Rows        int    `json:"rows"`
	Columns     int    `json:"columns"`
	MaskRows    int    `json:"mask_rows"`
	MaskColumns int    `json:"mask_columns"`
	Fill        string `json:"fill"`  // what a mask shows: "mean", "grey" or "black"
	Masks       int    `json:"masks"` // that cover every square of the image between them
	Agree       int    `json:"agree"` // of them, those under which the answer stays
	Pairs       int    `json:"pairs"` // of masks that were asked about; 0 if none were asked for
	PairsAgree  int    `json:"pairs_agree"`
	// Recovered are the labels that double masking finds present, where the masks
	// do not agree.
	Recovered []string `json:"recovered,omitempty"`
}

// SmoothingCertificate is about changes of a bounded Euclidean length
// (randomised smoothing, Cohen et al. 2019).
type SmoothingCertificate struct {
	Verdict CertificateVerdict `json:"verdict"` // proven or disagreed
	Sigma   float64            `json:"sigma"`   // deviation of the noise, pixels of brightness 0 to 1 of the model's input
	Samples int                `json:"samples"`
	Agree   int                `json:"agree"`  // noisy copies that get the answer
	Alpha   float64            `json:"alpha"`  // chance that this certificate is wrong
	Radius  float64            `json:"radius"` // Euclidean length in the same pixels; 0 if nothing is proven
}

// Stage is the time one step took.
type Stage struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"ns"`
}

// Finding is what the enclave says about one case. It is signed as a whole
// and never changed afterwards.
type Finding struct {
	Case          CaseID        `json:"case"`
	Instance      InstanceUID   `json:"instance"`      // pseudonymised SOP Instance UID analysed
	Model         ModelDigest   `json:"model"`         // exact package
	ModelName     string        `json:"model_name"`    // for people
	ModelVersion  string        `json:"model_version"` // for people
	Input         Digest        `json:"input"`         // the de-identified DICOM bytes that were analysed
	Configuration Digest        `json:"configuration"` // the enclave's effective configuration
	Predictions   []Prediction  `json:"predictions"`   // empty when the enclave could not analyse the case
	Guards        []GuardResult `json:"guards,omitempty"`
	Sets          []LabelSet    `json:"sets,omitempty"` // empty where the package has none fitted
	Explanation   *Explanation  `json:"explanation,omitempty"`
	Certificate   *Certificate  `json:"certificate,omitempty"` // nil where the model's package asks for none
	Referrals     []Reason      `json:"referrals,omitempty"`   // why the enclave cannot vouch for a result
	Stages        []Stage       `json:"stages"`
	Time          time.Time     `json:"time"`
}

// Decision is what triage decided about a case.
type Decision string

// The decisions of triage.
const (
	Release    Decision = "release"
	Review     Decision = "review"
	Quarantine Decision = "quarantine"
)

// State returns the state that the decision leads to.
func (d Decision) State() State {
	switch d {
	case Release:
		return Released
	case Quarantine:
		return Quarantined
	default: // fail towards the human
		return InReview
	}
}

// Verdict is triage's decision and every reason for it. A release has none.
type Verdict struct {
	Decision Decision `json:"decision"`
	Reasons  []Reason `json:"reasons,omitempty"`
}

// Label is one label of a model with its coded concept.
type Label struct {
	Name string `json:"name"`
	Code Code   `json:"code"`
}

// HumanDecision is what a person did with a case in review or quarantine.
type HumanDecision struct {
	Action string   `json:"action"` // "release": the model's answer stands; "override": Predictions replaced by Labels; "reject": nothing is reported
	Actor  string   `json:"actor"`
	Labels []string `json:"labels,omitempty"` // labels the person found present (override)
	// Choices are all labels that the person chose from (override): a report
	// says of each whether it is present, whichever model runs by then.
	Choices []Label   `json:"choices,omitempty"`
	Note    string    `json:"note,omitempty"` // sealed in the vault, never in the audit log
	Time    time.Time `json:"time"`
}

// Refusal says that a destination refuses a case's results as they are. They
// are kept, and offered again from time to time.
type Refusal struct {
	Destination string `json:"destination"` // the configuration's name for it
	Status      string `json:"status"`      // what it answered last; no patient data
}

// Case is the gateway's view of one case, free of identity.
type Case struct {
	ID       CaseID           `json:"id"`
	Patient  PatientPseudonym `json:"patient"`
	Study    StudyUID         `json:"study"`
	Series   SeriesUID        `json:"series"`
	Instance InstanceUID      `json:"instance"`
	State    State            `json:"state"`
	Source   Source           `json:"source"`
	Model    ModelDigest      `json:"model,omitempty"`
	Input    Digest           `json:"input"` // the object as received, before de-identification
	Received time.Time        `json:"received"`
	Updated  time.Time        `json:"updated"`
	Finding  *Finding         `json:"finding,omitempty"`
	Verdict  *Verdict         `json:"verdict,omitempty"`
	Decision *HumanDecision   `json:"decision,omitempty"`
	Refusals []Refusal        `json:"refusals,omitempty"`
	Erased   time.Time        `json:"erased,omitzero"`  // when the patient's keys were destroyed; nothing but this row is left
	Stages   []Stage          `json:"stages,omitempty"` // gateway stages, before and after the enclave's
}
