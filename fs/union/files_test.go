package union

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
)

// TestFewFiles: under a low RLIMIT_NOFILE, of which the process has used much already, what is kept open leaves enough for what
// is not.
func TestFewFiles(t *testing.T) {
	const dirs = 100
	s := newStack(t)
	for i := range dirs {
		dir := fmt.Sprintf("%s/d%d", s.lower, i)
		okT(t, os.Mkdir(dir, 0o755))
		okT(t, os.WriteFile(dir+"/f", []byte("content"), 0o644))
	}
	limitFiles(t, 32)
	u := s.open(nil)
	defer func() { okT(t, u.Close()) }()
	root := u.Root()
	var all []*Node
	for i := range dirs {
		dir, _, err := u.Lookup(root, fmt.Sprint("d", i))
		okT(t, err)
		if got := listAll(t, u, dir); len(got) != 3 {
			t.Errorf("d%d: %v", i, got)
		}
		all = append(all, dir)
	}
	for _, dir := range all {
		f, _, err := u.Lookup(dir, "f")
		okT(t, err)
		_, err = u.Write(f, []byte("changed"), 0, KeepSetID)
		okT(t, err)
	}
}

// TestFewFilesManyLowers: a directory of more layers than there are descriptors left can be looked at.
func TestFewFilesManyLowers(t *testing.T) {
	const layers = 60
	root := t.TempDir()
	var lowers []*layer.Layer
	for i := range layers {
		dir := fmt.Sprintf("%s/%d/d", root, i)
		okT(t, os.MkdirAll(dir, 0o755))
		okT(t, os.WriteFile(fmt.Sprintf("%s/f%d", dir, i), nil, 0o644))
		l, err := layer.Open(filepath.Dir(dir))
		okT(t, err)
		lowers = append(lowers, l)
	}
	limitFiles(t, 32)
	u, err := New(Options{Lowers: lowers, ReadOnly: true})
	okT(t, err)
	defer func() { okT(t, u.Close()) }()
	dir, _, err := u.Lookup(u.Root(), "d")
	okT(t, err)
	if got := listAll(t, u, dir); len(got) != layers+2 {
		t.Errorf("%d entries", len(got))
	}
}

// limitFiles leaves the process so many descriptors more than it has, until the end of the test.
func limitFiles(t *testing.T, more int) {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	okT(t, err)
	var old unix.Rlimit
	okT(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	okT(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(open) + more), Max: old.Max}))
	t.Cleanup(func() { okT(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) })
}
