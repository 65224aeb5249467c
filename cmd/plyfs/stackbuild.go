package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/fs/mountopt"
)

// indexBuild builds the index of a running mount's lowers in a process of its own: its memory goes when it is done, and a full
// disk or a damaged database can't hurt the mount.
type indexBuild struct {
	args   []string
	lowers []*os.File // copies of the layers' descriptors: their paths may mean something else by now
	paths  []string

	mu    sync.Mutex
	cmd   *exec.Cmd // guarded by mu
	ended bool      // guarded by mu
	done  chan struct{}
}

func newIndexBuild(dir string, opts mountopt.Options, lowers []*layer.Layer) (*indexBuild, error) {
	b := &indexBuild{done: make(chan struct{})}
	b.args = []string{"plyfs", "index", "build", "--idle", "--quiet", "--dir", dir, "--fds", strconv.Itoa(len(lowers))}
	if opts.RedirectDir == mountopt.RedirectNoFollow {
		b.args = append(b.args, "-o", "redirect_dir=nofollow")
	}
	for _, l := range lowers {
		fd, err := unix.FcntlInt(uintptr(l.FD()), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			b.release()
			return nil, fmt.Errorf("keep %s open: %w", l.Path, err)
		}
		b.lowers = append(b.lowers, os.NewFile(uintptr(fd), l.Path))
		b.paths = append(b.paths, l.Path)
	}
	return b, nil
}

func (b *indexBuild) release() {
	for _, f := range b.lowers {
		_ = f.Close()
	}
	b.lowers = nil
}

// run builds, and blocks until that is done or ended. The thread stays this goroutine's: the builder dies with it, and so with
// this process.
func (b *indexBuild) run(log *slog.Logger) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(b.done)
	paths, err := json.Marshal(b.paths)
	if err != nil {
		log.Warn("stack index not built", "error", err)
		return
	}
	cmd := exec.Command(selfPath())
	cmd.Args = b.args
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), layerPathsEnv+"="+string(paths))
	cmd.ExtraFiles = b.lowers
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	tail := &tailWriter{}
	cmd.Stderr = tail
	b.mu.Lock()
	if b.ended {
		b.mu.Unlock()
		return
	}
	began := time.Now()
	if err = cmd.Start(); err == nil {
		b.cmd = cmd
	}
	b.release()
	b.mu.Unlock()
	if err == nil {
		err = cmd.Wait()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.ended:
	case err != nil:
		log.Warn("stack index not built", "error", err, "output", tail.String())
	default:
		log.Info("stack index built", "took", time.Since(began).Round(time.Millisecond))
	}
}

// end stops a build that is under way and waits for its end.
func (b *indexBuild) end() {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.ended = true
	running := b.cmd != nil
	if running {
		_ = b.cmd.Process.Signal(unix.SIGTERM) // it may have ended
	}
	b.release()
	b.mu.Unlock()
	if running {
		<-b.done
	}
}

// tailWriter keeps the end of what a program writes.
type tailWriter struct{ b []byte }

const tailSize = 1 << 10

func (t *tailWriter) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > tailSize {
		t.b = t.b[len(t.b)-tailSize:]
	}
	return len(p), nil
}

func (t *tailWriter) String() string { return string(t.b) }
