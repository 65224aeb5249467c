package zfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// mounter makes mounts; tests have another.
type mounter interface {
	// mount is mount(2) of a dataset.
	mount(dataset, target string, flags uintptr, data string) error
}

type realMounter struct{}

func (realMounter) mount(dataset, target string, flags uintptr, data string) error {
	return sys.Retry(func() error { return unix.Mount(dataset, target, "zfs", flags, data) })
}

// mountAt returns the mount that a directory lies on.
func mountAt(dir string) (*mountinfo.Info, error) {
	var st unix.Stat_t
	if err := sys.Retry(func() error { return unix.Stat(dir, &st) }); err != nil {
		return nil, err
	}
	var found *mountinfo.Info
	_, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		if sameDevice(i.Major, i.Minor, &st) {
			found = i
		}
		return true, found != nil
	})
	if err == nil && found == nil {
		err = fmt.Errorf("no mount of device %d:%d in this namespace: %w", unix.Major(st.Dev), unix.Minor(st.Dev), drivers.ErrNotSupported)
	}
	return found, err
}

// Get implements drivers.Driver. Layers are mounted in the home; image layers read-only.
func (d *Driver) Get(ctx context.Context, id string, o *drivers.GetOptions) (root string, err error) {
	var opt drivers.GetOptions
	if o != nil {
		opt = *o
	}
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return "", err
	}
	defer unlock()
	l, err := d.lookupWhole(id)
	if err != nil {
		return "", err
	}
	// However an image layer is asked for, the mount is the same.
	opt.ReadOnly = opt.ReadOnly || !l.writable
	root = d.mountPath(id)
	if err := d.mounts.Get(id, root, opt, func() error { return d.mount(id, l, opt) }); err != nil {
		return "", fmt.Errorf("mount layer %s: %w", id, err)
	}
	return root, nil
}

// mount mounts a layer at its place.
func (d *Driver) mount(id string, l dataset, o drivers.GetOptions) error {
	data, err := mountData(o.MountLabel)
	if err != nil {
		return err
	}
	var flags uintptr
	if o.ReadOnly {
		flags = unix.MS_RDONLY
	}
	target := d.mountPath(id)
	if err := os.Mkdir(target, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	err = d.mnt.mount(l.name, target, flags, data)
	if err == nil {
		return nil
	}
	err = errors.Join(fmt.Errorf("mount dataset %s at %s: %w", l.name, target, err), os.Remove(target))
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: %w", err, drivers.ErrDamaged)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (mounting zfs is for root of the machine): %w", err, drivers.ErrNotSupported)
	}
	return err
}

// mountData is the SELinux label as mount(2) takes it.
func mountData(label string) (string, error) {
	if label == "" {
		return "", nil
	}
	if strings.ContainsAny(label, "\"\\\x00\n") {
		return "", fmt.Errorf("mount label %q: %w", label, drivers.ErrInvalid)
	}
	// Quoted, since categories are separated by commas.
	return `context="` + label + `"`, nil
}

// Put implements drivers.Driver.
func (d *Driver) Put(ctx context.Context, id string) error {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if d.mounts.Count(id) == 0 {
		if _, err := d.lookup(id); err != nil {
			return err
		}
	}
	return d.mounts.Put(id, func(string) error { return d.unmount(id) })
}

// unmount undoes mount. When it returns, zfs has written everything to the pool.
func (d *Driver) unmount(id string) error {
	target := d.mountPath(id)
	err := sys.UnmountSoon(target)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("unmount layer %s: %w: %w", id, err, drivers.ErrInUse)
	case err != nil:
		return fmt.Errorf("unmount layer %s: %w", id, err)
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
