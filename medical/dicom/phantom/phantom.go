// Package phantom draws synthetic medical images as complete DICOM objects: a
// chest radiograph of a child, with or without a consolidation, and an
// abdominal CT. Demonstrations, tests and benchmarks use them where a real
// patient's image must not be.
//
//	file, err := phantom.Chest(7, phantom.Options{Opacity: 0.8})
//	err = file.Write(w)
//
// The same seed and options give the same bytes. Every object carries a planted
// identity: names that look real enough to be found again by a test that
// searches logs and disks for them, and that belong to nobody.
//
// The drawings imitate how organs lie and how dense they are, not a disease:
// a model's answer on them says that the path works, and nothing of the model.
package phantom

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/big"
	"math/rand/v2"
	"time"

	"github.com/vigie/vigie/medical/dicom"
)

// SOP classes of the phantoms (PS3.4 B.5).
const (
	computedRadiography = "1.2.840.10008.5.1.4.1.1.1"
	computedTomography  = "1.2.840.10008.5.1.4.1.1.2"
)

// Identity is who the image claims to show. Fields left empty get planted
// values that depend on the seed.
type Identity struct {
	Name        string // PN: "FAMILY^GIVEN"
	ID          string
	Issuer      string // of the ID
	BirthDate   string // DA: "20221103"
	Sex         string // "M", "F", "O"
	Accession   string
	Physician   string // PN, referring
	Operator    string // PN
	Institution string
	Address     string
}

// Options is what a phantom can differ in. The zero value is a healthy child's
// chest, 1024 × 1152 pixels, 12 bits stored, MONOCHROME2, explicit little endian.
type Options struct {
	Rows, Columns  int    // 64..8192; default 1024 × 1152 (chest), always 512 × 512 (CT)
	Photometric    string // "MONOCHROME2" (default) or "MONOCHROME1"
	TransferSyntax string // a native syntax, RLE Lossless or JPEG Baseline (which stores 8 bits)
	Age            string // AS; default "004Y" (chest), "051Y" (CT); "-" leaves it out
	View           string // default "AP" (chest); "-" leaves it out
	BodyPart       string // default "CHEST", "ABDOMEN"
	Time           time.Time
	Identity       Identity

	Opacity       float64 // strength of a consolidation and the haze around it, 0 (none) to 1 (as dense as the heart)
	OpacityX      float64 // its centre as a fraction of the columns; 0 chooses by seed
	OpacityY      float64 // its centre as a fraction of the rows; 0 chooses by seed
	OpacityRadius float64 // as a fraction of the shorter side; default 0.24

	Noise    float64 // of the quantum noise, 1 is usual; negative is none
	BurnedIn bool    // the name is written into the pixels, and declared
	Series   int     // another series of the same study: 0, 1, …
	Instance int     // another image of the same series: 0, 1, …
}

// withDefaults completes the options of a phantom.
func (o Options) withDefaults(seed uint64, rows, columns int, age, view, part string) (Options, error) {
	set := func(field *string, value string) {
		if *field == "" {
			*field = value
		}
	}
	if o.Rows == 0 {
		o.Rows = rows
	}
	if o.Columns == 0 {
		o.Columns = columns
	}
	if o.Rows < 64 || o.Rows > 8192 || o.Columns < 64 || o.Columns > 8192 {
		return o, fmt.Errorf("phantom: drawing %d × %d pixels: sides of 64 to 8192 can be drawn", o.Columns, o.Rows)
	}
	set(&o.Photometric, "MONOCHROME2")
	if o.Photometric != "MONOCHROME1" && o.Photometric != "MONOCHROME2" {
		return o, fmt.Errorf("phantom: drawing as %q: MONOCHROME1 and MONOCHROME2 can be drawn", o.Photometric)
	}
	set(&o.TransferSyntax, dicom.ExplicitLittleEndian)
	set(&o.Age, age)
	set(&o.View, view)
	set(&o.BodyPart, part)
	if o.Time.IsZero() {
		o.Time = time.Date(2026, 3, 14, 9, 26, 53, 0, time.UTC)
	}
	if o.OpacityRadius == 0 {
		o.OpacityRadius = 0.24
	}
	if o.Noise == 0 {
		o.Noise = 1
	}
	o.Noise = max(o.Noise, 0)
	random := rand.New(rand.NewPCG(seed, 0x1d))
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	i := &o.Identity
	set(&i.Name, pick("Quimperlé", "Vandenplas", "Obafemi", "Lindqvist", "Tsukamoto", "Zielinska")+"^"+pick("Aurélie", "Benedikt", "Chidinma", "Domitille", "Eskil", "Fumiko"))
	set(&i.ID, fmt.Sprintf("PHX-%07d", random.IntN(1e7)))
	set(&i.Issuer, "SAINT-ELOI-TEST")
	set(&i.BirthDate, o.born(random).Format("20060102"))
	set(&i.Sex, pick("F", "M"))
	set(&i.Accession, fmt.Sprintf("ACC%08d", random.IntN(1e8)))
	set(&i.Physician, "Delacroix-Fournier^Hippolyte^^Dr")
	set(&i.Operator, "Okonkwo^Marguerite")
	set(&i.Institution, "Hôpital Saint-Éloi-des-Essais")
	set(&i.Address, "7 rue des Fantômes, 99999 Nulleville")
	return o, nil
}

// born is a day of birth that agrees with the age: within the year for an age
// in years, to the day for a younger child's.
func (o Options) born(random *rand.Rand) time.Time {
	months, days := random.IntN(10), random.IntN(28)
	switch age, ok := dicom.ParseAge(o.Age); {
	case ok && age.Unit == 'Y':
		return o.Time.AddDate(-age.Count, -months, -days)
	case ok:
		return o.Time.AddDate(0, 0, -int(age.Years()*365.25))
	}
	return o.Time.AddDate(-4, -months, -days)
}

// uid derives a UID from the seed and what it names: the UUID form of PS3.5
// B.2, from a digest instead of chance.
func uid(seed uint64, kind string, numbers ...int) string {
	h := sha256.New()
	fmt.Fprintf(h, "vigie phantom %s %v ", kind, numbers)
	h.Write(binary.BigEndian.AppendUint64(nil, seed))
	return "2.25." + new(big.Int).SetBytes(h.Sum(nil)[:16]).String()
}

// header puts the modules that every phantom has: patient, study, series,
// equipment, image, SOP common (PS3.3 C.7).
func (o Options) header(seed uint64, kind, sopClass, modality string) *dicom.DataSet {
	d := new(dicom.DataSet)
	d.PutString(dicom.SpecificCharacterSet, "ISO_IR 100")
	d.PutString(dicom.SOPClassUID, sopClass)
	d.PutString(dicom.SOPInstanceUID, uid(seed, kind+" instance", o.Series, o.Instance))
	d.PutString(dicom.StudyInstanceUID, uid(seed, kind+" study"))
	d.PutString(dicom.SeriesInstanceUID, uid(seed, kind+" series", o.Series))
	d.PutString(dicom.Modality, modality)
	d.PutString(dicom.Manufacturer, "Vigie")
	d.PutString(dicom.ManufacturerModelName, "Phantom")
	d.PutString(dicom.SoftwareVersions, "1")
	d.PutString(dicom.DeviceSerialNumber, "PH-0001")
	for _, tag := range []dicom.Tag{dicom.StudyDate, dicom.SeriesDate, dicom.AcquisitionDate, dicom.ContentDate} {
		d.PutDate(tag, o.Time)
	}
	for _, tag := range []dicom.Tag{dicom.StudyTime, dicom.SeriesTime, dicom.AcquisitionTime, dicom.ContentTime} {
		d.PutTime(tag, o.Time)
	}
	i := o.Identity
	d.PutString(dicom.PatientName, i.Name)
	d.PutString(dicom.PatientID, i.ID)
	d.PutString(dicom.IssuerOfPatientID, i.Issuer)
	d.PutString(dicom.PatientBirthDate, i.BirthDate)
	d.PutString(dicom.PatientSex, i.Sex)
	d.PutString(dicom.AccessionNumber, i.Accession)
	d.PutString(dicom.ReferringPhysicianName, i.Physician)
	d.PutString(dicom.OperatorsName, i.Operator)
	d.PutString(dicom.InstitutionName, i.Institution)
	d.PutString(dicom.InstitutionAddress, i.Address)
	d.PutString(dicom.StudyID, fmt.Sprint(1000+seed%9000))
	d.PutInt(dicom.SeriesNumber, int64(o.Series+1))
	d.PutInt(dicom.InstanceNumber, int64(o.Instance+1))
	if o.Age != "-" {
		d.PutString(dicom.PatientAge, o.Age)
	}
	d.PutString(dicom.BodyPartExamined, o.BodyPart)
	d.PutString(dicom.BurnedInAnnotation, "NO")
	if o.BurnedIn {
		d.PutString(dicom.BurnedInAnnotation, "YES")
	}
	return d
}
