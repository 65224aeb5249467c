package vfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
)

// Get implements drivers.Driver. It returns the directory itself, and for one that must not be written to a read-only
// mount of it, which wants CAP_SYS_ADMIN.
func (d *driver) Get(ctx context.Context, id string, o *drivers.GetOptions) (string, error) {
	var opts drivers.GetOptions
	if o != nil {
		opts = *o
	}
	if err := refuseLabel(id, opts.MountLabel); err != nil {
		return "", err
	}
	defer d.locks.Lock(id)()
	if err := d.home.Need(id); err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("get layer %s: %w", id, err)
	}
	target, mount := d.tree(id), func() error { return nil }
	if opts.ReadOnly {
		target = filepath.Join(d.home.Layer(id), boundName)
		mount = func() error { return bindReadOnly(d.tree(id), target) }
	}
	if err := d.mounts.Get(id, target, opts, mount); err != nil {
		return "", fmt.Errorf("get layer %s: %w", id, err)
	}
	return d.mounts.Target(id), nil
}

// Put implements drivers.Driver.
func (d *driver) Put(_ context.Context, id string) error {
	if err := drivers.ValidID(id); err != nil {
		return err
	}
	defer d.locks.Lock(id)()
	if err := d.home.Need(id); err != nil {
		return err
	}
	return d.mounts.Put(id, func(target string) error {
		if target == d.tree(id) {
			return nil
		}
		if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", target, busy(err))
		}
		return nil
	})
}

func busy(err error) error {
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %w", drivers.ErrInUse, err)
	}
	return err
}

// bindReadOnly mounts the directory dir, read-only, at target, which it makes.
func bindReadOnly(dir, target string) error {
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("%w: %w", drivers.ErrNotSupported, err)
		}
		return fmt.Errorf("bind %s read-only: %w", dir, err)
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("make the mount of %s read-only: %w", dir, err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}
