package tarlayer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/tarlayer"
	"plyfs/internal/testenv"
)

// live is a tree in which things happen between the calls of who reads it.
type live struct {
	*tarlayer.DirSource
	// at is called before a method ("Lstat", "Open", ...) looks at a path, with how often it did so before; an error is the
	// method's.
	at    func(method, path string, times int) error
	times map[string]int
}

func (l *live) before(method, path string) error {
	n := l.times[method+path]
	l.times[method+path]++
	return l.at(method, path, n)
}

func (l *live) Lstat(path string) (tarlayer.Attr, error) {
	if err := l.before("Lstat", path); err != nil {
		return tarlayer.Attr{}, err
	}
	return l.DirSource.Lstat(path)
}

func (l *live) Open(path string) (io.ReadCloser, error) {
	if err := l.before("Open", path); err != nil {
		return nil, err
	}
	return l.DirSource.Open(path)
}

func (l *live) Readlink(path string) (string, error) {
	if err := l.before("Readlink", path); err != nil {
		return "", err
	}
	return l.DirSource.Readlink(path)
}

func (l *live) Xattrs(path string) (map[string]string, error) {
	if err := l.before("Xattrs", path); err != nil {
		return nil, err
	}
	return l.DirSource.Xattrs(path)
}

func (l *live) ReadDir(path string) ([]string, error) {
	if err := l.before("ReadDir", path); err != nil {
		return nil, err
	}
	return l.DirSource.ReadDir(path)
}

// liveCase is something that happens while changes are written: once is called with dir before the method looks at path
// for the first time, and gone are paths that don't exist then for any method.
type liveCase struct {
	changes      string
	method, path string
	once         func(dir string) error
	gone         string
	// want are the members, as describe has them; notes are the paths of the notes.
	want, notes string
}

func liveCases() map[string]liveCase {
	const all = "A d; A d/f; A d/sub; A d/sub/x; A e"
	remove := func(name string) func(string) error {
		return func(dir string) error { return os.RemoveAll(filepath.Join(dir, name)) }
	}
	replace := func(name string, make func(path string) error) func(string) error {
		return func(dir string) error {
			p := filepath.Join(dir, name)
			return errors.Join(os.RemoveAll(p), make(p))
		}
	}
	text := func(s string) func(string) error {
		return func(p string) error { return os.WriteFile(p, []byte(s), 0o644) }
	}
	return map[string]liveCase{
		"nothing":         {changes: all, want: "d/ d/f=dee d/sub/ d/sub/x=ex e=ee"},
		"added":           {changes: all, gone: "d/f", want: "d/ d/sub/ d/sub/x=ex e=ee", notes: "d/f"},
		"modified":        {changes: "C d; C d/f; C e", gone: "d/f", want: "d/ d/.wh.f= e=ee", notes: "d/f"},
		"before it opens": {changes: all, method: "Open", path: "d/f", once: remove("d/f"), want: "d/ d/sub/ d/sub/x=ex e=ee", notes: "d/f"},
		"while it opens":  {changes: all, method: "Xattrs", path: "d/f", once: remove("d/f"), want: "d/ d/sub/ d/sub/x=ex e=ee", notes: "d/f"},
		"directory":       {changes: all, gone: "d/sub", want: "d/ d/f=dee e=ee", notes: "d/sub"},
		"all of it":       {changes: all, method: "Lstat", path: "d/sub/x", once: remove("d"), want: "d/ d/f=dee d/sub/ e=ee", notes: "d/sub/x"},
		"old directory":   {changes: "C d; D d/old; C d/sub; D d/sub/old; A d/sub/x; C e", gone: "d/sub", want: "d/ d/.wh.old= d/.wh.sub= e=ee", notes: "d/sub"},
		"symlink":         {changes: "A l; A e", method: "Readlink", path: "l", once: remove("l"), want: "e=ee", notes: "l"},
		"symlink to file": {changes: "A l; A e", method: "Readlink", path: "l", once: replace("l", text("text")), want: "e=ee l=text"},
		"other content":   {changes: all, method: "Open", path: "d/f", once: replace("d/f", text("longer content")), want: "d/ d/f=longer content d/sub/ d/sub/x=ex e=ee"},
		"shorter content": {changes: all, method: "Open", path: "d/f", once: replace("d/f", text("d")), want: "d/ d/f=d d/sub/ d/sub/x=ex e=ee"},
		"file to symlink": {changes: all, method: "Open", path: "d/f", once: replace("d/f", func(p string) error { return os.Symlink("to", p) }), want: "d/ d/f->to d/sub/ d/sub/x=ex e=ee"},
		"file to fifo":    {changes: all, method: "Open", path: "d/f", once: replace("d/f", func(p string) error { return unix.Mkfifo(p, 0o644) }), want: "d/ d/f|6 d/sub/ d/sub/x=ex e=ee"},
		"directory to file": {
			changes: "C d; A d/f; C d/sub; D d/sub/old; A d/sub/x; C e", method: "Lstat", path: "d/sub",
			once: replace("d/sub", text("file")), want: "d/ d/f=dee d/sub=file e=ee",
		},
		"file to directory": {
			changes: "C d/f:file; C e", method: "Lstat", path: "d/f",
			once: replace("d/f", func(p string) error { return os.MkdirAll(p+"/in", 0o755) }), want: "d/f/ d/f/.wh..wh..opq= e=ee",
		},
		"first of two names": {changes: "A h1; A h2; A h3", gone: "h1", want: "h2=aitch h3=>h2", notes: "h1"},
		"first name, opened": {changes: "A h1; A h2; A h3", method: "Open", path: "h1", once: remove("h1"), want: "h2=aitch h3=>h2", notes: "h1"},
		"second name":        {changes: "C h1; C h2; C h3", gone: "h2", want: "h1=aitch .wh.h2= h3=>h1", notes: "h2"},
	}
}

// TestWriteLive: a stream of a tree that changes meanwhile is whole, and has of each path what it was when its turn came.
func TestWriteLive(t *testing.T) {
	for name, c := range liveCases() {
		t.Run(name, func(t *testing.T) {
			dir := liveTree(t)
			src := &live{DirSource: tarlayer.NewDirSource(open(t, dir), tarlayer.DirOptions{}), times: map[string]int{}}
			defer src.Close()
			src.at = func(method, path string, times int) error {
				if c.gone != "" && (path == c.gone || strings.HasPrefix(path, c.gone+"/")) {
					return fmt.Errorf("%s %s: %w", method, path, unix.ENOENT)
				}
				if method == c.method && path == c.path && times == 0 {
					return c.once(dir)
				}
				return nil
			}
			var notes []string
			var b bytes.Buffer
			must(t, tarlayer.Write(t.Context(), &b, src, changesOf(c.changes), tarlayer.WriteOptions{
				Note: func(path, _ string) { notes = append(notes, path) },
			}))
			want(t, "stream", describe(t, b.Bytes()), c.want)
			want(t, "notes", strings.Join(notes, " "), c.notes)
			to := testenv.Scratch(t)
			_, err := tryApply(t, to, tarlayer.ApplyOptions{}, b.Bytes())
			must(t, err)
		})
	}
}

func liveTree(t *testing.T) string {
	dir := testenv.Scratch(t)
	apply(t, dir, tarlayer.ApplyOptions{}, directory("d"), file("d/f", "dee"), directory("d/sub"), file("d/sub/x", "ex"), file("e", "ee"),
		symlink("l", "there"), file("h1", "aitch"), hardlink("h2", "h1"), hardlink("h3", "h1"))
	return dir
}

// changesOf reads "A path; C path:file".
func changesOf(list string) (changes []tarlayer.Change) {
	for line := range strings.SplitSeq(list, "; ") {
		kind, path, _ := strings.Cut(line, " ")
		c := tarlayer.Change{Kind: map[string]tarlayer.Kind{"A": tarlayer.Add, "C": tarlayer.Modify, "D": tarlayer.Delete}[kind]}
		var typ bool
		if c.Path, _, typ = strings.Cut(path, ":"); typ {
			c.Type = unix.S_IFREG
		}
		changes = append(changes, c)
	}
	return changes
}

// describe is a stream as a line: name=content, name->target of a symlink, name=>target of a hard link, name|type else.
func describe(t *testing.T, stream []byte) string {
	t.Helper()
	var all []string
	for r := tar.NewReader(bytes.NewReader(stream)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return strings.Join(all, " ")
		}
		must(t, err)
		switch h.Typeflag {
		case tar.TypeReg:
			b, err := io.ReadAll(r)
			must(t, err)
			all = append(all, h.Name+"="+string(b))
		case tar.TypeSymlink:
			all = append(all, h.Name+"->"+h.Linkname)
		case tar.TypeLink:
			all = append(all, h.Name+"=>"+h.Linkname)
		case tar.TypeDir:
			all = append(all, h.Name)
		default:
			all = append(all, h.Name+"|"+string(h.Typeflag))
		}
	}
}

// TestWriteRestless: what never stays the same is written as the last look found it, or left out if it can't be.
func TestWriteRestless(t *testing.T) {
	dir := liveTree(t)
	src := &live{DirSource: tarlayer.NewDirSource(open(t, dir), tarlayer.DirOptions{}), times: map[string]int{}}
	defer src.Close()
	src.at = func(method, path string, times int) error {
		switch {
		case method == "Open" && path == "d/f":
			return os.WriteFile(filepath.Join(dir, path), []byte(strings.Repeat("x", times+1)), 0o644)
		case method == "Xattrs" && path == "e":
			return unix.ENOENT
		}
		return nil
	}
	var b bytes.Buffer
	must(t, tarlayer.Write(t.Context(), &b, src, changesOf("A d; A d/f; C e; A h1"), tarlayer.WriteOptions{}))
	want(t, "stream", describe(t, b.Bytes()), "d/ d/f=xxxxxxx h1=aitch")
}

// TestWriteAllLive: a whole tree may lose parts while it is written.
func TestWriteAllLive(t *testing.T) {
	dir := liveTree(t)
	src := &live{DirSource: tarlayer.NewDirSource(open(t, dir), tarlayer.DirOptions{}), times: map[string]int{}}
	defer src.Close()
	src.at = func(method, path string, _ int) error {
		if method == "ReadDir" && path == "d/sub" || method == "Open" && path == "e" {
			return os.RemoveAll(filepath.Join(dir, path))
		}
		return nil
	}
	var b bytes.Buffer
	must(t, tarlayer.WriteAll(t.Context(), &b, src, tarlayer.WriteOptions{}))
	want(t, "stream", describe(t, b.Bytes()), "./ d/ d/f=dee d/sub/ h1=aitch h2=>h1 h3=>h1 l->there")
}

// TestWriteShrinks: the size of a big file is in the stream before its end is read.
func TestWriteShrinks(t *testing.T) {
	dir := liveTree(t)
	big := filepath.Join(dir, "big")
	must(t, os.WriteFile(big, make([]byte, 3<<20), 0o644))
	src := &live{DirSource: tarlayer.NewDirSource(open(t, dir), tarlayer.DirOptions{}), times: map[string]int{}}
	defer src.Close()
	src.at = func(string, string, int) error { return nil }
	err := tarlayer.Write(t.Context(), truncateAt{io.Discard, big}, src, changesOf("A big; A e"), tarlayer.WriteOptions{})
	if !errors.Is(err, tarlayer.ErrChanged) || !strings.Contains(fmt.Sprint(err), `"/big"`) {
		t.Errorf("%v, want ErrChanged of /big", err)
	}
}

// truncateAt truncates a file at the first write.
type truncateAt struct {
	io.Writer
	path string
}

func (w truncateAt) Write(p []byte) (int, error) {
	return len(p), os.Truncate(w.path, 1<<20)
}

// TestCompareLive compares trees of which the newer one is changed all the time.
func TestCompareLive(t *testing.T) {
	dir := testenv.Scratch(t)
	older, newer := subdir(t, dir, "older"), subdir(t, dir, "newer")
	apply(t, older, tarlayer.ApplyOptions{}, base()...)
	apply(t, newer, tarlayer.ApplyOptions{}, base()...)
	stop := busy(t, newer)
	defer stop()
	for range 50 {
		changes, err := tarlayer.Compare(t.Context(), open(t, older), open(t, newer), tarlayer.CompareOptions{})
		must(t, err)
		src := tarlayer.NewDirSource(open(t, newer), tarlayer.DirOptions{})
		var b bytes.Buffer
		must(t, tarlayer.Write(t.Context(), &b, src, changes, tarlayer.WriteOptions{}), src.Close())
		if i := slices.IndexFunc(changes, func(c tarlayer.Change) bool { return !strings.HasPrefix(c.Path+"/", "d/") }); i >= 0 {
			t.Fatalf("%v changed, which did not", changes[i])
		}
		to := testenv.Scratch(t)
		apply(t, to, tarlayer.ApplyOptions{}, base()...)
		_, err = tryApply(t, to, tarlayer.ApplyOptions{}, b.Bytes())
		must(t, err)
	}
}

// busy makes, replaces and removes things beneath d in dir until stop is called.
func busy(t *testing.T, dir string) (stop func()) {
	end, ended := make(chan struct{}), make(chan error)
	at := func(name string) string { return filepath.Join(dir, "d", name) }
	go func() {
		var err error
		for err == nil {
			select {
			case <-end:
				ended <- nil
				return
			default:
			}
			err = errors.Join(os.MkdirAll(at("t/u"), 0o755), os.WriteFile(at("t/u/f"), []byte("ff"), 0o644), os.Link(at("t/u/f"), at("t/g")),
				os.RemoveAll(at("t")), os.WriteFile(at("t"), nil, 0o644), os.Remove(at("t")), os.Symlink("x", at("t")), os.Remove(at("t")),
				os.Rename(at("sub"), at("moved")), os.WriteFile(at("two"), []byte("2"), 0o644), os.Rename(at("moved"), at("sub")))
		}
		ended <- err
	}()
	return func() {
		close(end)
		must(t, <-ended)
	}
}
