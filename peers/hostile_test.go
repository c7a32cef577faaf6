package peers

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vigie/vigie"
	"github.com/vigie/vigie/demo"
	"github.com/vigie/vigie/medical/dicom"
	"github.com/vigie/vigie/medical/dicom/dimse"
	"github.com/vigie/vigie/medical/dicom/phantom"
	"github.com/vigie/vigie/store"
)

const (
	hostileConversations = 600
	hostileBodies        = 200
	memoryAllowed        = 200 << 20 // bytes above the start
)

func TestHostilePeersCostLittleMemoryAndHarmNobody(t *testing.T) {
	if testing.Short() {
		t.Skip("holds 800 hostile conversations")
	}
	s := startSite(t, demo.SiteOptions{})
	s.startPACS()
	warm := chest(t, 400, phantom.Options{})
	if status, err := s.cstoreFile(warm); err != nil || !status.Stored() {
		t.Fatalf("%v, %v", status, err)
	}
	s.rest(instanceOf(warm))
	request := associateRequest(t)
	start := s.memory("VmRSS")
	s.resetPeak()

	ctx, cancel := context.WithCancel(t.Context())
	var good []*dicom.File
	var slowest time.Duration
	var sender sync.WaitGroup
	sender.Go(func() {
		for seed := uint64(401); ctx.Err() == nil; seed++ {
			file, began := chest(t, seed, phantom.Options{Rows: 128, Columns: 128}), time.Now()
			if seed%2 == 0 {
				if _, answer, err := s.stow(encode(t, file)); err != nil || len(answer.Stored) != 1 {
					t.Errorf("a good sender's STOW: %+v, %v", answer, err)
					return
				}
			} else if status, err := s.cstoreFile(file); err != nil || status != dimse.Success {
				t.Errorf("a good sender's C-STORE: %v, %v", status, err)
				return
			}
			slowest = max(slowest, time.Since(began))
			good = append(good, file)
			time.Sleep(20 * time.Millisecond)
		}
	})
	var answers [6]atomic.Int64 // by hundreds of the HTTP status; 0: none
	var attackers sync.WaitGroup
	for worker := range 4 {
		attackers.Go(func() {
			// Half of them speak HTTP/2.
			secure := s.tls("modality")
			web := &http.Client{Transport: &http.Transport{TLSClientConfig: s.tls("modality"), ForceAttemptHTTP2: worker%2 == 0}}
			defer web.CloseIdleConnections()
			rng := rand.New(rand.NewPCG(7, uint64(worker)))
			for i := worker; i < hostileConversations; i += 4 {
				if err := s.converse(secure, hostileConversation(rng, i, request)); err != nil {
					t.Errorf("conversation %d: %v", i, err)
				}
			}
			for i := worker; i < hostileBodies; i += 4 {
				status, err := s.post(web, hostileBody(t, rng, i))
				if err != nil {
					t.Errorf("body %d: %v", i, err)
				}
				answers[status/100].Add(1)
			}
		})
	}
	attackers.Wait()
	afterTransport := s.memory("VmHWM")
	cancel()
	sender.Wait()

	for _, file := range good {
		if c := s.rest(instanceOf(file)); c.Finding == nil || len(c.Finding.Predictions) == 0 {
			t.Errorf("a good case is %s: %s", c.State, reasons(c, true))
		}
	}
	// Whatever was taken of the hostile objects ends with a person.
	var states = map[vigie.State]int{}
	cases, err := s.book.Cases(context.Background(), store.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		states[s.restCase(c.ID).State]++
	}
	peak := s.memory("VmHWM")
	t.Logf("%d conversations and %d bodies: resident %d MiB at the start, at most %d MiB during the attack and %d MiB until every case rested",
		hostileConversations, hostileBodies, start>>20, afterTransport>>20, peak>>20)
	t.Logf("%d good objects, the slowest answered after %v; cases: %v; HTTP answers by hundred: %v", len(good), slowest.Round(time.Millisecond), states, counts(&answers))
	if peak-start > memoryAllowed {
		t.Errorf("the attack cost %d MiB, allowed are %d", (peak-start)>>20, memoryAllowed>>20)
	}
	if len(good) < 10 {
		t.Errorf("only %d good objects were sent meanwhile", len(good))
	}
	if answers[5].Load() > 0 {
		t.Errorf("%d hostile bodies are answered as our own fault", answers[5].Load())
	}
	if log, err := os.ReadFile(s.Path("gateway.log")); err != nil || bytes.Contains(log, []byte("panic")) {
		t.Errorf("the log speaks of a panic (%v)", err)
	}
	s.verifyLog()
	s.stop()
}

func counts(answers *[6]atomic.Int64) (out []int64) {
	for i := range answers {
		out = append(out, answers[i].Load())
	}
	return out
}

// memory reads a line of the gateway's /proc/…/status, in bytes.
func (s *site) memory(field string) int64 {
	s.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.process.Process.Pid))
	if err != nil {
		s.t.Skipf("SKIPPED: memory is read from /proc, which this system lacks: %v", err)
	}
	for _, line := range strings.Split(string(data), "\n") {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return kib << 10
		}
	}
	s.t.Fatalf("/proc has no %s", field)
	return 0
}

// resetPeak makes VmHWM start anew: what the start took is not the attack's.
func (s *site) resetPeak() {
	s.t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.process.Process.Pid), []byte("5"), 0); err != nil {
		s.t.Logf("the peak includes the start: %v", err)
	}
}

// associateRequest is what our own client sends first: a well-formed
// A-ASSOCIATE-RQ that proposes computed radiographs.
func associateRequest(t *testing.T) []byte {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	recorded := make(chan []byte, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			close(recorded)
			return
		}
		defer conn.Close()
		head := make([]byte, 6)
		_, _ = io.ReadFull(conn, head)
		body := make([]byte, binary.BigEndian.Uint32(head[2:]))
		_, _ = io.ReadFull(conn, body)
		recorded <- append(head, body...)
	}()
	_, _ = dimse.Dial(t.Context(), l.Addr().String(), dimse.ClientConfig{CallingAE: demo.ModalityAE, CalledAE: demo.GatewayAE, Plain: true},
		dimse.Contexts("1.2.840.10008.5.1.4.1.1.1", dicom.ExplicitLittleEndian)) // hung up on
	request := <-recorded
	if len(request) < 100 || request[0] != 1 {
		t.Fatalf("recorded % x", request)
	}
	return request
}

func pdu(kind byte, length int, body []byte) []byte {
	head := []byte{kind, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(head[2:], uint32(length))
	return append(head, body...)
}

// pdata is a P-DATA-TF with one fragment; control 3 is the last of a command,
// 0 one of a data set.
func pdata(control byte, fragment []byte) []byte {
	body := binary.BigEndian.AppendUint32(nil, uint32(len(fragment)+2))
	body = append(append(body, 1, control), fragment...)
	return pdu(4, len(body), body)
}

// storeCommand is a C-STORE-RQ (PS3.7 9.3.1), implicit little endian.
func storeCommand(instance string) []byte {
	var body []byte
	element := func(number uint16, value []byte) {
		body = binary.LittleEndian.AppendUint16(append(body, 0, 0), number)
		body = append(binary.LittleEndian.AppendUint32(body, uint32(len(value))), value...)
	}
	even := func(uid string) []byte { return append([]byte(uid), make([]byte, len(uid)%2)...) }
	element(0x0002, even("1.2.840.10008.5.1.4.1.1.1"))
	element(0x0100, []byte{1, 0})
	element(0x0110, []byte{1, 0})
	element(0x0700, []byte{0, 0})
	element(0x0800, []byte{0, 0})
	element(0x1000, even(instance))
	head := []byte{0, 0, 0, 0, 4, 0, 0, 0}
	return append(binary.LittleEndian.AppendUint32(head, uint32(len(body))), body...)
}

// hostileConversation is what is sent, in one or several messages. After the
// first, the attacker waits for an answer.
func hostileConversation(rng *rand.Rand, i int, request []byte) [][]byte {
	noise := func(n int) []byte {
		b := make([]byte, n)
		for k := range b {
			b[k] = byte(rng.Uint32())
		}
		return b
	}
	mutated := func(b []byte) []byte {
		b = bytes.Clone(b)
		for range 1 + rng.IntN(6) {
			b[rng.IntN(len(b))] = byte(rng.Uint32())
		}
		return b
	}
	command := pdata(3, storeCommand("1.2.3.4"))
	switch i % 15 {
	case 0:
		return [][]byte{noise(1 + rng.IntN(5000))}
	case 1:
		return [][]byte{mutated(request)}
	case 2: // a length of 4 GiB
		b := bytes.Clone(request)
		binary.BigEndian.PutUint32(b[2:], 0xFFFFFFFF)
		return [][]byte{append(b, noise(60_000)...)}
	case 3:
		return [][]byte{request[:rng.IntN(len(request))]}
	case 4:
		return [][]byte{request, pdu(4, 0xFFFFFFF0, noise(60_000))}
	case 5: // the fragment is longer than its PDU
		return [][]byte{request, pdu(4, 20, append([]byte{0x7F, 0xFF, 0xFF, 0xFF, 1, 0}, noise(14)...))}
	case 6:
		return [][]byte{request, pdata(3, noise(2000))}
	case 7: // a data set that never ends
		messages := [][]byte{request, command}
		for range 40 {
			messages = append(messages, pdata(0, noise(16_000)))
		}
		return messages
	case 8:
		return [][]byte{request, pdata(0, noise(3000))}
	case 9:
		return [][]byte{pdu(byte(8+rng.IntN(240)), 100, noise(100))}
	case 10: // tens of thousands of presentation contexts
		items := bytes.Repeat([]byte{0x20, 0, 0, 4, 1, 0, 0, 0}, 20_000)
		return [][]byte{pdu(1, 68+len(items), append(bytes.Clone(request[6:74]), items...))}
	case 11:
		return [][]byte{request, append(command, pdu(5, 4, noise(4))...)}
	case 12: // a command that never ends
		messages := [][]byte{request}
		for range 40 {
			messages = append(messages, pdata(1, noise(16_000)))
		}
		return messages
	case 13:
		return [][]byte{request, mutated(command), mutated(pdata(2, noise(500)))}
	default: // taken, and nonsense inside
		return [][]byte{request, pdata(3, storeCommand(fmt.Sprintf("2.25.666%d", i))), pdata(2, noise(1500))}
	}
}

// converse sends messages to the DICOM listener and hangs up. An error means
// that the listener does not even shake hands.
func (s *site) converse(secure *tls.Config, messages [][]byte) error {
	dialer := tls.Dialer{Config: secure, NetDialer: &net.Dialer{Timeout: patience}}
	conn, err := dialer.Dial("tcp", s.DIMSE)
	if err != nil {
		return err
	}
	defer conn.Close()
	buffer := make([]byte, 4096)
	for i, message := range messages {
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := conn.Write(message); err != nil {
			return nil // thrown out
		}
		if i == 0 || i == len(messages)-1 {
			_ = conn.SetReadDeadline(time.Now().Add(40 * time.Millisecond))
			_, _ = conn.Read(buffer)
		}
	}
	return nil
}

// body is a STOW-RS request.
type body struct {
	contentType string
	encoding    string
	announced   int64 // Content-Length; 0: that of data
	data        []byte
}

func stowBody(parts ...[]byte) body {
	var data bytes.Buffer
	for _, part := range parts {
		data.WriteString("--frontier\r\nContent-Type: application/dicom\r\n\r\n")
		data.Write(part)
		data.WriteString("\r\n")
	}
	data.WriteString("--frontier--\r\n")
	return body{contentType: `multipart/related; type="application/dicom"; boundary=frontier`, data: data.Bytes()}
}

// claiming is a chest radiograph whose header promises other pixels than follow.
func claiming(t *testing.T, seed uint64, syntax string, rows, columns int64, fragment []byte) []byte {
	file := chest(t, seed, phantom.Options{Rows: 64, Columns: 64, TransferSyntax: dicom.RLELossless})
	file.DataSet.PutInt(dicom.Rows, rows)
	file.DataSet.PutInt(dicom.Columns, columns)
	if fragment != nil {
		file.DataSet.Put(&dicom.Element{Tag: dicom.PixelData, VR: dicom.OB, Fragments: [][]byte{nil, fragment}})
	}
	return encode(t, dicom.NewFile(file.DataSet, syntax))
}

func hostileBody(t *testing.T, rng *rand.Rand, i int) body {
	seed := uint64(100_000 + i)
	valid := encode(t, chest(t, seed, phantom.Options{Rows: 64, Columns: 64}))
	good := stowBody(valid)
	switch i % 14 {
	case 0:
		return body{contentType: "multipart/related; type=\"application/dicom\"", data: good.data}
	case 1: // the body ends within a part
		good.data = good.data[:len(good.data)/2]
		return good
	case 2:
		good.data = bytes.ReplaceAll(good.data, []byte("--frontier"), []byte("--elsewhere"))
		return good
	case 3:
		good.data = append([]byte("--frontier\r\nX: "+strings.Repeat("a", 2<<20)+"\r\n\r\n"), good.data...)
		return good
	case 4: // more parts than allowed
		return stowBody(bytes.Split(bytes.Repeat([]byte("\x00"), 12_000), []byte(""))...)
	case 5: // promises more than it sends
		good.announced = int64(len(good.data)) + 1_000_000
		return good
	case 6: // noise behind a preamble
		noise := bytes.Clone(valid[:132])
		for range 4000 {
			noise = append(noise, byte(rng.Uint32()))
		}
		return stowBody(noise)
	case 7: // an element of 4 GiB in the meta information
		broken := bytes.Clone(valid)
		copy(broken[144+8:], []byte{0xFE, 0xFF, 0xFF, 0xFF})
		return stowBody(broken)
	case 8: // sequences in sequences
		at := bytes.Index(valid, []byte{0x08, 0x00, 0x60, 0x00})
		deep := bytes.Repeat([]byte{0x08, 0x00, 0x40, 0x11, 'S', 'Q', 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE, 0xFF, 0x00, 0xE0, 0xFF, 0xFF, 0xFF, 0xFF}, 20_000)
		return stowBody(append(bytes.Clone(valid[:at]), deep...))
	case 9: // 256 MiB of zeros, deflated
		file := chest(t, seed, phantom.Options{Rows: 64, Columns: 64, TransferSyntax: dicom.DeflatedLittleEndian})
		meta := encode(t, file)
		meta = meta[:len(meta)-len(dataSetOf(t, meta))]
		var plain, bomb bytes.Buffer
		if err := file.DataSet.Write(&plain, dicom.ExplicitLittleEndian); err != nil {
			t.Fatal(err)
		}
		w, err := flate.NewWriter(&bomb, flate.BestSpeed)
		if err != nil {
			t.Fatal(err)
		}
		cut := bytes.Index(plain.Bytes(), []byte{0xE0, 0x7F, 0x10, 0x00})
		_, _ = w.Write(plain.Bytes()[:cut])
		_, _ = w.Write([]byte{0xE0, 0x7F, 0x10, 0x00, 'O', 'B', 0, 0, 0, 0, 0, 16})
		zeros := make([]byte, 1<<20)
		for range 256 {
			_, _ = w.Write(zeros)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return stowBody(append(meta, bomb.Bytes()...))
	case 10:
		good.encoding = "gzip"
		return good
	case 11: // 65,000 × 65,000 pixels, says the header
		return stowBody(claiming(t, seed, dicom.RLELossless, 65_000, 65_000, nil))
	case 12: // so says the JPEG as well
		jpeg := []byte{0xFF, 0xD8, 0xFF, 0xC0, 0, 11, 8, 0xFF, 0xFF, 0xFF, 0xFF, 1, 1, 0x11, 0, 0xFF, 0xDA, 0, 8, 1, 1, 0, 0, 63, 0, 0, 0xFF, 0xD9}
		return stowBody(claiming(t, seed, dicom.JPEGBaseline, 65_535, 65_535, jpeg))
	default: // a chest radiograph in which bytes were flipped
		broken := bytes.Clone(valid)
		for range 20 {
			broken[132+rng.IntN(2000)] = byte(rng.Uint32())
		}
		return stowBody(broken)
	}
}

// post sends a body and returns the status, 0 if the connection was closed.
func (s *site) post(web *http.Client, b body) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+s.HTTP+"/dicom-web/studies", bytes.NewReader(b.data))
	if err != nil {
		return 0, err
	}
	request.Header.Set("Content-Type", b.contentType)
	request.Header.Set("Accept", "application/dicom+json")
	if b.encoding != "" {
		request.Header.Set("Content-Encoding", b.encoding)
	}
	if b.announced != 0 {
		request.ContentLength = b.announced
	}
	response, err := web.Do(request)
	if err != nil {
		return 0, ctx.Err()
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, response.Body)
	return response.StatusCode, nil
}
