package union_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/fs/union"
	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/direct"
	"plyfs/internal/testenv"
)

func TestTmpXfs(t *testing.T) {
	d := testenv.Scratch(t)
	img := d + "/img"
	mnt := d + "/mnt"
	os.Mkdir(mnt, 0o755)
	for _, c := range []string{"truncate -s 2G " + img, "mkfs.xfs -q " + img, "mount -o loop " + img + " " + mnt} {
		if out, err := exec.Command("sh", "-c", c).CombinedOutput(); err != nil {
			t.Fatal(c, string(out), err)
		}
	}
	t.Cleanup(func() { unix.Unmount(mnt, 0) })
	t.Run("x", func(t *testing.T) {
		uniontest.Run(t, uniontest.Setup{Factory: direct.Engine{Quota: union.Quota{Bytes: 1 << 50, Inodes: 1 << 40}}, Base: below(mnt), Only: func(c uniontest.Case) bool {
			return os.Getenv("ONLY") == "" || strings.HasPrefix(c.Name, os.Getenv("ONLY"))
		}})
	})
}

func TestTmpBtrfs(t *testing.T) {
	mnt := testenv.Btrfs(t, 2<<30)
	t.Run("x", func(t *testing.T) {
		uniontest.Run(t, uniontest.Setup{Factory: direct.Engine{Quota: union.Quota{Bytes: 1 << 50, Inodes: 1 << 40}}, Base: below(mnt), Only: func(c uniontest.Case) bool {
			return os.Getenv("ONLY") == "" || strings.HasPrefix(c.Name, os.Getenv("ONLY"))
		}})
	})
}
