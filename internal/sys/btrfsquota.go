package sys

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	btrfsIocQuotaCtl     = 0xc0109428
	btrfsIocQgroupCreate = 0x4010942a
	btrfsIocQgroupLimit  = 0x8030942b
	btrfsIocQuotaWait    = 0x942e

	btrfsQuotaEnable       = 1
	btrfsQuotaEnableSimple = 4

	btrfsQgroupMaxExcl = 1 << 1
)

// btrfsQuotaCtl is struct btrfs_ioctl_quota_ctl_args.
type btrfsQuotaCtl struct{ cmd, status uint64 }

// BtrfsEnableSimpleQuota turns on the accounting by who first wrote an extent, for the whole file system that fd lies on.
// Kernels before 6.7 answer EINVAL. Afterwards none of those can mount the file system.
func BtrfsEnableSimpleQuota(fd int) error {
	args := btrfsQuotaCtl{cmd: btrfsQuotaEnableSimple}
	return Retry(func() error { return ioctlPtr(fd, btrfsIocQuotaCtl, unsafe.Pointer(&args)) })
}

// BtrfsEnableQuota turns on the accounting by reference for the whole file system that fd lies on, and waits until what is
// there has been counted. Where some accounting is on, it stays as it is.
func BtrfsEnableQuota(fd int) error {
	args := btrfsQuotaCtl{cmd: btrfsQuotaEnable}
	if err := Retry(func() error { return ioctlPtr(fd, btrfsIocQuotaCtl, unsafe.Pointer(&args)) }); err != nil {
		return err
	}
	return Retry(func() error { return ioctlPtr(fd, btrfsIocQuotaWait, nil) })
}

// btrfsQgroupLimit is struct btrfs_ioctl_qgroup_limit_args.
type btrfsQgroupLimit struct {
	qgroup                             uint64
	flags                              uint64
	maxRfer, maxExcl, rsvRfer, rsvExcl uint64
}

// BtrfsLimit bounds the bytes that only the subvolume with the given id holds. ENOTCONN where quotas are off.
func BtrfsLimit(fd int, id, bytes uint64) error {
	args := btrfsQgroupLimit{qgroup: id, flags: btrfsQgroupMaxExcl, maxExcl: bytes}
	return Retry(func() error { return ioctlPtr(fd, btrfsIocQgroupLimit, unsafe.Pointer(&args)) })
}

// btrfsQgroupCreate is struct btrfs_ioctl_qgroup_create_args.
type btrfsQgroupCreate struct{ create, qgroup uint64 }

// BtrfsDropQgroup removes the qgroup of a subvolume that is gone. EBUSY until it is gone from disk too, ENOENT where the kernel
// has done it, ENOTCONN where quotas are off.
func BtrfsDropQgroup(fd int, id uint64) error {
	args := btrfsQgroupCreate{qgroup: id}
	return Retry(func() error { return ioctlPtr(fd, btrfsIocQgroupCreate, unsafe.Pointer(&args)) })
}

// The quota tree and its items, of include/uapi/linux/btrfs_tree.h.
const (
	btrfsQuotaTree        = 8
	btrfsQgroupStatusType = 240
	btrfsStatusSimple     = 1 << 3
)

// BtrfsQuota says how a file system counts.
type BtrfsQuota uint8

// The ways to count.
const (
	// BtrfsQuotaOff: not at all.
	BtrfsQuotaOff BtrfsQuota = iota
	// BtrfsQuotaSimple counts an extent for the subvolume that first wrote it.
	BtrfsQuotaSimple
	// BtrfsQuotaFull counts an extent for every subvolume that refers to it, and finds out what is exclusive.
	BtrfsQuotaFull
)

// String returns a word for people.
func (q BtrfsQuota) String() string {
	switch q {
	case BtrfsQuotaSimple:
		return "simple"
	case BtrfsQuotaFull:
		return "full"
	default:
		return "off"
	}
}

// BtrfsQuotaMode says how the file system that the open directory fd lies on counts. It needs CAP_SYS_ADMIN.
func BtrfsQuotaMode(fd int) (BtrfsQuota, error) {
	mode := BtrfsQuotaOff
	err := BtrfsTreeSearch(fd, BtrfsSearch{
		Tree: btrfsQuotaTree, MinType: btrfsQgroupStatusType, MaxType: btrfsQgroupStatusType, MaxOffset: ^uint64(0),
		MaxTransid: ^uint64(0),
	}, func(it BtrfsItem) error {
		// struct btrfs_qgroup_status_item: version, generation, flags.
		if len(it.Data) < 24 {
			return unix.EIO
		}
		mode = BtrfsQuotaFull
		if binary.LittleEndian.Uint64(it.Data[16:])&btrfsStatusSimple != 0 {
			mode = BtrfsQuotaSimple
		}
		return nil
	})
	// No quota tree.
	if errors.Is(err, unix.ENOENT) {
		return BtrfsQuotaOff, nil
	}
	return mode, err
}
