package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"plyfs/fs/fusefs"
	"plyfs/fs/mountopt"
	"plyfs/fs/union"
	"plyfs/internal/exit"
)

// server is one mount being served by this process.
type server struct {
	request
	process *process
	env     environment
	log     *slog.Logger
	logFile *os.File // nil for stderr
	// daemon is nil in the foreground.
	daemon  *daemon
	indexes Indexes

	union *union.Union
	index *stackIndex
	fs    *fusefs.FS

	ending sync.Mutex
	dev    *fusefs.Device // set once, with ending held
	ended  bool           // a signal came; guarded by ending

	controls controls
	warming  warming
	logged   tally
	pending  []string // see warn
}

// serve mounts what r says and serves it until it is unmounted. d is nil in the foreground. The process has been prepared; of the
// mount, nothing stays in it but what p.release gives back.
func (p *process) serve(r request, d *daemon, from Indexes) error {
	s := &server{request: r, process: p, daemon: d, indexes: from, env: readEnvironment()}
	defer s.closeLog()
	defer p.leaveSignals(s)
	if err := s.mount(); err != nil {
		return err
	}
	err := s.serveMount()
	if err != nil {
		_ = s.dev.Unmount() // it would stay without a server
	}
	s.endWarming()
	s.withdrawControls()
	if cerr := s.dev.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close %s: %w", fuseDevice, cerr)
	}
	s.index.endBuild()
	if cerr := s.union.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("after the unmount: %w", cerr)
	}
	if s.index != nil {
		p.release = s.index.release
	}
	if err != nil {
		s.log.Error("ended with an error", "error", err)
		return err
	}
	s.log.Info("ended")
	return nil
}

// checkOnly is serve without the mount.
func checkOnly(r request) error {
	s := &server{request: r, env: readEnvironment()}
	defer s.printWarnings()
	layers, err := s.prepare()
	if err == nil {
		layers.Close()
	}
	return err
}

// prepare opens the layers and finds out all that would make the mount fail.
func (s *server) prepare() (*Stack, error) {
	if err := checkTarget(s.target); err != nil {
		return nil, err
	}
	o := s.opts
	if s.subtype == NameFuseOverlayfs {
		var unsure []string
		o.LowerDirs, unsure = beneathIDMaps(o)
		s.warn(unsure...)
	}
	layers, err := OpenStack(o)
	if err != nil {
		return nil, err
	}
	warnings, err := layers.Check(s.Personality)
	if err == nil && !s.passed() {
		err = checkFUSE(s.env)
	}
	if err != nil {
		layers.Close()
		return nil, err
	}
	s.warn(warnings...)
	return layers, nil
}

// warn keeps lines for printWarnings.
func (s *server) warn(lines ...string) { s.pending = append(s.pending, lines...) }

// printWarnings prints what has been warned of to stderr, which a daemon still has. A program that takes over from this one finds
// it all itself.
func (s *server) printWarnings() {
	s.request.printWarnings()
	for _, l := range s.pending {
		fmt.Fprintf(os.Stderr, "%s: %s\n", s.name, l)
	}
	s.pending = nil
}

// mount does everything up to the mount, which nobody serves yet.
func (s *server) mount() error {
	defer s.printWarnings()
	mc, err := mountConfig(s.request, s.env)
	if err != nil {
		return err
	}
	if s.opts.AllowRoot && !mc.AllowOther {
		s.warn("allow_root has no effect; allow_other does, where /etc/fuse.conf allows it")
	}
	if s.opts.Data == mountopt.DataPassthrough && hasQuota(s.opts) && !readOnly(s.opts) {
		s.warn("data=passthrough has no effect with a quota: the kernel would write without asking")
	}
	if !s.env.root && (s.opts.LazyTime == mountopt.On || s.opts.Atime == mountopt.AtimeStrict) {
		s.warn("lazytime and strictatime have no effect: fusermount3, through which plain users mount, does not know them")
	}
	if err := s.openLog(); err != nil {
		return err
	}
	layers, err := s.prepare()
	if err != nil {
		return err
	}
	observer := &fusefs.Observer{}
	uo := unionOptions(s.opts, s.env)
	uo.Lowers, uo.Upper, uo.Work = layers.Lowers, layers.Upper, layers.Work
	uo.Logger, uo.Observer = s.log, observer
	inside, indexed := layers.contain(s.target), s.opts
	if inside {
		indexed.Index = mountopt.IndexOff // an index would describe what the mount covers, and the mount itself in itself
	}
	if s.index, err = openIndex(s.indexes, indexed, &uo, s.log); err != nil {
		// An index never fails a mount: where the other program can't run, the layers are read.
		s.log.Warn("no stack index", "error", s.handOver(err))
	}
	if s.union, err = union.New(uo); err != nil {
		return exit.Faultf(exit.Mount, "%v", err)
	}
	fc := serveConfig(s.opts)
	fc.Logger, fc.Observer, fc.ACL = s.log, observer, s.union.ACLs()
	fc.Stuck = s.giveUp
	s.fs = fusefs.New(s.union, fc) // before a signal can ask for it
	s.process.takeSignals(s)
	dev, err := fusefs.Mount(mc)
	if err != nil {
		err = mountFault(s.target, err, s.env)
	} else {
		if number := dev.Number(); number != 0 {
			s.union.Avoid(number, inside)
		}
		err = s.adopt(dev)
	}
	if err != nil {
		_ = s.union.Close()
		return err
	}
	return nil
}

// giveUp ends the process, and leaves the mount without a server, as one that was killed does: to unmount would show whoever is in it
// another directory. What the union would do at its end could wait for ever.
func (s *server) giveUp(why error) {
	s.log.Error("ended: unmount, and mount again", "error", why)
	os.Exit(exit.Internal)
}

// adopt makes dev the mount, unless a signal came before there was one.
func (s *server) adopt(dev *fusefs.Device) error {
	s.ending.Lock()
	defer s.ending.Unlock()
	if s.ended {
		return errors.Join(exit.Faultf(exit.Interrupted, "ended by a signal before the mount served"), dev.Unmount(), dev.Close())
	}
	s.dev = dev
	return nil
}

// settleWithin bounds how long the end of a mount waits for its own server to fetch what was written through mappings.
const settleWithin = time.Second

// passed reports whether somebody else mounted, and this process only serves.
func (s *server) passed() bool {
	_, ok := fusefs.PassedFD(s.target)
	return ok
}

// end unmounts, as soon as there is a mount. Requests are answered until that has happened. The error is fusefs.ErrNotThere if
// there is nothing to unmount.
func (s *server) end() error {
	s.ending.Lock()
	defer s.ending.Unlock()
	s.ended = true
	if s.dev == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), settleWithin)
	defer cancel()
	if err := s.fs.Settle(ctx); err != nil {
		s.log.Debug("not settled before the unmount", "error", err)
	}
	return s.dev.Unmount()
}

// serveMount answers requests until the mount is gone. All paths are resolved by now, so that a daemon can leave the
// caller's directory, and with it the caller's file system.
func (s *server) serveMount() error {
	var failure error
	err := s.fs.Serve(s.dev, func(err error) {
		if err == nil {
			s.noteWorkDir()
			err = s.detach()
		}
		if err != nil {
			failure = err
			if _ = s.dev.Unmount(); s.passed() {
				s.log.Error("ended", "error", err)
				os.Exit(exit.AsFault(err).Code) // nothing else ends the requests
			}
			return
		}
		s.warmLater()
		s.index.buildLater()
		s.offerControls()
		s.log.Info("mounted", "target", s.target, "lowers", len(s.opts.LowerDirs), "upper", s.opts.UpperDir)
	})
	if failure != nil {
		return failure
	}
	return err
}

// detach gives the verdict that the mount serves, and with it the caller's standard files. If nobody waits for it any
// more, nobody wants the mount.
func (s *server) detach() error {
	if s.daemon == nil {
		return nil
	}
	err := os.Chdir("/")
	if err == nil {
		err = s.daemon.ready(s.logFile)
	}
	if err != nil {
		return exit.Faultf(exit.System, "can't detach from the caller: %v", err)
	}
	return nil
}

// openLog opens the log: the file that log= names, else stderr. A daemon loses that when the mount serves, and until then
// bothers its caller with warnings only.
func (s *server) openLog() error {
	out, level := os.Stderr, logLevel(s.opts)
	if s.opts.Log != "" {
		f, err := os.OpenFile(s.opts.Log, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			return exit.Faultf(exit.Usage, "option log=%s: %s; give a file that can be written", s.opts.Log, exit.Reason(err))
		}
		out, s.logFile = f, f
	} else if s.daemon != nil {
		level = max(level, slog.LevelWarn)
	}
	s.log = slog.New(s.logged.handler(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level})))
	return nil
}

// closeLog closes the log, if it is a file. What stderr became stays open.
func (s *server) closeLog() {
	if s.logFile != nil {
		_ = s.logFile.Close() // each record has been written
	}
}
