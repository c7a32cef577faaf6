package dimse

import (
	"encoding/binary"
	"strings"
)

// Command fields (PS3.7 annex E.1).
const (
	commandStoreRQ  uint16 = 0x0001
	commandStoreRSP uint16 = 0x8001
	commandEchoRQ   uint16 = 0x0030
	commandEchoRSP  uint16 = 0x8030
	commandCancelRQ uint16 = 0x0FFF
	responseBit     uint16 = 0x8000
)

// Elements of group 0000 (PS3.7 annex E.1) that this package reads or writes.
const (
	elementGroupLength         uint16 = 0x0000
	elementAffectedSOPClass    uint16 = 0x0002
	elementRequestedSOPClass   uint16 = 0x0003
	elementCommandField        uint16 = 0x0100
	elementMessageID           uint16 = 0x0110
	elementMessageIDResponded  uint16 = 0x0120
	elementPriority            uint16 = 0x0700
	elementDataSetType         uint16 = 0x0800
	elementStatus              uint16 = 0x0900
	elementErrorComment        uint16 = 0x0902
	elementAffectedSOPInstance uint16 = 0x1000
)

const (
	noDataSet       uint16 = 0x0101 // any other value of (0000,0800) announces one
	withDataSet     uint16 = 0x0001
	priorityMedium  uint16 = 0x0000
	maxCommand             = 16 << 10 // a C-STORE-RQ takes about 300 bytes
	maxErrorComment        = 64
)

// command is a command set. present tells which elements were there.
type command struct {
	field          uint16
	messageID      uint16
	respondedTo    uint16
	priority       uint16
	dataSetType    uint16
	status         Status
	affectedClass  string
	requestedClass string
	instance       string
	comment        string
	present        presence
}

type presence uint16

const (
	hasField presence = 1 << iota
	hasMessageID
	hasRespondedTo
	hasPriority
	hasDataSetType
	hasStatus
	hasAffectedClass
	hasRequestedClass
	hasInstance
	hasComment
)

func (c *command) has(p presence) bool { return c.present&p == p }
func (c *command) isResponse() bool    { return c.field&responseBit != 0 }
func (c *command) hasData() bool       { return c.dataSetType != noDataSet }

// sopClass is the class a request is about, however it names it.
func (c *command) sopClass() string {
	if c.affectedClass != "" {
		return c.affectedClass
	}
	return c.requestedClass
}

// decodeCommand reads a command set: implicit VR little endian, group 0000
// only, ascending, a group length that is true (PS3.7 section 6.3.1). Elements
// it has no use for are skipped.
func decodeCommand(data []byte) (*command, error) {
	c := &command{}
	total, last := len(data), -1
	for len(data) > 0 {
		if len(data) < 8 {
			return nil, violate(reasonNotSpecified, "command set ends inside an element")
		}
		group, element := binary.LittleEndian.Uint16(data), binary.LittleEndian.Uint16(data[2:])
		length := binary.LittleEndian.Uint32(data[4:])
		if group != 0 {
			return nil, violate(reasonNotSpecified, "group %04X in a command set", group)
		}
		if int(element) <= last {
			return nil, violate(reasonNotSpecified, "command element %04X out of order", element)
		}
		if last < 0 && element != elementGroupLength {
			return nil, violate(reasonNotSpecified, "command set without group length")
		}
		last = int(element)
		if uint64(length) > uint64(len(data)-8) {
			return nil, violate(reasonNotSpecified, "command element %04X of %d bytes in %d", element, length, len(data)-8)
		}
		value := data[8 : 8+length]
		data = data[8+length:]
		if element == elementGroupLength {
			if length != 4 || int64(binary.LittleEndian.Uint32(value)) != int64(total-12) {
				return nil, violate(reasonNotSpecified, "command group length does not match its %d bytes", total-12)
			}
			continue
		}
		if err := c.set(element, value); err != nil {
			return nil, err
		}
	}
	switch {
	case !c.has(hasField | hasDataSetType):
		return nil, violate(reasonNotSpecified, "command set without command field or data set type")
	case c.isResponse() && !c.has(hasRespondedTo|hasStatus):
		return nil, violate(reasonNotSpecified, "response without message id or status")
	case !c.isResponse() && c.field != commandCancelRQ && !c.has(hasMessageID):
		return nil, violate(reasonNotSpecified, "request without message id")
	}
	return c, nil
}

func (c *command) set(element uint16, value []byte) error {
	number := func(into *uint16, flag presence) error {
		if len(value) != 2 {
			return violate(reasonNotSpecified, "command element %04X of %d bytes, it has 2", element, len(value))
		}
		*into = binary.LittleEndian.Uint16(value)
		c.present |= flag
		return nil
	}
	text := func(into *string, limit int, flag presence) error {
		if len(value) > limit || len(value)%2 != 0 {
			return violate(reasonNotSpecified, "command element %04X of %d bytes", element, len(value))
		}
		*into = strings.TrimRight(string(value), " \x00")
		c.present |= flag
		return nil
	}
	switch element {
	case elementAffectedSOPClass:
		return text(&c.affectedClass, maxUIDLength, hasAffectedClass)
	case elementRequestedSOPClass:
		return text(&c.requestedClass, maxUIDLength, hasRequestedClass)
	case elementCommandField:
		return number(&c.field, hasField)
	case elementMessageID:
		return number(&c.messageID, hasMessageID)
	case elementMessageIDResponded:
		return number(&c.respondedTo, hasRespondedTo)
	case elementPriority:
		return number(&c.priority, hasPriority)
	case elementDataSetType:
		return number(&c.dataSetType, hasDataSetType)
	case elementStatus:
		return number((*uint16)(&c.status), hasStatus)
	case elementErrorComment:
		return text(&c.comment, maxCommand, hasComment)
	case elementAffectedSOPInstance:
		return text(&c.instance, maxUIDLength, hasInstance)
	}
	return nil
}

// encode writes the command set in ascending order, group length first.
func (c *command) encode() []byte {
	out := make([]byte, 0, 256)
	out = appendCommandElement(out, elementGroupLength, make([]byte, 4))
	text := func(element uint16, flag presence, value string, pad byte) {
		if c.has(flag) {
			b := []byte(value)
			if len(b)%2 != 0 {
				b = append(b, pad)
			}
			out = appendCommandElement(out, element, b)
		}
	}
	number := func(element uint16, flag presence, value uint16) {
		if c.has(flag) {
			out = appendCommandElement(out, element, binary.LittleEndian.AppendUint16(nil, value))
		}
	}
	text(elementAffectedSOPClass, hasAffectedClass, c.affectedClass, 0)
	text(elementRequestedSOPClass, hasRequestedClass, c.requestedClass, 0)
	number(elementCommandField, hasField, c.field)
	number(elementMessageID, hasMessageID, c.messageID)
	number(elementMessageIDResponded, hasRespondedTo, c.respondedTo)
	number(elementPriority, hasPriority, c.priority)
	number(elementDataSetType, hasDataSetType, c.dataSetType)
	number(elementStatus, hasStatus, uint16(c.status))
	text(elementErrorComment, hasComment, c.comment, ' ')
	text(elementAffectedSOPInstance, hasInstance, c.instance, 0)
	binary.LittleEndian.PutUint32(out[8:], uint32(len(out)-12))
	return out
}

func appendCommandElement(out []byte, element uint16, value []byte) []byte {
	out = binary.LittleEndian.AppendUint16(out, 0)
	out = binary.LittleEndian.AppendUint16(out, element)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(value)))
	return append(out, value...)
}

// respond is the answer to request c.
func (c *command) respond(status Status) *command {
	r := &command{
		field: c.field | responseBit, respondedTo: c.messageID, dataSetType: noDataSet, status: status,
		present: hasField | hasRespondedTo | hasDataSetType | hasStatus,
	}
	if class := c.sopClass(); validUID(class) {
		r.affectedClass = class
		r.present |= hasAffectedClass
	}
	if validUID(c.instance) {
		r.instance = c.instance
		r.present |= hasInstance
	}
	if !status.Stored() {
		r.comment = status.String()
		if len(r.comment) > maxErrorComment {
			r.comment = r.comment[:maxErrorComment]
		}
		r.present |= hasComment
	}
	return r
}
