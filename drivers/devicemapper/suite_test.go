//go:build vm

package devicemapper

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"plyfs/drivers"
	"plyfs/drivers/drivertest"
	"plyfs/internal/testenv"
	"plyfs/internal/vm/vmtest"
)

// inChild says that this process was started to be killed.
func inChild() bool { return os.Getenv("PLYFS_DRIVERTEST_CHILD") != "" }

// fileSystem mounts a new file system on a disk of the machine until the end of the test.
func fileSystem(t testing.TB, disk int, fstype string) string {
	t.Helper()
	dev := vmtest.Disk(t, disk)
	cmd := mkfsCommand(dev, fstype, "", nil)
	vmtest.Run(t, cmd[0], cmd[1:]...)
	mnt := filepath.Join(testenv.Scratch(t), "mnt")
	must(t, os.Mkdir(mnt, 0o755))
	vmtest.Run(t, "mount", dev, mnt)
	t.Cleanup(func() { testenv.Unmount(t, mnt) })
	return mnt
}

// newBase returns a function that makes a directory whose name begins with prefix.
func newBase(mnt, prefix string) func(testing.TB) string {
	return func(t testing.TB) string {
		t.Helper()
		dir, err := os.MkdirTemp(mnt, prefix)
		must(t, err)
		t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
		return dir
	}
}

// smallPrefix begins the names of directories in which pools are small.
const smallPrefix = "small-"

// smallPool makes pools small where that is asked for.
func smallPool(f drivers.Factory, size string) drivers.Factory {
	open := f.Open
	f.Open = func(ctx context.Context, o drivers.Options) (drivers.Driver, error) {
		if strings.Contains(o.Home, "/"+smallPrefix) {
			given := map[string]string{optLoopData: size}
			for key, value := range o.Options {
				if key != optLoopData {
					given[key] = value
				}
			}
			o.Options = given
		}
		return open(ctx, o)
	}
	return f
}

// TestSuite runs the suite in pools of sparse files.
func TestSuite(t *testing.T) {
	for _, fs := range []struct{ name, base, small string }{
		{fsExt4, "256M", "64M"},
		// The log alone has 64 MiB.
		{fsXFS, "320M", "120M"},
	} {
		t.Run(fs.name, func(t *testing.T) {
			mnt, plain := "", ""
			if !inChild() {
				vmtest.Run(t, "modprobe", "-a", "dm-thin-pool", "loop", "xfs")
				// xfs has an attribute for each access control list, so the oracle is on what the layers have.
				mnt, plain = fileSystem(t, 0, fsExt4), fileSystem(t, 1, fs.name)
			}
			drivertest.Run(t, drivertest.Suite{
				Factory: smallPool(Factory(), fs.small),
				Options: map[string]string{
					optFS: fs.name, optBaseSize: fs.base, optLoopData: "4G",
					optLoopMeta: "32M",
				},
				Base:        newBase(mnt, "base-"),
				Plain:       newBase(plain, "plain-"),
				SmallBase:   newBase(mnt, smallPrefix),
				Differences: []drivertest.Difference{{Case: "ListDamaged", Reason: noFiles}},
				Abilities: drivertest.Abilities{
					QuotaBytes: true, QuotaInodes: true, ReadOnlyImages: true, ReadOnlyGet: true, Independent: true,
				},
			})
		})
	}
}
