package testenv

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Scratch returns a new empty directory on tmpfs, removed after the test. Unlike t.TempDir every directory above it may
// be searched by any user.
func Scratch(t testing.TB) string {
	t.Helper()
	if os.Getenv(envStage) == "" {
		t.Fatal("testenv.Main does not run this test")
	}
	dir, err := os.MkdirTemp(os.TempDir(), "s")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Trees deeper than PATH_MAX and immutable leftovers are no reason to fail: the tmpfs goes with the
		// namespace.
		_ = os.RemoveAll(dir)
	})
	return dir
}

// Ext4 returns the root of a new ext4 file system of the given size in bytes, on a loop device, unmounted after the
// test.
func Ext4(t testing.TB, size int64) string {
	t.Helper()
	dir := Scratch(t)
	img, root := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	f, err := os.Create(img)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(f.Truncate(size), f.Close(), os.Mkdir(root, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=1", img)
	run(t, "mount", "-o", "loop", "-t", "ext4", img, root)
	t.Cleanup(func() { Unmount(t, root) })
	return root
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
}

// Unmount unmounts dir and, if it stays busy for some seconds, detaches it and fails the test.
func Unmount(t testing.TB, dir string) {
	t.Helper()
	deadline := time.Now().Add(settle)
	for {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			t.Errorf("unmount %s: %v", dir, err)
			_ = unix.Unmount(dir, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}
