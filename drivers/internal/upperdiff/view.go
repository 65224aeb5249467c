package upperdiff

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/cow/ovl"
	"plyfs/cow/tarlayer"
	"plyfs/fs/union"
	"plyfs/internal/sys"
)

// Layers are the directories of one layer and of those below it.
type Layers struct {
	// Own is what the layer itself changes, Work its work directory, "" for a layer that was never mounted for writing.
	Own, Work string
	// Lowers are the layers below, topmost first.
	Lowers []string
	// Forms are those of the marks that a mount of the layers reads. What it takes for an application's own, such as a file that
	// a container called .wh.NAME, must delete nothing.
	Forms ovl.Forms
}

// View is what a mount of layers would show. It implements tarlayer.Tree.
type View struct {
	u     *union.Union
	forms ovl.Forms
	// upper and work are the union's.
	upper, work *layer.Layer
	lowers      []*layer.Layer
	// trail is the directories on the way to the path that was asked for last, with a reference to each.
	trail []step
	last  found
	// kept are nodes of changes, each with a reference and the birth of what it was: whoever writes them asks for them again.
	kept map[*union.Node]uint64
}

// maxKept bounds the nodes that are kept, some hundred bytes each.
const maxKept = 16 << 10

// found is the object that was asked for last, with a reference to its node.
type found struct {
	path string
	node *union.Node
	attr union.Attr
}

type step struct {
	name string
	node *union.Node
}

// OpenView opens layers. The caller closes the View. Errors name the directory that cannot be opened.
func OpenView(a Layers) (v *View, err error) {
	v = &View{forms: a.Forms}
	o := union.Options{ReadOnly: true, Forms: a.Forms}
	// The kernel knows no owners in attributes.
	from := layer.Opener{Plain: !a.Forms.All()}
	open := func(path string) *layer.Layer {
		if err != nil || path == "" {
			return nil
		}
		var l *layer.Layer
		l, err = from.Open(path)
		return l
	}
	for _, path := range a.Lowers {
		if l := open(path); l != nil {
			o.Lowers = append(o.Lowers, l)
		}
	}
	o.Upper, o.Work = open(a.Own), open(a.Work)
	if err != nil {
		for _, l := range append(o.Lowers, o.Upper, o.Work) {
			if l != nil {
				l.Close()
			}
		}
		return nil, err
	}
	v.upper, v.work, v.lowers = o.Upper, o.Work, o.Lowers
	if v.u, err = union.New(o); err != nil {
		return nil, fmt.Errorf("layers of %s: %w", a.Own, err)
	}
	return v, nil
}

// Close closes the layers.
func (v *View) Close() error {
	v.drop()
	v.cut(0)
	v.forgetKept()
	return v.u.Close()
}

// keep keeps a node, whose reference becomes the View's.
func (v *View) keep(s side) {
	if _, twice := v.kept[s.node]; twice || len(v.kept) >= maxKept {
		v.release(s)
		return
	}
	if v.kept == nil {
		v.kept = make(map[*union.Node]uint64)
	}
	v.kept[s.node] = birth(s.attr)
}

func (v *View) forgetKept() {
	for n := range v.kept {
		v.u.Forget(n, 1)
	}
	clear(v.kept)
}

// cut forgets the trail from index i on.
func (v *View) cut(i int) {
	for j := len(v.trail) - 1; j >= i; j-- {
		v.u.Forget(v.trail[j].node, 1)
	}
	v.trail = v.trail[:i]
}

// find returns the node of path, which is the View's until it is asked for another path, and what was found out about
// it: the methods of a Source come in turns for one path.
func (v *View) find(path string) (*union.Node, union.Attr, error) {
	if v.last.node != nil && v.last.path == path {
		return v.last.node, v.last.attr, nil
	}
	n, a, err := v.lookup(path)
	if err != nil {
		return nil, a, pathError("look up", path, err)
	}
	v.drop()
	v.last = found{path: path, node: n, attr: a}
	return n, a, nil
}

// drop gives back the node that was found last.
func (v *View) drop() {
	if v.last.node != nil {
		v.u.Forget(v.last.node, 1)
	}
	v.last = found{}
}

// lookup finds path; the caller forgets the node. A node that was kept takes whatever has its name for what it was: once
// one of them is gone, or something else, all are forgotten.
func (v *View) lookup(path string) (*union.Node, union.Attr, error) {
	n, a, err := v.lookupKept(path)
	if len(v.kept) == 0 {
		return n, a, err
	}
	if err == nil {
		if was, kept := v.kept[n]; !kept || was == birth(a) {
			return n, a, nil
		}
		v.u.Forget(n, 1)
	}
	v.drop()
	v.cut(0)
	v.forgetKept()
	return v.lookupKept(path)
}

func (v *View) lookupKept(path string) (*union.Node, union.Attr, error) {
	if path == "" {
		return v.u.Parent(v.u.Root())
	}
	dir, name := "", path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, name = path[:i], path[i+1:]
	}
	at, err := v.walk(dir)
	if err != nil {
		return nil, union.Attr{}, err
	}
	return v.u.Lookup(at, name)
}

// walk returns the directory path, which the trail holds.
func (v *View) walk(path string) (*union.Node, error) {
	at, i := v.u.Root(), 0
	for rest := path; rest != ""; i++ {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if i < len(v.trail) {
			if v.trail[i].name == name {
				at = v.trail[i].node
				continue
			}
			v.cut(i)
		}
		n, _, err := v.u.Lookup(at, name)
		if err != nil {
			return nil, err
		}
		v.trail = append(v.trail, step{name, n})
		at = n
	}
	return at, nil
}

// Lstat implements tarlayer.Source. It looks anew each time.
func (v *View) Lstat(path string) (tarlayer.Attr, error) {
	v.drop()
	_, a, err := v.find(path)
	if err != nil {
		return tarlayer.Attr{}, err
	}
	return attrOf(a), nil
}

func attrOf(a union.Attr) tarlayer.Attr {
	return tarlayer.Attr{
		Mode: a.Mode, UID: a.UID, GID: a.GID, Size: int64(a.Size), Mtime: a.Mtime, Rdev: a.Rdev,
		Nlink: a.Nlink, Dev: birth(a), Ino: a.Ino,
	}
}

// birth tells the inodes behind one inode number apart: where hard links are broken by copy-up, a copy keeps the number
// of the lower file, which other names still show.
func birth(a union.Attr) uint64 {
	t := a.Btime
	if t == (sys.Time{}) {
		t = a.Ctime
	}
	return uint64(t.Sec)<<30 | uint64(t.Nsec)
}

// Readlink implements tarlayer.Source.
func (v *View) Readlink(path string) (string, error) {
	n, _, err := v.find(path)
	if err != nil {
		return "", err
	}
	to, err := v.u.Readlink(n)
	return to, pathError("readlink", path, err)
}

// Xattrs implements tarlayer.Source.
func (v *View) Xattrs(path string) (map[string]string, error) {
	n, _, err := v.find(path)
	if err != nil {
		return nil, err
	}
	all, err := v.xattrs(n)
	return all, pathError("list the attributes of", path, err)
}

// xattrSpace is more than the kernel lets a list or an attribute have.
const xattrSpace = 64<<10 + 1

func (v *View) xattrs(n *union.Node) (map[string]string, error) {
	size, err := v.u.Listxattr(n, nil)
	if err != nil || size == 0 {
		return nil, ignoreUnsupported(err)
	}
	buf := make([]byte, xattrSpace)
	if size, err = v.u.Listxattr(n, buf); err != nil {
		return nil, err
	}
	all := make(map[string]string)
	for name := range bytes.SplitSeq(bytes.TrimSuffix(bytes.Clone(buf[:size]), []byte{0}), []byte{0}) {
		size, err := v.u.Getxattr(n, string(name), buf)
		switch {
		case errors.Is(err, unix.ENODATA): // gone meanwhile
		case err != nil:
			return nil, fmt.Errorf("%s: %w", name, err)
		default:
			all[string(name)] = string(buf[:size])
		}
	}
	return all, nil
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// ReadDir implements tarlayer.Tree.
func (v *View) ReadDir(path string) ([]string, error) {
	n, _, err := v.find(path)
	if err != nil {
		return nil, err
	}
	names, err := v.list(n)
	return names, pathError("list", path, err)
}

func (v *View) list(dir *union.Node) ([]string, error) {
	var names []string
	buf := make([]union.Dirent, 256)
	for off := uint64(0); ; {
		n, err := v.u.ReadDir(dir, off, buf)
		if err != nil || n == 0 {
			return names, err
		}
		for _, e := range buf[:n] {
			if e.Name != "." && e.Name != ".." {
				names = append(names, e.Name)
			}
		}
		off = buf[n-1].Next
	}
}

// Open implements tarlayer.Source.
func (v *View) Open(path string) (io.ReadCloser, error) {
	n, a, err := v.lookup(path)
	if err != nil {
		return nil, pathError("open", path, err)
	}
	if a.Mode&unix.S_IFMT != unix.S_IFREG {
		v.u.Forget(n, 1)
		return nil, pathError("open", path, unix.EINVAL)
	}
	return &file{u: v.u, n: n, path: path}, nil
}

// file reads a file from its beginning. It has a reference to the node until it is closed.
type file struct {
	u    *union.Union
	n    *union.Node
	off  int64
	path string
}

func (f *file) Read(p []byte) (int, error) {
	if f.n == nil {
		return 0, pathError("read", f.path, fs.ErrClosed)
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.u.Read(f.n, p, f.off)
	f.off += int64(n)
	if err != nil {
		return n, pathError("read", f.path, err)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (f *file) Close() error {
	if f.n != nil {
		f.u.Forget(f.n, 1)
		f.n = nil
	}
	return nil
}

// pathError names the path in err, nil for nil.
func pathError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: op, Path: path, Err: err}
}
