package btrfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/drivers/drivertest"
	"plyfs/internal/testenv"
)

// newBase returns a function that returns the root of a new file system.
func newBase(size int64) func(testing.TB) string {
	return func(t testing.TB) string {
		t.Helper()
		return testenv.Btrfs(t, size)
	}
}

// newSmall returns the root of a file system on which ballast leaves little room: btrfs itself can't be that small.
func newSmall(t testing.TB) string {
	t.Helper()
	root := testenv.Btrfs(t, 128<<20)
	ballast(t, root)
	return root
}

// ballast leaves 40 MiB of a file system.
func ballast(t testing.TB, root string) {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(root, "ballast"))
	if err == nil {
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-40<<20), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestSuite(t *testing.T) {
	drivertest.Run(t, drivertest.Suite{
		Factory:   Factory(),
		Base:      newBase(512 << 20),
		SmallBase: newSmall,
		Differences: []drivertest.Difference{
			{Case: "SetQuota", Reason: "statfs shows the whole file system, and no name can be made in a layer that is full"},
		},
		Abilities: drivertest.Abilities{QuotaBytes: true, ReadOnlyImages: true, ReadOnlyGet: true, Mountless: true, Independent: true},
	})
}

// The file systems are mounted outside; a directory of each belongs to root of the namespace.
const (
	envUserBase  = "PLYFS_TEST_BTRFS"
	envUserSmall = "PLYFS_TEST_BTRFS_SMALL"
)

func TestSuiteInUserNamespace(t *testing.T) {
	for env, size := range map[string]int64{envUserBase: 1 << 30, envUserSmall: 128 << 20} {
		root := testenv.Btrfs(t, size, "user_subvol_rm_allowed")
		if env == envUserSmall {
			ballast(t, root)
		}
		base := filepath.Join(root, "base")
		must(t, os.Mkdir(base, 0o777))
		t.Setenv(env, base)
	}
	testenv.RunInUserNamespace(t, "^TestUserSuite$")
}

// TestUserSuite is for TestSuiteInUserNamespace.
func TestUserSuite(t *testing.T) {
	if !testenv.InUserNamespace() {
		return
	}
	drivertest.Run(t, drivertest.Suite{
		Factory:   Factory(),
		Base:      newUserBase(envUserBase),
		SmallBase: newUserBase(envUserSmall),
		Abilities: drivertest.Abilities{ReadOnlyImages: true, ReadOnlyGet: true, Mountless: true, Independent: true},
	})
}

// newUserBase returns a function that makes directories in that which the environment names.
func newUserBase(env string) func(testing.TB) string {
	return func(t testing.TB) string {
		t.Helper()
		dir, err := os.MkdirTemp(os.Getenv(env), "s")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		return dir
	}
}
