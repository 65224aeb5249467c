package fingerprint

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	sIFMT  = unix.S_IFMT
	sIFDIR = unix.S_IFDIR
	sIFREG = unix.S_IFREG
	sIFLNK = unix.S_IFLNK
)

// blockSize is the unit in which content is hashed: a block of zeros counts as a hole.
const blockSize = 4096

// Options say what Take collects.
type Options struct {
	// Fields is the set of properties; zero means Default.
	Fields Field
	// SkipXattr leaves out extended attributes for which it returns true; nil keeps all.
	SkipXattr func(name string) bool
	// Skip leaves out paths, and what is beneath them, for which it returns true; nil keeps all.
	Skip func(path string) bool
}

// Take returns the fingerprint of the directory dir. It follows dir itself if that is a symlink, nothing beneath it. An
// error names the path at which it stopped.
func Take(dir string, o Options) (*Tree, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("fingerprint %s: %w", dir, err)
	}
	defer unix.Close(fd)
	return TakeAt(fd, o)
}

// TakeAt is Take of an open directory. It does not close fd and does not move its offset.
func TakeAt(fd int, o Options) (*Tree, error) {
	if o.Fields == 0 {
		o.Fields = Default
	}
	w := &walker{o: o, buf: make([]byte, 256<<10), tree: &Tree{Entries: make(map[string]*Entry)}}
	root, err := w.entry(fd, ".", ".")
	if err != nil {
		return nil, fmt.Errorf("fingerprint: %w", err)
	}
	w.tree.Entries["."] = root
	if err := w.dir(fd, ""); err != nil {
		return nil, fmt.Errorf("fingerprint: %w", err)
	}
	if o.Fields&Groups != 0 {
		w.tree.SetGroups()
	}
	return w.tree, nil
}

type walker struct {
	o    Options
	buf  []byte
	tree *Tree
}

// dir takes all entries of the directory fd, whose path is prefix.
func (w *walker) dir(fd int, prefix string) error {
	list, err := readDir(fd)
	if err != nil {
		return fmt.Errorf("%s: %w", orDot(prefix), err)
	}
	for _, d := range list {
		p := path.Join(prefix, d.name)
		if w.o.Skip != nil && w.o.Skip(p) {
			continue
		}
		e, err := w.entry(fd, d.name, p)
		if err != nil {
			return err
		}
		if w.o.Fields&Inode != 0 {
			e.DirIno = d.ino
		}
		w.tree.Entries[p] = e
		if e.Type != sIFDIR {
			continue
		}
		if err := w.descend(fd, d.name, p); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) descend(fd int, name, p string) error {
	sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: open: %w", p, err)
	}
	defer unix.Close(sub)
	return w.dir(sub, p)
}

// entry takes the properties of name in the directory fd.
func (w *walker) entry(fd int, name, p string) (*Entry, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, fmt.Errorf("%s: stat: %w", p, err)
	}
	e := &Entry{
		Type: st.Mode & sIFMT, Mode: st.Mode &^ sIFMT, UID: st.Uid, GID: st.Gid, Nlink: uint64(st.Nlink),
		Dev: uint64(st.Dev), Ino: st.Ino,
		Mtime: Time{int64(st.Mtim.Sec), int64(st.Mtim.Nsec)},
		Atime: Time{int64(st.Atim.Sec), int64(st.Atim.Nsec)},
		Ctime: Time{int64(st.Ctim.Sec), int64(st.Ctim.Nsec)},
	}
	if e.Type == unix.S_IFCHR || e.Type == unix.S_IFBLK {
		e.Rdev = uint64(st.Rdev)
	}
	if e.Type == sIFREG {
		e.Size = st.Size
	}
	if e.Type == sIFLNK && w.o.Fields&Target != 0 {
		target, err := readlinkAt(fd, name)
		if err != nil {
			return nil, fmt.Errorf("%s: readlink: %w", p, err)
		}
		e.Target = target
	}
	if w.o.Fields&Xattrs != 0 {
		x, err := w.xattrs(fd, name)
		if err != nil {
			return nil, fmt.Errorf("%s: xattrs: %w", p, err)
		}
		e.Xattrs = x
	}
	if e.Type == sIFREG && w.o.Fields&(Content|Holes) != 0 {
		if err := w.content(fd, name, e); err != nil {
			return nil, fmt.Errorf("%s: read: %w", p, err)
		}
	}
	return e, nil
}

func readlinkAt(fd int, name string) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(fd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// xattrs reads by a path whose last component is not followed: the l-calls accept no descriptor, and an O_PATH
// descriptor is refused by the f-calls. The magic link of the directory descriptor only stands before the name.
func (w *walker) xattrs(fd int, name string) (map[string]string, error) {
	p := "/proc/self/fd/" + strconv.Itoa(fd) + "/" + name
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m map[string]string
	for _, x := range strings.Split(string(list[:n]), "\x00") {
		if x == "" || (w.o.SkipXattr != nil && w.o.SkipXattr(x)) {
			continue
		}
		n, err := unix.Lgetxattr(p, x, w.buf[:64<<10])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", x, err)
		}
		if m == nil {
			m = make(map[string]string)
		}
		m[x] = string(w.buf[:n])
	}
	return m, nil
}

// content hashes every block that is not all zeros, together with its place, and so gives the same sum for a hole and
// for zeros written out, without reading terabytes of a sparse file.
func (w *walker) content(dir int, name string, e *Entry) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	s := newSummer()
	for off := int64(0); off < e.Size; {
		from, to, err := nextData(fd, off, e.Size)
		if err != nil {
			return err
		}
		if from >= to {
			break
		}
		if w.o.Fields&Holes != 0 {
			e.Extents = append(e.Extents, Extent{from, to - from})
		}
		if w.o.Fields&Content != 0 {
			if err := w.hashRange(s, fd, from, to); err != nil {
				return err
			}
		}
		off = to
	}
	e.Sum = s.sum(e.Size)
	return nil
}

// nextData returns the first range of data at or after off. File systems without SEEK_DATA are all data.
func nextData(fd int, off, size int64) (from, to int64, err error) {
	from, err = unix.Seek(fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOSYS):
		return off, size, nil
	case err != nil:
		return 0, 0, err
	}
	to, err = unix.Seek(fd, from, unix.SEEK_HOLE)
	return from, min(to, size), err
}

// hashRange hashes [from, to), extended to whole blocks so that sums do not depend on where extents begin.
func (w *walker) hashRange(s *summer, fd int, from, to int64) error {
	for off := from &^ (blockSize - 1); off < to; {
		n, err := preadFull(fd, w.buf[:min(int64(len(w.buf)), roundUp(to-off))], off)
		if err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
		s.add(off, w.buf[:n])
		off += int64(n)
	}
	return nil
}

func roundUp(n int64) int64 { return (n + blockSize - 1) &^ (blockSize - 1) }

func preadFull(fd int, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := unix.Pread(fd, p[done:], off+int64(done))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return done, err
		}
		if n == 0 {
			break
		}
		done += n
	}
	return done, nil
}

type summer struct {
	h    hash.Hash
	zero []byte
	next int64 // blocks below this one were hashed; extents may share one
}

func newSummer() *summer { return &summer{h: sha256.New(), zero: make([]byte, blockSize)} }

func (s *summer) add(off int64, p []byte) {
	var head [8]byte
	for len(p) > 0 {
		b := p[:min(len(p), blockSize)]
		p = p[len(b):]
		if off >= s.next && !bytes.Equal(b, s.zero[:len(b)]) {
			binary.LittleEndian.PutUint64(head[:], uint64(off))
			s.h.Write(head[:])
			s.h.Write(b)
			// The end of a file may cut its last block short: zeros up to the block's end are no difference.
			s.h.Write(s.zero[len(b):])
		}
		off += int64(len(b))
		s.next = max(s.next, off)
	}
}

func (s *summer) sum(size int64) (sum [32]byte) {
	var tail [8]byte
	binary.LittleEndian.PutUint64(tail[:], uint64(size))
	s.h.Write(tail[:])
	copy(sum[:], s.h.Sum(nil))
	return sum
}

// Sum returns what Take stores as the sum of a file of the given size that is read through r.
func Sum(r io.ReaderAt, size int64) ([32]byte, error) {
	return SumExtents(r, size, []Extent{{0, size}})
}

// SumExtents is Sum of a sparse file: it reads only the given ranges, which are in order and hold all data.
func SumExtents(r io.ReaderAt, size int64, data []Extent) ([32]byte, error) {
	s := newSummer()
	buf := make([]byte, 256<<10)
	for _, x := range data {
		end := min(x.Off+x.Len, size)
		for off := x.Off &^ (blockSize - 1); off < end; {
			n, err := r.ReadAt(buf[:min(int64(len(buf)), roundUp(end-off))], off)
			s.add(off, buf[:n])
			off += int64(n)
			if err != nil && !errors.Is(err, io.EOF) {
				return [32]byte{}, err
			}
			if n == 0 {
				break
			}
		}
	}
	return s.sum(size), nil
}

func orDot(p string) string {
	if p == "" {
		return "."
	}
	return p
}
