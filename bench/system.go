package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The names of the systems that Detect knows. Plyfs stands for one system for each data mode, named after it, all
// with index=off; PlyfsIndex has data=noopen and an index that is built before the samples.
const (
	KernelOverlay = "kernel"
	FuseOverlayfs = "fuse-overlayfs"
	Plyfs         = "plyfs"
	PlyfsIndex    = "plyfs-index"
)

// System is a file system to measure.
type System struct {
	// Name is the heading in reports.
	Name string `json:"name"`
	// Version is what the system says of itself.
	Version string `json:"version"`
	// Program is the command that mounts, without options and mount point; empty for the kernel's overlayfs.
	Program []string `json:"program,omitempty"`
	// Options are appended to -o.
	Options string `json:"options,omitempty"`
	// Indexer is the command that builds the index of a stack of lowers, without options; empty for systems without
	// one. The others mount with the option index=DIR.
	Indexer []string `json:"indexer,omitempty"`
}

// Layout is one mount: lower directories, topmost first, upper and work directory and mount point.
type Layout struct {
	Lowers []string `json:"lowers"`
	Upper  string   `json:"upper"`
	Work   string   `json:"work"`
	Target string   `json:"target"`
}

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 15 * time.Second
	pollInterval = time.Millisecond
)

// server is a mount that runs, with the process behind it, if there is one.
type server struct {
	target  string
	cmd     *exec.Cmd // nil for the kernel
	stderr  *bytes.Buffer
	exited  chan struct{} // closed when cmd ended
	exitErr error         // valid after exited
}

// options is the value of -o for a mount program.
func (s System) options(l Layout) string {
	o := "lowerdir=" + strings.Join(l.Lowers, ":") + ",upperdir=" + l.Upper + ",workdir=" + l.Work
	if s.Options != "" {
		o += "," + s.Options
	}
	return o
}

// start mounts with the server, if any, as a child of this process, and returns when the mount serves. wrap goes
// before the program.
func (s System) start(ctx context.Context, l Layout, wrap []string) (*server, error) {
	if len(s.Program) == 0 {
		return &server{target: l.Target}, mountOverlay(l)
	}
	argv := append(append([]string{}, wrap...), s.Program...)
	argv = append(argv, "-f", "-o", s.options(l), l.Target)
	v := &server{target: l.Target, stderr: new(bytes.Buffer), exited: make(chan struct{})}
	v.cmd = exec.Command(argv[0], argv[1:]...)
	v.cmd.Stderr = v.stderr
	// Its own group: an interrupt at the terminal is for the runner, which unmounts. A server that outlived a killed
	// runner would keep the mount namespace and with it its own mount.
	v.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	v.cmd.WaitDelay = time.Second
	if err := v.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	go func() {
		v.exitErr = v.cmd.Wait()
		close(v.exited)
	}()
	if err := v.waitReady(ctx); err != nil {
		// It may be about to mount: nothing would unmount that, and it would wait for requests for ever.
		v.kill()
		<-v.exited
		return nil, errors.Join(fmt.Errorf("%s: %w", s.Name, err), detach(v.target))
	}
	return v, nil
}

// pid is the process that serves, 0 for the kernel.
func (v *server) pid() int {
	if v.cmd == nil {
		return 0
	}
	return v.cmd.Process.Pid
}

// waitReady returns when the target is a FUSE mount that answers.
func (v *server) waitReady(ctx context.Context) error {
	deadline := time.Now().Add(startTimeout)
	for {
		var st unix.Statfs_t
		if err := unix.Statfs(v.target, &st); err == nil && st.Type == unix.FUSE_SUPER_MAGIC {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-v.exited:
			if v.exitErr == nil {
				return errors.New("ended before it served, as if all was well: it is no program that mounts, or does not stay in the foreground")
			}
			return fmt.Errorf("ended before it served (%w): %s", v.exitErr, bytes.TrimSpace(v.stderr.Bytes()))
		case <-time.After(pollInterval):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("does not serve within %v", startTimeout)
		}
	}
}

// kill ends the server at once, so that requests in flight fail and nothing hangs. The mount stays.
func (v *server) kill() {
	if v.cmd != nil {
		_ = v.cmd.Process.Kill() // it may be gone already
	}
}

// stop unmounts and waits for the server to end by itself; one that does not is killed and reported.
func (v *server) stop() error {
	err := detach(v.target)
	if v.cmd == nil {
		return err
	}
	select {
	case <-v.exited:
		if v.exitErr != nil {
			err = errors.Join(err, fmt.Errorf("server of %s: %w", v.target, v.exitErr))
		}
		return err
	case <-time.After(stopTimeout):
	}
	v.kill()
	<-v.exited
	return errors.Join(err, detach(v.target), fmt.Errorf("server of %s did not end within %v of the unmount", v.target, stopTimeout))
}

// mount mounts as container engines do: the program returns when the mount serves, its server stays behind.
func (s System) mount(ctx context.Context, l Layout) error {
	if len(s.Program) == 0 {
		return mountOverlay(l)
	}
	// A file, not a pipe: the wait must not depend on the daemon letting go of it.
	log, err := os.CreateTemp("", "plyfs-bench-stderr-")
	if err != nil {
		return err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	argv := append(append([]string{}, s.Program...), "-o", s.options(l), l.Target)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = log
	if err := cmd.Run(); err != nil {
		text, rerr := os.ReadFile(log.Name())
		return errors.Join(fmt.Errorf("%s: %w: %s", s.Name, err, bytes.TrimSpace(text)), rerr)
	}
	return nil
}

// mountOverlay mounts the kernel's overlayfs by the mount API of Linux 6.7, whose lowers are no part of one string of
// limited length, or by mount(2) where that is missing.
func mountOverlay(l Layout) error {
	err := mountOverlayFD(l)
	if err == nil || !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	opts := "lowerdir=" + strings.Join(l.Lowers, ":") + ",upperdir=" + l.Upper + ",workdir=" + l.Work
	if merr := unix.Mount("overlay", l.Target, "overlay", 0, opts); merr != nil {
		return errors.Join(err, fmt.Errorf("mount overlay: %w", merr))
	}
	return nil
}

func mountOverlayFD(l Layout) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fd)
	set := func(key, value string) {
		if err == nil {
			if err = unix.FsconfigSetString(fd, key, value); err != nil {
				err = fmt.Errorf("fsconfig overlay %s=%s: %w", key, value, err)
			}
		}
	}
	set("source", "overlay")
	for _, dir := range l.Lowers {
		set("lowerdir+", dir)
	}
	set("upperdir", l.Upper)
	set("workdir", l.Work)
	if err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return fmt.Errorf("fsconfig overlay create: %w", err)
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount overlay: %w", err)
	}
	defer unix.Close(m)
	if err := unix.MoveMount(m, "", unix.AT_FDCWD, l.Target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount overlay to %s: %w", l.Target, err)
	}
	return nil
}

// unmount detaches the mount at target; one that is busy for a moment is tried again.
func unmount(target string) error {
	var err error
	for range 100 {
		if err = unix.Unmount(target, 0); !errors.Is(err, unix.EBUSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// detach unmounts target by all means; nothing mounted there is no error.
func detach(target string) error {
	err := unmount(target)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if lazy := unix.Unmount(target, unix.MNT_DETACH); lazy != nil {
		return errors.Join(err, fmt.Errorf("lazy unmount %s: %w", target, lazy))
	}
	return fmt.Errorf("%w; unmounted lazily", err)
}
