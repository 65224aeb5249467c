package server

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"plyfs/internal/exit"
	"plyfs/internal/launch"
	"plyfs/internal/launch/early"
)

// Main is the program under any name that mounts: it returns when the mount serves, or in the foreground when it is
// gone again. args are those behind the program's name, which has to be os.Args[0].
func Main(p Personality, args []string, stdout io.Writer, from Indexes) error {
	if started, err := launch.Outcome(); started {
		return launchFault(err)
	}
	r, err := parseRequest(p, args)
	if early.Child() && (err != nil || !r.wantsServer()) {
		early.HandBack()
	}
	switch {
	case err != nil:
		return err
	case r.help:
		return printHelp(stdout, p)
	case r.version:
		return PrintVersion(stdout, p)
	}
	d, isDaemon := becomeDaemon(&r)
	if !r.foreground || r.fake || r.opts.Remount {
		r.printWarnings()
	}
	if isDaemon {
		err := prepareProcess().serve(r, d, from)
		if err != nil {
			d.failed(err)
		}
		return silent(err)
	}
	if r.namespace != "" {
		if err := enterNamespace(r.namespace); err != nil {
			return err
		}
	}
	switch {
	case r.opts.Remount && r.fake:
		return nil
	case r.opts.Remount:
		return remount(r)
	case r.fake:
		return checkOnly(r)
	case r.foreground:
		p := prepareProcess()
		go widenTable()
		return p.serve(r, nil, from)
	}
	// Before another process is started, and before it has other descriptors.
	if err := checkTarget(r.target); err != nil {
		return err
	}
	return startDaemon(r)
}

// wantsServer reports whether all that r asks for is a server of its own, in the namespaces that this process is in.
func (r *request) wantsServer() bool {
	return !r.help && !r.version && !r.foreground && !r.fake && !r.opts.Remount && r.namespace == ""
}

// silent keeps the exit code of err and drops its text, which the caller of a daemon prints.
func silent(err error) error {
	if err == nil {
		return nil
	}
	return &exit.Fault{Code: exit.AsFault(err).Code}
}

// remount changes the flags of a mount of ours, as mount -o remount asks for. What the layers are can't change.
func remount(r request) error {
	m, err := ownMount(r.target)
	if err != nil {
		return err
	}
	target := m.Mountpoint
	flags := changedFlags(strings.Split(m.Options+","+m.VFSOptions, ","), r.opts)
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|flags, ""); err != nil {
		return exit.Faultf(exit.Mount, "remount %s: %s", target, exit.Reason(err))
	}
	return nil
}

// OwnMount returns the absolute path of target, if a FUSE mount is what is mounted there. It touches nothing below the
// mount, whose server may be gone.
func OwnMount(target string) (string, error) {
	m, err := ownMount(target)
	if err != nil {
		return "", err
	}
	return m.Mountpoint, nil
}

// Resolve is the absolute path of target without symlinks. The last component is not asked for its attributes: on a mount, that
// would be up to its server.
func Resolve(target string) (string, error) {
	abs, err := filepath.Abs(target)
	if err != nil {
		return "", err
	}
	for range maxSymlinks {
		if dir, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
			abs = filepath.Join(dir, filepath.Base(abs))
		}
		to, err := os.Readlink(abs)
		if err != nil {
			return abs, nil //nolint:nilerr // it is no symlink
		}
		if !filepath.IsAbs(to) {
			to = filepath.Dir(abs) + "/" + to
		}
		abs = to
	}
	return "", unix.ELOOP
}

// maxSymlinks is how many symlinks the kernel follows in a path (cf. linux/namei.h MAXSYMLINKS).
const maxSymlinks = 40

// ownMount is what mountinfo has of the FUSE mount on target.
func ownMount(target string) (*mountinfo.Info, error) {
	abs, err := Resolve(target)
	if err != nil {
		return nil, exit.Faultf(exit.Usage, "%s: %s", target, exit.Reason(err))
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != abs, false })
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, exit.Faultf(exit.System, "/proc is not mounted")
	case err != nil:
		return nil, exit.Faultf(exit.System, "mountinfo: %v", err)
	case len(mounts) == 0:
		return nil, exit.Faultf(exit.Usage, "%s is not a mount point", target)
	}
	top := mounts[len(mounts)-1] // the last one
	if t := top.FSType; t != "fuse" && !strings.HasPrefix(t, "fuse.") {
		return nil, exit.Faultf(exit.Usage, "%s is a mount of type %s, not one of plyfs", target, t)
	}
	return top, nil
}

// enterNamespace moves this thread, and so the daemon that it starts, into another mount namespace: a path as mount(8)
// gives it, or the id of a process that is in it.
func enterNamespace(ns string) error {
	if _, err := strconv.Atoi(ns); err == nil {
		ns = "/proc/" + ns + "/ns/mnt"
	}
	fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return exit.Faultf(exit.Usage, "mount namespace %s: %s", ns, exit.Reason(err))
	}
	defer unix.Close(fd)
	cwd, cwdErr := os.Getwd()
	runtime.LockOSThread() // for good: the thread is not like the others any more
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return exit.Faultf(exit.System, "unshare: %v", err)
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNS); err != nil {
		return exit.Faultf(exit.Usage, "mount namespace %s: %s; entering one takes root", ns, exit.Reason(err))
	}
	if cwdErr == nil {
		_ = unix.Chdir(cwd) // relative paths mean the same place there, if it exists
	}
	return nil
}
