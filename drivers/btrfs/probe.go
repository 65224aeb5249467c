package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// probe implements drivers.Factory.Probe: it makes and deletes a subvolume and a snapshot of it.
func probe(ctx context.Context, o drivers.Options) drivers.Report {
	rep := drivers.Report{Driver: name}
	if _, err := parseOptions(o.Options); err != nil {
		rep.Why = err.Error()
		return rep
	}
	dir, err := nearest(o.Home)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = try(dir)
	}
	switch {
	case err == nil:
		rep.Usable = true
		rep.Why = fmt.Sprintf("%s is on btrfs; subvolumes and snapshots can be made and deleted there", dir)
		if os.Geteuid() != 0 || !canCount(dir) {
			rep.Warning = "no quotas, and Usage reads whole layers: both want CAP_SYS_ADMIN of the machine"
		}
	case errors.Is(err, drivers.ErrIncompatibleFS):
		rep.Why = err.Error()
		rep.Todo = "put the store on a btrfs file system, or choose another driver"
	case errors.Is(err, errNoDelete):
		rep.Why = err.Error()
		rep.Todo = "mount the file system with the option user_subvol_rm_allowed, or choose the driver plyfs"
	default:
		rep.Why = fmt.Sprintf("trying in %s: %v", dir, err)
		rep.Todo = "make the store's directory one in which this user may write"
	}
	return rep
}

var errNoDelete = errors.New("this user may make subvolumes there but not delete them")

// nearest returns the nearest directory at or above path that exists.
func nearest(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return path, fmt.Errorf("directory %q: not absolute: %w", path, drivers.ErrInvalid)
	}
	for dir := filepath.Clean(path); ; dir = filepath.Dir(dir) {
		_, err := os.Stat(dir)
		if err == nil || !errors.Is(err, fs.ErrNotExist) || dir == "/" {
			return dir, err
		}
	}
}

// try does what the driver does, in a directory of its own beneath dir.
func try(dir string) (err error) {
	fd, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := onBtrfs(fd, dir); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(dir, ".plyfs-probe-")
	if err != nil {
		return err
	}
	// Empty subvolumes can be removed by anyone who may remove a directory.
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	sfd, err := openDir(unix.AT_FDCWD, scratch)
	if err != nil {
		return err
	}
	defer unix.Close(sfd)
	if err := sys.BtrfsCreate(sfd, "a"); err != nil {
		return fmt.Errorf("make a subvolume: %w", err)
	}
	src, err := openDir(sfd, "a")
	if err != nil {
		return err
	}
	defer unix.Close(src)
	if err := sys.BtrfsSnapshot(src, sfd, "b"); err != nil {
		return fmt.Errorf("make a snapshot: %w", err)
	}
	for _, name := range []string{"a", "b"} {
		if err := sys.BtrfsDestroy(sfd, name); errors.Is(err, unix.EPERM) {
			return fmt.Errorf("%s: %w: %w", dir, errNoDelete, err)
		} else if err != nil {
			return fmt.Errorf("delete a subvolume: %w", err)
		}
	}
	return nil
}

// canCount says whether this process may read the accounting.
func canCount(dir string) bool {
	fd, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	_, err = sys.BtrfsQuotaMode(fd)
	return err == nil
}
