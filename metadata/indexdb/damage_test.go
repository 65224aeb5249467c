package indexdb

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"plyfs/metadata"
)

// pristine builds an index and returns the path of a copy of it, relative file by file.
func pristine(t *testing.T, views map[string]*metadata.Record) map[string][]byte {
	t.Helper()
	c, _ := openCache(t, t.TempDir())
	build(t, c, testStack(1), views)
	files := make(map[string][]byte)
	top := c.path(testStack(1).Name())
	err := filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		files[rel], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// checkDamaged writes files as an index and checks that it answers rightly, or not at all. It returns what Open said.
func checkDamaged(t *testing.T, files map[string][]byte, views map[string]*metadata.Record, what string) error {
	t.Helper()
	dir, err := os.MkdirTemp(t.TempDir(), "cache")
	if err != nil {
		t.Fatal(err)
	}
	c, err := OpenCache(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	name := testStack(1).Name()
	for rel, content := range files {
		path := filepath.Join(c.path(name), rel)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	x, err := c.Open(testStack(1))
	if err != nil {
		if !errors.Is(err, ErrNotBuilt) {
			t.Errorf("%s: open: %v, want ErrNotBuilt", what, err)
		}
		checkNames(t, c, name+".bad-1")
		return err
	}
	defer func() {
		if err := x.Close(); err != nil {
			t.Errorf("%s: close: %v", what, err)
		}
	}()
	bad := 0
	for view, r := range views {
		d, err := x.Dir(view)
		if errors.Is(err, metadata.ErrDamaged) {
			bad++
			continue
		}
		if err != nil || d == nil || d.Len() != len(r.Entries) {
			t.Errorf("%s: Dir(%q) = %v, %v", what, view, d, err)
			continue
		}
		var e metadata.Entry
		for i := range r.Entries {
			if ok, err := d.Find(r.Entries[i].Name, &e); !ok || err != nil || !reflect.DeepEqual(e, recorded(r.Entries[i])) {
				t.Errorf("%s: %q: a wrong answer", what, r.Entries[i].Name)
			}
		}
	}
	if stale := x.Info().Stale != ""; stale != (bad > 0) {
		t.Errorf("%s: %d directories are damaged, stale: %v", what, bad, stale)
	}
	return nil
}

func TestDamageAnywhere(t *testing.T) {
	views := testViews()
	files := pristine(t, views)
	if err := checkDamaged(t, files, views, "nothing"); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for rel, content := range files {
		// Of each region one byte; the head and the tail of a file whole.
		for at := 0; at < len(content); at++ {
			if at > 40 && at < len(content)-40 {
				at = min(at+r.IntN(64), len(content)-40)
			}
			bad := slices.Clone(content)
			bad[at] ^= 1 << r.IntN(8)
			if err := damaged(t, files, views, rel, bad); err == nil && !strings.HasSuffix(rel, ".vlog") {
				t.Errorf("%s: nobody minds byte %d", rel, at)
			}
		}
		for _, size := range []int{0, 1, len(content) / 2, len(content) - 1} {
			if size < 0 || size >= len(content) {
				continue
			}
			if err := damaged(t, files, views, rel, content[:size]); err == nil {
				t.Errorf("%s: nobody minds that it is cut to %d bytes", rel, size)
			}
		}
		if rel == usedFile {
			continue
		}
		if err := damaged(t, files, views, rel, append(slices.Clone(content), 0)); err == nil {
			t.Errorf("%s: nobody minds a byte more", rel)
		}
		if err := damaged(t, files, views, rel, make([]byte, len(content))); err == nil && !strings.HasSuffix(rel, ".vlog") {
			t.Errorf("%s: nobody minds zeros", rel)
		}
		if err := damaged(t, files, views, rel, nil); err == nil {
			t.Errorf("%s: nobody misses it", rel)
		}
	}
}

// damaged checks the index with one file as given, or without it if content is nil.
func damaged(t *testing.T, files map[string][]byte, views map[string]*metadata.Record, rel string, content []byte) error {
	t.Helper()
	all := make(map[string][]byte, len(files))
	for k, v := range files {
		all[k] = v
	}
	all[rel] = content
	if content == nil {
		delete(all, rel)
	}
	return checkDamaged(t, all, views, rel)
}

func TestForeignFiles(t *testing.T) {
	views := testViews()
	files := pristine(t, views)
	for _, rel := range []string{"db/00007.mem", "db/000009.vlog", "db/000077.sst", "db/core", "db/dir/file"} {
		if err := damaged(t, files, views, rel, []byte("x")); err == nil {
			t.Errorf("nobody minds %s", rel)
		}
	}
	for what, all := range map[string]map[string][]byte{
		"nothing": {"used": {}}, "something": {"db/file": {1}}, "a seal": {"db/seal": []byte("x")},
		"another format": {"db": []byte("a file")},
	} {
		if err := checkDamaged(t, all, views, what); err == nil {
			t.Errorf("%s is an index", what)
		}
	}
}

// Files that are cut while an index is open give an error, not a signal.
func TestCutWhileOpen(t *testing.T) {
	c, _ := openCache(t, t.TempDir())
	build(t, c, testStack(1), testViews())
	x := open(t, c, testStack(1))
	paths, err := filepath.Glob(filepath.Join(c.path(testStack(1).Name()), dbDir, "*.vlog"))
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	for _, p := range paths {
		if err := os.Truncate(p, 0); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if d, err := x.Dir("a/b"); !errors.Is(err, metadata.ErrDamaged) {
			t.Errorf("%v, %v; want metadata.ErrDamaged", d, err)
		}
	}
	if x.Info().Stale == "" {
		t.Error("the index is not stale")
	}
	if _, err := c.Open(testStack(1)); !errors.Is(err, ErrNotBuilt) {
		t.Errorf("opened again: %v", err)
	}
}
