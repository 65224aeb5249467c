package union_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/fs/union"
	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/direct"
	"plyfs/metadata"
)

// indexed is a stack of three lowers under an engine that answers from an index of them.
type indexed struct {
	*testing.T
	lowers []string
	spec   uniontest.Spec
	tree   *direct.Tree
	asked  atomic.Int32
}

// wrapped counts what is asked of an index, and may answer in its place.
type wrapped struct {
	union.StackIndex
	s   *indexed
	dir func(view string) (*metadata.Dir, error, bool)
}

func (w *wrapped) Dir(view string) (*metadata.Dir, error) {
	w.s.asked.Add(1)
	if w.dir != nil {
		if d, err, done := w.dir(view); done {
			return d, err
		}
	}
	return w.StackIndex.Dir(view)
}

func newIndexed(t *testing.T, e direct.Engine, dir func(view string) (*metadata.Dir, error, bool)) *indexed {
	t.Helper()
	s := &indexed{T: t}
	root := t.TempDir()
	for i := range 3 {
		l := filepath.Join(root, fmt.Sprint("lower", i))
		for _, d := range []string{"", "d", "d/sub", fmt.Sprint("only", i)} {
			s.try(os.MkdirAll(filepath.Join(l, d), 0o755))
		}
		s.try(os.WriteFile(filepath.Join(l, "d", fmt.Sprint("f", i)), []byte(fmt.Sprint("file ", i)), 0o644))
		s.try(os.Symlink(fmt.Sprint("target", i), filepath.Join(l, "d", fmt.Sprint("s", i))))
		s.lowers = append(s.lowers, l)
	}
	s.spec = uniontest.Spec{Lowers: s.lowers, Upper: filepath.Join(root, "upper"), Work: filepath.Join(root, "work")}
	s.try(os.Mkdir(s.spec.Upper, 0o755))
	s.try(os.Mkdir(s.spec.Work, 0o755))
	e.Indexed = true
	e.Index = func(made union.StackIndex) union.StackIndex { return &wrapped{StackIndex: made, s: s, dir: dir} }
	var err error
	s.tree, err = e.Tree(s.spec)
	s.try(err)
	t.Cleanup(func() { s.try(s.tree.Close()) })
	return s
}

func (s *indexed) try(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func (s *indexed) names(dir string) string {
	s.Helper()
	list, err := s.tree.ReadDir(dir)
	s.try(err)
	var names []string
	for _, e := range list {
		if e.Name != "." && e.Name != ".." {
			names = append(names, e.Name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func (s *indexed) read(name string) string {
	s.Helper()
	f, err := s.tree.Open(name, unix.O_RDONLY, 0)
	s.try(err)
	defer f.Close()
	var buf [64]byte
	n, err := f.ReadAt(buf[:], 0)
	s.try(err)
	return string(buf[:n])
}

// whole checks that everything is as the layers have it.
func (s *indexed) whole() {
	s.Helper()
	if got, want := s.names("d"), "f0 f1 f2 s0 s1 s2 sub"; got != want {
		s.Errorf("d holds %s, want %s", got, want)
	}
	for i := range 3 {
		if got, want := s.read(fmt.Sprint("d/f", i)), fmt.Sprint("file ", i); got != want {
			s.Errorf("d/f%d reads %q, want %q", i, got, want)
		}
		if got, err := s.tree.Readlink(fmt.Sprint("d/s", i)); err != nil || got != fmt.Sprint("target", i) {
			s.Errorf("d/s%d leads to %q, %v", i, got, err)
		}
		if st, err := s.tree.Lstat(fmt.Sprint("only", i)); err != nil || st.Nlink != 2 {
			s.Errorf("only%d has %d links, %v", i, st.Nlink, err)
		}
	}
	if _, err := s.tree.Lstat("d/absent"); !errors.Is(err, unix.ENOENT) {
		s.Errorf("an absent name: %v", err)
	}
	if st, err := s.tree.Lstat("d"); err != nil || st.Nlink != 3 {
		s.Errorf("d has %d links, %v; want 3", st.Nlink, err)
	}
}

func (s *indexed) stale(want string) {
	s.Helper()
	if got := s.tree.Stale(); want == "" && got != "" || !strings.Contains(got, want) {
		s.Errorf("the index is stale because of %q, want %q", got, want)
	}
}

// TestIndexAnswers: the index is asked, and the layers say the same.
func TestIndexAnswers(t *testing.T) {
	for _, verify := range []bool{false, true} {
		s := newIndexed(t, direct.Engine{Verify: verify}, nil)
		s.whole()
		s.stale("")
		if s.asked.Load() == 0 {
			t.Error("the index was never asked")
		}
	}
}

// TestIndexChangedDirectory: a name that was added to a layer is shown, and the index is not believed any more.
func TestIndexChangedDirectory(t *testing.T) {
	s := newIndexed(t, direct.Engine{}, nil)
	s.try(os.WriteFile(filepath.Join(s.lowers[1], "d/new"), []byte("new"), 0o600))
	s.try(os.Mkdir(filepath.Join(s.lowers[2], "only2/more"), 0o755))
	if got := s.read("d/new"); got != "new" {
		t.Errorf("d/new reads %q", got)
	}
	if got, want := s.names("d"), "f0 f1 f2 new s0 s1 s2 sub"; got != want {
		t.Errorf("d holds %s, want %s", got, want)
	}
	if got := s.names("only2"); got != "more" {
		t.Errorf("only2 holds %q", got)
	}
	s.stale("/d changed in layer " + s.lowers[1])
}

// TestIndexRemovedDirectory: so with one that is gone, or became something else.
func TestIndexRemovedDirectory(t *testing.T) {
	s := newIndexed(t, direct.Engine{}, nil)
	s.try(os.RemoveAll(filepath.Join(s.lowers[0], "only0")))
	s.try(os.Symlink("d", filepath.Join(s.lowers[0], "only0")))
	if got, err := s.tree.Readlink("only0"); err != nil || got != "d" {
		t.Errorf("only0 leads to %q, %v", got, err)
	}
	s.stale("changed in layer " + s.lowers[0])
}

// TestIndexEditedFile: editing a file in place leaves its directory alone. It is found out when the file is opened, before
// a byte is served.
func TestIndexEditedFile(t *testing.T) {
	s := newIndexed(t, direct.Engine{}, nil)
	f, err := s.tree.Open("d/f1", unix.O_RDONLY, 0) // attributes were given out
	s.try(err)
	defer f.Close()
	edited, err := os.OpenFile(filepath.Join(s.lowers[1], "d/f1"), os.O_WRONLY|os.O_APPEND, 0)
	s.try(err)
	_, err = edited.WriteString(" and more")
	s.try(errors.Join(err, edited.Close()))
	if got, want := s.read("d/f1"), "file 1 and more"; got != want {
		t.Errorf("d/f1 reads %q, want %q", got, want)
	}
	if st, err := s.tree.Lstat("d/f1"); err != nil || st.Size != 15 {
		t.Errorf("d/f1 has %d bytes, %v; want 15", st.Size, err)
	}
	s.stale("/d/f1 in layer " + s.lowers[1] + " was changed")
	s.stale("changed")
}

// TestIndexVerify finds an edited file when it is looked up.
func TestIndexVerify(t *testing.T) {
	s := newIndexed(t, direct.Engine{Verify: true}, nil)
	s.try(os.WriteFile(filepath.Join(s.lowers[2], "d/f2"), []byte("rewritten"), 0o644))
	if st, err := s.tree.Lstat("d/f2"); err != nil || st.Size != 9 {
		t.Errorf("d/f2 has %d bytes, %v; want 9", st.Size, err)
	}
	s.stale("/d/f2 in layer " + s.lowers[2] + " is not what was recorded")
}

// TestIndexFails: whatever an index answers, the layers decide.
func TestIndexFails(t *testing.T) {
	record := func(r metadata.Record) *metadata.Dir {
		b, err := r.Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		d, err := metadata.DecodeDir(b)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for name, c := range map[string]struct {
		answer func(view string) (*metadata.Dir, error, bool)
		stale  string
	}{
		"damaged": {func(view string) (*metadata.Dir, error, bool) { return nil, metadata.ErrDamaged, view == "d" }, "damaged"},
		"partial": {func(view string) (*metadata.Dir, error, bool) { return nil, nil, view == "d" || view == "only1" }, ""},
		"empty":   {func(string) (*metadata.Dir, error, bool) { return nil, nil, true }, ""},
		"layer": {func(string) (*metadata.Dir, error, bool) {
			return record(metadata.Record{Lowers: []metadata.Lower{{Layer: 7}}}), nil, true
		}, "a layer that is not there"},
		"path": {func(string) (*metadata.Dir, error, bool) {
			return record(metadata.Record{Lowers: []metadata.Lower{{Layer: 1, Path: "d/f1/x"}}}), nil, true
		}, "gone"},
		"stamp": {func(string) (*metadata.Dir, error, bool) {
			return record(metadata.Record{Lowers: []metadata.Lower{{Layer: 0}}}), nil, true
		}, "changed"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newIndexed(t, direct.Engine{}, c.answer)
			s.whole()
			s.stale(c.stale)
		})
	}
}

// TestIndexSkipsLayers: listing and looking up open nothing in the layers.
func TestIndexSkipsLayers(t *testing.T) {
	s := newIndexed(t, direct.Engine{}, nil)
	names := s.names("d")
	for _, name := range strings.Fields(names) {
		_, err := s.tree.Lstat("d/" + name)
		s.try(err)
	}
	if open := s.tree.Union().Stats().OpenDirs; open > 0 {
		t.Errorf("%d directories of the layers are open", open)
	}
}
