//go:build vm

package overlay2_test

import (
	"os"
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
			mounted := sync.OnceValue(func() string { return vmtest.Mounted(t, mkfs, "-o", "prjquota") })
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
			// A tmpfs has no user attributes before Linux 6.6, which the case wants to see unpacked.
			s.SmallBase = func(t testing.TB) string { return testenv.Ext4(t, drivertest.SmallSize) }
			drivertest.Run(t, s)
		})
	}
}
