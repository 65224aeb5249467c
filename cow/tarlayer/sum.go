package tarlayer

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

// Sum returns the canonical hash of the paths in changes as src has them. It equals ApplyResult.Sum if changes are the
// paths of the members of the stream, in any order, and the tree is as Apply left it, with any driver.
//
// The hash is the sum modulo 2^64 of one xxhash64 for each path that the stream left. That of a whiteout is of the
// path, a NUL and the letter D. That of anything else is of the path, a NUL, and the eight bytes (little-endian, as all
// numbers) of the xxhash64 of what describes the file: st_mode, user and group as the container sees them (32 bits
// each), the modification time in whole seconds (64 bits; see sumTime), then for devices the device number, for symlinks the
// target's length and the target, for regular files the size and the xxhash64 of the content, and at last for each
// extended attribute in order of names the length of the name, the name, the length of the value, the value (all
// lengths 64 bits). Link counts, parts of seconds, access times, opaque marks, whiteouts beneath those and directories
// that no member describes are not part of it, since they depend on the driver.
//
// A deleted path counts only if src has nothing there; with a Source that is also a WhiteoutSource, only if it has a
// whiteout. Errors name the path.
func Sum(ctx context.Context, src Source, changes []Change) (uint64, error) {
	var total uint64
	buf := make([]byte, ioBuffer)
	for _, c := range changes {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		var h uint64
		var err error
		if c.Kind == Delete {
			h, err = sumDeleted(src, c.Path)
		} else {
			h, err = sumFile(src, c.Path, buf)
		}
		if err != nil {
			return 0, pathError("hash", c.Path, err)
		}
		total += h
	}
	return total, nil
}

// WhiteoutSource is a Source of one layer, which can tell a whiteout from nothing.
type WhiteoutSource interface {
	Source
	// Whiteout says whether the layer deletes path from the layers below by a whiteout of its own.
	Whiteout(path string) (bool, error)
}

func sumDeleted(src Source, path string) (uint64, error) {
	if w, ok := src.(WhiteoutSource); ok {
		is, err := w.Whiteout(path)
		if err != nil || !is {
			return 0, err
		}
		return deletedHash(path), nil
	}
	_, err := src.Lstat(path)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return deletedHash(path), nil
	case err != nil:
		return 0, err
	}
	return 0, nil
}

func sumFile(src Source, path string, buf []byte) (uint64, error) {
	at, err := src.Lstat(path)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	h, err := attrsHash(src, path, at, buf)
	if err != nil {
		return 0, err
	}
	return pathHash(path, h), nil
}

// attrsHash describes what src has at path, but for its name, as object.hash does.
func attrsHash(src Source, path string, at Attr, buf []byte) (uint64, error) {
	ob := object{
		typ: at.Mode & unix.S_IFMT, mode: at.Mode & 0o7777, cuid: at.UID, cgid: at.GID,
		mtime: at.Mtime.Timespec(), rdev: at.Rdev, size: at.Size,
	}
	var err error
	switch ob.typ {
	case unix.S_IFLNK:
		ob.target, err = src.Readlink(path)
	case unix.S_IFREG:
		ob.sum, err = sumContent(src, path, buf)
	}
	if err != nil {
		return 0, err
	}
	seen, err := src.Xattrs(path)
	if err != nil {
		return 0, err
	}
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		if layerXattr(name) || strings.HasPrefix(name, nsTrusted) {
			ob.xattrs = append(ob.xattrs, xattr{name: name, value: seen[name], kept: true})
		}
	}
	return ob.hash(), nil
}

func sumContent(src Source, path string, buf []byte) (uint64, error) {
	f, err := src.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	h := xxhash.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf); err != nil {
		return 0, err
	}
	return h.Sum64(), nil
}

// hash describes the object, but for its name.
func (o *object) hash() uint64 {
	var stack [512]byte
	b := binary.LittleEndian.AppendUint32(stack[:0], o.typ|o.mode)
	b = binary.LittleEndian.AppendUint32(b, o.cuid)
	b = binary.LittleEndian.AppendUint32(b, o.cgid)
	b = binary.LittleEndian.AppendUint64(b, uint64(sumTime(o.mtime.Sec)))
	switch o.typ {
	case unix.S_IFCHR, unix.S_IFBLK:
		b = binary.LittleEndian.AppendUint64(b, o.rdev)
	case unix.S_IFLNK:
		b = appendString(b, o.target)
	case unix.S_IFREG:
		b = binary.LittleEndian.AppendUint64(b, uint64(o.size))
		b = binary.LittleEndian.AppendUint64(b, o.sum)
	}
	for _, x := range o.xattrs {
		if x.kept {
			b = appendString(appendString(b, x.name), x.value)
		}
	}
	return xxhash.Sum64(b)
}

// The times that ext4 holds (cf. ext4.h ext4_encode_extra_time); btrfs, tmpfs, xfs and zfs hold them all.
const (
	minSumTime = -1 << 31
	maxSumTime = 1<<34 - 1<<31 - 1
)

// sumTime is what the hash has of a time in seconds: streams can have times that no file system holds, which gives the nearest that
// it does, and the sum is to be the same on all of them.
func sumTime(sec int64) int64 { return min(max(sec, minSumTime), maxSumTime) }

func appendString(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

func pathHash(path string, attrs uint64) uint64 {
	var stack [512]byte
	b := append(append(stack[:0], path...), 0)
	return xxhash.Sum64(binary.LittleEndian.AppendUint64(b, attrs))
}

func deletedHash(path string) uint64 { return xxhash.Sum64String(path + "\x00D") }

// leftPaths remembers what a stream left in the tree. Nothing is kept where nobody asks.
type leftPaths struct {
	kept, sums bool
	// log is what was put until somebody asks what is where. Most streams have each path once and nobody does, and a
	// table of many paths costs more than anything else that is done for a small file outside the kernel.
	log []leftMember
	// paths is nil until then.
	paths map[string]leftPath
}

type leftMember struct {
	path  string
	attrs uint64
}

type leftPath struct {
	attrs uint64
	kind  leftKind
}

type leftKind uint8

const (
	leftFile    leftKind = iota // a member
	leftParent                  // a directory that members are in and none describes
	leftBelow                   // a file of the layers below that is here because members are names of it
	leftDeleted                 // a whiteout
)

func newLeftPaths(o ApplyOptions) leftPaths {
	return leftPaths{sums: o.Sum, kept: o.Sum || o.Whiteouts == WhiteoutRemove}
}

// index makes it possible to find paths. It must be called before a path is put again.
func (l *leftPaths) index() {
	if !l.kept || l.paths != nil {
		return
	}
	l.paths = make(map[string]leftPath, 2*len(l.log))
	for _, m := range l.log {
		l.paths[m.path] = leftPath{attrs: m.attrs}
		l.keepParents(m.path)
	}
	l.log = nil
}

func (l *leftPaths) put(path string, ob *object) {
	if !l.kept {
		return
	}
	attrs := uint64(0)
	if l.sums {
		attrs = ob.hash()
	}
	if l.paths == nil {
		l.log = append(l.log, leftMember{path, attrs})
		return
	}
	l.paths[path] = leftPath{attrs: attrs}
	l.keepParents(path)
}

// link notes path as another name of target, of which attrs tells if it is no path of the stream.
func (l *leftPaths) link(path, target string, attrs func() (uint64, error)) error {
	if l.index(); l.paths == nil {
		return nil
	}
	p, ok := l.paths[target]
	if !ok && l.sums {
		var err error
		if p.attrs, err = attrs(); err != nil {
			return err
		}
	}
	p.kind = leftFile
	l.paths[path] = p
	l.keepParents(path)
	return nil
}

// below notes that what was put at path is no member.
func (l *leftPaths) below(path string) {
	l.index()
	if p, ok := l.paths[path]; ok {
		p.kind = leftBelow
		l.paths[path] = p
	}
}

func (l *leftPaths) keepParents(path string) {
	for path != "" {
		path = parentOf(path)
		if old, ok := l.paths[path]; ok && old.kind != leftDeleted {
			return
		}
		l.paths[path] = leftPath{kind: leftParent}
	}
}

// delete notes a whiteout.
func (l *leftPaths) delete(path string) {
	if l.index(); l.paths != nil {
		l.paths[path] = leftPath{kind: leftDeleted}
	}
}

// has says whether path is of the stream.
func (l *leftPaths) has(path string) bool {
	l.index()
	p, ok := l.paths[path]
	return ok && p.kind != leftDeleted
}

// forgetTree takes out what was at and beneath a directory that another member replaced.
func (l *leftPaths) forgetTree(path string) {
	l.index()
	for p := range l.paths {
		if p == path || isBeneath(p, path) {
			delete(l.paths, p)
		}
	}
}

// forgetDeleted takes out the whiteouts beneath an opaque directory.
func (l *leftPaths) forgetDeleted(dir string) {
	l.index()
	for path, p := range l.paths {
		if p.kind == leftDeleted && (dir == "" || isBeneath(path, dir)) {
			delete(l.paths, path)
		}
	}
}

// each calls fn with the paths of which sum is.
func (l *leftPaths) each(fn func(Change)) {
	l.index()
	for path, p := range l.paths {
		switch p.kind {
		case leftFile:
			fn(Change{Path: path, Kind: Add})
		case leftDeleted:
			fn(Change{Path: path, Kind: Delete})
		}
	}
}

func (l *leftPaths) sum() uint64 {
	if !l.sums {
		return 0
	}
	var total uint64
	for _, m := range l.log {
		total += pathHash(m.path, m.attrs)
	}
	for path, p := range l.paths {
		switch p.kind {
		case leftFile:
			total += pathHash(path, p.attrs)
		case leftDeleted:
			total += deletedHash(path)
		}
	}
	return total
}
