package tarlayer

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

// lookTries is how often something that is another thing at each look is looked at.
const lookTries = 8

// errRestless says of a path that it was something else at each look.
var errRestless = errors.New("it changes all the time")

// errMounted is the error of a path on which something is mounted.
var errMounted = fmt.Errorf("something is mounted there: %w", unix.ENOENT)

// member is what a stream has of one path. When it is made, all was done that fails if the path goes: once its header is
// written, there is no way back.
type member struct {
	// hdr is nil for what has no form in a stream.
	hdr *tar.Header
	at  Attr
	// f is the open file, nil where there is no content, and head what was read of it, which is in the stream's buffer.
	f    io.ReadCloser
	head []byte
	// short says that the file ended before its size.
	short bool
}

func (m *member) isDir() bool { return m.at.Mode&unix.S_IFMT == unix.S_IFDIR }

func (m *member) close() {
	if m != nil && m.f != nil {
		m.f.Close()
	}
}

// settle gives the member of a file that is written all the time the size that was read.
func (m *member) settle() *member {
	if m.short {
		m.hdr.Size = int64(len(m.head))
	}
	return m
}

// member looks at a path until what was read is what is there. The error is one of sys.Gone if there is nothing, and
// errRestless if there is something else all the time. The caller closes the member.
func (s *stream) member(path string) (*member, error) {
	for try := 1; ; try++ {
		at, err := s.src.Lstat(path)
		if err != nil {
			return nil, err
		}
		m, err := s.look(path, at)
		if err == nil && m.f == nil {
			return m, nil
		}
		again, lerr := s.src.Lstat(path)
		switch {
		case lerr != nil:
			m.close()
			return nil, lerr
		case err == nil && (again == at && !m.short || try == lookTries):
			return m.settle(), nil
		case err != nil && again == at && !sys.Gone(err):
			return nil, err
		case try == lookTries:
			return nil, fmt.Errorf("%w: %w", errRestless, err)
		}
		m.close()
	}
}

// look makes the member of a path of which at is known.
func (s *stream) look(path string, at Attr) (_ *member, err error) {
	m := &member{at: at}
	hdr := &tar.Header{
		Name: path, Mode: int64(at.Mode & 0o7777), Uid: int(at.UID), Gid: int(at.GID),
		// PAX says everything that a file can be, and is plain ustar for what that can say.
		Format: tar.FormatPAX, ModTime: s.time(at.Mtime),
	}
	switch at.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		hdr.Typeflag, hdr.Size = tar.TypeReg, at.Size
	case unix.S_IFDIR:
		hdr.Typeflag, hdr.Name = tar.TypeDir, path+"/"
		if path == "" {
			hdr.Name = "./"
		}
	case unix.S_IFLNK:
		hdr.Typeflag, hdr.Mode = tar.TypeSymlink, 0o777
		if hdr.Linkname, err = s.src.Readlink(path); err != nil {
			return nil, err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		hdr.Typeflag = tar.TypeChar
		if at.Mode&unix.S_IFMT == unix.S_IFBLK {
			hdr.Typeflag = tar.TypeBlock
		}
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(at.Rdev)), int64(unix.Minor(at.Rdev))
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	case unix.S_IFSOCK:
		s.note(path, "a socket has no form in a layer")
		return m, nil
	default:
		return nil, fmt.Errorf("file of unknown type %#o: %w", at.Mode&unix.S_IFMT, ErrInvalid)
	}
	m.hdr = hdr
	if first, ok := s.names[inode{at.Dev, at.Ino}]; ok && at.Nlink > 1 && !m.isDir() {
		hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
		hdr.Devmajor, hdr.Devminor = 0, 0
		return m, nil
	}
	if err := s.xattrs(hdr, path); err != nil {
		return nil, err
	}
	if hdr.Size > 0 {
		err = s.open(m, path)
	}
	return m, err
}

// open opens a file and reads as much of it as the buffer holds.
func (s *stream) open(m *member, path string) (err error) {
	if m.f, err = s.src.Open(path); err != nil {
		m.f = nil
		return err
	}
	n, err := io.ReadFull(m.f, s.buf[:min(int64(len(s.buf)), m.hdr.Size)])
	m.head, m.short = s.buf[:n], atEnd(err)
	if err != nil && !m.short {
		m.close()
		m.f = nil
		return err
	}
	return nil
}

// time is a modification time as the stream has it. Cut, not rounded: that is what docker, containerd and umoci do, so
// that an unchanged file has the same member whichever of them wrote it.
func (s *stream) time(t sys.Time) time.Time {
	if s.o.Times == TimeNanoseconds {
		return time.Unix(t.Sec, int64(t.Nsec))
	}
	return time.Unix(t.Sec, 0)
}

func (s *stream) xattrs(hdr *tar.Header, path string) error {
	all, err := s.src.Xattrs(path)
	if err != nil {
		return err
	}
	for name, value := range all {
		if !layerXattr(name) && (!s.o.KeepTrusted || !strings.HasPrefix(name, nsTrusted)) {
			if strings.HasPrefix(name, nsTrusted) {
				s.note(path, "attribute "+name+" is of the trusted namespace")
			}
			continue
		}
		if strings.Contains(name, "=") {
			s.note(path, "attribute "+name+" has a name that no layer can say")
			continue
		}
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = make(map[string]string, len(all))
		}
		hdr.PAXRecords[paxXattr+name] = value
	}
	return nil
}

// put writes a member, but for what is in a directory.
func (s *stream) put(m *member, path string) error {
	if m.hdr == nil {
		return nil
	}
	if err := s.header(m.hdr, path); err != nil {
		return err
	}
	if m.at.Nlink > 1 && !m.isDir() && m.hdr.Typeflag != tar.TypeLink {
		s.names[inode{m.at.Dev, m.at.Ino}] = path
	}
	if m.hdr.Size > 0 {
		if err := s.content(m); err != nil {
			return err
		}
	}
	if m.at.Opaque {
		return s.whiteout(join(path, ovl.AUFSOpaque))
	}
	return nil
}

// content copies a file. Holes are written as zeros, as docker and containerd do: Apply makes them holes again.
func (s *stream) content(m *member) error {
	size := m.hdr.Size
	if _, err := s.tw.Write(m.head); err != nil {
		return err
	}
	if left := size - int64(len(m.head)); left > 0 {
		n, err := io.CopyBuffer(struct{ io.Writer }{s.tw}, struct{ io.Reader }{io.LimitReader(m.f, left)}, s.buf)
		if err != nil {
			return err
		}
		if n < left {
			return fmt.Errorf("ends after %d of %d bytes: %w", size-left+n, size, ErrChanged)
		}
	}
	if s.o.Progress != nil {
		s.o.Progress(s.done)
	}
	return nil
}
