package layerdb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"sync"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/tarlayer"
	"plyfs/drivers"
	"plyfs/internal/sys"
)

// moveContainer makes the container anew, and applies to it what was changed. What the stream of that can't hold is carried
// beside it, and where that can't be, the container is not moved.
func (m *migration) moveContainer(ctx context.Context, w work, c Container) (err error) {
	if err := m.dst.CreateReadWrite(ctx, w.ID, w.Parent, c.createOptions()); err != nil {
		return err
	}
	from, err := m.store.drv.Get(ctx, c.ID, &drivers.GetOptions{Any: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.store.drv.Put(context.WithoutCancel(ctx), c.ID)) }()
	root, err := m.dst.Get(ctx, w.ID, &drivers.GetOptions{MountLabel: c.MountLabel})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.dst.Put(context.WithoutCancel(ctx), w.ID)) }()
	var lost leftOut
	if err := m.applyChanges(ctx, w, root, &lost); err != nil {
		return err
	}
	old, _, err := drivers.OpenBare(from)
	if err != nil {
		return err
	}
	defer old.Close()
	src := tarlayer.NewDirSource(old, tarlayer.DirOptions{})
	defer src.Close()
	sockets, err := lost.sockets(src)
	if err != nil {
		return err
	}
	if err := copyRoot(ctx, root, src); err != nil {
		return fmt.Errorf("the root: %w", err)
	}
	return makeSockets(root, src, sockets)
}

// applyChanges applies what the container changed to the new one, whose root is that.
func (m *migration) applyChanges(ctx context.Context, w work, root string, lost *leftOut) (err error) {
	diff, err := m.store.differ.Diff(ctx, w.ID, w.Parent, &drivers.DiffOptions{
		Times: tarlayer.TimeNanoseconds, KeepTrusted: true, Note: lost.note,
	})
	if err != nil {
		return err
	}
	_, err = drivers.Unpack(ctx, root, diff, &drivers.ApplyOptions{KeepTrusted: true, Note: lost.note})
	return errors.Join(err, diff.Close())
}

// leftOut is what a stream could not hold, or the new driver not take.
type leftOut struct {
	mu   sync.Mutex
	list []leftPath
}

type leftPath struct{ path, reason string }

func (l *leftOut) note(path, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, leftPath{path, reason})
}

// sockets are the paths that were left out, if all are of sockets. Else the error wraps drivers.ErrNotSupported and names
// the first.
func (l *leftOut) sockets(src tarlayer.Source) (paths []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, left := range l.list {
		at, err := src.Lstat(left.path)
		if err != nil || at.Mode&unix.S_IFMT != unix.S_IFSOCK {
			return nil, fmt.Errorf("/%s would be lost (%s); remove or rename it: %w", left.path, left.reason, drivers.ErrNotSupported)
		}
		paths = append(paths, left.path)
	}
	return paths, nil
}

// rootAlone is the Tree of a root without what is in it.
type rootAlone struct{ tarlayer.Source }

// ReadDir implements tarlayer.Tree.
func (rootAlone) ReadDir(string) ([]string, error) { return nil, nil }

// copyRoot gives root, which was made of the parent's, what the container changed of its own.
func copyRoot(ctx context.Context, root string, src tarlayer.Source) error {
	var b bytes.Buffer
	var lost leftOut
	if err := tarlayer.WriteAll(ctx, &b, rootAlone{src}, tarlayer.WriteOptions{
		Times: tarlayer.TimeNanoseconds, KeepTrusted: true, Note: lost.note,
	}); err != nil {
		return err
	}
	if _, err := drivers.Unpack(ctx, root, &b, &drivers.ApplyOptions{KeepTrusted: true, Note: lost.note}); err != nil {
		return err
	}
	_, err := lost.sockets(src)
	return err
}

// makeSockets makes sockets as src has them: names, to which nobody listens any more.
func makeSockets(root string, src tarlayer.Source, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	to, _, err := drivers.OpenBare(root)
	if err != nil {
		return err
	}
	defer to.Close()
	for _, p := range paths {
		if err := makeSocket(to, src, p); err != nil {
			return fmt.Errorf("socket /%s: %w", p, err)
		}
	}
	return nil
}

func makeSocket(to *layer.Layer, src tarlayer.Source, p string) error {
	dir, name := path.Split(p)
	dir = path.Clean("/" + dir)[1:]
	at, err := src.Lstat(p)
	if err != nil {
		return err
	}
	parent, err := src.Lstat(dir)
	if err != nil {
		return err
	}
	fd, err := to.OpenDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var direct *sys.Mutator
	return errors.Join(direct.Mknod(fd, name, at.Mode, 0), direct.Chown(fd, name, int(at.UID), int(at.GID)),
		direct.Chmod(fd, name, at.Mode&0o7777), direct.Utimes(fd, name, at.Mtime.Timespec(), at.Mtime.Timespec()),
		direct.Utimes(fd, ".", parent.Mtime.Timespec(), parent.Mtime.Timespec()))
}
