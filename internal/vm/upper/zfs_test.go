//go:build vm

package upper

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/direct"
	"plyfs/fs/union/uniontest/mounted"
	"plyfs/internal/testenv"
	"plyfs/internal/vm/vmtest"
)

func TestMain(m *testing.M) {
	os.Exit(testenv.Main(m, testenv.Options{Binary: true}))
}

// dataset makes a pool with one dataset, which is gone after the test, and returns where it is mounted.
func dataset(t *testing.T) string {
	t.Helper()
	vmtest.Run(t, "modprobe", "zfs")
	dir := filepath.Join(testenv.Scratch(t), "tank")
	vmtest.Run(t, "zpool", "create", "-f", "-O", "xattr=sa", "-O", "acltype=posixacl", "-m", dir, "tank", vmtest.Partition(t, 0))
	t.Cleanup(func() { vmtest.Run(t, "zpool", "destroy", "tank") })
	return dir
}

// other are the cases that expect what zfs does otherwise.
var other = map[string]string{
	"data/sizes-and-blocks": "blocks are counted when zfs has written them",
	"data/fallocate":        "and are not allocated before",
	"data/beyond-4gib":      "holes are known then, and are as large as a record",
	"data/seek":             "the same",
	"data/punch-hole":       "the same",
	"copy-up/holes":         "the same",
	"copy-up/capability":    "a write leaves a file's capabilities, in a dataset by itself, too",

	"basic/btime": "zfs 2.1 tells no times of birth",

	// The virtual machine's Linux 6.1 ends munmap before the server has what was written, and an unmount drops it.
	"mapping/shared-write": "on ext4 in that machine, and with fuse-overlayfs, too",

	// Nor is it an upper for the kernel's overlayfs.
	"nesting/kernel-upper-on-it": "without flags of renameat2",
	"nesting/kernel-lower-on-it": "the same",
	"nesting/itself-on-kernel":   "the same",
}

// setup says how the suite runs below dir. Quotas are approximate there: what was written is counted late.
func setup(dir string, factory uniontest.Factory) uniontest.Setup {
	return uniontest.Setup{
		Factory: factory,
		Only: func(c uniontest.Case) bool {
			return other[c.Name] == "" && !strings.HasPrefix(c.Name, "quota/")
		},
		Base: func(t testing.TB) string {
			base, err := os.MkdirTemp(dir, "case-")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(base, 0o755); err != nil {
				t.Fatal(err)
			}
			return base
		},
	}
}

// takesFlags says whether renameat2 takes flags below dir.
func takesFlags(t *testing.T, dir string) bool {
	t.Helper()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := errors.Join(os.Mkdir(a, 0o700), os.Mkdir(b, 0o700)); err != nil {
		t.Fatal(err)
	}
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if err != nil && !errors.Is(err, unix.EINVAL) {
		t.Fatal(err)
	}
	if rerr := errors.Join(os.Remove(a), os.Remove(b)); rerr != nil {
		t.Fatal(rerr)
	}
	return err == nil
}

func TestEngineOnZFS(t *testing.T) {
	dir := dataset(t)
	plain := !takesFlags(t, dir)
	uniontest.Run(t, setup(dir, direct.Engine{PlainRenames: plain}))
}

func TestMountOnZFS(t *testing.T) {
	dir := dataset(t)
	plain := !takesFlags(t, dir)
	vmtest.Run(t, "modprobe", "fuse")
	uniontest.Run(t, setup(dir, mounted.Plyfs{Data: "noopen", PlainRenames: plain}))
}
