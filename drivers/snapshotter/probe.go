package snapshotter

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"plyfs/drivers"
	"plyfs/layerdb"
)

// mayUnpack says whether containerd can write layers in the form of the kernel's overlayfs, with device nodes and trusted attributes:
// as root of the machine only, and not on every file system.
func mayUnpack(store *layerdb.Store) (bool, error) {
	if os.Geteuid() != 0 || drivers.UserNamespace().Nested {
		return false, nil
	}
	return takesOverlayForm(store.TempDir())
}

// takesOverlayForm says whether files beneath dir may have the marks of an overlay's layers: trusted attributes, and whiteouts, which
// the kernel refuses beneath an overlay. It tries both.
func takesOverlayForm(dir string) (ok bool, err error) {
	probe, err := os.MkdirTemp(dir, "probe-")
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(probe)) }()
	return unix.Setxattr(probe, "trusted.plyfs.probe", []byte{'y'}, 0) == nil &&
		unix.Mknod(filepath.Join(probe, "whiteout"), unix.S_IFCHR, int(unix.Mkdev(0, 0))) == nil, nil
}
