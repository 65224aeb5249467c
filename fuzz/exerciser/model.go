package exerciser

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/fs/union/uniontest"
)

// A node is an inode of the model.
type node struct {
	kind     uint32 // type bits of a mode
	perm     uint32
	uid, gid uint32
	links    int // names of a file
	data     []byte
	target   string
	xattrs   map[string]string
	children map[string]*node
}

func newNode(kind, perm uint32) *node {
	n := &node{kind: kind, perm: perm, xattrs: make(map[string]string)}
	if kind == unix.S_IFDIR {
		n.children = make(map[string]*node)
	}
	return n
}

// model is what the tree has to look like.
type model struct{ root *node }

// load reads the tree that the exerciser starts from.
func load(t uniontest.Tree) (*model, error) {
	seen := make(map[uint64]*node)
	root, err := loadNode(t, ".", seen)
	return &model{root}, err
}

func loadNode(t uniontest.Tree, p string, seen map[uint64]*node) (*node, error) {
	st, err := t.Lstat(p)
	if err != nil {
		return nil, err
	}
	if n := seen[st.Ino]; n != nil && st.Type() != unix.S_IFDIR {
		n.links++
		return n, nil
	}
	n := newNode(st.Type(), st.Perm())
	n.uid, n.gid, n.links = st.UID, st.GID, 1
	seen[st.Ino] = n
	if n.xattrs, err = loadXattrs(t, p); err != nil {
		return nil, err
	}
	switch n.kind {
	case unix.S_IFREG:
		n.data, err = readAll(t, p)
	case unix.S_IFLNK:
		n.target, err = t.Readlink(p)
	case unix.S_IFDIR:
		var list []uniontest.Dirent
		list, err = t.ReadDir(p)
		for _, d := range list {
			if d.Name == "." || d.Name == ".." {
				continue
			}
			c, cerr := loadNode(t, path.Join(p, d.Name), seen)
			if cerr != nil {
				return nil, cerr
			}
			n.children[d.Name] = c
		}
	}
	return n, err
}

// loadXattrs reads the attributes that the exerciser sets.
func loadXattrs(t uniontest.Tree, p string) (map[string]string, error) {
	m := make(map[string]string)
	buf := make([]byte, 64<<10)
	n, err := t.Listxattr(p, buf)
	if err != nil {
		return nil, err
	}
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if !strings.HasPrefix(name, "user.") {
			continue
		}
		val := make([]byte, 4096)
		k, err := t.Getxattr(p, name, val)
		if err != nil {
			return nil, err
		}
		m[name] = string(val[:k])
	}
	return m, nil
}

func readAll(t uniontest.Tree, p string) ([]byte, error) {
	f, err := t.Open(p, unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	data, err := readFile(f)
	return data, errors.Join(err, f.Close())
}

func readFile(f uniontest.File) ([]byte, error) {
	var all bytes.Buffer
	buf := make([]byte, 128<<10)
	for {
		n, err := f.ReadAt(buf, int64(all.Len()))
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		if n == 0 {
			return all.Bytes(), nil
		}
		all.Write(buf[:n])
	}
}

// find returns the node of a path, nil if there is none.
func (m *model) find(p string) *node {
	n := m.root
	for _, c := range split(p) {
		if n == nil || n.kind != unix.S_IFDIR {
			return nil
		}
		n = n.children[c]
	}
	return n
}

// parent returns the directory of a path's last component, nil if there is none, and that component.
func (m *model) parent(p string) (*node, string) {
	d := m.find(path.Dir(p))
	if d == nil || d.kind != unix.S_IFDIR {
		return nil, ""
	}
	return d, path.Base(p)
}

func split(p string) []string {
	return strings.FieldsFunc(path.Clean(p), func(r rune) bool { return r == '/' || r == '.' })
}

// add gives a node a name and reports whether that is possible.
func (m *model) add(p string, n *node) bool {
	d, name := m.parent(p)
	if d == nil || d.children[name] != nil {
		return false
	}
	d.children[name] = n
	n.links++
	return true
}

// unlink takes the name of a file away and reports whether that is possible.
func (m *model) unlink(p string) bool {
	return m.remove(p, func(n *node) bool { return n.kind != unix.S_IFDIR })
}

// rmdir removes an empty directory and reports whether that is possible.
func (m *model) rmdir(p string) bool {
	return m.remove(p, func(n *node) bool { return n.kind == unix.S_IFDIR && len(n.children) == 0 })
}

// remove takes a name away if it is one of a node that may be removed so.
func (m *model) remove(p string, may func(*node) bool) bool {
	d, name := m.parent(p)
	if d == nil || d.children[name] == nil {
		return false
	}
	n := d.children[name]
	if !may(n) {
		return false
	}
	delete(d.children, name)
	n.links--
	return true
}

// inside reports whether b lies beneath a.
func inside(a, b string) bool {
	x, y := split(a), split(b)
	return len(y) > len(x) && slices.Equal(x, y[:len(x)])
}

// rename renames as renameat2(2) does and reports whether that is possible.
func (m *model) rename(a, b string, flags uint32) bool {
	da, na := m.parent(a)
	db, nb := m.parent(b)
	if da == nil || db == nil || da.children[na] == nil {
		return false
	}
	src, dst := da.children[na], db.children[nb]
	if inside(a, b) {
		return false
	}
	switch {
	case flags == unix.RENAME_EXCHANGE:
		if dst == nil || inside(b, a) {
			return false
		}
		da.children[na], db.children[nb] = dst, src
		return true
	case dst == nil:
	case flags == unix.RENAME_NOREPLACE:
		return false
	case dst == src:
		return true
	case (dst.kind == unix.S_IFDIR) != (src.kind == unix.S_IFDIR) || len(dst.children) > 0:
		return false
	default:
		dst.links--
	}
	delete(da.children, na)
	db.children[nb] = src
	return true
}

// resize sets the size of a file's data.
func (n *node) resize(size int64) {
	if size <= int64(len(n.data)) {
		n.data = n.data[:size:size]
		return
	}
	n.data = append(n.data, make([]byte, size-int64(len(n.data)))...)
}

// write puts bytes into a file.
func (n *node) write(off int64, b []byte) {
	if end := off + int64(len(b)); end > int64(len(n.data)) {
		n.resize(end)
	}
	copy(n.data[off:], b)
}

// slice is the part of a file that a read returns.
func (n *node) slice(off, length int64) []byte {
	size := int64(len(n.data))
	if off >= size {
		return nil
	}
	return n.data[off:min(size, off+length)]
}

// compare checks the whole tree against the model.
func (m *model) compare(t uniontest.Tree) error {
	got, err := load(t)
	if err != nil {
		return fmt.Errorf("reading the tree: %w", err)
	}
	return compareNode(".", m.root, got.root)
}

func compareNode(p string, want, got *node) error {
	if want.kind != got.kind || want.perm != got.perm || want.uid != got.uid || want.gid != got.gid {
		return fmt.Errorf("%s is mode %o of %d:%d, want %o of %d:%d", p, got.kind|got.perm, got.uid, got.gid,
			want.kind|want.perm, want.uid, want.gid)
	}
	if want.kind != unix.S_IFDIR && want.links != got.links {
		return fmt.Errorf("%s has %d names, want %d", p, got.links, want.links)
	}
	if want.target != got.target {
		return fmt.Errorf("%s leads to %q, want %q", p, got.target, want.target)
	}
	if err := compareData(p, want.data, got.data); err != nil {
		return err
	}
	if fmt.Sprint(want.xattrs) != fmt.Sprint(got.xattrs) {
		return fmt.Errorf("%s has attributes %v, want %v", p, got.xattrs, want.xattrs)
	}
	for name := range got.children {
		if want.children[name] == nil {
			return fmt.Errorf("%s is there and should not be", path.Join(p, name))
		}
	}
	for name, c := range want.children {
		g := got.children[name]
		if g == nil {
			return fmt.Errorf("%s is missing", path.Join(p, name))
		}
		if err := compareNode(path.Join(p, name), c, g); err != nil {
			return err
		}
	}
	return nil
}

// compareData names the first byte in which contents differ.
func compareData(p string, want, got []byte) error {
	if bytes.Equal(want, got) {
		return nil
	}
	if len(want) != len(got) {
		return fmt.Errorf("%s has %d bytes, want %d", p, len(got), len(want))
	}
	i := 0
	for want[i] == got[i] {
		i++
	}
	return fmt.Errorf("%s: byte %d of %d is %#x, want %#x", p, i, len(want), got[i], want[i])
}
