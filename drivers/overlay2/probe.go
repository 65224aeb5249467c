package overlay2

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/drivers"
	"plyfs/drivers/internal/layerdir"
	"plyfs/drivers/internal/overlaystore"
	"plyfs/internal/sys"
)

// probe implements drivers.Factory.Probe: it mounts an overlay in a scratch directory and changes something in it.
func probe(ctx context.Context, o drivers.Options) drivers.Report {
	rep := drivers.Report{Driver: Name}
	opts, err := parseOptions(o.Options)
	if err != nil {
		rep.Why, rep.Todo = err.Error(), "correct the option"
		return rep
	}
	dir, remove, err := layerdir.Scratch(o.Home)
	if err != nil {
		rep.Why = fmt.Sprintf("no scratch directory can be made: %v", err)
		rep.Todo = "give a store that this user may write to"
		return rep
	}
	t := trial{dir: dir, opts: opts, userNS: drivers.UserNamespace().Nested}
	err = errors.Join(t.run(ctx), remove())
	fs := layerdir.FSName(filepath.Dir(dir))
	if err != nil {
		rep.Why = fmt.Sprintf("an overlay on %s does not work: %v", fs, err)
		rep.Todo = remedy(err)
		return rep
	}
	rep.Usable = true
	rep.Why = fmt.Sprintf("the kernel mounts an overlay on %s, and copies up, deletes and renames in it", fs)
	if opts.volatile {
		rep.Warning = "with volatile, what is written to a container is lost when the machine goes down"
	}
	return rep
}

// remedy is what to do about a failed trial.
func remedy(err error) string {
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return "run as root, or as root of a user namespace (Linux 5.11 and later); driver plyfs needs neither"
	case errors.Is(err, unix.ENODEV):
		return "load the kernel module overlay (modprobe overlay), or use driver plyfs"
	case errors.Is(err, drivers.ErrIncompatibleFS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return "put the store on a local file system with extended attributes and file types in directories, " +
			"such as ext4, xfs (ftype=1), btrfs or tmpfs; or use driver plyfs"
	}
	return "see the kernel's log (dmesg); driver plyfs may work"
}

// trial is an overlay in a scratch directory.
type trial struct {
	dir    string
	opts   options
	userNS bool
}

func (t trial) path(parts ...string) string {
	return filepath.Join(append([]string{t.dir}, parts...)...)
}

func (t trial) run(ctx context.Context) (err error) {
	for _, d := range []string{"lower/d", "upper", "work", "merged"} {
		if err := os.MkdirAll(t.path(d), 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{"kept", "deleted", "renamed"} {
		if err := os.WriteFile(t.path("lower", f), []byte(f), 0o644); err != nil {
			return err
		}
	}
	if err := tellsTypes(t.path("lower")); err != nil {
		return err
	}
	m := mounter{opts: t.opts, userNS: t.userNS}
	k := overlaystore.Stack{Home: t.dir, Lowers: []string{"lower"}, Upper: "upper", Work: "work"}
	if err := m.Mount(ctx, k, t.path("merged")); err != nil {
		return err
	}
	defer func() {
		if uerr := m.Unmount(ctx, k.ID, t.path("merged")); uerr != nil {
			err = errors.Join(err, uerr, overlaystore.Detach(t.path("merged")))
		}
	}()
	return t.change()
}

// change does in the merged directory what containers do, and looks for the result in the upper.
func (t trial) change() error {
	if err := os.WriteFile(t.path("merged", "kept"), []byte("changed"), 0o644); err != nil {
		return err
	}
	if err := os.Remove(t.path("merged", "deleted")); err != nil {
		return err
	}
	if err := os.Rename(t.path("merged", "renamed"), t.path("merged", "new")); err != nil {
		return err
	}
	// A directory in the place of another is opaque, which takes an attribute.
	if err := os.Remove(t.path("merged", "d")); err != nil {
		return err
	}
	if err := os.Mkdir(t.path("merged", "d"), 0o755); err != nil {
		return err
	}
	for _, name := range []string{"deleted", "renamed"} {
		var st unix.Statx_t
		if err := sys.Statx(unix.AT_FDCWD, t.path("upper", name), &st); err != nil {
			return fmt.Errorf("no whiteout was left: %w", err)
		}
		if !layer.IsWhiteoutDevice(&st) {
			return fmt.Errorf("%s is no whiteout: %w", name, drivers.ErrIncompatibleFS)
		}
	}
	return nil
}

// tellsTypes checks that directories carry the types of their entries, without which whiteouts show.
func tellsTypes(dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return layer.List(fd, func(e layer.RawDirent) error {
		if e.Type == unix.DT_UNKNOWN {
			return fmt.Errorf("directories do not carry file types (d_type): %w", drivers.ErrIncompatibleFS)
		}
		return nil
	})
}
