package fsck_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"plyfs/fs/fsck"
	"plyfs/fs/union/uniontest"
)

// TestLinksOutside: files of a layer that have names outside of it, as a local clone of a repository or a store that links
// equal files makes them, leave entries in the index when they are removed. That takes space, and is no error.
func TestLinksOutside(t *testing.T) {
	for name, use := range map[string]func(uniontest.Tree) error{
		"file":      func(u uniontest.Tree) error { return u.Unlink("d/f") },
		"directory": func(u uniontest.Tree) error { return errors.Join(u.Unlink("d/f"), u.Rmdir("d")) },
	} {
		for _, kernel := range []bool{false, true} {
			s := newSpec(t, []ls{{reg("d/f", "x"), reg("g", "y")}}, nil)
			ok(t, os.Link(filepath.Join(s.Lowers[0], "d/f"), filepath.Join(filepath.Dir(s.Lowers[0]), "outside")))
			tree := openTree(t, s, kernel)
			ok(t, use(tree))
			closeTree(t, tree)
			orphans := 0
			for _, f := range check(t, s, false).findings {
				if f.Class == fsck.IndexOrphan {
					orphans++
				}
				if f.Class != fsck.StagedLeftover && (f.Class != fsck.IndexOrphan || f.Severity != fsck.Note) {
					t.Errorf("%s, kernel %v: %s", name, kernel, list([]fsck.Finding{f}))
				}
			}
			if orphans != 1 {
				t.Errorf("%s, kernel %v: %d entries are found", name, kernel, orphans)
			}
			check(t, s, true)
			if r := check(t, s, false); len(r.findings) > 0 {
				t.Errorf("%s, kernel %v, repaired: %s", name, kernel, list(r.findings))
			}
		}
	}
}
