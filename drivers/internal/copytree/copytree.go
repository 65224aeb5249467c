// Package copytree copies directory trees whole: owners, modes, times to the nanosecond, extended attributes with ACLs
// and file capabilities among them, hard links, holes, device nodes, fifos and sockets. Data is shared where the file
// system can (FICLONE).
//
// A copy needs a handful of descriptors, however deep the tree is, and follows no symlink in it. The tree that is
// copied must not be changed meanwhile, the other one must be nobody else's. The package has no state and no locks.
package copytree

import (
	"context"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"plyfs/cow"
	"plyfs/cow/layer"
	"plyfs/internal/sys"
)

// Options say how a tree is copied; the zero value copies everything.
type Options struct {
	// Skip leaves out the content of directories, and other entries whole, for which it returns true; nil keeps all. Paths
	// are relative to the root.
	Skip func(path string) bool
	// Mutator makes the changes; nil for direct calls.
	Mutator *sys.Mutator
}

// Copy makes the directory dst, which is empty, equal to src, its own attributes included. It ends early with ctx's
// error. An error names the path relative to src, and leaves in dst what was copied so far.
func Copy(ctx context.Context, dst, src int, o Options) error {
	c := copier{ctx: ctx, o: o, m: o.Mutator, root: dst, links: make(map[inode]string)}
	defer c.close()
	return c.run(src)
}

type inode struct{ dev, ino uint64 }

// copier walks both trees in step, depth first, with one descriptor in each.
type copier struct {
	ctx   context.Context
	o     Options
	m     *sys.Mutator
	root  int // of the copy; the caller's
	data  cow.Copier
	links map[inode]string // the path of the first name of files with several

	src, dst int
	stack    []dir
}

// dir is a directory that is being copied.
type dir struct {
	path     string
	from, to inode
	attr     unix.Statx_t
	dirs     []string // those in it that are still to be copied
}

func (c *copier) close() {
	if len(c.stack) > 0 {
		unix.Close(c.src)
		unix.Close(c.dst)
	}
}

func (c *copier) run(src int) error {
	from, err := sys.Reopen(src, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	to, err := sys.Reopen(c.root, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		unix.Close(from)
		return err
	}
	if err := c.push("", from, to); err != nil {
		return err
	}
	for len(c.stack) > 0 {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		top := &c.stack[len(c.stack)-1]
		if n := len(top.dirs); n > 0 {
			name := top.dirs[n-1]
			top.dirs = top.dirs[:n-1]
			err = c.enter(name, path.Join(top.path, name))
		} else {
			err = c.leave()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func pathError(p string, err error) error { return fmt.Errorf("copy %q: %w", "/"+p, err) }

// push goes into a pair of directories, which it owns from then on, and copies what is not a directory.
func (c *copier) push(p string, from, to int) error {
	d := dir{path: p}
	var st unix.Statx_t
	err := errors.Join(sys.Statx(from, "", &d.attr), sys.Statx(to, "", &st))
	if err != nil {
		unix.Close(from)
		unix.Close(to)
		return pathError(p, err)
	}
	d.from, d.to = inode{sys.Dev(&d.attr), d.attr.Ino}, inode{sys.Dev(&st), st.Ino}
	if len(c.stack) > 0 {
		unix.Close(c.src)
		unix.Close(c.dst)
	}
	c.src, c.dst = from, to
	c.stack = append(c.stack, d)
	if c.o.Skip != nil && p != "" && c.o.Skip(p) {
		return nil
	}
	var names []string
	err = layer.List(from, func(e layer.RawDirent) error {
		names = append(names, e.Name)
		return nil
	})
	if err != nil {
		return pathError(p, err)
	}
	top := &c.stack[len(c.stack)-1]
	for i, name := range names {
		if i%64 == 0 && c.ctx.Err() != nil {
			return c.ctx.Err()
		}
		child := path.Join(p, name)
		isDir, err := c.entry(name, child)
		if err != nil {
			return pathError(child, err)
		}
		if isDir {
			top.dirs = append(top.dirs, name)
		}
	}
	return nil
}

// enter makes the directory name in the current one and goes into it. Its attributes follow when it is left: until then
// nothing that is made in it inherits a group or an ACL.
func (c *copier) enter(name, p string) error {
	if err := c.m.Mkdir(c.dst, name, 0o700); err != nil {
		return pathError(p, err)
	}
	from, err := sys.Openat(c.src, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return pathError(p, err)
	}
	to, err := sys.Openat(c.dst, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		unix.Close(from)
		return pathError(p, err)
	}
	return c.push(p, from, to)
}

// leave gives the current directory its attributes and goes up.
func (c *copier) leave() error {
	top := c.stack[len(c.stack)-1]
	if err := c.attributes(c.src, "", c.dst, "", &top.attr); err != nil {
		return pathError(top.path, err)
	}
	n := len(c.stack) - 1
	if n == 0 {
		c.close()
		c.stack = nil
		return nil
	}
	from, err := parentOf(c.src, c.stack[n-1].from)
	if err != nil {
		return pathError(top.path, err)
	}
	to, err := parentOf(c.dst, c.stack[n-1].to)
	if err != nil {
		unix.Close(from)
		return pathError(top.path, err)
	}
	unix.Close(c.src)
	unix.Close(c.dst)
	c.src, c.dst, c.stack = from, to, c.stack[:n]
	return nil
}

// parentOf opens the directory above fd, which has to be the one that the walk came from.
func parentOf(fd int, want inode) (int, error) {
	up, err := sys.Openat(fd, "..", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	var st unix.Statx_t
	if err := sys.Statx(up, "", &st); err != nil {
		unix.Close(up)
		return -1, err
	}
	if got := (inode{sys.Dev(&st), st.Ino}); got != want {
		unix.Close(up)
		return -1, fmt.Errorf("directory was moved while it was copied: %w", unix.ESTALE)
	}
	return up, nil
}
