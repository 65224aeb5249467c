package testenv

import (
	"os"
	"path/filepath"
	"testing"
)

// XFS returns the root of a new XFS of about the least size there is, on a loop device, on which files can share extents,
// unmounted after the test.
func XFS(t testing.TB) string {
	t.Helper()
	dir := Scratch(t)
	img, root := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, 320<<20); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "mkfs.xfs", "-q", "-m", "reflink=1", img)
	run(t, "mount", "-o", "loop", "-t", "xfs", img, root)
	t.Cleanup(func() { Unmount(t, root) })
	return root
}
