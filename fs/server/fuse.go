package server

import (
	"errors"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/fs/fusefs"
	"plyfs/internal/exit"
)

const fuseDevice = "/dev/fuse"

// checkTarget looks whether target can be mounted on, or is a descriptor that someone else mounted already.
func checkTarget(target string) error {
	if fd, ok := fusefs.PassedFD(target); ok {
		return checkDescriptor(target, fd)
	}
	var st unix.Stat_t
	err := unix.Stat(target, &st)
	switch {
	case err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return exit.Faultf(exit.Mount, "mount point %s is not a directory; give a directory", target)
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT):
		return exit.Faultf(exit.Mount, "mount point %s does not exist; create the directory, or correct the path", target)
	case errors.Is(err, unix.ENOTCONN):
		return exit.Faultf(exit.Mount, "the mount on %s lost its server; unmount it (plyfs umount %s) and try again", target, target)
	case errors.Is(err, unix.EACCES):
		return exit.Faultf(exit.Usage, "mount point %s: %s; the mounting user needs search permission on all directories above it",
			target, exit.Reason(err))
	}
	return exit.Faultf(exit.Mount, "mount point %s: %s; give an existing directory", target, exit.Reason(err))
}

func checkDescriptor(target string, fd int) error {
	// Documentation/admin-guide/devices.txt: 10 is misc, 229 fuse.
	fuse := unix.Mkdev(10, 229)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return exit.Faultf(exit.Usage, "mount point %s: %s; pass a /dev/fuse descriptor that is mounted already", target, exit.Reason(err))
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != fuse {
		return exit.Faultf(exit.Usage, "mount point %s: is not a /dev/fuse descriptor; pass one that is mounted already", target)
	}
	return nil
}

// checkFUSE looks whether this system can mount FUSE, as far as that can be told without mounting. Root needs to open the
// device, a plain user needs fusermount3, which is privileged to do so.
func checkFUSE(env environment) error {
	device, err := os.Stat(fuseDevice)
	switch {
	case err == nil && device.Mode()&os.ModeDevice == 0:
		return exit.Faultf(exit.System, "%s is not a device; remove it, and make it (mknod %s c 10 229)", fuseDevice, fuseDevice)
	case errors.Is(err, os.ErrNotExist) && !kernelHasFUSE():
		return exit.Faultf(exit.System, "no %s, and FUSE is not in the kernel; load the module (modprobe fuse)", fuseDevice)
	case errors.Is(err, os.ErrNotExist):
		return exit.Faultf(exit.System, "no %s here; in a container pass the device in (--device %s), else make it (mknod %s c 10 229)",
			fuseDevice, fuseDevice, fuseDevice)
	}
	if !env.root {
		if _, err := fusefs.HelperPath(); err != nil {
			return exit.Faultf(exit.System, "fusermount3 not found, without which only root can mount; install the package fuse3")
		}
		return nil
	}
	return openFUSE()
}

// openFUSE says what is wrong if this process can't open the device.
func openFUSE() error {
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return exit.Faultf(exit.System, "FUSE is not in the kernel (%s: %s); load the module (modprobe fuse)", fuseDevice, exit.Reason(err))
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return exit.Faultf(exit.Usage, "%s: %s; the device has to be readable and writable (mode 0666), and allowed to the container",
			fuseDevice, exit.Reason(err))
	}
	return exit.Faultf(exit.System, "%s: %s", fuseDevice, exit.Reason(err))
}

// UnmountHelper is the program through which a plain user unmounts.
func UnmountHelper() (string, error) { return fusefs.HelperPath() }

// kernelHasFUSE reports whether the file system type is known; true where that can't be told.
func kernelHasFUSE() bool {
	b, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return true
	}
	return slices.Contains(strings.Fields(string(b)), "fuse")
}

// mountFault classifies an error of the mount itself. What fusermount3 says is in its own words: it opens the device as the user who
// runs it, and mounts as root.
func mountFault(target string, err error, env environment) error {
	if !env.root {
		if denied := openFUSE(); denied != nil {
			return denied
		}
		if strings.Contains(err.Error(), "Operation not permitted") {
			return exit.Faultf(exit.Usage, "%v; it needs to be set-user-ID root, where that has effect (no no_new_privs); "+
				"else mount in a user namespace (unshare -Urm)", err)
		}
	}
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return exit.Faultf(exit.Usage, "%v; mount as root, in a user namespace of your own (unshare -Urm), or as a user through fusermount3", err)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENOENT):
		return exit.Faultf(exit.System, "%v", err)
	case errors.Is(err, unix.EBUSY):
		return exit.Faultf(exit.Mount, "%v; something is mounted on %s already", err, target)
	}
	return exit.Faultf(exit.Mount, "%v", err)
}
