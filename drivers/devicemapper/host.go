package devicemapper

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/internal/sys"
)

// host is what the driver needs of the machine beside the device mapper; tests have one that they can look into.
type host interface {
	// attach makes a block device of a file, which ends with its last user; release is the end of this one's use.
	attach(file string) (dev uint64, release func() error, err error)
	// device describes the block device at path.
	device(path string) (blockDevice, error)
	// mkfs makes a file system on a device. features are those of ext4 to be added, or "".
	mkfs(dev uint64, fstype, features string, args []string) error
	// mount mounts a device's file system at target, an existing directory; unmount undoes it.
	mount(dev uint64, target, fstype, options string, flags uintptr) error
	unmount(target string) error
	// flush makes what was written to a device durable; discard gives back all of it.
	flush(dev uint64) error
	discard(dev uint64) error
	// adopt makes all that will be in the file system at dir, which is empty, belong to project layerProject.
	adopt(dir string) error
	// limit bounds what that project may have in addition to what it has; zero fields do not.
	limit(dir string, q drivers.Quota) error
	// used is what that project has.
	used(dir string) (drivers.Usage, error)
	// grow makes the file system mounted at dir as large as its device, which is size bytes long.
	grow(dir, fstype string, size uint64) error
}

// blockDevice is a device that the store may have for its pool.
type blockDevice struct {
	dev  uint64
	size uint64 // bytes
	// blank says that the beginning, where file systems, volume managers and pools have their marks, is zero.
	blank bool
}

type realHost struct{}

// blankBytes is how much of a device has to be zero for it to be blank: btrfs has its superblock at 64 KiB.
const blankBytes = 128 << 10

func (realHost) device(path string) (d blockDevice, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return d, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return d, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return d, fmt.Errorf("%s is no block device: %w", path, drivers.ErrInvalid)
	}
	d.dev = st.Rdev
	if d.size, err = sys.BlockSize(int(f.Fd())); err != nil {
		return d, fmt.Errorf("size of %s: %w", path, err)
	}
	head := make([]byte, min(blankBytes, d.size))
	if _, err := f.ReadAt(head, 0); err != nil {
		return d, err
	}
	d.blank = true
	for _, b := range head {
		d.blank = d.blank && b == 0
	}
	return d, nil
}

// mkfsCommand returns the command that makes a file system on the device at path.
func mkfsCommand(path, fstype, features string, args []string) []string {
	var cmd []string
	switch fstype {
	case fsXFS:
		// A new device is empty: nothing is to be discarded. It may have an earlier try on it.
		cmd = []string{"mkfs.xfs", "-q", "-f", "-K"}
	default:
		// What is initialised lazily would be so in each layer anew. A new block of the pool may hold what was
		// deleted, so nothing can be assumed to be zero. The attributes of a file have to fit into a block, which
		// mkfs makes smaller for small file systems.
		cmd = []string{"mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"}
		if features != "" {
			cmd = append(cmd, "-O", features)
		}
	}
	return append(append(cmd, args...), path)
}

func (realHost) mkfs(dev uint64, fstype, features string, args []string) error {
	path, err := node(dev)
	if err != nil {
		return err
	}
	cmd := mkfsCommand(path, fstype, features, args)
	out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%w (install %s): %w", err, mkfsPackage(fstype), drivers.ErrPrerequisites)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

func mkfsPackage(fstype string) string {
	if fstype == fsXFS {
		return "xfsprogs"
	}
	return "e2fsprogs"
}

func (realHost) mount(dev uint64, target, fstype, options string, flags uintptr) error {
	path, err := node(dev)
	if err != nil {
		return err
	}
	err = sys.Retry(func() error { return unix.Mount(path, target, fstype, flags, options) })
	if err != nil {
		return fmt.Errorf("mount %s (%s, %s) at %s: %w", path, fstype, options, target, err)
	}
	if fstype == fsXFS {
		dontRetry(dev)
	}
	return nil
}

// dontRetry has xfs give up what it can't write because the pool is full: it would try for ever, and could not be
// unmounted. Where /sys is read-only or of another namespace, that stays so.
func dontRetry(dev uint64) {
	for _, errno := range []string{"ENOSPC", "EIO"} {
		path := "/sys/fs/xfs/" + blockName(dev) + "/error/metadata/" + errno + "/max_retries"
		_ = os.WriteFile(path, []byte("0"), 0)
	}
}

func (realHost) unmount(target string) error {
	return sys.Retry(func() error { return unix.Unmount(target, unix.UMOUNT_NOFOLLOW) })
}

func (realHost) flush(dev uint64) error {
	return withDevice(dev, os.O_RDONLY, func(f *os.File) error { return f.Sync() })
}

func (realHost) discard(dev uint64) error {
	return withDevice(dev, os.O_RDWR, func(f *os.File) error {
		size, err := sys.BlockSize(int(f.Fd()))
		if err == nil {
			err = sys.BlockDiscard(int(f.Fd()), 0, size)
		}
		return err
	})
}

// withDevice calls fn with a device that is open.
func withDevice(dev uint64, flags int, fn func(*os.File) error) error {
	path, err := node(dev)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return err
	}
	if err := fn(f); err != nil {
		err = fmt.Errorf("%s: %w", path, err)
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

func (realHost) grow(dir, fstype string, size uint64) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	if fstype == fsXFS {
		err = sys.GrowXFS(int(f.Fd()), size)
	} else {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
			return err
		}
		err = sys.GrowExt4(int(f.Fd()), size/uint64(st.Bsize))
	}
	if err != nil {
		return fmt.Errorf("grow the %s at %s to %d bytes: %w", fstype, dir, size, err)
	}
	return nil
}
