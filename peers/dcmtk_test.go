package peers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/demo"
	"github.com/vigie/vigie/gateway"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

// dcmtk gives the options with which a dcmtk program is the modality of a site.
func (s *site) dcmtk(more ...string) []string {
	host, port := hostPort(s.t, s.DIMSE)
	options := []string{"--enable-tls", s.Path("tls", "modality.key"), s.Path("tls", "modality.pem"), "--add-cert-file", s.Path("tls", "ca.pem"),
		"-aet", demo.ModalityAE, "-aec", demo.GatewayAE}
	options = append(options, more...)
	// Options come before the host; files, if any, after the port.
	for i, argument := range more {
		if !strings.HasPrefix(argument, "-") && !strings.HasPrefix(argument, "+") {
			head := options[:len(options)-len(more)+i]
			return append(append(head[:len(head):len(head)], host, port), more[i:]...)
		}
	}
	return append(options, host, port)
}

func TestEchoscuIsAnsweredAndAStrangersIsNot(t *testing.T) {
	program(t, "echoscu")
	s := startSite(t, demo.SiteOptions{})
	if out, err := runPeer(t, "echoscu", s.dcmtk()...); err != nil {
		t.Errorf("echoscu: %v\n%s", err, out)
	}
	for what, replace := range map[string][2]string{
		"an unknown AE title":                   {demo.ModalityAE, "NOBODY"},
		"a certificate that is not on the list": {s.Path("tls", "modality.pem"), s.Path("tls", "stranger.pem")},
		"another called AE title":               {demo.GatewayAE, "OTHER"},
	} {
		options := s.dcmtk()
		for i := range options {
			switch options[i] {
			case replace[0]:
				options[i] = replace[1]
			case s.Path("tls", "modality.key"):
				if strings.Contains(replace[1], "stranger") {
					options[i] = s.Path("tls", "stranger.key")
				}
			}
		}
		if out, err := runPeer(t, "echoscu", options...); err == nil {
			t.Errorf("%s: let in\n%s", what, out)
		}
	}
}

// syntaxes are what storescu can propose, how an image gets into each, and the
// name that the reason must have where we do not decode it.
var syntaxes = []struct {
	proposal string   // of storescu
	uid      string   // in which the object arrives
	convert  []string // a program and its options; nil: the phantom is drawn in it
	lossless bool     // the model's answer is that of the original
	unknown  string   // our name of a syntax that we do not decode
}{
	{"-xe", dicom.ExplicitLittleEndian, nil, true, ""},
	{"-xi", dicom.ImplicitLittleEndian, []string{"dcmconv", "+ti"}, true, ""},
	{"-xb", dicom.ExplicitBigEndian, []string{"dcmconv", "+tb"}, true, ""},
	{"-xd", dicom.DeflatedLittleEndian, []string{"dcmconv", "+td"}, true, ""},
	{"-xr", dicom.RLELossless, []string{"dcmcrle"}, true, ""},
	{"-xy", dicom.JPEGBaseline, nil, false, ""},
	{"-xx", "1.2.840.10008.1.2.4.51", []string{"dcmcjpeg", "+ee"}, false, "JPEG Extended (Process 2 and 4)"},
	{"-xs", "1.2.840.10008.1.2.4.70", []string{"dcmcjpeg", "+e1"}, true, "JPEG Lossless, Non-Hierarchical, First-Order Prediction"},
	{"-xt", "1.2.840.10008.1.2.4.80", []string{"dcmcjpls"}, true, "JPEG-LS Lossless"},
	{"-xu", "1.2.840.10008.1.2.4.81", []string{"dcmcjpls", "+en"}, false, "JPEG-LS Lossy (Near-Lossless)"},
	{"-xv", "1.2.840.10008.1.2.4.90", []string{"gdcmconv", "--j2k"}, true, "JPEG 2000 (Lossless Only)"},
	{"-xw", "1.2.840.10008.1.2.4.91", []string{"gdcmconv", "--j2k", "--lossy", "-q", "20"}, false, "JPEG 2000"},
}

func TestStorescuSendsInEverySyntax(t *testing.T) {
	program(t, "storescu")
	s := startSite(t, demo.SiteOptions{})
	s.startPACS()
	dir := t.TempDir()
	var original *vigie.Case
	for i, syntax := range syntaxes {
		t.Run(syntax.proposal, func(t *testing.T) {
			var options phantom.Options
			if syntax.convert == nil {
				options.TransferSyntax = syntax.uid
			}
			// Every object shows the same pixels under a UID of its own.
			file := chest(t, 21, options)
			file.DataSet.PutString(dicom.SOPInstanceUID, fmt.Sprintf("2.25.21%02d", i))
			path := write(t, dir, "in"+syntax.proposal+".dcm", dicom.NewFile(file.DataSet, file.TransferSyntax))
			if c := syntax.convert; c != nil {
				to := filepath.Join(dir, "out"+syntax.proposal+".dcm")
				if out, err := runPeer(t, c[0], append(c[1:len(c):len(c)], path, to)...); err != nil {
					t.Fatalf("%v: %v\n%s", c, err, out)
				}
				path = to
			}
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			sent := parse(t, data)
			if sent.TransferSyntax != syntax.uid {
				t.Fatalf("the file to send is in %s", sent.TransferSyntax)
			}
			if out, err := runPeer(t, "storescu", s.dcmtk(syntax.proposal, "-R", path)...); err != nil {
				t.Fatalf("storescu: %v\n%s", err, out)
			}
			c := s.rest(instanceOf(sent))
			switch {
			case c.Source.Protocol != "dimse" || c.Source.AETitle != demo.ModalityAE || c.Source.Subject != "spiffe://demo.vigie.example/modality":
				t.Errorf("the source is %+v", c.Source)
			case syntax.unknown != "":
				if want := "transfer-syntax (" + syntax.unknown + ")"; c.State != vigie.InReview || reasons(c, true) != want || c.Finding != nil {
					t.Errorf("the case is %s because of %q, want %q; finding %v", c.State, reasons(c, true), want, c.Finding)
				}
				// It is kept: the same bytes again are known, other ones are not.
				if out, err := runPeer(t, "storescu", s.dcmtk(syntax.proposal, "-R", path)...); err != nil {
					t.Fatalf("storescu: %v\n%s", err, out)
				}
				if again := s.rest(instanceOf(sent)); again.ID != c.ID {
					t.Error("the same object made a second case")
				}
			default:
				if why := reasons(c, false); why != "" && why != "borderline" || c.Finding == nil || len(c.Finding.Predictions) != 2 {
					t.Fatalf("the case is %s because of %q, finding %+v", c.State, why, c.Finding)
				}
				if original == nil {
					original = c
				}
				got, want := c.Finding.Predictions[1].Raw, original.Finding.Predictions[1].Raw
				if d := got - want; syntax.lossless && d != 0 || d < -0.05 || d > 0.05 {
					t.Errorf("the model says %v, and %v of the same pixels uncompressed", got, want)
				}
			}
		})
	}
	s.verifyLog()
}

// inbox starts dcmtk's storescp as the site's PACS and returns the folder that
// it fills.
func inbox(s *site) string {
	s.t.Helper()
	dir := s.t.TempDir()
	_, port := hostPort(s.t, s.PACS)
	startPeer(s.t, s.PACS, "storescp", "--enable-tls", s.Path("tls", "pacs.key"), s.Path("tls", "pacs.pem"),
		"--add-cert-file", s.Path("tls", "ca.pem"), "-od", dir, "+B", "+xa", "-aet", demo.PACSAE, port)
	return dir
}

func TestStorescpReceivesAReportAndAnOverlayThatOthersRead(t *testing.T) {
	program(t, "storescp")
	s := startSite(t, demo.SiteOptions{})
	source := chest(t, 22, phantom.Options{Opacity: 0.9})
	if status, err := s.cstoreFile(source); err != nil || !status.Stored() {
		t.Fatalf("%v, %v", status, err)
	}
	// The case waits for its destination, which comes up only now.
	dir := inbox(s)
	c := s.delivered(s.rest(instanceOf(source)))
	results := map[string]string{
		"SR": gateway.ResultUID(c.ID, c.Model, gateway.RoleReport),
		"SC": gateway.ResultUID(c.ID, c.Model, gateway.RoleOverlay),
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(results) {
		t.Errorf("storescp keeps %d files, want a report and an overlay", len(entries))
	}
	for kind, uid := range results {
		found, _ := filepath.Glob(filepath.Join(dir, "*."+uid))
		if len(found) != 1 {
			t.Errorf("storescp has no %s %s: %v", kind, uid, entries)
			continue
		}
		checkResult(t, found[0], kind, source)
	}
	found, _ := filepath.Glob(filepath.Join(dir, "*."+results["SR"]))
	if len(found) == 1 {
		out, err := runPeer(t, "dsrdump", found[0])
		if err != nil {
			t.Errorf("dsrdump: %v\n%s", err, out)
		}
		for _, want := range []string{"Comprehensive SR", "Pneumonia", "chest-pneumonia-28", source.DataSet.String(dicom.PatientID)} {
			if !strings.Contains(out, want) {
				t.Errorf("dsrdump lacks %q:\n%s", want, out)
			}
		}
	}
}

// checkResult reads a result of ours with other people's eyes.
func checkResult(t *testing.T, path, kind string, source *dicom.File) {
	t.Helper()
	if _, err := os.Stat("/usr/bin/dciodvfy"); err == nil {
		valid(t, path)
	} else {
		t.Log("NOT TESTED: dciodvfy (Debian package dicom3tools) is not installed")
	}
	out, err := runPeer(t, "dcmdump", "-q", "+L", path)
	if err != nil {
		t.Errorf("dcmdump cannot read the %s: %v\n%s", kind, err, out)
	}
	for tag, want := range map[string]string{
		"(0008,0060) CS": map[string]string{"SR": "SR", "SC": "OT"}[kind],
		"(0010,0020) LO": source.DataSet.String(dicom.PatientID),
		"(0010,0010) PN": source.DataSet.String(dicom.PatientName),
		"(0020,000d) UI": source.DataSet.UID(dicom.StudyInstanceUID),
		"(0008,0050) SH": source.DataSet.String(dicom.AccessionNumber),
		"(0008,1155) UI": instanceOf(source),
		"(0008,1150) UI": source.DataSet.UID(dicom.SOPClassUID),
	} {
		seen := false
		for _, line := range strings.Split(out, "\n") {
			line = strings.TrimSpace(line)
			seen = seen || strings.HasPrefix(line, tag) && strings.Contains(line, "["+want+"]") ||
				strings.HasPrefix(line, tag) && strings.Contains(line, "="+sopClassKeyword(want)+" ")
		}
		if !seen {
			t.Errorf("the %s has no %s [%s]", kind, tag, want)
		}
	}
}

// sopClassKeyword is how dcmdump shows a SOP class that it knows.
func sopClassKeyword(uid string) string {
	switch uid {
	case "1.2.840.10008.5.1.4.1.1.1":
		return "ComputedRadiographyImageStorage"
	default:
		return "\x00"
	}
}

func TestAnAssociationOfStorescuThatDiesHarmsNobody(t *testing.T) {
	program(t, "storescu")
	s := startSite(t, demo.SiteOptions{})
	s.startPACS()
	dir := t.TempDir()
	large := write(t, dir, "large.dcm", chest(t, 23, phantom.Options{Rows: 2048, Columns: 2048}))
	for range 3 {
		cmd := exec.Command(program(t, "storescu"), s.dcmtk("-xe", "--max-send-pdu", "4096", large)...)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
	}
	good := chest(t, 24, phantom.Options{})
	if status, err := s.cstoreFile(good); err != nil || !status.Stored() {
		t.Fatalf("after three dead senders: %v, %v", status, err)
	}
	s.rest(instanceOf(good))
	s.verifyLog()
}
