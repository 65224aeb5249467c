package layerdir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Scratch makes a directory in which a driver can try what it needs: beneath home, or the nearest directory above it
// that exists, so on the same file system. remove deletes it with all in it.
func Scratch(home string) (dir string, remove func() error, err error) {
	if !filepath.IsAbs(home) {
		return "", nil, fmt.Errorf("%q is not an absolute path", home)
	}
	at := filepath.Clean(home)
	for {
		if _, err = os.Stat(at); err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || at == "/" {
			return "", nil, err
		}
		at = filepath.Dir(at)
	}
	dir, err = os.MkdirTemp(at, stagePrefix+"probe-")
	if err != nil {
		return "", nil, err
	}
	remove = func() error {
		fd, err := unix.Open(at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return RemoveTree(context.Background(), fd, filepath.Base(dir))
	}
	return dir, remove, nil
}

// FSName is the name of the file system that path lies on, as mount(8) has it; a number for one that is not known here.
func FSName(path string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return "unknown"
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.XFS_SUPER_MAGIC:
		return "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		return "btrfs"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		return "overlay"
	case unix.FUSE_SUPER_MAGIC:
		return "fuse"
	case unix.NFS_SUPER_MAGIC:
		return "nfs"
	case unix.F2FS_SUPER_MAGIC:
		return "f2fs"
	case zfsMagic:
		return "zfs"
	case bcachefsMagic:
		return "bcachefs"
	}
	return fmt.Sprintf("%#x", uint32(st.Type))
}

// Not in golang.org/x/sys/unix.
const (
	zfsMagic      = 0x2fc12fc1
	bcachefsMagic = 0xca451a4e
)
