package sys

import (
	"encoding/binary"
	"unsafe"
)

// The ioctls of fs/ext4/ext4.h and fs/xfs/libxfs/xfs_fs.h that make a mounted file system larger, and that of
// include/uapi/linux/fs.h that gives back blocks of a device.
const (
	ext4IocResizeFS  = 0x40086610
	xfsIocGeometryV1 = 0x80705864
	xfsIocGrowFSData = 0x4010586e
	blkDiscard       = 0x1277
	blkGetSize64     = 0x80081272
)

// GrowExt4 makes the mounted ext4 file system that fd lies on blocks of its block size long. Needs CAP_SYS_RESOURCE.
func GrowExt4(fd int, blocks uint64) error {
	return Retry(func() error { return ioctlPtr(fd, ext4IocResizeFS, unsafe.Pointer(&blocks)) })
}

// GrowXFS makes the mounted xfs file system that fd lies on size bytes long, or some blocks less. Needs CAP_SYS_ADMIN.
func GrowXFS(fd int, size uint64) error {
	// struct xfs_fsop_geom_v1, of which the size of blocks and the share of inodes count: that is not to change.
	var geometry [112]byte
	if err := ioctlPtr(fd, xfsIocGeometryV1, unsafe.Pointer(&geometry)); err != nil {
		return err
	}
	// struct xfs_growfs_data: newblocks, imaxpct.
	args := struct {
		blocks  uint64
		percent uint32
		_       uint32
	}{percent: binary.NativeEndian.Uint32(geometry[28:])}
	args.blocks = size / uint64(max(binary.NativeEndian.Uint32(geometry[0:]), 512))
	return Retry(func() error { return ioctlPtr(fd, xfsIocGrowFSData, unsafe.Pointer(&args)) })
}

// BlockSize is the size in bytes of the block device that is open as fd.
func BlockSize(fd int) (uint64, error) {
	var n uint64
	err := ioctlPtr(fd, blkGetSize64, unsafe.Pointer(&n))
	return n, err
}

// BlockDiscard gives back length bytes from offset of the block device that is open for writing as fd. EOPNOTSUPP if
// it can't do that.
func BlockDiscard(fd int, offset, length uint64) error {
	args := [2]uint64{offset, length}
	return Retry(func() error { return ioctlPtr(fd, blkDiscard, unsafe.Pointer(&args)) })
}
