package attest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
)

// DevelopmentName is the name of the development provider.
const DevelopmentName = "development"

// ErrDevelopmentEvidence is returned when development evidence meets a
// production policy. The enclave must run on attesting hardware instead.
var ErrDevelopmentEvidence = errors.New("development evidence proves nothing and is refused in production")

// developmentWarning is logged line by line: a log handler would otherwise
// hide the line breaks, and this must be seen.
var developmentWarning = []string{
	"****************************************************************************",
	"*  DEVELOPMENT EVIDENCE IN USE: THE ENCLAVE IS NOT PROTECTED BY HARDWARE.  *",
	"*  Anyone who controls the machine or the process can read the cases it    *",
	"*  is given and can sign any finding. Nothing is proven about the code,    *",
	"*  the model or the keys. Never send it a real patient's data.             *",
	"****************************************************************************",
}

func warnDevelopment(logger *slog.Logger, place string) {
	for _, line := range developmentWarning {
		logger.Warn(line, "place", place)
	}
}

// developmentMark opens every development document; the report data follows.
const developmentMark = "THIS EVIDENCE PROVES NOTHING (development): "

type development struct{}

// NewDevelopment returns the development provider and logs a loud warning. Its
// document is the report data behind a disclaimer: anybody can make one.
func NewDevelopment(logger *slog.Logger) Provider {
	warnDevelopment(logger, "provider")
	return development{}
}

// Name returns DevelopmentName.
func (development) Name() string { return DevelopmentName }

// Attest returns the disclaimer and the report data.
func (development) Attest(_ context.Context, data ReportData) ([]byte, error) {
	return append([]byte(developmentMark), data[:]...), nil
}

// verifyDevelopment checks the form of a development document, which is all
// that can be checked.
func verifyDevelopment(document []byte, data ReportData) error {
	carried, ok := bytes.CutPrefix(document, []byte(developmentMark))
	if !ok {
		return fmt.Errorf("%w: not a development document", ErrDocument)
	}
	if !bytes.Equal(carried, data[:]) {
		return fmt.Errorf("%w: it was made for other claims or another nonce", ErrDocument)
	}
	return nil
}
