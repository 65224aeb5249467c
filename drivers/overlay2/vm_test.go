//go:build vm

package overlay2_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"plyfs/drivers/drivertest"
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
			mounted := sync.OnceValue(func() string { return projectQuotas(t, mkfs) })
			s := suite()
			s.Abilities.QuotaBytes, s.Abilities.QuotaInodes = true, true
			s.Base = func(t testing.TB) string {
				dir, err := os.MkdirTemp(mounted(), "base-")
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = os.RemoveAll(dir) })
				return dir
			}
			drivertest.Run(t, s)
		})
	}
}

// projectQuotas returns where a new file system is mounted until the end of the test.
func projectQuotas(t *testing.T, mkfs []string) string {
	t.Helper()
	disk := vmtest.Disk(t, 0)
	vmtest.Run(t, mkfs[0], append(mkfs[1:], disk)...)
	mnt := filepath.Join(testenv.Scratch(t), "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	vmtest.Run(t, "mount", "-o", "prjquota", disk, mnt)
	t.Cleanup(func() { testenv.Unmount(t, mnt) })
	return mnt
}
