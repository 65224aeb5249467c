// Package launch starts the server of a mount and waits for its verdict. It owns the starting process's end of what
// mountopt.VerdictEnv describes, and it imports next to nothing: every container waits for the program that uses it.
package launch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"plyfs/fs/mountopt"
	"plyfs/internal/launch/early"
	"plyfs/internal/sys"
)

// Server says which program serves, and how it is called.
type Server struct {
	// Program is its file, Args its arguments, the first of them the name that it is called by.
	Program string
	Args    []string
	// Target is a descriptor that it gets, and whose number it finds in the environment variable TargetEnv; -1 for none.
	Target int
}

// TargetEnv is the environment variable that holds the descriptor that /dev/fd/N, the mount point, became in the server.
const TargetEnv = "_PLYFS_TARGET_FD"

// Failure is a verdict that there is no mount: an exit code of mount(8), and one line for the user.
type Failure struct {
	Code int
	Text string
}

// Error returns the text.
func (f *Failure) Error() string { return f.Text }

// TableFD is a descriptor that a server may find open, and closes: it is there so that the table of descriptors, which the server gets
// while it has one thread, has room for more. When the table of several threads grows, at 64 descriptors for the first time, the kernel
// waits until no processor reads the old one (cf. Linux fs/file.c expand_fdtable): some 10 ms, in the middle of the first request that
// looks into a directory of many layers.
const TableFD = early.Room

var (
	// ErrInterrupted says that the user did not want to wait. The server finds out, and gives up.
	ErrInterrupted = errors.New("interrupted")
	// ErrEnded says that the server ended without a verdict.
	ErrEnded = errors.New("the server ended before it served the mount")
)

// Start starts a server in a session of its own and waits until it serves the mount or failed to. It returns nil only if the
// mount serves; a Failure is what the server says. The server keeps the environment, the working directory until its layers are
// open, and stderr until then too, for what a crash might say; no other descriptor of the caller's, so that whoever waits for the
// end of a pipe is not kept waiting: all descriptors of this process, the standard files and Target apart, are closed on exec
// from then on.
//
// It goes without os/exec, which starts a process to learn about pidfds and threads that have nothing to do here.
func Start(s Server) error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	verdict, report := pipe[0], pipe[1]
	defer unix.Close(verdict)
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("close_range: %w", err)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", os.DevNull, err)
	}
	defer unix.Close(null)
	attr := &syscall.ProcAttr{
		Env:   append(os.Environ(), mountopt.VerdictEnv+"=3"),
		Files: []uintptr{uintptr(null), uintptr(null), 2, uintptr(report)},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if s.Target >= 0 {
		attr.Files = append(attr.Files, uintptr(s.Target))
		attr.Env = append(attr.Env, TargetEnv+"=4")
	}
	attr.Files = roomy(attr.Files, null)
	interrupted := make(chan os.Signal, 1)
	if !signal.Ignored(os.Interrupt) {
		signal.Notify(interrupted, os.Interrupt)
	}
	pid, err := syscall.ForkExec(s.Program, s.Args, attr)
	_ = unix.Close(report)
	if err != nil {
		return fmt.Errorf("can't start the server: %w", err)
	}
	answer := make(chan error, 1)
	go func() { answer <- await(verdict, pid) }()
	select {
	case err := <-answer:
		return err
	case <-interrupted:
		return ErrInterrupted
	}
}

// Outcome reports, in a program that forked before it began (see package early), whether a server that is this program's child has
// done what Start would do. The error is what Start would return.
func Outcome() (started bool, err error) {
	f, failed, err := early.Outcome()
	if err != nil || !failed {
		return failed, err
	}
	defer unix.Close(f.Rest)
	rest, err := io.ReadAll(sys.FDReader(f.Rest))
	if err != nil {
		return true, fmt.Errorf("the server's verdict can't be read: %w", err)
	}
	return true, outcome(append(f.Verdict, rest...), func() string { return waitFor(f.Pid) })
}

// roomy has file passed as TableFD too, if this process may have that many descriptors.
func roomy(files []uintptr, file int) []uintptr {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil || l.Cur < 2*TableFD {
		return files
	}
	const none = ^uintptr(0)
	for len(files) < TableFD {
		files = append(files, none)
	}
	return append(files, uintptr(file))
}

// await reads a server's verdict.
func await(verdict, pid int) error {
	b, err := io.ReadAll(sys.FDReader(verdict))
	if err != nil {
		return fmt.Errorf("the server's verdict can't be read: %w", err)
	}
	return outcome(b, func() string { return waitFor(pid) })
}

// outcome turns what the server wrote into Start's result. wait waits for the end of one that wrote nothing, and says how it ended.
func outcome(b []byte, wait func() string) error {
	switch {
	case len(b) == 0:
		return fmt.Errorf("%w (%s)", ErrEnded, wait())
	case b[0] != 0:
		return &Failure{Code: int(b[0]), Text: string(b[1:])}
	}
	return nil
}

// waitFor waits for the end of a child that should have gone on, and says how it ended.
func waitFor(pid int) string {
	var status unix.WaitStatus
	err := sys.Retry(func() error {
		_, err := unix.Wait4(pid, &status, 0, nil)
		return err
	})
	if err != nil {
		return err.Error()
	}
	if sig := status.Signal(); sig > 0 {
		return fmt.Sprintf("signal: %v", sig)
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}
