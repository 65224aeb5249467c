package mounted_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/mounted"
	"plyfs/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m, testenv.Options{Binary: true})) }

// TestKernel proves the suite on the oracle.
func TestKernel(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{Factory: mounted.Kernel{}, Long: long()})
}

// TestKernelExt4 proves that what the suite holds of tmpfs it holds of a disk file system.
func TestKernelExt4(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{Factory: mounted.Kernel{}, Base: onExt4(t)})
}

// TestKernelRootless proves on the oracle what of the suite it can do in a user namespace: it has no file handles there,
// so that hard links break on copy-up and inode numbers change, and no redirects.
func TestKernelRootless(t *testing.T) {
	if !testenv.InUserNamespace() {
		testenv.RunInUserNamespace(t, "^TestKernelRootless$")
		return
	}
	unable := []string{
		"metacopy/", "rename-dir/", "rename/", "deletion/", "link/", "copy-up/identity", "copy-up/hard-links", "copy-up/set-id",
		"inode/over-remount", "basic/time-effects", "script/",
	}
	uniontest.Run(t, uniontest.Setup{Factory: mounted.Kernel{}, Only: func(c uniontest.Case) bool {
		return !slices.ContainsFunc(unable, func(p string) bool { return strings.HasPrefix(c.Name, p) })
	}})
}

// TestDifferences holds that every Difference is used by a case and explained.
func TestDifferences(t *testing.T) {
	seen := make(map[string]bool)
	for _, d := range uniontest.Differences() {
		if seen[d.ID] {
			t.Errorf("%s is listed twice", d.ID)
		}
		seen[d.ID] = true
		if d.Kernel == "" || d.Plyfs == "" || d.Why == "" {
			t.Errorf("%s is not explained", d.ID)
		}
	}
}

// long reports whether the long cases are asked for.
func long() bool { return os.Getenv("PLYFS_TEST_LONG") != "" }

// onExt4 returns a Setup.Base that makes directories on one new ext4 file system.
func onExt4(t *testing.T) func(testing.TB) string {
	t.Helper()
	root := testenv.Ext4(t, 4<<30)
	return func(t testing.TB) string {
		t.Helper()
		dir, err := os.MkdirTemp(root, "case")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
}
