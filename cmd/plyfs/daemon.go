package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"plyfs/fs/mountopt"
)

// A daemon is this program started again with the same arguments; these variables tell it so and are removed from its
// environment at once.
const (
	// verdictEnv holds the descriptor for the verdict.
	verdictEnv = mountopt.VerdictEnv
	// targetEnv holds the descriptor that /dev/fd/N, the mount point, became in the daemon.
	targetEnv = "_PLYFS_TARGET_FD"
)

// startDaemon starts the program again in a session of its own and waits until that serves the mount or failed to. It
// returns nil only if the mount serves. The daemon keeps the environment, the working directory until its layers are open,
// and stderr until then too, for what a crash might say; no other descriptor of the caller's, so that whoever waits for
// the end of a pipe is not kept waiting.
func startDaemon(r request) error {
	verdict, report, err := os.Pipe()
	if err != nil {
		return faultf(exitSystem, "pipe: %v", err)
	}
	defer verdict.Close()
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		return faultf(exitSystem, "close_range: %v", err)
	}
	cmd := exec.Command(selfPath())
	cmd.Args = os.Args
	cmd.Env = append(os.Environ(), verdictEnv+"=3")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{report}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if fd, ok := descriptor(r.target); ok {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(fd), r.target))
		cmd.Env = append(cmd.Env, targetEnv+"=4")
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	err = cmd.Start()
	_ = report.Close()
	if err != nil {
		return faultf(exitSystem, "can't start the server: %v", err)
	}
	answer := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(verdict)
		answer <- b
	}()
	select {
	case b := <-answer:
		return readVerdict(b, cmd.Wait)
	case <-interrupted:
		// The daemon finds the pipe closed and gives up.
		return faultf(exitInterrupted, "interrupted")
	}
}

// selfPath is the program's own file, even where it was replaced on disk.
func selfPath() string {
	const self = "/proc/self/exe"
	if _, err := os.Stat(self); err == nil {
		return self
	}
	name, err := os.Executable()
	if err != nil {
		return self
	}
	return name
}

// readVerdict turns what the daemon wrote into startDaemon's result. wait waits for the end of a daemon that wrote nothing.
func readVerdict(b []byte, wait func() error) error {
	if len(b) == 0 {
		return faultf(exitInternal, "the server ended before it served the mount (%v)", wait())
	}
	if b[0] == exitOK {
		return nil
	}
	return &fault{code: int(b[0]), text: string(b[1:])}
}

// daemon is the daemon's end of startDaemon.
type daemon struct {
	report *os.File
}

// becomeDaemon reports whether this process was started by startDaemon, and prepares it if so: r's target is the passed
// descriptor, and neither the variables nor the descriptors get into other programs.
func becomeDaemon(r *request) (*daemon, bool) {
	fd, err := strconv.Atoi(os.Getenv(verdictEnv))
	if err != nil || fd < 3 {
		return nil, false
	}
	_ = os.Unsetenv(verdictEnv)
	unix.CloseOnExec(fd)
	if n, err := strconv.Atoi(os.Getenv(targetEnv)); err == nil {
		_ = os.Unsetenv(targetEnv)
		unix.CloseOnExec(n)
		r.target = fmt.Sprintf("/dev/fd/%d", n)
	}
	r.warnings = nil // the caller printed them
	return &daemon{report: os.NewFile(uintptr(fd), "verdict")}, true
}

// ready detaches the daemon from its caller and tells it that the mount serves. stdin becomes /dev/null, stdout and stderr
// log or, if that is nil, /dev/null too. An error means that nobody waits for the mount any more.
func (d *daemon) ready(log *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	if log == nil {
		log = null
	}
	for fd, file := range []*os.File{null, log, log} {
		if err := unix.Dup3(int(file.Fd()), fd, 0); err != nil {
			return err
		}
	}
	return d.tell([]byte{exitOK})
}

// failed tells the caller why there is no mount.
func (d *daemon) failed(err error) {
	f := asFault(err)
	_ = d.tell(append([]byte{byte(f.code)}, f.text...))
}

func (d *daemon) tell(verdict []byte) error {
	_, err := d.report.Write(verdict)
	if cerr := d.report.Close(); err == nil {
		err = cerr
	}
	return err
}
