package server

import (
	"errors"
	"os"
	"os/signal"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"plyfs/fs/fusefs"
	"plyfs/internal/exit"
	"plyfs/internal/launch"
)

// process is this process as one that serves mounts, one after the other.
type process struct {
	// serving is the mount that signals are about, nil while there is none.
	serving atomic.Pointer[server]
	// listening is closed when signals are caught.
	listening chan struct{}
	// release gives the index of the last mount back; nil for none. Only who serves another mount does it.
	release func() error
}

// prepareProcess makes this process one that serves mounts. What takes its time is done in the background, while the layers are
// opened. A process that was not started as a server has a small table of descriptors: there, widenTable comes next.
func prepareProcess() *process {
	RaiseFileLimit()
	liftSizeLimit()
	p := &process{listening: make(chan struct{})}
	go p.handleSignals()
	paceCollector()
	unix.Umask(0) // the modes that applications ask for are final; the kernel has applied their umask
	return p
}

// releaseIndex gives back what the last mount left.
func (p *process) releaseIndex() error {
	release := p.release
	if p.release = nil; release == nil {
		return nil
	}
	return release()
}

// RaiseFileLimit takes all descriptors that this process may have. The Go runtime does so too, but gives the old limit back
// to programs that it starts.
func RaiseFileLimit() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil && l.Cur < l.Max {
		l.Cur = l.Max
		_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
	}
}

// liftSizeLimit lets the server write files of any size that it may. What applies to an application's writes is the application's limit,
// which the kernel heeds before it asks; that of the shell that mounted is not for all of them.
func liftSizeLimit() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_FSIZE, &l) == nil && l.Cur < l.Max {
		l.Cur = l.Max
		_ = unix.Setrlimit(unix.RLIMIT_FSIZE, &l)
	}
}

// widenTable makes room in the table of descriptors, as who starts a server does with launch.TableFD. The kernel may take some
// milliseconds over it.
func widenTable() {
	if fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, launch.TableFD); err == nil {
		_ = unix.Close(fd)
	}
}

// leaving takes the place of a mount in a process that a signal is about to end, so that it does not mount any more.
var leaving = new(server)

// takeSignals makes s, which is about to mount, what signals are about. It waits until they are caught, and does not return if one has come
// that ends the process.
func (p *process) takeSignals(s *server) {
	<-p.listening
	if !p.serving.CompareAndSwap(nil, s) {
		select {}
	}
}

// leaveSignals says that s, if signals were about it, is no mount any more.
func (p *process) leaveSignals(s *server) { p.serving.CompareAndSwap(s, nil) }

// signalled is what a signal is about: the process itself, which does not mount any more then, if there is no mount.
func (p *process) signalled() *server {
	for {
		if p.serving.CompareAndSwap(nil, leaving) {
			return leaving
		}
		if s := p.serving.Load(); s != nil {
			return s
		}
	}
}

// handleSignals unmounts on SIGTERM, SIGINT and SIGHUP, whereupon serve returns when the last file is closed; the second
// of them ends the process at once, which loses nothing but open files: data goes straight to the upper layer. So does the first where
// somebody else mounted. Without a mount they do what they do to any process. SIGUSR1 logs the counters. It does not return.
//
// The signals are caught once for all mounts that this process serves: to catch one takes the runtime longer than to mount.
func (p *process) handleSignals() {
	_ = quietMonitor() // it is no worse than it was
	signal.Ignore(unix.SIGPIPE)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGUSR1)
	for _, sig := range []os.Signal{unix.SIGINT, unix.SIGHUP} {
		if !signal.Ignored(sig) { // as nohup(1), and a shell for what runs beside it, have it
			signal.Notify(signals, sig)
		}
	}
	close(p.listening)
	var ending *server
	covered := false // ending could not be unmounted
	for sig := range signals {
		if sig == unix.SIGUSR1 {
			if s := p.serving.Load(); s != nil && s != leaving {
				s.logCounters()
			}
			continue
		}
		s := p.signalled()
		switch {
		case s == leaving:
			signal.Reset(sig)
			_ = unix.Kill(os.Getpid(), sig.(unix.Signal))
			continue
		case s == ending && !covered:
			s.log.Warn("ended by a second signal, files may have been open", "signal", sig.String())
			os.Exit(exit.Interrupted)
		}
		s.log.Info("unmounting", "signal", sig.String())
		err := s.end()
		covered = errors.Is(err, fusefs.ErrNotThere)
		switch {
		case covered && (s == ending || s.passed()):
			s.log.Warn("ended without an unmount, files may have been open", "signal", sig.String())
			os.Exit(exit.Interrupted)
		case covered:
			s.log.Warn("not unmounted; a second signal ends the server", "error", err)
			ending = s
		case err != nil:
			s.log.Error("unmount failed", "error", err)
		default:
			ending = s
		}
	}
}
