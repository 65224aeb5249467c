package sys

import (
	"encoding/binary"
	"unsafe"
)

// qXGetProject is Q_XGETQUOTA with the type PRJQUOTA. The kernel takes it for reading, unlike Q_GETQUOTA, and answers
// on a read-only mount too.
const qXGetProject = ('X'<<8+3)<<8 | 2

// ProjectUsage returns the bytes and inodes that a project has on the file system that fd lies on. Errors are those of
// GetProjectQuota; ESRCH also where a read-only ext4 does not count.
func ProjectUsage(fd int, id uint32) (bytes, inodes uint64, err error) {
	// struct fs_disk_quota of include/uapi/linux/dqblk_xfs.h: blocks of 512 bytes in use, inodes in use.
	const bcountAt, icountAt = 40, 48
	var quota [112]byte
	if err := quotactlFD(fd, qXGetProject, id, unsafe.Pointer(&quota)); err != nil {
		return 0, 0, err
	}
	return binary.NativeEndian.Uint64(quota[bcountAt:]) * 512, binary.NativeEndian.Uint64(quota[icountAt:]), nil
}
