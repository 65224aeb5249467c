package sys

import (
	"errors"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// StatMask is what a union asks statx(2) for: everything that stat(2) reports plus the birth time.
const StatMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME

// Retry repeats a system call that a signal interrupted.
func Retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR { //nolint:errorlint // bare, as a system call returns it
			return err
		}
	}
}

// Statx fills st with the attributes of name below dirfd without following a symlink; an empty name means dirfd itself,
// which may be an O_PATH descriptor, and so does ".".
func Statx(dirfd int, name string, st *unix.Statx_t) error {
	return statx(dirfd, name, 0, StatMask, st)
}

// StampMask is a mask for the inode number and the times of the last changes only, which some file systems have sooner.
const StampMask = unix.STATX_INO | unix.STATX_MTIME | unix.STATX_CTIME

// StatMasked is Statx for what the mask says.
func StatMasked(dirfd int, name string, mask uint32, st *unix.Statx_t) error {
	return statx(dirfd, name, 0, uintptr(mask), st)
}

// StatKnown is StatMasked that has no file system ask a server: one of a network, or of FUSE, answers what it knows, however old.
func StatKnown(dirfd int, name string, mask uint32, st *unix.Statx_t) error {
	return statx(dirfd, name, unix.AT_STATX_DONT_SYNC, uintptr(mask), st)
}

// StatPlace is Statx that also tells the id of the mount.
func StatPlace(dirfd int, name string, st *unix.Statx_t) error {
	return statx(dirfd, name, 0, StatMask|unix.STATX_MNT_ID, st)
}

func statx(dirfd int, name string, flags, mask uintptr, st *unix.Statx_t) error {
	flags |= unix.AT_SYMLINK_NOFOLLOW
	if name == "" || name == "." {
		// The kernel resolves no path then (cf. fs/stat.c vfs_statx_fd).
		name = ""
		flags |= unix.AT_EMPTY_PATH
	}
	var buf nameBuf
	p, err := buf.cstring(name)
	if err != nil {
		return err
	}
	for {
		_, _, e := unix.Syscall6(unix.SYS_STATX, uintptr(dirfd), uintptr(unsafe.Pointer(p)), flags, mask,
			uintptr(unsafe.Pointer(st)), 0)
		if e != unix.EINTR {
			return errnoErr(e)
		}
	}
}

// Dev is the device number of st in the kernel's 64-bit encoding.
func Dev(st *unix.Statx_t) uint64 { return unix.Mkdev(st.Dev_major, st.Dev_minor) }

// Rdev is the device number that a device node stands for.
func Rdev(st *unix.Statx_t) uint64 { return unix.Mkdev(st.Rdev_major, st.Rdev_minor) }

// OpenBeneath opens path relative to dirfd; no component, the last one included, may be a symlink, a magic link or
// lead out of dirfd (cf. openat2(2) RESOLVE_BENEATH). An empty path reopens dirfd itself.
func OpenBeneath(dirfd int, path string, flags int) (int, error) {
	if path == "" {
		path = "."
	}
	return openat2(dirfd, path, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_NO_SYMLINKS)
}

// OpenInMount opens path relative to dirfd, which may lead out of dirfd by "..", but neither over a symlink nor into another mount
// (EXDEV): it never waits for a server of a file system that dirfd is not in.
func OpenInMount(dirfd int, path string, flags int) (int, error) {
	return openat2(dirfd, path, flags, unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_NO_SYMLINKS)
}

func openat2(dirfd int, path string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW), Resolve: resolve}
	for {
		fd, err := unix.Openat2(dirfd, path, &how)
		// EAGAIN: a rename raced with the walk and the kernel could not prove that it stayed beneath.
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		return fd, err
	}
}

// Openat opens one name below dirfd, never following a symlink. It is for names without a slash.
func Openat(dirfd int, name string, flags int) (int, error) {
	for {
		fd, err := openat(dirfd, name, flags|unix.O_NOFOLLOW, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// openat is openat(2) with O_CLOEXEC, once.
func openat(dirfd int, name string, flags int, mode uint32) (int, error) {
	var buf nameBuf
	p, err := buf.cstring(name)
	if err != nil {
		return -1, err
	}
	fd, _, e := unix.Syscall6(unix.SYS_OPENAT, uintptr(dirfd), uintptr(unsafe.Pointer(p)),
		uintptr(flags|unix.O_CLOEXEC|unix.O_LARGEFILE), uintptr(mode), 0, 0)
	if e != 0 {
		return -1, errnoErr(e)
	}
	return int(fd), nil
}

// ProcPath is the path by which an open descriptor, O_PATH included, can be named to a call that takes only paths.
func ProcPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// Reopen opens the file behind an O_PATH descriptor for I/O.
func Reopen(fd, flags int) (int, error) {
	for {
		nfd, err := unix.Open(ProcPath(fd), flags|unix.O_CLOEXEC, 0)
		if err != unix.EINTR {
			return nfd, err
		}
	}
}

// Readlinkat returns the target of the symlink name below dirfd, or of dirfd itself when name is empty.
func Readlinkat(dirfd int, name string) (string, error) {
	var small [256]byte
	for buf := small[:]; ; buf = make([]byte, len(buf)*4) {
		n, err := unix.Readlinkat(dirfd, name, buf)
		if err != nil {
			return "", err
		}
		if n < len(buf) {
			return string(buf[:n]), nil
		}
	}
}

// xattrArgs is struct xattr_args of include/uapi/linux/xattr.h.
type xattrArgs struct {
	value uint64
	size  uint32
	flags uint32
}

// hasXattrat says whether the running kernel has getxattrat(2) and its siblings (Linux 6.13). A seccomp filter that
// does not know them answers EPERM or ENOSYS.
var hasXattrat = sync.OnceValue(func() bool {
	_, err := listxattrat(unix.AT_FDCWD, "/", nil)
	return err == nil || errors.Is(err, unix.ERANGE)
})

func bufPtr(b []byte) unsafe.Pointer {
	if len(b) == 0 {
		return nil
	}
	return unsafe.Pointer(&b[0])
}

func listxattrat(dirfd int, name string, dest []byte) (int, error) {
	var buf nameBuf
	p, err := buf.cstring(name)
	if err != nil {
		return 0, err
	}
	n, _, e := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(dirfd), uintptr(unsafe.Pointer(p)),
		unix.AT_SYMLINK_NOFOLLOW, uintptr(bufPtr(dest)), uintptr(len(dest)), 0)
	return int(n), errnoErr(e)
}

func errnoErr(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func entryPath(dirfd int, name string) string {
	switch name {
	case "":
		return ProcPath(dirfd)
	case ".":
		// The slash has the magic link followed. With a dot behind, the directory would be searched.
		return ProcPath(dirfd) + "/"
	}
	return ProcPath(dirfd) + "/" + name
}

// unlessSelf is name for a call that takes AT_EMPTY_PATH, and that flag for ".": the name would have the kernel search the
// directory, for which a server without capabilities needs a permission that the directory's own owner may do without.
func unlessSelf(name string) (string, uintptr) {
	if name == "." {
		return "", unix.AT_EMPTY_PATH
	}
	return name, 0
}

// OpenSelf opens the directory behind dirfd, which may be an O_PATH descriptor, for reading. It needs no search permission.
func OpenSelf(dirfd, flags int) (int, error) {
	fd, err := Openat(dirfd, ".", unix.O_DIRECTORY|flags)
	if errors.Is(err, unix.EACCES) {
		return Reopen(dirfd, unix.O_DIRECTORY|flags)
	}
	return fd, err
}

// Getxattrat reads attribute attr of name below dirfd (dirfd itself when name is empty), not following a symlink. With
// an empty dest it returns the size. As everywhere here, "." is a directory that need not be searchable. It is the name for
// an O_PATH descriptor: that is one call where it is searchable, and else two, as always with an empty name.
func Getxattrat(dirfd int, name, attr string, dest []byte) (int, error) {
	if name == "" {
		n, err := unix.Fgetxattr(dirfd, attr, dest)
		if err != unix.EBADF {
			return n, err
		}
		return unix.Getxattr(ProcPath(dirfd), attr, dest)
	}
	if !hasXattrat() {
		return unix.Lgetxattr(entryPath(dirfd, name), attr, dest)
	}
	var nameRoom, attrRoom nameBuf
	p, err := nameRoom.cstring(name)
	if err != nil {
		return 0, err
	}
	a, err := attrRoom.cstring(attr)
	if err != nil {
		return 0, err
	}
	args := xattrArgs{value: uint64(uintptr(bufPtr(dest))), size: uint32(len(dest))}
	n, _, e := unix.Syscall6(unix.SYS_GETXATTRAT, uintptr(dirfd), uintptr(unsafe.Pointer(p)),
		unix.AT_SYMLINK_NOFOLLOW, uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	keepAlive(dest)
	if e == unix.EACCES && name == "." {
		return unix.Lgetxattr(entryPath(dirfd, name), attr, dest)
	}
	return int(n), errnoErr(e)
}

// Listxattrat lists the attribute names of name below dirfd as listxattr(2) does, not following a symlink.
func Listxattrat(dirfd int, name string, dest []byte) (int, error) {
	if name == "" {
		n, err := unix.Flistxattr(dirfd, dest)
		if err != unix.EBADF {
			return n, err
		}
		return unix.Listxattr(ProcPath(dirfd), dest)
	}
	if !hasXattrat() {
		return unix.Llistxattr(entryPath(dirfd, name), dest)
	}
	n, err := listxattrat(dirfd, name, dest)
	if err == unix.EACCES && name == "." { //nolint:errorlint // bare, as a system call returns it
		return unix.Llistxattr(entryPath(dirfd, name), dest)
	}
	return n, err
}

// FileHandle is what name_to_handle_at(2) says of an inode: stable over remounts, and equal only for the same inode.
type FileHandle struct {
	Type  int32
	Bytes []byte
}

// Handle returns the file handle of name below dirfd (dirfd itself when name is empty). File systems that cannot be
// exported answer EOPNOTSUPP.
func Handle(dirfd int, name string) (FileHandle, error) {
	flags := 0
	if name == "" {
		flags = unix.AT_EMPTY_PATH
	}
	h, _, err := unix.NameToHandleAt(dirfd, name, flags)
	if err != nil {
		return FileHandle{}, err
	}
	return FileHandle{Type: h.Type(), Bytes: h.Bytes()}, nil
}

// fsuuid2 is struct fsuuid2 of include/uapi/linux/fs.h.
type fsuuid2 struct {
	length uint8
	uuid   [16]byte
}

const fsIocGetFSUUID = 0x80111500 // _IOR(0x15, 0, struct fsuuid2)

// FSUUID returns the UUID of the file system that fd lies on; ok is false where the kernel (before 6.9) or the file
// system does not tell.
func FSUUID(fd int) (uuid [16]byte, ok bool) {
	var u fsuuid2
	if err := ioctlPtr(fd, fsIocGetFSUUID, unsafe.Pointer(&u)); err != nil || u.length != 16 {
		return uuid, false
	}
	return u.uuid, true
}

func ioctlPtr(fd int, req uintptr, arg unsafe.Pointer) error {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
	return errnoErr(e)
}

// FlagTopDir is FS_TOPDIR_FL of include/uapi/linux/fs.h, a flag of SetFlags: the directories in this one are unrelated.
const FlagTopDir = 0x20000

// GetFlags reads the inode flags of an open file (FS_IOC_GETFLAGS, chattr(1)).
func GetFlags(fd int) (uint32, error) {
	v, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	return uint32(v), err
}

// FSXattr is struct fsxattr of include/uapi/linux/fs.h, as the kernel lays it out: the flags, extent size and project of
// an inode that FS_IOC_FSGETXATTR tells.
type FSXattr [28]byte

const (
	fsIocFSGetXattr = 0x801c581f
	fsIocFSSetXattr = 0x401c5820
)

// GetFSXattr reads the extended flags of an open file; ENOTTY where the file system has none.
func GetFSXattr(fd int) (x FSXattr, err error) {
	err = ioctlPtr(fd, fsIocFSGetXattr, unsafe.Pointer(&x))
	return x, err
}
