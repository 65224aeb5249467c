//go:build vm

package zfs

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"plyfs/drivers"
	"plyfs/drivers/drivertest"
	"plyfs/internal/testenv"
	"plyfs/internal/vm/vmtest"
)

// pool makes a pool on a disk or file of the machine for the rest of the test.
func pool(t testing.TB, name, device string) {
	t.Helper()
	vmtest.Run(t, "modprobe", "zfs")
	vmtest.Run(t, "zpool", "create", "-f", "-O", "mountpoint=none", name, device)
	t.Cleanup(func() { retry(t, "zpool", "destroy", name) })
}

// retry runs a command until it succeeds: pools and datasets are busy for a moment after use.
func retry(t testing.TB, name string, args ...string) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := run(name, args...)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Error(err)
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// newBase returns a function that makes a dataset of a pool and returns where it is mounted.
func newBase(pool string) func(testing.TB) string {
	return func(t testing.TB) string {
		t.Helper()
		ds, dir := pool+"/"+strings.ToLower(rand.Text())[:8], filepath.Join(testenv.Scratch(t), "base")
		vmtest.Run(t, "zfs", "create", "-o", "mountpoint="+dir, ds)
		t.Cleanup(func() { retry(t, "zfs", "destroy", "-r", ds) })
		return dir
	}
}

func TestSuite(t *testing.T) {
	if os.Getenv("PLYFS_DRIVERTEST_CHILD") == "" {
		pool(t, "tank", vmtest.Disk(t, 0))
		pool(t, "small", vmtest.Disk(t, 1))
		// Pools can't be small, but be full of what was promised to others.
		available, err := strconv.Atoi(vmtest.Run(t, "zfs", "get", "-Hp", "-o", "value", "available", "small"))
		must(t, err)
		vmtest.Run(t, "zfs", "create", "-o", "reservation="+strconv.Itoa(available-40<<20), "small/ballast")
	}
	drivertest.Run(t, drivertest.Suite{
		Factory:   Factory(),
		Base:      newBase("tank"),
		SmallBase: newBase("small"),
		Abilities: drivertest.Abilities{QuotaBytes: true, ReadOnlyImages: true, ReadOnlyGet: true},
	})
}

// What stays in the pool is what there was before, also of properties that a pool may have for other uses.
func TestOddPool(t *testing.T) {
	pool(t, "tank", vmtest.Disk(t, 0))
	vmtest.Run(t, "zfs", "create", "-o", "normalization=formD", "-o", "utf8only=on", "-o", "devices=off", "-o", "setuid=off", "-o", "exec=off",
		"-o", "acltype=off", "-o", "casesensitivity=insensitive", "tank/odd")
	d, err := open(t.Context(), drivers.Options{
		Home: filepath.Join(testenv.Scratch(t), "home"), Run: filepath.Join(testenv.Scratch(t), "run"),
		Options: map[string]string{optionFSName: "tank/odd"},
	}, realMounter{})
	must(t, err)
	must(t, d.Create(t.Context(), "base", "", nil))
	must(t, d.Fill(t.Context(), "base", func(root string) error {
		for _, name := range []string{"a", "A", "\xff", "e\u0301", "\u00e9", "x"} {
			if err := fillFile(name)(root); err != nil {
				return err
			}
			if err := run("mv", filepath.Join(root, "f"), filepath.Join(root, name)); err != nil {
				return err
			}
		}
		if err := run("setfacl", "-m", "u:1:r", filepath.Join(root, "x")); err != nil {
			return err
		}
		if err := run("mknod", filepath.Join(root, "null"), "c", "1", "3"); err != nil {
			return err
		}
		return run("dd", "if="+filepath.Join(root, "null"), "status=none", "of=/dev/null")
	}))
	root, err := d.Get(t.Context(), "base", nil)
	must(t, err)
	entries, err := filepath.Glob(filepath.Join(root, "*"))
	if err != nil || len(entries) != 7 {
		t.Errorf("names %q, %v", entries, err)
	}
	must(t, d.Put(t.Context(), "base"))
	// Snapshots that others make are no hindrance.
	vmtest.Run(t, "zfs", "snapshot", "-r", "tank/odd@daily")
	must(t, d.CreateReadWrite(t.Context(), "c", "base", nil))
	must(t, d.Cleanup(t.Context()))
	if out := vmtest.Run(t, "zfs", "list", "-H", "-o", "name", "-t", "snapshot", "-r", d.base+"/image/base"); !strings.Contains(out, "@daily") {
		t.Errorf("snapshots after Cleanup: %s", out)
	}
	must(t, d.Remove(t.Context(), "c"))
	must(t, d.Remove(t.Context(), "base"))
	if n := fmt.Sprint(layers(t, d)); n != "[]" {
		t.Errorf("layers left: %s", n)
	}
	must(t, d.Close())
}
