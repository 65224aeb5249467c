package testenv

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Ext4 returns the root of a new ext4 file system of the given size in bytes, on a loop device, unmounted after the
// test.
func Ext4(t testing.TB, size int64) string {
	t.Helper()
	return onLoop(t, "ext4", size, []string{"-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1"})
}

// Btrfs returns the root of a new btrfs file system of the given size in bytes (at least 112 MiB), on a loop device, with
// further mount options, unmounted after the test.
func Btrfs(t testing.TB, size int64, options ...string) string {
	t.Helper()
	return onLoop(t, "btrfs", size, []string{"-q", "-m", "single", "-d", "single"}, options...)
}

// XFS returns the root of a new XFS of about the least size there is, on a loop device, on which files can share extents,
// unmounted after the test.
func XFS(t testing.TB) string {
	t.Helper()
	return onLoop(t, "xfs", 320<<20, []string{"-q", "-m", "reflink=1"})
}

// onLoop returns the root of a new file system in a sparse file of the given size. mkfs are the arguments of mkfs.TYPE, without
// the file, options further mount options.
func onLoop(t testing.TB, fstype string, size int64, mkfs []string, options ...string) string {
	t.Helper()
	dir := Scratch(t)
	img, root := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	if err := errors.Join(os.WriteFile(img, nil, 0o600), os.Truncate(img, size), os.Mkdir(root, 0o755)); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs."+fstype, append(mkfs, img)...)
	run(t, "mount", "-o", strings.Join(append([]string{"loop"}, options...), ","), "-t", fstype, img, root)
	t.Cleanup(func() { Unmount(t, root) })
	return root
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}
