package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// mountMain is the program under any name that mounts: it returns when the mount serves, or in the foreground when it is
// gone again.
func mountMain(p personality, args []string, stdout io.Writer) error {
	r, err := parseRequest(p, args)
	switch {
	case err != nil:
		return err
	case r.help:
		return printHelp(stdout, p)
	case r.version:
		return printVersion(stdout, p)
	}
	d, isDaemon := becomeDaemon(&r)
	for _, w := range r.warnings {
		fmt.Fprintln(os.Stderr, w)
	}
	if isDaemon {
		prepareProcess()
		err := serve(r, d)
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
		prepareProcess()
		return serve(r, nil)
	}
	// Before another process is started, and before it has other descriptors.
	if err := checkTarget(r.target); err != nil {
		return err
	}
	return startDaemon(r)
}

// silent keeps the exit code of err and drops its text, which the caller of a daemon prints.
func silent(err error) error {
	if err == nil {
		return nil
	}
	return &fault{code: asFault(err).code}
}

// remount changes the flags of a mount of ours, as mount -o remount asks for. What the layers are can't change.
func remount(r request) error {
	target, err := ownMount(r.target)
	if err != nil {
		return err
	}
	flags := mountFlags(r.opts, readEnvironment()) &^ unix.MS_RDONLY
	if r.opts.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|flags, ""); err != nil {
		return faultf(exitMount, "remount %s: %s", target, reason(err))
	}
	return nil
}

// ownMount returns the absolute path of target, if a FUSE mount is what is mounted there. It touches nothing below the
// mount, whose server may be gone.
func ownMount(target string) (string, error) {
	abs, err := filepath.Abs(target)
	if err != nil {
		return "", faultf(exitSystem, "%v", err)
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		abs = filepath.Join(dir, filepath.Base(abs))
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != abs, false })
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", faultf(exitSystem, "/proc is not mounted")
	case err != nil:
		return "", faultf(exitSystem, "mountinfo: %v", err)
	case len(mounts) == 0:
		return "", faultf(exitUsage, "%s is not a mount point", target)
	}
	// The last one lies on top.
	if t := mounts[len(mounts)-1].FSType; t != "fuse" && !strings.HasPrefix(t, "fuse.") {
		return "", faultf(exitUsage, "%s is a mount of type %s, not one of plyfs", target, t)
	}
	return abs, nil
}

// enterNamespace moves this thread, and so the daemon that it starts, into another mount namespace: a path as mount(8)
// gives it, or the id of a process that is in it.
func enterNamespace(ns string) error {
	if _, err := strconv.Atoi(ns); err == nil {
		ns = "/proc/" + ns + "/ns/mnt"
	}
	fd, err := unix.Open(ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return faultf(exitUsage, "mount namespace %s: %s", ns, reason(err))
	}
	defer unix.Close(fd)
	cwd, cwdErr := os.Getwd()
	runtime.LockOSThread() // for good: the thread is not like the others any more
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return faultf(exitSystem, "unshare: %v", err)
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNS); err != nil {
		return faultf(exitUsage, "mount namespace %s: %s; entering one takes root", ns, reason(err))
	}
	if cwdErr == nil {
		_ = unix.Chdir(cwd) // relative paths mean the same place there, if it exists
	}
	return nil
}
