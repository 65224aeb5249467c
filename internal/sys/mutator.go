package sys

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mutator makes the system calls that change a layer. The zero value and a nil pointer make them directly.
//
// All methods retry on EINTR, name one entry below a directory descriptor (never a path of more than one component),
// and never follow a symlink in it. The name "." is the directory behind the descriptor, which may be an O_PATH one: it is
// reached without search permission on itself, as its owner reaches it from the directory above.
type Mutator struct {
	// Hook, when not nil, is called before each system call with its name; an error is returned instead of making
	// the call. It may be called from several goroutines.
	Hook func(op string) error
	// NoRenameFlags has renameat2 refuse all flags, as ZFS before 2.2, NFS and some file systems of FUSE do.
	NoRenameFlags bool
}

// do makes a system call, f, unless Hook refuses it.
func (m *Mutator) do(op string, f func() error) error {
	if err := m.hook(op); err != nil {
		return err
	}
	return Retry(f)
}

func (m *Mutator) hook(op string) error {
	if m != nil && m.Hook != nil {
		return m.Hook(op)
	}
	return nil
}

// nameCall makes a system call whose arguments are a directory, a name below it and one more.
func nameCall(trap uintptr, dirfd int, name string, arg uintptr) error {
	var buf nameBuf
	p, err := buf.cstring(name)
	if err != nil {
		return err
	}
	_, _, e := unix.Syscall(trap, uintptr(dirfd), uintptr(unsafe.Pointer(p)), arg)
	return errnoErr(e)
}

// twoNames makes a system call whose arguments are a directory and a name, twice, and flags.
func twoNames(trap uintptr, odirfd int, oname string, ndirfd int, nname string, flags uintptr) error {
	var obuf, nbuf nameBuf
	o, err := obuf.cstring(oname)
	if err != nil {
		return err
	}
	n, err := nbuf.cstring(nname)
	if err != nil {
		return err
	}
	_, _, e := unix.Syscall6(trap, uintptr(odirfd), uintptr(unsafe.Pointer(o)), uintptr(ndirfd),
		uintptr(unsafe.Pointer(n)), flags, 0)
	return errnoErr(e)
}

// Create opens name below dirfd with O_CREAT|O_EXCL and the given further flags.
func (m *Mutator) Create(dirfd int, name string, flags int, mode uint32) (fd int, err error) {
	fd = -1
	err = m.do("create", func() (err error) {
		fd, err = openat(dirfd, name, flags|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, mode)
		return err
	})
	return fd, err
}

// Tmpfile opens an unnamed file in dirfd (O_TMPFILE).
func (m *Mutator) Tmpfile(dirfd int, flags int, mode uint32) (fd int, err error) {
	fd = -1
	err = m.do("tmpfile", func() (err error) {
		fd, err = openat(dirfd, ".", flags|unix.O_TMPFILE, mode)
		return err
	})
	return fd, err
}

// Mkdir makes a directory.
func (m *Mutator) Mkdir(dirfd int, name string, mode uint32) error {
	return m.do("mkdir", func() error { return nameCall(unix.SYS_MKDIRAT, dirfd, name, uintptr(mode)) })
}

// Mknod makes a node of any type but directory and symlink.
func (m *Mutator) Mknod(dirfd int, name string, mode uint32, rdev uint64) error {
	return m.do("mknod", func() error { return unix.Mknodat(dirfd, name, mode, int(rdev)) })
}

// Symlink makes a symlink.
func (m *Mutator) Symlink(target string, dirfd int, name string) error {
	return m.do("symlink", func() error { return unix.Symlinkat(target, dirfd, name) })
}

// Link gives an existing entry a second name.
func (m *Mutator) Link(odirfd int, oname string, ndirfd int, nname string) error {
	return m.do("link", func() error { return twoNames(unix.SYS_LINKAT, odirfd, oname, ndirfd, nname, 0) })
}

// LinkFD gives the file behind fd, an O_TMPFILE one included, a name.
func (m *Mutator) LinkFD(fd int, dirfd int, name string) error {
	return m.do("linkfd", func() error {
		// AT_EMPTY_PATH wants CAP_DAC_READ_SEARCH in the initial user namespace before Linux 6.10, and answers
		// ENOENT without; the magic link of procfs does not.
		err := twoNames(unix.SYS_LINKAT, fd, "", dirfd, name, unix.AT_EMPTY_PATH)
		if errors.Is(err, unix.ENOENT) {
			err = unix.Linkat(unix.AT_FDCWD, ProcPath(fd), dirfd, name, unix.AT_SYMLINK_FOLLOW)
		}
		return err
	})
}

// Rename is renameat2(2). On a file system that takes no flags, RENAME_NOREPLACE is a look at the new name and then a rename without:
// what another process makes there in between is replaced, if rename(2) can.
func (m *Mutator) Rename(odirfd int, oname string, ndirfd int, nname string, flags uint) error {
	return m.do("rename", func() error {
		err := m.TryRename(odirfd, oname, ndirfd, nname, flags)
		if flags != unix.RENAME_NOREPLACE || !errors.Is(err, unix.EINVAL) {
			return err
		}
		var st unix.Statx_t
		switch err := Statx(ndirfd, nname, &st); {
		case err == nil:
			return unix.EEXIST
		case !errors.Is(err, unix.ENOENT):
			return err
		}
		return m.TryRename(odirfd, oname, ndirfd, nname, 0)
	})
}

// TryRename is Rename that shows what the file system can: without Hook, and with its own answer to flags.
func (m *Mutator) TryRename(odirfd int, oname string, ndirfd int, nname string, flags uint) error {
	if m != nil && m.NoRenameFlags && flags != 0 {
		return unix.EINVAL
	}
	return twoNames(unix.SYS_RENAMEAT2, odirfd, oname, ndirfd, nname, uintptr(flags))
}

// Unlink removes an entry that is no directory.
func (m *Mutator) Unlink(dirfd int, name string) error {
	return m.do("unlink", func() error { return nameCall(unix.SYS_UNLINKAT, dirfd, name, 0) })
}

// Rmdir removes an empty directory.
func (m *Mutator) Rmdir(dirfd int, name string) error {
	return m.do("rmdir", func() error { return nameCall(unix.SYS_UNLINKAT, dirfd, name, unix.AT_REMOVEDIR) })
}

// Chmod changes the mode of name below dirfd, or of dirfd itself when name is empty.
func (m *Mutator) Chmod(dirfd int, name string, mode uint32) error {
	return m.do("chmod", func() error {
		if name == "" {
			err := unix.Fchmod(dirfd, mode)
			if err != unix.EBADF {
				return err
			}
			return unix.Chmod(ProcPath(dirfd), mode)
		}
		name, empty := unlessSelf(name)
		var buf nameBuf
		p, err := buf.cstring(name)
		if err != nil {
			return err
		}
		_, _, e := unix.Syscall6(unix.SYS_FCHMODAT2, uintptr(dirfd), uintptr(unsafe.Pointer(p)), uintptr(mode),
			unix.AT_SYMLINK_NOFOLLOW|empty, 0, 0)
		if e != unix.ENOSYS && e != unix.EPERM {
			return errnoErr(e)
		}
		if empty != 0 {
			return unix.Chmod(ProcPath(dirfd), mode)
		}
		// Before Linux 6.6, or filtered: through an O_PATH descriptor, which cannot be a followed symlink.
		fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Chmod(ProcPath(fd), mode)
	})
}

// Chown changes the owner of name below dirfd, or of dirfd itself when name is empty; -1 leaves an id alone.
func (m *Mutator) Chown(dirfd int, name string, uid, gid int) error {
	return m.do("chown", func() error {
		name, _ := unlessSelf(name)
		var buf nameBuf
		p, err := buf.cstring(name)
		if err != nil {
			return err
		}
		_, _, e := unix.Syscall6(unix.SYS_FCHOWNAT, uintptr(dirfd), uintptr(unsafe.Pointer(p)), uintptr(uid), uintptr(gid),
			unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH, 0)
		return errnoErr(e)
	})
}

// Utimes sets access and modification time of name below dirfd, or of the open file dirfd when name is empty.
func (m *Mutator) Utimes(dirfd int, name string, atime, mtime unix.Timespec) error {
	return m.do("utimes", func() error {
		ts := [2]unix.Timespec{atime, mtime}
		if name == "." {
			return unix.UtimesNanoAt(dirfd, "", ts[:], unix.AT_EMPTY_PATH)
		}
		if name != "" {
			return unix.UtimesNanoAt(dirfd, name, ts[:], unix.AT_SYMLINK_NOFOLLOW)
		}
		_, _, e := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(dirfd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
		if e == unix.EBADF {
			return unix.UtimesNanoAt(unix.AT_FDCWD, ProcPath(dirfd), ts[:], 0)
		}
		return errnoErr(e)
	})
}

// Setxattr sets an attribute of name below dirfd, or of dirfd itself when name is empty.
func (m *Mutator) Setxattr(dirfd int, name, attr string, value []byte, flags int) error {
	return m.do("setxattr", func() error {
		if name == "" {
			err := unix.Fsetxattr(dirfd, attr, value, flags)
			if err != unix.EBADF {
				return err
			}
			return unix.Setxattr(ProcPath(dirfd), attr, value, flags)
		}
		if !hasXattrat() {
			return unix.Lsetxattr(entryPath(dirfd, name), attr, value, flags)
		}
		var buf nameBuf
		p, err := buf.cstring(name)
		if err != nil {
			return err
		}
		var attrBuf nameBuf
		a, err := attrBuf.cstring(attr)
		if err != nil {
			return err
		}
		args := xattrArgs{value: uint64(uintptr(bufPtr(value))), size: uint32(len(value)), flags: uint32(flags)}
		_, _, e := unix.Syscall6(unix.SYS_SETXATTRAT, uintptr(dirfd), uintptr(unsafe.Pointer(p)),
			unix.AT_SYMLINK_NOFOLLOW, uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
		keepAlive(value)
		if e == unix.EACCES && name == "." {
			return unix.Lsetxattr(entryPath(dirfd, name), attr, value, flags)
		}
		return errnoErr(e)
	})
}

// Removexattr removes an attribute of name below dirfd, or of dirfd itself when name is empty.
func (m *Mutator) Removexattr(dirfd int, name, attr string) error {
	return m.do("removexattr", func() error {
		if name == "" {
			err := unix.Fremovexattr(dirfd, attr)
			if err != unix.EBADF {
				return err
			}
			return unix.Removexattr(ProcPath(dirfd), attr)
		}
		if !hasXattrat() {
			return unix.Lremovexattr(entryPath(dirfd, name), attr)
		}
		var buf nameBuf
		p, err := buf.cstring(name)
		if err != nil {
			return err
		}
		var attrBuf nameBuf
		a, err := attrBuf.cstring(attr)
		if err != nil {
			return err
		}
		_, _, e := unix.Syscall6(unix.SYS_REMOVEXATTRAT, uintptr(dirfd), uintptr(unsafe.Pointer(p)),
			unix.AT_SYMLINK_NOFOLLOW, uintptr(unsafe.Pointer(a)), 0, 0)
		if e == unix.EACCES && name == "." {
			return unix.Lremovexattr(entryPath(dirfd, name), attr)
		}
		return errnoErr(e)
	})
}

// Truncate sets the size of an open file.
func (m *Mutator) Truncate(fd int, size int64) error {
	return m.do("truncate", func() error { return unix.Ftruncate(fd, size) })
}

// Fallocate is fallocate(2).
func (m *Mutator) Fallocate(fd int, mode uint32, off, length int64) error {
	return m.do("fallocate", func() error { return unix.Fallocate(fd, mode, off, length) })
}

// Pwrite writes p at off, once: a short write is returned as such.
func (m *Mutator) Pwrite(fd int, p []byte, off int64) (int, error) {
	if err := m.hook("write"); err != nil {
		return 0, err
	}
	for {
		n, err := unix.Pwrite(fd, p, off)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// CopyRange is copy_file_range(2) at the given offsets, once.
func (m *Mutator) CopyRange(src int, soff int64, dst int, doff int64, length int) (int, error) {
	if err := m.hook("copy_file_range"); err != nil {
		return 0, err
	}
	for {
		n, err := unix.CopyFileRange(src, &soff, dst, &doff, length, 0)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// Clone makes dst share all of src's data (FICLONE).
func (m *Mutator) Clone(dst, src int) error {
	return m.do("clone", func() error { return unix.IoctlFileClone(dst, src) })
}

// Fsync flushes an open file.
func (m *Mutator) Fsync(fd int) error {
	return m.do("fsync", func() error { return unix.Fsync(fd) })
}

// Fdatasync flushes the data of an open file, and of its attributes those without which it can't be read.
func (m *Mutator) Fdatasync(fd int) error {
	return m.do("fdatasync", func() error { return unix.Fdatasync(fd) })
}

// Syncfs flushes the file system that fd lies on.
func (m *Mutator) Syncfs(fd int) error {
	return m.do("syncfs", func() error { return unix.Syncfs(fd) })
}

// SetFlags sets the inode flags of an open file (FS_IOC_SETFLAGS).
func (m *Mutator) SetFlags(fd int, flags uint32) error {
	return m.do("setflags", func() error { return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags)) })
}

// SetFSXattr sets the extended flags of an open file (FS_IOC_FSSETXATTR).
func (m *Mutator) SetFSXattr(fd int, x FSXattr) error {
	return m.do("setfsxattr", func() error { return ioctlPtr(fd, fsIocFSSetXattr, unsafe.Pointer(&x)) })
}
