package server

import (
	"os"
	"path/filepath"
	"testing"

	"plyfs/fs/mountopt"
)

// A mount point that lies in a layer, by whatever path it is given, is known to.
func TestStackContains(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"lower/a/b", "upper/c", "work", "elsewhere"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("lower/a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	s, err := OpenStack(mountopt.Options{
		LowerDirs: []string{filepath.Join(dir, "lower")}, UpperDir: filepath.Join(dir, "upper"), WorkDir: filepath.Join(dir, "work"),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for target, want := range map[string]bool{
		"lower/a/b": true, "lower/a": true, "link": true, "link/b": true, "upper/c": true,
		"lower": false, "upper": false, "work": false, "elsewhere": false, ".": false, "absent": false,
	} {
		if got := s.contain(filepath.Join(dir, target)); got != want {
			t.Errorf("%s lies in a layer: %v, want %v", target, got, want)
		}
	}
	if s.contain("/dev/fd/0") {
		t.Error("a descriptor lies in a layer")
	}
	root, err := OpenStack(mountopt.Options{LowerDirs: []string{"/"}})
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if !root.contain(filepath.Join(dir, "elsewhere")) { // perhaps on another file system
		t.Error("a directory does not lie in /")
	}
}
