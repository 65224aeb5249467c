package union

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/cow/layer"
	"plyfs/internal/testenv"
)

// covered makes two lowers, an upper and a work directory, and mounts a file system with something in it on both m in the upper
// lower and up in the upper, which stands in for the own mount. With few names in a directory the lowers are merged at once.
func covered(t *testing.T, lowers int) *Union {
	root := testenv.Scratch(t)
	for _, d := range []string{"lower/m/covered", "base/m/below", "upper/up/covered", "work", "own"} {
		must(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	must(t, os.Chmod(filepath.Join(root, "upper"), 0o751), unix.Mount("own", filepath.Join(root, "own"), "tmpfs", 0, ""))
	t.Cleanup(func() { testenv.Unmount(t, filepath.Join(root, "own")) })
	must(t, os.Mkdir(filepath.Join(root, "own/inside"), 0o755), unix.Setxattr(filepath.Join(root, "own"), "trusted.k", nil, 0))
	for _, at := range []string{"lower/m", "upper/up"} {
		must(t, unix.Mount(filepath.Join(root, "own"), filepath.Join(root, at), "", unix.MS_BIND, ""))
		t.Cleanup(func() { testenv.Unmount(t, filepath.Join(root, at)) })
	}
	var ls []*layer.Layer
	for _, d := range append([]string{"lower", "base"}[:lowers], "upper", "work") {
		l, err := layer.Open(filepath.Join(root, d))
		must(t, err)
		ls = append(ls, l)
	}
	u, err := New(Options{Lowers: ls[:lowers], Upper: ls[lowers], Work: ls[lowers+1]})
	must(t, err)
	t.Cleanup(func() { must(t, u.Close()) })
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(root, "own"), &st))
	u.Avoid(st.Dev, true)
	return u
}

func names(t *testing.T, u *Union, n *Node) (out []string) {
	t.Helper()
	buf := make([]Dirent, 16)
	k, err := u.ReadDir(n, 0, buf)
	must(t, err)
	for _, e := range buf[2:k] {
		out = append(out, e.Name)
	}
	return out
}

// The own mount in a lower is a directory without content of that lower, to which everything can be done.
func TestOwnMountInLower(t *testing.T) {
	for lowers, below := range map[int][]string{1: nil, 2: {"below"}} {
		for _, listed := range []bool{false, true} {
			u := covered(t, lowers)
			c := &Caller{}
			if listed {
				names(t, u, u.Root())
			}
			n, a, err := u.Lookup(u.Root(), "m")
			must(t, err)
			if a.Mode != unix.S_IFDIR|0o751 || a.Ino == u.Root().Ino() {
				t.Errorf("mode %o, inode %d, the root has %d", a.Mode, a.Ino, u.Root().Ino())
			}
			if a, err = u.GetAttr(n); err != nil || a.Mode != unix.S_IFDIR|0o751 {
				t.Errorf("mode %o, %v", a.Mode, err)
			}
			if got := names(t, u, n); !slices.Equal(got, below) {
				t.Errorf("of %d lowers it shows %q", lowers, got)
			}
			if _, _, err := u.Lookup(n, "inside"); !errors.Is(err, unix.ENOENT) {
				t.Errorf("what is in the own mount: %v", err)
			}
			if k, err := u.Listxattr(n, nil); k != 0 || err != nil {
				t.Errorf("attributes of %d bytes, %v", k, err)
			}
			if _, err := u.Getxattr(n, "trusted.k", nil); !errors.Is(err, unix.ENODATA) {
				t.Errorf("attribute: %v", err)
			}
			must(t, u.Setxattr(n, "trusted.mine", nil, 0)) // copies it up
			d, _, err := u.Mkdir(c, n, "new", 0o755)
			must(t, err)
			u.Forget(d, 1)
			if got := names(t, u, n); len(got) != lowers || !slices.Contains(got, "new") {
				t.Errorf("copied up it shows %q", got)
			}
			if k, err := u.Listxattr(n, nil); k != len("trusted.mine")+1 || err != nil {
				t.Errorf("attributes of %d bytes, %v", k, err)
			}
			u.Forget(n, 1)
		}
	}
}

// It can be removed: what the mount shows there is nobody's content.
func TestRemoveOwnMountInLower(t *testing.T) {
	u := covered(t, 1)
	must(t, u.Rmdir(u.Root(), "m"))
	if _, _, err := u.Lookup(u.Root(), "m"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("after its removal: %v", err)
	}
}

// In the upper it is empty too, but busy as a mount point is.
func TestOwnMountInUpper(t *testing.T) {
	u := covered(t, 2)
	n, a, err := u.Lookup(u.Root(), "up")
	must(t, err)
	defer u.Forget(n, 1)
	if got := names(t, u, n); a.Mode != unix.S_IFDIR|0o751 || len(got) != 0 {
		t.Errorf("mode %o, shows %q", a.Mode, got)
	}
	if _, _, err := u.Mkdir(&Caller{}, n, "new", 0o755); !errors.Is(err, unix.EBUSY) {
		t.Errorf("mkdir in it: %v", err)
	}
	if err := u.Rmdir(u.Root(), "up"); err == nil {
		t.Error("a mount point is removed")
	} else {
		t.Logf("rmdir: %v", err)
	}
}

// Nor is it counted twice: what it shows is the upper's.
func TestQuotaOwnMountInUpper(t *testing.T) {
	u := covered(t, 1)
	u.opt.Quota = Quota{Bytes: 1 << 20}
	must(t, u.openQuota())
	if got := u.QuotaUse().Inodes; got != 2 {
		t.Errorf("%d inodes are counted, the upper and a directory are 2", got)
	}
}

// Another file system in a lower is part of it.
func TestOtherMountInLower(t *testing.T) {
	u := covered(t, 2)
	u.Avoid(^uint64(0), true)
	n, _, err := u.Lookup(u.Root(), "m")
	must(t, err)
	defer u.Forget(n, 1)
	if got := names(t, u, n); len(got) != 2 || !slices.Contains(got, "inside") {
		t.Errorf("it shows %q", got)
	}
}
