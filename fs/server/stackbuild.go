package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/fs/mountopt"
)

// indexBuild builds the index of a running mount's lowers in a process of its own: its memory goes when it is done, and a full
// disk or a damaged database can't hurt the mount.
type indexBuild struct {
	program func() (string, error)
	args    []string
	lowers  []*layer.Layer // the union's, open until end has returned

	// copies are those of the layers' descriptors, for the builder: their paths may mean something else by now. Guarded by mu.
	copies []*os.File

	mu    sync.Mutex
	cmd   *exec.Cmd // guarded by mu
	ended bool      // guarded by mu
	done  chan struct{}
}

// LayerPathsEnv is the environment variable that names the layers behind inherited descriptors: a JSON array of paths,
// topmost first. They are for people; nothing resolves them.
const LayerPathsEnv = "PLYFS_LAYER_PATHS"

// newIndexBuild prepares a build. It does nothing yet: most mounts end before one begins.
func newIndexBuild(from Indexes, dir string, opts mountopt.Options, lowers []*layer.Layer) *indexBuild {
	b := &indexBuild{program: from.Builder, done: make(chan struct{}), lowers: lowers}
	b.args = []string{"plyfs", "index", "build", "--idle", "--quiet", "--dir", dir, "--fds", strconv.Itoa(len(lowers))}
	if opts.RedirectDir == mountopt.RedirectNoFollow {
		b.args = append(b.args, "-o", "redirect_dir=nofollow")
	}
	return b
}

// copyLocked copies the layers' descriptors. Precondition: b.mu is held, and the build has not been ended.
func (b *indexBuild) copyLocked() error {
	for _, l := range b.lowers {
		fd, err := unix.FcntlInt(uintptr(l.FD()), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return fmt.Errorf("keep %s open: %w", l.Path, err)
		}
		b.copies = append(b.copies, os.NewFile(uintptr(fd), l.Path))
	}
	return nil
}

// releaseLocked closes the copies. Precondition: b.mu is held.
func (b *indexBuild) releaseLocked() {
	for _, f := range b.copies {
		_ = f.Close()
	}
	b.copies = nil
}

// run builds, and blocks until that is done or ended. The thread stays this goroutine's: the builder dies with it, and so with
// this process.
func (b *indexBuild) run(log *slog.Logger) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(b.done)
	tail := &tailWriter{}
	began := time.Now()
	cmd, err := b.start(tail)
	if errors.Is(err, errBuildEnded) {
		return
	}
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

// errBuildEnded says that a build has been ended before it began.
var errBuildEnded = errors.New("build ended")

// start starts the builder. The error is errBuildEnded if none is wanted any more.
func (b *indexBuild) start(stderr io.Writer) (*exec.Cmd, error) {
	env, err := pathsEnv(b.lowers)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return nil, errBuildEnded
	}
	defer b.releaseLocked()
	if err := b.copyLocked(); err != nil {
		return nil, err
	}
	program, err := b.program()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program)
	cmd.Args = b.args
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), env...)
	cmd.ExtraFiles = b.copies
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGTERM}
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	b.cmd = cmd
	return cmd, nil
}

// maxPathsEnv is how long the list of paths may be: the kernel bounds one string of the environment (cf. binfmts.h MAX_ARG_STRLEN).
const maxPathsEnv = 64 << 10

// pathsEnv is LayerPathsEnv for the layers, or nothing where they do not go into it: then the builder says what the descriptors lead
// to.
func pathsEnv(lowers []*layer.Layer) ([]string, error) {
	paths := make([]string, 0, len(lowers))
	for _, l := range lowers {
		if !utf8.ValidString(l.Path) { // JSON would change it
			return nil, nil
		}
		paths = append(paths, l.Path)
	}
	list, err := json.Marshal(paths)
	if err != nil || len(list) > maxPathsEnv {
		return nil, err
	}
	return []string{LayerPathsEnv + "=" + string(list)}, nil
}

// end stops a build that is under way and waits for its end; afterwards none begins.
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
