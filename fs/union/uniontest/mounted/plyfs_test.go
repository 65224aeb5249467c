package mounted_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/fs/union/uniontest"
	"plyfs/fs/union/uniontest/mounted"
	"plyfs/internal/testenv"
)

// TestNoopen runs the suite on plyfs in the data mode that sends no open; what it wrote is then read by the kernel.
func TestNoopen(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{
		Factory: mounted.Plyfs{Data: "noopen"}, Cross: []uniontest.Factory{mounted.Kernel{}}, Long: long(),
	})
}

// TestPassthrough runs the suite on plyfs in the data mode in which the kernel reads and writes the layers' files.
func TestPassthrough(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{
		Factory: mounted.Plyfs{Data: "passthrough"}, Cross: []uniontest.Factory{mounted.Kernel{}}, Long: long(),
	})
}

// TestKernelWrites lets plyfs show what the kernel wrote.
func TestKernelWrites(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{
		Factory: mounted.Kernel{}, Cross: []uniontest.Factory{mounted.Plyfs{Data: "noopen"}},
		Only: func(c uniontest.Case) bool { return c.NoCross == "" },
	})
}

// TestExt4 runs the suite over a disk file system.
func TestExt4(t *testing.T) {
	uniontest.Run(t, uniontest.Setup{
		Factory: mounted.Plyfs{Data: "auto"}, Cross: []uniontest.Factory{mounted.Kernel{}}, Base: onExt4(t),
	})
}

// TestRootless runs the suite in a user namespace, where plyfs keeps its marks in user.overlay attributes. The kernel
// does no redirects and no metacopy there, so it is not asked to show the result.
func TestRootless(t *testing.T) {
	if !testenv.InUserNamespace() {
		testenv.RunInUserNamespace(t, "^TestRootless$")
		return
	}
	uniontest.Run(t, uniontest.Setup{Factory: mounted.Plyfs{Data: "noopen"}})
}

// TestModesCountWithoutACLs: whoever does not own a file whose group has rights gets at it also where its layer's file system has
// no ACLs. The kernel asks for one then.
func TestModesCountWithoutACLs(t *testing.T) {
	for _, p := range []uniontest.Factory{mounted.Plyfs{Data: "noopen"}, mounted.Plyfs{Data: "passthrough"}, mounted.Kernel{}} {
		t.Run(p.Name(), func(t *testing.T) { modesWithoutACLs(t, p) })
	}
}

func modesWithoutACLs(t *testing.T, p uniontest.Factory) {
	base := testenv.Scratch(t)
	lower := filepath.Join(base, "l")
	s := uniontest.Spec{Base: base, Upper: filepath.Join(base, "u"), Work: filepath.Join(base, "w"), Lowers: []string{lower}}
	for _, d := range []string{s.Upper, s.Work, lower} {
		if err := unix.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("ramfs", lower, "ramfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { testenv.Unmount(t, lower) })
	path := filepath.Join(lower, "file")
	if err := errors.Join(os.WriteFile(path, []byte("text"), 0o640), os.Chown(path, 1, 2)); err != nil {
		t.Fatal(err)
	}
	tree, err := p.Open(t, s)
	if err != nil {
		t.Fatal(err)
	}
	for who, want := range map[*testenv.Cred]error{{}: nil, {UID: 3, GID: 2}: nil, {UID: 3, GID: 3}: unix.EACCES} {
		f, err := tree.As(*who).Open("file", unix.O_RDONLY, 0)
		if !errors.Is(err, want) {
			t.Errorf("open as %d:%d: %v, want %v", who.UID, who.GID, err, want)
		}
		if err == nil {
			f.Close()
		}
	}
}
