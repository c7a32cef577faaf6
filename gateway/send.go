package gateway

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Sent is what became of one file.
type Sent struct {
	Path        string `json:"path"`
	SOPInstance string `json:"sop_instance,omitempty"`
	Error       string `json:"error,omitempty"`
}

// sendBatch is how many files share one association or request: enough to
// make its set-up negligible, few enough to fit in memory.
const sendBatch = 16

// Send sends files, and every file in folders, to a target with the code that
// delivers results. report is called once for each file; the error is about
// the paths or the target's settings.
func Send(ctx context.Context, target DestinationConfig, paths []string, report func(Sent)) error {
	to, err := newDestination(target, false, nil)
	if err != nil {
		return err
	}
	files, err := listFiles(paths)
	if err != nil {
		return err
	}
	for len(files) > 0 {
		n := min(sendBatch, len(files))
		sendFiles(ctx, to, files[:n], report)
		files = files[n:]
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func listFiles(paths []string) ([]string, error) {
	var files []string
	for _, path := range paths {
		err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				files = append(files, p)
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("gateway: listing files to send: %w", err)
		}
	}
	return files, nil
}

func sendFiles(ctx context.Context, to destination, paths []string, report func(Sent)) {
	var outgoing []Outgoing
	var names []string
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			report(Sent{Path: path, Error: err.Error()})
			continue
		}
		o, err := NewOutgoing(data)
		if err != nil {
			report(Sent{Path: path, Error: err.Error()})
			continue
		}
		outgoing, names = append(outgoing, o), append(names, path)
	}
	if len(outgoing) == 0 {
		return
	}
	settled := make([]bool, len(outgoing))
	connection := to.send(ctx, outgoing, func(i int, err error) {
		settled[i] = true
		s := Sent{Path: names[i], SOPInstance: outgoing[i].SOPInstance}
		if err != nil {
			s.Error = err.Error()
		}
		report(s)
	})
	for i, done := range settled {
		if !done {
			reason := "the peer did not say what became of it"
			if connection != nil {
				reason = connection.Error()
			}
			report(Sent{Path: names[i], SOPInstance: outgoing[i].SOPInstance, Error: reason})
		}
	}
}
