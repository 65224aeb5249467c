package overlaystore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"plyfs/drivers"
	"plyfs/internal/testenv"
)

// content puts a file into an image layer that was just created.
func content(t testing.TB, s *Store, id, name string, o *drivers.ApplyOptions) error {
	t.Helper()
	scratch := "stream-of-" + id
	must(t, s.CreateReadWrite(t.Context(), scratch, "", nil))
	must(t, os.WriteFile(s.dir(scratch, diffDir, name), []byte(id), 0o644))
	r, err := s.Diff(t.Context(), scratch, "", nil)
	must(t, err)
	_, err = s.ApplyDiff(t.Context(), id, r, o)
	must(t, r.Close())
	must(t, s.Remove(t.Context(), scratch))
	return err
}

// TestFillBelow: a layer with others on top of it can be unpacked into as long as none of those is used, and nobody can use
// them meanwhile.
func TestFillBelow(t *testing.T) {
	s := open(t, testenv.Scratch(t))
	chain(t, s, "a", "b", "c")
	o := &drivers.ApplyOptions{Below: func(context.Context) error { return nil }}
	_, err := s.Get(t.Context(), "c", nil)
	must(t, err)
	wants(t, "beneath a mount", content(t, s, "a", "f", o), drivers.ErrInUse)
	must(t, s.Put(t.Context(), "c"))
	must(t, s.CreateReadWrite(t.Context(), "container", "c", nil))
	wants(t, "beneath a container", content(t, s, "a", "f", o), drivers.ErrInUse)
	must(t, s.Remove(t.Context(), "container"))
	filled, err := s.beginFill("a", o)
	must(t, err)
	_, err = s.Get(t.Context(), "c", nil)
	wants(t, "Get above", err, drivers.ErrInUse)
	_, err = s.Diff(t.Context(), "c", "b", nil)
	wants(t, "Diff above", err, drivers.ErrInUse)
	_, err = s.Plan(t.Context(), "c", nil)
	wants(t, "Plan above", err, drivers.ErrInUse)
	wants(t, "a container above", s.CreateReadWrite(t.Context(), "container", "a", nil), drivers.ErrInUse)
	filled(nil)
	must(t, content(t, s, "a", "f", o))
	root, err := s.Get(t.Context(), "c", nil)
	must(t, err)
	if got := read(t, filepath.Join(root, "f")); got != "a" {
		t.Errorf("f holds %q", got)
	}
	must(t, s.Put(t.Context(), "c"))
}

// TestBelowFails: why the layers below will not be complete is why the layer above cannot be unpacked.
func TestBelowFails(t *testing.T) {
	s := open(t, testenv.Scratch(t))
	chain(t, s, "a", "b")
	why := errors.New("they will not be")
	// The root of the stream is described, that of "b" is not: it wants a look below.
	o := &drivers.ApplyOptions{Below: func(context.Context) error { return why }}
	r, err := s.Diff(t.Context(), "a", "", nil)
	must(t, err)
	_, err = s.ApplyDiff(t.Context(), "b", r, o)
	wants(t, "ApplyDiff", err, why)
	must(t, r.Close())
	must(t, s.Remove(t.Context(), "b"))
}

// lose deletes the directory of a layer behind the store's back, as a careless person does.
func lose(t testing.TB, base, id string) *Store {
	t.Helper()
	must(t, os.RemoveAll(filepath.Join(base, "home", id)))
	s := open(t, base)
	must(t, s.Cleanup(t.Context()))
	return s
}

// TestRestore: a layer that was lost is made anew beneath those that need it, which are whole then; until it has its content
// nobody can use them, and if that does not come to pass everything is as before.
func TestRestore(t *testing.T) {
	base := testenv.Scratch(t)
	s := open(t, base)
	chain(t, s, "a", "b")
	must(t, s.CreateReadWrite(t.Context(), "container", "b", nil))
	s = lose(t, base, "a")
	lost := func(what string) {
		t.Helper()
		_, err := s.Get(t.Context(), "container", nil)
		wants(t, what, err, drivers.ErrDamaged)
	}
	lost("without it")
	wants(t, "as a writable one", s.CreateReadWrite(t.Context(), "a", "", nil), drivers.ErrInUse)
	must(t, s.Create(t.Context(), "a", "", nil))
	lost("made, not unpacked")
	must(t, s.Remove(t.Context(), "a"))
	lost("removed again")
	must(t, s.Create(t.Context(), "a", "", nil))
	s = open(t, base) // the process died
	if slices.Contains(ids(t, s), "a") {
		t.Error("a half-made layer is listed")
	}
	must(t, s.Cleanup(t.Context()))
	if _, err := os.Lstat(s.dir("a")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a half-made layer is left: %v", err)
	}
	must(t, s.Create(t.Context(), "a", "", nil))
	must(t, content(t, s, "a", "f", nil))
	for range 2 {
		root, err := s.Get(t.Context(), "container", nil)
		must(t, err)
		if got := read(t, filepath.Join(root, "f")); got != "a" {
			t.Errorf("f holds %q", got)
		}
		must(t, s.Put(t.Context(), "container"))
		s = open(t, base)
		must(t, s.Cleanup(t.Context()))
	}
	wants(t, "Remove of the parent", s.Remove(t.Context(), "a"), drivers.ErrInUse)
	for _, id := range []string{"container", "b", "a"} {
		must(t, s.Remove(t.Context(), id))
	}
}
