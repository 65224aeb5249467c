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
// src may change meanwhile. Each path is written as it is when its turn comes: one that is gone is deleted if it was
// modified, and left out if it was added, with what was beneath it, and o.Note is told; a directory that took the place of
// something else is an empty one. A file that is written to has what it had before, or after, or the beginning of either.
//
// It blocks for as long as src and w take. Errors name the path; they wrap ErrChanged for a file of more than a megabyte
// that gets shorter while it is read, whose size the stream has said already, the error of src or w, or the cause of ctx's
// end. What was written then is no complete stream. changes is not modified.
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
	if _, err := s.file(""); err != nil {
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
	// cut is the last path that is no directory in the stream, though it was one when the changes were listed: what is beneath
	// it has no place.
	cut  string
	done Progress
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
	if sys.Gone(err) && dir != "" {
		return nil
	}
	if err != nil {
		return pathError("list", dir, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		path := join(dir, name)
		directory := false
		if !s.skips(path) {
			directory, err = s.file(path)
		}
		switch {
		case sys.Gone(err):
			continue // a whiteout, or removed meanwhile
		case errors.Is(err, errRestless):
			s.note(path, errRestless.Error())
			continue
		case err != nil:
			return pathError("write", path, err)
		}
		if directory {
			if err := s.walk(ctx, src, path); err != nil {
				return err
			}
		}
	}
	return nil
}

// file writes the member of a path that exists.
func (s *stream) file(path string) (directory bool, err error) {
	m, err := s.member(path)
	if err != nil {
		return false, err
	}
	defer m.close()
	return m.isDir(), s.put(m, path)
}

func (s *stream) change(c Change) error {
	switch {
	case s.cut != "" && isBeneath(c.Path, s.cut):
		return nil
	case s.skips(c.Path):
		s.cut = c.Path
		return nil
	case c.Kind == Delete:
		return s.whiteout(join(parentOf(c.Path), ovl.AUFSWhiteout(baseOf(c.Path))))
	case c.Kind != Add && c.Kind != Modify:
		return fmt.Errorf("%v: %w", c.Kind, ErrInvalid)
	}
	m, err := s.member(c.Path)
	switch {
	case err == nil:
	case errors.Is(err, errMounted), errors.Is(err, errRestless):
		s.cut = c.Path
		s.note(c.Path, err.Error())
		return nil
	case sys.Gone(err):
		s.cut = c.Path
		s.note(c.Path, "it was removed while the layer was written")
		if c.Kind == Modify {
			return s.whiteout(join(parentOf(c.Path), ovl.AUFSWhiteout(baseOf(c.Path))))
		}
		return nil
	default:
		return err
	}
	defer m.close()
	if !m.isDir() {
		s.cut = c.Path
	} else if c.Kind == Modify && c.Type != 0 && c.Type != unix.S_IFDIR {
		// Nothing tells what the layer below has there, nor was it compared.
		m.at.Opaque = true
	}
	return s.put(m, c.Path)
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
