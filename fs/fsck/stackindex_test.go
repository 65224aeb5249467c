package fsck_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/fs/fsck"
	"plyfs/fs/union"
	"plyfs/fs/union/uniontest"
	"plyfs/internal/testenv"
	"plyfs/metadata"
	"plyfs/metadata/indexdb"
)

// forger hands records on after it changed them.
type forger struct {
	*indexdb.Builder
	forge func(view string, r *metadata.Record)
	sums  func([]metadata.Digest)
}

func (f forger) Put(view string, r *metadata.Record) error {
	f.forge(view, r)
	return f.Builder.Put(view, r)
}

func (f forger) PutDigests(view string, ds []metadata.Digest) error {
	f.sums(ds)
	return f.Builder.PutDigests(view, ds)
}

// openLowers opens directories as layers until the test ends.
func openLowers(t testing.TB, dirs []string) (ls []*layer.Layer) {
	t.Helper()
	for _, d := range dirs {
		l, err := layer.Open(d)
		ok(t, err)
		t.Cleanup(func() { l.Close() })
		ls = append(ls, l)
	}
	return ls
}

// indexOf builds an index of the lowers of s, with what forge does to its records.
func indexOf(
	t testing.TB, s uniontest.Spec, forge func(string, *metadata.Record), sums func([]metadata.Digest),
) *indexdb.Index {
	t.Helper()
	var own []*layer.Layer // for the union to close
	for _, d := range s.Lowers {
		l, err := layer.Open(d)
		ok(t, err)
		own = append(own, l)
	}
	o := union.Options{Lowers: own, ReadOnly: true}
	id, err := union.StackOf(&o)
	ok(t, err)
	u, err := union.New(o)
	ok(t, err)
	defer u.Close()
	cache, err := indexdb.OpenCache(testenv.Scratch(t), nil)
	ok(t, err)
	t.Cleanup(func() { cache.Close() })
	ok(t, os.Chmod(cache.Dir(), 0o700))
	b, err := cache.Build(id, indexdb.BuildOptions{Digests: true})
	ok(t, err)
	ok(t, u.Describe(t.Context(), forger{b, forge, sums}, union.DescribeOptions{Digests: true}))
	ok(t, b.Commit())
	x, err := cache.Open(id)
	ok(t, err)
	t.Cleanup(func() { x.Close() })
	return x
}

func nothing(string, *metadata.Record) {}

func noSums([]metadata.Digest) {}

// verify compares an index with the lowers of s.
func verify(
	ctx context.Context, t testing.TB, s uniontest.Spec, x *indexdb.Index,
) ([]string, fsck.IndexSummary, error) {
	t.Helper()
	var got []string
	sum, err := fsck.VerifyIndex(ctx, fsck.IndexOptions{
		Index: x, Lowers: openLowers(t, s.Lowers), Content: true,
		Report: func(f fsck.IndexFinding) { got = append(got, string(f.Kind)+" "+f.View) },
	})
	slices.Sort(got)
	return got, sum, err
}

// indexed is two lowers with an object of each kind.
func indexed(t testing.TB) uniontest.Spec {
	t.Helper()
	s := newSpec(t, []ls{
		{reg("d/f", "x"), reg("d/own", "y"), dirs("d/sub"), xattr("d/own", "overlay.metacopy", "")},
		{reg("d/f", "below"), reg("d/own", "data"), reg("g", "z"), dirs("e")},
	}, nil)
	low := s.Lowers[0]
	ok(t, os.Symlink("g", filepath.Join(low, "d/link")))
	ok(t, unix.Mknod(filepath.Join(low, "d/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	ok(t, unix.Setxattr(filepath.Join(low, "d/f"), "trusted.test", []byte("value"), 0))
	ok(t, os.Link(filepath.Join(low, "d/f"), filepath.Join(low, "hard")))
	return s
}

// TestVerifyIndexTrue: a true index has no findings, and all data is read, also that of a metadata-only copy.
func TestVerifyIndexTrue(t *testing.T) {
	s := indexed(t)
	x := indexOf(t, s, nothing, noSums)
	got, sum, err := verify(t.Context(), t, s, x)
	if err != nil || len(got) > 0 || sum.Directories != 4 || sum.Entries != 9 || sum.Files != 4 || sum.Bytes != 1+4+1+1 {
		t.Errorf("%q, %+v, %v", got, sum, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := verify(ctx, t, s, x); !errors.Is(err, context.Canceled) {
		t.Errorf("not wanted any more: %v", err)
	}
}

// TestVerifyIndexWrong: whatever is wrong in an entry is found, although the layers say that nothing changed.
func TestVerifyIndexWrong(t *testing.T) {
	entry := func(name string, forge func(*metadata.Entry)) func(string, *metadata.Record) {
		return func(view string, r *metadata.Record) {
			for i := range r.Entries {
				if filepath.Join(view, r.Entries[i].Name) == name {
					forge(&r.Entries[i])
				}
			}
		}
	}
	drop := func(name string) func(string, *metadata.Record) {
		return func(view string, r *metadata.Record) {
			r.Entries = slices.DeleteFunc(r.Entries, func(e metadata.Entry) bool { return filepath.Join(view, e.Name) == name })
		}
	}
	for _, tt := range []struct {
		name  string
		forge func(string, *metadata.Record)
		want  string
	}{
		{"mode", entry("d/f", func(e *metadata.Entry) { e.Mode ^= 0o111 }), "wrong d/f"},
		{"mode of a directory", entry("d/sub", func(e *metadata.Entry) { e.Mode ^= 0o111 }), "wrong d/sub"},
		{"type", entry("d/f", func(e *metadata.Entry) { e.Mode = unix.S_IFIFO | e.Mode&0o777 }), "edited d/f"},
		{"owner", entry("g", func(e *metadata.Entry) { e.UID++ }), "wrong g"},
		{"links", entry("hard", func(e *metadata.Entry) { e.Nlink++ }), "wrong hard"},
		{"device", entry("d/null", func(e *metadata.Entry) { e.Rdev++ }), "wrong d/null"},
		{"target", entry("d/link", func(e *metadata.Entry) { e.Target = "f" }), "wrong d/link"},
		{"inode", entry("g", func(e *metadata.Entry) { e.Ino++ }), "edited g"},
		{"size", entry("g", func(e *metadata.Entry) { e.Size++ }), "edited g"},
		{"no xattr", entry("d/f", func(e *metadata.Entry) { e.Xattrs = nil }), "wrong d/f"},
		{"another xattr", entry("d/f", func(e *metadata.Entry) { e.Xattrs[0].Name = "trusted.tess" }), "wrong d/f"},
		{"value", entry("d/f", func(e *metadata.Entry) { e.Xattrs[0].Value = []byte("other") }), "wrong d/f"},
		{"lower file", entry("d/f", func(e *metadata.Entry) { e.First = 1 }), "edited d/f"},
		{"missing name", drop("g"), "unrecorded g"},
		{"missing merged name", drop("d/sub"), "unrecorded d/sub"},
		{"another layer", func(view string, r *metadata.Record) {
			if view == "e" {
				r.Lowers[0].Layer = 7
			}
		}, "wrong e"},
		{"another directory", func(view string, r *metadata.Record) {
			if view == "e" {
				r.Lowers[0].Path = "f"
			}
		}, "directory-gone e"},
	} {
		s := indexed(t)
		x := indexOf(t, s, tt.forge, noSums)
		got, sum, err := verify(t.Context(), t, s, x)
		if err != nil || !slices.Contains(got, tt.want) || sum.Stale == 0 || sum.Rotten != 0 {
			t.Errorf("%s: %q, %+v, %v; want %s", tt.name, got, sum, err, tt.want)
		}
	}
}

// TestVerifyIndexContent: a digest that does not match is the disk's fault where the file's times are known.
func TestVerifyIndexContent(t *testing.T) {
	for name, want := range map[string]string{"g": "bit-rot g", "own": "edited d/own"} {
		s := indexed(t)
		x := indexOf(t, s, nothing, func(ds []metadata.Digest) {
			for i := range ds {
				if ds[i].Name == name {
					ds[i].Sum++
				}
			}
		})
		if got, _, err := verify(t.Context(), t, s, x); err != nil || !slices.Equal(got, []string{want}) {
			t.Errorf("%q, %v; want %s", got, err, want)
		}
	}
}

// TestVerifyIndexFewerLayers: a record of a layer that is not given is wrong, not out of range.
func TestVerifyIndexFewerLayers(t *testing.T) {
	s := indexed(t)
	x := indexOf(t, s, nothing, noSums)
	s.Lowers = s.Lowers[:1]
	if got, sum, err := verify(t.Context(), t, s, x); err != nil || sum.Stale == 0 || !slices.Contains(got, "wrong e") {
		t.Errorf("%q, %+v, %v", got, sum, err)
	}
}
