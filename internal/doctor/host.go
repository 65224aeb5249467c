package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/internal/sys"
)

// Host is this machine, for the user of this process. The zero value is ready for use.
type Host struct{}

// maxFile bounds what is read of a file, in bytes.
const maxFile = 1 << 20

// giveUp is how long a child that was killed may take to end; after that it is left alone.
const giveUp = 300 * time.Millisecond

// User implements System.
func (Host) User() User {
	u := User{UID: os.Geteuid()}
	if found, err := user.LookupId(fmt.Sprint(u.UID)); err == nil {
		u.Name = found.Username
	}
	u.Home, _ = os.UserHomeDir()
	return u
}

// Getenv implements System.
func (Host) Getenv(name string) string { return os.Getenv(name) }

// ReadFile implements System.
func (Host) ReadFile(path string) ([]byte, error) {
	// A named pipe must not keep a check waiting.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// ReadDir implements System.
func (Host) ReadDir(path string) ([]string, error) {
	entries, err := os.ReadDir(path)
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

// Stat implements System.
func (Host) Stat(path string) (Stat, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Stat{}, err
	}
	st := Stat{Mode: info.Mode()}
	if raw, ok := info.Sys().(*syscall.Stat_t); ok {
		st.UID, st.GID = int(raw.Uid), int(raw.Gid)
		st.Major, st.Minor = unix.Major(raw.Rdev), unix.Minor(raw.Rdev)
	}
	return st, nil
}

// Readlink implements System.
func (Host) Readlink(path string) (string, error) { return os.Readlink(path) }

// Resolve implements System.
func (Host) Resolve(path string) (string, error) { return filepath.EvalSymlinks(path) }

// Getxattr implements System.
func (Host) Getxattr(path, name string) ([]byte, error) {
	buf := make([]byte, 256)
	n, err := unix.Getxattr(path, name, buf)
	if err != nil {
		return nil, &os.PathError{Op: "getxattr " + name, Path: path, Err: err}
	}
	return buf[:n], nil
}

// Statfs implements System.
func (Host) Statfs(path string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Space{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	unit := uint64(st.Bsize)
	return Space{Free: st.Bavail * unit, Size: st.Blocks * unit, FreeInodes: st.Ffree, Inodes: st.Files}, nil
}

// Writable implements System.
func (Host) Writable(path string) bool {
	return unix.Faccessat(unix.AT_FDCWD, path, unix.W_OK, unix.AT_EACCESS) == nil
}

// OpenDevice implements System.
func (Host) OpenDevice(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	return unix.Close(fd)
}

// OpenFiles implements System. The runtime raises the soft limit of this process, so that both are the hard one here.
func (Host) OpenFiles() (soft, hard uint64) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, 0
	}
	return l.Cur, l.Max
}

// IOUring implements System.
func (Host) IOUring() error { return sys.IOUring() }

// LookPath implements System.
func (Host) LookPath(name, path string) (string, error) {
	if path == "" {
		return exec.LookPath(name)
	}
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join(dir, name)
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() && unix.Access(p, unix.X_OK) == nil {
			return p, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// Output implements System.
func (Host) Output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := run(ctx, exec.Command(name, args...))
	return string(out), err
}

// Self implements System.
func (Host) Self(ctx context.Context, args ...string) (string, error) {
	out, err := run(ctx, self(args...))
	return string(out), err
}

func self(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "plyfs"
	return cmd
}

// buffer collects what a child writes, and can be read while it still does.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.text.Bytes())
}

// run runs a command until it ends, or ctx does. It never waits for a child that is stuck in the kernel.
func run(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	var stdout, stderr buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// What it starts gets killed with it.
	cmd.SysProcAttr.Setpgid = true
	cmd.WaitDelay = giveUp
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		end(cmd.Process.Pid, done)
		err = ctx.Err()
	}
	if err != nil {
		err = fmt.Errorf("%s: %w%s", strings.Join(cmd.Args, " "), err, quoteErr(stderr.bytes()))
	}
	return stdout.bytes(), err
}

// end ends a process and what it started: first asked, so that it can take back what it made, then killed.
func end(pid int, done <-chan error) {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		// One that has ended meanwhile needs no signal.
		_ = unix.Kill(-pid, sig)
		select {
		case <-done: //nolint:errcheck // the end that was asked for
			return
		case <-time.After(giveUp):
		}
	}
}

// quoteErr is what a program said on standard error, in one line, for the end of an error.
func quoteErr(text []byte) string {
	words := strings.Join(strings.Fields(string(text)), " ")
	if words == "" {
		return ""
	}
	const most = 400
	if len(words) > most {
		words = words[:most] + "..."
	}
	return ": " + words
}

// Try implements System.
func (h Host) Try(ctx context.Context, t Trial) (all []Result, err error) {
	scratch, err := scratchDir()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, h.removeScratch(scratch, t.In)) }()
	cmd := self(append([]string{"doctor", TryCommand, t.Name, scratch}, t.Args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	switch t.In {
	case Here:
	case NewMounts:
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWPID
	case NewUser:
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := run(ctx, cmd)
	var started *exec.ExitError
	if err != nil && cmd.Process == nil && t.In != Here && !errors.As(err, &started) {
		err = fmt.Errorf("%w: %w", ErrNamespace, err)
	}
	all, perr := parseResults(out)
	return all, errors.Join(err, perr)
}

// scratchPrefix is how the names of scratch directories begin.
const scratchPrefix = "plyfs-doctor-"

// scratchDir makes an empty directory, where temporary files are or, in a container without such a place, elsewhere.
func scratchDir() (string, error) {
	var all error
	for _, base := range []string{os.TempDir(), os.Getenv("XDG_RUNTIME_DIR"), "/dev/shm", "/run", "/var/tmp"} {
		if base == "" {
			continue
		}
		dir, err := os.MkdirTemp(base, scratchPrefix)
		if err == nil {
			return dir, nil
		}
		all = errors.Join(all, err)
	}
	return "", fmt.Errorf("no scratch directory (set TMPDIR): %w", all)
}

// removeScratch removes what is left of a scratch directory. One in a namespace of its own was hidden by a tmpfs, and is
// empty. In the others there may be a mount, if the trial was killed.
func (h Host) removeScratch(dir string, in Namespace) error {
	if in != Here {
		return os.Remove(dir)
	}
	for _, m := range readMounts(h) {
		if strings.HasPrefix(m.target, dir+"/") {
			ctx, cancel := context.WithTimeout(context.Background(), giveUp)
			_, err := h.Output(ctx, "fusermount3", "-u", "-z", "-q", "--", m.target)
			cancel()
			if err != nil {
				return err
			}
		}
	}
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
