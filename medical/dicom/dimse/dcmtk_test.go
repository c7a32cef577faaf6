package dimse

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vigie/vigie/demo/ports"
	"github.com/vigie/vigie/medical/dicom"
)

// program finds a peer's executable or skips, saying so.
func program(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/local/bin"} {
		if path := filepath.Join(dir, name); isExecutable(path) {
			return path
		}
	}
	t.Skipf("SKIPPED: the peer program %s is not installed (Debian packages dcmtk, orthanc): interoperability is NOT tested here", name)
	return ""
}

func isExecutable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&0o111 != 0
}

// pydicomFile is one of the real files of the Debian package python3-pydicom.
func pydicomFile(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join("/usr/lib/python3/dist-packages/pydicom/data/test_files", name)
	if _, err := os.Stat(path); err != nil {
		t.Skipf("SKIPPED: the real file %s is absent (Debian package python3-pydicom)", path)
	}
	return path
}

// runPeer runs a peer's program to its end, killed after three minutes.
func runPeer(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program(t, name), args...).CombinedOutput()
	return string(out), err
}

// startPeer starts a peer's server program (a name or a path) on a free port and waits until it
// listens. arguments gets the port.
func startPeer(t testing.TB, name string, arguments func(port string) []string) (addr string) {
	t.Helper()
	path := name
	if !filepath.IsAbs(name) {
		path = program(t, name)
	}
	addr = freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	var output bytes.Buffer
	cmd := exec.Command(path, arguments(port)...)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s said:\n%s", name, output.String())
		}
	})
	waitFor(t, name+" to listen", func() bool {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return addr
}

func freeAddr(t testing.TB) string {
	t.Helper()
	addresses, err := ports.Reserve(1)
	if err != nil {
		t.Fatal(err)
	}
	return addresses[0]
}

func host(addr string) []string {
	h, port, _ := net.SplitHostPort(addr)
	return []string{h, port}
}

func TestDcmtkEchoesAndStoresOverTLS13(t *testing.T) {
	var mu sync.Mutex
	var versions []uint16
	ca := newAuthority(t)
	secure := open(t, func(cfg *ServerConfig) {
		ca.secure(cfg)
		cfg.TLS.VerifyConnection = func(state tls.ConnectionState) error {
			mu.Lock()
			defer mu.Unlock()
			versions = append(versions, state.Version)
			return nil
		}
	})
	caFile, cert, key := ca.files(t.TempDir(), ca.issue("modality.test"))
	options := []string{"--enable-tls", key, cert, "--add-cert-file", caFile, "-aet", "MODALITY", "-aec", "VIGIE"}

	if out, err := runPeer(t, "echoscu", append(options, host(secure.addr)...)...); err != nil {
		t.Fatalf("echoscu: %v\n%s", err, out)
	}
	files := []string{"CT_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "image_dfl.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "SC_rgb_jpeg_dcmtk.dcm", "JPGExtended.dcm", "MR_small_jpeg_ls_lossless.dcm"}
	for _, name := range files {
		path := pydicomFile(t, name)
		before := len(secure.got())
		// -R proposes only the file's SOP class, proposal only its syntax.
		arguments := append([]string{}, options...)
		if option := proposal[name]; option != "" {
			arguments = append(arguments, option)
		}
		arguments = append(append(arguments, "-R"), append(host(secure.addr), path)...)
		if out, err := runPeer(t, "storescu", arguments...); err != nil {
			t.Errorf("storescu %s: %v\n%s", name, err, out)
			continue
		}
		got := secure.got()
		if len(got) != before+1 {
			t.Errorf("%s: %d objects arrived", name, len(got)-before)
			continue
		}
		r := got[before]
		if r.Peer.CallingAE != "MODALITY" || r.Peer.Certificate == nil || r.Peer.Certificate.Subject.CommonName != "modality.test" {
			t.Errorf("%s: peer %q, %v", name, r.Peer.CallingAE, r.Peer.Certificate)
		}
		if want, ok := syntaxOf[proposal[name]]; ok && r.TransferSyntax != want {
			t.Errorf("%s arrived in %s, want %s", name, r.TransferSyntax, want)
		}
		spooled := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(spooled, r.file, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := runPeer(t, "dcmdump", "-E", "-q", spooled); err != nil {
			t.Errorf("dcmdump cannot read what was spooled of %s: %v\n%s", name, err, out)
		}
		// dcmtk writes the header anew but leaves the pixels alone, and half of
		// each file is pixels.
		sent, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if pixels := sent[len(sent)/2:][:500]; name != "image_dfl.dcm" && !bytes.Contains(r.file, pixels) {
			t.Errorf("%s: the pixels changed on the way", name)
		}
	}
	for _, v := range versions {
		if v != tls.VersionTLS13 {
			t.Errorf("dcmtk negotiated TLS version 0x%04X", v)
		}
	}
	if len(versions) < len(files)+1 {
		t.Errorf("%d TLS connections for %d programs", len(versions), len(files)+1)
	}
}

// proposal is the storescu option that proposes a file's own transfer syntax.
var proposal = map[string]string{
	"MR_small_bigendian.dcm":        "-xb",
	"MR_small_implicit.dcm":         "-xi",
	"image_dfl.dcm":                 "-xd",
	"MR_small_RLE.dcm":              "-xr",
	"JPEG2000.dcm":                  "-xw",
	"SC_rgb_jpeg_dcmtk.dcm":         "-xy",
	"JPGExtended.dcm":               "-xx",
	"MR_small_jpeg_ls_lossless.dcm": "-xt",
}

var syntaxOf = map[string]string{
	"-xb": "1.2.840.10008.1.2.2", "-xi": "1.2.840.10008.1.2", "-xd": "1.2.840.10008.1.2.1.99", "-xr": "1.2.840.10008.1.2.5",
	"-xw": "1.2.840.10008.1.2.4.91", "-xy": "1.2.840.10008.1.2.4.50", "-xx": "1.2.840.10008.1.2.4.51", "-xt": "1.2.840.10008.1.2.4.80",
}

func TestOurClientStoresToDcmtkOverTLS13(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	caFile, cert, key := ca.files(dir, ca.issue("pacs.test"))
	inbox := t.TempDir()
	addr := startPeer(t, "storescp", func(port string) []string {
		return []string{"--enable-tls", key, cert, "--add-cert-file", caFile, "-od", inbox, "+B", "+xa", "-aet", "PACS", port}
	})
	file, err := os.ReadFile(pydicomFile(t, "CT_small.dcm"))
	if err != nil {
		t.Fatal(err)
	}
	const instance = "1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322"
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var version uint16
	secure := ClientTLS(ca.issue("vigie.test"), ca.pool(), "pacs.test")
	secure.VerifyConnection = func(state tls.ConnectionState) error { version = state.Version; return nil }
	a, err := Dial(ctx, addr, ClientConfig{CallingAE: "VIGIE", CalledAE: "PACS", TLS: secure},
		append(Contexts(ctStorage, dicom.ExplicitLittleEndian), Verification))
	if err != nil {
		t.Fatal(err)
	}
	if version != tls.VersionTLS13 {
		t.Errorf("TLS version 0x%04X", version)
	}
	if status, err := a.Echo(ctx); err != nil || status != Success {
		t.Fatalf("echo: %v, %v", status, err)
	}
	_, data := splitFileMeta(file)
	for range 3 {
		if status, err := a.Store(ctx, ctStorage, instance, dicom.ExplicitLittleEndian, bytes.NewReader(data)); err != nil || status != Success {
			t.Fatalf("store: %v, %v", status, err)
		}
	}
	if err := a.Release(ctx); err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile(filepath.Join(inbox, "CT."+instance))
	if err != nil {
		t.Fatal(err)
	}
	if _, got := splitFileMeta(kept); !bytes.Equal(got, data) {
		t.Errorf("dcmtk kept %d bytes of a data set of %d", len(got), len(data))
	}
}

// splitFileMeta cuts a file after its meta information.
func splitFileMeta(file []byte) (meta, data []byte) {
	n := 144 + int(file[140]) + int(file[141])<<8
	return file[:n], file[n:]
}

func TestDcmtkIsToldWhyItIsRejected(t *testing.T) {
	s := open(t, func(cfg *ServerConfig) {
		cfg.Allow = func(p Peer) error {
			if p.CallingAE != "KNOWN" {
				return fmt.Errorf("not on the list")
			}
			return nil
		}
	})
	for _, step := range []struct{ calling, called, want string }{
		{"STRANGER", "VIGIE", "Calling AE Title Not Recognized"},
		{"KNOWN", "OTHER", "Called AE Title Not Recognized"},
	} {
		out, err := runPeer(t, "echoscu", append([]string{"-v", "-aet", step.calling, "-aec", step.called}, host(s.addr)...)...)
		if err == nil || !strings.Contains(out, step.want) {
			t.Errorf("%s calling %s: %v\n%s\nwant %q", step.calling, step.called, err, out, step.want)
		}
	}
	if out, err := runPeer(t, "echoscu", append([]string{"-aet", "KNOWN", "-aec", "VIGIE"}, host(s.addr)...)...); err != nil {
		t.Errorf("the known peer: %v\n%s", err, out)
	}
}

func TestDcmtkWithoutACertificateIsRefused(t *testing.T) {
	ca := newAuthority(t)
	s := open(t, ca.secure)
	if out, err := runPeer(t, "echoscu", append([]string{"--anonymous-tls", "-ic", "-aec", "VIGIE"}, host(s.addr)...)...); err == nil {
		t.Errorf("an anonymous peer was let in:\n%s", out)
	}
	other := newAuthority(t)
	_, cert, key := other.files(t.TempDir(), other.issue("stranger.test"))
	if out, err := runPeer(t, "echoscu", append([]string{"--enable-tls", key, cert, "-ic", "-aec", "VIGIE"}, host(s.addr)...)...); err == nil {
		t.Errorf("a peer with a foreign certificate was let in:\n%s", out)
	}
	waitFor(t, "the refusals to be counted", func() bool { return s.Stats().Refused == 2 })
}
