package deploy

import (
	"fmt"
	"time"

	"github.com/atollhq/atoll/pkg/remedy"
)

// State says how far a file is.
type State string

// States of a file.
const (
	Applied State = "applied" // its objects are in the cluster
	Waiting State = "waiting" // for the file to settle, for a kind to become known, for an object to go: goes on by itself
	Failed  State = "failed"  // somebody must correct something; it is tried again now and then
	Skipped State = "skipped" // left alone, as its owner wishes
)

// FileStatus is how one file is doing.
type FileStatus struct {
	Path     string      `json:"path"` // below the folder of manifests; packaged/NAME for those of the program
	State    State       `json:"state"`
	Objects  int         `json:"objects"`
	Since    time.Time   `json:"since"`
	Errors   []FileError `json:"errors,omitempty"`
	Warnings []string    `json:"warnings,omitempty"` // of the API server, about fields it does not know and versions that end
	version  string
}

// FileError is one thing that is wrong with a file.
type FileError struct {
	Document int    `json:"document,omitempty"` // from 1; 0 when it is about the whole file
	Line     int    `json:"line,omitempty"`
	Object   string `json:"object,omitempty"`
	Cause    string `json:"cause"`
	Remedy   string `json:"remedy,omitempty"`
}

func fileError(document, line int, object string, err error) FileError {
	return FileError{Document: document, Line: line, Object: object, Cause: err.Error(), Remedy: remedy.Of(err)}
}

// In is the error as a person reads it.
func (e FileError) In(path string) error {
	place := path
	if e.Line > 0 {
		place += fmt.Sprintf(", line %d", e.Line)
	}
	if e.Object != "" {
		place += ", " + e.Object
	}
	err := fmt.Errorf("manifest %s: %s", place, e.Cause)
	if e.Remedy == "" {
		return err
	}
	return remedy.Wrap(err, "%s", e.Remedy)
}
