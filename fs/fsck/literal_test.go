package fsck_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"plyfs/fs/union/uniontest"
)

// TestLiteralDirectories: directories that only have names like those of AUFS are an application's, with all that leads to them.
func TestLiteralDirectories(t *testing.T) {
	const name, literal = ".wh..wh.plnk", "overlay.plyfs.literal"
	s := newSpec(t, []ls{{
		dirs("moved/"+name+"/x", "gone/"+name), reg("moved/"+name+"/f", "x"),
		xattr("moved/"+name, literal, "y"), xattr("gone/"+name, literal, "y"),
	}}, nil)
	use := func(fn func(tree uniontest.Tree)) {
		t.Helper()
		tree := openTree(t, s, false)
		fn(tree)
		closeTree(t, tree)
	}
	use(func(tree uniontest.Tree) {
		ok(t, tree.Rename("moved/"+name, "there", 0))
		ok(t, tree.Rmdir("gone/"+name))
		ok(t, tree.Mkdir("new", 0o755))
		ok(t, tree.Mkdir("new/"+name, 0o755))
	})
	if r := check(t, s, true); len(r.findings) > 0 {
		t.Errorf("findings: %s", list(r.findings))
	}
	use(func(tree uniontest.Tree) {
		for p, want := range map[string]error{"there/f": nil, "gone/" + name: unix.ENOENT, "moved/" + name: unix.ENOENT, "new/" + name: nil} {
			if _, err := tree.Lstat(p); !errors.Is(err, want) {
				t.Errorf("%s after a repair: %v", p, err)
			}
		}
	})
}
