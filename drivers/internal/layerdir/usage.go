package layerdir

import (
	"context"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/drivers"
	"plyfs/internal/sys"
)

// Usage adds up what the tree at dir takes up, dir itself included: allocated blocks, and inodes, a file with several
// names once. It enters no other mount, and ends early with ctx's error.
func Usage(ctx context.Context, dir string) (u drivers.Usage, err error) {
	root, err := layer.OpenPlain(dir)
	if err != nil {
		return u, err
	}
	defer root.Close()
	w := usageWalk{root: root, seen: make(map[inode]bool)}
	var st unix.Statx_t
	if err := statMount(root.FD(), "", &st); err != nil {
		return u, fmt.Errorf("%s: %w", dir, err)
	}
	w.mount = st.Mnt_id
	w.count(&st)
	for w.todo = []string{""}; len(w.todo) > 0; {
		p := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		if err := ctx.Err(); err != nil {
			return u, err
		}
		if err := w.dir(p); err != nil {
			return u, fmt.Errorf("%s: %w", path.Join(dir, p), err)
		}
	}
	return w.sum, nil
}

type inode struct{ dev, ino uint64 }

type usageWalk struct {
	root  *layer.Layer
	mount uint64
	seen  map[inode]bool
	todo  []string
	sum   drivers.Usage
}

func (w *usageWalk) dir(p string) error {
	fd, err := w.root.OpenDir(p)
	if errors.Is(err, unix.ENOENT) && p != "" {
		return nil // it went since it was listed
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return layer.List(fd, func(e layer.RawDirent) error {
		var st unix.Statx_t
		err := statMount(fd, e.Name, &st)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
		if st.Mnt_id != w.mount {
			return nil
		}
		w.count(&st)
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			w.todo = append(w.todo, path.Join(p, e.Name))
		}
		return nil
	})
}

func (w *usageWalk) count(st *unix.Statx_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		id := inode{sys.Dev(st), st.Ino}
		if w.seen[id] {
			return
		}
		w.seen[id] = true
	}
	w.sum.Bytes += int64(st.Blocks) * 512
	w.sum.Inodes++
}

func statMount(dirfd int, name string, st *unix.Statx_t) error {
	flags := unix.AT_SYMLINK_NOFOLLOW
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return sys.Retry(func() error {
		return unix.Statx(dirfd, name, flags, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, st)
	})
}
