package testenv

import (
	"errors"
	"os"
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
