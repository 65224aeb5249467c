package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
)

// The exit codes, which are those of mount(8). 2 is also what the Go runtime exits with after a crash.
const (
	exitOK = 0
	// exitUsage: a bad command line, or missing permission.
	exitUsage = 1
	// exitSystem: the system lacks something (no /dev/fuse, out of memory, no process).
	exitSystem = 2
	// exitInternal: a defect of plyfs.
	exitInternal = 4
	// exitInterrupted: the user interrupted.
	exitInterrupted = 8
	// exitMount: the mount, or the unmount, failed.
	exitMount = 32
)

// fault is an error that ends the program: a line for the user that says what to do about it, and an exit code.
type fault struct {
	code int
	text string
}

// Error returns the text.
func (f *fault) Error() string { return f.text }

// faultf formats a fault.
func faultf(code int, format string, args ...any) *fault {
	return &fault{code: code, text: fmt.Sprintf(format, args...)}
}

// asFault returns err as a fault, in one line; errors that nobody classified are failures of the mount.
func asFault(err error) *fault {
	var f *fault
	var coder cli.ExitCoder
	switch {
	case errors.As(err, &f):
	case errors.As(err, &coder):
		f = &fault{code: coder.ExitCode(), text: err.Error()}
	default:
		f = &fault{code: exitMount, text: err.Error()}
	}
	return &fault{code: f.code, text: strings.Join(strings.Fields(f.text), " ")}
}
