package drivers

import (
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/internal/sys"
)

// OpenBare opens the directory root as it is without what is mounted beneath it: what bind mounts and volumes hide
// shows. Where that takes a privilege that is missing, foreign is not nil, and says of a path beneath root whether it
// belongs to what is mounted there. No attribute is taken for an override: see layer.OpenPlain. The caller closes the Layer; foreign is not called after that.
func OpenBare(root string) (l *layer.Layer, foreign func(path string) bool, err error) {
	fd, err := cloneWithoutMounts(root)
	if err != nil {
		if l, err = layer.OpenPlain(root); err != nil {
			return nil, nil, err
		}
		return l, onOtherMount(l), nil
	}
	defer unix.Close(fd)
	if l, err = layer.OpenPlain(sys.ProcPath(fd)); err != nil {
		return nil, nil, fmt.Errorf("open %s without its mounts: %w", root, err)
	}
	return l, nil, nil
}

// cloneWithoutMounts returns a descriptor of a copy of root's mount in which nothing is mounted: what bind mounts and
// volumes hide shows again. It wants CAP_SYS_ADMIN over the mount namespace; EINVAL says that another user's mounts
// hide something there.
func cloneWithoutMounts(root string) (fd int, err error) {
	err = sys.Retry(func() error {
		fd, err = unix.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		return err
	})
	return fd, err
}

// onOtherMount returns what says of a path beneath root whether it, or the nearest directory above it that exists, is
// on another mount than root. A path that cannot be looked at is not: what comes of it is reported where it is read.
func onOtherMount(root *layer.Layer) func(path string) bool {
	want, known := mountID(root.FD(), "")
	return func(p string) bool {
		if !known {
			return false
		}
		for ; p != "." && p != "/"; p = path.Dir(p) {
			if id, ok := mountID(root.FD(), p); ok {
				return id != want
			}
		}
		return false
	}
}

func mountID(dirfd int, path string) (id uint64, ok bool) {
	// Resolved beneath the root, by openat2: statx alone would follow symlinks of the container on the way.
	fd, err := sys.OpenBeneath(dirfd, path, unix.O_PATH)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil ||
		st.Mask&unix.STATX_MNT_ID == 0 {
		return 0, false
	}
	return st.Mnt_id, true
}

// withoutForeign drops the changes that are not the layer's: what is mounted on top is not in it, and what that hides
// cannot be told to have changed.
func withoutForeign(list []tarlayer.Change, foreign func(path string) bool) []tarlayer.Change {
	if foreign == nil {
		return list
	}
	return slices.DeleteFunc(list, func(c tarlayer.Change) bool { return foreign(c.Path) })
}
