package btrfs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// limit bounds the bytes that only the subvolume at root holds.
func (d *Driver) limit(root string, bytes uint64) error {
	if err := d.enableQuota(); err != nil {
		return err
	}
	fd, err := openDir(unix.AT_FDCWD, root)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	info, err := sys.BtrfsSubvolume(fd)
	if err != nil {
		return fmt.Errorf("limit of space: number of the subvolume: %w", err)
	}
	// Both ways of counting begin a snapshot at nothing: what it shares with its parent is not its own.
	if err := sys.BtrfsLimit(fd, info.ID, bytes); err != nil {
		return fmt.Errorf("limit of space: %w", err)
	}
	return nil
}

// enableQuota turns on accounting where it is off.
func (d *Driver) enableQuota() error {
	if d.quota == quotaOff {
		return fmt.Errorf("limit of space: turned off by the option btrfs.quota: %w", drivers.ErrNotSupported)
	}
	d.quotaMu.Lock()
	defer d.quotaMu.Unlock()
	mode, err := sys.BtrfsQuotaMode(d.fd)
	if err == nil && mode == sys.BtrfsQuotaOff {
		err = d.turnOn()
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("limit of space: only root of the machine can set one on btrfs "+
			"(the driver plyfs enforces quotas without privilege): %w: %w", err, drivers.ErrNotSupported)
	}
	if err != nil {
		return fmt.Errorf("limit of space: turn on the accounting of btrfs: %w", err)
	}
	return nil
}

func (d *Driver) turnOn() error {
	if d.quota == quotaSimple {
		err := sys.BtrfsEnableSimpleQuota(d.fd)
		if err == nil {
			d.log.Info("turned on simple quotas of btrfs", "home", d.home,
				"note", "Linux before 6.7 cannot mount this file system until they are off again: btrfs quota disable")
			return nil
		}
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	if err := sys.BtrfsEnableQuota(d.fd); err != nil {
		return err
	}
	d.log.Warn("turned on quotas of btrfs, which make the removal of layers slower", "home", d.home)
	return nil
}

// dropQgroup removes what the accounting knows of a subvolume that is gone, where the kernel does not do it itself (Linux before
// 6.10). What can't be removed yet costs a few bytes, and goes with btrfs qgroup clear-stale.
func (d *Driver) dropQgroup(id uint64) {
	err := sys.BtrfsDropQgroup(d.fd, id)
	for _, expected := range []error{unix.ENOTCONN, unix.ENOENT, unix.EBUSY, unix.EPERM, unix.EINVAL} {
		if errors.Is(err, expected) {
			return
		}
	}
	if err != nil {
		d.log.Warn("the quota group of a removed layer stays", "qgroup", id, "err", err)
	}
}
