package union_test

import (
	"os"
	"strings"
	"testing"

	"plyfs/fs/union"
	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/direct"
	"plyfs/internal/testenv"
)

// below returns a maker of empty directories in root.
func below(root string) func(testing.TB) string {
	return func(t testing.TB) string {
		t.Helper()
		dir, err := os.MkdirTemp(root, "case")
		if err == nil {
			err = os.Chmod(dir, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
}

// TestEngineQuota runs the suite with a quota that is never reached, over a file system whose directories and attributes take up
// blocks too: the account must be exact in the end. The cases that are about listing make names by the hundred thousand, of
// which each is accounted for like any other.
func TestEngineQuota(t *testing.T) {
	quota := union.Quota{Bytes: 1 << 50, Inodes: 1 << 40}
	uniontest.Run(t, uniontest.Setup{
		Factory: direct.Engine{Quota: quota}, Base: below(testenv.Ext4(t, 4<<30)),
		Only: func(c uniontest.Case) bool { return !strings.HasPrefix(c.Name, "readdir/") },
	})
}
