// Package early has a program that starts a server fork before Go's runtime starts, while it has one thread and next to no memory:
// the child becomes the server, and the parent, which never starts a runtime, waits for the verdict and exits. Otherwise such a program has to start
// itself again, since of several threads a fork keeps one, and each start of a Go program takes a third of the time of a mount.
// (cf. runc's libcontainer/nsenter, which has the same reason, and does it in C.)
//
// A program takes part if it is linked with -E plyfs/internal/launch/early.Entry, on amd64 and arm64; in any other none of this
// happens, and launch.Start is the way. So it is too where an argument names an inherited descriptor (/dev/fd/N), where a variable
// says that this process is a server already (_PLYFS_...), where a standard file is closed, and where the kernel has no close_range
// (before 5.9).
//
// The child cannot know yet what it is asked for. It reads its arguments as ever, and if it turns out not to be a server, it hands
// the work back and exits: then the parent starts, as if it had not waited.
//
//	Entry ── fork ── parent: waits ─────────────────────────── verdict 0: exits
//	           │                                               another, or none: Go starts, Outcome says which
//	           └──── child: Go starts; Child is true; then it serves and writes the verdict, or calls HandBack
//
// The child has a session of its own, a table of descriptors with room (launch.TableFD), and of descriptors the standard files and
// Report, which is closed on exec.
package early

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// Report is the child's descriptor for the verdict.
	Report = 3
	// Room is the descriptor up to which the child's table has room.
	Room = 1023

	// handBack is a verdict that is no exit code.
	handBack = 0xff

	roleChild  = 1
	roleParent = 2
)

// What Entry found out, before there was a runtime to ask.
var (
	role uint32
	// pid is the child's.
	pid int32
	// pipe is what the verdict comes through.
	pipe [2]int32
	// got is what read returned: 1, 0 at the end of the file, or a negative error number.
	got int64
	// verdict is what was read.
	verdict byte
)

// Child reports whether this process is the child.
func Child() bool { return role == roleChild }

// HandBack ends the child, and the parent does the work.
func HandBack() {
	if _, err := unix.Write(Report, []byte{handBack}); err != nil {
		fmt.Fprintf(os.Stderr, "hand back to the program that was started: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Failed is the end of a parent whose child does not serve.
type Failed struct {
	// Pid is the child's.
	Pid int
	// Verdict is the first byte of what it wrote, none if it wrote nothing.
	Verdict []byte
	// Rest is the descriptor from which the rest is to be read. It belongs to the caller.
	Rest int
}

// Outcome reports whether this process is a parent that has nothing to do any more but to tell why its child does not serve. It is
// to be called once.
func Outcome() (f Failed, failed bool, err error) {
	if role != roleParent {
		return Failed{}, false, nil
	}
	f = Failed{Pid: int(pid), Rest: int(pipe[0])}
	switch {
	case got < 0:
		return f, true, fmt.Errorf("the server's verdict can't be read: %w", unix.Errno(-got))
	case got == 0:
		return f, true, nil
	case verdict != handBack:
		f.Verdict = []byte{verdict}
		return f, true, nil
	}
	if err := unix.Close(f.Rest); err != nil {
		return f, true, err
	}
	_, err = unix.Wait4(f.Pid, nil, 0, nil)
	for errors.Is(err, unix.EINTR) {
		_, err = unix.Wait4(f.Pid, nil, 0, nil)
	}
	return f, err != nil, err
}
