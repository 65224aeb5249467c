package layer_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m, testenv.Options{})) }

var must = testenv.Must

// open opens path as a layer for the time of the test.
func open(t testing.TB, path string) *layer.Layer {
	t.Helper()
	l, err := layer.Open(path)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	return l
}

// inode returns the inode number behind an open descriptor.
func inode(t testing.TB, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatalf("descriptor %d: %v", fd, err)
	}
	return st.Ino
}
