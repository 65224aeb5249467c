//go:build vm

package vfs_test

import (
	"os"
	"path/filepath"
	"testing"

	"plyfs/drivers/drivertest"
	"plyfs/drivers/vfs"
	"plyfs/internal/testenv"
	"plyfs/internal/vm/vmtest"
)

// TestSuiteProjectQuota runs the suite where the file system enforces quotas, which the kernels of many machines are built
// without.
func TestSuiteProjectQuota(t *testing.T) {
	for fstype, mkfs := range map[string][]string{
		"ext4": {"mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota"},
		"xfs":  {"mkfs.xfs", "-q", "-f"},
	} {
		t.Run(fstype, func(t *testing.T) {
			disk := vmtest.Disk(t, 0)
			vmtest.Run(t, mkfs[0], append(mkfs[1:], disk)...)
			mnt := filepath.Join(testenv.Scratch(t), "mnt")
			if err := os.Mkdir(mnt, 0o755); err != nil {
				t.Fatal(err)
			}
			vmtest.Run(t, "mount", "-o", "prjquota", disk, mnt)
			t.Cleanup(func() { testenv.Unmount(t, mnt) })
			drivertest.Run(t, drivertest.Suite{
				Factory: vfs.Factory(),
				Base: func(t testing.TB) string {
					dir, err := os.MkdirTemp(mnt, "base-")
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = os.RemoveAll(dir) })
					return dir
				},
				SmallBase: drivertest.SmallScratch,
				Abilities: drivertest.Abilities{
					QuotaBytes: true, QuotaInodes: true, ReadOnlyGet: true, Mountless: true, Independent: true,
				},
			})
		})
	}
}
