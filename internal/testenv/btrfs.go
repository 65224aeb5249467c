package testenv

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Btrfs returns the root of a new btrfs file system of the given size in bytes (at least 112 MiB), on a loop device, with
// further mount options, unmounted after the test.
func Btrfs(t testing.TB, size int64, options ...string) string {
	t.Helper()
	dir := Scratch(t)
	img, root := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	f, err := os.Create(img)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close(), os.Mkdir(root, 0o755)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.btrfs", "-q", "-m", "single", "-d", "single", img)
	run(t, "mount", "-o", strings.Join(append([]string{"loop"}, options...), ","), "-t", "btrfs", img, root)
	t.Cleanup(func() { Unmount(t, root) })
	return root
}
