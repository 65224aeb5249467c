package uniontest

import (
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"plyfs/internal/fingerprint"
)

const snapshotFields = fingerprint.Default | fingerprint.Holes | fingerprint.DirNlink | fingerprint.Inode

// Snapshot returns the fingerprint of a tree: of its mount point by the file system's own calls, else through the
// tree's operations.
func Snapshot(t Tree) (*fingerprint.Tree, error) {
	if t.Root() != "" {
		return fingerprint.Take(t.Root(), fingerprint.Options{Fields: snapshotFields})
	}
	s := &snapshot{t: t, out: &fingerprint.Tree{Entries: make(map[string]*fingerprint.Entry)}}
	if err := s.take(".", 0); err != nil {
		return nil, err
	}
	s.out.SetGroups()
	return s.out, nil
}

type snapshot struct {
	t   Tree
	out *fingerprint.Tree
}

func (s *snapshot) take(p string, dirIno uint64) error {
	e, err := s.entry(p)
	if err != nil {
		return err
	}
	e.DirIno = dirIno
	s.out.Entries[p] = e
	if e.Type != unix.S_IFDIR {
		return nil
	}
	list, err := s.t.ReadDir(p)
	if err != nil {
		return err
	}
	for _, d := range list {
		if d.Name == "." || d.Name == ".." {
			continue
		}
		if err := s.take(path.Join(p, d.Name), d.Ino); err != nil {
			return err
		}
	}
	return nil
}

func (s *snapshot) entry(p string) (*fingerprint.Entry, error) {
	st, err := s.t.Lstat(p)
	if err != nil {
		return nil, err
	}
	e := &fingerprint.Entry{
		Type: st.Type(), Mode: st.Perm(), UID: st.UID, GID: st.GID, Nlink: st.Nlink, Dev: st.Dev, Ino: st.Ino,
		Mtime: fingerprint.Time{Sec: int64(st.Mtime.Sec), Nsec: int64(st.Mtime.Nsec)},
		Atime: fingerprint.Time{Sec: int64(st.Atime.Sec), Nsec: int64(st.Atime.Nsec)},
		Ctime: fingerprint.Time{Sec: int64(st.Ctime.Sec), Nsec: int64(st.Ctime.Nsec)},
	}
	if e.Xattrs, err = s.xattrs(p); err != nil {
		return nil, err
	}
	switch e.Type {
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Rdev = st.Rdev
	case unix.S_IFLNK:
		e.Target, err = s.t.Readlink(p)
	case unix.S_IFREG:
		e.Size = st.Size
		err = s.content(p, e)
	}
	return e, err
}

func (s *snapshot) xattrs(p string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	n, err := s.t.Listxattr(p, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m map[string]string
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if name == "" {
			continue
		}
		val := make([]byte, 64<<10)
		n, err := s.t.Getxattr(p, name, val)
		if err != nil {
			return nil, fmt.Errorf("%s: listed attribute %s: %w", p, name, err)
		}
		if m == nil {
			m = make(map[string]string)
		}
		m[name] = string(val[:n])
	}
	return m, nil
}

func (s *snapshot) content(p string, e *fingerprint.Entry) error {
	f, err := s.t.Open(p, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for off := int64(0); off < e.Size; {
		from, err := f.Seek(off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return err
		}
		to, err := f.Seek(from, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		e.Extents = append(e.Extents, fingerprint.Extent{Off: from, Len: to - from})
		off = to
	}
	e.Sum, err = fingerprint.SumExtents(readerAt{f}, e.Size, e.Extents)
	return err
}

// readerAt gives ReadAt the meaning that io.ReaderAt has: short only at the end, with io.EOF.
type readerAt struct{ f File }

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		n, err := r.f.ReadAt(p[done:], off+int64(done))
		if err != nil && !errors.Is(err, io.EOF) {
			return done, err
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}
