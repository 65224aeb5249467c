package plyfs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/drivers/internal/layerdir"
	"plyfs/drivers/internal/overlaystore"
)

const fuseDevice = "/dev/fuse"

// probe implements drivers.Factory.Probe: it starts a server in a scratch directory and changes something in its mount.
func probe(ctx context.Context, o drivers.Options) drivers.Report {
	rep := drivers.Report{Driver: Name}
	opts, err := parseOptions(o.Options)
	if err != nil {
		rep.Why, rep.Todo = err.Error(), "correct the option"
		return rep
	}
	program, err := resolveProgram(opts.program)
	if err != nil {
		rep.Why, rep.Todo = err.Error(), "install plyfs, or name its program with the option mount_program"
		return rep
	}
	if err := openFUSE(); err != nil {
		rep.Why, rep.Todo = err.Error(), fuseRemedy(err)
		return rep
	}
	dir, remove, err := layerdir.Scratch(o.Home)
	if err != nil {
		rep.Why = fmt.Sprintf("no scratch directory can be made: %v", err)
		rep.Todo = "give a store that this user may write to"
		return rep
	}
	err = errors.Join(try(ctx, dir, opts, program), remove())
	fs := layerdir.FSName(filepath.Dir(dir))
	if err != nil {
		rep.Why, rep.Todo = fmt.Sprintf("a mount on %s does not work: %v", fs, err), tryRemedy()
		return rep
	}
	rep.Usable = true
	rep.Why = fmt.Sprintf("plyfs mounts on %s, and changes, deletes and renames in it", fs)
	if opts.mount.Volatile {
		rep.Warning = "with volatile, what is written to a container is lost when the machine goes down"
	}
	return rep
}

func openFUSE() error {
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: fuseDevice, Err: err}
	}
	return unix.Close(fd)
}

func fuseRemedy(err error) string {
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return "let this user open " + fuseDevice + " (mode 0666), and the container's device rules too"
	}
	return "load the kernel module fuse (modprobe fuse), or give the container the device " + fuseDevice
}

func tryRemedy() string {
	if os.Geteuid() != 0 {
		return "install fusermount3 (package fuse3) for mounts without root, or run in a user namespace"
	}
	return "see what the message says; plyfs mount -d tells more"
}

// try mounts in a scratch directory and changes something.
func try(ctx context.Context, dir string, opts options, program string) (err error) {
	for _, d := range []string{"lower/dir", "upper", "work", "merged", "run"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "lower/file"), []byte("lower"), 0o600); err != nil {
		return err
	}
	m, err := newMounter(opts, program, dir, filepath.Join(dir, "run"), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.pool.close()) }()
	k := overlaystore.Stack{ID: "probe", Home: dir, Lowers: []string{"lower"}, Upper: "upper", Work: "work"}
	merged := filepath.Join(dir, "merged")
	if err := m.Mount(ctx, k, merged); err != nil {
		return err
	}
	defer func() {
		if uerr := m.Unmount(ctx, k.ID, merged); uerr != nil {
			err = errors.Join(err, uerr, overlaystore.Detach(merged))
		}
	}()
	if err := os.WriteFile(filepath.Join(merged, "file"), []byte("changed"), 0o600); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(merged, "dir"), filepath.Join(merged, "renamed")); err != nil {
		return err
	}
	return os.Remove(filepath.Join(merged, "file"))
}
