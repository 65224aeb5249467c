package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// Get implements drivers.Driver. What it returns is the subvolume itself; only a writable layer that is wanted read-only is mounted.
// The references to a subvolume end with the process.
func (d *Driver) Get(ctx context.Context, id string, o *drivers.GetOptions) (root string, err error) {
	var opt drivers.GetOptions
	if o != nil {
		opt = *o
	}
	if err := checkLabel(id, opt.MountLabel); err != nil {
		return "", err
	}
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()
	r, err := d.wholeRecord(id)
	if err != nil {
		return "", err
	}
	if !r.Writable {
		// An image layer is read-only however it is asked for.
		opt.ReadOnly = false
		if err := d.seal(id); err != nil {
			return "", err
		}
	}
	root, mount := d.rootPath(id), d.present
	if opt.ReadOnly {
		root, mount = d.mountPath(id), d.bindReadOnly
	}
	err = d.mounts.Get(id, root, opt, func() error { return mount(id) })
	if err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	// Not always root: one who takes any mount gets that which is there.
	return d.mounts.Target(id), nil
}

// Put implements drivers.Driver.
func (d *Driver) Put(ctx context.Context, id string) error {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if d.mounts.Count(id) == 0 {
		if _, err := d.readRecord(id); errors.Is(err, drivers.ErrNotFound) {
			return err
		}
	}
	return d.mounts.Put(id, func(target string) error {
		if target != d.mountPath(id) {
			return nil
		}
		if err := sys.UnmountSoon(target); err != nil {
			if errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("unmount layer %s: %w: %w", id, err, drivers.ErrInUse)
			}
			return fmt.Errorf("unmount layer %s: %w", id, err)
		}
		return os.Remove(target)
	})
}

// present makes sure that a layer has its subvolume.
func (d *Driver) present(id string) error {
	if _, err := os.Lstat(d.rootPath(id)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", err, drivers.ErrDamaged)
	} else if err != nil {
		return err
	}
	return nil
}

// bindReadOnly mounts a layer's subvolume so that nothing can be written through the mount. It is read-only before it has a place.
func (d *Driver) bindReadOnly(id string) (err error) {
	if err := d.present(id); err != nil {
		return err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, d.rootPath(id), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("mounting wants CAP_SYS_ADMIN in the mount namespace: %w: %w", err, drivers.ErrNotSupported)
	}
	if err != nil {
		return fmt.Errorf("open_tree %s: %w", d.rootPath(id), err)
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("make a mount of %s read-only: %w", d.rootPath(id), err)
	}
	target := d.mountPath(id)
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return errors.Join(fmt.Errorf("move_mount to %s: %w", target, err), os.Remove(target))
	}
	return nil
}
