package vmtest

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// Disk returns the device of the i-th empty disk of the machine, counted from 0. What an earlier test left on it is
// forgotten. Tests that use disks must not run in parallel.
func Disk(t testing.TB, i int) string {
	t.Helper()
	disks := strings.Fields(os.Getenv("PLYFS_VM_DISKS"))
	if i >= len(disks) {
		t.Fatalf("needs disk %d of a virtual machine, there are %d; make test-vm runs this test", i, len(disks))
	}
	Run(t, "wipefs", "--all", "--quiet", disks[i])
	// dm-thin takes a superblock that it finds for a pool's; wipefs doesn't know it.
	Run(t, "dd", "if=/dev/zero", "of="+disks[i], "bs=1M", "count=1", "conv=notrunc,fsync", "status=none")
	return disks[i]
}

// Partition is Disk for zpool, which would make partitions on a whole disk and wait for udev to tell of them; machines have none.
func Partition(t testing.TB, i int) string {
	t.Helper()
	disk := Disk(t, i)
	const begin = 2048 // of sectors, as is usual
	sectors, err := strconv.Atoi(Run(t, "blockdev", "--getsz", disk))
	if err != nil {
		t.Fatal(err)
	}
	Run(t, "addpart", disk, "1", strconv.Itoa(begin), strconv.Itoa(sectors-begin))
	Deferred(t, "delpart", disk, "1")
	Run(t, "wipefs", "--all", "--quiet", disk+"1")
	return disk + "1"
}

// Run runs a program, fails the test if it fails, and returns its output, both streams, without the last newline.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimRight(string(out), "\n")
}

// Deferred runs a program when the test ends; its failure is one of the test.
func Deferred(t testing.TB, name string, args ...string) {
	t.Helper()
	t.Cleanup(func() {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Errorf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
		}
	})
}
