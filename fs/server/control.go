package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/fs/fusefs"
	"plyfs/internal/control"
	"plyfs/internal/version"
)

// controls is the control socket of a mount: not offered yet, offered, or closed for good.
type controls struct {
	// workDir is that of the caller, to which the layers' paths are relative.
	workDir string
	started time.Time

	mu     sync.Mutex
	server *control.Server
	closed bool
	// later makes the socket.
	later *time.Timer
}

// controlsAfter is when the socket is made: a mount that is gone before needs none, and who asks for it has a program to start first.
const controlsAfter = 5 * time.Millisecond

// offerControls makes the socket, in the background: nobody waits for it, and without it the mount does as well.
func (s *server) offerControls() {
	s.controls.started = time.Now()
	s.controls.later = time.AfterFunc(controlsAfter, func() {
		dir, err := control.Dir()
		if err != nil {
			s.log.Debug("no control socket", "error", err)
			return
		}
		if within(dir, s.dev.Target()) {
			s.log.Debug("no control socket: it would lie in the mount itself, and keep it", "directory", dir)
			return
		}
		id, _ := s.dev.Identity()
		s.controls.mu.Lock()
		defer s.controls.mu.Unlock()
		if s.controls.closed {
			return
		}
		s.controls.server, err = control.Serve(dir, control.SocketName(os.Getpid(), id), controlSource{s}, s.log)
		if err != nil {
			s.log.Debug("no control socket", "error", err)
		}
	})
}

// within reports whether path is top, or beneath it. Both are absolute, or top is "".
func within(path, top string) bool {
	return top != "" && strings.HasPrefix(path+"/", strings.TrimSuffix(top, "/")+"/")
}

// noteWorkDir keeps the working directory in mind before a daemon leaves it.
func (s *server) noteWorkDir() {
	var buf [unix.PathMax]byte
	if n, err := unix.Getcwd(buf[:]); err == nil {
		s.controls.workDir = string(buf[:n-1])
	}
}

// withdrawControls removes the socket. The union is not used by it any more afterwards.
func (s *server) withdrawControls() {
	if s.controls.later != nil {
		s.controls.later.Stop() // if it runs already, it finds them closed
	}
	s.controls.mu.Lock()
	defer s.controls.mu.Unlock()
	s.controls.closed = true
	if err := s.controls.server.Close(); err != nil {
		s.log.Debug("control socket", "error", err)
	}
}

// controlSource tells of a mount.
type controlSource struct{ s *server }

func (c controlSource) abs(path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(c.s.controls.workDir, path)
}

// Status implements control.Source.
func (c controlSource) Status() control.Status {
	s := c.s
	target := s.target
	if t := s.dev.Target(); t != "" {
		target = t
	}
	_, device := s.dev.Identity()
	st := control.Status{
		Program: version.Read().Version, PID: os.Getpid(), Started: s.controls.started,
		Target: target, Type: "fuse." + s.subtype, Device: device,
		Upper: c.abs(s.opts.UpperDir), ReadOnly: readOnly(s.opts), Data: s.fs.Data(),
		ResidentBytes: control.ResidentBytes(os.Getpid()),
	}
	for _, l := range s.opts.LowerDirs {
		st.Lowers = append(st.Lowers, c.abs(l))
	}
	if hasQuota(s.opts) && !st.ReadOnly {
		use, limit := s.union.QuotaUse(), unionOptions(s.opts, s.env).Quota
		st.Quota = &control.Quota{
			Bytes: use.Bytes, Inodes: use.Inodes, LimitBytes: limit.Bytes, LimitInodes: limit.Inodes,
		}
	}
	return st
}

// Metrics implements control.Source. It makes the mount measure durations from then on.
func (c controlSource) Metrics() control.Metrics {
	s := c.s
	s.fs.MeasureDurations()
	u, f := s.union.Stats(), s.fs.Metrics()
	p := processUsage()
	m := control.Metrics{
		Status:    c.Status(),
		BytesRead: f.BytesRead, BytesWritten: f.BytesWritten,
		CopyUps: u.CopyUps, CopyUpBytes: u.CopyUpBytes, CopyUpDurations: s.union.CopyUpDurations(), UnsyncedFiles: u.Marked,
		IndexHits: u.IndexHits, IndexMisses: u.IndexMisses, IndexFallbacks: u.IndexFallbacks,
		FileHits: u.FileHits, FileMisses: u.FileMisses, DirHits: u.DirHits, DirMisses: u.DirMisses,
		Inodes: uint64(f.Nodes), OpenFiles: u.OpenFiles, OpenDirs: u.OpenDirs,
		HeapBytes: p.heap, Goroutines: p.goroutines, CPUSeconds: p.cpu.Seconds(),
		Panics: f.Panics, Readers: f.Readers, StaleIDs: f.StaleIDs, Notifications: f.Notifications,
		LoggedErrors: s.logged.errors.Load(), LoggedWarns: s.logged.warnings.Load(),
	}
	for _, o := range f.Ops {
		op := control.Operation{Op: o.Op, Requests: o.Requests, Durations: o.Durations}
		for class, n := range o.Errors {
			if op.Errors == nil {
				op.Errors = make(map[string]uint64)
			}
			op.Errors[string(class)] = n
		}
		m.Operations = append(m.Operations, op)
	}
	return m
}

// Watch implements control.Source.
func (c controlSource) Watch() control.Watcher { return controlWatcher{c.s.fs.Watch()} }

// Settle implements control.Source.
func (c controlSource) Settle(ctx context.Context) error {
	err := c.s.fs.Settle(ctx)
	if errors.Is(err, fusefs.ErrEnded) {
		return control.ErrGone
	}
	return err
}

// ControlSocket returns the socket of the server whose mount is on target, an absolute path. It touches nothing below the mount. There is
// none for servers of other users, in other places, and that are no plyfs.
func ControlSocket(target string) (control.Socket, bool) {
	id, err := fusefs.MountID(target)
	if err != nil {
		return control.Socket{}, false
	}
	return control.Find(control.All, id)
}

// controlWatcher tells what a fusefs.Watcher gathers.
type controlWatcher struct{ *fusefs.Watcher }

// Take implements control.Watcher.
func (w controlWatcher) Take() ([]control.Activity, uint64) {
	seen, dropped := w.Watcher.Take()
	list := make([]control.Activity, len(seen))
	for i, a := range seen {
		list[i] = control.Activity{
			PID: a.PID, UID: a.UID, Command: a.Command, Path: a.Path, Writes: a.Writes, Bytes: a.Bytes, Changes: a.Changes,
			CopiedUp: a.CopiedUp, Last: a.Last,
		}
	}
	return list, dropped
}
