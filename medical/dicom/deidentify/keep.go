package deidentify

import (
	"fmt"
	"strings"
	"sync"

	"github.com/vigie/vigie/medical/dicom"
)

// The keep list. Table E.1-1 says what must go; this list says what may stay,
// and an attribute on neither is removed. Each entry also says how its value is
// vouched for, so that a name typed into a coded or numeric field does not ride
// along. An attribute is here because an image is unreadable, unorientable or
// non-conforming without it, or because a model may be sensitive to it.

// numbers are kept if they are numbers: as many as PS3.6 allows, in range,
// and not letters in disguise.
const numbers = `
	RecommendedDisplayFrameRate ReferencedFrameNumber StartTrim StopTrim

	SliceThickness KVP CountsAccumulated EffectiveDuration RepetitionTime EchoTime
	InversionTime NumberOfAverages ImagingFrequency EchoNumbers MagneticFieldStrength
	SpacingBetweenSlices NumberOfPhaseEncodingSteps DataCollectionDiameter EchoTrainLength
	PercentSampling PercentPhaseFieldOfView PixelBandwidth CineRate
	ContrastBolusVolume ContrastBolusTotalDose ContrastFlowRate ContrastFlowDuration
	ContrastBolusIngredientConcentration SpatialResolution TriggerTime NominalInterval
	FrameTime FrameTimeVector FrameDelay ImageTriggerDelay LowRRValue HighRRValue
	IntervalsAcquired IntervalsRejected HeartRate CardiacNumberOfImages TriggerWindow
	RadionuclideTotalDose RadionuclideHalfLife RadionuclidePositronFraction
	ReconstructionDiameter DistanceSourceToDetector DistanceSourceToPatient
	EstimatedRadiographicMagnificationFactor GantryDetectorTilt TableHeight TableTraverse
	TableAngle RadialPosition ScanArc AngularStep CenterOfRotationOffset FieldOfViewDimensions
	ExposureTime XRayTubeCurrent Exposure ExposureInuAs ExposureTimeInuS XRayTubeCurrentInuA
	AveragePulseWidth ImageAndFluoroscopyAreaDoseProduct IntensifierSize ImagerPixelSpacing
	GeneratorPower FocalDistance FocalSpots BodyPartThickness CompressionForce
	CompressionPressure ActualFrameDuration FlipAngle AcquisitionMatrix dBdt SAR
	ExposureIndex TargetExposureIndex DeviationIndex
	CollimatorLeftVerticalEdge CollimatorRightVerticalEdge CollimatorUpperHorizontalEdge
	CollimatorLowerHorizontalEdge CenterOfCircularCollimator RadiusOfCircularCollimator
	VerticesOfThePolygonalCollimator ShutterLeftVerticalEdge ShutterRightVerticalEdge
	ShutterUpperHorizontalEdge ShutterLowerHorizontalEdge CenterOfCircularShutter
	RadiusOfCircularShutter VerticesOfThePolygonalShutter ShutterPresentationValue
	PositionerPrimaryAngle PositionerSecondaryAngle PositionerPrimaryAngleIncrement
	PositionerSecondaryAngleIncrement DetectorPrimaryAngle DetectorSecondaryAngle
	FieldOfViewOrigin FieldOfViewRotation RelativeXRayExposure EntranceDose EntranceDoseInmGy
	OrganDose HalfValueLayer Sensitivity DetectorTemperature DetectorBinning
	DetectorElementPhysicalSize DetectorElementSpacing DetectorActiveDimensions
	DetectorActiveOrigin DetectorTimeSinceLastExposure ExposuresOnDetectorSinceLastCalibration
	FilterThicknessMinimum FilterThicknessMaximum GridThickness GridPitch GridAspectRatio
	GridPeriod GridFocalDistance PreferredPlaybackSequencing
	SingleCollimationWidth TotalCollimationWidth TableSpeed TableFeedPerRotation
	SpiralPitchFactor CTDIvol RevolutionTime DataCollectionCenterPatient
	ReconstructionTargetCenterPatient DiffusionBValue DiffusionGradientOrientation
	RegionSpatialFormat RegionDataType RegionFlags RegionLocationMinX0 RegionLocationMinY0
	RegionLocationMaxX1 RegionLocationMaxY1 PhysicalUnitsXDirection PhysicalUnitsYDirection
	PhysicalDeltaX PhysicalDeltaY ReferencePixelX0 ReferencePixelY0

	SeriesNumber AcquisitionNumber InstanceNumber ImagePositionPatient
	ImageOrientationPatient TemporalPositionIdentifier NumberOfTemporalPositions
	TemporalResolution ImagesInAcquisition SliceLocation InStackPositionNumber
	TemporalPositionIndex DimensionIndexValues FrameAcquisitionNumber
	InConcatenationNumber InConcatenationTotalNumber ConcatenationFrameOffsetNumber

	SamplesPerPixel PlanarConfiguration NumberOfFrames Rows Columns PixelSpacing
	PixelAspectRatio BitsAllocated BitsStored HighBit PixelRepresentation
	SmallestImagePixelValue LargestImagePixelValue SmallestPixelValueInSeries
	LargestPixelValueInSeries PixelPaddingValue PixelPaddingRangeLimit
	PixelIntensityRelationshipSign WindowCenter WindowWidth RescaleIntercept RescaleSlope
	RedPaletteColorLookupTableDescriptor GreenPaletteColorLookupTableDescriptor
	BluePaletteColorLookupTableDescriptor LossyImageCompressionRatio LUTDescriptor
	RepresentativeFrameNumber UltrasoundColorDataPresent

	EnergyWindowVector NumberOfEnergyWindows EnergyWindowLowerLimit EnergyWindowUpperLimit
	DetectorVector NumberOfDetectors PhaseVector NumberOfPhases RotationVector
	NumberOfRotations NumberOfFramesInRotation RRIntervalVector NumberOfRRIntervals
	TimeSlotVector NumberOfTimeSlots SliceVector NumberOfSlices AngularViewVector
	TimeSliceVector NumberOfTimeSlices StartAngle AxialAcceptance FrameReferenceTime
	SliceSensitivityFactor DecayFactor DoseCalibrationFactor ScatterFractionFactor
	DeadTimeFactor ImageIndex`

// pointers are kept if every tag in them is a public, registered attribute.
const pointers = `FrameIncrementPointer DimensionIndexPointer FunctionalGroupPointer`

// sequences are kept, their items de-identified like the data set itself.
// A sequence of codes keeps only items whose code is in concepts.
const sequences = `
	AnatomicRegionSequence AnatomicRegionModifierSequence PrimaryAnatomicStructureSequence
	PrimaryAnatomicStructureModifierSequence DerivationImageSequence DerivationCodeSequence
	PurposeOfReferenceCodeSequence ViewCodeSequence ViewModifierCodeSequence
	PatientOrientationCodeSequence PatientOrientationModifierCodeSequence
	PatientGantryRelationshipCodeSequence SequenceOfUltrasoundRegions
	EnergyWindowInformationSequence EnergyWindowRangeSequence DetectorInformationSequence
	RotationInformationSequence ModalityLUTSequence VOILUTSequence
	DimensionOrganizationSequence DimensionIndexSequence
	SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence FrameContentSequence
	PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence FrameVOILUTSequence
	PixelValueTransformationSequence FrameAnatomySequence CTImageFrameTypeSequence
	CTAcquisitionTypeSequence CTAcquisitionDetailsSequence CTTableDynamicsSequence
	CTPositionSequence CTGeometrySequence CTReconstructionSequence CTExposureSequence
	CTXRayDetailsSequence MRImageFrameTypeSequence MRTimingAndRelatedParametersSequence
	MRFOVGeometrySequence MREchoSequence MRModifierSequence MRReceiveCoilSequence
	MRTransmitCoilSequence MRAveragesSequence MRDiffusionSequence
	DiffusionGradientDirectionSequence`

// blanked are attributes of type 2 in an IOD whose free text nobody can vouch
// for: emptied, so that the copy conforms.
const blanked = `PositionReferenceIndicator FilterType`

// replaced are attributes of type 1 in an enhanced IOD, likewise: a dummy.
const replaced = `ManufacturerModelName SoftwareVersions`

// keeper is how an attribute on the keep list is vouched for.
type keeper struct {
	number, pointer, sequence bool
	blank, replace            bool
	check                     func(values []string) ([]string, bool) // text: what stays, and whether anything does
	custom                    bool                                   // pixel data and look-up tables: see pixels.go, lut.go
}

var keepers = sync.OnceValue(func() map[dicom.Tag]keeper {
	all := make(map[dicom.Tag]keeper, 400)
	add := func(keyword string, k keeper) {
		tag, ok := dicom.TagOf(keyword)
		if !ok {
			panic(fmt.Sprintf("deidentify: the keep list names %q, which PS3.6 does not know", keyword))
		}
		if _, twice := all[tag]; twice {
			panic(fmt.Sprintf("deidentify: the keep list names %q twice", keyword))
		}
		if _, listed := ActionFor(tag); listed {
			panic(fmt.Sprintf("deidentify: the keep list names %q, which Table E.1-1 acts on", keyword))
		}
		all[tag] = k
	}
	for list, k := range map[string]keeper{
		numbers: {number: true}, pointers: {pointer: true}, sequences: {sequence: true},
		blanked: {blank: true}, replaced: {replace: true},
		"PixelData LUTData RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData": {custom: true},
	} {
		for _, keyword := range strings.Fields(list) {
			add(keyword, k)
		}
	}
	for keyword, list := range terms {
		allowed := make(map[string]bool)
		for _, term := range strings.Split(list, "|") {
			allowed[term] = true
		}
		add(keyword, keeper{check: func(values []string) ([]string, bool) { return values, every(values, allowed) }})
	}
	for keyword, check := range checks {
		add(keyword, keeper{check: check})
	}
	return all
})

func every(values []string, allowed map[string]bool) bool {
	for _, v := range values {
		if !allowed[v] && v != "" {
			return false
		}
	}
	return true
}
