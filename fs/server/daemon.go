package server

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"plyfs/fs/fusefs"
	"plyfs/fs/mountopt"
	"plyfs/internal/exit"
	"plyfs/internal/launch"
	"plyfs/internal/launch/early"
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
	server := launch.Server{Program: SelfPath(), Args: os.Args, Target: -1}
	if fd, ok := fusefs.PassedFD(r.target); ok {
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
		return &exit.Fault{Code: failure.Code, Text: failure.Text}
	case errors.Is(err, launch.ErrInterrupted):
		return exit.Faultf(exit.Interrupted, "%v", err)
	case errors.Is(err, launch.ErrEnded):
		return exit.Faultf(exit.Internal, "%v", err)
	}
	return exit.Faultf(exit.System, "%v", err)
}

// SelfPath is the program's own file, even where it was replaced on disk.
func SelfPath() string {
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
	// fd is the descriptor for the verdict, -1 where it is the answer to an order.
	fd int
	// target is the descriptor that became the mount point, -1 for none.
	target int
	// send brings the verdict to whoever waits for it.
	send func(verdict []byte) error
	told bool
}

// becomeDaemon reports whether this process was started by startDaemon, or forked to be what that starts, and prepares it if so: r's
// target is the passed descriptor, and neither the variables nor the descriptors get into other programs.
func becomeDaemon(r *request) (*daemon, bool) {
	if early.Child() {
		return &daemon{fd: early.Report, target: -1, send: sendTo(early.Report)}, true
	}
	fd, err := strconv.Atoi(os.Getenv(verdictEnv))
	if err != nil || fd < 3 {
		return nil, false
	}
	_ = os.Unsetenv(verdictEnv)
	unix.CloseOnExec(fd)
	_ = unix.Close(launch.TableFD) // it may not be there
	d := &daemon{fd: fd, target: -1, send: sendTo(fd)}
	if n, err := strconv.Atoi(os.Getenv(targetEnv)); err == nil {
		_ = os.Unsetenv(targetEnv)
		unix.CloseOnExec(n)
		d.target, r.target = n, fusefs.PassedTarget(n)
	}
	r.warnings = nil // the caller printed them
	return d, true
}

// sendTo returns a daemon's send that writes to fd, and closes it.
func sendTo(fd int) func(verdict []byte) error {
	return func(verdict []byte) error {
		_, err := fdSocket(fd).Write(verdict)
		return errors.Join(err, unix.Close(fd))
	}
}

// handOver makes this process, which has mounted nothing yet, the program that why names. It returns only if that is no HandOver,
// or fails: then it is the reason.
func (s *server) handOver(why error) error {
	var other HandOver
	if !errors.As(why, &other) {
		return why
	}
	if s.daemon != nil && s.daemon.fd < 0 {
		return fmt.Errorf("%w, and it does not take orders", why)
	}
	env := os.Environ()
	if s.daemon != nil {
		pass := []struct {
			name string
			fd   int
		}{{verdictEnv, s.daemon.fd}, {targetEnv, s.daemon.target}}
		for _, p := range pass {
			if p.fd < 0 {
				continue
			}
			if _, err := unix.FcntlInt(uintptr(p.fd), unix.F_SETFD, 0); err != nil {
				return fmt.Errorf("keep descriptor %d open: %w", p.fd, err)
			}
			defer unix.CloseOnExec(p.fd) // again, if this goes on
			env = append(env, fmt.Sprintf("%s=%d", p.name, p.fd))
		}
	}
	return fmt.Errorf("run %s: %w", string(other), unix.Exec(string(other), handedOver(os.Args), env))
}

// handedOver is the command line by which plyfs does what plyfs-mount was called to do by args. Under a name that says that it
// mounts, it is the same; under its own, or one of the user's choice, plyfs would look for a command.
func handedOver(args []string) []string {
	if _, ok := PersonalityOf(args[0]); ok {
		return args
	}
	return append([]string{NamePlyfs, "mount"}, args[1:]...)
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
	return d.tell([]byte{exit.OK})
}

// failed tells the caller why there is no mount, to no effect once it was told that there is one.
func (d *daemon) failed(err error) {
	f := exit.AsFault(err)
	_ = d.tell(append([]byte{byte(f.Code)}, f.Text...))
}

// tell gives the verdict, once.
func (d *daemon) tell(verdict []byte) error {
	if d.told {
		return nil
	}
	d.told = true
	return d.send(verdict)
}
