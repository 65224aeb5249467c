package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"plyfs/fs/mountopt"
	"plyfs/internal/sys"
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
//
// Every container waits for this. It goes without os/exec, which starts a process to learn about pidfds and two threads that
// have nothing to do here.
func startDaemon(r request) error {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return faultf(exitSystem, "pipe: %v", err)
	}
	verdict, report := pipe[0], pipe[1]
	defer unix.Close(verdict)
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) {
		return faultf(exitSystem, "close_range: %v", err)
	}
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return faultf(exitSystem, "%s: %s", os.DevNull, reason(err))
	}
	defer unix.Close(null)
	attr := &syscall.ProcAttr{
		Env:   append(os.Environ(), verdictEnv+"=3"),
		Files: []uintptr{uintptr(null), uintptr(null), 2, uintptr(report)},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if fd, ok := descriptor(r.target); ok {
		attr.Files = append(attr.Files, uintptr(fd))
		attr.Env = append(attr.Env, targetEnv+"=4")
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	pid, err := syscall.ForkExec(selfPath(), os.Args, attr)
	_ = unix.Close(report)
	if err != nil {
		return faultf(exitSystem, "can't start the server: %v", err)
	}
	answer := make(chan error, 1)
	go func() { answer <- awaitVerdict(verdict, pid) }()
	select {
	case err := <-answer:
		return err
	case <-interrupted:
		// The daemon finds the pipe closed and gives up.
		return faultf(exitInterrupted, "interrupted")
	}
}

// awaitVerdict reads a daemon's verdict, and returns it as startDaemon's result.
func awaitVerdict(verdict, pid int) error {
	b, err := io.ReadAll(fdReader(verdict))
	if err != nil {
		return faultf(exitInternal, "the server's verdict can't be read: %v", err)
	}
	return readVerdict(b, func() error { return waitForChild(pid) })
}

// waitForChild waits for the end of a child that should have gone on, and says how it ended.
func waitForChild(pid int) error {
	var status unix.WaitStatus
	err := sys.Retry(func() error {
		_, err := unix.Wait4(pid, &status, 0, nil)
		return err
	})
	switch {
	case err != nil:
		return err
	case status.Signaled():
		return fmt.Errorf("signal: %v", status.Signal())
	}
	return fmt.Errorf("exit status %d", status.ExitStatus())
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
	// send brings the verdict to whoever waits for it.
	send func(verdict []byte) error
	told bool
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
	return &daemon{send: func(verdict []byte) error {
		_, err := fdSocket(fd).Write(verdict)
		return errors.Join(err, unix.Close(fd))
	}}, true
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

// failed tells the caller why there is no mount, to no effect once it was told that there is one.
func (d *daemon) failed(err error) {
	f := asFault(err)
	_ = d.tell(append([]byte{byte(f.code)}, f.text...))
}

// tell gives the verdict, once.
func (d *daemon) tell(verdict []byte) error {
	if d.told {
		return nil
	}
	d.told = true
	return d.send(verdict)
}
