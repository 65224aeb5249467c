package btrfs

import (
	"context"
	"errors"
	"path"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/drivers"
	"plyfs/internal/sys"
)

// usageByWalk counts the files of a layer that its parent has not, at the same path, as they are.
func (d *Driver) usageByWalk(ctx context.Context, id, parent string) (u drivers.Usage, err error) {
	root, err := layer.OpenPlain(d.rootPath(id))
	if err != nil {
		return u, err
	}
	defer root.Close()
	base := -1
	if parent != "" {
		// Without the parent, which may have been removed, all counts.
		if fd, err := openDir(unix.AT_FDCWD, d.rootPath(parent)); err == nil {
			defer unix.Close(fd)
			base = fd
		}
	}
	seen := make(map[uint64]bool)
	for todo := []string{""}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if err := ctx.Err(); err != nil {
			return u, err
		}
		subdirs, err := countDir(root.FD(), base, dir, seen, &u)
		if err != nil {
			return u, err
		}
		todo = append(todo, subdirs...)
	}
	return u, nil
}

// countDir adds what is in one directory to u, and returns the directories in it.
func countDir(root, base int, dir string, seen map[uint64]bool, u *drivers.Usage) (subdirs []string, err error) {
	fd, err := sys.OpenBeneath(root, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	baseFD := -1
	if base >= 0 {
		if f, err := sys.OpenBeneath(base, dir, unix.O_RDONLY|unix.O_DIRECTORY); err == nil {
			defer unix.Close(f)
			baseFD = f
		}
	}
	err = layer.List(fd, func(e layer.RawDirent) error {
		var st unix.Statx_t
		if err := sys.Statx(fd, e.Name, &st); err != nil {
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			return err
		}
		if uint32(st.Mode)&unix.S_IFMT == unix.S_IFDIR {
			subdirs = append(subdirs, path.Join(dir, e.Name))
		}
		if !seen[st.Ino] && !same(baseFD, e.Name, &st) {
			u.Inodes++
			u.Bytes += int64(st.Blocks) * 512
		}
		seen[st.Ino] = true
		return nil
	})
	return subdirs, err
}

// same says whether name in the open directory base is the inode that st tells of, unchanged: a snapshot keeps inode numbers and
// times.
func same(base int, name string, st *unix.Statx_t) bool {
	if base < 0 {
		return false
	}
	var old unix.Statx_t
	return sys.Statx(base, name, &old) == nil && old.Ino == st.Ino && old.Ctime == st.Ctime
}
