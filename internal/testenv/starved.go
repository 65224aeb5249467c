package testenv

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Starved is a file system whose write-back can be made to fail: ext4 over a sparse loop file on a small tmpfs. Writes fit in
// ext4 and succeed; once the tmpfs is full, they can't reach it.
type Starved struct {
	// Root is where the file system is mounted, Pool where the tmpfs is. A process in another namespace that inherited
	// the mounts may use both by the same paths.
	Root, Pool string
}

const (
	starvedPool = 32 << 20
	starvedSize = 128 << 20
)

// NewStarved makes a file system of which everything can be written until Starve. It is unmounted after the test.
func NewStarved(t testing.TB) Starved {
	t.Helper()
	dir := Scratch(t)
	s := Starved{Root: filepath.Join(dir, "root"), Pool: filepath.Join(dir, "pool")}
	err := errors.Join(os.Mkdir(s.Root, 0o755), os.Mkdir(s.Pool, 0o755),
		unix.Mount("tmpfs", s.Pool, "tmpfs", 0, fmt.Sprintf("mode=1777,size=%d", starvedPool)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { Unmount(t, s.Pool) })
	img := filepath.Join(s.Pool, "img")
	if err := errors.Join(os.WriteFile(img, nil, 0o600), os.Truncate(img, starvedSize)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard", "-e", "continue", img)
	run(t, "mount", "-o", "loop", "-t", "ext4", img, s.Root)
	t.Cleanup(func() {
		s.Feed(t)
		Unmount(t, s.Root)
	})
	return s
}

// Starve makes all write-back of data that has no blocks yet fail.
func (s Starved) Starve(t testing.TB) {
	t.Helper()
	f, err := os.Create(filepath.Join(s.Pool, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for buf := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(buf)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

// Feed ends what Starve began: write-back works again. What failed is lost.
func (s Starved) Feed(t testing.TB) {
	t.Helper()
	if err := os.Remove(filepath.Join(s.Pool, "filler")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// WriteBack lets the kernel write the file at path back, and returns the error that this gave to whoever asks for that file.
func WriteBack(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
