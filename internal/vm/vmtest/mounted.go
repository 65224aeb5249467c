package vmtest

import (
	"os"
	"path/filepath"
	"testing"

	"plyfs/internal/testenv"
)

// Mounted returns where a new file system on the first disk is mounted until the end of the test. mkfs is the command that makes
// it, without the device; options are those of mount(8).
func Mounted(t testing.TB, mkfs []string, options ...string) string {
	t.Helper()
	disk := Disk(t, 0)
	Run(t, mkfs[0], append(mkfs[1:len(mkfs):len(mkfs)], disk)...)
	mnt := filepath.Join(testenv.Scratch(t), "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	Run(t, "mount", append(options, disk, mnt)...)
	t.Cleanup(func() { testenv.Unmount(t, mnt) })
	return mnt
}
