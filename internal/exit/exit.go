// Package exit is how the programs end: with a line that says what to do about it, and an exit code of mount(8).
package exit

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/sys/unix"
)

// The exit codes, which are those of mount(8). 2 is also what the Go runtime exits with after a crash.
const (
	OK = 0
	// Usage: a bad command line, or missing permission.
	Usage = 1
	// System: the system lacks something (no /dev/fuse, out of memory, no process).
	System = 2
	// Internal: a defect of plyfs.
	Internal = 4
	// Interrupted: the user interrupted.
	Interrupted = 8
	// Mount: the mount, or the unmount, failed.
	Mount = 32
)

// Fault is an error that ends the program: a line for the user that says what to do about it, and an exit code. A fault
// without a text was told already.
type Fault struct {
	Code int
	Text string
}

// Error returns the text.
func (f *Fault) Error() string { return f.Text }

// Faultf formats a fault.
func Faultf(code int, format string, args ...any) *Fault {
	return &Fault{Code: code, Text: fmt.Sprintf(format, args...)}
}

// coder is an error that knows an exit code, as those of command-line packages do.
type coder interface {
	error
	ExitCode() int
}

// AsFault returns err as a fault, in one line; errors that nobody classified are failures of the mount.
func AsFault(err error) *Fault {
	var f *Fault
	var c coder
	switch {
	case errors.As(err, &f):
	case errors.As(err, &c):
		f = &Fault{Code: c.ExitCode(), Text: err.Error()}
	default:
		f = &Fault{Code: Mount, Text: err.Error()}
	}
	return &Fault{Code: f.Code, Text: OneLine(f.Text)}
}

// OneLine joins lines by blanks. The blanks in them stay: paths can have any number of them.
func OneLine(text string) string {
	var lines []string
	for l := range strings.SplitSeq(text, "\n") {
		if l = strings.TrimSpace(l); l != "" {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, " ")
}

// Report prints what err says to stderr, under the program's name, and returns the exit code. nil is success.
func Report(name string, err error, stderr io.Writer) int {
	if err == nil {
		return OK
	}
	f := AsFault(err)
	if f.Text != "" {
		fmt.Fprintf(stderr, "%s: %s\n", name, f.Text)
	}
	return f.Code
}

// Reason is the system's word for what went wrong, without the paths that a message has already.
func Reason(err error) string {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return fmt.Sprint(err)
}
