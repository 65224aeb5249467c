package sys

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Project is the project that an inode belongs to.
func (x FSXattr) Project() uint32 { return binary.NativeEndian.Uint32(x[12:16]) }

// WithProject returns x with another project, and with what makes new entries of a directory belong to it too
// (FS_XFLAG_PROJINHERIT).
func (x FSXattr) WithProject(id uint32) FSXattr {
	const projInherit = 0x200
	binary.NativeEndian.PutUint32(x[0:4], binary.NativeEndian.Uint32(x[0:4])|projInherit)
	binary.NativeEndian.PutUint32(x[12:16], id)
	return x
}

// ProjectQuota is what a file system keeps for one project: struct if_dqblk of include/uapi/linux/quota.h.
type ProjectQuota struct {
	HardKiB, SoftKiB       uint64 // limits of space in units of 1024 bytes, zero for none
	Space                  uint64 // bytes in use
	HardInodes, SoftInodes uint64 // limits of inodes, zero for none
	Inodes                 uint64 // inodes in use
	_, _                   uint64 // grace times
	valid                  uint32
	_                      uint32
}

// The commands of quotactl(2) with the type PRJQUOTA: QCMD(cmd, 2).
const (
	qGetProject = 0x800007<<8 | 2
	qSetProject = 0x800008<<8 | 2
	qGetState   = ('X'<<8+8)<<8 | 2
)

// GetProjectQuota reads the limits and the use of a project on the file system that fd lies on. It needs CAP_SYS_ADMIN
// in the initial user namespace. Errors are ESRCH where project quotas are not enabled, ENOSYS where file system or
// kernel (before 5.14) have none.
func GetProjectQuota(fd int, id uint32) (q ProjectQuota, err error) {
	err = quotactlFD(fd, qGetProject, id, unsafe.Pointer(&q))
	return q, err
}

// SetProjectQuota sets the limits of a project; use and grace times stay. Errors are those of GetProjectQuota.
func SetProjectQuota(fd int, id uint32, q ProjectQuota) error {
	const limits = 1 | 4 // QIF_BLIMITS | QIF_ILIMITS
	q.valid = limits
	return quotactlFD(fd, qSetProject, id, unsafe.Pointer(&q))
}

// ProjectQuotasEnforced says whether the file system that fd lies on refuses what is beyond the limits of a project.
// Needs no privilege. The error is ENOSYS where file system or kernel (before 5.14) have no quotas.
func ProjectQuotasEnforced(fd int) (bool, error) {
	// struct fs_quota_statv of include/uapi/linux/dqblk_xfs.h: a version that the caller gives, and flags are all that
	// counts here.
	var state [160]byte
	state[0] = 1
	if err := quotactlFD(fd, qGetState, 0, unsafe.Pointer(&state)); err != nil {
		return false, err
	}
	const projectEnforced = 1 << 5 // FS_QUOTA_PDQ_ENFD
	return binary.NativeEndian.Uint16(state[2:4])&projectEnforced != 0, nil
}

func quotactlFD(fd int, cmd uint32, id uint32, addr unsafe.Pointer) error {
	return Retry(func() error {
		_, _, e := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(fd), uintptr(cmd), uintptr(id), uintptr(addr), 0, 0)
		return errnoErr(e)
	})
}
