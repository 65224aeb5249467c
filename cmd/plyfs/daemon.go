package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"plyfs/fs/mountopt"
	"plyfs/internal/launch"
)

// A daemon is this program started again with the same arguments; these variables tell it so and are removed from its
// environment at once.
const (
	// verdictEnv holds the descriptor for the verdict.
	verdictEnv = mountopt.VerdictEnv
	// targetEnv holds the descriptor that /dev/fd/N, the mount point, became in the daemon.
	targetEnv = launch.TargetEnv
)

// startDaemon starts the program again in a session of its own and waits until that serves the mount or failed to; see
// launch.Start. It returns nil only if the mount serves.
func startDaemon(r request) error {
	server := launch.Server{Program: selfPath(), Args: os.Args, Target: -1}
	if fd, ok := descriptor(r.target); ok {
		server.Target = fd
	}
	return launchFault(launch.Start(server))
}

// launchFault classifies an error of launch.Start.
func launchFault(err error) error {
	var failure *launch.Failure
	switch {
	case err == nil:
		return nil
	case errors.As(err, &failure):
		return &fault{code: failure.Code, text: failure.Text}
	case errors.Is(err, launch.ErrInterrupted):
		return faultf(exitInterrupted, "%v", err)
	case errors.Is(err, launch.ErrEnded):
		return faultf(exitInternal, "%v", err)
	}
	return faultf(exitSystem, "%v", err)
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
