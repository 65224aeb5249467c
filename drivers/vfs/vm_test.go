//go:build vm

package vfs_test

import (
	"os"
	"sync"
	"testing"

	"plyfs/drivers/drivertest"
	"plyfs/drivers/vfs"
	"plyfs/internal/testenv"
	"plyfs/internal/vm/vmtest"
)

// TestSuiteProjectQuota runs what has to do with space where the file system enforces quotas, which the kernels of many
// machines are built without.
func TestSuiteProjectQuota(t *testing.T) {
	for fstype, mkfs := range map[string][]string{
		"ext4": {"mkfs.ext4", "-q", "-F", "-O", "quota,project", "-E", "quotatype=prjquota"},
		"xfs":  {"mkfs.xfs", "-q", "-f"},
	} {
		t.Run(fstype, func(t *testing.T) {
			mounted := sync.OnceValue(func() string { return vmtest.Mounted(t, mkfs, "-o", "prjquota") })
			drivertest.Run(t, drivertest.Suite{
				Factory: vfs.Factory(),
				Base: func(t testing.TB) string {
					dir, err := os.MkdirTemp(mounted(), "base-")
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = os.RemoveAll(dir) })
					return dir
				},
				Cases: []string{
					"Usage", "RemoveTwice", "SetQuota", "SetQuotaInodes", "QuotaInvalid", "ApplyFullDisk",
					"Killed",
				},
				SmallBase: func(t testing.TB) string { return testenv.Ext4(t, drivertest.SmallSize/2) },
				Abilities: drivertest.Abilities{
					QuotaBytes: true, QuotaInodes: true, ReadOnlyGet: true, Mountless: true, Independent: true,
				},
			})
		})
	}
}
