package exerciser

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"plyfs/fs/union/uniontest"
)

// A Failure says where the tree departed from the model.
type Failure struct {
	// Index is the operation that showed it, len(ops) if only the check in the end did.
	Index int
	Err   error
}

func (f *Failure) Error() string { return fmt.Sprintf("operation %d: %v", f.Index, f.Err) }

// Unwrap returns what was wrong.
func (f *Failure) Unwrap() error { return f.Err }

// handle is a file that stays open.
type handle struct {
	f uniontest.File
	n *node
}

type runner struct {
	t     uniontest.Tree
	m     *model
	h     [handles]*handle
	mount bool // files can be mapped
}

// Run makes the operations on the tree, whose content at the beginning is taken as right, compares each result with the
// model, and in the end the whole tree, before and after a remount. It returns a *Failure for the first difference. The
// tree stays open.
func Run(t uniontest.Tree, ops []Op) error {
	m, err := load(t)
	if err != nil {
		return &Failure{0, err}
	}
	r := &runner{t: t, m: m, mount: t.Root() != ""}
	defer r.closeAll() //nolint:errcheck // a failure is being returned already
	for i, op := range ops {
		if err := r.do(op); err != nil {
			return &Failure{i, fmt.Errorf("%s: %w", op, err)}
		}
	}
	if err := r.remount(); err != nil {
		return &Failure{len(ops), fmt.Errorf("in the end: %w", err)}
	}
	return nil
}

func (r *runner) closeAll() error {
	var errs []error
	for i, h := range r.h {
		if h != nil {
			errs = append(errs, h.f.Close())
			r.h[i] = nil
		}
	}
	return errors.Join(errs...)
}

func (r *runner) remount() error {
	if err := r.m.compare(r.t); err != nil {
		return fmt.Errorf("before a remount: %w", err)
	}
	if err := r.closeAll(); err != nil {
		return err
	}
	if err := r.t.Remount(); err != nil {
		return err
	}
	if err := r.m.compare(r.t); err != nil {
		return fmt.Errorf("after a remount: %w", err)
	}
	return nil
}

// expect compares whether an operation was possible with whether the model says so.
func expect(possible bool, err error) error {
	if possible && err != nil {
		return fmt.Errorf("should be possible: %w", err)
	}
	if !possible && err == nil {
		return errors.New("should not be possible")
	}
	return nil
}

// do makes one operation.
func (r *runner) do(o Op) error {
	switch o.Kind {
	case Mkdir, Create, Symlink, Mkfifo, Tmpfile, Link, Unlink, Rmdir, Rename, RenameNoReplace, Exchange:
		return r.name(o)
	case Chmod, Chown, Utimens, Setxattr, Removexattr, Stat, List:
		return r.attribute(o)
	case OpenHandle, CloseHandle, HandleWrite, HandleRead, HandleTruncate:
		return r.handle(o)
	case Remount:
		return r.remount()
	}
	return r.data(o)
}

// name makes an operation that changes names.
func (r *runner) name(o Op) error {
	perm := uint32(0o600 | uint32(o.Seed)&0o177)
	switch o.Kind {
	case Mkdir:
		return expect(r.m.add(o.A, newNode(unix.S_IFDIR, perm|0o700)), r.t.Mkdir(o.A, perm|0o700))
	case Create:
		f, err := r.t.Open(o.A, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, perm)
		if err == nil {
			err = f.Close()
		}
		return expect(r.m.add(o.A, newNode(unix.S_IFREG, perm)), err)
	case Symlink:
		n := newNode(unix.S_IFLNK, 0o777)
		n.target = fmt.Sprintf("nowhere-%d", o.Seed)
		return expect(r.m.add(o.A, n), r.t.Symlink(n.target, o.A))
	case Mkfifo:
		return expect(r.m.add(o.A, newNode(unix.S_IFIFO, perm)), r.t.Mknod(o.A, unix.S_IFIFO|perm, 0))
	case Tmpfile:
		return r.tmpfile(o, perm)
	case Link:
		n := r.m.find(o.A)
		return expect(n != nil && n.kind != unix.S_IFDIR && r.m.add(o.B, n), r.t.Link(o.A, o.B))
	case Unlink:
		return expect(r.m.unlink(o.A), r.t.Unlink(o.A))
	case Rmdir:
		return expect(r.m.rmdir(o.A), r.t.Rmdir(o.A))
	case RenameNoReplace:
		return expect(r.m.rename(o.A, o.B, unix.RENAME_NOREPLACE), r.t.Rename(o.A, o.B, unix.RENAME_NOREPLACE))
	case Exchange:
		return expect(r.m.rename(o.A, o.B, unix.RENAME_EXCHANGE), r.t.Rename(o.A, o.B, unix.RENAME_EXCHANGE))
	}
	return expect(r.m.rename(o.A, o.B, 0), r.t.Rename(o.A, o.B, 0))
}

// tmpfile makes a file without a name in the root and gives it one.
func (r *runner) tmpfile(o Op, perm uint32) error {
	f, err := r.t.Open(".", unix.O_TMPFILE|unix.O_RDWR, perm)
	if err != nil {
		return err
	}
	n := newNode(unix.S_IFREG, perm)
	n.data = o.content(min(o.N, 1000))
	_, werr := f.WriteAt(n.data, 0)
	lerr := r.t.LinkFile(f, o.A)
	return errors.Join(werr, expect(r.m.add(o.A, n), lerr), f.Close())
}

// attribute makes an operation on what is known of an inode beside its data. Symlinks are left alone where calls follow
// them.
func (r *runner) attribute(o Op) error {
	n := r.m.find(o.A)
	if n != nil && n.kind == unix.S_IFLNK && o.Kind != Stat {
		return nil
	}
	perm := uint32(0o600 | uint32(o.Seed)&0o177)
	switch o.Kind {
	case Chmod:
		if n != nil {
			n.perm = perm
		}
		return expect(n != nil, r.t.Chmod(o.A, perm))
	case Chown:
		if n != nil {
			n.uid, n.gid = uint32(o.Seed), uint32(o.Handle)
		}
		return expect(n != nil, r.t.Chown(o.A, int(o.Seed), o.Handle))
	case Utimens:
		return expect(n != nil, r.t.Utimens(o.A, uniontest.Omit(), unix.Timespec{Sec: int64(o.Seed), Nsec: o.N}))
	case Setxattr, Removexattr:
		return r.xattr(o, n)
	case List:
		if n == nil || n.kind != unix.S_IFDIR {
			return nil
		}
		return r.list(o.A, n)
	}
	return r.stat(o.A, n)
}

func (r *runner) xattr(o Op, n *node) error {
	name := fmt.Sprintf("user.x%d", o.Handle)
	if n != nil && n.kind != unix.S_IFREG && n.kind != unix.S_IFDIR {
		return nil
	}
	if o.Kind == Setxattr {
		if n != nil {
			n.xattrs[name] = string(o.content(o.N % 200))
		}
		return expect(n != nil, r.t.Setxattr(o.A, name, o.content(o.N%200), 0))
	}
	possible := false
	if n != nil {
		_, possible = n.xattrs[name]
		delete(n.xattrs, name)
	}
	return expect(possible, r.t.Removexattr(o.A, name))
}

func (r *runner) stat(p string, n *node) error {
	st, err := r.t.Lstat(p)
	if err := expect(n != nil, err); err != nil || n == nil {
		return err
	}
	return checkStat(st, n)
}

func checkStat(st uniontest.Stat, n *node) error {
	if st.Mode != n.kind|n.perm || st.UID != n.uid || st.GID != n.gid {
		return fmt.Errorf("mode %o of %d:%d, want %o of %d:%d", st.Mode, st.UID, st.GID, n.kind|n.perm, n.uid, n.gid)
	}
	if n.kind != unix.S_IFDIR && st.Nlink != uint64(n.links) {
		return fmt.Errorf("link count %d, want %d", st.Nlink, n.links)
	}
	if n.kind == unix.S_IFREG && st.Size != int64(len(n.data)) {
		return fmt.Errorf("size %d, want %d", st.Size, len(n.data))
	}
	return nil
}

func (r *runner) list(p string, n *node) error {
	list, err := r.t.ReadDir(p)
	if err != nil {
		return err
	}
	seen := make(map[string]bool)
	for _, d := range list {
		if d.Name == "." || d.Name == ".." {
			continue
		}
		c := n.children[d.Name]
		if c == nil || seen[d.Name] || d.Type != c.kind {
			return fmt.Errorf("lists %s of type %o (again: %v)", d.Name, d.Type, seen[d.Name])
		}
		seen[d.Name] = true
	}
	if len(seen) != len(n.children) {
		return fmt.Errorf("lists %d entries, want %d", len(seen), len(n.children))
	}
	return nil
}
