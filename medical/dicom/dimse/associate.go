package dimse

import (
	"encoding/binary"
	"strings"
)

// Item types inside association PDUs (PS3.8 tables 9-12 to 9-23, PS3.7 annex D.3.3).
const (
	itemApplicationContext  = 0x10
	itemPresentationRQ      = 0x20
	itemPresentationAC      = 0x21
	itemAbstractSyntax      = 0x30
	itemTransferSyntax      = 0x40
	itemUserInformation     = 0x50
	itemMaximumLength       = 0x51
	itemImplementationClass = 0x52
	itemAsynchronous        = 0x53
	itemRoleSelection       = 0x54
	itemImplementationName  = 0x55
)

const (
	associateFixedLength = 68 // protocol version, reserved, two AE titles, reserved
	aeTitleLength        = 16
	maxUIDLength         = 64
	maxContexts          = 128
)

// Results of a presentation context negotiation (PS3.8 table 9-18).
const (
	contextAccepted                   = 0
	contextAbstractSyntaxUnsupported  = 3
	contextTransferSyntaxUnsupported  = 4
	protocolVersion                   = 1
	reservedByteCountBetweenAEAndItem = 32
)

// associate is an A-ASSOCIATE-RQ or -AC.
type associate struct {
	version         uint16
	called, calling string // without padding
	application     string
	contexts        []presentation
	user            userInformation
}

// presentation is one presentation context item.
type presentation struct {
	id       byte
	result   byte     // in AC
	abstract string   // in RQ
	transfer []string // in RQ at least one; in AC exactly one when accepted
}

// userInformation is what this package reads of the user information item.
// Extended negotiation and user identity are skipped, which PS3.7 allows: no
// answer to them means that they are not supported.
type userInformation struct {
	maxLength   uint32 // 0: unlimited
	class       string
	version     string
	roles       []role
	async       bool
	asyncInvoke uint16
	asyncDo     uint16
}

// role is an SCP/SCU role selection sub-item (PS3.7 D.3.3.4).
type role struct {
	class    string
	scu, scp bool
}

// item is one type-length-value of an association PDU.
type item struct {
	kind byte
	body []byte
}

// nextItem cuts the first item off data.
func nextItem(data []byte) (item, []byte, error) {
	if len(data) < 4 {
		return item{}, nil, violate(reasonInvalidParameterValue, "%d bytes left where an item of at least 4 begins", len(data))
	}
	length := int(binary.BigEndian.Uint16(data[2:]))
	if length > len(data)-4 {
		return item{}, nil, violate(reasonInvalidParameterValue, "item 0x%02X of %d bytes in %d", data[0], length, len(data)-4)
	}
	return item{kind: data[0], body: data[4 : 4+length]}, data[4+length:], nil
}

// decodeAssociate reads the body of an A-ASSOCIATE-RQ or -AC (kind).
func decodeAssociate(kind pduType, body []byte) (*associate, error) {
	if len(body) < associateFixedLength {
		return nil, violate(reasonInvalidParameterValue, "%s of %d bytes", kind, len(body))
	}
	a := &associate{version: binary.BigEndian.Uint16(body)}
	var err error
	if a.called, err = decodeAE("called", body[4:4+aeTitleLength]); err != nil {
		return nil, err
	}
	if a.calling, err = decodeAE("calling", body[20:20+aeTitleLength]); err != nil {
		return nil, err
	}
	presentationItem := byte(itemPresentationRQ)
	if kind == pduAssociateAC {
		presentationItem = itemPresentationAC
	}
	var seen [256]bool
	users := 0
	for rest := body[associateFixedLength:]; len(rest) > 0; {
		var it item
		if it, rest, err = nextItem(rest); err != nil {
			return nil, err
		}
		switch it.kind {
		case itemApplicationContext:
			if a.application != "" {
				return nil, violate(reasonUnexpectedParameter, "two application context items")
			}
			if a.application, err = decodeUID("application context", it.body); err != nil {
				return nil, err
			}
		case presentationItem:
			p, err := decodePresentation(kind, it.body)
			if err != nil {
				return nil, err
			}
			if seen[p.id] {
				return nil, violate(reasonInvalidParameterValue, "presentation context %d twice", p.id)
			}
			seen[p.id] = true
			a.contexts = append(a.contexts, p)
		case itemUserInformation:
			if users++; users > 1 {
				return nil, violate(reasonUnexpectedParameter, "two user information items")
			}
			if err := a.user.decode(it.body); err != nil {
				return nil, err
			}
		}
		// Other items are skipped (PS3.8 section 9.3.1).
	}
	switch {
	case a.application == "":
		return nil, violate(reasonInvalidParameterValue, "%s without application context", kind)
	case len(a.contexts) == 0:
		return nil, violate(reasonInvalidParameterValue, "%s without presentation context", kind)
	case users == 0:
		return nil, violate(reasonInvalidParameterValue, "%s without user information", kind)
	}
	return a, nil
}

func decodePresentation(kind pduType, body []byte) (presentation, error) {
	if len(body) < 4 {
		return presentation{}, violate(reasonInvalidParameterValue, "presentation context item of %d bytes", len(body))
	}
	p := presentation{id: body[0]}
	if kind == pduAssociateAC {
		p.result = body[2] // reserved in a request
	}
	if p.id%2 == 0 {
		return p, violate(reasonInvalidParameterValue, "presentation context %d: identifiers are odd", p.id)
	}
	// The syntax of a context that was not accepted means nothing, and peers
	// send it empty (PS3.8 table 9-18).
	significant := kind == pduAssociateRQ || p.result == contextAccepted
	for rest := body[4:]; len(rest) > 0; {
		var it item
		var err error
		if it, rest, err = nextItem(rest); err != nil {
			return p, err
		}
		if !significant {
			continue
		}
		switch {
		case it.kind == itemAbstractSyntax && kind == pduAssociateRQ:
			if p.abstract != "" {
				return p, violate(reasonUnexpectedParameter, "presentation context %d: two abstract syntaxes", p.id)
			}
			if p.abstract, err = decodeUID("abstract syntax", it.body); err != nil {
				return p, err
			}
		case it.kind == itemTransferSyntax:
			uid, err := decodeUID("transfer syntax", it.body)
			if err != nil {
				return p, err
			}
			p.transfer = append(p.transfer, uid)
		}
	}
	switch {
	case kind == pduAssociateRQ && (p.abstract == "" || len(p.transfer) == 0):
		return p, violate(reasonInvalidParameterValue, "presentation context %d lacks an abstract or a transfer syntax", p.id)
	case kind == pduAssociateAC && significant && len(p.transfer) != 1:
		return p, violate(reasonInvalidParameterValue, "presentation context %d accepted with %d transfer syntaxes", p.id, len(p.transfer))
	}
	return p, nil
}

func (u *userInformation) decode(body []byte) error {
	lengths := 0
	for len(body) > 0 {
		var it item
		var err error
		if it, body, err = nextItem(body); err != nil {
			return err
		}
		switch it.kind {
		case itemMaximumLength:
			if lengths++; lengths > 1 {
				return violate(reasonUnexpectedParameter, "two maximum length items")
			}
			if len(it.body) != 4 {
				return violate(reasonInvalidParameterValue, "maximum length item of %d bytes", len(it.body))
			}
			u.maxLength = binary.BigEndian.Uint32(it.body)
		case itemImplementationClass:
			if u.class, err = decodeUID("implementation class", it.body); err != nil {
				return err
			}
		case itemImplementationName:
			if len(it.body) > 16 {
				return violate(reasonInvalidParameterValue, "implementation version name of %d bytes", len(it.body))
			}
			u.version = strings.TrimRight(string(it.body), " \x00")
		case itemAsynchronous:
			if len(it.body) != 4 {
				return violate(reasonInvalidParameterValue, "asynchronous operations item of %d bytes", len(it.body))
			}
			u.async = true
			u.asyncInvoke = binary.BigEndian.Uint16(it.body)
			u.asyncDo = binary.BigEndian.Uint16(it.body[2:])
		case itemRoleSelection:
			r, err := decodeRole(it.body)
			if err != nil {
				return err
			}
			u.roles = append(u.roles, r)
		}
	}
	if lengths == 0 {
		return violate(reasonInvalidParameterValue, "user information without maximum length")
	}
	return nil
}

func decodeRole(body []byte) (role, error) {
	if len(body) < 4 {
		return role{}, violate(reasonInvalidParameterValue, "role selection item of %d bytes", len(body))
	}
	length := int(binary.BigEndian.Uint16(body))
	if len(body) != 2+length+2 {
		return role{}, violate(reasonInvalidParameterValue, "role selection item of %d bytes for a UID of %d", len(body), length)
	}
	uid, err := decodeUID("role selection", body[2:2+length])
	if err != nil {
		return role{}, err
	}
	scu, scp := body[2+length], body[3+length]
	if scu > 1 || scp > 1 {
		return role{}, violate(reasonInvalidParameterValue, "role selection of %d and %d", scu, scp)
	}
	return role{class: uid, scu: scu == 1, scp: scp == 1}, nil
}

// decodeAE reads a space-padded AE title (PS3.5 VR AE: no control character,
// no backslash).
func decodeAE(which string, field []byte) (string, error) {
	for _, c := range field {
		if (c < ' ' && c != 0) || c > '~' || c == '\\' {
			return "", violate(reasonInvalidParameterValue, "%s AE title with byte 0x%02X", which, c)
		}
	}
	return strings.Trim(string(field), " \x00"), nil
}

// decodeUID reads a UID: digits and dots, at most 64, one trailing NUL
// forgiven because some peers pad (PS3.8 annex F says not to).
func decodeUID(which string, field []byte) (string, error) {
	uid := strings.TrimSuffix(string(field), "\x00")
	if !validUID(uid) {
		return "", violate(reasonInvalidParameterValue, "%s is not a UID (%d bytes)", which, len(field))
	}
	return uid, nil
}

// validUID holds the alphabet and length of PS3.5 section 9.1, and not its ban
// on leading zeros, which objects in the field break.
func validUID(uid string) bool {
	if uid == "" || len(uid) > maxUIDLength || uid[0] == '.' || uid[len(uid)-1] == '.' {
		return false
	}
	for i := 0; i < len(uid); i++ {
		if c := uid[i]; c != '.' && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// encode writes the whole PDU, header included.
func (a *associate) encode(kind pduType) []byte {
	out := []byte{byte(kind), 0, 0, 0, 0, 0}
	out = binary.BigEndian.AppendUint16(out, a.version)
	out = append(out, 0, 0)
	out = appendAE(out, a.called)
	out = appendAE(out, a.calling)
	out = append(out, make([]byte, reservedByteCountBetweenAEAndItem)...)
	out = appendItem(out, itemApplicationContext, []byte(a.application))
	for _, p := range a.contexts {
		var body []byte
		kindOfItem := byte(itemPresentationRQ)
		if kind == pduAssociateAC {
			kindOfItem = itemPresentationAC
			body = append(body, p.id, 0, p.result, 0)
		} else {
			body = append(body, p.id, 0, 0, 0)
			body = appendItem(body, itemAbstractSyntax, []byte(p.abstract))
		}
		for _, uid := range p.transfer {
			body = appendItem(body, itemTransferSyntax, []byte(uid))
		}
		out = appendItem(out, kindOfItem, body)
	}
	out = appendItem(out, itemUserInformation, a.user.encode())
	binary.BigEndian.PutUint32(out[2:], uint32(len(out)-pduHeaderLength))
	return out
}

func (u *userInformation) encode() []byte {
	out := appendItem(nil, itemMaximumLength, binary.BigEndian.AppendUint32(nil, u.maxLength))
	if u.class != "" {
		out = appendItem(out, itemImplementationClass, []byte(u.class))
	}
	if u.async {
		body := binary.BigEndian.AppendUint16(nil, u.asyncInvoke)
		out = appendItem(out, itemAsynchronous, binary.BigEndian.AppendUint16(body, u.asyncDo))
	}
	for _, r := range u.roles {
		body := binary.BigEndian.AppendUint16(nil, uint16(len(r.class)))
		body = append(body, r.class...)
		out = appendItem(out, itemRoleSelection, append(body, bit(r.scu), bit(r.scp)))
	}
	if u.version != "" {
		out = appendItem(out, itemImplementationName, []byte(u.version))
	}
	return out
}

func bit(set bool) byte {
	if set {
		return 1
	}
	return 0
}

func appendItem(out []byte, kind byte, body []byte) []byte {
	out = append(out, kind, 0)
	out = binary.BigEndian.AppendUint16(out, uint16(len(body)))
	return append(out, body...)
}

func appendAE(out []byte, title string) []byte {
	field := [aeTitleLength]byte{}
	for i := range field {
		field[i] = ' '
	}
	copy(field[:], title)
	return append(out, field[:]...)
}

// checkAE says whether a title can be configured: 1 to 16 printable
// characters, no backslash.
func checkAE(title string) bool {
	if title == "" || len(title) > aeTitleLength || strings.TrimSpace(title) != title {
		return false
	}
	got, err := decodeAE("own", []byte(title))
	return err == nil && got == title
}
