//go:build vm

package devicemapper

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"plyfs/drivers"
	"plyfs/drivers/drivertest"
	"plyfs/internal/testenv"
	"plyfs/internal/vm/vmtest"
)

// inChild says that this process was started to be killed.
func inChild() bool { return os.Getenv("PLYFS_DRIVERTEST_CHILD") != "" }

// newBase returns a function that makes a directory on a file system.
func newBase(mnt *string) func(testing.TB) string {
	return func(t testing.TB) string {
		t.Helper()
		dir, err := os.MkdirTemp(*mnt, "base-")
		must(t, err)
		t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
		return dir
	}
}

// fileSystem mounts a new file system on a disk of the machine until the end of the test.
func fileSystem(t testing.TB, disk int) string {
	t.Helper()
	dev := vmtest.Disk(t, disk)
	vmtest.Run(t, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", dev)
	mnt := filepath.Join(testenv.Scratch(t), "mnt")
	must(t, os.Mkdir(mnt, 0o755))
	vmtest.Run(t, "mount", dev, mnt)
	t.Cleanup(func() { testenv.Unmount(t, mnt) })
	return mnt
}

// TestSuite runs the suite in pools of sparse files.
func TestSuite(t *testing.T) {
	for _, fs := range []struct{ name, base string }{{fsExt4, "256M"}, {fsXFS, "320M"}} {
		t.Run(fs.name, func(t *testing.T) {
			vmtest.Run(t, "modprobe", "-a", "dm-thin-pool", "loop", "xfs")
			var mnt string
			if !inChild() {
				mnt = fileSystem(t, 0)
			}
			drivertest.Run(t, drivertest.Suite{
				Factory:   Factory(),
				Options:   map[string]string{optFS: fs.name, optBaseSize: fs.base, optLoopData: "4G", optLoopMeta: "64M"},
				Base:      newBase(&mnt),
				Abilities: drivertest.Abilities{ReadOnlyImages: true, ReadOnlyGet: true, Independent: true},
			})
		})
	}
}

var _ = strconv.Itoa
var _ drivers.Options
