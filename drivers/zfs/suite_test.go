//go:build vm

package zfs

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// mounted makes a dataset of a pool and returns where it is mounted.
func mounted(t testing.TB, pool string) string {
	t.Helper()
	ds, dir := pool+"/"+strings.ToLower(rand.Text())[:8], filepath.Join(testenv.Scratch(t), "base")
	// The suite compares layers with directories beside them, which are to have all that a layer has.
	vmtest.Run(t, "zfs", "create", "-o", "acltype=posixacl", "-o", "xattr=sa", "-o", "mountpoint="+dir, ds)
	t.Cleanup(func() { retry(t, "zfs", "destroy", "-r", ds) })
	return dir
}

func TestSuite(t *testing.T) {
	tank := sync.OnceFunc(func() { pool(t, "tank", vmtest.Partition(t, 0)) })
	small := sync.OnceFunc(func() {
		pool(t, "small", vmtest.Partition(t, 1))
		// Pools can't be small, but be full of what was promised to others.
		available, err := strconv.Atoi(vmtest.Run(t, "zfs", "get", "-Hp", "-o", "value", "available", "small"))
		must(t, err)
		vmtest.Run(t, "zfs", "create", "-o", "reservation="+strconv.Itoa(available-40<<20), "small/ballast")
	})
	drivertest.Run(t, drivertest.Suite{
		Factory: Factory(),
		Base: func(c testing.TB) string {
			tank()
			return mounted(c, "tank")
		},
		SmallBase: func(c testing.TB) string {
			small()
			return mounted(c, "small")
		},
		Differences: []drivertest.Difference{
			{Case: "SetQuota", Reason: "what is deleted counts until zfs has freed it, some transactions later; see TestQuota"},
			{Case: "ListDamaged", Reason: "what is noted of a layer is in the properties of its dataset"},
		},
		Abilities: drivertest.Abilities{QuotaBytes: true, ReadOnlyImages: true, ReadOnlyGet: true},
	})
}

func TestQuota(t *testing.T) {
	pool(t, "tank", vmtest.Partition(t, 0))
	d, err := open(t.Context(), drivers.Options{
		Home: filepath.Join(testenv.Scratch(t), "home"), Run: filepath.Join(testenv.Scratch(t), "run"),
		Options: map[string]string{optionFSName: "tank"},
	}, realMounter{})
	must(t, err)
	must(t, d.Create(t.Context(), "base", "", nil))
	must(t, d.Fill(t.Context(), "base", func(root string) error { return writeNoise(filepath.Join(root, "big"), 32<<20) }))
	must(t, d.CreateReadWrite(t.Context(), "c", "base", &drivers.CreateOptions{Quota: drivers.Quota{Bytes: 8 << 20}}))
	root, err := d.Get(t.Context(), "c", nil)
	must(t, err)
	must(t, writeNoise(filepath.Join(root, "fits"), 4<<20))
	if err := writeNoise(filepath.Join(root, "beyond"), 16<<20); !errors.Is(err, unix.EDQUOT) {
		t.Errorf("wrote beyond the quota: %v", err)
	}
	must(t, os.Remove(filepath.Join(root, "beyond")))
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		err := writeNoise(filepath.Join(root, "again"), 2<<20)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	must(t, d.Put(t.Context(), "c"))
	if u, err := d.Usage(t.Context(), "c"); err != nil || u.Bytes < 6<<20 || u.Bytes > 8<<20 || u.Inodes < 2 || u.Inodes > 4 {
		t.Errorf("usage %+v, %v", u, err)
	}
	must(t, d.Remove(t.Context(), "c"))
	must(t, d.Remove(t.Context(), "base"))
}

// writeNoise writes what can't be compressed, and syncs.
func writeNoise(path string, n int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.Reader, int64(n))
	return errors.Join(err, f.Sync(), f.Close())
}

// What stays in the pool is what there was before, also of properties that a pool may have for other uses.
func TestOddPool(t *testing.T) {
	pool(t, "tank", vmtest.Partition(t, 0))
	const normalise = "normalization=formD" //nolint:misspell // so zfs spells it
	vmtest.Run(t, "zfs", "create", "-o", normalise, "-o", "utf8only=on", "-o", "devices=off", "-o", "setuid=off", "-o", "exec=off",
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
