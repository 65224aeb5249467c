package layerdir

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/drivers"
	"plyfs/internal/sys"
)

// RemoveTree deletes name in dirfd and all beneath it; what is not there is no error. It follows no symlink, enters no
// other mount (what is mounted in the tree is detached), takes immutable flags away, and needs two descriptors however
// deep the tree is. It ends early with ctx's error. The tree must be nobody else's.
func RemoveTree(ctx context.Context, dirfd int, name string) error {
	r := remover{ctx: ctx, base: dirfd, cur: dirfd}
	defer func() {
		if r.cur != dirfd {
			unix.Close(r.cur)
		}
	}()
	if err := r.run(name); err != nil {
		return fmt.Errorf("delete %s: %w", r.where(name), err)
	}
	return nil
}

// remover walks a tree depth first with one descriptor, that of the directory it is in.
type remover struct {
	ctx       context.Context
	base, cur int
	stack     []pending // the directories from base to cur
}

// pending is a directory that is being emptied.
type pending struct {
	name     string
	dev, ino uint64
	dirs     []string // those in it that are not empty
}

func (r *remover) where(name string) string {
	var b strings.Builder
	for _, p := range r.stack {
		b.WriteString(p.name + "/")
	}
	if len(r.stack) > 0 {
		return strings.TrimSuffix(b.String(), "/")
	}
	return name
}

func (r *remover) run(name string) error {
	left, err := r.drop(name, unix.DT_UNKNOWN)
	if err != nil || !left {
		return err
	}
	if err := r.enter(name); err != nil {
		return err
	}
	for len(r.stack) > 0 {
		top := &r.stack[len(r.stack)-1]
		if n := len(top.dirs); n > 0 {
			next := top.dirs[n-1]
			top.dirs = top.dirs[:n-1]
			if err := r.enter(next); err != nil {
				return err
			}
			continue
		}
		if err := r.leave(); err != nil {
			return err
		}
	}
	return nil
}

// drop deletes an entry of the current directory; left says that it is a directory that is not empty.
func (r *remover) drop(name string, kind uint8) (left bool, err error) {
	if kind != unix.DT_DIR {
		err = r.unlink(name, 0)
		// EPERM is what POSIX has for a directory, and what some file systems answer.
		if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
			return false, err
		}
	}
	switch err2 := r.unlink(name, unix.AT_REMOVEDIR); {
	case errors.Is(err2, unix.ENOTEMPTY) || errors.Is(err2, unix.EEXIST):
		return true, nil
	case errors.Is(err2, unix.ENOTDIR) && err != nil:
		return false, err
	default:
		return false, err2
	}
}

// unlink takes out of the way what can be: mounts and inode flags.
func (r *remover) unlink(name string, flags int) error {
	for try := 0; ; try++ {
		err := sys.Retry(func() error { return unix.Unlinkat(r.cur, name, flags) })
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return nil
		case try > 16:
			return err
		case errors.Is(err, unix.EBUSY):
			if derr := r.detach(name); derr != nil {
				return fmt.Errorf("%s: something is mounted on it: %w: %w", name, drivers.ErrInUse, derr)
			}
		case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
			if !r.unprotect(name) {
				return err
			}
		default:
			return err
		}
	}
}

func (r *remover) detach(name string) error {
	return unix.Unmount(sys.ProcPath(r.cur)+"/"+name, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
}

// unprotect takes immutable and append-only flags from the current directory and from name, and gives the directory to
// its owner's hands. It says whether it changed anything.
func (r *remover) unprotect(name string) (changed bool) {
	changed = clearFlags(r.cur)
	fd, err := sys.Openat(r.cur, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err == nil {
		changed = clearFlags(fd) || changed
		unix.Close(fd)
	}
	var st unix.Stat_t
	if unix.Fstat(r.cur, &st) == nil && st.Mode&0o700 != 0o700 && unix.Fchmod(r.cur, 0o700) == nil {
		changed = true
	}
	return changed
}

func clearFlags(fd int) bool {
	const protected = unix.STATX_ATTR_IMMUTABLE | unix.STATX_ATTR_APPEND // the same bits as FS_IMMUTABLE_FL | FS_APPEND_FL
	flags, err := sys.GetFlags(fd)
	if err != nil || flags&protected == 0 {
		return false
	}
	var m *sys.Mutator
	return m.SetFlags(fd, flags&^protected) == nil
}

// enter goes into a directory and deletes all in it that is not a directory with something in it.
func (r *remover) enter(name string) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	fd, err := r.open(name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return err
	}
	if r.cur != r.base {
		unix.Close(r.cur)
	}
	r.cur = fd
	r.stack = append(r.stack, pending{name: name, dev: st.Dev, ino: st.Ino})
	var all []layer.RawDirent
	err = layer.List(fd, func(e layer.RawDirent) error {
		all = append(all, e)
		return nil
	})
	if err != nil {
		return err
	}
	top := &r.stack[len(r.stack)-1]
	for i, e := range all {
		if i%256 == 0 && r.ctx.Err() != nil {
			return r.ctx.Err()
		}
		left, err := r.drop(e.Name, e.Type)
		if err != nil {
			return fmt.Errorf("%s: %w", e.Name, err)
		}
		if left {
			top.dirs = append(top.dirs, e.Name)
		}
	}
	return nil
}

// open opens a directory of the same mount.
func (r *remover) open(name string) (fd int, err error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	for try := 0; ; try++ {
		err = sys.Retry(func() error {
			fd, err = unix.Openat2(r.cur, name, &how)
			return err
		})
		switch {
		case err == nil || try > 16:
			return fd, err
		case errors.Is(err, unix.EXDEV):
			if derr := r.detach(name); derr != nil {
				return -1, fmt.Errorf("%s: something is mounted on it: %w: %w", name, drivers.ErrInUse, derr)
			}
		case errors.Is(err, unix.EAGAIN):
		case errors.Is(err, unix.EACCES):
			var m *sys.Mutator
			if cerr := m.Chmod(r.cur, name, 0o700); cerr != nil {
				return -1, err
			}
		default:
			return -1, err
		}
	}
}

// leave goes up and deletes the directory that was left, which is empty.
func (r *remover) leave() error {
	top := r.stack[len(r.stack)-1]
	r.stack = r.stack[:len(r.stack)-1]
	up := r.base
	if n := len(r.stack); n > 0 {
		fd, err := sys.Openat(r.cur, "..", unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return fmt.Errorf("%s/..: %w", top.name, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Dev != r.stack[n-1].dev || st.Ino != r.stack[n-1].ino {
			unix.Close(fd)
			return fmt.Errorf("%s was moved while it was deleted: %w", top.name, drivers.ErrInUse)
		}
		up = fd
	}
	unix.Close(r.cur)
	r.cur = up
	return r.unlink(top.name, unix.AT_REMOVEDIR)
}
