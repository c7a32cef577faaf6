package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vigie/vigie/demo"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/medical/dicom/phantom"
)

// template is one encoded data set whose SOP Instance UID can be replaced in
// place, so that sending a fresh object costs the sender one copy.
type template struct {
	class, syntax string
	data          []byte
	uid           []byte // the planted UID, found in data
}

const plantedUID = "2.25.9000000000000000000000000"

func newTemplate(file *dicom.File) (*template, error) {
	ds := file.DataSet.Clone()
	ds.PutString(dicom.SOPInstanceUID, plantedUID)
	var out bytes.Buffer
	if err := ds.Write(&out, file.TransferSyntax); err != nil {
		return nil, err
	}
	t := &template{class: ds.UID(dicom.SOPClassUID), syntax: file.TransferSyntax, data: out.Bytes(), uid: []byte(plantedUID)}
	if bytes.Count(t.data, t.uid) != 1 {
		return nil, fmt.Errorf("bench: the planted UID occurs %d times in the object", bytes.Count(t.data, t.uid))
	}
	return t, nil
}

func (t *template) fresh(serial int64) (uid string, data []byte) {
	uid = fmt.Sprintf("%s%0*d", plantedUID[:6], len(plantedUID)-6, serial+1)
	data = bytes.Clone(t.data)
	copy(data[bytes.Index(data, t.uid):], uid)
	return uid, data
}

var serial atomic.Int64

// load sends n fresh objects over the given number of associations and returns
// the time from the first to the last acknowledgement.
func load(ctx context.Context, address string, config dimse.ClientConfig, t *template, n, senders int) (time.Duration, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		wait sync.WaitGroup
		left atomic.Int64
	)
	left.Store(int64(n))
	associations := make([]*dimse.Association, senders)
	for i := range associations {
		association, err := dimse.Dial(ctx, address, config, dimse.Contexts(t.class, t.syntax))
		if err != nil {
			return 0, err
		}
		associations[i] = association
	}
	start := time.Now()
	for _, association := range associations {
		wait.Go(func() {
			for left.Add(-1) >= 0 {
				uid, data := t.fresh(serial.Add(1))
				status, err := association.Store(ctx, t.class, uid, t.syntax, bytes.NewReader(data))
				if err == nil && status != dimse.Success {
					err = fmt.Errorf("bench: C-STORE answered %v", status)
				}
				if err != nil {
					cancel(err)
					return
				}
			}
			_ = association.Release(ctx)
		})
	}
	wait.Wait()
	elapsed := time.Since(start)
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	return elapsed, nil
}

// receiver is a system that objects are sent to.
type receiver struct {
	name    string
	note    string
	address string
	config  dimse.ClientConfig
	stop    func()
}

func intake(ctx context.Context, o options) ([]Row, error) {
	ct, err := phantom.AbdomenCT(1, phantom.Options{})
	if err != nil {
		return nil, err
	}
	cr, err := phantom.Chest(1, phantom.Options{Rows: 2140, Columns: 1760})
	if err != nil {
		return nil, err
	}
	works := []struct {
		name string
		file *dicom.File
		n    int
	}{{"intake, CT 512×512", ct, o.objects}, {"intake, CR 2140×1760", cr, max(8, o.objects/4)}}

	starts := []func(context.Context, options, string) (*receiver, error){startVigie, startStorescp, startOrthanc}
	var rows []Row
	for _, work := range works {
		t, err := newTemplate(work.file)
		if err != nil {
			return rows, err
		}
		for _, start := range starts {
			dir, err := os.MkdirTemp("", "vigie-bench-")
			if err != nil {
				return rows, err
			}
			r, err := start(ctx, o, dir)
			if err != nil {
				os.RemoveAll(dir)
				fmt.Fprintln(os.Stderr, "bench: left out:", err)
				continue
			}
			if _, err = load(ctx, r.address, r.config, t, o.senders, o.senders); err == nil { // warm-up
				var elapsed time.Duration
				elapsed, err = load(ctx, r.address, r.config, t, work.n, o.senders)
				rate := float64(work.n) / elapsed.Seconds()
				rows = append(rows, Row{Work: work.name, System: r.name, Value: rate, Unit: "objects/s",
					Second: fmt.Sprintf("%.0f MB/s", rate*float64(len(t.data))/1e6), Note: r.note})
			}
			r.stop()
			os.RemoveAll(dir)
			if err != nil {
				return rows, fmt.Errorf("%s: %w", r.name, err)
			}
		}
	}
	return rows, nil
}

func freeAddress() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

// child starts a process, its output in dir, and waits until ready says so.
func child(ctx context.Context, dir string, ready func(context.Context) error, name string, arguments ...string) (func(), error) {
	log, err := os.Create(filepath.Join(dir, "output.log"))
	if err != nil {
		return nil, err
	}
	command := exec.Command(name, arguments...)
	command.Dir, command.Stdout, command.Stderr = dir, log, log
	// dcmtk's library keeps Nagle's algorithm on unless told otherwise, which
	// costs it 40 ms an object against any sender: measure peers at their best.
	command.Env = append(os.Environ(), "TCP_NODELAY=1")
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := command.Start(); err != nil {
		log.Close()
		return nil, err
	}
	stop := func() {
		_ = syscall.Kill(-command.Process.Pid, syscall.SIGTERM)
		done := make(chan struct{})
		go func() { _ = command.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
			<-done
		}
		log.Close()
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := ready(ctx)
		if err == nil {
			return stop, nil
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			stop()
			output, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("%s did not become ready: %w\n%s", name, err, output)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func listening(address string) func(context.Context) error {
	return func(context.Context) error {
		connection, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			connection.Close()
		}
		return err
	}
}

func startVigie(ctx context.Context, o options, dir string) (*receiver, error) {
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return nil, err
	}
	model, err := filepath.Abs(o.model)
	if err != nil {
		return nil, err
	}
	site, err := demo.NewSite(filepath.Join(dir, "site"), demo.SiteOptions{Model: model})
	if err != nil {
		return nil, err
	}
	modality, err := site.TLS("modality")
	if err != nil {
		return nil, err
	}
	ready := func(ctx context.Context) error { return httpReady(ctx, "https://"+site.HTTP+"/readyz", modality) }
	stop, err := child(ctx, dir, ready, binary, "gateway", "run", "-c", site.Config)
	if err != nil {
		return nil, err
	}
	return &receiver{name: "vigie gateway", address: site.DIMSE, stop: stop,
		config: dimse.ClientConfig{CallingAE: demo.ModalityAE, CalledAE: demo.GatewayAE, TLS: modality, Timeout: time.Minute},
		note:   "TLS 1.3, encrypted, fsynced, audited; analysis runs meanwhile"}, nil
}

func httpReady(ctx context.Context, url string, config *tls.Config) error {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{TLSClientConfig: config.Clone(), DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(response.Body, 2000))
		return fmt.Errorf("%s: %s: %s", url, response.Status, body)
	}
	return nil
}

func startStorescp(ctx context.Context, _ options, dir string) (*receiver, error) {
	path, err := exec.LookPath("storescp")
	if err != nil {
		return nil, fmt.Errorf("dcmtk's storescp is not installed: %w", err)
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	_, port, _ := strings.Cut(address, ":")
	out := filepath.Join(dir, "received")
	if err := os.Mkdir(out, 0o700); err != nil {
		return nil, err
	}
	stop, err := child(ctx, dir, listening(address), path, "--fork", "--output-directory", out, "--aetitle", "PEER", port)
	if err != nil {
		return nil, err
	}
	return &receiver{name: "dcmtk storescp", address: address, stop: stop, config: dimse.ClientConfig{CallingAE: "BENCH", CalledAE: "PEER", Plain: true},
		note: "plain TCP, files in clear, no fsync, no audit"}, nil
}

func startOrthanc(ctx context.Context, _ options, dir string) (*receiver, error) {
	path, err := exec.LookPath("Orthanc")
	if err != nil {
		return nil, fmt.Errorf("the peer Orthanc is not installed: %w", err)
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	web, err := freeAddress()
	if err != nil {
		return nil, err
	}
	_, port, _ := strings.Cut(address, ":")
	_, webPort, _ := strings.Cut(web, ":")
	config := filepath.Join(dir, "orthanc.json")
	text := `{"Name": "bench", "StorageDirectory": ` + strconv.Quote(filepath.Join(dir, "db")) + `, "IndexDirectory": ` + strconv.Quote(filepath.Join(dir, "db")) + `,
  "DicomAet": "PEER", "DicomPort": ` + port + `, "HttpPort": ` + webPort + `, "RemoteAccessAllowed": false, "AuthenticationEnabled": false,
  "DicomAlwaysAllowStore": true, "Plugins": [], "ConcurrentJobs": 2}`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	stop, err := child(ctx, dir, listening(address), path, config)
	if err != nil {
		return nil, err
	}
	return &receiver{name: "Orthanc", address: address, stop: stop, config: dimse.ClientConfig{CallingAE: "BENCH", CalledAE: "PEER", Plain: true},
		note: "plain TCP, files in clear, indexed, no audit"}, nil
}
