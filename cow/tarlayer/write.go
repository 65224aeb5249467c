package tarlayer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"plyfs/cow/ovl"
	"plyfs/internal/sys"
)

type inode struct{ dev, ino uint64 }

// Write writes changes as the tar stream of a layer, with what src has at the paths that were added or modified. The
// same changes of an equal tree give the same bytes, whatever the order of changes, the machine and the time.
//
// It blocks for as long as src and w take. Errors name the path; they wrap ErrChanged for a file that changes
// meanwhile, the error of src or w, or the cause of ctx's end. What was written then is no complete stream. changes is
// not modified.
func Write(ctx context.Context, w io.Writer, src Source, changes []Change, o WriteOptions) error {
	sorted := slices.Clone(changes)
	slices.SortStableFunc(sorted, func(a, b Change) int { return compareMembers(a, b) })
	s := newStream(w, src, o)
	for _, c := range sorted {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		if c.Path == "" {
			return fmt.Errorf("a change of the root: %w", ErrInvalid)
		}
		if err := s.change(c); err != nil {
			return pathError("write", c.Path, err)
		}
	}
	return s.close()
}

// WriteAll writes a whole tree as one layer, with the root's own attributes as the first member. It is Write otherwise.
func WriteAll(ctx context.Context, w io.Writer, src Tree, o WriteOptions) error {
	s := newStream(w, src, o)
	at, err := src.Lstat("")
	if err != nil {
		return pathError("write", "", err)
	}
	if err := s.file("", at); err != nil {
		return pathError("write", "", err)
	}
	if err := s.walk(ctx, src, ""); err != nil {
		return err
	}
	return s.close()
}

// compareMembers is ComparePaths, but for whiteouts: they come before what else is in their directory, as the image
// specification recommends.
func compareMembers(a, b Change) int {
	n := 0 // the common parents
	for i := range min(len(a.Path), len(b.Path)) {
		if a.Path[i] != b.Path[i] {
			break
		}
		if a.Path[i] == '/' {
			n = i + 1
		}
	}
	aw := a.Kind == Delete && !strings.Contains(a.Path[n:], "/")
	bw := b.Kind == Delete && !strings.Contains(b.Path[n:], "/")
	if aw != bw && a.Path != b.Path {
		// A parent of the other one is not its sibling.
		if aw && !strings.HasPrefix(a.Path, b.Path+"/") {
			return -1
		}
		if bw && !strings.HasPrefix(b.Path, a.Path+"/") {
			return 1
		}
	}
	return ComparePaths(a.Path, b.Path)
}

// stream is a layer being written.
type stream struct {
	o   WriteOptions
	src Source
	tw  *tar.Writer
	buf []byte
	// names are the first names of files that have several.
	names map[inode]string
	done  Progress
}

func newStream(w io.Writer, src Source, o WriteOptions) *stream {
	return &stream{o: o, src: src, tw: tar.NewWriter(w), buf: make([]byte, ioBuffer), names: make(map[inode]string)}
}

func (s *stream) close() error {
	if err := s.tw.Close(); err != nil {
		return fmt.Errorf("end of the layer: %w", err)
	}
	return nil
}

func (s *stream) note(path, reason string) {
	if s.o.Note != nil {
		s.o.Note(path, reason)
	}
}

func (s *stream) walk(ctx context.Context, src Tree, dir string) error {
	names, err := src.ReadDir(dir)
	if err != nil {
		return pathError("list", dir, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		path := join(dir, name)
		at, err := src.Lstat(path)
		if errors.Is(err, unix.ENOENT) {
			continue // a whiteout, or removed meanwhile
		}
		if err == nil && !s.skips(path) {
			err = s.file(path, at)
		}
		if err != nil {
			return pathError("write", path, err)
		}
		if at.Mode&unix.S_IFMT == unix.S_IFDIR {
			if err := s.walk(ctx, src, path); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *stream) change(c Change) error {
	switch {
	case s.skips(c.Path):
		return nil
	case c.Kind == Delete:
		return s.whiteout(join(parentOf(c.Path), ovl.AUFSWhiteout(baseOf(c.Path))))
	case c.Kind != Add && c.Kind != Modify:
		return fmt.Errorf("%v: %w", c.Kind, ErrInvalid)
	}
	at, err := s.src.Lstat(c.Path)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%w: %w", ErrChanged, err)
	}
	if err != nil {
		return err
	}
	return s.file(c.Path, at)
}

// skips leaves out what can't be said in a stream: names that would be whiteouts there.
func (s *stream) skips(path string) bool {
	for rest := path; rest != ""; {
		component, after, _ := strings.Cut(rest, "/")
		if ovl.IsAUFSName(component) {
			s.note(path, "its name would be a whiteout in a layer")
			return true
		}
		rest = after
	}
	return false
}

// whiteout writes an empty member of a fixed time: a deletion has none of its own.
func (s *stream) whiteout(name string) error {
	hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Format: tar.FormatPAX, ModTime: time.Unix(0, 0)}
	return s.header(hdr, name)
}

func (s *stream) header(hdr *tar.Header, path string) error {
	if err := s.tw.WriteHeader(hdr); err != nil {
		return err
	}
	s.done.Path = path
	s.done.Entries++
	s.done.Bytes += hdr.Size
	if s.o.Progress != nil && hdr.Size == 0 {
		s.o.Progress(s.done)
	}
	return nil
}

// file writes the member of a path that exists.
func (s *stream) file(path string, at Attr) error {
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
		target, err := s.src.Readlink(path)
		if err != nil {
			return err
		}
		hdr.Typeflag, hdr.Linkname, hdr.Mode = tar.TypeSymlink, target, 0o777
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
		return nil
	default:
		return fmt.Errorf("file of unknown type %#o: %w", at.Mode&unix.S_IFMT, ErrInvalid)
	}
	if at.Nlink > 1 && hdr.Typeflag != tar.TypeDir {
		id := inode{at.Dev, at.Ino}
		if first, ok := s.names[id]; ok {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
			hdr.Devmajor, hdr.Devminor = 0, 0
			return s.header(hdr, path)
		}
		s.names[id] = path
	}
	if err := s.xattrs(hdr, path); err != nil {
		return err
	}
	if err := s.header(hdr, path); err != nil {
		return err
	}
	if hdr.Size > 0 {
		if err := s.content(path, hdr.Size); err != nil {
			return err
		}
	}
	if at.Opaque {
		return s.whiteout(join(path, ovl.AUFSOpaque))
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

// content copies a file. Holes are written as zeros, as docker and containerd do: Apply makes them holes again.
func (s *stream) content(path string, size int64) error {
	f, err := s.src.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{s.tw}, struct{ io.Reader }{io.LimitReader(f, size)}, s.buf)
	if err != nil {
		return err
	}
	if n < size {
		return fmt.Errorf("ends after %d of %d bytes: %w", n, size, ErrChanged)
	}
	if s.o.Progress != nil {
		s.o.Progress(s.done)
	}
	return nil
}
