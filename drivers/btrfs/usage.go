package btrfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// Usage implements drivers.Driver. It counts the inodes and extents that came into being after the snapshot was taken, which
// costs as much as there are of them; it syncs the file system first. Without CAP_SYS_ADMIN it walks the layer, and counts all of a
// file of which something changed. Metadata of the file system does not count.
func (d *Driver) Usage(ctx context.Context, id string) (u drivers.Usage, err error) {
	unlock, err := d.locks.Begin(ctx, id)
	if err != nil {
		return u, err
	}
	defer unlock()
	r, err := d.wholeRecord(id)
	if err != nil {
		return u, err
	}
	err = d.onRoot(id, func(fd int) error {
		// What is not written yet has no extents.
		if err := sys.Retry(func() error { return unix.Syncfs(fd) }); err != nil {
			return err
		}
		u, err = usageSince(fd, r.Parent != "")
		if errors.Is(err, unix.EPERM) {
			u, err = d.usageByWalk(ctx, id, r.Parent)
		}
		return err
	})
	if err != nil {
		return drivers.Usage{}, fmt.Errorf("usage of layer %s: %w", id, err)
	}
	return u, nil
}

// The types of items that tell of inodes and extents, and offsets in their data, of include/uapi/linux/btrfs_tree.h.
const (
	inodeItem  = 1
	extentData = 108

	extentTypeAt      = 20
	extentBytenrAt    = 21
	extentDiskBytesAt = 29
	extentSize        = 53

	extentInline = 0
)

// usageSince counts what the subvolume whose root is open as fd holds beyond what it was a snapshot of; all of it if it is none.
func usageSince(fd int, snapshot bool) (u drivers.Usage, err error) {
	var since uint64
	if snapshot {
		info, err := sys.BtrfsSubvolume(fd)
		if err != nil {
			return u, err
		}
		// The transaction that made the snapshot changed it before anybody could write to it.
		since = info.Created + 1
	}
	seen := make(map[uint64]bool)
	err = sys.BtrfsTreeSearch(fd, sys.BtrfsSearch{
		MaxObject: ^uint64(0), MinType: inodeItem, MaxType: extentData, MaxOffset: ^uint64(0), MinTransid: since, MaxTransid: ^uint64(0),
	}, func(it sys.BtrfsItem) error {
		if it.Type != inodeItem && it.Type != extentData {
			return nil
		}
		if len(it.Data) < extentBytenrAt {
			return unix.EIO
		}
		// Both kinds begin with the transaction that made them.
		if binary.LittleEndian.Uint64(it.Data) < since {
			return nil
		}
		if it.Type == inodeItem {
			u.Inodes++
			return nil
		}
		if it.Data[extentTypeAt] == extentInline {
			u.Bytes += int64(len(it.Data) - extentBytenrAt)
			return nil
		}
		if len(it.Data) < extentSize {
			return unix.EIO
		}
		// An extent of which only parts are still in use takes up all its space, once. Zero is a hole.
		start := binary.LittleEndian.Uint64(it.Data[extentBytenrAt:])
		if start != 0 && !seen[start] {
			seen[start] = true
			u.Bytes += int64(binary.LittleEndian.Uint64(it.Data[extentDiskBytesAt:]))
		}
		return nil
	})
	return u, err
}
