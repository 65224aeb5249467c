//go:build vm

package smoke

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/internal/testenv"
	"plyfs/internal/vm/vmtest"
)

// TestThinPool: a snapshot of a thin device has the origin's files, and keeps them when the origin changes.
func TestThinPool(t *testing.T) {
	data, meta := vmtest.Disk(t, 0), vmtest.Disk(t, 1)
	sectors := vmtest.Run(t, "blockdev", "--getsz", data)
	vmtest.Run(t, "dmsetup", "create", "pool", "--table", "0 "+sectors+" thin-pool "+meta+" "+data+" 128 0 1 skip_block_zeroing")
	vmtest.Deferred(t, "dmsetup", "remove", "--retry", "pool")
	thin := func(name, id string) string {
		vmtest.Run(t, "dmsetup", "create", name, "--table", "0 1048576 thin /dev/mapper/pool "+id)
		vmtest.Deferred(t, "dmsetup", "remove", "--retry", name)
		return "/dev/mapper/" + name
	}
	vmtest.Run(t, "dmsetup", "message", "pool", "0", "create_thin 0")
	origin := thin("origin", "0")
	vmtest.Run(t, "mkfs.xfs", "-q", origin)
	base := mounted(t, "xfs", origin, "rw")
	write(t, "old", base, "f")
	vmtest.Run(t, "dmsetup", "suspend", "origin")
	vmtest.Run(t, "dmsetup", "message", "pool", "0", "create_snap 1 0")
	vmtest.Run(t, "dmsetup", "resume", "origin")
	write(t, "new", base, "f")
	wantContent(t, "old", mounted(t, "xfs", thin("snapshot", "1"), "nouuid"), "f")
	wantContent(t, "new", base, "f")
}

// TestZFS: the same with a dataset and a clone, and a quota that holds.
func TestZFS(t *testing.T) {
	vmtest.Run(t, "modprobe", "zfs")
	vmtest.Run(t, "zpool", "create", "-f", "-O", "mountpoint=none", "-O", "xattr=sa", "tank", vmtest.Partition(t, 0))
	vmtest.Deferred(t, "zpool", "destroy", "tank")
	vmtest.Run(t, "zfs", "create", "-o", "mountpoint=legacy", "tank/base")
	base := mounted(t, "zfs", "tank/base", "rw")
	write(t, "old", base, "f")
	vmtest.Run(t, "zfs", "snapshot", "tank/base@1")
	vmtest.Run(t, "zfs", "clone", "-o", "mountpoint=legacy", "-o", "refquota=16M", "tank/base@1", "tank/clone")
	write(t, "new", base, "f")
	clone := mounted(t, "zfs", "tank/clone", "rw")
	wantContent(t, "old", clone, "f")
	out, err := exec.Command("dd", "if=/dev/urandom", "of="+clone+"/big", "bs=1M", "count=64").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "quota exceeded") {
		t.Errorf("64 MiB under a quota of 16 MiB: %v: %s", err, out)
	}
}

// TestBtrfs: the same with subvolumes.
func TestBtrfs(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Run(t, "mkfs.btrfs", "-q", "-f", disk)
	root := mounted(t, "btrfs", disk, "rw")
	vmtest.Run(t, "btrfs", "subvolume", "create", root+"/base")
	write(t, "old", root, "base/f")
	vmtest.Run(t, "btrfs", "subvolume", "snapshot", root+"/base", root+"/snapshot")
	write(t, "new", root, "base/f")
	wantContent(t, "old", root, "snapshot/f")
}

// TestXFSProjectQuota: a directory tree is held to its project's limit.
func TestXFSProjectQuota(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Run(t, "mkfs.xfs", "-q", "-f", disk)
	root := mounted(t, "xfs", disk, "prjquota")
	tree := mkdir(t, root, "tree")
	vmtest.Run(t, "xfs_quota", "-x", "-c", "project -s -p "+tree+" 7", root)
	vmtest.Run(t, "xfs_quota", "-x", "-c", "limit -p bhard=1m 7", root)
	write(t, strings.Repeat("x", 512<<10), tree, "fits")
	err := os.WriteFile(tree+"/big", make([]byte, 2<<20), 0o644)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("2 MiB under a limit of 1 MiB: %v", err)
	}
}

// TestPlyfsAndOverlayfs: what plyfs wrote, the kernel's overlayfs shows.
func TestPlyfsAndOverlayfs(t *testing.T) {
	disk := vmtest.Disk(t, 0)
	vmtest.Run(t, "mkfs.ext4", "-q", "-F", disk)
	root := mounted(t, "ext4", disk, "rw")
	lower, upper, work := mkdir(t, root, "lower"), mkdir(t, root, "upper"), mkdir(t, root, "work")
	merged := mkdir(t, testenv.Scratch(t), "merged")
	mkdir(t, lower, "dir")
	write(t, "gone", lower, "dir/gone")
	write(t, "old", lower, "dir/f")
	vmtest.Run(t, testenv.Binary(t), "mount", "-o", "lowerdir="+lower+",upperdir="+upper+",workdir="+work, merged)
	check := func(who string) {
		t.Helper()
		wantContent(t, "new", merged, "renamed/f")
		if _, err := os.Stat(merged + "/renamed/gone"); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a removed file: %v", who, err)
		}
	}
	write(t, "new", merged, "dir/f")
	if err := errors.Join(os.Remove(merged+"/dir/gone"), os.Rename(merged+"/dir", merged+"/renamed")); err != nil {
		t.Error(err)
	}
	check("plyfs")
	testenv.Unmount(t, merged)
	vmtest.Run(t, "mount", "-t", "overlay", "-o", "redirect_dir=on,lowerdir="+lower+",upperdir="+upper+",workdir="+work, "o", merged)
	defer testenv.Unmount(t, merged)
	check("overlayfs")
}
