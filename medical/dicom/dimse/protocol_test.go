package dimse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vigie/vigie/medical/dicom"
)

func TestAnAssociationRequestSurvivesTheWire(t *testing.T) {
	rq := sampleRequest()
	rq.user.roles = []role{{class: ctStorage, scu: true}, {class: crStorage, scu: true, scp: true}}
	rq.user.async, rq.user.asyncInvoke, rq.user.asyncDo = true, 5, 0
	got, err := decodeAssociate(pduAssociateRQ, rq.encode(pduAssociateRQ)[6:])
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, rq) {
		t.Errorf("got %+v\nwant %+v", got, rq)
	}
}

func TestARequestWithForeignItemsIsUnderstood(t *testing.T) {
	rq := sampleRequest()
	user := rq.user.encode()
	for _, kind := range []byte{0x56, 0x57, 0x58, 0x5F} { // extended, common extended, identity, unknown
		user = appendItem(user, kind, []byte("secret password"))
	}
	s := open(t, nil)
	r := s.raw(t)
	pdu := rq.encode(pduAssociateRQ)
	pdu = pdu[:len(pdu)-len(rq.user.encode())-4]
	pdu = appendItem(appendItem(pdu, 0x99, []byte("unknown")), itemUserInformation, user)
	pdu[4], pdu[5] = byte((len(pdu)-6)>>8), byte(len(pdu)-6)
	r.send(pdu)
	kind, body := r.next()
	if kind != pduAssociateAC || bytes.Contains(body, []byte("secret")) {
		t.Errorf("answered %s %q", kind, body)
	}
}

func TestRolesAndAsynchronyAreAnsweredWithWhatWeAre(t *testing.T) {
	s := open(t, nil)
	rq := sampleRequest()
	rq.user.roles = []role{{class: ctStorage, scu: true, scp: true}, {class: "1.2.3", scu: true}}
	rq.user.async, rq.user.asyncInvoke = true, 0 // unlimited
	r := s.raw(t)
	r.send(rq.encode(pduAssociateRQ))
	kind, body := r.next()
	ac, err := decodeAssociate(kind, body)
	if err != nil {
		t.Fatal(err)
	}
	if want := []role{{class: ctStorage, scu: true}}; !reflect.DeepEqual(ac.user.roles, want) {
		t.Errorf("roles %+v, want %+v", ac.user.roles, want)
	}
	if !ac.user.async || ac.user.asyncInvoke != 1 || ac.user.asyncDo != 1 {
		t.Errorf("asynchronous operations %+v", ac.user)
	}
	if ac.calling != "RAW" || ac.called != "VIGIE" || ac.user.maxLength != DefaultMaxPDU || ac.user.class != ImplementationClassUID {
		t.Errorf("answer %+v", ac)
	}
}

func TestContextsAreAnsweredOneByOne(t *testing.T) {
	s := open(t, func(cfg *ServerConfig) { cfg.MorePrivate = []string{"1.3.12.2.1107.5.9.1"} })
	rq := sampleRequest()
	rq.contexts = []presentation{
		{id: 1, abstract: "1.2.840.10008.5.1.4.1.2.2.1", transfer: []string{dicom.ExplicitLittleEndian}}, // study root find
		{id: 3, abstract: "1.3.12.2.1107.5.9.1", transfer: []string{dicom.ExplicitLittleEndian}},
		{id: 5, abstract: "1.3.12.2.1107.5.9.2", transfer: []string{dicom.ExplicitLittleEndian}},
		{id: 7, abstract: VerificationSOPClass, transfer: []string{"1.2.840.10008.1.2.4.50"}},
		{id: 255, abstract: crStorage, transfer: []string{"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2"}},
		{id: 9, abstract: crStorage, transfer: []string{"1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.50"}},
		{id: 11, abstract: crStorage, transfer: []string{"1.2.840.10008.1.2.4.202", "1.2.840.10008.1.2.4.90"}},
	}
	r := s.raw(t)
	r.send(rq.encode(pduAssociateRQ))
	kind, body := r.next()
	ac, err := decodeAssociate(kind, body)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range ac.contexts {
		got = append(got, fmt.Sprint(p.id, p.result, p.transfer))
	}
	want := []string{"1 3 []", "3 0 [1.2.840.10008.1.2.1]", "5 3 []", "7 4 []", "255 0 [1.2.840.10008.1.2]", "9 0 [1.2.840.10008.1.2.4.50]", "11 0 [1.2.840.10008.1.2.4.202]"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("answers\n%q\nwant\n%q", got, want)
	}
}

func TestRejectionsSayWhy(t *testing.T) {
	s := open(t, func(cfg *ServerConfig) {
		cfg.Allow = func(p Peer) error {
			switch p.CallingAE {
			case "BUSY":
				return fmt.Errorf("busy: %w", ErrTemporarilyBusy)
			case "STRANGER":
				return errors.New("not on the list")
			}
			return nil
		}
	})
	contexts := []Context{Verification}
	for _, step := range []struct {
		calling, called string
		want            error
	}{
		{"STRANGER", "VIGIE", ErrCallingAE}, {"FRIEND", "OTHER", ErrCalledAE}, {"BUSY", "VIGIE", ErrTemporarilyBusy}, {"FRIEND", "VIGIE", nil},
	} {
		cfg := plainClient()
		cfg.CallingAE, cfg.CalledAE = step.calling, step.called
		a, err := Dial(context.Background(), s.addr, cfg, contexts)
		if !errors.Is(err, step.want) {
			t.Errorf("%s calling %s: %v, want %v", step.calling, step.called, err, step.want)
		}
		if err == nil {
			a.Abort()
		}
	}
	for name, change := range map[error]func(*associate){
		ErrProtocolVersion:    func(rq *associate) { rq.version = 2 },
		ErrApplicationContext: func(rq *associate) { rq.application = "1.2.3" },
		ErrCallingAE:          func(rq *associate) { rq.calling = "" },
	} {
		rq := sampleRequest()
		change(rq)
		r := s.raw(t)
		r.send(rq.encode(pduAssociateRQ))
		kind, body := r.next()
		if got := (&RejectedError{body[1], body[2], body[3]}); kind != pduAssociateRJ || !errors.Is(got, name) {
			t.Errorf("answered %s %v, want %v", kind, got, name)
		}
	}
}

func TestTooManyAssociationsAreToldToComeBack(t *testing.T) {
	s := open(t, func(cfg *ServerConfig) { cfg.MaxAssociations = 2 })
	first := s.dial(t, Verification)
	s.dial(t, Verification)
	_, err := Dial(context.Background(), s.addr, plainClient(), []Context{Verification})
	var rejected *RejectedError
	if !errors.Is(err, ErrTooMany) || !errors.As(err, &rejected) || !rejected.Temporary() {
		t.Fatalf("the third association: %v", err)
	}
	if err := first.Release(context.Background()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the place to be free", func() bool { return s.Stats().Open == 1 })
	s.dial(t, Verification)
}

func TestUnknownCommandsAreAnswered(t *testing.T) {
	s := open(t, nil)
	r := s.raw(t)
	r.establish()
	for _, field := range []uint16{0x0010, 0x0020, 0x0021, 0x0100, 0x0110, 0x0120, 0x0130, 0x0140, 0x0150, 0x7777} {
		c := storeRQ("1.2")
		c.field = field
		r.send(pdata(pdv(1, controlCommand|controlLast, c.encode())), pdata(pdv(1, controlLast, []byte("query"))))
		got := r.response()
		if got.status != UnrecognizedOperation || got.field != field|responseBit || got.respondedTo != 7 {
			t.Errorf("command 0x%04X answered 0x%04X to %d: %v", field, got.field, got.respondedTo, got.status)
		}
	}
	cancel := &command{field: commandCancelRQ, respondedTo: 7, dataSetType: noDataSet, present: hasField | hasRespondedTo | hasDataSetType}
	r.send(pdata(pdv(1, 3, cancel.encode())), pdata(pdv(5, 3, echoRQ().encode())))
	if got := r.response(); got.field != commandEchoRSP || got.status != Success {
		t.Errorf("after a cancel the echo was answered with %+v", got)
	}
}

func TestStoresThatCannotBeAreRefusedWithTheirReason(t *testing.T) {
	s := open(t, nil)
	r := s.raw(t)
	r.establish()
	for name, step := range map[string]struct {
		change func(*command)
		want   Status
	}{
		"other class than the context": {func(c *command) { c.affectedClass = crStorage }, SOPClassNotSupported},
		"no instance":                  {func(c *command) { c.present &^= hasInstance }, MissingAttribute},
		"instance that is no UID":      {func(c *command) { c.instance = "1.2/../../etc" }, InvalidSOPInstance},
		"no data set":                  {func(c *command) { c.dataSetType = noDataSet }, CannotUnderstand},
	} {
		c := storeRQ("1.2.3")
		step.change(c)
		r.send(pdata(pdv(1, 3, c.encode())))
		if c.hasData() {
			r.send(pdata(pdv(1, 0, pattern(100)), pdv(1, 2, pattern(10))))
		}
		if got := r.response(); got.status != step.want || got.field != commandStoreRSP {
			t.Errorf("%s: %v, want %v", name, got.status, step.want)
		}
	}
	if len(s.got()) != 0 {
		t.Error("something was stored")
	}
}

func TestFragmentsMayComeInAnyCut(t *testing.T) {
	s := open(t, nil)
	r := s.raw(t)
	r.establish()
	set := storeRQ("1.2.3").encode()
	data := pattern(5000)
	// One command over three PDUs, the last of which already holds data; then
	// an empty fragment, and the next message in the same PDU as the end.
	r.send(
		pdata(pdv(3, 1, set[:10])), pdata(pdv(3, 1, set[10:11]), pdv(3, 1, nil)),
		pdata(pdv(3, 3, set[11:]), pdv(3, 0, data[:1])), pdata(pdv(3, 0, nil)),
		pdata(pdv(3, 0, data[1:4000])), pdata(pdv(3, 2, data[4000:]), pdv(5, 3, echoRQ().encode())),
	)
	if got := r.response(); got.field != commandStoreRSP || got.status != Success {
		t.Errorf("answer %+v", got)
	}
	if got := r.response(); got.field != commandEchoRSP {
		t.Errorf("answer %+v", got)
	}
	if _, rest := splitFile(t, s.got()[0].file); !bytes.Equal(rest, data) {
		t.Error("the data set changed")
	}
	r.send(releaseRQ())
	if kind, _ := r.next(); kind != pduReleaseRP {
		t.Errorf("release answered with %s", kind)
	}
}

func TestBreachesOfTheProtocolAbort(t *testing.T) {
	set := storeRQ("1.2.3").encode()
	echo := echoRQ().encode()
	rsp := storeRQ("1.2.3").respond(Success).encode()
	for name, step := range map[string]struct {
		send   [][]byte
		source abortSource
		reason abortReason
	}{
		"second request":                 {[][]byte{sampleRequest().encode(pduAssociateRQ)}, abortByProvider, reasonUnexpectedPDU},
		"an accept":                      {[][]byte{sampleRequest().encode(pduAssociateAC)}, abortByProvider, reasonUnexpectedPDU},
		"release response":               {[][]byte{releaseRP()}, abortByProvider, reasonUnexpectedPDU},
		"unknown PDU":                    {[][]byte{{0x2A, 0, 0, 0, 0, 0}}, abortByProvider, reasonUnrecognizedPDU},
		"huge P-DATA":                    {[][]byte{{4, 0, 0xFF, 0xFF, 0xFF, 0xFF}}, abortByProvider, reasonInvalidParameterValue},
		"one byte over the limit":        {[][]byte{{4, 0, 0, 4, 0, 1}}, abortByProvider, reasonInvalidParameterValue},
		"empty P-DATA":                   {[][]byte{pdata()}, abortByProvider, reasonInvalidParameterValue},
		"long release":                   {[][]byte{{5, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0}}, abortByProvider, reasonInvalidParameterValue},
		"fragment longer than its PDU":   {[][]byte{{4, 0, 0, 0, 0, 8, 0, 0, 0, 9, 1, 3, 0, 0}}, abortByProvider, reasonInvalidParameterValue},
		"fragment shorter than its head": {[][]byte{{4, 0, 0, 0, 0, 6, 0, 0, 0, 1, 1, 3}}, abortByProvider, reasonInvalidParameterValue},
		"rest too short for a fragment":  {[][]byte{pdata(pdv(5, 1, echo[:20]), []byte{0, 0, 0})}, abortByProvider, reasonInvalidParameterValue},
		"control bits":                   {[][]byte{pdata(pdv(5, 0x83, echo))}, abortByProvider, reasonInvalidParameterValue},
		"context never proposed":         {[][]byte{pdata(pdv(77, 3, echo))}, abortByProvider, reasonUnexpectedParameter},
		"data without command":           {[][]byte{pdata(pdv(1, 2, echo))}, abortByUser, reasonNotSpecified},
		"command inside data":            {[][]byte{pdata(pdv(1, 3, set)), pdata(pdv(1, 0, set)), pdata(pdv(5, 3, echo))}, abortByUser, reasonNotSpecified},
		"data on another context":        {[][]byte{pdata(pdv(1, 3, set)), pdata(pdv(3, 2, set))}, abortByUser, reasonNotSpecified},
		"command on two contexts":        {[][]byte{pdata(pdv(1, 1, set[:20])), pdata(pdv(3, 3, set[20:]))}, abortByUser, reasonNotSpecified},
		"endless command":                {[][]byte{pdata(pdv(1, 1, pattern(maxCommand)), pdv(1, 1, pattern(2)))}, abortByUser, reasonNotSpecified},
		"command that is none":           {[][]byte{pdata(pdv(1, 3, pattern(50)))}, abortByUser, reasonNotSpecified},
		"response to nothing":            {[][]byte{pdata(pdv(1, 3, rsp))}, abortByUser, reasonNotSpecified},
		"release inside a message":       {[][]byte{pdata(pdv(1, 3, set)), pdata(pdv(1, 0, set)), releaseRQ()}, abortByProvider, reasonUnexpectedPDU},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, nil)
			r := s.raw(t)
			r.establish()
			r.send(step.send...)
			r.wantAbort(step.source, step.reason)
			r.wantClosed()
			if len(s.got()) != 0 {
				t.Error("an object was stored")
			}
			for _, spool := range s.spools {
				if spool.discarded != 1 {
					t.Errorf("Discard was called %d times", spool.discarded)
				}
			}
		})
	}
}

func TestWhatIsNotARequestAbortsAsServiceUser(t *testing.T) {
	s := open(t, nil)
	for _, first := range [][]byte{pdata(pdv(1, 3, echoRQ().encode())), releaseRQ(), releaseRP(), sampleRequest().encode(pduAssociateAC)} {
		r := s.raw(t)
		r.send(first)
		if kind, body := r.next(); kind != pduAbort || body[2] != byte(abortByUser) {
			t.Errorf("PDU type %d answered %s %v", first[0], kind, body)
		}
		r.wantClosed()
	}
}

func TestAPeerThatDoesNotHangUpAfterAnAbortIsHungUpOn(t *testing.T) {
	s := open(t, func(cfg *ServerConfig) { cfg.ARTIM = 2 * time.Second })
	r := s.raw(t)
	r.send(releaseRQ())
	r.wantAbort(abortByUser, reasonUnexpectedPDU)
	if n, err := io.Copy(io.Discard, r); n > 0 || err != nil && !isReset(err) {
		t.Errorf("after the abort: %d bytes, %v, want the end", n, err)
	}
}

func TestAReleaseCollisionEndsInGoodOrder(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	peer := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			peer <- err
			return
		}
		defer conn.Close()
		r := &raw{conn, t}
		r.next()
		rq := sampleRequest()
		ac := &associate{version: 1, called: rq.called, calling: rq.calling, application: applicationContext,
			contexts: []presentation{{id: 1, transfer: []string{dicom.ImplicitLittleEndian}}}, user: rq.user}
		r.send(ac.encode(pduAssociateAC))
		if kind, _ := r.next(); kind != pduReleaseRQ {
			peer <- fmt.Errorf("got %s", kind)
			return
		}
		r.send(pdata(pdv(1, 3, echoRQ().respond(Success).encode())), releaseRQ()) // late data, then our own wish
		if kind, _ := r.next(); kind != pduReleaseRP {
			peer <- fmt.Errorf("got %s", kind)
			return
		}
		r.send(releaseRP())
		peer <- nil
	}()
	a, err := Dial(context.Background(), listener.Addr().String(), plainClient(), []Context{Verification})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Release(context.Background()); err != nil {
		t.Errorf("release: %v", err)
	}
	if err := <-peer; err != nil {
		t.Error(err)
	}
}

func TestPlainListenersAreLoopbackOnly(t *testing.T) {
	s, err := NewServer(ServerConfig{Plain: true, NewSpool: func() (Spool, error) { return nullSpool{}, nil },
		Store: func(context.Context, StoreRequest) Status { return Success }})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(context.Background(), listener); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("serving in plain on every interface: %v", err)
	}
}

func TestAConfigurationThatIsTooLaxIsRefused(t *testing.T) {
	ca := newAuthority(t)
	good := ServerConfig{TLS: ServerTLS(ca.issue("x"), ca.pool()), NewSpool: func() (Spool, error) { return nullSpool{}, nil },
		Store: func(context.Context, StoreRequest) Status { return Success }}
	if _, err := NewServer(good); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*ServerConfig){
		"no TLS":           func(c *ServerConfig) { c.TLS = nil },
		"TLS 1.2":          func(c *ServerConfig) { c.TLS.MinVersion = 0x0303 },
		"no certificate":   func(c *ServerConfig) { c.TLS.ClientAuth = 0 },
		"both":             func(c *ServerConfig) { c.Plain = true },
		"no store":         func(c *ServerConfig) { c.Store = nil },
		"AE title":         func(c *ServerConfig) { c.AETitle = "SEVENTEENLETTERSX" },
		"AE backslash":     func(c *ServerConfig) { c.AETitle = `A\B` },
		"tiny PDU":         func(c *ServerConfig) { c.MaxPDU = 100 },
		"huge PDU":         func(c *ServerConfig) { c.MaxPDU = 1 << 30 },
		"negative timeout": func(c *ServerConfig) { c.IdleTimeout = -1 },
		"private class":    func(c *ServerConfig) { c.MorePrivate = []string{"Siemens"} },
	} {
		cfg := good
		cfg.TLS = good.TLS.Clone()
		spoil(&cfg)
		if _, err := NewServer(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
